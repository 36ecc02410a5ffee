"""Access to a sandbox's daemon: without a token, with a signature, and in a sandbox without a token."""

import socket

import pytest
from e2b import AuthenticationException, Sandbox
from e2b.connection_config import ConnectionConfig
from e2b.sandbox.signature import get_signature

from journeys import ENVD_PORT, MARK, by_headers, edge_address

# Token of the published examples of signatures.
TOKEN = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"
REFUSED = "unauthorized access, please provide a valid access token or method signing if supported"


# envd: S1
@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_call_without_the_token_is_rejected(sandbox, token):
    # Written by hand, to compare the reason phrase and every byte of the body.
    headers = {**by_headers(sandbox.sandbox_id, ENVD_PORT), "Content-Type": "application/json", "Connection": "close"}
    if token:
        headers["X-Access-Token"] = token
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST /process.Process/List HTTP/1.1\r\nHost: sandbox\r\n{lines}Content-Length: 2\r\n\r\n{{}}"
    with socket.create_connection(edge_address(), timeout=20) as connection:
        connection.sendall(request.encode())
        response = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    head, _, body = response.partition("\r\n\r\n")
    assert head.splitlines()[0] == "HTTP/1.1 401 Unauthorized"
    assert "content-type: application/json; charset=utf-8" in head.lower()
    assert body == f'{{"code":401,"message":"{REFUSED}"}}\n'


# envd: S1, S8
def test_the_sdk_raises_an_authentication_error_for_a_wrong_token(sandbox):
    stranger = Sandbox.connect(sandbox.sandbox_id)
    assert stranger.commands.run("echo in").stdout == "in\n"
    headers = {**by_headers(sandbox.sandbox_id, ENVD_PORT), "X-Access-Token": "wrong"}
    stranger = Sandbox(
        sandbox_id=sandbox.sandbox_id,
        sandbox_domain=sandbox.sandbox_domain,
        envd_version=sandbox._envd_version,
        envd_access_token="wrong",
        connection_config=ConnectionConfig(extra_sandbox_headers=headers),
    )
    for call in (
        lambda: stranger.commands.run("true"),
        lambda: stranger.files.list("/"),
        lambda: stranger.files.read("x"),
    ):
        with pytest.raises(AuthenticationException):
            call()


# envd: S7
def test_unsigned_urls_work_in_a_sandbox_without_a_token(api, edge):
    # Only the first generation of the create route still creates such sandboxes.
    created = api.post("/sandboxes", json={"templateID": "base", "timeout": 120, "metadata": MARK}).json()
    assert not created.get("envdAccessToken")
    headers = by_headers(created["sandboxID"], ENVD_PORT)
    try:
        sent = edge.post("/files", params={"path": "open.txt"}, headers=headers, files={"file": ("open.txt", b"open")})
        assert sent.json() == [{"name": "open.txt", "path": "/home/user/open.txt", "type": "file"}]
        assert edge.get("/files", params={"path": "open.txt"}, headers=headers).text == "open"
        sandbox = Sandbox.connect(created["sandboxID"])
        url = sandbox.download_url("open.txt")
        assert "signature" not in url
        assert edge.get("/files?" + url.split("?")[1], headers=headers).text == "open"
        assert sandbox.commands.run("cat open.txt").stdout == "open"
    finally:
        assert api.delete(f"/sandboxes/{created['sandboxID']}").status_code == 204


# envd: S9
@pytest.mark.parametrize(
    ("path", "operation", "user", "expected"),
    [
        ("hello.txt", "read", "user", "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"),
        ("/home/user/data.bin", "write", None, "v1_2n9B1LJzjs46lZKdqZWgu9B+2D3fHayI9GOVF0mJAEc"),
    ],
)
def test_signatures_of_the_sdk_match_the_published_examples(path, operation, user, expected):
    assert get_signature(path, operation, user, TOKEN)["signature"] == expected


# envd: S9
def test_signatures_with_an_expiry_match_the_published_examples(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_893_456_000 - 60)
    signed = get_signature("/home/user/data.bin", "write", "root", TOKEN, expiration_in_seconds=60)
    assert signed == {"signature": "v1_9Csep9kFGe+Lw/bUqHkxp9UbZgOnqfX5c6KjK7GQ2h0", "expiration": 1_893_456_000}
