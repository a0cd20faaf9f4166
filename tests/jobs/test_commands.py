"""Commands over the wire."""

import typing

import msgspec
import pytest

from jobs import commands
from jobs.commands import AnyCommand, Cancel, Pause, Resend, Start
from jobs.specs import FinetuneSpec, ValidateSpec
from jobs.training_config import TrainingConfig

FINETUNE = FinetuneSpec(config=TrainingConfig(model_name="demo-llava", train_data_path="datasets/a", max_steps=3))
EXAMPLES: list[AnyCommand] = [
    Start(job_id="j", attempt=1, spec=FINETUNE, device="cuda:0"),
    Start(job_id="j", attempt=2, spec=ValidateSpec(data_path="datasets/a"), device="cpu"),
    Cancel(job_id="j", attempt=2),
    Pause(job_id="j", attempt=2),
    Resend(job_id="j", attempt=2, from_n=7),
]


@pytest.mark.parametrize("wish", EXAMPLES)
def test_a_command_survives_the_wire(wish: AnyCommand) -> None:
    assert commands.decode(commands.encode(wish)) == wish


def test_every_command_has_an_example() -> None:
    assert {type(wish) for wish in EXAMPLES} == set(typing.get_args(AnyCommand))


def test_a_command_says_its_name_in_one_field() -> None:
    assert [msgspec.json.decode(commands.encode(wish))["command"] for wish in EXAMPLES] == [
        "start",
        "start",
        "cancel",
        "pause",
        "resend",
    ]


@pytest.mark.parametrize(
    "message", [b"", b"{}", b'{"command": "explode", "job_id": "j", "attempt": 1}', b"[]", b"\xff"]
)
def test_what_is_no_command_is_not_decoded(message: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        commands.decode(message)
