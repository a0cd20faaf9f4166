"""Looking into an export before it is converted: the grid of each video's masks, and the order of their runs.

Used by the convert recipe. Reads a few frames spread over the export, not all.
"""

import io
from collections.abc import Iterator, Sequence

import numpy as np

from gpu_runner import images
from gpu_runner.sam2 import frames, orientation
from gpu_runner.sam2.annotations import AnnotatedFrame
from gpu_runner.sam2.export import VideoExport
from gpu_runner.sam2.masks import BadMask, Grid
from gpu_runner.sam2.orientation import Orientation, Probe
from jobs.archive import Archive
from jobs.errors import DatasetInvalid

_FRAMES = 64  # looked at in the whole export
_OBJECTS = 4  # of each of them
_PICTURES = 12  # decoded, and only where the masks alone cannot tell


def find_grid(archive: Archive, video: VideoExport) -> Grid:
    """The grid of a video's masks, found from its first object. Raises DatasetInvalid."""
    info = video.annotations.video
    for frame in video.annotations.frames():
        for found in frame.objects:
            try:
                return frames.find_grid(found.counts, found.size, info, _image_size(archive, video, frame))
            except BadMask as error:
                at = f"{video.annotations.name}, frame {frame.frame_index}, object {found.object_id!r}"
                raise DatasetInvalid(f"{at}: the mask {error}.") from None
    return max(1, int(info.height)), max(1, int(info.width))  # no object anywhere: any grid will do


def find_order(archive: Archive, videos: Sequence[VideoExport], grids: Sequence[Grid]) -> Orientation:
    """Which way the export's runs count. Raises DatasetInvalid."""
    share = max(1, _FRAMES // len(videos))
    pictures = max(1, _PICTURES // len(videos))
    probes: list[Probe] = []
    for video, grid in zip(videos, grids, strict=True):
        count = len(video.annotations)
        numbers = np.unique(np.linspace(0, max(0, count - 1), min(share, count)).astype(int))
        decoded = set(numbers[:: max(1, len(numbers) // pictures)]) if grid[0] == grid[1] else ()
        for number in numbers:
            frame = video.annotations.frame(int(number))
            edges = _edges(archive, video, frame, grid) if number in decoded else None
            probes.extend(_probes(video, frame, grid, edges))
    return orientation.detect(probes)


def _probes(video: VideoExport, frame: AnnotatedFrame, grid: Grid, edges: np.ndarray | None) -> Iterator[Probe]:
    height, width = grid
    info = video.annotations.video
    for found in frame.objects[:_OBJECTS]:
        if int(found.counts.sum()) != height * width:
            continue  # converting will refuse it, with its place
        box = np.array(found.box) if len(found.box) == 4 else np.zeros(0)
        beyond = len(box) and (box[0] + box[2] > width or box[1] + box[3] > height)
        if beyond and info.width and info.height:  # stated in pixels of the video
            box = box * ([width / info.width, height / info.height] * 2)
        yield Probe(found.counts, grid, tuple(box), edges)


def _image_size(archive: Archive, video: VideoExport, frame: AnnotatedFrame) -> tuple[int, int]:
    """Width and height of a frame's picture; zeros where it cannot be had, which converting will say."""
    content = _picture(archive, video, frame)
    try:
        return images.read_size(content) if content else (0, 0)
    except images.BadImage:
        return 0, 0


def _edges(archive: Archive, video: VideoExport, frame: AnnotatedFrame, grid: Grid) -> np.ndarray | None:
    """How much the picture changes at each pixel of the grid."""
    content = _picture(archive, video, frame)
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
    return change


def _picture(archive: Archive, video: VideoExport, frame: AnnotatedFrame) -> io.BytesIO | None:
    entry = video.image_of(frame.frame_index)
    if entry is None:
        return None
    content = io.BytesIO()
    archive.copy(entry, content)
    content.seek(0)
    return content
