"""Every page as people meet it: readable, usable by keyboard, on a phone, in the dark, without the plotting library."""

import re
from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import Page, Route, expect

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
PAGES = ("jobs", "job", "train", "data", "dataset", "parts", "experiments", "compare", "exports", "webhooks")
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="package")
def addresses(house, config) -> dict[str, str]:
    """The address of each page, with work to show on it."""
    ids = [
        house.run({"kind": "finetune", "config": config | {"learning_rate": rate}, "experiment_name": f"rate {rate}"})
        for rate in (1e-3, 1e-4)
    ]
    first, second = (job["job_id"] for job in ids)
    house.run({"kind": "validate", "data_path": "datasets/shared/llava"})
    house.run({"kind": "export", "job_id": first, "export_format": "lora_adapter"})
    return {
        "jobs": "/ui/#/jobs",
        "job": f"/ui/#/job/{first}",
        "train": "/ui/#/train?preset=demo",
        "data": "/ui/#/data",
        "dataset": "/ui/#/data/shared/llava",
        "parts": "/ui/#/data/shared/split",
        "experiments": "/ui/#/experiments",
        "compare": f"/ui/#/compare?ids={first},{second}",
        "exports": f"/ui/#/exports?job={first}",
        "webhooks": "/ui/#/webhooks",
    }


def settled(page: Page) -> Page:
    """The page once it shows what it loaded."""
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page.locator(".loading:visible")).to_have_count(0)
    page.wait_for_load_state("networkidle")
    return page


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_axe_finds_nothing_serious(addresses, open_context, watch, scheme, width) -> None:
    page = watch.page(open_context(color_scheme=scheme, viewport={"width": width, "height": 844}).new_page())
    for name in PAGES:
        page.goto(addresses[name])
        settled(page)
        page.evaluate(AXE)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [
            (each["id"], [node["html"] for node in each["nodes"]]) for each in found if each["impact"] in SERIOUS
        ]
        assert not serious, f"{name}, {scheme}, {width} px: {serious}"


def test_on_a_phone_nothing_sticks_out(addresses, open_context, watch) -> None:
    page = watch.page(open_context(viewport={"width": 390, "height": 844}).new_page())
    for name in PAGES:
        page.goto(addresses[name])
        settled(page)
        width = page.evaluate("document.scrollingElement.scrollWidth")
        assert width <= 390, f"{name} is {width} px wide"


def test_a_log_that_is_closed_and_opened_while_it_is_read_has_each_line_once(addresses, page) -> None:
    def answer(route: Route) -> None:
        page.wait_for_timeout(200)
        piece = "" if "offset=4" in route.request.url else "one\n"
        route.fulfill(body=piece, headers={"x-log-attempt": "1", "x-log-offset": "4"})

    page.goto(addresses["job"])
    summary = settled(page).locator("#log > summary")
    page.route("**/log*", answer)
    for _ in range(3):
        summary.click()
    page.wait_for_timeout(1000)
    assert page.get_by_role("region", name="Log").inner_text() == "one\n"


def test_training_again_survives_another_preset_and_a_reload(addresses, page) -> None:
    training = addresses["job"].rsplit("/", 1)[1]
    page.goto(f"/ui/#/train?from={training}")
    path = page.locator('[name="train_data_path"]')
    learnt_from = settled(page) and path.input_value()
    for preset, rate in (("Demo", "0.001"), ("Quick test", "0.0001"), ("Again: rate 0.001", "0.001")):
        page.get_by_role("radio", name=preset).check()
        expect(page.get_by_label("Learning rate")).to_have_value(rate)
        page.reload()
        settled(page)
        expect(page.get_by_label("Learning rate")).to_have_value(rate)
        expect(path).to_have_value(learnt_from)
        page.goto(f"/ui/#/train?from={training}")
        settled(page)
    page.get_by_role("radio", name="Demo").check()
    page.get_by_role("radio", name="Again").check()
    expect(page).to_have_url(re.compile(f"from={training}"))


def test_every_page_has_its_address_and_survives_a_reload(addresses, page) -> None:
    for name in PAGES:
        page.goto(addresses[name])
        heading = settled(page).get_by_role("heading", level=1).inner_text()
        page.reload()
        assert settled(page).get_by_role("heading", level=1).inner_text() == heading


def test_the_keyboard_goes_through_the_pages_and_the_list(addresses, page) -> None:
    page.goto("/ui/#/exports")
    settled(page)
    page.keyboard.press("1")
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    expect(page.locator(".row").first).to_be_visible()
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("rate 0.0001")
    expect(page.locator(".row")).to_have_count(1)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    expect(page.locator(".row").first.get_by_role("link")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("rate 0.0001")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Curves: log scale")


def test_the_theme_is_the_systems_until_one_is_chosen(page) -> None:
    page.goto("/ui/#/jobs")
    settled(page)
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    assert dark != light
    page.get_by_role("button", name="Theme: system").click()
    assert page.evaluate(background) == light
    page.reload()
    settled(page)
    assert page.evaluate(background) == light


@pytest.mark.parametrize("address", ["/ui/#/data/100%", "/ui/#/nowhere", "/ui/#/constructor"])
def test_an_address_of_no_page_says_so(page, address) -> None:
    page.goto(address)
    expect(page.get_by_role("heading", level=1)).to_have_text("There is no such page")


def test_a_new_page_takes_the_focus_and_closes_the_dialogs_of_the_old_one(addresses, page) -> None:
    page.goto("/ui/#/exports")
    settled(page).keyboard.press("?")
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    page.evaluate("location.hash = '#/jobs'")
    expect(page.get_by_role("main", name="Jobs")).to_be_focused()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_row_keeps_the_focus_while_jobs_come_and_x_asks_before_it_cancels(addresses, house, config, page) -> None:
    page.goto("/ui/#/jobs")
    settled(page).keyboard.press("j")
    focused = page.locator(".row").first.get_by_role("link")
    text = focused.inner_text()
    job_id = house.client.submit(
        {"kind": "finetune", "config": config | {"max_steps": 4000}, "experiment_name": "late"}
    )
    expect(page.locator(".row").first).to_contain_text("late")
    expect(page.get_by_role("link", name=text, exact=True).first).to_be_visible()
    assert page.evaluate("document.activeElement.textContent") == text
    page.keyboard.press("k")
    page.keyboard.press("x")
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator(f'[data-id="{job_id}"]')).to_contain_text("cancelled")
    assert page.evaluate("document.activeElement.textContent") == "late"


def test_filters_are_in_the_address(addresses, page) -> None:
    page.goto("/ui/#/jobs?status=completed&kind=validate")
    expect(settled(page).locator(".row")).to_have_count(1)
    page.get_by_label("Kind").select_option("finetune")
    expect(page.locator(".row").filter(has_text="rate 0.00")).to_have_count(2)
    expect(page.locator(".row").filter(has_text="Validation")).to_have_count(0)
    assert "kind=finetune" in page.url


def test_without_the_plotting_library_the_page_draws_plain_curves(addresses, page, watch) -> None:
    watch.expect("404")
    page.route("**/vendor/**", lambda route: route.fulfill(status=404))
    page.goto(addresses["job"])
    chart = page.locator('line-chart[label="Loss"]')
    expect(chart.locator("svg path, svg polyline").first).to_be_visible()
    chart.get_by_text("Values as a table").click()
    expect(chart.get_by_role("table")).to_contain_text("12")


_DIVERGED = """async () => {
  await import("/ui/elements/line-chart.js");
  const chart = document.createElement("line-chart");
  chart.setAttribute("label", "Diverged");
  document.querySelector("main").prepend(chart);
  const line = { key: "loss", label: "loss", tone: 0, x: [1, 2, 3], y: [3, 2, 1], notFinite: [4, 5] };
  const painted = new Promise(resolve => chart.addEventListener("painted", resolve, { once: true }));
  chart.show({ x: "step", lines: [line] });
  await painted;
}"""


def test_a_value_that_is_no_number_is_said_in_the_plot(page) -> None:
    page.goto("/ui/#/jobs")
    settled(page)
    page.evaluate(_DIVERGED)
    expect(page.locator('line-chart[label="Diverged"]')).to_contain_text("not finite")


_REDUCED = """async () => {
  const { tableOf } = await import("/ui/elements/downsample.js");
  const x = Array.from({ length: 20000 }, (_, step) => step);
  const y = x.map(step => Math.sin(step / 50));
  y[7777] = 99; y[12345] = -99;
  const reduce = () => tableOf([{ x, y }], { from: 0, to: 19999, width: 600 });
  const { ys } = reduce();
  const values = ys[0].filter(value => value !== null);
  return { points: values.length, highest: Math.max(...values), lowest: Math.min(...values),
           again: JSON.stringify(reduce()) === JSON.stringify(reduce()) };
}"""


def test_a_long_curve_is_reduced_and_keeps_its_extremes(page) -> None:
    page.goto("/ui/#/jobs")
    settled(page)
    reduced = page.evaluate(_REDUCED)
    assert 500 < reduced["points"] < 3000
    assert (reduced["highest"], reduced["lowest"], reduced["again"]) == (99, -99, True)
