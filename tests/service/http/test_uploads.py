"""Uploads: what is stored, under which name, and what is turned away without leaving anything behind."""

import errno
import glob
import io
import socket
import zipfile

import pytest
from waiting import until

from service import uploads


def _zip(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as writer:
        for name, content in entries:
            writer.writestr(name, content)
    return file.getvalue()


GOOD = _zip(("annotations.json", b"{}"), ("frames/0.png", b"x" * 3000))


def _send(http, content: bytes, name: str = "export.zip"):
    return http.post("/api/data/upload", files={"file": (name, content, "application/zip")})


def test_an_upload_is_stored_under_its_cleaned_name_and_can_be_named_later(house, http) -> None:
    answer = _send(http, GOOD, "my export; $(id).zip").json()
    assert answer["success"] is True
    assert answer["filename"] == "my export_ _(id).zip"
    assert answer["file_path"].startswith("uploads/")
    assert house.root.path_of(house.root.confine_existing(answer["file_path"])).read_bytes() == GOOD
    assert answer["file_size_mb"] == round(len(GOOD) / 2**20, 2)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("数" * 120 + ".zip", "数" * 66 + ".zip"), ("x" * 500 + ".ZIP", "x" * 200 + ".ZIP"),
        ("con.zip", "upload.zip"), ("nul.tar.zip", "upload.zip"), ("COM1.zip", "upload.zip"),
        ("....zip", "upload.zip"), ("~$a.zip", "_a.zip"), ("a%2fb.zip", "a_2fb.zip"), ("../../a.zip", "a.zip"),
    ],
    ids=lambda name: name[:12],
)  # fmt: skip
def test_a_stored_name_can_always_be_named_later(house, http, given, stored) -> None:
    answer = _send(http, GOOD, given)
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == stored
    assert house.root.path_of(house.root.confine_existing(answer.json()["file_path"])).read_bytes() == GOOD


def test_the_same_upload_twice_is_two_files(http) -> None:
    assert _send(http, GOOD).json()["file_path"] != _send(http, GOOD).json()["file_path"]


def test_an_upload_larger_than_one_write_arrives_whole(house, http) -> None:
    large = _zip(("a.bin", bytes(range(256)) * 16_000), method=zipfile.ZIP_STORED)
    answer = _send(http, large).json()
    assert house.root.path_of(answer["file_path"]).read_bytes() == large


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("x.txt", b"hello", "not_a_zip"), ("x.zip", b"hello", "not_a_zip"), ("x", GOOD, "not_a_zip"),
        ("../../x", GOOD, "not_a_zip"), ("x.zip", b"", "not_a_zip"),
    ],
    ids=["text", "text called zip", "no ending", "a path", "empty"],
)  # fmt: skip
def test_what_is_no_archive_is_refused_with_400(house, http, name, content, code) -> None:
    before = _stored(house)
    answer = _send(http, content, name)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert _stored(house) == before


def test_a_form_without_a_file_is_answered_with_422(http) -> None:
    for answer in (
        http.post("/api/data/upload"),
        http.post("/api/data/upload", files={"other": ("x.zip", GOOD)}),
        http.post("/api/data/upload", json={"file": "http://example.org/x.zip"}),
        http.post("/api/data/upload", files={"file": (None, "http://example.org/x.zip")}),
    ):
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["path"] == "file"


@pytest.mark.parametrize("charset", ["utf-8\r\nX: y", "nonsense"])
def test_a_damaged_form_is_a_4xx(http, charset) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.zip"\r\n' + b"A: b\r\n" * 50
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert 400 <= http.post("/api/data/upload", content=body, headers=headers).status_code < 500
    assert 400 <= http.post("/api/data/upload", content=b"--c\r\n\r\n", headers=headers).status_code < 500
    many = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 5000 + b"--b--\r\n"
    assert http.post("/api/data/upload", content=many, headers=headers).status_code == 413


def test_an_upload_beyond_the_limit_is_refused_while_it_streams(build) -> None:
    house = build(upload_max_bytes=2**20, with_runner=False)
    noise = _zip(("a.bin", bytes(2**20 + 1000)), method=zipfile.ZIP_STORED)
    answer = _send(house.http, noise)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert _stored(house) == set()


def test_an_upload_that_is_cut_off_leaves_nothing(house) -> None:
    before = _stored(house)
    host, port = house.address.split(":")
    head = f"POST /api/data/upload HTTP/1.1\r\nHost: {house.address}\r\nContent-Length: 9000000\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="cut.zip"\r\n\r\n' + b"PK" * 800_000
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + part)
        until(lambda: any("cut.zip" in name for name in _stored(house)))
    until(lambda: _stored(house) == before)


def test_a_full_disk_is_answered_with_507_and_leaves_nothing(house, http, monkeypatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = _stored(house)
    monkeypatch.setattr("service.uploads._Form.write", full)
    answer = _send(http, GOOD)
    assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")
    assert _stored(house) == before


def test_leftovers_of_a_killed_service_are_removed_at_start(house) -> None:
    folder = house.root.uploads / "left"
    folder.mkdir(parents=True)
    (folder / "x.zip.part").write_bytes(b"x")
    uploads.remove_unfinished(house.root)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (_zip(("../x", b"x")), 422),
        (_zip(("zeros", bytes(5 * 2**20))), 422),
        (GOOD[: len(GOOD) // 2], 422),
        (b"#!/bin/sh\n" + GOOD, 400),
        (b"\x89PNG" + bytes(100), 400),
    ],
    ids=["leaves its folder", "bomb", "cut off", "something in front", "picture"],
)
def test_a_hostile_archive_is_refused_at_the_door_and_leaves_nothing(house, http, content, status) -> None:
    before = _stored(house)
    answer = _send(http, content)
    assert answer.status_code == status, answer.text
    assert _stored(house) == before


def _stored(house) -> set[str]:
    # Path.glob fails where a folder goes meanwhile.
    return set(glob.glob("*/*", root_dir=house.root.uploads))  # noqa: PTH207
