"""Webhooks by the verbs of both clients and by the terminal's commands, against a service that may call loopback."""

import asyncio
import json
import re
from collections.abc import Iterator

import msgspec
import pytest
from receiver import Receiver, receiving
from waiting import until

from jobs.async_client import AsyncClient
from jobs.client import Client
from jobs.errors import RemoteProblem

NOBODY = "hook_00000000000000000000"


@pytest.fixture(scope="module")
def house(tmp_path_factory, house):
    settings = msgspec.structs.replace(
        house.settings, data_root=str(tmp_path_factory.mktemp("told")), outgoing_networks=("127.0.0.0/8",)
    )
    with type(house)(settings) as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def _tidy(house):
    yield
    for webhook in house.http.get("/api/webhooks").json():
        house.http.delete(f"/api/webhooks/{webhook['webhook_id']}")


@pytest.fixture(params=[Client, AsyncClient])
def ask(request, house):
    """Has a verb of the one client done, in another run of the other; its answer."""
    client = request.param(f"http://{house.address}")
    with asyncio.Runner() as runner:

        def do(verb: str, *arguments, **options):
            answer = getattr(client, verb)(*arguments, **options)
            return runner.run(answer) if asyncio.iscoroutine(answer) else answer

        yield do
        do("close")


def _ids(text: str) -> list[str]:
    """The first word of each of a table's rows."""
    return [line.split()[0] for line in text.splitlines()[1:]]


# -- the verbs


def test_a_webhook_is_made_tried_replayed_and_removed_by_the_verbs_of_both_clients(ask, receiver, trained) -> None:
    made = ask("create_webhook", receiver.url, ["job.completed", "job.started"], tag="made")
    webhook_id = made["webhook_id"]
    (listed,) = ask("webhooks")
    assert (listed["url"], listed["types"], listed["tag"]) == (receiver.url, ["job.completed", "job.started"], "made")
    assert "secret" not in listed

    assert ask("ping_webhook", webhook_id)["success"] is True
    newest = ask("rotate_secret", webhook_id)["secret"]
    assert newest != made["secret"]
    assert ask("replay", webhook_id)["count"] >= 2
    until(lambda: not ask("deliveries", webhook_id, "pending"))
    sent = ask("deliveries", webhook_id, "delivered")
    assert {(each["type"], each["job_id"]) for each in sent} >= {("job.started", trained), ("job.completed", trained)}
    assert ask("deliveries", webhook_id, limit=1, before=sent[0]["delivery_id"]) == sent[1:2]
    del receiver.got[0]  # the ping came before there was this secret
    assert len(receiver.verified(newest)) == len(sent) - 1

    newest_seq = max(each["seq"] or 0 for each in sent)
    assert ask("replay", webhook_id, newest_seq - 1)["count"] == 1
    assert ask("replay", webhook_id, undelivered_only=True)["count"] == 0
    ask("delete_webhook", webhook_id)
    assert ask("webhooks") == []


def test_a_webhook_without_types_is_told_of_the_ends_of_jobs(ask, receiver) -> None:
    made = ask("create_webhook", receiver.url)
    assert (made["types"], made["tag"]) == (["job.completed", "job.failed", "job.cancelled"], None)


@pytest.mark.parametrize("verb", ["delete_webhook", "ping_webhook", "rotate_secret", "replay", "deliveries"])
def test_a_verb_about_an_unknown_webhook_says_so(ask, verb) -> None:
    with pytest.raises(RemoteProblem, match="no webhook with that id") as caught:
        ask(verb, NOBODY)
    assert caught.value.code == "webhook_not_found"


# -- the commands


def test_a_webhook_is_added_tried_read_rotated_replayed_and_removed(run, http, receiver, trained) -> None:
    status, out, err = run("webhooks", "add", receiver.url, "--types", "job.completed, job.started", "--tag", "made")
    assert status == 0
    webhook_id, secret = out.split()
    assert "shown only now" in err
    assert secret not in err
    assert http.get(f"/api/webhooks/{webhook_id}").json()["tag"] == "made"

    status, out, err = run("webhooks", "log", webhook_id)
    assert (status, out) == (0, "")
    assert f"`training-api webhooks ping {webhook_id}`" in err

    status, out, _ = run("webhooks", "ping", webhook_id)
    assert (status, out.startswith("The receiver answered 204 after ")) == (0, True)
    assert [said["type"] for said in receiver.verified(secret)] == ["webhook.ping"]
    (row,) = run("webhooks", "log", webhook_id)[1].splitlines()[1:]
    assert row.split() == ["just", "now", "webhook.ping", "delivered", "204", "1"]

    status, out, err = run("webhooks", "rotate", webhook_id)
    assert (status, len(out.split())) == (0, 1)
    newest = out.strip()
    assert "the one before it signs too" in err

    completed = http.get(f"/api/jobs/{trained}/events?types=job.completed").json()["events"][0]["seq"]
    status, out, _ = run("webhooks", "replay", webhook_id, "--after", str(completed - 1))
    assert (status, out) == (0, "1 event is sent again.\n")
    receiver.wait(2)  # the ping was the first
    del receiver.got[0]
    for each in (secret, newest):
        (said,) = receiver.verified(each)
        assert (said["seq"], said["data"]["job_id"]) == (completed, trained)
    until(lambda: http.get(f"/api/webhooks/{webhook_id}").json()["delivered"])
    row = run("webhooks", "log", webhook_id, "--limit", "1")[1].splitlines()[1]
    assert row.split() == ["just", "now", "job.completed", str(completed), trained, "delivered", "204", "1"]

    listed = run("webhooks")[1]
    assert _ids(listed) == [webhook_id]
    for words in (
        receiver.url,
        "job.completed, job.started of jobs tagged made",
        "enabled",
        "delivered 204 (just now)",
    ):
        assert words in listed

    status, out, _ = run("webhooks", "remove", webhook_id)
    assert (status, out) == (0, f"Webhook {webhook_id} is removed.\n")
    assert http.get("/api/webhooks").json() == []
    status, out, err = run("webhooks")
    assert (status, out) == (0, "")
    assert "There is no webhook." in err


def test_a_receiver_that_fails_is_said_by_ping_list_and_log(run, receiver) -> None:
    webhook_id = run("webhooks", "add", receiver.url)[1].split()[0]
    receiver.status = 500
    status, out, err = run("webhooks", "ping", webhook_id)
    assert (status, out, err) == (1, "", "The receiver answered 500.\n")
    assert "The receiver answered 500. (just now)" in run("webhooks")[1]
    row = run("webhooks", "log", webhook_id)[1].splitlines()[1]
    assert " ".join(row.split()) == "just now webhook.ping failed 500 1 The receiver answered 500."


def test_deliveries_that_wait_for_their_first_try_are_counted_in_the_list(run, receiver, trained) -> None:
    webhook_id = run("webhooks", "add", receiver.url, "--tag", "made")[1].split()[0]
    receiver.slow_s = 3.0  # longer than the list takes
    count = int(run("webhooks", "replay", webhook_id)[1].split()[0])
    assert count >= 1
    assert f"{count} waiting" in run("webhooks")[1]


def test_a_long_address_is_listed_to_its_last_character(run, receiver) -> None:
    run("webhooks", "add", f"{receiver.url}/{'a' * 200}")
    listed = run("webhooks")[1]
    assert "…" not in listed
    assert listed.partition(receiver.url)[2].count("a") >= 200


def test_only_what_did_not_arrive_is_sent_again_on_request(run, house, http, dataset, receiver) -> None:
    webhook_id = run("webhooks", "add", receiver.url)[1].split()[0]
    http.patch(f"/api/webhooks/{webhook_id}", json={"enabled": False})
    job_id = run("submit", "--model", "demo-llava", "--train", dataset)[1].strip()
    house.wait_for(job_id, lambda job: job.has_ended)
    assert re.search(r"disabled +$", run("webhooks")[1], re.MULTILINE)
    row = run("webhooks", "log", webhook_id)[1].splitlines()[1]
    assert re.fullmatch(rf"not yet +job.completed +\d+ +{job_id} +held +0 *", row)
    status, _, err = run("webhooks", "replay", webhook_id)
    assert status == 1
    assert "disabled" in err
    http.patch(f"/api/webhooks/{webhook_id}", json={"enabled": True})
    assert run("webhooks", "replay", webhook_id, "--undelivered")[1] == "1 event is sent again.\n"
    assert json.loads(receiver.wait(1)[0][1])["data"]["job_id"] == job_id


@pytest.mark.parametrize("verb", ["ping", "rotate", "replay", "log", "remove"])
def test_a_command_about_an_unknown_webhook_is_one_sentence(run, verb) -> None:
    status, out, err = run("webhooks", verb, NOBODY)
    assert (status, out, err) == (1, "", "training-api: There is no webhook with that id.\n")


@pytest.mark.parametrize("verb", ["ping", "rotate", "replay", "log", "remove"])
@pytest.mark.parametrize("name", ["", ".", "..", "../jobs", "a b?c"])
def test_a_command_about_what_is_no_id_does_nothing_and_says_one_sentence(run, receiver, verb, name) -> None:
    webhook_id = run("webhooks", "add", receiver.url)[1].split()[0]
    status, out, err = run("webhooks", verb, name)
    assert (status, out, len(err.splitlines())) == (1, "", 1), (out, err)
    assert _ids(run("webhooks")[1]) == [webhook_id]


def test_an_address_that_is_not_called_and_a_type_there_is_not_are_refused_with_a_sentence(run, receiver) -> None:
    for arguments in (["http://10.0.0.1/"], [receiver.url, "--types", "job.exploded"]):
        status, out, err = run("webhooks", "add", *arguments)
        assert (status, out, len(err.splitlines())) == (1, "", 1)
        assert err.startswith("training-api: ")


@pytest.mark.parametrize("is_before", [True, False])
def test_the_services_address_may_stand_before_or_behind_the_command(run, house, monkeypatch, is_before) -> None:
    monkeypatch.setenv("TRAINING_URL", "http://127.0.0.1:9")
    address, verb = ["--url", f"http://{house.address}"], ["ping", NOBODY]
    arguments = [*address, *verb] if is_before else [*verb, *address]
    assert "no webhook with that id" in run("webhooks", *arguments)[2]
