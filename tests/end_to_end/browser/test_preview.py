"""What a training learns is marked on the page before it is started."""

from playwright.sync_api import Page, expect


def test_what_is_trained_is_marked_and_the_question_is_not(page: Page, house, config) -> None:
    page.goto(f"/ui/#/train?preset=demo&train_data_path={config['train_data_path']}")
    page.get_by_role("button", name="Show what is trained").click()
    row = page.locator(".previews li").first
    expect(row.locator("mark.trained")).to_contain_text("<|im_end|>")
    expect(row.locator("mark.trained")).not_to_contain_text("user")
    expect(row.locator(".pieces")).to_contain_text("user")
    expect(row.locator(".image-piece")).to_contain_text("64 image tokens")
    expect(row.locator("img")).to_have_js_property("complete", True)
    assert row.locator("img").evaluate("image => image.naturalWidth") > 0


def test_the_page_of_a_preview_job_shows_the_same(page: Page, house, config) -> None:
    job = house.run({"kind": "preview", "config": config})
    page.goto(f"/ui/#/job/{job['job_id']}")
    expect(page.locator(".previews mark.trained").first).to_contain_text("<|im_end|>")
