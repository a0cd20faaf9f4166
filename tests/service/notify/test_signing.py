"""What we sign, a receiver's library takes."""

import time
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from service.notify import messages, signing

BODY = b'{"type":"job.started","at":"2026-01-02T03:04:05Z","job_id":"a","n":1}'


def _signed(*secrets, at_s=None, body=BODY):
    return signing.headers(secrets, "msg_1", int(time.time()) if at_s is None else at_s, body)


def test_a_signature_is_verified_by_the_standards_own_library() -> None:
    secret = signing.new_secret()
    assert Webhook(secret).verify(BODY, _signed(secret))["job_id"] == "a"


def test_while_a_secret_is_rotated_both_verify_and_a_third_does_not() -> None:
    new, old, other = (signing.new_secret() for _ in range(3))
    headers = _signed(new, old)
    assert headers["webhook-signature"].count("v1,") == 2
    for secret in (new, old):
        Webhook(secret).verify(BODY, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(BODY, headers)


@pytest.mark.parametrize("change", ["body", "id", "time", "age"])
def test_what_was_changed_or_is_old_is_refused(change) -> None:
    secret = signing.new_secret()
    headers = _signed(secret, at_s=int(time.time()) - 600 if change == "age" else None)
    if change == "id":
        headers["webhook-id"] = "msg_2"
    if change == "time":
        headers["webhook-timestamp"] = str(int(time.time()) - 1)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY + b" " if change == "body" else BODY, headers)


def test_every_secret_is_another_one_and_long_enough() -> None:
    secrets = {signing.new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(Webhook(secret)._whsecret) == 32 for secret in secrets)


def test_a_message_has_type_time_cursor_and_the_event_as_it_was_said() -> None:
    at = '"2026-01-02T03:04:05Z"'
    wanted = f'{{"type":"job.started","timestamp":{at},"seq":7,"data":{BODY.decode()}}}'
    assert messages.standard("job.started", 7, BODY) == wanted.encode()


def test_a_ping_is_an_event_without_a_cursor() -> None:
    ping = messages.ping("hook_a", datetime(2026, 1, 1, tzinfo=UTC))
    body = messages.standard("webhook.ping", None, ping)
    assert b'"seq"' not in body
    assert b'"webhook_id":"hook_a"' in body
