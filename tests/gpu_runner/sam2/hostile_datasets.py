"""Datasets nobody should have, and what validation answers to each. `test_hostile_datasets` runs them in a process,
`end_to_end/test_hostile_data` all at once over HTTP.

A case spoils a sound dataset of six rows: its rows before they are written, or its folder afterwards. It is answered
by a finding (rule and severity), by a refusal of the whole (`REFUSED`), or by nothing (`SOUND`). What was
altered at random may be answered in any of these ways (`ANY`).
"""

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

Row = dict[str, Any]
REFUSED, SOUND, ANY = "refused", "sound", "any"
DEEP = b"[" * 100_000 + b"]" * 100_000


@dataclass(frozen=True)
class Case:
    """`spoil` gets the rows, or with `of` "folder" or "arrow" the folder of the finished dataset.

    `split` is what dividing it must say, where it must refuse.
    """

    name: str
    spoil: Callable[[Any], object]
    answer: str
    severity: str = "error"
    says: str = ""
    of: str = "rows"
    path: str = "datasets/d"
    split: str = ""

    def lay(self, folder: Path, make_table: Callable[[], object]) -> None:
        """Put the spoilt dataset into a folder that is not there yet; `make_table` puts a sound Arrow dataset there."""
        rows = sound_rows()
        if self.of == "rows":
            self.spoil(rows)
        if self.of == "arrow":
            make_table()
        else:
            write(folder, rows)
        if self.of != "rows":
            self.spoil(folder)

    def is_answered_by(self, findings: Iterable[tuple[str, str, str]], refusal: str) -> bool:
        """Whether a validation said what it must: (rule, severity, message) by finding, or a refusal of the whole."""
        if self.answer == REFUSED:
            return bool(refusal and re.search(self.says, refusal))
        if self.answer == SOUND:
            return not refusal and not any(severity == "error" for _, severity, _ in findings)
        return self.answer == ANY or any(
            (rule, severity) == (self.answer, self.severity) and re.search(self.says, message)
            for rule, severity, message in findings
        )


def sound_rows() -> list[Row]:
    """Six frames of one video with two objects that move by a pixel."""
    return [_row(number) for number in range(6)]


def write(folder: Path, rows: list[Row | bytes]) -> None:
    """A dataset in the LLaVA layout; what is bytes already is a line as it is."""
    (folder / "images").mkdir(parents=True)
    for number in range(6):
        (folder / "images" / f"{number}.png").write_bytes(picture(number))
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / "llava_dataset.jsonl").write_bytes(b"\n".join(lines))


def picture(seed: int, size: tuple[int, int] = (30, 20), kind: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, kind)
    return content.getvalue()


def _row(number: int) -> Row:
    return {
        "id": f"v-{number:06d}",
        "image": f"images/{number}.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat and a dog."}],
        "masks": [_mask(2 + number, 4, 8, 6), _mask(12 + number, 10, 10, 8)],
        "bounding_boxes": [[2 + number, 4, 8, 6], [12 + number, 10, 10, 8]],
        "labels": ["cat", "dog"],
        "object_ids": ["1", "2"],
        "video_id": "v",
        "frame_index": number,
        "width": 30,
        "height": 20,
    }


def _mask(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    """A rectangle on the grid of 30 x 20."""
    counts = [x * 20 + y]
    for _ in range(width - 1):
        counts += [height, 20 - height]
    return {"size": [20, 30], "counts": [*counts, height, 600 - (x + width - 1) * 20 - y - height]}


def _put(**fields: Any) -> Callable[[list[Row]], object]:
    """Spoil the second row."""
    return lambda rows: rows[1].update(fields)


def _mask_with(**fields: Any) -> Callable[[list[Row]], object]:
    return lambda rows: rows[1]["masks"][0].update(fields)


def _box(*box: float) -> Callable[[list[Row]], object]:
    return lambda rows: rows[1]["bounding_boxes"].__setitem__(0, list(box))


def _line(line: bytes) -> Callable[[list[Any]], object]:
    """The second row is this line."""
    return lambda rows: rows.__setitem__(1, line)


def _in_text(old: str, new: str) -> Callable[[list[Any]], object]:
    """The second row's JSON, altered as text: for what no JSON library would write."""
    return lambda rows: rows.__setitem__(1, json.dumps(rows[1]).replace(old, new).encode("utf-8", "surrogatepass"))


def _file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _image(content: bytes) -> Callable[[Path], object]:
    """The second picture is this."""
    return _file("images/1.png", content)


def _png_that_claims(width: int, height: int) -> bytes:
    """A header of that size and next to nothing behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def _animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (30, 20), (shade, 0, 0)) for shade in range(0, 250, 5)]
    content = io.BytesIO()
    frames[0].save(content, kind, save_all=True, append_images=frames[1:])
    return content.getvalue()


def _replaced_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """The second picture is taken away and something else put in its place."""

    def replace(folder: Path) -> None:
        place = folder / "images" / "1.png"
        place.unlink()
        make(place)

    return replace


def _outside(folder: Path) -> Path:
    """A sound picture that belongs to somebody else."""
    secret = folder.parents[1] / "uploads" / "secret.png"
    secret.parent.mkdir(exist_ok=True)
    secret.write_bytes(picture(1))
    return secret


def _link_to_folder(folder: Path) -> None:
    (folder / "elsewhere").symlink_to(_outside(folder).parent)
    _rewrite(folder, 1, image="elsewhere/secret.png")


def _rewrite(folder: Path, number: int, **fields: Any) -> None:
    file = folder / "llava_dataset.jsonl"
    rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    rows[number].update(fields)
    file.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))


def _crowd(rows: list[Row]) -> None:
    """20,000 objects in one frame, each two pixels large."""
    count = 20_000
    rows[1].update(
        masks=[{"size": [20, 30], "counts": [68, 2, 530]}] * count,
        bounding_boxes=[[3, 8, 1, 2]] * count,
        labels=[f"label {number}" for number in range(count)],
        object_ids=[str(number) for number in range(count)],
    )


def _copied(rows: list[Row], **fields: Any) -> None:
    rows[3].update({name: rows[1][name] for name in fields})


def _split_config(content: bytes) -> Callable[[Path], object]:
    """The rows become a part of a split with this configuration."""

    def make(folder: Path) -> None:
        (folder.parent / "s").mkdir()
        (folder.parent / "s" / "split_config.json").write_bytes(content)
        (folder.parent / "s" / "val.jsonl").write_bytes((folder / "llava_dataset.jsonl").read_bytes())

    return make


def _arrow_file(folder: Path) -> Path:
    return next(folder.glob("*.arrow"))


def _cut(share: float) -> Callable[[Path], object]:
    def cut(folder: Path) -> None:
        content = _arrow_file(folder).read_bytes()
        _arrow_file(folder).write_bytes(content[: int(len(content) * share)])

    return cut


def _flipped(seed: int) -> Callable[[Path], object]:
    """Twenty bytes anywhere in the table are others."""

    def flip(folder: Path) -> None:
        generator = np.random.default_rng(seed)
        content = np.frombuffer(_arrow_file(folder).read_bytes(), dtype=np.uint8).copy()
        content[generator.integers(0, len(content), 20)] = generator.integers(0, 256, 20)
        _arrow_file(folder).write_bytes(content.tobytes())

    return flip


def _arrow_split(line: bytes) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        dataset = folder.as_posix().rpartition("/datasets/")[2]
        config = {"dataset": f"datasets/{dataset}", "format": "huggingface"}
        (folder.parent / "s").mkdir()
        (folder.parent / "s" / "split_config.json").write_text(json.dumps(config))
        (folder.parent / "s" / "val.jsonl").write_bytes(line)

    return make


def _state(**state: Any) -> Callable[[Path], object]:
    return _file("state.json", json.dumps(state).encode())


def _text_beyond_the_table(folder: Path) -> None:
    """The second id ends 2 GiB behind its begin: whoever believes that reads memory that is not there."""
    content = bytearray(_arrow_file(folder).read_bytes())
    source = pa.py_buffer(content)
    offsets = pa.ipc.open_stream(source).read_next_batch().column("id").buffers()[1]
    place = offsets.address - source.address + 2 * 4
    del offsets
    struct.pack_into("<i", content, place, 2**31 - 1)
    _arrow_file(folder).write_bytes(content)


def _column_twice(folder: Path) -> None:
    table = pa.ipc.open_stream(_arrow_file(folder).read_bytes()).read_all()
    _write_table(folder, table.append_column("labels", table.column("labels")))


def _other_bytes(folder: Path) -> None:
    """Pictures are numbers."""
    table = pa.ipc.open_stream(_arrow_file(folder).read_bytes()).read_all()
    pictures = pa.array([{"bytes": number, "path": "a.png"} for number in range(len(table))])
    _write_table(folder, table.set_column(table.schema.get_field_index("image"), "image", pictures))


def _write_table(folder: Path, table: pa.Table) -> None:
    with pa.OSFile(str(_arrow_file(folder)), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def _table(**columns: Any) -> Callable[[Path], object]:
    """The table has these columns and no others."""

    def make(folder: Path) -> None:
        _write_table(folder, pa.table(columns))

    return make


_WRONG_TYPES: dict[str, list[Any]] = {
    "id": [1, None, [], {}],
    "image": [1, [], {}, True],
    "conversations": [1, "x", None, {}, [1], [{}], [{"from": "system", "value": "x"}], [{"from": "gpt", "value": 1}]],
    "masks": [1, "x", None, {}, [1], [{}], [{"size": [1], "counts": "1"}], [{"size": [20, 30], "counts": {}}]],
    "bounding_boxes": [1, "x", None, [1], [["a"]], [[None]], [{}]],
    "labels": [1, "x", [1], [None], [[]]],
    "object_ids": [1, [1], [{}]],
    "attributes": [1, [1], ["x"]],
    "video_id": [1, None, []],
    "frame_index": ["x", 1.5, None, []],
    "timestamp_sec": ["x", None, []],
    "width": ["x", 1.5, None],
    "height": ["x", [], {}],
}


def _wrong_types(rows: list[Row]) -> None:
    """A row for each field and each value it cannot have."""
    rows += [{**rows[1], field: value} for field, values in _WRONG_TYPES.items() for value in values]


CASES = [
    # -- rows that are none
    Case("wrong types everywhere", _wrong_types, "rows", says=f"{sum(map(len, _WRONG_TYPES.values()))} rows cannot"),
    Case("nothing at all", lambda rows: rows.clear(), "rows", says="no rows"),
    Case("noise", lambda rows: rows.__setitem__(slice(None), [os.urandom(50_000)]), "rows", says="cannot be read"),
    Case("a page of HTML", _line(b"<html><body>not found</body></html>"), "rows"),
    Case("a list", _line(b"[1, 2]"), "rows"),
    Case("a byte order mark", _in_text("{", "\ufeff{"), "rows"),
    Case("no UTF-8", _line(b'{"id": "\xff\xfe", "conversations": []}'), "rows"),
    Case("half a row", lambda rows: rows.__setitem__(1, json.dumps(rows[1]).encode()[:200]), "rows"),
    Case("100,000 brackets", _line(DEEP), "rows"),
    Case(
        "100,000 brackets in an attribute",
        _in_text('"width"', f'"attributes": [{{"a": {DEEP.decode()}}}], "width"'),
        "rows",
    ),
    Case("an integer of 5,000 digits", _in_text('"frame_index": 1', f'"frame_index": {"9" * 5000}'), "rows"),
    Case("an integer of 400 digits", _in_text('"width": 30', f'"width": {"9" * 400}'), "rows"),
    Case("1e400", _in_text('"bounding_boxes": [[3', '"bounding_boxes": [[1e400'), "rows"),
    Case("NaN", _in_text('"bounding_boxes": [[3', '"bounding_boxes": [[NaN'), "rows"),
    Case("Infinity", _in_text('"bounding_boxes": [[3', '"bounding_boxes": [[Infinity'), "rows"),
    Case("half a surrogate pair", _in_text('"cat"', '"\\ud800"'), "rows"),
    # -- boxes
    Case("a box of three", _box(1, 2, 3), "box_integrity"),
    Case("a box without area", _box(3, 4, 0, 6), "box_integrity"),
    Case("a box inside out", _box(3, 4, -8, 6), "box_integrity"),
    Case("a box beyond all bounds", _box(1e308, 1e308, 1e308, 1e308), "box_integrity"),
    Case("a box elsewhere", _box(20, 12, 8, 6), "box_integrity", "warning"),
    # -- masks
    Case("counts beyond the grid", _mask_with(counts=[0, 10**6]), "mask_integrity", says="grid of 30x20 has 600"),
    Case("counts beyond any grid", _mask_with(counts=[2**62, 2**62]), "mask_integrity"),
    Case("counts beyond 64 bits", _mask_with(counts=[10**30]), "mask_integrity"),
    Case("negative counts", _mask_with(counts=[700, -100]), "mask_integrity"),
    Case("counts that are none", _mask_with(counts=[]), "mask_integrity"),
    Case("counts that never end", _mask_with(counts="o" * 1_000_000), "mask_integrity"),
    Case("counts in no such alphabet", _mask_with(counts="\u0661\u0662 \u202e"), "mask_integrity"),
    Case("a million counts", _mask_with(counts=[0, 1] * 500_000), "mask_integrity"),
    Case("a grid of 10^9 by 10^9", _mask_with(size=[10**9, 10**9], counts=[10**18]), "mask_integrity"),
    Case("a grid of no size", _mask_with(size=[0, 0], counts=[0]), "mask_integrity"),
    Case("a grid less than nothing", _mask_with(size=[-20, -30]), "mask_integrity"),
    Case("a mask of nothing", _mask_with(counts=[600]), "mask_integrity", says="cover no pixel"),
    Case("more labels than masks", _put(labels=["cat", "dog", "cat"]), "mask_integrity"),
    Case("20,000 objects", _crowd, "class_balance", "warning", says="moderate"),
    # -- labels and ids
    Case("no label anywhere", lambda rows: [row.update(labels=["", ""]) for row in rows], "class_balance"),
    Case("a label as markup", _put(labels=["<script>alert(1)</script>|`", "dog"]), "class_balance", "warning"),
    Case("a label from right to left", _put(labels=["\u202eחתול\u0000", "dog"]), "class_balance", "warning"),
    Case("a label with a format", _put(labels=["{0.__class__}{", "dog"]), "class_balance", "warning"),
    Case("one id twice", lambda rows: _copied(rows, id=1), "duplicate_frames"),
    Case("one frame twice", lambda rows: _copied(rows, frame_index=1), "duplicate_frames", "warning"),
    Case("one picture twice", lambda rows: _copied(rows, image=1), "duplicate_frames", "warning"),
    Case("an id of a megabyte", _put(id="x" * 1_000_000), SOUND),
    Case("nothing annotated", _put(masks=[], bounding_boxes=[], labels=[]), "missing_annotations"),
    # -- conversations
    Case("no answer", _put(conversations=[{"from": "human", "value": "<image>"}]), "text", says="alternate"),
    Case("an empty answer", lambda rows: rows[1]["conversations"][1].update(value=" \n"), "text"),
    Case("a million picture marks", lambda rows: rows[1]["conversations"][0].update(value="<image>" * 10**6), "text"),
    # -- pictures by path
    *(
        Case(f"the picture is {path!r}", _put(image=path), "images", says="leaves the dataset folder")
        for path in ("../../uploads/secret.png", "/etc/passwd", "images/../../x.png", "", ".", "images/\0.png")
    ),
    Case("a picture that is a folder", _put(image="images"), "images"),
    Case("a picture that is the rows", _put(image="llava_dataset.jsonl"), "images"),
    Case("a path too long for any disk", _put(image="x/" * 3000 + "y.png"), "images"),
    Case("half a surrogate in a path", _put(image="images/\udc80.png"), "rows"),
    Case("a missing picture", _put(image="images/none.png"), "images", says="missing"),
    Case("a link out", _replaced_by(lambda place: place.symlink_to(_outside(place.parents[1]))), "images", of="folder"),
    Case("a folder that is a link out", _link_to_folder, "images", of="folder", says="leaves the dataset folder"),
    Case("a link to itself", _replaced_by(lambda place: place.symlink_to(place)), "images", of="folder"),
    Case("a pipe nobody writes to", _replaced_by(lambda place: os.mkfifo(place)), "images", of="folder"),
    Case("a folder in place of a picture", _replaced_by(lambda place: place.mkdir()), "images", of="folder"),
    # -- pictures by content
    Case("a picture without a byte", _image(b""), "images", of="folder"),
    Case("a PNG cut short", _image(picture(1)[:-300]), "images", of="folder"),
    Case("a JPEG cut short", _image(picture(1, kind="JPEG")[:-200]), "images", of="folder"),
    Case("a header of 65,535 x 65,535", _image(_png_that_claims(65_535, 65_535)), "images", of="folder"),
    Case("a header and nothing behind", _image(_png_that_claims(30, 20)), "images", of="folder"),
    Case("a GIF called PNG", _image(_animation("GIF")), "images", of="folder"),
    Case("an animated PNG", _image(_animation("PNG")), "images", of="folder", says="animation"),
    Case("an animated WebP", _image(_animation("WEBP")), "images", of="folder", says="animation"),
    Case("a TIFF called PNG", _image(picture(1, kind="TIFF")), "images", of="folder"),
    Case(
        "PostScript called PNG", _image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n"), "images", of="folder"
    ),
    Case(
        "30 million pixels", _image(picture(1, (6000, 5000), "JPEG", "L")), "images", of="folder", says="another size"
    ),
    Case("a palette", _image(picture(1, mode="P")), SOUND, of="folder"),
    Case("CMYK", _image(picture(1, kind="JPEG", mode="CMYK")), SOUND, of="folder"),
    Case("transparency", _image(picture(1, mode="RGBA")), SOUND, of="folder"),
    # -- what lies beside
    Case("a manifest of brackets", _file("manifest.json", DEEP), SOUND, of="folder"),
    Case("a manifest of noise", _file("manifest.json", os.urandom(1000)), SOUND, of="folder"),
    Case("a split of brackets", _split_config(DEEP), REFUSED, of="folder", path="datasets/s/val.jsonl"),
    Case("a split of a list", _split_config(b"[]"), REFUSED, of="folder", path="datasets/s/val.jsonl"),
    Case(
        "a split of what is outside",
        _split_config(b'{"dataset": "../../etc", "format": "llava"}'),
        REFUSED,
        of="folder",
        path="datasets/s/val.jsonl",
        says="not there any more",
    ),
    Case(
        "counts and a grid of 4,000 digits",
        _in_text('"size": [20, 30]', f'"size": [{"9" * 4000}, {"9" * 4000}]'),
        "rows",
    ),
    Case("no dataset", lambda folder: (folder / "llava_dataset.jsonl").unlink(), REFUSED, of="folder"),
    # -- Arrow
    Case("a state of noise", _file("state.json", os.urandom(500)), REFUSED, of="arrow"),
    Case("a state of brackets", _file("state.json", DEEP), REFUSED, of="arrow"),
    Case("a state that is a list", _file("state.json", b"[1]"), REFUSED, of="arrow"),
    Case("a state without files", _state(_data_files=None), REFUSED, of="arrow"),
    Case("a state of numbers", _state(_data_files=[{"filename": 5}]), REFUSED, of="arrow"),
    Case("a state that points outside", _state(_data_files=[{"filename": "../../../etc/passwd"}]), REFUSED, of="arrow"),
    Case("a state that points at itself", _state(_data_files=[{"filename": "state.json"}]), REFUSED, of="arrow"),
    Case("a table of noise", lambda folder: _arrow_file(folder).write_bytes(os.urandom(9000)), REFUSED, of="arrow"),
    Case("a table without a byte", _cut(0), REFUSED, of="arrow"),
    Case("half a table", _cut(0.5), REFUSED, of="arrow"),
    *(Case(f"a table with bytes turned round ({seed})", _flipped(seed), ANY, of="arrow") for seed in range(12)),
    Case(
        "a part of rows that are not there",
        _arrow_split(b'{"id": "v-000001", "arrow_row": 1000000000000}'),
        "rows",
        of="arrow",
        path="datasets/s/val.jsonl",
    ),
    Case(
        "a part of rows less than nothing",
        _arrow_split(b'{"id": "v-000001", "arrow_row": -1}'),
        "rows",
        of="arrow",
        path="datasets/s/val.jsonl",
    ),
    Case("a text that ends beyond its table", _text_beyond_the_table, "rows", of="arrow", split="no Arrow dataset"),
    Case("a table with a column twice", _column_twice, REFUSED, of="arrow", says="each once", split="each once"),
    Case("a table whose pictures are numbers", _other_bytes, REFUSED, of="arrow", says="columns", split="columns"),
    Case("a table of other columns", _table(a=[1, 2]), REFUSED, of="arrow", says="columns"),
    Case(
        "a table of numbers", _table(id=[1, 2], image=[3, 4], conversations=[5, 6]), REFUSED, of="arrow", says="columns"
    ),
]
