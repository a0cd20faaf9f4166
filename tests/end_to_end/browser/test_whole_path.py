"""What a person does with the page, from an export on their disk to a model on their disk."""

import re
import zipfile

from playwright.sync_api import Page, expect

LLAVA = "llava-hf/llava-1.5-7b-hf"


def job_of(page: Page) -> str:
    return re.findall(r"#/job/(\w+)", page.url)[0]


def test_from_an_export_to_a_downloaded_model(page, house, sample_zip, tmp_path, plot_of) -> None:
    dataset = prepare(page, sample_zip)
    first = train(page, dataset, "first by hand", steps=24)
    watch_it_grow(page, plot_of(page), first)
    second = train(page, dataset, "cancelled by hand", steps=4000)
    cancel(page, house, plot_of(page), second)
    third = train(page, dataset, "second by hand", steps=8)
    compare(page, house, first, third)
    export_and_download(page, first, tmp_path)


def prepare(page: Page, archive) -> str:
    page.goto("/ui/#/data")
    expect(page.locator("#export-file")).to_be_enabled()
    page.locator("#export-file").set_input_files(archive)
    page.get_by_label("Name", exact=True).fill("by-hand")
    model = page.get_by_label("Model to train", exact=True)
    offered = page.locator(f'datalist[id="{model.get_attribute("list")}"] option')
    assert LLAVA in offered.evaluate_all("all => all.map(({ value }) => value)")
    model.fill(LLAVA)  # not the one that a training begins with
    page.get_by_role("button", name="Prepare", exact=True).click()
    expect(page.locator(".prepare")).to_contain_text("is ready.", timeout=90_000)
    for step in ("upload", "reading", "converting", "checking", "writing"):
        expect(page.locator(f'[data-step="{step}"]')).to_have_attribute("data-status", "completed")
    page.reload()  # the flow is in the address
    expect(page.locator(".prepare")).to_contain_text(f"{LLAVA} (LLaVA 1.5)")
    page.get_by_role("link", name="Start a training with it").click()
    expect(page.get_by_label("Model", exact=True)).to_have_value(LLAVA)
    return "by-hand-split"


def train(page: Page, dataset: str, name: str, steps: int) -> str:
    """Fill the form; the id of the training."""
    page.goto(f"/ui/#/train?preset=demo&data={dataset}")
    page.get_by_label("Name", exact=True).fill(name)
    for label, value in (("Report every", 1), ("Evaluate every", 8), ("Save every", 8), ("Batch size", 2)):
        page.get_by_label(label, exact=True).fill(str(value))
    schedule = page.locator(".card").filter(has=page.get_by_role("heading", name="Schedule"))
    schedule.get_by_text("More settings").click()
    page.get_by_label("Step limit", exact=True).fill(str(steps))
    page.get_by_label("Epochs", exact=True).fill("100")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/ui/#/job/*")
    expect(page.get_by_role("heading", level=1)).to_contain_text(name)
    return job_of(page)


def watch_it_grow(page: Page, plot, job_id: str) -> None:
    plot.grows(beyond=plot.grows(beyond=2))
    expect(page.locator("main")).to_contain_text("completed")
    plot.has_every_point_of(job_id)
    page.reload()
    plot.has_every_point_of(job_id)


def cancel(page: Page, house, plot, job_id: str) -> None:
    plot.grows(beyond=1)
    page.get_by_role("button", name="Cancel").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.locator("main")).to_contain_text("cancelled")
    assert house.end_of(job_id)["status"] == "cancelled"


def compare(page: Page, house, first: str, third: str) -> None:
    assert house.end_of(third)["status"] == "completed"
    page.goto("/ui/#/experiments")
    for name in ("first by hand", "second by hand"):
        page.get_by_role("checkbox", name=f"Compare {name}").check()
    page.get_by_role("button", name="Compare 2 experiments").or_(
        page.get_by_role("link", name="Compare 2 experiments")
    ).click()
    page.wait_for_url("**/ui/#/compare?ids=*")
    assert {first, third} == set(re.findall(r"job_\w+", page.url))
    expect(page.get_by_text(re.compile("is best by eval loss"))).to_be_visible()
    expect(page.locator("line-chart")).to_have_attribute("data-points", re.compile(r"[1-9]"))
    settings = page.locator(".card").filter(has=page.get_by_role("heading", name="Settings"))
    expect(settings).to_contain_text("max steps")


def export_and_download(page: Page, job_id: str, folder) -> None:
    page.goto(f"/ui/#/exports?job={job_id}")
    page.get_by_role("button", name="Make the export").click()
    link = page.get_by_role("link", name=re.compile("Download")).first
    with page.expect_download() as downloading:
        link.click()
    downloading.value.save_as(folder / "model.zip")
    with zipfile.ZipFile(folder / "model.zip") as archive:
        names = archive.namelist()
    assert any(name.endswith("model.safetensors") for name in names), names
    assert any(name.endswith("README.md") for name in names), names


def test_a_second_device_sees_the_same_curve(page, open_context, watch, house, config, plot_of) -> None:
    spec = {"kind": "finetune", "config": config | {"logging_steps": 1, "max_steps": 20}, "experiment_name": "watched"}
    job_id = house.client.submit(spec)
    page.goto(f"/ui/#/job/{job_id}")
    plot_of(page).grows(beyond=3)
    other = watch.page(open_context(viewport={"width": 390, "height": 844}).new_page())
    other.goto(f"/ui/#/job/{job_id}")
    assert house.end_of(job_id)["status"] == "completed"
    for each in (page, other):
        plot_of(each).has_every_point_of(job_id)
    page.reload()
    plot_of(page).has_every_point_of(job_id)
