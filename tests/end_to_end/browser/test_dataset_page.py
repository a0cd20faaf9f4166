"""The page of a dataset: its frames with masks and boxes, what leaks, and what a finding leads to."""

import re

import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from gpu_runner.sam2 import masks

_ALPHA = """([tile, points]) => {
  const canvas = document.querySelectorAll(".tile canvas")[tile];
  const context = canvas.getContext("2d");
  const at = (x, y) => context.getImageData(Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1);
  return points.map(([x, y]) => at(x, y).data[3]);
}"""


@pytest.fixture
def rows(house, split) -> list[dict]:
    return house.client.get("/api/data/rows?data_path=shared/llava&limit=5")["rows"]


_PAINTED = "[...document.querySelectorAll('.tile canvas')].filter(canvas => canvas.width > 0).length"


def _opened(page: Page, address: str) -> Page:
    page.goto(address)
    expect(page.locator(".tile").first).to_be_visible()
    page.wait_for_load_state("networkidle")
    _until(page, f"{_PAINTED} > 0")
    return page


def _until(page: Page, is_so: str) -> None:
    """The page's policy forbids the `eval` of Playwright's own waiting."""
    for _ in range(100):
        if page.evaluate(is_so):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never so: {is_so}")


def test_masks_lie_where_they_are_and_go_when_they_are_not_wanted(page, watch, rows) -> None:
    watch.expect("willReadFrequently")  # what the test does, not the page
    _opened(page, "/ui/#/data/shared/llava?hide=boxes,labels")
    for tile, row in enumerate(rows[:3]):
        height, width = row["masks"][0]["size"]
        grid = masks.paint(masks.read_compressed(row["masks"][0]["counts"])).reshape(height, width, order="F")
        inside = [((x + 0.5) / width, (y + 0.5) / height) for y, x in _deep(grid)]
        outside = [((x + 0.5) / width, (y + 0.5) / height) for y, x in _deep(~grid)]
        assert min(page.evaluate(_ALPHA, [tile, inside])) > 0
        assert max(page.evaluate(_ALPHA, [tile, outside])) == 0
    page.get_by_role("button", name="Masks").click()
    assert max(page.evaluate(_ALPHA, [0, inside])) == 0
    assert "hide=masks" in page.url
    page.get_by_role("button", name="Masks").click()
    assert min(page.evaluate(_ALPHA, [2, inside])) > 0


def _deep(grid: np.ndarray) -> list[tuple[int, int]]:
    """Pixels that are far enough from any edge for the scaling not to matter."""
    deep = grid.copy()
    for axis in (0, 1):
        for by in (-3, -2, -1, 1, 2, 3):
            deep &= np.roll(grid, by, axis)
    deep[:3] = deep[-3:] = deep[:, :3] = deep[:, -3:] = False
    found = np.argwhere(deep)
    assert len(found) > 10
    return [(int(y), int(x)) for y, x in found[:: max(1, len(found) // 20)]]


def test_packed_run_lengths_are_read_as_pycocotools_writes_them(page) -> None:
    random = np.random.default_rng(7)
    grids = [random.random(shape) < share for *shape, share in _SHAPES]
    grids += [np.kron(grid[:9, :9], np.ones((90, 70), bool)) for grid in grids[-2:]]  # long runs
    runs = [masks.count_runs(grid.ravel(order="F")) for grid in grids]
    packed = [masks.write_compressed(counts, grid.shape) for counts, grid in zip(runs, grids, strict=True)]
    page.goto("/ui/#/jobs")
    read = page.evaluate(
        "async packed => { const { runsOf } = await import('/ui/rle.js'); return packed.map(runsOf); }", packed
    )
    assert read == [counts.tolist() for counts in runs]


_SHAPES = [(1, 1, 1), (1, 1, 0), (5, 7, 0.5), (64, 48, 0.02), (64, 48, 0.98), (30, 40, 0.5)]


def test_a_frame_is_seen_large_with_its_conversation_and_has_an_address(page, rows) -> None:
    _opened(page, "/ui/#/data/shared/llava")
    page.get_by_role("button", name=re.compile(re.escape(rows[1]["id"]))).first.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(rows[1]["conversations"][1]["value"])
    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_role("heading")).to_have_text(rows[2]["id"])
    assert "frame=2" in page.url
    page.reload()
    expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text(rows[2]["id"])
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page).not_to_have_url(re.compile("frame"))


def test_frames_are_loaded_as_they_are_scrolled_to(page, split) -> None:
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        after = int(re.findall(r"after=(\d+)", route.request.url)[0])
        told = [_row(index) for index in range(after, after + 50)]
        route.fulfill(json={"rows": told, "total": 1000, "next": after + 50})

    page.route("**/api/data/rows?*", answer)
    _opened(page, "/ui/#/data/shared/llava")
    page.wait_for_timeout(300)
    assert len(asked) == 1
    page.locator(".frames-box").evaluate("box => box.scrollTo(0, box.scrollHeight)")
    expect(page.locator(".tile")).to_have_count(100)
    _until(page, f"0 < {_PAINTED} && {_PAINTED} < 70")  # what is out of sight holds no pixels
    expect(page.locator("li.unreadable")).to_have_count(2)
    assert len(asked) == 2


def test_an_answer_that_comes_late_opens_no_frame_and_replaces_no_later_one(page, split) -> None:
    held: dict[int, Route] = {}

    def answer(route: Route) -> None:
        after = int(re.findall(r"after=(\d+)", route.request.url)[0])
        if after < 500:
            route.fulfill(json={"rows": [_row(index) for index in range(50)], "total": 1000, "next": 50})
        else:
            held[after] = route

    def tell(index: int) -> None:
        held[index].fulfill(json={"rows": [_row(index)], "total": 1000, "next": index + 1})
        page.wait_for_timeout(200)

    page.route("**/api/data/rows?*", answer)
    page.goto("/ui/#/data/shared/llava?frame=700")
    heading = page.get_by_role("dialog").get_by_role("heading")
    _asked(page, held, 700)
    tell(700)
    expect(heading).to_have_text("r700")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    _asked(page, held, 702)
    tell(702)
    tell(701)
    expect(heading).to_have_text("r702")
    page.keyboard.press("ArrowRight")
    _asked(page, held, 703)
    page.keyboard.press("Escape")
    tell(703)
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.goto("/ui/#/data/shared/llava?frame=800")
    _asked(page, held, 800)
    page.evaluate("location.hash = '#/jobs'")
    expect(page.locator("#view[data-view=jobs]")).to_be_visible()
    tell(800)
    expect(page.get_by_role("dialog")).to_have_count(0)


def _asked(page: Page, held: dict[int, Route], index: int) -> None:
    for _ in range(100):
        if index in held:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"row {index} was never asked for")


def _row(index: int) -> dict:
    return {
        "index": index, "id": None if index % 50 == 7 else f"r{index}", "image": None, "conversations": [], "boxes": [],
        "masks": [], "labels": [], "object_ids": [], "video_id": "", "frame_index": index, "timestamp_sec": 0,
        "error": "The row cannot be read." if index % 50 == 7 else None,
    }  # fmt: skip


def test_leaks_are_shown_and_mended_and_a_finding_leads_to_its_frame(page, house, split, rows) -> None:
    """What the runner says of leaks is put into the service's answer: this is about the page."""
    near = {"rows": 4, "near": 4, "near_share": 1.0, "distances": {"1": 4, "none": 0}, "look_alikes": 3}
    far = near | {"near": 0, "near_share": 0.0, "distances": {"1": 0, "none": 4}, "look_alikes": 0}
    request = {"kind": "split", "data_path": "datasets/shared/llava", "output_dir": "datasets/shared/mended"}
    repair = {"before": {"val": near}, "after": {"val": far}, "message": "By video, nothing leaks."}
    finding = {"rule": "masks", "severity": "error", "message": "An odd mask.", "count": 1, "remedy": "Mend it."}
    checked = {
        "errors": [finding | {"rows": [rows[3]["id"]]}], "warnings": [], "report_id": "x",
        "statistics": {"objects_histogram": {"edges": [0, 1, 2], "counts": [3, 9]}},
    }  # fmt: skip

    def answer(route: Route) -> None:
        told = route.fetch().json()
        told["divided"] |= {
            "leakage": {"val": near},
            "repair": repair | {"request": request | {"strategy": "temporal", "keep": None}},
        }
        told["checked"] = checked
        told["validation"] = {"result": "failed", "num_errors": 1, "num_warnings": 0, "report_id": "x", "job_id": "x"}
        route.fulfill(json=told)

    page.route("**/api/data/datasets/shared/split", answer)
    _opened(page, "/ui/#/data/shared/split")
    leaks = page.locator("#leaks")
    expect(leaks).to_contain_text("4 of 4 frames (100.0 %) lie within two frames")
    expect(leaks).to_contain_text("3 frames look like a training picture.")
    expect(leaks.get_by_role("row").last).to_have_text(re.compile(r"val\s*100.0 %\s*0.0 %\s*3\s*0"))
    expect(page.get_by_role("img", name=re.compile("Objects in a frame: 12 values"))).to_be_visible()
    page.get_by_text("1 row", exact=True).click()
    page.get_by_role("button", name=rows[3]["id"], exact=True).click()
    expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text(rows[3]["id"])
    page.keyboard.press("Escape")
    leaks.get_by_role("button", name="Divide it so").click()
    page.get_by_role("dialog").get_by_role("button", name="Divide it so").click()
    expect(page.get_by_role("status").filter(has_text="rows divided (temporal)")).to_be_visible()
    assert house.client.get("/api/data/datasets/shared/mended")["split"]["strategy"] == "temporal"
    page.unroute_all(behavior="ignoreErrors")  # the page may be looking again


def test_the_export_of_a_dataset_that_grows_keeps_its_rows_and_parts(page, watch, house, split) -> None:
    watch.expect("422")
    asked: list[dict] = []

    def answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        route.fulfill(status=422, json={"code": "x", "message": "Not today."})

    page.goto("/ui/#/data/shared/llava")
    page.get_by_role("link", name="Add an export to it").click()
    expect(page.locator(".prepare")).to_contain_text("The export is added to shared/llava")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    page.goto(f"{page.url}&upload=uploads%2Fx%2Fy.zip&output_dir=shared%2Fllava")
    page.route("**/api/jobs", answer)
    page.get_by_role("button", name="Prepare", exact=True).click()
    expect(page.locator(".prepare")).to_contain_text("Not today.")
    (spec,) = asked
    assert spec["add_to"] == "datasets/shared/llava"
    newest = house.client.get("/api/data/datasets/shared/llava")["splits"][0]
    assert spec["keep"] == spec["split_dir"] == f"datasets/{newest}"
    assert spec["output_dir"] == "shared/llava"
