"""demo-llava is the same everywhere, small, and whole whoever builds it."""

import threading
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from gpu_runner.training import demo_model


def test_it_is_a_real_llava_of_one_to_five_million_parameters(tmp_path: Path) -> None:
    folder = demo_model.ensure(tmp_path / "models" / "demo-llava")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert isinstance(model, LlavaForConditionalGeneration)
    assert 1_000_000 <= model.num_parameters() <= 5_000_000
    assert type(AutoProcessor.from_pretrained(folder).image_processor).__name__ == "CLIPImageProcessorPil"


def test_it_is_built_byte_for_byte_the_same_and_leaves_the_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one = demo_model.ensure(tmp_path / "one")
    assert torch.equal(torch.rand(1), expected)
    two = demo_model.ensure(tmp_path / "two")
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in two.iterdir()
    }


def test_builders_at_the_same_time_end_with_one_whole_folder(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "demo-llava"
    failures: list[BaseException] = []

    def build() -> None:
        try:
            demo_model.ensure(folder)
        except BaseException as error:
            failures.append(error)

    builders = [threading.Thread(target=build) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert failures == []
    assert [path.name for path in folder.parent.iterdir()] == ["demo-llava"]
    AutoModelForImageTextToText.from_pretrained(folder)


def test_widths_suit_four_bit_blocks(tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(demo_model.ensure(tmp_path / "demo"))
    assert model.config.text_config.hidden_size % 64 == 0
    assert model.config.text_config.intermediate_size % 64 == 0
