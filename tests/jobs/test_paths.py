"""The one door for paths that clients send: what passes is below the data root, whatever was written."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import FileMissing, PathNotAllowed
from jobs.paths import CLIENT_FOLDERS, DataRoot

ELSEWHERE = ["/etc/passwd", "/proc/self/environ", "/dev/zero", "file:///etc/passwd", "~root/x", "$HOME/x", "/", "//etc"]
CLIMBING = [
    "..",
    "../x",
    "a/../../b",
    "a/..",
    "..\\..\\b",
    "%2e%2e%2f",
    "%2E%2E/x",
    "%252e%252e%252f",
    "a/%2e%2e/b",
    "a/..%2fb",
    "",
    ".",
    "./",
    "//",
]
HIDING = [
    "a\0b",
    "a\nb",
    "a\x1b[31mb",
    "a\u202egnp.exe",
    "a\u200bb",
    "a\u2028b",
    "a\u2029b",
    "a\ud800b",
    "x" * 5000,
    "a/" * 600 + "b",
    "x" * 300,
    "é" * 200,
    "€" * 60 + ("/" + "€" * 60) * 15,  # 975 characters, three times as many bytes
    "CON",
    "a/nul.txt",
    "Lpt1",
    "a.",
    "a/b ",
    "a:b",
    "a|b",
    'a"b',
    "a<b",
    "a?b",
    "a*b",
]


@pytest.mark.parametrize("text", ELSEWHERE + CLIMBING + HIDING)
def test_a_hostile_path_is_refused_with_the_same_words(root: DataRoot, text: str) -> None:
    with pytest.raises(PathNotAllowed) as refusal:
        root.confine(text)
    assert refusal.value.message == PathNotAllowed().message
    with pytest.raises(PathNotAllowed):
        root.confine_existing(text)


@pytest.mark.parametrize("folder", [*CLIENT_FOLDERS, "datasets/", "./jobs//"])
def test_a_whole_folder_of_ours_is_no_ones_path(root: DataRoot, folder: str) -> None:
    with pytest.raises(PathNotAllowed):
        root.confine(folder)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("datasets/a", "datasets/a"),
        ("./datasets//a/./b/", "datasets/a/b"),
        ("contract/llava", "datasets/contract/llava"),
        ("uploads/1/file name.zip", "uploads/1/file name.zip"),
        ("Ünï/图像", "datasets/Ünï/图像"),
        ("100% done", "datasets/100% done"),
        ("a..b", "datasets/a..b"),
        (".hidden", "datasets/.hidden"),
    ],
)
def test_a_name_is_normalised(root: DataRoot, text: str, name: str) -> None:
    assert root.confine(text) == name
    assert root.confine(name) == name


def test_an_absolute_path_below_the_root_is_that_name(root: DataRoot) -> None:
    assert root.confine(f"{root.folder}/datasets/a//b") == "datasets/a/b"
    assert root.confine(f"{root.folder}//datasets/a") == "datasets/a"


def test_a_neighbour_whose_name_begins_like_the_root_is_refused(root: DataRoot) -> None:
    for text in (f"{root.folder}2/x", f"{root.folder}/../x", f"{root.folder}", f"{root.folder}/"):
        with pytest.raises(PathNotAllowed):
            root.confine(text)


@given(text=st.text() | st.lists(st.sampled_from(["..", ".", "", "a", "datasets", "%2e", "~", "\\"])).map("/".join))
def test_whatever_passes_lies_below_the_root_and_is_normal(text: str) -> None:
    root = DataRoot("/nowhere/data")
    try:
        name = root.confine(text)
    except PathNotAllowed:
        return
    path = root.path_of(name)
    assert Path(os.path.normpath(path)) == path, "nothing is left to be normalised away"
    assert path.is_relative_to(root.folder)
    assert name.split("/")[0] in CLIENT_FOLDERS
    assert root.confine(name) == name
    assert root.name_of(path) == name


# -- what lies on disk


def test_a_link_is_refused_as_last_part_and_on_the_way(root: DataRoot) -> None:
    (root.datasets / "out").symlink_to("/etc")
    (root.datasets / "in").symlink_to(root.datasets)
    (root.datasets / "dangling").symlink_to(root.datasets / "absent")
    for text in ("out", "out/passwd", "in", "in/x", "dangling", "out/not/there"):
        with pytest.raises(PathNotAllowed):
            root.confine(text)


def test_a_hard_link_is_refused(root: DataRoot, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    (root.datasets / "linked").hardlink_to(secret)
    with pytest.raises(PathNotAllowed):
        root.confine_existing("linked")


@pytest.mark.timeout(5)
def test_a_pipe_and_a_socket_are_refused_without_being_opened(root: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root.datasets / "pipe")
    monkeypatch.chdir(root.datasets)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name in ("pipe", "socket"):
            with pytest.raises(PathNotAllowed):
                root.confine_existing(name)


def test_a_file_and_a_folder_that_are_there_pass(root: DataRoot) -> None:
    (root.datasets / "a").mkdir()
    (root.datasets / "a" / "rows.jsonl").touch()
    assert root.confine_existing("a") == "datasets/a"
    assert root.confine_existing("a/rows.jsonl") == "datasets/a/rows.jsonl"


@pytest.mark.parametrize("name", ["absent", "absent/below", "file/below"])
def test_a_missing_file_is_named_but_not_its_place_on_the_server(root: DataRoot, name: str) -> None:
    (root.datasets / "file").touch()
    with pytest.raises(FileMissing) as missing:
        root.confine_existing(name)
    assert f"datasets/{name}" in missing.value.message
    assert str(root.folder) not in missing.value.message


# -- our own folders


def test_attempts_are_listed_newest_first_by_number(root: DataRoot) -> None:
    for name in ("attempt-2", "attempt-10", "attempt-x", "other"):
        (root.job("j") / name).mkdir(parents=True)
    assert [attempt.number for attempt in root.attempts("j")] == [10, 2]
    assert root.attempts("unknown") == []


def test_every_folder_of_ours_lies_below_the_root(root: DataRoot) -> None:
    attempt = root.attempt("j", 3)
    assert root.name_of(attempt.journal) == "jobs/j/attempt-3/events.jsonl"
    assert root.name_of(attempt.start) == "jobs/j/attempt-3/start.json"
    assert root.name_of(attempt.log) == "jobs/j/attempt-3/output.log"
    assert root.name_of(attempt.checkpoints) == "jobs/j/attempt-3/checkpoints"
    assert root.name_of(attempt.report) == "jobs/j/attempt-3/report.md"
    assert root.name_of(root.export("e")) == "exports/e"
    assert root.name_of(root.runner("r")) == "runners/r"


@pytest.mark.parametrize("swapped", ["datasets/d", "datasets/d/a.png"])
def test_what_is_swapped_for_a_link_after_it_was_judged_is_not_opened(tmp_path: Path, swapped: str) -> None:
    class Judged(DataRoot):
        """Somebody with write access is quick."""

        def confine_existing(self, text: str) -> str:
            name = super().confine_existing(text)
            (self.folder / swapped).rename(self.folder / "aside")
            (self.folder / swapped).symlink_to(self.folder / "aside")
            return name

    folder = tmp_path / "datasets/d"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"x")
    with DataRoot(tmp_path).open("d/a.png") as file:
        assert file.read() == b"x"
    with pytest.raises(PathNotAllowed):
        Judged(tmp_path).open("d/a.png")


def test_opening_a_pipe_a_folder_or_nothing_answers_at_once(tmp_path: Path) -> None:
    (tmp_path / "datasets/d").mkdir(parents=True)
    os.mkfifo(tmp_path / "datasets/pipe")
    root = DataRoot(tmp_path)
    for name in ("d", "pipe"):
        with pytest.raises(PathNotAllowed):
            root.open(name)
    with pytest.raises(FileMissing):
        root.open("d/nothing")
