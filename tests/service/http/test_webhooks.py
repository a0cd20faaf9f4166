"""Webhooks over HTTP: what is answered, what is shown once, what is refused; and a receiver that gets real events."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hostile_urls import FORMS, METADATA, PRIVATE
from receiver import Receiver, receiving
from standardwebhooks import Webhook, WebhookVerificationError
from waiting import until

from service.notify import registry

LISTED = ("127.0.0.0/8",)
HOSTILE = [url for url in (*METADATA, *PRIVATE) if ".example" not in url]
HOSTILE += [url for url in FORMS if url != "http://public.example/"]  # without those for which DNS must be asked


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def listed(tmp_path_factory, house):
    settings = msgspec.structs.replace(
        house.settings, data_root=str(tmp_path_factory.mktemp("told")), outgoing_networks=LISTED
    )
    with type(house)(settings) as running:
        yield running


@pytest.fixture
def told(listed):
    """A service that may call loopback, and has no webhook yet."""
    yield listed
    for webhook in listed.http.get("/api/webhooks").json():
        listed.http.delete(f"/api/webhooks/{webhook['webhook_id']}")


@pytest.fixture
def start(told):
    """Starts a training, waits for its end, and gives its id."""
    return lambda: _train(told)


def _train(house):
    folder = house.root.datasets / "made"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("{}\n")
    config = {"model_name": "demo-llava", "train_data_path": "datasets/made/train.jsonl"}
    answer = house.http.post("/api/train/start", json={"config": config})
    assert answer.status_code == 200, answer.text
    return house.wait_for(answer.json()["job_id"], lambda job: job.has_ended).job_id


def _create(house, receiver, **changes):
    answer = house.http.post("/api/webhooks", json={"url": receiver.url} | changes)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_training_that_ends_is_told_signed_and_is_in_the_log(told, receiver, start) -> None:
    created = _create(told, receiver, description="the pager")
    job_id = start()
    ((headers, body),) = receiver.wait(1)
    said = Webhook(created["secret"]).verify(body, headers)
    assert (said["type"], said["data"]["job_id"]) == ("job.completed", job_id)
    events = told.http.get(f"/api/jobs/{job_id}/events?types=job.completed").json()["events"]
    assert events == [{"seq": said["seq"], "event": said["data"]}]
    address = f"/api/webhooks/{created['webhook_id']}"
    until(lambda: told.http.get(address).json()["delivered"])
    for prefix in ("", "/training"):
        (row,) = told.http.get(f"{address}/deliveries".replace("/api", f"/api{prefix}", 1)).json()["deliveries"]
        assert (row["state"], row["status"], row["job_id"], row["tries"]) == ("delivered", 204, job_id, 1)
        assert row["message_id"] == headers["webhook-id"]
    answer = told.http.get(address).json()
    assert (answer["delivered"], answer["pending"], answer["description"]) == (1, 0, "the pager")
    assert answer["types"] == ["job.completed", "job.failed", "job.cancelled"]


def test_the_secret_is_shown_once_and_once_more_for_each_rotation(told, receiver) -> None:
    created = _create(told, receiver)
    address = f"/api/webhooks/{created['webhook_id']}"
    rotated = told.http.post(f"{address}/rotate", headers={"content-type": "application/json"})
    assert rotated.status_code == 200
    assert rotated.headers["cache-control"] == "no-store"
    secrets = (created["secret"], rotated.json()["secret"])
    assert secrets[0] != secrets[1]
    for path in ("/api/webhooks", address, f"{address}/deliveries"):
        text = told.http.get(path).text
        assert not any(secret in text for secret in secrets), path
    assert told.http.get(address).json()["previous_secret_until"] == rotated.json()["previous_until"]
    assert told.http.post(f"{address}/ping").json()["success"] is True
    ((headers, body),) = receiver.wait(1)
    for secret in secrets:
        assert Webhook(secret).verify(body, headers)["type"] == "webhook.ping"
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "A" * 44).verify(body, headers)


def test_a_ping_says_how_it_went_and_nothing_of_what_was_answered(told, receiver) -> None:
    webhook_id = _create(told, receiver)["webhook_id"]
    receiver.status = 500
    answer = told.http.post(f"/api/webhooks/{webhook_id}/ping")
    assert answer.json()["success"] is False
    assert (answer.json()["status"], answer.json()["error"]) == (500, "The receiver answered 500.")
    log = told.http.get(f"/api/webhooks/{webhook_id}/deliveries")
    assert "canary" not in answer.text + log.text
    assert [row["type"] for row in log.json()["deliveries"]] == ["webhook.ping"]


def test_what_was_answered_to_an_event_is_in_the_log_and_it_can_be_sent_again(told, receiver, start) -> None:
    webhook_id = _create(told, receiver)["webhook_id"]
    receiver.status = 503
    start()
    receiver.wait(1)
    address = f"/api/webhooks/{webhook_id}/deliveries"
    (row,) = until(lambda: [row for row in told.http.get(address).json()["deliveries"] if row["error"]])
    assert (row["state"], row["status"], row["response"]) == ("pending", 503, "canary")
    assert row["next_try_at"] > row["attempted_at"]
    receiver.status = 200
    again = told.http.post(f"{address}/{row['delivery_id']}/redeliver")
    assert (again.status_code, again.json()["tries"]) == (200, 0)
    receiver.wait(1)
    assert receiver.got[0][0]["webhook-id"] == receiver.got[1][0]["webhook-id"]
    assert told.http.post(f"{address}/999/redeliver").json()["code"] == "delivery_not_found"


def test_what_happened_while_it_was_off_or_before_it_was_made_is_replayed(told, receiver, start) -> None:
    before = told.run(told.app.state.store.head_seq())
    first = start()
    webhook_id = _create(told, receiver)["webhook_id"]
    address = f"/api/webhooks/{webhook_id}"
    assert told.http.patch(address, json={"enabled": False}).json()["enabled"] is False
    second = start()
    answer = told.http.get(address).json()
    assert answer["held"] == 1
    refused = told.http.post(f"{address}/replay", json={"undelivered_only": True})
    assert (refused.status_code, refused.json()["code"]) == (400, "wrong_state")
    assert told.http.patch(address, json={"enabled": True}).json()["disabled_at"] is None
    wish = {"after": answer["undelivered_after"], "undelivered_only": True}
    assert told.http.post(f"{address}/replay", json=wish).json()["count"] == 1
    receiver.wait(1)
    assert told.http.post(f"{address}/replay", json={"after": before}).json()["count"] == 2
    receiver.wait(2)
    jobs = [json.loads(body)["data"]["job_id"] for _, body in receiver.got]
    assert jobs == [second, first, second]
    assert told.http.post(f"{address}/replay", json={"after": 10**6}).json()["errors"][0]["path"] == "after"


def test_a_webhook_is_changed_field_by_field_and_removed(told, receiver) -> None:
    created = _create(told, receiver, tag="birds")
    address = f"/api/webhooks/{created['webhook_id']}"
    changed = told.http.patch(address, json={"types": ["job.started"]}).json()
    assert (changed["types"], changed["tag"], changed["url"]) == (["job.started"], "birds", receiver.url)
    assert told.http.patch(address, json={"tag": ""}).json()["tag"] is None
    assert [row["webhook_id"] for row in told.http.get("/api/webhooks").json()] == [created["webhook_id"]]
    assert told.http.delete(address).json()["success"] is True
    for method, path, body in (
        ("GET", "", None), ("PATCH", "", {}), ("DELETE", "", None), ("POST", "/ping", None), ("POST", "/rotate", None),
        ("GET", "/deliveries", None), ("POST", "/replay", {}), ("POST", "/deliveries/1/redeliver", None),
    ):  # fmt: skip
        answer = told.http.request(method, address + path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "webhook_not_found"), (method, path)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "url"), ({"url": 5}, "url"), ({"url": ""}, "url"), ({"types": []}, "types"),
        ({"types": ["x"]}, "types[0]"), ({"types": ["job.started", "job.progressed"]}, "types[1]"),
        ({"tag": ""}, "tag"), ({"secret": "whsec_x"}, "secret"), ({"enabled": False}, "enabled"),
        ({"description": "a" * 201}, "description"), ({"format": "cloudevents"}, "format"),
    ],
)  # fmt: skip
def test_a_request_that_does_not_fit_is_told_where(http, body, path) -> None:
    answer = http.post("/api/webhooks", json=body if body == {} else {"url": "https://127.0.0.1/"} | body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == path


def test_a_hostile_url_is_refused_at_registration_and_at_a_change(http) -> None:
    for url in HOSTILE:
        answer = http.post("/api/webhooks", json={"url": url})
        assert answer.status_code in (400, 422), url  # 400: NUL is refused before any route
        assert answer.json()["code"] in ("address_not_allowed", "validation_error"), url
    assert http.get("/api/webhooks").json() == []


def test_a_network_that_is_listed_opens_no_other(told, receiver) -> None:
    created = _create(told, receiver)
    for url in [*METADATA[:12], "https://10.0.0.1/", "https://[::1]/", "http://127.0.0.1:6379/"]:
        for method, path in (("POST", "/api/webhooks"), ("PATCH", f"/api/webhooks/{created['webhook_id']}")):
            answer = told.http.request(method, path, json={"url": url})
            assert (answer.status_code, answer.json()["code"]) == (422, "address_not_allowed"), url
    assert told.http.get("/api/webhooks").json()[0]["url"] == receiver.url
    assert receiver.got == []


def test_webhooks_outlive_a_restart_with_what_they_wait_for(build, receiver) -> None:
    house = build(outgoing_networks=LISTED)
    created = _create(house, receiver)
    receiver.status = 500
    _train(house)
    receiver.wait(1)
    house.stop()
    receiver.status = 204
    again = build(outgoing_networks=LISTED, with_runner=False)
    (row,) = again.http.get("/api/webhooks").json()
    assert row["webhook_id"] == created["webhook_id"]
    receiver.wait(1)  # five seconds after the first try
    Webhook(created["secret"]).verify(receiver.got[1][1], receiver.got[1][0])


def test_the_pages_form_offers_every_event_there_is() -> None:
    script = (Path(__file__).parents[3] / "static" / "parts" / "webhook-form.js").read_text()
    offered = re.findall(r'"([a-z_]+\.[a-z_]+)"', script.partition("EVENTS = {")[2].partition("};")[0])
    assert sorted(offered) == sorted(registry.TYPES)
