"""Looking into an export before it is converted: how many frames it has, the grid of each video's masks, and the order
of their runs.

Used by the convert recipe. Each file is read once for it, of which a few frames spread over it are kept.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gpu_runner import images
from gpu_runner.sam2 import frames, orientation
from gpu_runner.sam2.annotations import AnnotatedFrame
from gpu_runner.sam2.export import VideoExport
from gpu_runner.sam2.masks import BadMask, Grid
from gpu_runner.sam2.orientation import Orientation, Probe
from gpu_runner.sam2.sources import Source
from jobs.errors import DatasetInvalid

_FRAMES = 48  # looked at in the whole export, and up to twice as many
_OBJECTS = 4  # of each of them
_PICTURES = 12  # decoded, and only where the masks alone cannot tell


class Survey(NamedTuple):
    """What is known of a video beforehand: its number of frames, its masks' grid, and some of its frames."""

    frames: int
    grid: Grid
    chosen: list[AnnotatedFrame]


def survey(source: Source, videos: Sequence[VideoExport]) -> list[Survey]:
    """Raises DatasetInvalid."""
    share = max(1, _FRAMES // len(videos))
    return [_survey(source, video, share) for video in videos]


def find_order(source: Source, videos: Sequence[VideoExport], surveys: Sequence[Survey]) -> Orientation:
    """Which way the export's runs count. Raises DatasetInvalid."""
    pictures = max(1, _PICTURES // len(videos))
    probes: list[Probe] = []
    for video, (_, grid, chosen) in zip(videos, surveys, strict=True):
        each = max(1, len(chosen) // pictures) if grid[0] == grid[1] else len(chosen) + 1
        for number, frame in enumerate(chosen, start=1):
            seen = _edges(source, video, frame, grid) if number % each == 0 else None
            probes.extend(_probes(video, frame, grid, *(seen or (None, False))))
    return orientation.detect(probes)


def _survey(source: Source, video: VideoExport, share: int) -> Survey:
    count, chosen = video.annotations.sample(share, _OBJECTS)
    width, height = video.annotations.size
    if chosen:
        video.pictures.expect_spelling_of(chosen[0].frame_index)
    grid = _find_grid(source, video, chosen[0]) if chosen else (max(1, height), max(1, width))
    return Survey(count, grid, chosen)


def _find_grid(source: Source, video: VideoExport, frame: AnnotatedFrame) -> Grid:
    """The grid of a video's masks, found from its first object. Raises DatasetInvalid."""
    found = frame.objects[0]
    try:
        return frames.find_grid(
            found.counts, found.size, video.annotations.size, lambda: _image_size(source, video, frame)
        )
    except BadMask as error:
        at = f"{video.annotations.name}, frame {frame.frame_index}, object {found.object_id!r}"
        raise DatasetInvalid(f"{at}: the mask {error}.") from None


def _probes(
    video: VideoExport, frame: AnnotatedFrame, grid: Grid, edges: np.ndarray | None, is_own_size: bool
) -> Iterator[Probe]:
    height, width = grid
    video_width, video_height = video.annotations.size
    for found in frame.objects[:_OBJECTS]:
        if int(found.counts.sum()) != height * width:
            continue  # converting will refuse it, with its place
        box = np.array(found.box) if len(found.box) == 4 else np.zeros(0)
        beyond = len(box) and (box[0] + box[2] > width or box[1] + box[3] > height)
        if beyond and video_width and video_height:  # stated in pixels of the video
            box = box * ([width / video_width, height / video_height] * 2)
        yield Probe(found.counts, grid, tuple(box), edges, is_own_size)


def _image_size(source: Source, video: VideoExport, frame: AnnotatedFrame) -> tuple[int, int]:
    """Width and height of a frame's picture; zeros where it cannot be had, which converting will say."""
    content = _picture(source, video, frame)
    try:
        return images.read_size(content) if content else (0, 0)
    except images.BadImage:
        return 0, 0


def _edges(source: Source, video: VideoExport, frame: AnnotatedFrame, grid: Grid) -> tuple[np.ndarray, bool] | None:
    """How much the picture changes at each pixel of the grid, and whether it has that size itself."""
    content = _picture(source, video, frame)
    try:
        picture = images.read_rgb(content) if content else None
    except images.BadImage:
        return None
    if picture is None:
        return None
    pixels = np.asarray(picture.resize((grid[1], grid[0])), dtype=np.float32)
    change = np.zeros(grid, dtype=np.float32)
    change[:, 1:] += np.abs(np.diff(pixels, axis=1)).sum(axis=-1)
    change[1:] += np.abs(np.diff(pixels, axis=0)).sum(axis=-1)
    return change, picture.size == (grid[1], grid[0])


def _picture(source: Source, video: VideoExport, frame: AnnotatedFrame) -> images.Content | None:
    """None where it cannot be had, which converting will say."""
    entry = video.image_of(frame)
    if entry is None:
        return None
    content = images.Content()
    try:
        source.copy(entry, content)
    except images.BadImage:
        return None
    content.seek(0)
    return content
