"""`training-api webhooks …`: who is told of events, and how that goes. `cli` has the arguments."""

import argparse
from collections.abc import Callable, Iterable
from datetime import datetime

from jobs.calls import Json
from jobs.settings import Settings
from service.terminal import add_row, ago, client_of, say, show, table


def webhooks(_: argparse.Namespace, settings: Settings) -> int:
    made = table("webhook", "url", "types", "state", "last outcome")
    with client_of(settings) as client:
        found = client.webhooks()
        for each in found:
            types = ", ".join(each["types"]) + (f" of jobs tagged {each['tag']}" if each["tag"] else "")
            outcome = _last_outcome(client.deliveries(each["webhook_id"])) or _waiting(each)
            add_row(made, each["webhook_id"], each["url"], types, _state(each), outcome)
    if found:
        show(made)
    else:
        say("There is no webhook. `training-api webhooks add --help` shows how to add one.")
    return 0


def add(chosen: argparse.Namespace, settings: Settings) -> int:
    with client_of(settings) as client:
        made = client.create_webhook(chosen.receiver, chosen.types, chosen.tag)
    print(made["webhook_id"], made["secret"])
    say(
        "Behind the id stands the secret, which is shown only now: the receiver checks with it that a message is ours. "
        f"`training-api webhooks ping {made['webhook_id']}` tries the receiver."
    )
    return 0


def ping(chosen: argparse.Namespace, settings: Settings) -> int:
    with client_of(settings) as client:
        reply = client.ping_webhook(chosen.webhook)
    if not reply["success"]:
        say(reply["error"])
        return 1
    print(f"The receiver answered {reply['status']} after {reply['latency_ms']} ms.")
    return 0


def rotate(chosen: argparse.Namespace, settings: Settings) -> int:
    with client_of(settings) as client:
        made = client.rotate_secret(chosen.webhook)
    print(made["secret"])
    until = datetime.fromisoformat(made["previous_until"])
    say(f"This secret is shown only now. Until {until:%Y-%m-%d %H:%M} UTC the one before it signs too.")
    return 0


def replay(chosen: argparse.Namespace, settings: Settings) -> int:
    with client_of(settings) as client:
        print(client.replay(chosen.webhook, chosen.after, undelivered_only=chosen.undelivered)["message"])
    return 0


def log(chosen: argparse.Namespace, settings: Settings) -> int:
    with client_of(settings) as client:
        found = client.deliveries(chosen.webhook, limit=chosen.limit)
    made = table("when", "event", "seq", "job", "status", "tries", "error")
    for each in found:
        when = ago(each["attempted_at"]) if each["attempted_at"] else "not yet"
        seq = "" if each["seq"] is None else each["seq"]
        row = (when, each["type"], seq, each["job_id"] or "", _status(each), each["tries"], each["error"] or "")
        add_row(made, *row)
    if found:
        show(made)
    else:
        say(f"Nothing was sent yet. `training-api webhooks ping {chosen.webhook}` tries the receiver.")
    return 0


def remove(chosen: argparse.Namespace, settings: Settings) -> int:
    with client_of(settings) as client:
        print(client.delete_webhook(chosen.webhook)["message"])
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
    "webhooks": webhooks,
    "webhooks add": add,
    "webhooks ping": ping,
    "webhooks rotate": rotate,
    "webhooks replay": replay,
    "webhooks log": log,
    "webhooks remove": remove,
}


def _state(webhook: Json) -> str:
    if not webhook["enabled"]:
        return f"disabled: {webhook['disabled_reason']}" if webhook["disabled_reason"] else "disabled"
    return f"failing since {ago(webhook['failing_since'])}" if webhook["failing_since"] else "enabled"


def _last_outcome(deliveries: Iterable[Json]) -> str:
    """Of the one that was tried last, which need not be the newest: they arrive in order, and may be sent again."""
    tried = [each for each in deliveries if each["attempted_at"]]
    if not tried:
        return ""
    last = max(tried, key=lambda each: datetime.fromisoformat(each["attempted_at"]))
    return f"{last['error'] or _status(last)} ({ago(last['attempted_at'])})"


def _waiting(webhook: Json) -> str:
    return f"{webhook['pending']:,} waiting" if webhook["pending"] else ""


def _status(delivery: Json) -> str:
    """Where it stands, and what the receiver answered."""
    return f"{delivery['state']} {delivery['status'] or ''}".rstrip()
