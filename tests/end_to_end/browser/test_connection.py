"""What people see when the service goes away and comes back, and where it wants its token."""

import json
import os
import signal

import pytest
from playwright.sync_api import expect

from jobs.settings import Settings
from service.programs import Programs, free_port

TOKEN = "a token of more than thirty-two characters"
_AWAY = ("WebSocket connection to", "ERR_CONNECTION_REFUSED")


def service_of(house) -> int:
    """The process of the service."""
    return next(pid for pid, command in house.processes().items() if "service.serve" in command)


def test_a_restart_of_the_service_shows_and_costs_no_point(house, config, page, watch, plot_of) -> None:
    for words in _AWAY:
        watch.expect(words)
    job_id = house.client.submit({"kind": "finetune", "config": config | {"max_steps": 30, "logging_steps": 1}})
    page.goto(f"/ui/#/job/{job_id}")
    plot_of(page).grows(beyond=5)
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    os.kill(service_of(house), signal.SIGKILL)
    expect(page.locator("#banner")).to_be_visible()
    expect(page.locator("#connection")).to_have_attribute("data-state", "reconnecting")
    house.programs.wait_until_ready()
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.get_by_role("status").filter(has_text="Nothing was missed")).to_be_visible()
    assert house.end_of(job_id)["status"] == "completed"
    expect(page.locator("main")).to_contain_text("completed")
    plot_of(page).has_every_point_of(job_id)


def test_a_snapshot_that_fails_says_why_and_is_tried_again_on_the_same_connection(house, config, page, watch) -> None:
    watch.expect("503")
    job_id = house.run({"kind": "finetune", "config": config})["job_id"]
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    refusal = {"code": "busy", "message": "The store is being upgraded."}
    page.route("**/api/experiments/*/metrics", lambda route: route.fulfill(status=503, json=refusal))
    page.goto(f"/ui/#/job/{job_id}")
    expect(page.locator("#banner")).to_contain_text("The store is being upgraded. Trying again")
    expect(page.locator("#connection")).to_have_attribute("data-state", "failing")
    page.unroute("**/api/experiments/*/metrics")
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    assert len(sockets) == 1


def test_what_is_heard_before_the_first_snapshot_is_left_to_the_snapshot(house, config, page, watch) -> None:
    job_id = house.run({"kind": "finetune", "config": config})["job_id"]
    early: list[str] = []

    def between(page_side) -> None:
        service_side = page_side.connect_to_server()

        def pass_on(message: str) -> None:
            frame = json.loads(message)
            if frame["frame"] == "bookmark" and not early:
                event = {"type": "job.progressed", "job_id": job_id, "attempt": 1, "step": 1, "total_steps": 12}
                told = {"frame": "events", "events": [{"event": event}], "from_seq": 0, "to_seq": frame["seq"]}
                early.append(frame["sub"])
                page_side.send(json.dumps(told | {"sub": frame["sub"]}))
            page_side.send(message)

        service_side.on_message(pass_on)

    page.route_web_socket("**/api/ws", between)
    page.goto(f"/ui/#/job/{job_id}")
    expect(page.locator("main")).to_contain_text("completed")
    assert early


@pytest.fixture
def locked(tmp_path):
    """Programs that want a token."""
    settings = Settings(data_root=str(tmp_path / "data"), port=free_port("127.0.0.1"), token=TOKEN)
    with Programs(settings, log_folder=tmp_path / "logs") as programs:
        programs.wait_until_ready()
        yield programs


def test_with_a_token_the_page_asks_once_and_then_keeps_a_session(locked, chromium, watch) -> None:
    watch.origin = locked.settings.address
    watch.expect("401")
    watch.expect("WebSocket connection to")
    context = chromium.new_context(base_url=locked.settings.address)
    page = watch.page(context.new_page())
    page.goto("/ui/#/jobs")
    page.get_by_role("textbox", name="Token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("dialog .error")).to_have_text("That is not the token.")
    expect(page.locator("dialog").get_by_role("status")).to_have_text("That is not the token.")  # read out, too
    page.get_by_role("textbox", name="Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="No job yet")).to_be_visible()
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    page.reload()
    expect(page.get_by_role("heading", name="No job yet")).to_be_visible()
    expect(page.get_by_role("textbox", name="Token")).to_have_count(0)
    assert TOKEN not in page.evaluate("document.cookie + JSON.stringify(localStorage)")
    context.close()
