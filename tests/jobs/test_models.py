"""What a model name means on this host, and how large a local model is."""

import json
import struct
from pathlib import Path

import pytest

from jobs import models
from jobs.errors import InvalidInput
from jobs.models import DEMO_MODEL, Origin


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "data" / "models", tmp_path / "shelf"]
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def write_model(folder: Path, header: object = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    shapes = {"a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}
    write_safetensors(folder / "model.safetensors", json.dumps(shapes if header is None else header).encode())
    return folder


def write_safetensors(path: Path, header: bytes, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)


def test_the_demo_model_is_built_below_the_first_root(roots: list[Path]) -> None:
    source = models.resolve(DEMO_MODEL, roots)
    assert (source.origin, source.location) == (Origin.BUILT_IN, str(roots[0] / DEMO_MODEL))
    assert source.parameters is not None
    assert source.parameters < models.CPU_LIMIT_PARAMETERS


def test_the_original_llava_means_its_converted_twin_and_says_so(roots: list[Path]) -> None:
    source = models.resolve("liuhaotian/llava-v1.5-7b", roots)
    assert (source.origin, source.location) == (Origin.HUB, "llava-hf/llava-1.5-7b-hf")
    assert source.parameters == 7_063_427_072
    assert source.note is not None
    assert "llava-hf/llava-1.5-7b-hf" in source.note


@pytest.mark.parametrize("folder", ["liuhaotian/llava-v1.5-7b", "llava-hf/llava-1.5-7b-hf"])
def test_a_local_folder_of_a_known_model_wins_over_the_hub(roots: list[Path], folder: str) -> None:
    there = write_model(roots[1] / folder)
    source = models.resolve("liuhaotian/llava-v1.5-7b", roots)
    assert (source.origin, source.location) == (Origin.FOLDER, str(there))


def test_a_model_that_needs_its_own_code_is_refused_with_its_successor(roots: list[Path]) -> None:
    with pytest.raises(InvalidInput, match=r"Qwen2\.5-VL") as refusal:
        models.resolve("Qwen/Qwen-VL-Chat", roots)
    assert refusal.value.path == "config.model_name"


def test_another_repository_comes_from_the_hub_with_unknown_size(roots: list[Path]) -> None:
    source = models.resolve("some-body/some_model.v1", roots)
    assert (source.origin, source.location, source.parameters) == (Origin.HUB, "some-body/some_model.v1", None)


def test_a_local_folder_is_found_below_any_root(roots: list[Path]) -> None:
    first, second = write_model(roots[0] / "mine"), write_model(roots[1] / "org" / "theirs")
    for name, folder in (
        ("mine", first),
        ("models/mine", first),
        (str(first), first),
        ("org/theirs", second),
        ("shelf/org/theirs", second),
        (str(second), second),
    ):
        source = models.resolve(name, roots)
        assert (source.origin, source.location, source.parameters) == (Origin.FOLDER, str(folder), 12), name


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "models/../../outside",
        "/etc",
        "no-slash",
        "a/b/c",
        "a--b/c",
        "a/..b",
        "https://evil.example/x",
        "a\0b",
        "x" * 500,
        "é/é",
        "; id",
        "$(id)",
        "--output=/x",
    ],
)
def test_a_name_that_can_never_work_is_refused_with_what_to_give(roots: list[Path], name: str) -> None:
    write_model(roots[0].parent / "outside")
    write_model(roots[0].parent.parent / "outside")
    with pytest.raises(InvalidInput, match="hub repository"):
        models.resolve(name, roots)


def test_a_link_out_of_the_root_is_no_local_model(roots: list[Path], tmp_path: Path) -> None:
    (roots[0] / "linked").symlink_to(write_model(tmp_path / "private"))
    with pytest.raises(InvalidInput):
        models.resolve("linked", roots)


def test_parameters_are_counted_over_all_shards(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    more = {"__metadata__": {"format": "pt"}, "b": {"shape": [5]}, "scalar": {"shape": []}, "none": {"shape": [0, 7]}}
    write_safetensors(folder / "model-2.safetensors", json.dumps(more).encode())
    assert models.count_parameters(folder) == 12 + 5 + 1


def test_a_folder_without_safetensors_has_no_count(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "folder.safetensors").mkdir()
    assert models.count_parameters(tmp_path) is None


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"", 0),
        (b"{}", 2**63),
        (b'{"a": {"shape": [2]}}', 2**62),
        (b"not json", None),
        (b"\xff\xfe", None),
        (b"[1, 2]", None),
        (b'{"a": 1}', None),
        (b'{"a": {"dtype": "F32"}}', None),
        (b'{"a": {"shape": "4"}}', None),
        (b'{"a": {"shape": [-4]}}', None),
        (b'{"a": {"shape": [1.5]}}', None),
        (b'{"a": {"shape": [' + b"9223372036854775807," * 99 + b"2]}}", None),
        (b"[" * 100_000, None),
        (b'{"a": ' * 100_000, None),
    ],
)
def test_a_crafted_header_gives_no_count_and_no_error(tmp_path: Path, header: bytes, length: int | None) -> None:
    write_safetensors(tmp_path / "model.safetensors", header, length)
    assert models.count_parameters(tmp_path) is None


def test_a_file_shorter_than_its_length_field_gives_no_count(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    assert models.count_parameters(tmp_path) is None


def test_the_registry_is_listed_first_and_says_what_is_on_this_host(roots: list[Path]) -> None:
    write_model(roots[1] / "llava-hf/llava-1.5-13b-hf")
    listed = {model.name: model for model in models.listed(roots)}
    assert list(listed) == [DEMO_MODEL, *models.KNOWN]
    assert (listed[DEMO_MODEL].origin, listed[DEMO_MODEL].is_local) == (Origin.BUILT_IN, True)
    far, near = listed["llava-hf/llava-1.5-7b-hf"], listed["llava-hf/llava-1.5-13b-hf"]
    assert (far.origin, far.is_local, far.parameters) == (Origin.HUB, False, 7_063_427_072)
    assert (near.origin, near.is_local, near.parameters) == (Origin.FOLDER, True, 12)
    assert "llava-hf/llava-1.5-7b-hf" in (listed["liuhaotian/llava-v1.5-7b"].note or "")
    assert all(model.title for model in listed.values())


def test_folders_below_the_roots_are_listed_by_the_name_that_means_them(roots: list[Path]) -> None:
    write_model(roots[0] / "own")
    write_model(roots[0] / "both")
    write_model(roots[1] / "both", header={})
    write_model(roots[1] / "lab/llava")
    own = models.listed(roots)[len(models.KNOWN) + 1 :]
    assert [(model.name, model.parameters) for model in own] == [("both", 12), ("lab/llava", 12), ("own", 12)]
    for model in own:
        source = models.resolve(model.name, roots)
        assert (source.origin, source.parameters) == (model.origin, model.parameters)


def test_links_hidden_folders_and_what_a_model_holds_are_not_listed(roots: list[Path], tmp_path: Path) -> None:
    write_model(tmp_path / "outside")
    (roots[0] / "link").symlink_to(tmp_path / "outside")
    write_model(roots[0] / ".unfinished")
    write_model(write_model(roots[0] / "own") / "draft")
    write_model(roots[0] / "a/b/c")
    write_model(roots[0] / "Qwen/Qwen-VL-Chat")
    write_model(roots[0] / DEMO_MODEL)
    (roots[0] / "empty").mkdir()
    (roots[0] / "file").write_text("x")
    assert [model.name for model in models.listed([*roots, tmp_path / "absent"])][len(models.KNOWN) + 1 :] == ["own"]
