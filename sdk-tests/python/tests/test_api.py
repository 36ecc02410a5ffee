"""The REST API without an SDK: both generations of routes, and whatever clients should not send."""

import re
from datetime import datetime, timedelta
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from e2b import AuthenticationException, NotFoundException, Sandbox, SandboxException, Template

from journeys import API_URL, MARK

# More than any request may have.
OVERSIZED = 17 * 1024 * 1024


def body(**members):
    return {"templateID": "base", "metadata": MARK, **members}


def told(answer: httpx.Response, status: int) -> str:
    """The message of an error, which is always in the same form."""
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert error["code"] == status and error["message"]
    return error["message"]


@pytest.fixture
def created(api):
    """Creates sandboxes by POST; they are deleted afterwards."""
    stack = []

    def create(path: str, **members) -> dict:
        answer = api.post(path, json=body(**members))
        assert answer.status_code == 201, answer.text
        stack.append(answer.json()["sandboxID"])
        return answer.json()

    yield create
    for sandbox_id in stack:
        api.delete(f"/sandboxes/{sandbox_id}")


def seconds_to_live(api, sandbox_id: str) -> float:
    info = api.get(f"/sandboxes/{sandbox_id}").json()
    life = datetime.fromisoformat(info["endAt"].replace("Z", "+00:00")) - datetime.fromisoformat(
        info["startedAt"].replace("Z", "+00:00")
    )
    return life / timedelta(seconds=1)


def test_health_is_open():
    assert httpx.get(f"{API_URL}/health").status_code == 200


def test_the_newest_generation_is_always_secured(api, created):
    answer = created("/v2/sandboxes")
    assert answer["envdAccessToken"] and answer["trafficAccessToken"] is None
    assert answer["templateID"] != "base" and answer["alias"] == "base"
    assert answer["clientID"] and answer["envdVersion"]
    # A bare host, with a port perhaps: what `getHost()` puts behind a port and an id.
    assert re.fullmatch(r"[a-z0-9.-]+(:[0-9]+)?", answer["domain"])
    assert abs(seconds_to_live(api, answer["sandboxID"]) - 300) < 1
    detail = api.get(f"/sandboxes/{answer['sandboxID']}").json()
    assert detail["envdAccessToken"] == answer["envdAccessToken"]
    assert detail["lifecycle"] == {"onTimeout": "kill", "autoResume": False}
    assert detail["volumeMounts"] == [] and detail["diskSizeMB"] > 0
    assert "network" not in detail or detail["network"] is not None


def test_the_older_generation(api, created):
    answer = created("/sandboxes")
    assert "envdAccessToken" not in answer
    assert abs(seconds_to_live(api, answer["sandboxID"]) - 15) < 1
    secured = created("/sandboxes", secure=True, timeout=60)
    assert secured["envdAccessToken"]
    listed = api.get("/sandboxes").json()
    assert {answer["sandboxID"], secured["sandboxID"]} <= {item["sandboxID"] for item in listed}
    again = api.post(f"/sandboxes/{secured['sandboxID']}/connect", json={"timeout": 5})
    assert again.status_code == 200 and again.json()["envdAccessToken"] == secured["envdAccessToken"]
    # The old long form of ids.
    assert api.get(f"/sandboxes/{secured['sandboxID']}-6532622b").json()["sandboxID"] == secured["sandboxID"]


def test_connect_takes_bodies_of_all_kinds(api, created):
    sandbox_id = created("/v2/sandboxes", timeout=600)["sandboxID"]
    path = f"/v2/sandboxes/{sandbox_id}/connect"
    end_at = api.get(f"/sandboxes/{sandbox_id}").json()["endAt"]
    assert api.post(path).status_code == 200
    assert api.post(path, json={}).status_code == 200
    chunked = api.post(path, content=iter([]), headers={"Content-Type": "application/json"})
    assert chunked.status_code == 200
    assert api.get(f"/sandboxes/{sandbox_id}").json()["endAt"] == end_at


def test_keep_alive(api, created):
    sandbox_id = created("/v2/sandboxes", timeout=30)["sandboxID"]
    assert api.post(f"/sandboxes/{sandbox_id}/refreshes", json={"duration": 200}).status_code == 204
    assert 199 < seconds_to_live(api, sandbox_id) < 260
    assert api.post(f"/sandboxes/{sandbox_id}/refreshes").status_code == 204
    assert 199 < seconds_to_live(api, sandbox_id) < 260


def test_lists_count_what_runs(api, created):
    group = uuid4().hex
    first, second = (created("/v2/sandboxes", metadata={**MARK, "group": group})["sandboxID"] for _ in range(2))
    query = {"metadata": f"group={group}", "limit": 1, "state": "running"}
    page = api.get("/v2/sandboxes", params=query)
    assert [item["sandboxID"] for item in page.json()] == [second]
    assert page.headers["X-Total-Running"] == "2"
    rest = api.get("/v2/sandboxes", params={**query, "nextToken": page.headers["X-Next-Token"]})
    assert [item["sandboxID"] for item in rest.json()] == [first]
    assert "X-Next-Token" not in rest.headers
    # A page of one order is none of the other.
    told(api.get("/v2/sandboxes", params={**query, "order": "asc", "nextToken": page.headers["X-Next-Token"]}), 400)


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
    told(api.get("/v2/sandboxes", params=query), 400)


@pytest.mark.parametrize("key", [None, "", "e2b_" + "0" * 40, "e2b_nothex", "sk_" + "0" * 40, "e2b_" + "0" * 5000])
def test_without_the_right_key_nothing_is_told(key):
    headers = {} if key is None else {"X-API-Key": key}
    for method, path in [
        ("GET", "/v2/sandboxes"),
        ("POST", "/v2/sandboxes"),
        ("GET", "/sandboxes/iabc"),
        ("DELETE", "/sandboxes/iabc"),
    ]:
        told(httpx.request(method, f"{API_URL}{path}", headers=headers), 401)


def test_the_sdk_tells_a_wrong_key(new_sandbox):
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
        told(api.post(path, content=content, headers={"Content-Type": "application/json"}), 400)


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
        told(api.post(path, json=body(**members)), 400)


def test_unknown_members_are_let_through(created):
    assert created("/v2/sandboxes", somethingNew={"a": 1}, timeout=30)["sandboxID"]


def test_unknown_templates(api):
    for reference in (f"missing-{uuid4().hex[:8]}", "base:no-such-tag"):
        told(api.post("/v2/sandboxes", json=body(templateID=reference)), 404)
    with pytest.raises((NotFoundException, SandboxException), match="404"):
        Sandbox.create(f"missing-{uuid4().hex[:8]}")


def test_the_base_template_exists(api):
    # It belongs to nobody, which clients are told like a template of another team: the name is taken.
    told(api.get("/templates/aliases/base"), 403)
    assert Template.exists("base")
    assert not Template.exists(f"missing-{uuid4().hex[:8]}")
    told(api.get(f"/templates/aliases/missing-{uuid4().hex[:8]}"), 404)


def test_bad_and_unknown_ids(api):
    for bad in ("NOT_AN_ID", "a-b-c", "%00", quote("i../../x", safe=""), "ü"):
        told(api.get(f"/sandboxes/{bad}"), 400)
        told(api.delete(f"/sandboxes/{bad}"), 400)
    missing = "inotthere0000000000000"
    told(api.get(f"/sandboxes/{missing}"), 404)
    told(api.delete(f"/sandboxes/{missing}"), 404)
    told(api.post(f"/sandboxes/{missing}/timeout", json={"timeout": 10}), 404)
    told(api.post(f"/sandboxes/{missing}/refreshes"), 404)
    told(api.post(f"/sandboxes/{missing}/connect", json={"timeout": 10}), 404)
    told(api.post(f"/v2/sandboxes/{missing}/connect"), 404)


def test_an_oversized_body_is_refused_and_the_server_lives_on(api):
    metadata = {"x": "y" * OVERSIZED}
    try:
        answer = api.post("/v2/sandboxes", json=body(metadata=metadata))
    except httpx.TransportError:
        # The server may hang up on the rest; what it must not do is take it all.
        pass
    else:
        assert answer.status_code in (400, 413)
        told(answer, answer.status_code)
    assert api.get("/health").status_code == 200


def test_unknown_routes(api):
    told(api.get("/no/such/route"), 404)


def test_what_is_not_built_yet_says_so(api, created):
    """No answer of success for something that was not done."""
    sandbox_id = created("/v2/sandboxes", timeout=60)["sandboxID"]
    for method, path in [
        ("POST", f"/sandboxes/{sandbox_id}/fork"),
        ("POST", f"/sandboxes/{sandbox_id}/snapshots"),
        ("POST", "/volumes"),
    ]:
        answer = api.request(method, path, json={})
        assert answer.status_code >= 400, (path, answer.text)
        told(answer, answer.status_code)
    assert api.get(f"/sandboxes/{sandbox_id}").json()["state"] == "running"
