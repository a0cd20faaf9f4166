"""Webhooks by the page: added, tried, looked into, sent again, given another secret, removed."""

import json
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import expect
from receiver import Receiver, receiving
from standardwebhooks import Webhook

from jobs.lifecycle import TERMINAL


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def alone(house) -> None:
    """What earlier tests left at work would be told to the webhooks here, too."""
    for job in house.client.jobs():
        if job["status"] not in TERMINAL:
            house.client.cancel(job["job_id"])
            house.end_of(job["job_id"])


def _check_a_dataset(house) -> str:
    return house.run({"kind": "validate", "data_path": "datasets/shared/llava"})["job_id"]


def test_a_webhook_is_added_tried_looked_into_and_removed(house, split, alone, receiver, page, watch) -> None:
    page.goto("/ui/#/jobs")
    page.keyboard.press("6")
    address = page.get_by_label("Address of the receiver")
    address.fill("https://10.0.0.1/")
    watch.expect("422")
    page.get_by_role("button", name="Add the webhook").click()
    expect(page.locator(".error:visible")).to_contain_text("leads to a private or reserved address")
    expect(address).to_be_focused()

    address.fill(receiver.url)
    page.get_by_text("More events").click()
    page.get_by_label("job.started", exact=True).check()
    page.get_by_label("Description").fill("the pager")
    page.get_by_role("button", name="Add the webhook").click()
    shown = page.get_by_label("The new secret")
    secret = shown.locator("code").inner_text()
    assert secret.startswith("whsec_")
    shown.get_by_role("button", name="I have it").click()

    page.get_by_role("button", name="Ping the pager").click()
    expect(page.get_by_role("status")).to_contain_text("answered 204")
    assert [each["type"] for each in receiver.verified(secret)] == ["webhook.ping"]

    job_id = _check_a_dataset(house)
    page.get_by_role("button", name="Deliveries of the pager").click()
    rows = page.locator(".delivery-log tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("job.completed")
    expect(rows.first).to_contain_text("delivered")
    expect(rows.first).to_contain_text(job_id[-6:])
    page.reload()
    expect(rows, "the open log stands in the address").to_have_count(3)
    rows.first.get_by_role("button", name="again").click()
    expect(page.get_by_role("status")).to_contain_text("sent again")

    page.get_by_role("button", name="Disable the pager").click()
    expect(page.locator(".hook .badge").first).to_contain_text("disabled")
    _check_a_dataset(house)
    page.get_by_role("button", name="Enable the pager").click()
    page.get_by_role("button", name="Send the 2 it did not get").click()
    expect(rows).to_have_count(5)
    expect(rows.first).to_contain_text("delivered")
    types = [each["type"] for each in receiver.verified(secret)]
    assert types == ["webhook.ping", "job.started", "job.completed", "job.completed", "job.started", "job.completed"]

    page.get_by_role("button", name="Rotate the secret of the pager").click()
    newer = page.get_by_label("The new secret").locator("code").inner_text()
    assert newer != secret
    page.get_by_role("button", name="Ping the pager").click()
    expect(page.get_by_role("status")).to_contain_text("answered 204")
    headers, body = receiver.got[-1]
    assert [json.loads(body)["type"]] == ["webhook.ping"]
    for each in (secret, newer):
        Webhook(each).verify(body, headers)

    page.get_by_role("button", name="Change", exact=False).first.click()
    expect(page.get_by_role("heading", name="Change the webhook")).to_be_visible()
    expect(address).to_have_value(receiver.url)
    page.get_by_label("Description").fill("the other pager")
    page.get_by_role("button", name="Save the change").click()
    expect(page.get_by_role("heading", name="the other pager")).to_be_visible()

    page.get_by_role("button", name="Delete the other pager").click()
    page.get_by_role("button", name="Delete the webhook").click()
    expect(page.get_by_text("No webhook yet")).to_be_visible()
    assert house.client.get("/api/webhooks") == []


def test_a_receiver_that_is_down_is_seen_with_its_next_try(house, split, alone, receiver, page) -> None:
    receiver.status = 503
    created = house.client.post("/api/webhooks", {"url": receiver.url, "description": "down"})
    try:
        _check_a_dataset(house)
        page.goto(f"/ui/#/webhooks?log={created['webhook_id']}")
        row = page.locator(".delivery-log tbody tr")
        expect(row).to_contain_text("The receiver answered 503.")
        expect(row).to_contain_text("again ")
        expect(page.locator(".hook .badge").first).to_contain_text("failing")
        receiver.status = 200
        row.get_by_role("button").click()
        expect(row).to_contain_text("delivered")
        expect(page.locator(".hook .badge").first).to_contain_text("enabled")
    finally:
        httpx.delete(f"{house.settings.address}/api/webhooks/{created['webhook_id']}").raise_for_status()
