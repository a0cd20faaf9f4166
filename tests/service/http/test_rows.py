"""Rows to look at: of every kind of dataset, from files of any size and in any state."""

import json
import os
import secrets
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.values import MAX_PICTURE_BYTES
from service import rows

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 40
ROW = {
    "id": "v_000001", "image": "images/v/1.png", "labels": ["cat", "dog"], "object_ids": ["1", "2"],
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "cat"}],
    "masks": [{"size": [4, 4], "counts": "04L4"}, {"size": [4, 4], "counts": [0, 4, 12]}],
    "bounding_boxes": [[0, 0, 1, 4], [0, 0, 1.5, 4]], "video_id": "v", "frame_index": 1, "timestamp_sec": 0.04,
    "width": 8, "height": 6, "attributes": [{}, {}],
}  # fmt: skip


@pytest.fixture
def folder(house):
    made = house.root.datasets / "rows" / secrets.token_hex(4)
    made.mkdir(parents=True)
    return made


def _lines(*found) -> bytes:
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in found)


def _numbered(count: int) -> bytes:
    return _lines(*({"id": f"r{n}", "conversations": []} for n in range(count)))


def _name(house, path) -> str:
    return house.root.name_of(path)


def _get(http, data_path: str, **query):
    return http.get("/api/data/rows", params={"data_path": data_path, **query})


@pytest.mark.parametrize("prefix", ["/api", "/api/training"])
def test_a_row_has_its_objects_and_the_address_of_its_picture(house, http, folder, prefix) -> None:
    (folder / "llava_dataset.jsonl").write_bytes(_lines(ROW))
    (folder / "images/v").mkdir(parents=True)
    (folder / "images/v/1.png").write_bytes(PNG)
    page = http.get(f"{prefix}/data/rows", params={"data_path": _name(house, folder)}).json()
    assert (page["total"], page["next"]) == (1, None)
    row = page["rows"][0]
    assert row["masks"] == ROW["masks"]
    assert row["boxes"] == ROW["bounding_boxes"]
    assert row["conversations"] == ROW["conversations"]
    kept = ("id", "labels", "object_ids", "video_id", "frame_index", "timestamp_sec")
    assert {name: row[name] for name in kept} == {name: ROW[name] for name in kept}
    assert (row["index"], row["error"]) == (0, None)
    assert (row["image"]["width"], row["image"]["height"]) == (8, 6)
    assert row["image"]["url"].startswith(f"{prefix}/data/image?")
    assert http.get(row["image"]["url"]).content == PNG


def test_pages_follow_each_other_without_a_gap(house, http, folder) -> None:
    (folder / "llava_dataset.jsonl").write_bytes(_numbered(120))
    ids, after = [], 0
    while after is not None:
        page = _get(http, _name(house, folder), after=after).json()
        assert page["total"] == 120
        ids += [row["id"] for row in page["rows"]]
        assert [row["index"] for row in page["rows"]] == list(range(after, after + len(page["rows"])))
        after = page["next"]
    assert ids == [f"r{n}" for n in range(120)]
    beyond = _get(http, _name(house, folder), after=500).json()
    assert (beyond["rows"], beyond["next"]) == ([], None)


def test_a_part_of_a_split_shows_the_pictures_of_its_dataset(house, http, folder) -> None:
    split = folder / "split"
    split.mkdir()
    (split / "split_config.json").write_bytes(_lines({"dataset": _name(house, folder), "format": "llava", "x": 1}))
    (split / "train.jsonl").write_bytes(_lines(ROW))
    row = _get(http, f"{_name(house, split)}/train.jsonl").json()["rows"][0]
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(row["image"]["url"]).query)
    assert query["path"] == [f"{_name(house, folder)}/images/v/1.png"]


@pytest.fixture
def table(house, folder):
    """An Arrow dataset as far as the service looks at it, and a split of it."""
    (folder / "state.json").write_text("{}")
    (folder / "data-00000-of-00001.arrow").write_bytes(b"ARROW..." + PNG + b"tail" + PNG)
    where = {"image_file": "data-00000-of-00001.arrow", "image_bytes": len(PNG)}
    second = 12 + len(PNG)
    first = ROW | where | {"image_offset": 8}
    (folder / "rows.jsonl").write_bytes(_lines(first, first | {"id": "v_000002", "image_offset": second}))
    split = folder / "cut"
    split.mkdir()
    config = {"dataset": _name(house, folder), "format": "huggingface"}
    (split / "split_config.json").write_bytes(_lines(config))
    refs = [{"id": "v_000002", "arrow_row": 1}, {"id": "other", "arrow_row": 0}, {"id": "v_000001", "arrow_row": 9}]
    (split / "train.jsonl").write_bytes(_lines(*refs))
    return folder


def test_pictures_inside_a_table_are_had_by_their_place(house, http, table) -> None:
    page = _get(http, _name(house, table)).json()
    assert [row["id"] for row in page["rows"]] == ["v_000001", "v_000002"]
    for row in page["rows"]:
        answer = http.get(row["image"]["url"])
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, PNG, "image/png")
        again = http.get(row["image"]["url"], headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304


def test_a_split_of_a_table_shows_the_rows_it_refers_to(house, http, table) -> None:
    page = _get(http, f"{_name(house, table)}/cut/train.jsonl").json()
    found = [(row["id"], row["error"] is None) for row in page["rows"]]
    assert found == [("v_000002", True), ("other", False), ("v_000001", False)]
    assert "converted again" in page["rows"][1]["error"]


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ({"offset": 8}, "bytes"), ({"bytes": 8}, "offset"), ({"offset": 8, "bytes": 10**6}, "offset"),
        ({"offset": 0, "bytes": 48}, "path"), ({"offset": 8, "bytes": 3}, "path"), ({"offset": 8, "bytes": 0}, "bytes"),
        ({"offset": -1, "bytes": 3}, "offset"), ({"offset": 2**70, "bytes": 3}, "offset"),
        ({"offset": 2**63 - 1, "bytes": 2**25}, "offset"), ({"offset": 8, "bytes": MAX_PICTURE_BYTES + 1}, "bytes"),
    ],
    ids=str,
)  # fmt: skip
def test_a_place_in_a_table_that_is_no_picture_is_refused(house, http, table, place, path) -> None:
    name = f"{_name(house, table)}/data-00000-of-00001.arrow"
    answer = http.get("/api/data/image", params={"path": name, **place})
    assert answer.status_code == 422, answer.text
    assert [each["path"] for each in answer.json()["errors"]] == [path]


def test_only_tables_of_datasets_have_pictures_at_a_place(house, http, table) -> None:
    for name in (f"{_name(house, table)}/rows.jsonl", "uploads/x/y.arrow", f"{_name(house, table)}/../x.arrow"):
        answer = http.get("/api/data/image", params={"path": name, "offset": 0, "bytes": 9})
        assert answer.status_code == 422, answer.text


def test_a_row_that_cannot_be_read_says_so_and_the_others_are_there(house, http, folder) -> None:
    bad = [
        b"{", b"[]", b"null", b'{"id": 5, "conversations": []}', b"\xff\xfe", b'{"id": "n", "labels": [NaN]}',
        b'{"id": "h", "frame_index": 1e400}', b"[" * 100_000, b'{"id": "w", "bounding_boxes": [["a"]]}',
        b'{"id": "s", "labels": ["\\ud800"]}', b'{"id": "i", "frame_index": ' + b"9" * 5000 + b"}",
        b'{"id": "o", "image": "../../secret.png"}', b'{"id": "a", "image": "/etc/passwd"}', b" ",
        b'{"id": "e", "image_file": "../x.arrow", "image_offset": 1, "image_bytes": 2}',
    ]  # fmt: skip
    (folder / "llava_dataset.jsonl").write_bytes(_lines(*bad, ROW))
    page = _get(http, _name(house, folder)).json()
    assert page["total"] == len(bad) + 1
    assert [row["index"] for row in page["rows"] if not row["error"]] == [len(bad)]
    assert page["rows"][8]["id"] == "w"
    assert "/etc" not in page["rows"][8]["error"]


def test_blank_lines_are_no_rows_wherever_they_stand(house, http, folder, monkeypatch) -> None:
    lines = [b"", b"\r", *_numbered(9).splitlines(), b"", b'{"id": "last", "conversations": []}\r', b"\r", b""]
    for block in (1, 2, 3, 7, 64, 2**18):
        monkeypatch.setattr(rows, "_BLOCK_BYTES", block)
        text = b"\n\n".join(lines)
        (folder / "llava_dataset.jsonl").write_bytes(text + b"\n" * block)
        for after in (0, 4, 9):
            page = _get(http, _name(house, folder), after=after).json()
            expected = [*(f"r{n}" for n in range(9)), "last"]
            assert ([row["id"] for row in page["rows"]], page["total"]) == (expected[after:], 10), block
        found = _get(http, _name(house, folder), row_id="last").json()
        assert [row["index"] for row in found["rows"]] == [9]


def test_a_row_is_found_by_its_id_and_nothing_else_of_that_text(house, http, folder) -> None:
    others = [{"id": f"r{n}", "labels": ["wanted"], "video_id": "wanted", "conversations": []} for n in range(3000)]
    text = _lines(*others, {"attributes": [{"id": "wanted"}], "id": "x", "conversations": []}, ROW | {"id": "wanted"})
    (folder / "llava_dataset.jsonl").write_bytes(text)
    page = _get(http, _name(house, folder), row_id="wanted", limit=1).json()
    assert [(row["index"], row["labels"]) for row in page["rows"]] == [(3001, ["cat", "dog"])]
    none = _get(http, _name(house, folder), row_id="unknown").json()
    assert (none["rows"], none["next"], none["total"]) == ([], None, 3002)


def test_a_file_that_changed_is_read_anew(house, http, folder) -> None:
    file = folder / "llava_dataset.jsonl"
    for count in (3, 5, 2):
        file.write_bytes(_numbered(count))
        assert _get(http, _name(house, folder)).json()["total"] == count


def test_a_line_of_any_length_is_one_row(house, http, folder, monkeypatch) -> None:
    monkeypatch.setattr(rows, "LONGEST_LINE", 1000)
    long = b'{"id": "long", "conversations": [], "video_id": "' + b"x" * 600_000 + b'"}'
    (folder / "llava_dataset.jsonl").write_bytes(_lines({"id": "a", "conversations": []}, long) + _numbered(2))
    page = _get(http, _name(house, folder)).json()
    assert [(row["id"], row["error"] is None) for row in page["rows"]] == [
        ("a", True), (None, False), ("r0", True), ("r1", True),
    ]  # fmt: skip


def test_a_page_of_large_rows_is_shorter_and_goes_on(house, http, folder, monkeypatch) -> None:
    monkeypatch.setattr(rows, "ENOUGH_BYTES", 1000)
    (folder / "llava_dataset.jsonl").write_bytes(_numbered(100))
    page = _get(http, _name(house, folder)).json()
    assert 1 < len(page["rows"]) < 50
    assert page["next"] == len(page["rows"])


def test_a_million_rows_cost_a_mark_for_each_block(house, http, folder) -> None:
    file = folder / "llava_dataset.jsonl"
    line = b'{"id":"%07d","conversations":[]}\n'
    file.write_bytes(b"".join(line % n for n in range(1_000_000)))
    page = _get(http, _name(house, folder), after=987_654, limit=2).json()
    assert (page["total"], [row["id"] for row in page["rows"]]) == (1_000_000, ["0987654", "0987655"])
    assert _get(http, _name(house, folder), row_id="0999999").json()["rows"][0]["index"] == 999_999
    known = [each.index for each in house.app.state.row_files._indexes.values() if each.index]
    (index,) = [index for index in known if index.rows == 1_000_000]
    assert len(index.starts) < 200
    file.unlink()


@pytest.mark.parametrize(
    "query",
    [
        "", "?data_path=", "?data_path=" + "x" * 1025, "?data_path=d&limit=0", "?data_path=d&limit=201",
        "?data_path=d&limit=-1", "?data_path=d&limit=1e9", "?data_path=d&limit=" + "9" * 5000, "?data_path=d&after=-1",
        "?data_path=d&after=" + "9" * 5000, "?data_path=d&after=18446744073709551616", "?data_path=d&after=NaN",
        "?data_path=d&after=x", "?data_path=..", "?data_path=/etc/passwd", "?data_path=a%00b", "?data_path=a%0Ab",
        "?data_path=d&row_id=", "?data_path=d&row_id=" + "x" * 513, "?data_path=.", "?data_path=uploads",
    ],
    ids=lambda query: query[:40],
)  # fmt: skip
def test_what_cannot_be_asked_is_422(http, query) -> None:
    answer = http.get(f"/api/data/rows{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), answer.text


def test_what_is_no_dataset_is_refused_and_what_is_missing_is_404(house, http, folder) -> None:
    (folder / "x.json").write_text("{}")
    (folder / "cut").mkdir()
    (folder / "cut/split_config.json").write_text("{}")
    (folder / "cut/train.jsonl").write_text("{}")
    (folder / "out").mkdir()
    (folder / "out/split_config.json").write_text('{"dataset": "../../etc", "format": "llava"}')
    (folder / "out/train.jsonl").write_text("{}")
    name = _name(house, folder)
    for wrong in (name, f"{name}/x.json", f"{name}/cut", f"{name}/cut/train.jsonl", f"{name}/out/train.jsonl"):
        assert _get(http, wrong).status_code == 422, wrong
    assert _get(http, f"{name}/nothing.jsonl").status_code == 404
    assert _get(http, "datasets/nothing").status_code == 404


def test_rows_behind_a_link_are_not_read(house, http, folder, tmp_path) -> None:
    (tmp_path / "secret.jsonl").write_bytes(_lines(ROW))
    (folder / "llava_dataset.jsonl").symlink_to(tmp_path / "secret.jsonl")
    answer = _get(http, _name(house, folder))
    assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed")


def test_a_file_that_takes_long_to_look_through_keeps_nobody_else_waiting(house, folder, monkeypatch) -> None:
    (folder / "slow.jsonl").write_bytes(_numbered(3))
    (folder / "other.jsonl").write_bytes(_numbered(5))
    looked, begun, go_on = [], threading.Event(), threading.Event()
    look_through = rows._index

    def slow(file):
        looked.append(os.fstat(file.fileno()).st_ino)
        if looked[-1] == (folder / "slow.jsonl").stat().st_ino:
            begun.set()
            assert go_on.wait(10)
        return look_through(file)

    monkeypatch.setattr(rows, "_index", slow)
    row_files = rows.RowFiles(house.root)

    def total(name: str) -> int:
        return row_files.page(f"{_name(house, folder)}/{name}", 0, 1, "/api").total

    with ThreadPoolExecutor() as pool:
        try:
            waiting = [pool.submit(total, "slow.jsonl") for _ in range(2)]
            assert begun.wait(10)
            assert pool.submit(total, "other.jsonl").result(10) == 5
        finally:
            go_on.set()
        assert [each.result(10) for each in waiting] == [3, 3]
    assert len(looked) == 2  # whoever asks for the same file meanwhile does not look through it again
