"""The rows of a dataset, in every format: what validation checks, splitting divides and training reads.

`open_rows` is the door. A dataset is a folder (`llava_dataset.jsonl` with its images, or an Arrow folder); a
split is a `train/val/test.jsonl` whose `split_config.json` beside it names the dataset it was cut from.
Opening reads no row: rows are decoded when asked for, from files that forked readers share.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, overload

import msgspec
from PIL import Image

from gpu_runner import images
from gpu_runner.lines import Lines, decode_line
from jobs.errors import DatasetInvalid, FileMissing, PathNotAllowed
from jobs.paths import ARROW_STATE, COCO_FILE, LLAVA_FILE, SPLIT_CONFIG, DataRoot
from jobs.specs import DataFormat
from jobs.values import OnlyId

IMAGE_MARK = "<image>"


class Turn(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """One side's words. In human turns `IMAGE_MARK` stands for a picture: the first for the first, and so on."""

    from_: Literal["human", "gpt"]
    value: str


_Whole = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]  # beyond it a float is no whole number any more


class Mask(msgspec.Struct, frozen=True):
    """COCO run lengths, column-major. `size` is the mask grid as (height, width), not always the image's size."""

    size: tuple[_Whole, _Whole]
    counts: str | tuple[int, ...]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One frame and its conversation.

    `masks`, `bounding_boxes` (x, y, w, h in image pixels), `labels`, `object_ids` and `attributes` are parallel:
    one entry an object. `image` is relative to the dataset folder; `width` and `height` are its size in pixels.
    A row with several pictures names them all in `images`, in the order of their marks; `image` is the first.
    """

    id: str
    image: str | None = None
    images: tuple[str, ...] = ()
    conversations: tuple[Turn, ...]
    masks: tuple[Mask, ...] = ()
    bounding_boxes: tuple[tuple[float, ...], ...] = ()
    labels: tuple[str, ...] = ()
    object_ids: tuple[str, ...] = ()
    attributes: tuple[dict[str, Any], ...] = ()
    video_id: str = ""
    frame_index: _Whole = 0
    timestamp_sec: float = 0.0
    width: _Whole = 0
    height: _Whole = 0

    def __post_init__(self) -> None:
        if self.images and self.image is None:
            msgspec.structs.force_setattr(self, "image", self.images[0])
        if self.images and self.image != self.images[0]:
            raise ValueError("image is not the first of images")

    @property
    def pictures(self) -> tuple[str, ...]:
        """All its pictures, in the order of their marks."""
        return self.images or (() if self.image is None else (self.image,))


class LocatedRow(Row, frozen=True, kw_only=True):
    """A line of `ARROW_LINES`: the rows of an Arrow table for programs that cannot read one.

    An embedded picture is `image_bytes` bytes at `image_offset` of `image_file`, which lies in the dataset folder.
    """

    image_file: str | None = None
    image_offset: int = 0
    image_bytes: int = 0


class SplitRef(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a split that was cut from an Arrow dataset: which of its rows is meant, and for people, what it is."""

    id: str
    arrow_row: int
    video_id: str = ""
    frame_index: int = 0
    labels: tuple[str, ...] = ()


class SplitSource(msgspec.Struct, frozen=True, kw_only=True):
    """What `split_config.json` says about where a split's rows come from."""

    dataset: str
    format: DataFormat


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What a row is told apart by, and divided by."""

    id: str
    video_id: str = ""
    frame_index: int = 0
    labels: tuple[str, ...] = ()


class Rows(Sequence[Row]):
    """A sequence of rows, decoded on access.

    Attributes:
        name: the name below the data root of what was opened.
        dataset: the folder its images belong to.
        format: how that folder keeps its rows.
        files: the files that hold the rows.
    """

    def __init__(self, name: str, dataset: Path, data_format: DataFormat, files: Sequence[Path]) -> None:
        self.name = name
        self.dataset = dataset
        self.format = data_format
        self.files = tuple(files)

    def __len__(self) -> int:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        """Raises DatasetInvalid for a row that cannot be read."""
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._read(index % len(self))

    def ids(self) -> Iterator[str]:
        """The id of every row in order, without decoding the rest. Raises DatasetInvalid."""
        raise NotImplementedError

    def marks(self) -> Iterator[Mark]:
        """The mark of every row in order. Raises DatasetInvalid."""
        for row in self:
            yield Mark(id=row.id, video_id=row.video_id, frame_index=row.frame_index, labels=row.labels)

    def split_lines(self) -> Iterator[bytes]:
        """The lines, without their ends, by which a split's file means each row, in order. Raises DatasetInvalid."""
        raise NotImplementedError

    def find(self, row_id: str) -> int | None:
        """The index of the row with that id."""
        return next((index for index, known in enumerate(self.ids()) if known == row_id), None)

    def open_image(self, index: int) -> Image.Image:
        """The row's picture as RGB.

        Raises:
            DatasetInvalid: it has none, or it is missing or broken; the message names the row.
        """
        row = self[index]
        if row.image is None:
            raise DatasetInvalid(f"Row {row.id!r} of {self.name} has no image.")
        return self._open(index, row, row.image)

    def open_images(self, index: int) -> tuple[Image.Image, ...]:
        """All pictures of the row as RGB; none for a row of text. Raises DatasetInvalid as `open_image`."""
        row = self[index]
        return tuple(self._open(index, row, name) for name in row.pictures)

    def _open(self, index: int, row: Row, name: str) -> Image.Image:
        try:
            return self.read_image(index, name)
        except images.BadImage as error:
            raise DatasetInvalid(
                f"The image {name!r} of row {row.id!r} in {self.name} cannot be used: {error}. "
                "Convert the export again, or take the row out."
            ) from None

    def read_image(self, index: int, image: str) -> Image.Image:
        """The picture of a row that is at hand already. Raises BadImage."""
        return images.read_rgb(image_path(self.dataset, image))

    def image_content(self, index: int, image: str) -> bytes:
        """The picture's file as it is. Raises BadImage."""
        try:
            return image_path(self.dataset, image).read_bytes()
        except OSError as error:
            raise images.BadImage(f"its file cannot be read ({type(error).__name__})") from None

    def image_file(self, image: str) -> Path | None:
        """The file of a row's picture, which may be missing; None where pictures lie in a table. Raises BadImage."""
        return image_path(self.dataset, image)

    def _read(self, index: int) -> Row:
        raise NotImplementedError


class JsonlRows(Rows):
    """Rows of a JSON-lines file; their images lie below the dataset folder."""

    def __init__(self, name: str, file: Path, dataset: Path, data_format: DataFormat) -> None:
        super().__init__(name, dataset, data_format, [file])
        self._lines = Lines(file)
        self._row = msgspec.json.Decoder(Row)
        self._id = msgspec.json.Decoder(OnlyId)

    def __len__(self) -> int:
        return len(self._lines)

    def ids(self) -> Iterator[str]:
        return (decode_line(self._id, self._lines, index, self.name).id for index in range(len(self)))

    def split_lines(self) -> Iterator[bytes]:
        return (self._lines[index] for index in range(len(self)))

    def _read(self, index: int) -> Row:
        return decode_line(self._row, self._lines, index, self.name)


def image_path(dataset: Path, image: str) -> Path:
    """The path of a row's image. Raises BadImage when it would lie outside the dataset folder."""
    parts = PurePosixPath(image)
    if parts.is_absolute() or ".." in parts.parts or "\0" in image or not parts.parts:
        raise images.BadImage("its path leaves the dataset folder")
    path = dataset / parts
    if _meets_link(dataset, parts) and not os.path.realpath(path).startswith(f"{os.path.realpath(dataset)}/"):
        raise images.BadImage("its path leaves the dataset folder")
    return path


def _meets_link(folder: Path, below: PurePosixPath) -> bool:
    """Whether a path has a link in it. Resolving every picture's path costs several times as much."""
    here = str(folder)
    for part in below.parts:
        here = f"{here}/{part}"
        try:
            if stat.S_ISLNK(os.lstat(here).st_mode):
                return True
        except OSError:  # nothing is there, so no link either
            return False
    return False


def open_rows(root: DataRoot, name: str) -> Rows:
    """The rows of a dataset folder, or of a split's JSONL file. `name` is below the data root.

    Raises:
        DatasetInvalid: nothing is there, or it is no dataset; the message says what was expected.
    """
    path = root.path_of(name)
    if path.is_dir():
        return _open_folder(name, path)
    if path.is_file() and path.suffix == ".jsonl":
        return _open_file(root, name, path)
    raise DatasetInvalid(f"{name} is no dataset: give the folder a conversion wrote, or a .jsonl file.")


def _open_folder(name: str, folder: Path) -> Rows:
    if (folder / LLAVA_FILE).is_file():
        return JsonlRows(name, folder / LLAVA_FILE, folder, _manifest_format(folder))
    if (folder / ARROW_STATE).is_file():
        from gpu_runner.arrow_rows import ArrowRows  # pyarrow is imported only where it is needed

        return ArrowRows(name, folder)
    if (folder / SPLIT_CONFIG).is_file():
        raise DatasetInvalid(f"{name} is a folder of splits: give one of its files, such as {name}/train.jsonl.")
    raise DatasetInvalid(f"{name} is no dataset: it holds neither {LLAVA_FILE} nor an Arrow dataset.")


def _manifest_format(folder: Path) -> DataFormat:
    """LLaVA rows also accompany COCO instances, so that every route takes them."""
    return DataFormat.COCO if (folder / COCO_FILE).is_file() else DataFormat.LLAVA


def _open_file(root: DataRoot, name: str, file: Path) -> Rows:
    config = file.parent / SPLIT_CONFIG
    if not config.is_file():
        return JsonlRows(name, file, file.parent, DataFormat.LLAVA)
    source = _split_source(config, name)
    folder = _dataset_of_split(root, source, name)
    if source.format is not DataFormat.HUGGINGFACE:
        return JsonlRows(name, file, folder, source.format)
    from gpu_runner.arrow_rows import ArrowRows, ArrowSplitRows

    return ArrowSplitRows(name, file, ArrowRows(source.dataset, folder))


def _split_source(config: Path, name: str) -> SplitSource:
    try:
        return msgspec.json.decode(config.read_bytes(), type=SplitSource)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DatasetInvalid(f"{SPLIT_CONFIG} beside {name} cannot be read ({error}): split again.") from None


def _dataset_of_split(root: DataRoot, source: SplitSource, name: str) -> Path:
    try:
        return root.path_of(root.confine_existing(source.dataset))
    except (PathNotAllowed, FileMissing):
        raise DatasetInvalid(
            f"{name} was cut from {source.dataset!r}, which is not there any more: convert again into that folder."
        ) from None
