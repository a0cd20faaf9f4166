"""The page of a waiting training says its turn, why and until when it waits; pausing what runs lets it begin."""

import re
from typing import Any

from playwright.sync_api import Page, expect


def test_a_waiting_training_tells_its_turn_and_starts_when_the_running_one_is_paused(
    house: Any, config: dict[str, Any], page: Page
) -> None:
    def start(name: str) -> str:
        spec = {
            "kind": "finetune",
            "config": config | {"num_epochs": 100, "max_steps": 4000, "device": "cpu"},
            "experiment_name": name,
        }
        return str(house.client.submit(spec))

    runs, waits = start("runs"), start("waits")
    status = page.locator(".job-head .badge")
    page.goto(f"/ui/#/job/{runs}")
    expect(status).to_have_text(re.compile("running"))
    expect(page.get_by_text(re.compile("step [1-9][0-9,]* of [0-9,]+ · .* left"))).to_be_visible()

    page.goto(f"/ui/#/job/{waits}")
    said = page.locator(".callout").filter(has_text="It waits")
    expect(said).to_contain_text("place 1 in the queue")
    expect(said).to_contain_text(re.compile("cpu of|Every place"))
    expect(said).to_contain_text("likely to start in")

    page.goto(f"/ui/#/job/{runs}")
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(status).to_have_text(re.compile("paused"))
    page.get_by_role("button", name="Resume", exact=True).click()
    expect(page.locator(".callout").filter(has_text="It waits")).to_contain_text("place 1 in the queue")

    page.goto(f"/ui/#/job/{waits}")
    expect(status).to_have_text(re.compile("running"))
    for job_id in (runs, waits):
        house.client.cancel(job_id)
