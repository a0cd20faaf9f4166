"""Settings come from the environment, and a wrong one is named."""

from pathlib import Path

import msgspec
import pytest

from jobs import settings
from jobs.errors import Misconfigured
from jobs.settings import Settings


def test_without_any_variable_everything_has_its_default() -> None:
    assert Settings.from_environment({}) == Settings()


def test_an_empty_variable_counts_as_not_given() -> None:
    assert Settings.from_environment({"TRAINING_PORT": " ", "TRAINING_TOKEN": ""}) == Settings()


def test_values_are_read_in_their_own_types() -> None:
    read = Settings.from_environment(
        {
            "TRAINING_PORT": "9000",
            "TRAINING_LEASE_S": "1.5",
            "TRAINING_HF_OFFLINE": "true",
            "TRAINING_ALLOWED_HOSTS": "a.example, b.example,",
            "TRAINING_EXPORT_LINK_H": "24",
            "REDIS_URL": "redis://elsewhere",
        }
    )
    assert (read.port, read.lease_s, read.hf_offline, read.export_link_h) == (9000, 1.5, True, 24)
    assert read.allowed_hosts == ("a.example", "b.example")
    assert read.redis_url == "redis://elsewhere"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TRAINING_PORT", "http"),
        ("TRAINING_PORT", "-1"),
        ("TRAINING_PORT", "65536"),
        ("TRAINING_LEASE_S", "0"),
        ("TRAINING_LEASE_S", "nan"),
        ("TRAINING_LEASE_S", "soon"),
        ("TRAINING_CPU_SLOTS", "0"),
        ("TRAINING_GPU_SLOTS", "1.5"),
        ("TRAINING_MAX_ATTEMPTS", "0"),
        ("TRAINING_UPLOAD_MAX_BYTES", "2 GiB"),
        ("TRAINING_EXPORT_LINK_H", "-3"),
        ("TRAINING_HF_OFFLINE", "perhaps"),
        ("TRAINING_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_stops_the_program_and_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(Misconfigured) as refusal:
        Settings.from_environment({variable: value})
    assert refusal.value.message.startswith(f"{variable}={value!r}: ")


def test_settings_survive_the_way_to_another_program() -> None:
    original = Settings(
        data_root="/data", token="t" * 32, allowed_hosts=("a", "b"), hf_offline=True, export_link_h=1.5, runner_id="r"
    )
    assert Settings.from_environment(original.to_environment()) == original


def test_the_token_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret-of-the-house\n")
    assert Settings.from_environment({"TRAINING_TOKEN_FILE": str(file)}).token == "secret-of-the-house"


def test_a_token_in_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environment = {"TRAINING_TOKEN": "direct", "TRAINING_TOKEN_FILE": str(tmp_path / "absent")}
    assert Settings.from_environment(environment).token == "direct"


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_token_file_that_gives_no_token_stops_the_program(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Misconfigured, match="TRAINING_TOKEN_FILE"):
        Settings.from_environment({"TRAINING_TOKEN_FILE": str(file)})


def test_every_setting_is_described_with_its_own_variable() -> None:
    described = settings.described()
    assert len({variable for variable, _, _ in described}) == len(msgspec.structs.fields(Settings))
    assert all(sentence.endswith(".") for _, _, sentence in described)


def test_a_runner_without_a_name_has_its_hosts() -> None:
    assert Settings(runner_id="gpu-1").runner_name == "gpu-1"
    assert Settings().runner_name
