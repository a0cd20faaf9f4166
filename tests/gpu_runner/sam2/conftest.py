"""What the tests of data preparation share: a data root, a way to run a recipe, and a writer of small exports."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from gpu_runner.journal import Journal
from gpu_runner.recipes import recipe
from gpu_runner.work import Stop, Work
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import Spec, kind_of

SAMPLES = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    made = DataRoot(tmp_path / "data")
    for folder in (made.uploads, made.datasets):
        folder.mkdir(parents=True)
    return made


@pytest.fixture
def run(root: DataRoot) -> Callable[..., Any]:
    """Run a spec's recipe as the child does; its result."""

    def run_spec(
        spec: Spec,
        *,
        settings: Settings | None = None,
        job_id: str = "job",
        attempt: int = 1,
        stop: Stop | None = None,
        doorbell: int | None = None,
        cores: int = 1,
    ) -> Any:
        folder = root.attempt(job_id, attempt)
        folder.folder.mkdir(parents=True, exist_ok=True)
        work = Work(
            job_id=job_id,
            attempt=attempt,
            spec=spec,
            device="cpu",
            cores=cores,
            root=root,
            folder=folder,
            journal=Journal(root, folder, job_id, doorbell),
            stop=stop or Stop(),
            settings=settings or Settings(),
        )
        return recipe(kind_of(spec))(work)

    return run_spec


@pytest.fixture
def sample_zip() -> Callable[[str], Path]:
    """A genuine sample export by name; skips where the samples are not at hand."""

    def find(name: str) -> Path:
        path = SAMPLES / name
        if not path.is_file():
            pytest.skip(f"the sample export {name} is not beside this checkout")
        return path

    return find


def rectangle(height: int, width: int, x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


def plain_runs(mask: np.ndarray, order: Literal["F", "C"] = "F") -> list[int]:
    """Run lengths of a mask, counted the slow way."""
    runs, current = [0], False
    for pixel in mask.ravel(order=order):
        if bool(pixel) != current:
            runs.append(0)
            current = bool(pixel)
        runs[-1] += 1
    return runs


def encode(mask: np.ndarray, encoding: str = "plain", order: Literal["F", "C"] = "F") -> Any:
    """A mask in one of the forms that exports use."""
    runs = plain_runs(mask, order)
    size = list(mask.shape)
    if encoding == "plain":
        return " ".join(map(str, runs))
    if encoding == "list":
        return {"counts": runs, "size": size}
    compressed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"counts": compressed["counts"].decode(), "size": size}


def png(width: int, height: int, seed: int = 0) -> bytes:
    """A picture like no other seed's."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def frame(index: int, *objects: dict[str, Any]) -> dict[str, Any]:
    return {"frame_index": index, "timestamp_sec": index / 10, "objects": list(objects)}


def thing(mask: np.ndarray, label: str = "cat", *, object_id: Any = "1", **fields: Any) -> dict[str, Any]:
    """An object as an exporter states it; its box and its mask agree unless `fields` says otherwise."""
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1] if len(xs) else [0, 0, 0, 0]
    stated = {"object_id": object_id, "label": label, "mask_rle": encode(mask), "bbox": box, "area": int(mask.sum())}
    return {**stated, "confidence": 1.0, **fields}


def annotations(frames: Sequence[dict[str, Any]], width: int, height: int, filename: str = "v.mp4") -> bytes:
    video = {"filename": filename, "width": width, "height": height}
    return json.dumps({"video": video, "export_config": {}, "annotations": list(frames)}).encode()


def digest(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def make_export(root: DataRoot) -> Callable[..., str]:
    """Write an export with one picture a frame; its name below the data root."""

    def write(
        frames: Sequence[dict[str, Any]],
        *,
        width: int = 30,
        height: int = 20,
        name: str = "export.zip",
        files: dict[str, bytes] | None = None,
        without: Sequence[str] = (),
        picture: tuple[int, int] | None = None,
    ) -> str:
        entries = {"annotations.json": annotations(frames, width, height)}
        for stated in frames:
            index = stated["frame_index"]
            entries[f"images/frame_{int(index):06d}.png"] = png(*(picture or (width, height)), seed=abs(int(index)))
        entries.update(files or {})
        with zipfile.ZipFile(root.uploads / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, content in entries.items():
                if entry not in without:
                    archive.writestr(entry, content)
        return f"uploads/{name}"

    return write


@pytest.fixture
def build() -> Any:
    """The builders above, for tests to call: `build.frame`, `build.thing`, `build.rectangle` …"""

    class Builders:
        pass

    for function in (rectangle, plain_runs, encode, png, frame, thing, annotations, digest):
        setattr(Builders, function.__name__, staticmethod(function))
    return Builders


@pytest.fixture
def two_frames() -> list[dict[str, Any]]:
    """A cat and a dog, then the dog alone."""
    left = rectangle(20, 30, 2, 4, 8, 6)
    right = rectangle(20, 30, 15, 1, 10, 12)
    return [
        frame(0, thing(left, "cat"), thing(right, "dog", object_id=2)),
        frame(6, thing(right, "dog", object_id=2)),
    ]
