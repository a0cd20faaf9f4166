"""The new-training form says what a run would take, and changes what does not fit."""

import json
import re
from typing import Any

from playwright.sync_api import Page, Route, expect


def test_the_form_shows_what_it_takes_and_a_change_is_applied_with_one_press(
    house: Any, config: dict[str, Any], page: Page
) -> None:
    page.goto("/ui/#/train?preset=demo")
    plan = page.get_by_role("region", name="Will it fit?")
    plan.get_by_role("button", name="Plan it").click()
    expect(plan.get_by_role("img", name=re.compile("Memory: .*weights"))).to_be_visible()
    expect(plan.get_by_text("✓ fits")).to_be_visible()
    expect(plan.get_by_text(re.compile("1,219,456 parameters"))).to_be_visible()
    assert house.client.get("/api/jobs?kind=plan")["jobs"][0]["status"] == "completed"

    page.route("**/api/train/plan", too_large)
    plan.get_by_role("button", name="Plan it").click()
    expect(plan.get_by_text("✕ does not fit")).to_be_visible()
    stale = plan.get_by_text("The settings have changed since")
    expect(stale).to_be_hidden()
    plan.get_by_role("button", name="Apply batch_size 8").click()
    expect(page.get_by_label("Batch size", exact=True)).to_have_value("8")
    expect(page.get_by_label("Accumulation", exact=True)).to_have_value("2")
    expect(page).to_have_url(re.compile("batch_size=8"))
    expect(stale).to_be_visible()


def too_large(route: Route) -> None:
    """The service's answer, as if the device were too small."""
    answer = route.fetch()
    plan = answer.json()
    device = plan["devices"][0]
    plan["devices"] = [device | {"fits": False, "total_bytes": 2**28}]
    smaller = {"batch_size": 8, "gradient_accumulation_steps": 2}
    plan["changes"] = [
        {
            "title": "batch_size 8",
            "cost": "none",
            "config": smaller,
            "expected_bytes": 2**27,
            "high_bytes": 2**28,
            "fits": [f"{device['device_id']} of {device['runner_id']}"],
        }
    ]
    route.fulfill(response=answer, body=json.dumps(plan))
