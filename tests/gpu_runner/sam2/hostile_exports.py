"""Broken and hostile exports, each with the answer it must get. `test_hostile_exports` runs them in a process,
`end_to_end/test_hostile_data` all at once over HTTP.

An export is a folder with one annotated frame in which one thing is wrong; it is made anew for each test. What is
wrong with archives as such is in `tests/jobs/test_archive.py` at length; here is one of each family, to see that the
whole recipe refuses it.
"""

import io
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco

HEIGHT, WIDTH = 20, 30
PICTURE = "images/frame_000000.png"
RIGHT_TO_LEFT = "קוֹף \u202eقطة\u202c 🐈‍⬛ Ünïcödé"

STORED = zipfile.ZIP_STORED  # what repeats itself would be refused for its ratio

Files = dict[str, bytes]


class Hostile(NamedTuple):
    """`refusal` is part of the message that the job must fail with; None where it must succeed."""

    archive: Callable[[], bytes]
    refusal: str | None
    check: Callable[[Any], bool] = lambda _result: True


def _mask() -> str:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[4:10, 2:12] = 1
    runs, flat = [], mask.ravel(order="F")
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    runs = np.diff(edges).tolist()
    return " ".join(map(str, runs))


def _compressed() -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[4:10, 2:12] = 1
    encoded = coco.encode(np.asfortranarray(mask))
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


MASK = _mask()


def _png(width: int = WIDTH, height: int = HEIGHT, mode: str = "RGB", kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new(mode, (width, height)).save(content, kind, **options)
    return content.getvalue()


def _zip(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def _thing(**fields: Any) -> dict[str, Any]:
    return {"object_id": 1, "label": "cat", "mask_rle": MASK, "bbox": [2, 4, 10, 6], "area": 60, **fields}


def _frame(index: Any = 0, **fields: Any) -> dict[str, Any]:
    return {"frame_index": index, "timestamp_sec": 0.0, "objects": [_thing()], **fields}


def _document(*frames: Any, **fields: Any) -> bytes:
    video = {"filename": "v.mp4", "width": WIDTH, "height": HEIGHT}
    return json.dumps({"video": video, "export_config": {}, "annotations": list(frames), **fields}).encode()


def _export(document: bytes, **files: bytes) -> bytes:
    return _zip({"annotations.json": document, PICTURE: _png(), **files})


# -- one thing wrong at one place


def document(content: bytes, refusal: str | None, check: Any = lambda _result: True) -> Hostile:
    """The whole of annotations.json."""
    return Hostile(lambda: _export(content), refusal, check)


def field(name: str, value: Any, refusal: str | None, check: Any = lambda _result: True) -> Hostile:
    """A field of the only object."""
    return document(_document(_frame(objects=[_thing(**{name: value})])), refusal, check)


def literal(text: bytes, refusal: str) -> Hostile:
    """A value that Python does not write, as the frame's time."""
    return document(_document(_frame(timestamp_sec="HERE")).replace(b'"HERE"', text), refusal)


def picture(content: bytes, refusal: str | None) -> Hostile:
    return Hostile(lambda: _zip({"annotations.json": _document(_frame()), PICTURE: content}), refusal)


def archive(change: Callable[[bytes], bytes], refusal: str = "The archive is refused") -> Hostile:
    """The bytes of a good archive, changed."""
    return Hostile(lambda: change(_export(_document(_frame()))), refusal)


def entry(name: str, data: bytes = b"x", mode: int | None = None, refusal: str = "The archive is refused") -> Hostile:
    """One entry more."""

    def make() -> bytes:
        content = io.BytesIO(_export(_document(_frame())))
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        if mode is not None:
            info.create_system, info.external_attr = 3, mode << 16
        with zipfile.ZipFile(content, "a") as opened:
            opened.writestr(info, data)
        return content.getvalue()

    return Hostile(make, refusal)


def _renamed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old, new)


def _locked(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


def _lying_size(content: bytes) -> bytes:
    """The first entry's directory record says it has 3 GB."""
    changed = bytearray(content)
    struct.pack_into("<L", changed, content.index(b"PK\x01\x02") + 24, 3_000_000_000)
    return bytes(changed)


def _huge_header() -> bytes:
    changed = bytearray(_png())
    changed[16:24] = (65_535).to_bytes(4, "big") * 2
    changed[29:33] = zlib.crc32(bytes(changed[12:29])).to_bytes(4, "big")
    return bytes(changed)


def _nested(depth: int) -> bytes:
    return b'{"annotations":[{"frame_index":0,"objects":' + b"[" * depth + b"]" * depth + b"}]}"


def _many(objects: int) -> bytes:
    one = json.dumps(_thing(mask_rle="0 1 599", bbox=[0, 0, 1, 1])).encode()
    return (
        b'{"video":{"filename":"v.mp4","width":30,"height":20},"annotations":[{"frame_index":0,"objects":['
        + b",".join([one] * objects)
        + b"]}]}"
    )


def _coco(**annotation: Any) -> bytes:
    stated = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": _compressed(), **annotation}
    content = {
        "images": [{"id": 1, "file_name": "frame_000000.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [stated],
        "categories": [{"id": 1, "name": "cat"}],
    }
    return json.dumps(content).encode()


def _sav(**fields: Any) -> bytes:
    content = {"video_id": "v", "video_width": WIDTH, "video_height": HEIGHT, "masklet": [[_compressed()]]}
    return json.dumps({**content, "masklet_id": [1], **fields}).encode()


def _sa1b(segmentation: Any, **image: Any) -> bytes:
    stated = {"image_id": 1, "width": WIDTH, "height": HEIGHT, "file_name": "frame_000000.png", **image}
    return json.dumps({"image": stated, "annotations": [{"id": 1, "segmentation": segmentation}]}).encode()


HOSTILE: dict[str, Hostile] = {
    # E1 to E5: the archive
    "a parent folder": entry("../escaped.txt"),
    "a parent folder in the middle": entry("a/../../escaped.txt"),
    "an absolute name": entry("/tmp/escaped.txt"),
    "a drive": entry("C:/escaped.txt"),
    "backslashes": archive(_renamed(b"frame_000000", b"..\\..\\x00000")),
    "a NUL in a name": archive(_renamed(b"frame_000000", b"fra\0e_000000")),
    "a name of 300 characters": entry("a" * 300),
    "a symbolic link": entry("images/frame_000001.png", b"/etc/passwd", stat.S_IFLNK | 0o777),
    "a device": entry("dev", b"", stat.S_IFBLK | 0o600),
    "setuid bits": entry("tool", b"x", stat.S_IFREG | 0o4755),
    "case twins": entry("Annotations.JSON"),
    "unicode twins": Hostile(lambda: _zip({"caf\u00e9": b"1", "cafe\u0301": b"2"}), "is in it twice"),
    "a file that is a folder too": entry("annotations.json/x", refusal="is a file and a folder"),
    "zeros of a thousand times their size": entry("images/zeros.png", bytes(8 << 20), refusal="200 times its size"),
    "an entry that says it has 3 GB": archive(_lying_size),
    "a password": archive(_locked, "encrypted"),
    "its first half": archive(lambda content: content[: len(content) // 2]),
    "no end": archive(lambda content: content[:-5]),
    "bytes in front": archive(lambda content: b"#!/bin/sh\n" + content),
    "bytes behind": archive(lambda content: content + b"x"),
    "two archives glued": archive(lambda content: content + content),
    "LZMA": Hostile(lambda: _lzma(), "another way than deflate"),
    "a broken stream": archive(lambda content: content[:60] + b"\xff" * 8 + content[68:]),
    # the JSON itself
    "nothing": document(b"", "annotations.json cannot be read as JSON"),
    "a JSON list": document(b"[]", "no annotations of a known format"),
    "a JSON number": document(b"3", "no annotations of a known format"),
    "a video as large as the file": Hostile(
        lambda: _zip({"annotations.json": b'{"annotations":[],"video":[' + b"[]," * 5_000_000 + b"[]]}"}, STORED),
        "annotations.json#/video cannot be read as JSON: the value is larger than",
    ),
    "a frame of 10 million brackets": Hostile(
        lambda: _zip({"annotations.json": b'{"annotations":[{"x":[' + b"[]," * 5_000_000 + b"[]]}]}"}, STORED),
        "one frame or value has more than",
    ),
    "null": document(b"null", "no annotations of a known format"),
    "a BOM": document(b"\xef\xbb\xbf" + _document(_frame()), "cannot be read as JSON"),
    "UTF-16": document(_document(_frame()).decode().encode("utf-16"), "cannot be read as JSON"),
    "invalid UTF-8": document(
        _document(_frame()).replace(b"cat", b"\xff\xfet"), "annotations/0 cannot be read as JSON"
    ),
    "JSON cut in the middle": document(_document(_frame(), _frame(1))[:-60], "annotations/1 cannot be read as JSON"),
    "bytes after the JSON": document(_document(_frame()) + b"{}", "cannot be read as JSON"),
    "NaN": literal(b"NaN", "#/annotations/0 cannot be read as JSON"),
    "Infinity": literal(b"Infinity", "#/annotations/0 cannot be read as JSON"),
    "1e400": literal(b"1e400", "#/annotations/0 cannot be read as JSON"),
    "an integer of 5,000 digits": literal(b"9" * 5000, "#/annotations/0 cannot be read as JSON"),
    "2 to the 64th": literal(b"18446744073709551616", "#/annotations/0 cannot be read as JSON"),
    "lists 100,000 deep": document(_nested(100_000), "nests more than 64 levels deep"),
    "lists 100 deep": document(_nested(100), "nests more than 64 levels deep"),
    "objects 100,000 deep": document(b'{"annotations":' + b'{"a":' * 100_000, "nests more than 64 levels deep"),
    "a key of 1 MB": document(json.dumps({"k" * 1_000_000: 1}).encode(), "no annotations of a known format"),
    "a value of 80 MB": document(b'{"annotations":[{"x":"' + b" " * (80 << 20), "200 times"),
    "an empty export": document(b'{"annotations":[]}', "carries an object"),
    # wrong types everywhere
    "annotations that are no list": document(_document(annotations={"a": 1}), "#/annotations is missing, or no list"),
    "a frame that is a number": document(_document(7), "#/annotations/0: Expected"),
    "a frame that is null": document(_document(None), "#/annotations/0: Expected"),
    "a video that is a list": document(_document(_frame(), video=[]), "#/video: Expected"),
    "a video 10^9 wide": document(_document(_frame(), video={"width": 10**9}), "#/video/width"),
    "a file name that is a path": document(
        _document(_frame(), video={"filename": "../../../etc/cron.d/x"}), None, lambda result: result.num_samples == 1
    ),
    "a frame index that is a text": document(_document(_frame("0")), "#/annotations/0/frame_index"),
    "a frame index that is a fraction": document(_document(_frame(0.5)), "#/annotations/0/frame_index"),
    "a negative frame index": document(_document(_frame(-1)), "#/annotations/0/frame_index"),
    "a frame index of 2^40": document(_document(_frame(2**40)), "#/annotations/0/frame_index"),
    "objects that are a text": document(_document(_frame(objects="cat")), "#/annotations/0/objects"),
    "an object that is a list": document(_document(_frame(objects=[[]])), "#/annotations/0/objects/0"),
    "no mask": document(_document(_frame(objects=[{"label": "cat"}])), "mask_rle"),
    "a mask that is null": field("mask_rle", None, "objects/0/mask_rle"),
    "a mask that is a number": field("mask_rle", 7, "objects/0/mask_rle"),
    "counts that are texts": field("mask_rle", {"counts": ["1"], "size": [20, 30]}, "objects/0/mask_rle/counts/0"),
    "a grid of one number": field("mask_rle", {"counts": [600], "size": [20]}, "objects/0/mask_rle/size"),
    "a label that is a list": field("label", ["cat"], "objects/0/label"),
    "an object id that is a list": field("object_id", [1], "objects/0/object_id"),
    "a box of texts": field("bbox", ["a"] * 4, "objects/0/bbox/0"),
    # E8: masks and boxes
    "runs beyond the grid": field("mask_rle", MASK + " 600", "runs of 1200 pixels"),
    "runs that overflow": field("mask_rle", "9223372036854775807 9223372036854775807 2", "million pixels"),
    "counts that overflow": field("mask_rle", {"counts": [2**62] * 8, "size": [20, 30]}, "million pixels"),
    "negative runs": field("mask_rle", "-5 605", "no list of whole non-negative numbers"),
    "a negative count": field("mask_rle", {"counts": [-1, 601], "size": [20, 30]}, "negative count"),
    "a grid of 10^9": field("mask_rle", {"counts": [0, 10**9], "size": [10**4, 10**5]}, "objects/0/mask_rle/size"),
    "a grid of 65,536 x 65,536": field("mask_rle", {"counts": [2**32], "size": [2**16, 2**16]}, "million pixels"),
    "a forged compressed string": field("mask_rle", {"counts": "oooooooooo0", "size": [20, 30]}, "beyond any image"),
    "a cut compressed string": field("mask_rle", {"counts": "PPPPo", "size": [20, 30]}, "no COCO string, or was cut"),
    "an empty mask text": field("mask_rle", "", "no list of whole"),
    "a box of infinite size": field(
        "bbox", [-1e300, -1e300, 1e308, 1e308], None, lambda result: result.num_objects == 1
    ),
    "a box far outside": field("bbox", [10**6, 10**6, -5, 0], None, lambda result: result.num_objects == 1),
    "another grid in the second frame": document(
        _document(_frame(), _frame(0, objects=[_thing(mask_rle={"counts": [0, 4, 2], "size": [2, 3]})])), "another grid"
    ),
    "another number of pixels in the second frame": document(
        _document(_frame(), _frame(0, objects=[_thing(mask_rle="2 2 2")])), "runs of 6 pixels"
    ),
    # labels
    "a label with the picture's mark": field("label", "a <image> b", "reserved word"),
    "a label of 5,000 characters": field("label", "x" * 5000, "objects/0/label"),
    "a label with HTML": field(
        "label", "<b onclick=alert(1)>cat</b>", None, lambda result: "<b onclick=alert(1)>cat</b>" in result.labels
    ),
    "a label from right to left": field("label", RIGHT_TO_LEFT, None, lambda result: RIGHT_TO_LEFT in result.labels),
    "a label with a NUL": field("label", "c\0at", None, lambda result: result.num_objects == 1),
    # much, twice, or not at all
    "20,000 objects in a frame": Hostile(
        lambda: _zip({"annotations.json": _many(20_000), PICTURE: _png()}, STORED),
        None,
        lambda result: result.num_objects == 20_000,
    ),
    "the same frame three times": document(
        _document(_frame(), _frame(), _frame()), None, lambda result: result.num_samples == 3
    ),
    "a missing picture": document(_document(_frame(), _frame(3)), "no picture for 1 annotated frames (v-000003)"),
    "pictures of nobody": Hostile(lambda: _zip({"annotations.json": _document(_frame())}), "no picture for 1"),
    "no JSON": Hostile(lambda: _zip({PICTURE: _png()}), "no JSON file at all"),
    # E7: pictures
    "a picture of 65,535 x 65,535": picture(_huge_header(), "cannot be used"),
    "a picture of no bytes": picture(b"", "cannot be used"),
    "a page as picture": picture(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be used"),
    "a GIF as picture": picture(_png(kind="GIF"), "cannot be used"),
    "a TIFF as picture": picture(_png(kind="TIFF"), "cannot be used"),
    "a PDF as picture": picture(_png(kind="PDF"), "cannot be used"),
    "a picture of one channel with palette": picture(_png(mode="P"), None),
    "a picture of 16 bits": picture(_png(mode="I;16"), None),
    # the other formats
    "COCO with an image nobody has": Hostile(
        lambda: _zip({"a.json": _coco(image_id=9), "frame_000000.png": _png()}), "image_id 9 is in no entry"
    ),
    "COCO with a polygon of 200,000 points": Hostile(
        lambda: _zip({"a.json": _coco(segmentation=[[0.0, 0.0, 29.0, 19.0] * 100_000])}, STORED),
        "has an outline of",
    ),
    "COCO with points far outside": Hostile(
        lambda: _zip({"a.json": _coco(segmentation=[[1e9, -1e9] * 3]), "frame_000000.png": _png()}), "far outside"
    ),
    "COCO with a path out of the archive": Hostile(
        lambda: _zip(
            {"a.json": _coco().replace(b"frame_000000.png", b"../../../etc/x.png"), "frame_000000.png": _png()}
        ),
        "no picture for 1",
    ),
    "SA-V with masklets that are no list": Hostile(
        lambda: _zip({"v_manual.json": _sav(masklet=7), "00000.png": _png()}), "#/masklet is missing, or no list"
    ),
    "SA-V with a masklet that is a number": Hostile(
        lambda: _zip({"v_manual.json": _sav(masklet=[[7]]), "00000.png": _png()}), "#/masklet/0/0: Expected"
    ),
    "SA-V with sides that are texts": Hostile(
        lambda: _zip({"v_manual.json": _sav(video_width="wide"), "00000.png": _png()}), "#/video_width"
    ),
    "SA-1B with a mask that does not fit": Hostile(
        lambda: _zip({"a.json": _sa1b({"counts": [3, 4], "size": [20, 30]}), "frame_000000.png": _png()}),
        "runs of 7 pixels",
    ),
    "SA-1B with an image 10^9 wide": Hostile(
        lambda: _zip({"a.json": _sa1b(_compressed(), width=10**9), "frame_000000.png": _png()}), "#/image/width"
    ),
}


def _lzma() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_LZMA) as opened:
        opened.writestr("annotations.json", _document(_frame()))
    return content.getvalue()
