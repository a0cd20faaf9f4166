"""Converting on several cores: the same dataset, the same refusals and the same limits as on one."""

import zipfile
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gpu_runner.rows import open_rows
from jobs.errors import DatasetInvalid
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import ConvertSpec, DataFormat

Run = Callable[..., Any]


def convert(source: str, output: str = "datasets/out", **options: Any) -> ConvertSpec:
    return ConvertSpec(sam2_zip_path=source, output_dir=output, **options)


def many_frames(build: Any, count: int = 180) -> list[Any]:
    """Some without objects, and one that is stated three times, by two processes."""
    masks = [build.rectangle(20, 30, 2 + number % 9, 4, 8, 6) for number in range(count)]
    stated = [build.frame(number, *[build.thing(masks[number])] * (number % 7 > 0)) for number in range(count)]
    return [*stated, *(build.frame(3, build.thing(masks[0], "dog")) for _ in range(9))]


@pytest.mark.parametrize("data_format", list(DataFormat))
def test_several_processes_write_the_bytes_that_one_writes(
    data_format: DataFormat, root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    source = make_export(many_frames(build))
    spec = convert(source, "datasets/alone", target_format=data_format)
    alone = run(spec)
    together = run(msgspec.structs.replace(spec, output_dir="datasets/together"), cores=3)
    assert build.digest(root.datasets / "alone") == build.digest(root.datasets / "together")
    assert alone.message.replace("alone", "together") == together.message
    assert (alone.skipped_frames, alone.warnings) == (together.skipped_frames, together.warnings)
    assert open_rows(root, "datasets/together")[-1].id == "v-000003-10"


@pytest.mark.parametrize("cores", [1, 3])
def test_of_several_broken_frames_the_first_is_named_whoever_finds_it(
    cores: int, run: Run, make_export: Run, build: Any
) -> None:
    frames = many_frames(build)
    for number in (100, 50, 150):
        frames[number]["objects"][0]["mask_rle"] = "1 2 3"
    with pytest.raises(DatasetInvalid, match="v-000050"):
        run(convert(make_export(frames)), cores=cores)


@pytest.mark.parametrize("cores", [1, 3])
def test_pictures_are_counted_over_all_processes(
    cores: int, root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    """One picture that many frames name may come out of the archive no oftener than its limit allows."""
    source = make_export([build.frame(0, build.thing(build.rectangle(20, 30, 2, 4, 8, 6)))] * 200)
    with zipfile.ZipFile(root.uploads / "export.zip") as archive:
        size = archive.getinfo("images/frame_000000.png").file_size
    assert run(convert(source), cores=cores, settings=Settings(expand_max_bytes=250 * size)).num_samples == 200
    with pytest.raises(DatasetInvalid, match="expands to more than"):
        run(convert(source), cores=cores, settings=Settings(expand_max_bytes=150 * size))
