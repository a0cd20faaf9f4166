"""The client that calls only what it checked: every hostile URL, at registration and at delivery, and bad receivers."""

import asyncio
import shutil
import ssl
import subprocess
import time

import httpx
import pytest
from hostile_urls import ALLOWED, FORMS, HOSTILE, METADATA, PRIVATE

from jobs.errors import AddressNotAllowed, Misconfigured
from service.notify import outgoing as module
from service.notify.outgoing import Outgoing

EVERYTHING = ("0.0.0.0/0", "::/0")
PLAIN = "http://public.example/"  # allowed where its network is listed


@pytest.fixture
def connected(monkeypatch):
    """Everything that would have been sent, none of which is."""
    sent = []

    async def send(self, request):
        sent.append(request)
        return httpx.Response(204, stream=httpx.ByteStream(b""))

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", send)
    return sent


async def _post(client, url, body=b"{}"):
    async with client.session() as session:
        return await session.post(url, {"content-type": "application/json"}, body)


def test_there_are_enough_hostile_cases() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 60


@pytest.mark.parametrize("url", HOSTILE, ids=ascii)
async def test_a_hostile_url_is_refused_at_registration(outgoing, connected, url) -> None:
    with pytest.raises(AddressNotAllowed) as refused:
        await outgoing.check(url)
    assert refused.value.path == "url"
    assert connected == []


@pytest.mark.parametrize("url", HOSTILE, ids=ascii)
async def test_a_hostile_url_is_refused_at_delivery(outgoing, connected, url) -> None:
    reply = await _post(outgoing, url)
    assert reply.error
    assert reply.status is None
    assert connected == []


@pytest.mark.parametrize("url", [url for url in (*METADATA, *FORMS) if url != PLAIN], ids=ascii)
async def test_what_no_setting_allows_is_refused_when_every_network_is_listed(names, tls, connected, url) -> None:
    client = Outgoing(EVERYTHING, names, tls)
    with pytest.raises(AddressNotAllowed):
        await client.check(url)
    assert (await _post(client, url)).status is None
    assert connected == []


async def test_every_private_address_is_allowed_by_its_own_network_only(names) -> None:
    client = Outgoing(("10.0.0.0/8",), names)
    for url in PRIVATE:
        is_ten = url in (
            "https://10.0.0.1/", "https://[::ffff:10.0.0.1]/", "https://[64:ff9b::10.0.0.1]/",
            "https://private.example/", "https://mixed.example/", "https://nat64.example/",
        )  # fmt: skip
        if is_ten:
            await client.check(url)
        else:
            with pytest.raises(AddressNotAllowed):
                await client.check(url)


@pytest.mark.parametrize("url", ALLOWED)
async def test_a_public_host_is_called_at_the_address_that_was_checked(outgoing, names, connected, url) -> None:
    await outgoing.check(url)
    assert (await _post(outgoing, url)).error is None
    (request,) = connected
    host = httpx.URL(url).host
    assert request.url.host in [
        httpx.URL(f"https://[{a}]" if ":" in a else f"https://{a}").host for a in await names(host, 1)
    ]
    assert request.headers["host"] == httpx.URL(url).netloc.decode()
    assert request.extensions["sni_hostname"] == host
    assert request.url.raw_path == httpx.URL(url).raw_path


async def test_a_name_that_leads_elsewhere_after_registration_is_refused_at_delivery(local, names, receiver) -> None:
    names.names["rebound.example"] = ["93.184.216.34"]
    url = f"https://rebound.example:{receiver.port}/"
    await local.check(url)
    names.names["rebound.example"] = ["10.0.0.1"]
    assert "private" in (await _post(local, url)).error
    names.names["rebound.example"] = ["169.254.169.254"]
    assert "metadata" in (await _post(local, url)).error
    assert receiver.got == []


async def test_a_name_is_resolved_once_for_each_request_also_over_a_connection_that_is_kept(
    local, names, receiver
) -> None:
    names.names["receiver.example"] = ["127.0.0.1"]
    url = f"http://receiver.example:{receiver.port}/a?b=c"
    async with local.session() as session:
        for _ in range(3):
            assert (await session.post(url, {}, b"x")).status == 204
        assert (names.asked, receiver.connections) == (["receiver.example"] * 3, 1)
        names.names["receiver.example"] = ["127.0.0.1", "10.0.0.1"]
        assert "private" in (await session.post(url, {}, b"x")).error
    assert [got.path for got in receiver.got] == ["/a?b=c"] * 3
    assert receiver.got[0].headers["host"] == f"receiver.example:{receiver.port}"


async def test_where_one_address_does_not_answer_the_next_is_asked(local, names, receiver) -> None:
    names.names["many.example"] = ["127.0.0.2", "127.0.0.1"]
    assert (await _post(local, f"http://many.example:{receiver.port}/")).status == 204


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(local, listen, receiver, status) -> None:
    answer = f"HTTP/1.1 {status} x\r\nlocation: {receiver.url}\r\ncontent-length: 0\r\n\r\n".encode()
    redirecting = await listen(script=lambda got: answer)
    reply = await _post(local, redirecting.url)
    assert reply.status == status
    assert "redirect" in reply.error
    assert receiver.got == []


async def test_proxies_of_the_environment_and_cookies_are_not_used(local, listen, receiver, monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, receiver.url)
    answer = b"HTTP/1.1 200 x\r\nset-cookie: a=b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    other = await listen(script=lambda got: answer)
    async with local.session() as session:
        for _ in range(2):
            assert (await session.post(other.url, {}, b"x")).error is None
    assert receiver.got == []
    assert "cookie" not in other.got[1].headers


BAD = {
    "closes at once": b"",
    "speaks no HTTP": b"+PONG\r\n",
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"x-a: " + b"a" * 2_000_000,
    "a body without end": b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 2_000_000,
    "a body that is too long": b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n" + b"a" * 2_000_000,
    "a body that breaks off": b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
async def test_a_receiver_that_answers_badly_is_a_failure(local, listen, answer) -> None:
    bad = await listen(script=lambda got: answer)
    reply = await _post(local, bad.url)
    assert reply.error
    assert len(reply.text) <= module.KEPT_BYTES


async def test_a_receiver_that_never_answers_or_drips_is_given_up_in_time(local, listen, monkeypatch) -> None:
    monkeypatch.setattr(module, "WITHIN_S", 0.3)

    async def never(got):
        await asyncio.sleep(60)

    silent = await listen(script=never)
    began = time.monotonic()
    assert "No whole answer" in (await _post(local, silent.url)).error
    assert time.monotonic() - began < 5


async def test_a_packed_bomb_is_not_unpacked(local, listen) -> None:
    body = b"\x1f\x8b" + b"\0" * 100
    bomb = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 102\r\n\r\n" + body
    reply = await _post(local, (await listen(script=lambda got: bomb)).url)
    assert (reply.status, reply.error) == (200, None)


async def test_the_begin_of_an_answer_is_kept(local, listen) -> None:
    text = b"HTTP/1.1 500 x\r\nretry-after: 7\r\ncontent-length: 5000\r\n\r\n" + b"\xff" + b"a" * 4999
    reply = await _post(local, (await listen(script=lambda got: text)).url)
    assert (reply.status, reply.error, reply.retry_after) == (500, "The receiver answered 500.", "7")
    assert reply.text == "�" + "a" * (module.KEPT_BYTES - 1)


async def test_nobody_listens_there(local, receiver) -> None:
    assert "No connection" in (await _post(local, f"http://127.0.0.3:{receiver.port}/")).error


@pytest.mark.parametrize("listed", ["10.0.0.1/8", "ten", "10.0.0.0/33", "*"])
def test_a_network_that_is_none_is_refused_at_the_start(listed) -> None:
    with pytest.raises(Misconfigured, match="TRAINING_OUTGOING_NETWORKS"):
        Outgoing((listed,))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Of receiver.example, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    names = ("-subj", "/CN=receiver.example", "-addext", "subjectAltName=DNS:receiver.example")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"))
    subprocess.run([*command, "-days", "2", *names, *files], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(("name", "is_trusted", "error"), [
    ("receiver.example", True, None),
    ("other.example", True, "certificate"),
    ("receiver.example", False, "certificate"),
])  # fmt: skip
async def test_tls_is_verified_against_the_name_though_the_address_is_called(
    names, listen, certificate, monkeypatch, name, is_trusted, error
) -> None:
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    secure = await listen(tls=tls)
    names.names[name] = ["127.0.0.1"]
    reply = await _post(Outgoing(("127.0.0.0/8",), names), f"https://{name}:{secure.port}/")
    if error is None:
        assert (reply.status, reply.error) == (204, None)
    else:
        assert error in reply.error
        assert secure.got == []
