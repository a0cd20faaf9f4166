"""Pictures of a dataset: what is one, what never leaves the disk, and what a browser may do with it."""

import os
import socket

import pytest

from jobs.values import MAX_PICTURE_BYTES

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 40
JPEG = b"\xff\xd8\xff\xe0" + b"\x00" * 40
WEBP = b"RIFF\x24\x0a\x00\x00WEBPVP8 " + b"\x00" * 40


@pytest.fixture
def folder(house):
    made = house.root.datasets / "pictures"
    made.mkdir(parents=True, exist_ok=True)
    return made


def _get(http, name: str, **headers: str):
    return http.get("/api/data/image", params={"path": name}, headers=headers)


@pytest.mark.parametrize(
    ("content", "media_type"),
    [(PNG, "image/png"), (JPEG, "image/jpeg"), (WEBP, "image/webp")],
    ids=["png", "jpg", "webp"],
)
def test_a_picture_is_told_by_its_content_whatever_its_name(http, folder, content, media_type) -> None:
    for name in ("a.png", "a.html", "a"):
        (folder / name).write_bytes(content)
        answer = _get(http, f"datasets/pictures/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
        assert answer.content == content


@pytest.mark.parametrize("name", ["pictures/a.png", "./datasets//pictures/a.png", "absolute"])
def test_a_picture_has_the_names_of_every_other_path(house, http, folder, name) -> None:
    (folder / "a.png").write_bytes(PNG)
    assert _get(http, str(folder / "a.png") if name == "absolute" else name).status_code == 200


def test_a_browser_may_only_look_at_it(http, folder) -> None:
    polyglot = PNG + b"<script>alert(1)</script>"
    (folder / "a.png").write_bytes(polyglot)
    headers = _get(http, "pictures/a.png").headers
    assert headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == "attachment"
    assert headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<html>",
        b"GIF89a" + bytes(20),
        b"RIFF\0\0\0\0WAVE",
        PNG[:7],
    ],
    ids=["empty", "text", "svg", "html", "gif", "wav", "cut"],
)
def test_what_is_no_picture_stays_here(http, folder, content) -> None:
    (folder / "a.png").write_bytes(content)
    answer = _get(http, "pictures/a.png")
    assert answer.status_code == 422
    assert [each["path"] for each in answer.json()["errors"]] == ["path"]


def test_a_picture_as_large_as_a_dataset_may_have_is_shown_and_a_larger_one_stays_here(http, folder) -> None:
    (folder / "a.png").write_bytes(PNG)
    for size, status in ((MAX_PICTURE_BYTES, 304), (MAX_PICTURE_BYTES + 1, 422)):
        os.truncate(folder / "a.png", size)
        assert _get(http, "pictures/a.png", **{"if-none-match": "*"}).status_code == status


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/nonexistent",
        "..",
        "a/../../b",
        "%2e%2e%2fx",
        "training.db/../x",
        "~root/x",
        "a\x00b",
        "a\nb",
        ".",
    ],
)
def test_a_path_outside_is_refused_the_same_whether_it_exists_or_not(http, path) -> None:
    answer = _get(http, path)
    assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed")


@pytest.mark.parametrize("query", ["", "?path=", "?path=" + "x" * 1025, "?path=a&path=b%00"])
def test_a_path_that_is_none_is_422(http, query) -> None:
    assert http.get(f"/api/data/image{query}").status_code == 422


def test_a_missing_picture_is_404(http, folder) -> None:
    for name in ("datasets/pictures/nothing.png", "datasets/nothing/a.png"):
        answer = _get(http, name)
        assert (answer.status_code, answer.json()["code"]) == (404, "file_not_found")


def test_links_pipes_sockets_and_folders_are_refused_at_once(http, folder, tmp_path, monkeypatch) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "a.png")
    (folder / "hard.png").hardlink_to(tmp_path / "a.png")
    (folder / "away").symlink_to(tmp_path)
    (folder / "inside").mkdir()
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(folder)  # a socket's path may have about a hundred characters
        listening.bind("socket.png")
        for name in ("link.png", "hard.png", "away/a.png", "inside", "pipe.png", "socket.png"):
            answer = _get(http, f"pictures/{name}")
            assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed"), name


def test_whoever_has_the_picture_is_told_so_until_it_changes(http, folder) -> None:
    (folder / "a.png").write_bytes(PNG)
    first = _get(http, "pictures/a.png")
    etag = first.headers["etag"]
    assert first.headers["cache-control"].startswith("private, max-age=")
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = _get(http, "pictures/a.png", **{"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert _get(http, "pictures/a.png", **{"if-none-match": '"other"'}).status_code == 200
    (folder / "a.png").write_bytes(PNG + b"x")
    assert _get(http, "pictures/a.png", **{"if-none-match": etag}).status_code == 200
