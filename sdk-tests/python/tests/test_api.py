"""The REST API without an SDK: both generations of routes, and invalid requests."""

import re
from datetime import datetime, timedelta
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from e2b import AuthenticationException, NotFoundException, Sandbox, SandboxException, Template

from journeys import API_URL, MARK

# Above the maximum size of a request body.
OVERSIZED = 17 * 1024 * 1024


def body(**members):
    return {"templateID": "base", "metadata": MARK, **members}


def check_error(response: httpx.Response, status: int) -> str:
    """Checks status and form of an error reply, and returns its message."""
    assert response.status_code == status, response.text
    error = response.json()
    assert error["code"] == status and error["message"]
    return error["message"]


@pytest.fixture
def created(api):
    """A function that creates sandboxes by POST; they are deleted afterwards."""
    stack = []

    def create(path: str, **members) -> dict:
        response = api.post(path, json=body(**members))
        assert response.status_code == 201, response.text
        stack.append(response.json()["sandboxID"])
        return response.json()

    yield create
    for sandbox_id in stack:
        api.delete(f"/sandboxes/{sandbox_id}")


def seconds_to_live(api, sandbox_id: str) -> float:
    info = api.get(f"/sandboxes/{sandbox_id}").json()
    life = datetime.fromisoformat(info["endAt"].replace("Z", "+00:00")) - datetime.fromisoformat(
        info["startedAt"].replace("Z", "+00:00")
    )
    return life / timedelta(seconds=1)


def test_health_needs_no_key():
    assert httpx.get(f"{API_URL}/health").status_code == 200


def test_the_newest_create_route_always_returns_a_token(api, created):
    response = created("/v2/sandboxes")
    assert response["envdAccessToken"] and response["trafficAccessToken"] is None
    assert response["templateID"] != "base" and response["alias"] == "base"
    assert response["clientID"] and response["envdVersion"]
    # A host name with an optional port: the suffix in the result of `getHost()`.
    assert re.fullmatch(r"[a-z0-9.-]+(:[0-9]+)?", response["domain"])
    assert abs(seconds_to_live(api, response["sandboxID"]) - 300) < 1
    detail = api.get(f"/sandboxes/{response['sandboxID']}").json()
    assert detail["envdAccessToken"] == response["envdAccessToken"]
    assert detail["lifecycle"] == {"onTimeout": "kill", "autoResume": False}
    assert detail["volumeMounts"] == [] and detail["diskSizeMB"] > 0
    assert "network" not in detail or detail["network"] is not None


def test_the_older_create_route(api, created):
    response = created("/sandboxes")
    assert "envdAccessToken" not in response
    assert abs(seconds_to_live(api, response["sandboxID"]) - 15) < 1
    secured = created("/sandboxes", secure=True, timeout=60)
    assert secured["envdAccessToken"]
    listed = api.get("/sandboxes").json()
    assert {response["sandboxID"], secured["sandboxID"]} <= {item["sandboxID"] for item in listed}
    again = api.post(f"/sandboxes/{secured['sandboxID']}/connect", json={"timeout": 5})
    assert again.status_code == 200 and again.json()["envdAccessToken"] == secured["envdAccessToken"]
    # The old long form of IDs.
    assert api.get(f"/sandboxes/{secured['sandboxID']}-6532622b").json()["sandboxID"] == secured["sandboxID"]


def test_connect_accepts_missing_and_empty_bodies(api, created):
    sandbox_id = created("/v2/sandboxes", timeout=600)["sandboxID"]
    path = f"/v2/sandboxes/{sandbox_id}/connect"
    end_at = api.get(f"/sandboxes/{sandbox_id}").json()["endAt"]
    assert api.post(path).status_code == 200
    assert api.post(path, json={}).status_code == 200
    chunked = api.post(path, content=iter([]), headers={"Content-Type": "application/json"})
    assert chunked.status_code == 200
    assert api.get(f"/sandboxes/{sandbox_id}").json()["endAt"] == end_at


def test_refreshes(api, created):
    sandbox_id = created("/v2/sandboxes", timeout=30)["sandboxID"]
    assert api.post(f"/sandboxes/{sandbox_id}/refreshes", json={"duration": 200}).status_code == 204
    assert 199 < seconds_to_live(api, sandbox_id) < 260
    assert api.post(f"/sandboxes/{sandbox_id}/refreshes").status_code == 204
    assert 199 < seconds_to_live(api, sandbox_id) < 260


def test_lists_report_the_number_of_running_sandboxes(api, created):
    group = uuid4().hex
    first, second = (created("/v2/sandboxes", metadata={**MARK, "group": group})["sandboxID"] for _ in range(2))
    query = {"metadata": f"group={group}", "limit": 1, "state": "running"}
    page = api.get("/v2/sandboxes", params=query)
    assert [item["sandboxID"] for item in page.json()] == [second]
    assert page.headers["X-Total-Running"] == "2"
    rest = api.get("/v2/sandboxes", params={**query, "nextToken": page.headers["X-Next-Token"]})
    assert [item["sandboxID"] for item in rest.json()] == [first]
    assert "X-Next-Token" not in rest.headers
    # A page token of one order is invalid for the other.
    check_error(api.get("/v2/sandboxes", params={**query, "order": "asc", "nextToken": page.headers["X-Next-Token"]}), 400)


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "101"},
        {"limit": "many"},
        {"order": "sideways"},
        {"state": "asleep"},
        {"nextToken": "!!"},
        {"startedAfter": "yesterday"},
        {"template": "base:latest"},
        {"metadata": "a=%25zz"},
    ],
    ids=lambda query: "".join(f"{name}={value}" for name, value in query.items()),
)
def test_bad_queries(api, query):
    check_error(api.get("/v2/sandboxes", params=query), 400)


@pytest.mark.parametrize("key", [None, "", "e2b_" + "0" * 40, "e2b_nothex", "sk_" + "0" * 40, "e2b_" + "0" * 5000])
def test_requests_without_a_valid_key_get_401(key):
    headers = {} if key is None else {"X-API-Key": key}
    for method, path in [
        ("GET", "/v2/sandboxes"),
        ("POST", "/v2/sandboxes"),
        ("GET", "/sandboxes/iabc"),
        ("DELETE", "/sandboxes/iabc"),
    ]:
        check_error(httpx.request(method, f"{API_URL}{path}", headers=headers), 401)


def test_the_sdk_raises_an_authentication_error_for_a_wrong_key(new_sandbox):
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"null",
        b"",
        b'"base"',
        b"\xff\xfe",
        b"{}",
        b'{"templateID":1}',
        b'{"templateID":"base","timeout":"soon"}',
        b'{"templateID":"base","metadata":{"a":1}}',
        b"[" * 100_000,
    ],
    ids=["cut", "list", "null", "empty", "text", "bytes", "nothing", "number", "timeout", "metadata", "deep"],
)
def test_malformed_bodies(api, content):
    for path in ("/v2/sandboxes", "/sandboxes"):
        check_error(api.post(path, content=content, headers={"Content-Type": "application/json"}), 400)


@pytest.mark.parametrize(
    "members",
    [
        {"templateID": ""},
        {"templateID": "no spaces"},
        {"templateID": "../etc"},
        {"templateID": "base:"},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": 10_000_000},
        {"timeout": 2**40},
    ],
    ids=str,
)
def test_bad_values(api, members):
    for path in ("/v2/sandboxes", "/sandboxes"):
        check_error(api.post(path, json=body(**members)), 400)


def test_unknown_members_are_ignored(created):
    assert created("/v2/sandboxes", somethingNew={"a": 1}, timeout=30)["sandboxID"]


def test_unknown_templates(api):
    for reference in (f"missing-{uuid4().hex[:8]}", "base:no-such-tag"):
        check_error(api.post("/v2/sandboxes", json=body(templateID=reference)), 404)
    with pytest.raises((NotFoundException, SandboxException), match="404"):
        Sandbox.create(f"missing-{uuid4().hex[:8]}")


def test_the_base_template_exists(api):
    # It belongs to no team. The reply is the same as for a template of another team: the alias is in use.
    check_error(api.get("/templates/aliases/base"), 403)
    assert Template.exists("base")
    assert not Template.exists(f"missing-{uuid4().hex[:8]}")
    check_error(api.get(f"/templates/aliases/missing-{uuid4().hex[:8]}"), 404)


def test_bad_and_unknown_ids(api):
    for bad in ("NOT_AN_ID", "a-b-c", "%00", quote("i../../x", safe=""), "ü"):
        check_error(api.get(f"/sandboxes/{bad}"), 400)
        check_error(api.delete(f"/sandboxes/{bad}"), 400)
    missing = "inotthere0000000000000"
    check_error(api.get(f"/sandboxes/{missing}"), 404)
    check_error(api.delete(f"/sandboxes/{missing}"), 404)
    check_error(api.post(f"/sandboxes/{missing}/timeout", json={"timeout": 10}), 404)
    check_error(api.post(f"/sandboxes/{missing}/refreshes"), 404)
    check_error(api.post(f"/sandboxes/{missing}/connect", json={"timeout": 10}), 404)
    check_error(api.post(f"/v2/sandboxes/{missing}/connect"), 404)


def test_an_oversized_body_is_rejected_and_the_server_still_works(api):
    metadata = {"x": "y" * OVERSIZED}
    try:
        response = api.post("/v2/sandboxes", json=body(metadata=metadata))
    except httpx.TransportError:
        # The server may close the connection early; it must not accept the whole body.
        pass
    else:
        assert response.status_code in (400, 413)
        check_error(response, response.status_code)
    assert api.get("/health").status_code == 200


def test_unknown_routes(api):
    check_error(api.get("/no/such/route"), 404)


def test_unimplemented_routes_return_an_error(api, created):
    """An unimplemented operation must not return a success status."""
    sandbox_id = created("/v2/sandboxes", timeout=60)["sandboxID"]
    for method, path in [
        ("POST", f"/sandboxes/{sandbox_id}/fork"),
        ("POST", f"/sandboxes/{sandbox_id}/snapshots"),
        ("POST", "/volumes"),
    ]:
        response = api.request(method, path, json={})
        assert response.status_code >= 400, (path, response.text)
        check_error(response, response.status_code)
    assert api.get(f"/sandboxes/{sandbox_id}").json()["state"] == "running"
