"""Writes a sample SAM2 export: short rendered videos in which one coloured object a frame moves over a background.

    python -m gpu_runner.sam2.sample OUT.zip [--videos 8] [--frames 40] [--seed 0]

The label is the object's colour. A video is a row of scenes of a few frames, each with its own background, object
and colour; the four colours take turns, so every video shows them equally often and no fixed answer is right more
often than about one time in four, whichever videos are held out. Masks are exact. The same arguments give the same
bytes. Used by the demo, by tests, and, with labels that nothing in the picture tells, by `benchmarks/leak.py`.
"""

import argparse
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from PIL import Image

from gpu_runner.sam2 import masks

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 80, 230), "yellow": (230, 210, 40)}
NAMES = ("ball", "box", "cup", "lamp")
WIDTH, HEIGHT = 80, 64  # not square: the order of a mask's runs can then be seen
SCENE_FRAMES = 2

_SOURCE_FPS, _TARGET_FPS = 30, 5
_STEP = _SOURCE_FPS // _TARGET_FPS  # source frames from one exported frame to the next
_CELLS = (8, 10)  # a background is this many random colours, down and across, blended
_PALE, _VIVID = 10, 60  # how coloured backgrounds are: so little that only objects are, or enough to be remembered by
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time a ZIP entry can have: the same at every run


class Rendered(NamedTuple):
    """One frame: RGB uint8 (HEIGHT, WIDTH, 3), bool mask (HEIGHT, WIDTH), and what is in it."""

    pixels: np.ndarray
    mask: np.ndarray
    label: str
    object_id: int


def write_sample(
    target: Path,
    *,
    videos: int = 8,
    frames: int = 40,
    seed: int = 0,
    scene_frames: int = SCENE_FRAMES,
    arbitrary: bool = False,
) -> None:
    """Write the export as one ZIP, a folder a video.

    With `arbitrary`, labels are NAMES dealt to the scenes: they can be remembered from another frame of the scene,
    and there is no other way to know them.
    """
    with zipfile.ZipFile(target, "w") as archive:
        for number in range(videos):
            generator = np.random.default_rng([seed, number])
            rendered = list(_render(frames, scene_frames, generator, _VIVID if arbitrary else _PALE))
            names = _deal(generator, rendered[-1].object_id + 1) if arbitrary else []
            labelled = [frame._replace(label=names[frame.object_id]) for frame in rendered] if arbitrary else rendered
            _write_video(archive, f"sample_{number:02d}", labelled)


def _deal(generator: np.random.Generator, scenes: int) -> list[str]:
    """A name for each scene; all four take turns, each time in another order."""
    return [str(name) for _ in range(0, scenes, len(NAMES)) for name in generator.permutation(NAMES)]


def _render(frames: int, scene_frames: int, generator: np.random.Generator, tint: float) -> Iterator[Rendered]:
    """The frames of a video, scene after scene."""
    colours: list[str] = []
    for scene in range(-(-frames // scene_frames)):
        colours = colours or [str(colour) for colour in generator.permutation(list(COLOURS))]
        length = min(scene_frames, frames - scene * scene_frames)
        yield from _render_scene(length, scene, colours.pop(), generator, tint)


def _render_scene(
    length: int, scene: int, colour: str, generator: np.random.Generator, tint: float
) -> Iterator[Rendered]:
    background = _background(generator, tint)
    shade = np.clip(np.array(COLOURS[colour]) + generator.normal(0, 10, 3), 0, 255)
    radii = generator.integers(10, 20, 2)
    is_round = generator.random() < 0.5
    low, high = radii + 1, np.array([WIDTH, HEIGHT]) - radii - 1
    centre, velocity = generator.uniform(low, high), generator.uniform(-9, 9, 2)
    for _ in range(length):
        mask = _shape(centre, radii, is_round)
        pixels = np.where(mask[..., None], shade, background) + generator.normal(0, 4, (HEIGHT, WIDTH, 3))
        yield Rendered(np.clip(pixels, 0, 255).astype(np.uint8), mask, colour, scene)
        centre = np.clip(centre + velocity, low, high)


def _background(generator: np.random.Generator, tint: float) -> np.ndarray:
    """Soft patches around one base colour, which is as far from grey as `tint` lets it; float (HEIGHT, WIDTH, 3)."""
    light = generator.uniform(60, 200) + generator.normal(0, 30, (*_CELLS, 1))
    cells = light + generator.normal(0, tint, 3) + generator.normal(0, 8, (*_CELLS, 3))
    image = Image.fromarray(np.clip(cells, 0, 255).astype(np.uint8))
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float64)


def _shape(centre: np.ndarray, radii: np.ndarray, is_round: bool) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    across, down = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1]
    inside = across**2 + down**2 if is_round else np.maximum(np.abs(across), np.abs(down))
    return np.asarray(inside <= 1)


def _write_video(archive: zipfile.ZipFile, name: str, frames: list[Rendered]) -> None:
    for number, frame in enumerate(frames):
        content = io.BytesIO()
        Image.fromarray(frame.pixels).save(content, "PNG")
        _write_entry(archive, f"{name}/images/frame_{number * _STEP:06d}.png", content.getvalue())
    video = {
        "filename": f"{name}.mp4",
        "width": WIDTH,
        "height": HEIGHT,
        "source_fps": _SOURCE_FPS,
        "total_frames": len(frames) * _STEP,
        "duration_sec": len(frames) / _TARGET_FPS,
    }
    config = {
        "target_fps": _TARGET_FPS,
        "total_exported_frames": len(frames),
        "frame_indices": [number * _STEP for number in range(len(frames))],
        "export_timestamp": "2026-01-01T00:00:00Z",
        "exporter_version": "1.0.0",
    }
    annotations = [_annotation(number, frame) for number, frame in enumerate(frames)]
    whole = {"video": video, "export_config": config, "annotations": annotations}
    _write_entry(archive, f"{name}/annotations.json", msgspec.json.encode(whole))


def _annotation(number: int, frame: Rendered) -> dict[str, Any]:
    counts = masks.count_runs(frame.mask.ravel(order="F"))
    found = {
        "object_id": frame.object_id,
        "label": frame.label,
        "mask_rle": " ".join(map(str, counts)),
        "bbox": masks.bounding_box(counts, HEIGHT),
        "area": masks.area(counts),
        "confidence": 1.0,
    }
    return {"frame_index": number * _STEP, "timestamp_sec": number / _TARGET_FPS, "objects": [found]}


def _write_entry(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a sample SAM2 export.")
    parser.add_argument("target", type=Path, metavar="OUT.zip")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--frames", type=int, default=40, help="frames of each video")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_sample(arguments.target, videos=arguments.videos, frames=arguments.frames, seed=arguments.seed)


if __name__ == "__main__":
    main()
