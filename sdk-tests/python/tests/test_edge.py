"""The edge: routing by headers and by host name, streams, WebSockets, and rejected requests."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from websockets.sync.client import connect

from journeys import (
    DOMAIN,
    ENVD_PORT,
    NOT_FOUND,
    PORT_CLOSED,
    SANDBOX_URL,
    Guest,
    by_headers,
    by_host,
    edge_address,
    eventually,
    host,
)

pytestmark = pytest.mark.usefixtures("guest")


@pytest.fixture(params=["headers", "host"])
def way(request, guest: Guest) -> dict[str, str]:
    """Both ways to route to a sandbox and its port."""
    return guest.by_headers() if request.param == "headers" else guest.by_host()


def test_requests_arrive_unchanged(edge, way):
    response = edge.get("/some/path%20x?a=b&c=%2F", headers={**way, "X-Custom": "kept"})
    assert response.status_code == 200
    seen = response.json()
    assert (seen["method"], seen["path"], seen["headers"]["x-custom"]) == ("GET", "/some/path%20x?a=b&c=%2F", "kept")
    for method in ("PUT", "PATCH", "DELETE"):
        assert edge.request(method, "/", headers=way).json()["method"] == method
    body = bytes(range(256)) * 5000
    seen = edge.post("/", headers=way, content=body).json()
    assert (seen["length"], seen["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


def test_the_host_header_reaches_the_service(edge, guest):
    name = host(guest.port, guest.sandbox.sandbox_id)
    assert edge.get("/", headers={"Host": name}).json()["headers"]["host"] == name


def test_header_names_reach_a_service_in_canonical_case(new_sandbox, edge):
    own = Guest.start(new_sandbox(network={"mask_request_host": "custom-host.example.com:${PORT}"}), 8090, "echo_head.py")
    for way in (own.by_headers(), own.by_host()):
        lines = edge.get("/", headers={**way, "x-request-ID": "1", "user-agent": "t"}).text.splitlines()
        assert {"Host: custom-host.example.com:8090", "X-Request-Id: 1", "User-Agent: t"} <= set(lines)


def test_replies_arrive_unchanged(edge, way):
    for status in (201, 404, 418, 500, 503):
        assert edge.get(f"/status/{status}", headers=way).status_code == status


def test_the_sdk_returns_the_same_host_name(guest):
    name = guest.sandbox.get_host(guest.port)
    assert name.startswith(f"{guest.port}-{guest.sandbox.sandbox_id}.")


def test_a_reply_is_streamed(edge, way):
    with edge.stream("GET", "/stream", headers=way) as response:
        parts = response.iter_raw()
        assert next(parts) == b"first"
        # The server sends the rest only now, so the edge did not buffer the first part.
        assert httpx.get(f"{SANDBOX_URL}/release", headers=way).json() == {"released": True}
        assert b"".join(parts) == b"second"


def test_a_request_is_streamed(edge, way):
    def arrived() -> int:
        return httpx.get(f"{SANDBOX_URL}/arrived", headers=way).json()["arrived"]

    def body() -> Iterator[bytes]:
        yield b"first"
        # Send the rest only after the service has received the first part.
        eventually(lambda: arrived() == 5, within=20)
        yield b"second"

    response = edge.post("/", headers=way, content=body())
    assert response.json()["sha256"] == hashlib.sha256(b"firstsecond").hexdigest()


@contextmanager
def websocket(headers: dict[str, str]):
    """Opens a WebSocket through the edge."""
    address, port = edge_address()
    name = headers.get("Host", f"{address}:{port}")
    rest = {key: value for key, value in headers.items() if key != "Host"}
    with socket.create_connection((address, port)) as connection:
        with connect(f"ws://{name}/socket", sock=connection, additional_headers=rest, compression=None) as client:
            yield client


def test_websockets_are_forwarded(way):
    with websocket(way) as client:
        for message in ("hello", "ü" * 100, b"\x00\x01\xff", b"x" * 60_000):
            client.send(message)
            assert client.recv(timeout=20) == message
        assert client.ping().wait(timeout=20)


def test_concurrent_requests(way):
    responses = []
    with httpx.Client(base_url=SANDBOX_URL, headers=way, timeout=60) as client:

        def ask(number: int) -> None:
            responses.append(client.get(f"/{number}").json()["path"])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(responses) == sorted(f"/{number}" for number in range(20))


# envd: X4
def test_a_closed_port_gives_its_message(edge, guest):
    sandbox_id = guest.sandbox.sandbox_id
    for headers in (by_headers(sandbox_id, 9), by_host(sandbox_id, 9)):
        response = edge.get("/", headers=headers)
        assert response.status_code == 502
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
        assert response.json() == {"sandboxId": sandbox_id, "message": PORT_CLOSED, "port": 9, "code": 502}


# envd: X4
def test_an_unknown_sandbox_gives_its_message(edge):
    missing = "inotthere0000000000000"
    for headers in (by_headers(missing, 8000), by_host(missing, 8000)):
        response = edge.get("/", headers=headers)
        assert response.status_code == 502
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
        assert response.json() == {"sandboxId": missing, "message": NOT_FOUND, "code": 502}


def test_a_browser_gets_a_page(edge, guest):
    browser = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36", "Accept": "text/html,*/*"}
    response = edge.get("/", headers={**by_headers(guest.sandbox.sandbox_id, 9), **browser})
    assert response.status_code == 502
    assert response.headers["Content-Type"].startswith("text/html")
    scripted = {**browser, "Accept": "application/json", "Sec-Fetch-Mode": "cors"}
    assert edge.get("/", headers={**by_headers(guest.sandbox.sandbox_id, 9), **scripted}).json()["code"] == 502


@pytest.mark.parametrize(
    "name",
    [
        "nodots",
        f"nodash.{DOMAIN}",
        f"port-iabc.{DOMAIN}",
        f"99999999-iabc.{DOMAIN}",
        f"8000-{'x' * 300}.{DOMAIN}",
        f"8000-I!.{DOMAIN}",
    ],
)
def test_invalid_hosts_are_rejected(edge, name):
    response = edge.get("/", headers={"Host": name})
    assert response.status_code == 400, response.text


def test_a_single_routing_header_is_rejected(edge, guest):
    for header in by_headers(guest.sandbox.sandbox_id, 8000).items():
        assert edge.get("/", headers=dict([header])).status_code == 400


# envd: S10
@pytest.mark.parametrize(
    "path",
    [
        "/init",
        "/init/",
        "//init",
        "/files/../init",
        "/%69nit",
        "/freeze",
        "/unfreeze",
        "/fsfreeze",
        "/fsthaw",
        "/collapse",
        "/upgrade",
    ],
)
def test_internal_routes_are_rejected(guest, path):
    # Written by hand, because HTTP libraries normalize such paths before they send them.
    sandbox = guest.sandbox
    body = json.dumps({"envVars": {"STOLEN": "1"}})
    tokens = [f"X-Access-Token: {token}\r\n" for token in ("wrong", sandbox._envd_access_token)]
    for token in ("", *tokens):
        for method in ("POST", "GET"):
            request = (
                f"{method} {path} HTTP/1.1\r\nHost: {host(ENVD_PORT, sandbox.sandbox_id)}\r\nContent-Type: application/json\r\n"
                f"{token}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
            )
            with socket.create_connection(edge_address(), timeout=20) as connection:
                connection.sendall(request.encode())
                response = b"".join(iter(lambda: connection.recv(65536), b""))
            head, _, text = response.partition(b"\r\n\r\n")
            assert head.split()[1] == b"404", response
            error = json.loads(text)
            assert error["code"] == 404 and "reserved" in error["message"]
    # The service on another port may have such a route.
    if path == "/init":
        assert httpx.get(f"{SANDBOX_URL}{path}", headers=guest.by_headers()).json()["path"] == path


def test_a_kill_closes_open_streams(new_sandbox, edge):
    own = Guest.start(new_sandbox())
    with edge.stream("GET", "/stream", headers=own.by_headers()) as response, websocket(own.by_host()) as client:
        parts = response.iter_raw()
        assert next(parts) == b"first"
        client.send("still there")
        assert client.recv(timeout=20) == "still there"
        assert own.sandbox.kill()
        with pytest.raises((httpx.TransportError, StopIteration)):
            next(parts)
        with pytest.raises(Exception, match="close|Close"):
            client.recv(timeout=20)
    gone = edge.get("/", headers=own.by_headers())
    assert (gone.status_code, gone.json()["message"]) == (502, NOT_FOUND)
