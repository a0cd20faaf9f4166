"""A browser's session where a token is set: what its cookie opens, what it does not, and when it ends."""

import json
import time
from collections.abc import Iterator
from http.cookies import SimpleCookie

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from jobs.settings import Settings
from service import sessions

TOKEN = "t0k3n-" + "y" * 32
SPEC = {"kind": "validate", "data_path": "datasets/none"}


@pytest.fixture(scope="module")
def locked(tmp_path_factory, house):
    settings = Settings(data_root=str(tmp_path_factory.mktemp("sessions")), token=TOKEN)
    with type(house)(settings, with_runner=False) as running:
        yield running


@pytest.fixture
def browser(locked) -> Iterator[httpx.Client]:
    """Knows no token by itself, and keeps cookies."""
    ours = {"origin": f"http://{locked.address}", "sec-fetch-site": "same-origin"}
    with httpx.Client(base_url=f"http://{locked.address}", headers=ours, trust_env=False) as client:
        yield client


def test_the_page_is_there_before_the_token(browser) -> None:
    for path in ("/ui", "/ui/", "/ui/app.js", "/ui/style.css"):
        assert browser.get(path).status_code == 200, path
    for path in ("/docs", "/redoc", "/openapi.json", "/api/jobs", "/", "/health"):
        assert browser.get(path).status_code == 401, path


@pytest.mark.parametrize("path", ["/ui/../api/jobs", "/ui/..%2fapi/jobs", "/ui//../../api/jobs", "//ui/../api/jobs"])
def test_no_way_leads_through_the_page_to_the_rest(locked, path) -> None:
    answer = httpx.get(httpx.URL(f"http://{locked.address}", raw_path=path.encode()), trust_env=False)
    assert answer.status_code in (401, 404)


@pytest.mark.parametrize("prefix", ["/api", "/api/training"])
def test_the_token_buys_a_cookie_that_opens_everything(browser, prefix) -> None:
    answer = browser.post(f"{prefix}/session", json={"token": TOKEN})
    assert (answer.status_code, answer.json()["success"]) == (200, True)
    for path in ("/docs", "/redoc", "/openapi.json", "/api/jobs", "/api/training/jobs", "/health"):
        assert browser.get(path).status_code == 200, path
    assert browser.post("/api/jobs", json=SPEC).status_code == 404  # the dataset is missing: the door was open


def test_the_cookie_is_hidden_from_scripts_and_other_sites(locked, browser) -> None:
    cookie = _cookie(browser.post("/api/session", json={"token": TOKEN}))
    assert (cookie["httponly"], cookie["samesite"].lower(), cookie["path"], cookie["domain"]) == (
        True,
        "strict",
        "/",
        "",
    )
    assert int(cookie["max-age"]) == 30 * 24 * 3600
    assert not cookie["secure"]
    over_tls = browser.post("/api/session", json={"token": TOKEN}, headers={"origin": f"https://{locked.address}"})
    assert _cookie(over_tls)["secure"]
    assert TOKEN not in cookie.value


@pytest.mark.parametrize("body", [{"token": ""}, {"token": "wrong"}, {"token": TOKEN + "x"}, {"token": "ü"}])
def test_a_wrong_token_buys_nothing(browser, body) -> None:
    answer = browser.post("/api/session", json=body)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("body", [{}, {"token": None}, {"token": 1}, {"token": TOKEN, "more": 1}])
def test_a_body_that_is_no_token_is_422(browser, body) -> None:
    assert browser.post("/api/session", json=body).status_code == 422


def test_a_session_ends_in_the_browser_on_request(browser) -> None:
    assert browser.delete("/api/session").status_code == 401
    browser.post("/api/session", json={"token": TOKEN})
    answer = browser.delete("/api/session")
    assert answer.json()["success"]
    assert not browser.cookies
    assert browser.get("/api/jobs").status_code == 401


def test_a_session_ends_by_itself_and_with_its_token(monkeypatch) -> None:
    value = f"{sessions.COOKIE}={sessions.issue(TOKEN)}"
    assert sessions.is_open(value, TOKEN)
    assert sessions.is_open(f"other=1; {sessions.COOKIE}=bad; {value}", TOKEN)
    assert not sessions.is_open(value, "z" * 40)
    later = time.time() + sessions.LIFETIME_S
    monkeypatch.setattr(sessions.time, "time", lambda: later + 1)
    assert not sessions.is_open(value, TOKEN)


@pytest.mark.parametrize("value", ["", "x", ".", "9999999999.", "9" * 5000 + "." + "0" * 64, "٣." + "0" * 64, TOKEN])
def test_a_made_up_cookie_opens_nothing(locked, value) -> None:
    assert not sessions.is_open(f"{sessions.COOKIE}={value}", TOKEN)
    cookie = {"cookie": f"{sessions.COOKIE}={value}".encode()}
    assert httpx.get(f"http://{locked.address}/api/jobs", headers=cookie, trust_env=False).status_code == 401


def test_a_later_end_needs_another_signature() -> None:
    expires, _, signature = sessions.issue(TOKEN).partition(".")
    assert not sessions.is_open(f"{sessions.COOKIE}={int(expires) + 1}.{signature}", TOKEN)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil", "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:1", "sec-fetch-site": "same-site"},  # another program's page on this host
        {"origin": "null", "sec-fetch-site": "cross-site"},
        {"origin": "http://evil", "sec-fetch-site": "none"},
        {"sec-fetch-site": "same-site", "origin": ""},
    ],
    ids=str,
)
def test_another_page_cannot_use_the_cookie_for_a_change(browser, headers) -> None:
    browser.post("/api/session", json={"token": TOKEN})
    changes = [("POST", "/api/jobs/x/cancel"), ("DELETE", "/api/jobs/x"), ("DELETE", "/api/session")]
    for method, path in changes:
        answer = browser.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin"), (method, path)
    assert browser.post("/api/jobs", json=SPEC, headers=headers).status_code == 403


def test_another_page_cannot_read_with_the_cookie_nor_log_in(browser) -> None:
    foreign = {"origin": "http://evil", "sec-fetch-site": "cross-site"}
    assert browser.post("/api/session", json={"token": TOKEN}, headers=foreign).status_code == 403
    browser.post("/api/session", json={"token": TOKEN})
    answer = browser.get("/api/jobs", headers=foreign)
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_socket_takes_the_cookie(locked, browser) -> None:
    browser.post("/api/session", json={"token": TOKEN})
    with _connect(locked, browser, origin=f"http://{locked.address}") as opened:
        assert json.loads(opened.recv(timeout=5))["code"] == "job_not_found"


def test_a_socket_of_another_page_is_refused_for_all_its_cookie(locked, browser) -> None:
    browser.post("/api/session", json={"token": TOKEN})
    with pytest.raises(InvalidStatus) as refused, _connect(locked, browser, origin="http://evil"):
        pass
    assert refused.value.response.status_code == 403


def test_a_socket_with_a_made_up_cookie_is_closed(locked, browser) -> None:
    browser.cookies.set(sessions.COOKIE, "9999999999." + "0" * 64)
    with _connect(locked, browser) as opened:
        opened.send(json.dumps({"frame": "auth", "token": "wrong"}))
        with pytest.raises(ConnectionClosed) as closed:
            opened.recv(timeout=5)
    assert closed.value.rcvd.code == 4401


def test_without_a_token_there_is_nothing_to_buy(http) -> None:
    answer = http.post("/api/session", json={"token": "x"})
    assert (answer.status_code, answer.json()["success"]) == (200, True)
    assert "set-cookie" not in answer.headers
    assert http.delete("/api/session").status_code == 200


def _cookie(answer: httpx.Response):
    return SimpleCookie(answer.headers["set-cookie"])[sessions.COOKIE]


def _connect(house, browser: httpx.Client, **arguments):
    cookie = f"{sessions.COOKIE}={browser.cookies[sessions.COOKIE]}"
    headers = {"cookie": cookie}
    return connect(f"ws://{house.address}/api/train/x/ws", proxy=None, additional_headers=headers, **arguments)
