"""Hosts, origins, media types, body limits and tokens, over a real socket."""

import json
import socket

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from jobs.errors import Misconfigured
from jobs.settings import Settings
from service import access

TOKEN = "t0k3n-" + "x" * 32
SPEC = {"kind": "validate", "data_path": "datasets/none"}


def test_a_host_name_is_matched_exactly(http) -> None:
    for name in ("evil.example", "127.0.0.1.evil.example", "localhostXevil", "localhost.evil.example:80"):
        answer = http.get("/health", headers={"host": name})
        assert (answer.status_code, answer.json()["code"]) == (421, "unknown_host"), name
    for name in ("localhost", "LOCALHOST:9", "127.0.0.1:8000", "[::1]:8000"):
        assert http.get("/health", headers={"host": name}).status_code == 200, name


def test_a_request_without_a_host_is_refused_whatever_a_proxy_header_says(house) -> None:
    answer = _raw(house, b"GET /health HTTP/1.1\r\nX-Forwarded-Host: localhost\r\n\r\n")
    assert b" 400 " in answer.splitlines()[0]
    answer = _raw(house, b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n")
    assert b" 400 " in answer.splitlines()[0]


def test_oversized_headers_are_refused(http) -> None:
    assert http.get("/health", headers={"x-large": "x" * 40_000}).status_code in (400, 431)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}], ids=str
)
def test_a_change_from_a_foreign_page_is_refused(http, method, headers) -> None:
    answer = http.request(method, "/api/jobs", json=SPEC, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin")


def test_our_own_page_may_change_things(house, http) -> None:
    headers = {"origin": f"http://{house.address}", "sec-fetch-site": "same-origin"}
    assert http.post("/api/jobs", json=SPEC, headers=headers).status_code == 404  # the dataset, not the page


def test_a_foreign_page_gets_no_permission_to_read(http) -> None:
    headers = {"origin": "http://evil", "access-control-request-method": "POST"}
    for answer in (http.options("/api/jobs", headers=headers), http.get("/api/jobs", headers=headers)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_allowed_page_elsewhere_may_read_and_change(build) -> None:
    house = build(allowed_origins=("https://app.example",), with_runner=False)
    origin = {"origin": "https://app.example", "sec-fetch-site": "cross-site"}
    asked = house.http.options("/api/jobs", headers=origin | {"access-control-request-method": "POST"})
    assert asked.status_code == 204
    assert asked.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in asked.headers["access-control-allow-headers"]
    answer = house.http.post("/api/jobs", json=SPEC, headers=origin)
    assert answer.status_code == 404
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/json;charset=zzz", "multipart/form-data"],
)
def test_json_is_taken_as_json_only(http, content_type) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = http.post("/api/jobs", content=json.dumps(SPEC).encode(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_a_compressed_body_is_refused(http) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert http.post("/api/jobs", content=b"x", headers=headers).status_code == 415


@pytest.mark.parametrize("depth", [33, 1_000, 100_000])
def test_deep_nesting_is_refused(http, depth) -> None:
    answer = _post(http, b"[" * depth + b"]" * depth)
    assert (answer.status_code, answer.json()["code"]) == (400, "too_deep")


def test_brackets_in_text_are_no_nesting(http) -> None:
    answer = _post(http, json.dumps({"kind": "validate", "data_path": "[" * 100 + '\\"{{'}).encode())
    assert answer.json()["code"] != "too_deep"


def test_a_body_beyond_the_limit_is_refused_also_when_it_does_not_say_so(http) -> None:
    body = b'{"a": "' + b"x" * 2**20 + b'"}'
    headers = {"content-type": "application/json"}
    assert http.post("/api/jobs", content=body, headers=headers).status_code == 413
    assert http.post("/api/jobs", content=iter([body]), headers=headers).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"\xef\xbb\xbf{}", b"\xff\xfe{}", b'{"a":1} x', b'{"a":NaN}', b'{"a":1e999}',
        b'{"kind":"\xff"}', b'{"kind":"\\ud800"}', b'{"kind":"convert","kind":"convert"}', b'{"data_path":"a\\u0000"}',
        b'{"kind":"split","data_path":"a","output_dir":"b","random_seed":' + b"9" * 5000 + b"}",
        b'{"kind":"split","data_path":"a","output_dir":"b","random_seed":9223372036854775808}',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)  # fmt: skip
def test_what_is_no_sound_json_is_answered_with_422(http, body) -> None:
    answer = _post(http, body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_error")
    assert answer.json()["message"]


def test_every_answer_tells_the_browser_to_stay_here(http) -> None:
    for path in ("/", "/api/jobs", "/api/nowhere"):
        headers = http.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("origin", ["http://evil", "null"])
def test_a_socket_from_a_foreign_page_is_refused_at_the_handshake(house, trained, origin) -> None:
    with pytest.raises(InvalidStatus) as refused, _connect(house, trained, origin=origin):
        pass
    assert refused.value.response.status_code == 403


@pytest.fixture(scope="module")
def locked(tmp_path_factory, house):
    settings = Settings(data_root=str(tmp_path_factory.mktemp("locked")), token=TOKEN)
    with type(house)(settings, with_runner=False) as running:
        yield running


def test_every_route_and_method_wants_the_token_before_anything_else(locked) -> None:
    schema = locked.http.get("/openapi.json").json()
    paths = [*schema["paths"], "/docs", "/redoc", "/openapi.json", "/ui/", "/uix", "/api/nowhere", "/api/session/"]
    free = {("GET", "/ui/"), ("POST", "/api/session")}
    for path in paths:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            if (method, path) in free:
                continue
            answer = locked.http.request(method, path.replace("{", "").replace("}", ""), headers={"authorization": ""})
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN])
def test_a_wrong_token_opens_nothing(locked, given) -> None:
    assert locked.http.get("/health", headers={"authorization": given}).status_code == 401
    assert locked.http.get(f"/health?token={TOKEN}", headers={"authorization": given}).status_code == 401


def test_the_token_opens(locked) -> None:
    assert locked.http.get("/health").status_code == 200


def test_two_authorization_headers_are_refused(locked) -> None:
    headers = [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer other")]
    assert locked.http.get("/health", headers=headers).status_code in (400, 401)


def test_a_socket_takes_the_token_as_header_or_first_frame(locked) -> None:
    with _connect(locked, "nope", additional_headers={"authorization": f"Bearer {TOKEN}"}) as opened:
        assert json.loads(opened.recv(timeout=5))["code"] == "job_not_found"
    with _connect(locked, "nope") as opened:
        opened.send(json.dumps({"frame": "auth", "token": TOKEN}))
        assert json.loads(opened.recv(timeout=5))["code"] == "job_not_found"


@pytest.mark.parametrize("frame", ['{"frame": "auth", "token": "wrong"}', "[" * 10_000, "", b"\x00"])
def test_a_socket_with_a_wrong_first_frame_is_closed_before_any_data(locked, frame) -> None:
    with _connect(locked, "nope") as opened:
        opened.send(frame)
        with pytest.raises(ConnectionClosed) as closed:
            opened.recv(timeout=5)
    assert closed.value.rcvd.code == 4401


def test_a_socket_with_a_wrong_header_is_closed(locked) -> None:
    headers = {"authorization": "Bearer wrong"}
    with _connect(locked, "nope", additional_headers=headers) as opened, pytest.raises(ConnectionClosed) as closed:
        opened.recv(timeout=5)
    assert closed.value.rcvd.code == 4401


def test_a_socket_that_says_nothing_is_closed(locked, monkeypatch) -> None:
    monkeypatch.setattr(access, "AUTH_WITHIN_S", 0.05)
    with _connect(locked, "nope") as opened, pytest.raises(ConnectionClosed) as closed:
        opened.recv(timeout=5)
    assert closed.value.rcvd.code == 4401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_open_address_without_a_token_is_refused_by_name_of_the_setting(host) -> None:
    with pytest.raises(Misconfigured, match="TRAINING_TOKEN"):
        access.check_settings(Settings(host=host))
    access.check_settings(Settings(host=host, token=TOKEN))


def test_a_token_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(Misconfigured, match="TRAINING_TOKEN"):
        access.check_settings(Settings(token="changeme"))


def _connect(house, job_id, **arguments):
    return connect(f"ws://{house.address}/api/train/{job_id}/ws", proxy=None, **arguments)


def _post(http, body: bytes):
    return http.post("/api/jobs", content=body, headers={"content-type": "application/json"})


def _raw(house, request: bytes) -> bytes:
    host, port = house.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request)
        return connection.recv(65536)
