"""A fault of ours in what works in the background: /health names the part, and it goes on when the fault is over."""

import time

import pytest

from service import hub, recorder
from service.notify import notifier
from service.notify.notifier import Notifier
from service.reconcile import Reconciler
from service.recorder import Recorder
from service.store import Store

PARTS = {
    "intake": (Recorder, "_take"),
    "reconciler": (Reconciler, "run"),
    "tidy": (Recorder, "tidy"),
    "notifier": (Notifier, "_wake"),
    "delivery log": (Store, "apply"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_fails_is_named_until_it_works_again(build, monkeypatch, part) -> None:
    monkeypatch.setattr(hub, "QUIET_S", 0.05)
    monkeypatch.setattr(recorder, "_TIDY_EVERY_S", 0.05)
    monkeypatch.setattr(notifier, "_TIDY_EVERY_S", 0.05)
    monkeypatch.setattr(notifier, "_TIDY_AGAIN_S", 0.05)
    house = build()
    owner, name = PARTS[part]

    def broken(*_: object, **__: object) -> None:
        raise KeyError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        job = {"kind": "validate", "data_path": "datasets/made"}
        (house.root.datasets / "made").mkdir(parents=True)
        assert house.http.post("/api/jobs", json=job).status_code < 300
        health = _until(house, lambda health: health["failing"])
        assert (health["status"], health["failing"]) == ("degraded", [part])
    assert _until(house, lambda health: not health["failing"])["status"] == "healthy"


def test_a_redis_that_cannot_be_started_for_any_reason_does_not_end_the_intake(build, monkeypatch) -> None:
    house = build()

    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    async def lost(*_: object, **__: object) -> None:
        raise ConnectionError("redis is away")

    with monkeypatch.context() as patch:
        patch.setattr(recorder.redis_server, "ensure", broken)
        patch.setattr(house.app.state.bus, "epoch", lost)
        assert _until(house, lambda health: health["failing"])["failing"] == ["intake"]
    assert _until(house, lambda health: not health["failing"])["status"] == "healthy"


def _until(house, is_so) -> dict:
    deadline = time.monotonic() + 10
    while not is_so(health := house.http.get("/health").json()):
        assert time.monotonic() < deadline, health
        time.sleep(0.02)
    return health
