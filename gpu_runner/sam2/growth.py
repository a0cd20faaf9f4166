"""Adding an export to a dataset that is there: its rows are kept, the export is merged in by video, frame and object.

Used by the convert recipe where `add_to` is given: `open_base` before anything is read, then a `Merger` in front of
the format's writer. Of the dataset nothing is kept in memory but the names of its pictures, for the manifest.
"""

import hashlib
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gpu_runner import images as pictures
from gpu_runner.images import BadImage
from gpu_runner.rows import Mask, Row, Rows, image_path, open_rows
from gpu_runner.sam2 import fingerprints, manifest, masks, output, targets
from gpu_runner.sam2.manifest import Manifest
from gpu_runner.sam2.masks import BadMask
from gpu_runner.sam2.writers import Writer
from jobs.errors import DatasetInvalid, OutputTaken
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec, DataFormat, Kind

_COMPARED = 20  # frames of a video whose pictures are not equal, looked at to see whether they show the same
_UNLIKE_BITS, _UNLIKE_COLOUR = 72, 48  # the same frame with other masks painted in has up to 46 and 20


@dataclass(frozen=True)
class Base:
    """The dataset that grows."""

    rows: Rows
    manifest: Manifest


def open_base(root: DataRoot, spec: ConvertSpec, name: str) -> Base:
    """The dataset `name`, which is to take what `spec` asks for.

    Raises:
        DatasetInvalid: it is none that a conversion of ours wrote, or has another task or format.
        OutputTaken: writing the result would take it, or its splits, away.
    """
    folder = root.path_of(name)
    said = manifest.read(folder)
    if said is None or said.made_by != Kind.CONVERT:
        raise DatasetInvalid(f"{name} is no dataset that a conversion wrote: add_to takes the folder of one.")
    for option in ("target_format", "task", "embed_images"):
        there, asked = getattr(said.options, option), getattr(spec, option)
        if there != asked and (option != "embed_images" or spec.target_format is DataFormat.HUGGINGFACE):
            raise DatasetInvalid(
                f"{name} was made with {option}: {there}, this asks for {asked}. Ask for the same, or convert into a "
                "dataset of its own."
            )
    _check_place(root, spec.output_dir, folder, name)
    return Base(open_rows(root, name), said)


def _check_place(root: DataRoot, output_dir: str, folder: Path, name: str) -> None:
    target = root.path_of(output_dir)
    if target == folder:
        inside = output.folders_inside(folder)
        if inside:
            raise OutputTaken(
                f"{name} has {inside[0]!r} inside it, which was made from its old rows and would go with them: choose "
                "another output_dir, or move that folder first."
            )
    elif folder.is_relative_to(target):
        raise OutputTaken(f"{name} lies in {output_dir} and would go with it: choose another output_dir.")


@dataclass
class Growth:
    """What merging did. `objects_kept` are those of all kept and changed frames; `pictures_differ` counts frames."""

    frames_added: int = 0
    frames_changed: int = 0
    frames_kept: int = 0
    objects_added: int = 0
    objects_replaced: int = 0
    objects_kept: int = 0
    pictures_differ: int = 0

    def message(self, name: str) -> str:
        return (
            f"Added to {name}: {self.frames_added} frames and {self.objects_added} objects are new; "
            f"{self.objects_replaced} objects replaced in {self.frames_changed} frames that were there; "
            f"{self.frames_kept} frames and {self.objects_kept} objects kept."
        )

    def warnings(self) -> list[str]:
        if not self.pictures_differ:
            return []
        return [
            f"{self.pictures_differ} frames have another picture in the export than in the dataset, whose own was "
            "kept: see that videos of the same name are the same video."
        ]


@dataclass
class _Meeting:
    """The frames of one video that are in the dataset as in the export: how many of their pictures are what."""

    frames: int = 0
    differ: int = 0
    compared: int = 0  # of those that differ
    unlike: int = 0  # of those that were compared

    def compare(self, one: bytes, other: bytes) -> None:
        self.differ += 1
        if self.compared < _COMPARED:
            self.compared += 1
            self.unlike += _show_different_things(one, other)

    @property
    def unlike_share(self) -> float:
        return self.unlike / max(1, self.compared) * self.differ / max(1, self.frames)


class Merger:
    """A writer that takes the export's rows and passes on those of the base with these merged in, then the new ones.

    Attributes:
        growth: what merging did, once complete.
    """

    def __init__(
        self, base: Base, writer: Writer, folder: Path, of_one_size: Collection[str], tick: Callable[[int], None]
    ) -> None:
        """`of_one_size` are the export's videos whose pictures all have the same size: others only have a name.

        `tick` is called with the number of base rows done; it may raise to end the work.
        """
        self.growth = Growth()
        self._base = base
        self._writer = writer
        self._folder = folder
        self._of_one_size = of_one_size
        self._tick = tick
        self._incoming = _Incoming(folder)
        self._sizes: dict[str, tuple[int, int]] = {}  # of the base's pictures, by video
        self._meetings: dict[str, _Meeting] = {}  # by video
        self._spare: set[str] = set()  # pictures of the export whose frames have theirs

    def add(self, row: Row) -> None:
        self._incoming.add(row)

    def complete(self, images: dict[str, str]) -> dict[str, str]:
        for index, row in enumerate(self._base.rows):
            self._tick(index)
            self._check(row)
            self._sizes.setdefault(row.video_id, (row.width, row.height))
            found = self._incoming.take(row)
            self._place_picture(index, row, found, images)
            self._writer.add(self._merged(row, found) if found else self._kept(row))
        self._refuse_other_videos()
        for row in self._incoming.rest():
            self.growth.frames_added += 1
            self.growth.objects_added += len(row.labels)
            if row.video_id in self._of_one_size:
                self._check_size(row, self._sizes.get(row.video_id))
            self._spare.discard(row.image or "")
            self._writer.add(row)
        for image in self._spare:
            (self._folder / image).unlink()
            del images[image]
        return self._writer.complete(images)

    def close(self) -> None:
        self._incoming.close()
        self._writer.close()

    def _kept(self, row: Row) -> Row:
        self.growth.frames_kept += 1
        self.growth.objects_kept += len(row.labels)
        return row

    def _merged(self, row: Row, found: Row) -> Row:
        """The base's row with the objects of the export's; its conversation is made anew."""
        self._check_size(found, (row.width, row.height))
        there, new = _objects(row), _objects(found)
        self.growth.frames_changed += 1
        self.growth.objects_added += len(new.keys() - there.keys())
        self.growth.objects_replaced += len(new.keys() & there.keys())
        self.growth.objects_kept += len(there.keys() - new.keys())
        options = self._base.manifest.options
        return targets.with_conversation(_with_objects(row, {**there, **new}), options.task, options.seed)

    def _check(self, row: Row) -> None:
        """Somebody may have edited the rows since they were converted, and writers trust masks."""
        parts = (row.masks, row.bounding_boxes, row.labels, row.object_ids, row.attributes)
        if len({len(part) for part in parts}) > 1:
            raise self._broken(row, "masks, boxes, labels, ids and attributes are not equally many")
        try:
            for mask in row.masks:
                counts = masks.read_compressed(str(mask.counts))
                masks.check_fits(counts, mask.size)
                if not masks.area(counts):
                    raise BadMask("is empty")
        except BadMask as error:
            raise self._broken(row, f"a mask {error}") from None

    def _broken(self, row: Row, reason: str) -> DatasetInvalid:
        return DatasetInvalid(f"Row {row.id!r} of {self._base.rows.name}: {reason}. Convert its export again.")

    def _check_size(self, found: Row, wanted: tuple[int, int] | None) -> None:
        if wanted is not None and wanted != (found.width, found.height):
            raise DatasetInvalid(
                f"{found.id} is {found.width}x{found.height} pixels large in the export, video {found.video_id!r} of "
                f"{self._base.rows.name} {wanted[0]}x{wanted[1]}: export it at that size, or under another video name."
            )

    def _place_picture(self, index: int, row: Row, found: Row | None, images: dict[str, str]) -> None:
        """Put the base's own picture into the folder, over the export's of the same frame."""
        if row.image is None:
            return
        try:
            content = self._base.rows.image_content(index, row.image)
            path = image_path(self._folder, row.image)
        except BadImage as error:
            raise self._broken(row, f"the image cannot be used, {error}") from None
        sha256 = hashlib.sha256(content).hexdigest()
        if found is not None and found.image is not None:
            meeting = self._meetings.setdefault(row.video_id, _Meeting())
            meeting.frames += 1
            if images[found.image] != sha256:
                self.growth.pictures_differ += 1
                meeting.compare(content, (self._folder / found.image).read_bytes())
            self._spare.add(found.image)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        images[row.image] = sha256
        self._spare.discard(row.image)

    def _refuse_other_videos(self) -> None:
        for video_id, meeting in self._meetings.items():
            if meeting.unlike_share > 0.5:
                raise DatasetInvalid(
                    f"{meeting.differ} of the {meeting.frames} frames of video {video_id!r} that are in "
                    f"{self._base.rows.name} already look different in the export: these are two videos of one name. "
                    "Export it under another video name, or convert it into a dataset of its own."
                )


def _show_different_things(one: bytes, other: bytes) -> bool:
    """Whether two encoded pictures are of different scenes, whatever was painted into either."""
    try:
        records = [
            np.frombuffer(fingerprints.of_picture(pictures.read_rgb(io.BytesIO(content))), fingerprints.RECORD)[0]
            for content in (one, other)
        ]
    except BadImage:  # validation will say so
        return False
    bits = int(np.bitwise_count(records[0]["fine"] ^ records[1]["fine"]).sum())
    colour = int(np.abs(records[0]["colour"].astype(int) - records[1]["colour"]).max())
    return bits > _UNLIKE_BITS or colour > _UNLIKE_COLOUR


class _Incoming:
    """The export's rows in a scratch file, found by video and frame."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (`close` ends it)
        self._lines: dict[tuple[str, int], list[int]] = {}  # where the rows of a frame begin
        self._decode = msgspec.json.Decoder(Row).decode

    def add(self, row: Row) -> None:
        self._lines.setdefault((row.video_id, row.frame_index), []).append(self._file.tell())
        self._file.write(msgspec.json.encode(row) + b"\n")

    def take(self, like: Row) -> Row | None:
        """The first row of the same frame that was not taken yet."""
        waiting = self._lines.get((like.video_id, like.frame_index))
        return self._read(waiting.pop(0)) if waiting else None

    def rest(self) -> Iterator[Row]:
        """Those that nobody took, as they came."""
        return map(self._read, sorted(place for waiting in self._lines.values() for place in waiting))

    def close(self) -> None:
        self._file.close()

    def _read(self, place: int) -> Row:
        self._file.seek(place)
        return self._decode(self._file.readline())


@dataclass(frozen=True)
class _Object:
    mask: Mask
    box: tuple[float, ...]
    label: str
    object_id: str
    attributes: dict[str, Any]


def _objects(row: Row) -> dict[Hashable, _Object]:
    """A row's objects by their id; one without an id is the same as another only when label and mask are."""
    times: Counter[Hashable] = Counter()
    found: dict[Hashable, _Object] = {}
    for parts in zip(row.masks, row.bounding_boxes, row.labels, row.object_ids, row.attributes, strict=True):
        one = _Object(*parts)
        key = one.object_id or (one.label, one.mask)
        times[key] += 1
        found[key, times[key]] = one
    return found


def _with_objects(row: Row, objects: dict[Hashable, _Object]) -> Row:
    each = list(objects.values())
    return msgspec.structs.replace(
        row,
        masks=tuple(one.mask for one in each),
        bounding_boxes=tuple(one.box for one in each),
        labels=tuple(one.label for one in each),
        object_ids=tuple(one.object_id for one in each),
        attributes=tuple(one.attributes for one in each),
    )
