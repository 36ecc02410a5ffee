"""Features that need host names: signed URLs, host names of ports, TLS."""

import os
import queue
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from e2b import AsyncSandbox, Sandbox
from websockets.sync.client import connect

from journeys import ENVD_PORT, MARK, NOT_FOUND, PORT_CLOSED, Guest, eventually, program

DOMAIN = os.environ["E2B_DOMAIN"]


@pytest.fixture(scope="module")
def web() -> Iterator[httpx.Client]:
    """HTTP client that trusts the certificate authority, and uses HTTP/2 if the server supports it."""
    with httpx.Client(http2=True, verify=ssl.create_default_context(), timeout=60) as client:
        yield client


def test_the_sdk_needs_only_the_domain(sandbox):
    assert "E2B_API_URL" not in os.environ and "E2B_SANDBOX_URL" not in os.environ
    assert sandbox.sandbox_domain == DOMAIN
    assert sandbox.get_host(3000) == f"3000-{sandbox.sandbox_id}.{DOMAIN}"
    assert sandbox.commands.run("echo $((6 * 7))").stdout == "42\n"
    assert sandbox.is_running()


def test_signed_urls_upload_and_download(sandbox, web):
    url = sandbox.upload_url("signed.txt")
    assert url.startswith(f"https://{ENVD_PORT}-{sandbox.sandbox_id}.{DOMAIN}/files?")
    sent = web.post(url, files={"file": ("signed.txt", b"by a stranger")})
    assert sent.status_code == 200 and sent.json()[0]["path"] == "/home/user/signed.txt"
    assert sandbox.files.read("signed.txt") == "by a stranger"
    got = web.get(sandbox.download_url("signed.txt", use_signature_expiration=60))
    assert (got.text, got.http_version) == ("by a stranger", "HTTP/2")
    late = web.get(sandbox.download_url("signed.txt", use_signature_expiration=-1))
    assert (late.status_code, late.json()) == (401, {"code": 401, "message": "signature is already expired"})
    assert web.get(url).status_code == 401, "a signature is valid for one operation only"


def test_a_service_has_its_own_host_name(sandbox, guest, web):
    url = f"https://{sandbox.get_host(guest.port)}"
    response = web.post(f"{url}/path?query=1", content=b"body")
    seen = response.json()
    assert (response.http_version, seen["path"], seen["length"]) == ("HTTP/2", "/path?query=1", 4)
    assert seen["headers"]["host"] == sandbox.get_host(guest.port)
    assert seen["headers"]["x-forwarded-proto"] == "https"
    with connect(f"wss://{sandbox.get_host(guest.port)}", ssl=ssl.create_default_context()) as socket:
        socket.send("over TLS")
        assert socket.recv(timeout=30) == "over TLS"
    closed = web.get(f"https://{sandbox.get_host(9)}")
    assert closed.status_code == 502
    assert closed.json() == {"sandboxId": sandbox.sandbox_id, "message": PORT_CLOSED, "port": 9, "code": 502}
    browser = {"User-Agent": "Mozilla/5.0", "Accept": "text/html"}
    page = web.get(f"https://{sandbox.get_host(9)}", headers=browser)
    assert page.status_code == 502 and page.headers["content-type"].startswith("text/html")


@contextmanager
def channel(host: str) -> Iterator[grpc.Channel]:
    """gRPC client that trusts the certificate authority; names below localhost resolve to this machine."""
    name, _, port = host.partition(":")
    trusted = grpc.ssl_channel_credentials(Path(os.environ["SSL_CERT_FILE"]).read_bytes())
    options = [("grpc.ssl_target_name_override", name), ("grpc.default_authority", host), ("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(f"127.0.0.1:{port or 443}", trusted, options) as opened:
        yield opened


def test_grpc_and_servers_with_http_2_only(new_sandbox, web):
    sandbox = new_sandbox(network={"https_ports": [8443]})
    sandbox.files.write("http2_echo.mjs", program("http2_echo.mjs"))
    handle = sandbox.commands.run("node http2_echo.mjs 8080 8443", background=True, timeout=0)
    assert next(stdout for stdout, _, _ in handle if stdout) == "listening\n"
    handle.disconnect()
    for port in (8080, 8443):
        host = sandbox.get_host(port)
        assert web.get(f"https://{host}/").text == "GET in HTTP/2"
        with httpx.Client(verify=ssl.create_default_context(), timeout=60) as http1:
            # Over TLS, an HTTP/1.1 client needs an HTTP/1.1 server, because it may upgrade the connection.
            seen = http1.get(f"https://{host}/")
            assert seen.http_version == "HTTP/1.1" and (seen.status_code == 200) == (port == 8080)
        with channel(host) as client:
            response, call = client.unary_unary("/echo.Echo/Once").with_call(b"question", timeout=60)
            assert response == b"question"
            assert ("x-bytes", "13") in [tuple(pair) for pair in call.trailing_metadata()]

            # Each reply arrives before the next message is sent.
            questions: queue.Queue[bytes | None] = queue.Queue()
            responses = client.stream_stream("/echo.Echo/Both")(iter(questions.get, None), timeout=60)
            for number in range(10):
                question = bytes([number]) * 10_000
                questions.put(question)
                assert next(responses) == question
            questions.put(None)
            assert list(responses) == []
            assert responses.code() == grpc.StatusCode.OK

            # A cancelled call does not affect the others.
            abandoned = client.stream_stream("/echo.Echo/Both")(iter(questions.get, None), timeout=60)
            questions.put(b"first")
            assert next(abandoned) == b"first"
            abandoned.cancel()
            questions.put(None)
            large = os.urandom(3 << 20)
            assert client.unary_unary("/echo.Echo/Once")(large, timeout=60) == large
            assert sandbox.is_running()
    with channel(sandbox.get_host(9)) as client, pytest.raises(grpc.RpcError) as refused:
        client.unary_unary("/echo.Echo/Once")(b"question", timeout=60)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_private_sandbox_requires_its_token(new_sandbox, web):
    sandbox = new_sandbox(network={"allow_public_traffic": False})
    guest = Guest.start(sandbox)
    url = f"https://{sandbox.get_host(guest.port)}"
    assert web.get(url).status_code == 403
    assert web.get(url, headers={"e2b-traffic-access-token": "wrong"}).status_code == 403
    token = sandbox.traffic_access_token
    assert token and web.get(url, headers={"e2b-traffic-access-token": token}).status_code == 200


def test_a_killed_sandbox_is_unreachable_immediately(new_sandbox, web):
    sandbox = new_sandbox()
    guest = Guest.start(sandbox)
    url = f"https://{sandbox.get_host(guest.port)}"
    with web.stream("GET", f"{url}/stream") as stream:
        parts = stream.iter_bytes()
        assert next(parts)
        since = time.monotonic()
        assert sandbox.kill()
        gone = web.get(url)
        assert gone.json() == {"sandboxId": sandbox.sandbox_id, "message": NOT_FOUND, "code": 502}
        with pytest.raises(httpx.HTTPError):
            for _ in parts:
                pass
        assert time.monotonic() - since < 20
    assert not sandbox.is_running()


async def test_the_asynchronous_sdk_works_with_the_domain():
    sandbox = await AsyncSandbox.create(timeout=120, metadata=MARK)
    try:
        assert (await sandbox.commands.run("echo async")).stdout == "async\n"
        await sandbox.files.write("a.txt", "async")
        async with httpx.AsyncClient(verify=ssl.create_default_context()) as client:
            assert (await client.get(sandbox.download_url("a.txt"))).text == "async"
    finally:
        assert await sandbox.kill()


def test_the_api_has_a_name_below_the_domain(sandbox, web):
    headers = {"X-API-Key": os.environ["E2B_API_KEY"]}
    listed = web.get(f"https://api.{DOMAIN}/v2/sandboxes", headers=headers)
    assert listed.http_version == "HTTP/2"
    assert sandbox.sandbox_id in [item["sandboxID"] for item in listed.json()]
    assert eventually(lambda: Sandbox.get_info(sandbox.sandbox_id).state.value == "running", within=10)
