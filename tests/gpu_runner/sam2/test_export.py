"""Videos keep the names they were given where that can be, and no two of them meet in one."""

import tracemalloc
from typing import Any

import pytest

from gpu_runner.sam2 import export
from gpu_runner.sam2.export import Pictures, frame_folders, unique_ids
from jobs.paths import is_plain


@pytest.mark.parametrize(
    ("name", "video_id"),
    [
        ("clip_01.a-b", "clip_01.a-b"),
        ("my clip (2)", "my_clip_2"),
        ("clip/frame", "clip_frame"),
        ("视频一", "视频一"),
        ("видео", "видео"),
        ("قطة", "قطة"),
        ("हिन्दी", "हिन्दी"),
        ("e\u0301te\u0301", "été"),
    ],
)
def test_a_name_keeps_its_letters_in_every_script(name: str, video_id: str) -> None:
    assert unique_ids([name]) == [video_id]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("🐈", "🐕"),
        ("clip 🐈", "clip 🐕"),
        ("a" * 200 + "1", "a" * 200 + "2"),
        ("", "."),
        ("☃", ""),
        ("con", "video_con"),
    ],
)
def test_names_that_cannot_stay_as_they_are_do_not_meet_in_one(one: str, other: str) -> None:
    """Each is named by itself: they come from different exports."""
    assert unique_ids([one]) != unique_ids([other])
    assert unique_ids([one]) == unique_ids([one])


_ODD = ["..", "../../etc", "视" * 300, "a" * 300, "\0", "\u202egpj", ".hidden", "🐈" * 300, "con", "Aux.2"]


@pytest.mark.parametrize("name", _ODD)
def test_any_name_makes_a_folder_that_clients_may_name(name: str) -> None:
    (video_id,) = unique_ids([name])
    assert 0 < len(video_id.encode()) <= 200
    assert "/" not in video_id
    assert not video_id.startswith(".")
    assert is_plain(video_id)
    assert video_id.isprintable()


def test_thousands_of_equal_names_are_told_apart_as_fast_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    class Counting(str):
        def casefold(self) -> str:
            compared.append(1)
            return super().casefold()

    monkeypatch.setattr(export, "_plain", Counting)
    made = unique_ids(["a"] * 1000 + ["A.2"] + ["b"] * 1000)
    assert (made[0], made[1], made[999], made[1000], made[2000]) == ("a", "a.2", "a.1000", "A.2.2", "b.1000")
    assert len({each.casefold() for each in made}) == 2001
    assert len(compared) < 5 * 2001


def test_pictures_of_thousands_of_files_that_state_their_names_take_little() -> None:
    source: Any = None
    tracemalloc.start()
    made = [Pictures(source, frame_folders("")) for _ in range(1000)]
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown / len(made) < 1000
