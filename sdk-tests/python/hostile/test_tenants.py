"""Attacks by a tenant: allowed requests at the highest rate, and requests for sandboxes of others."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from e2b import NotFoundException, RateLimitException, Sandbox

from hostile.measuring import ATTACK_SECONDS
from journeys import API_URL, ENVD_PORT, MARK, SANDBOX_URL, by_headers

CLIENTS = 6
# Number of requests in `not_there` that read or change a sandbox; the others read its logs and metrics, which may be
# empty.
CHANGES = 6


def test_sandboxes_that_come_and_go_at_the_limit(unnoticed, tenant):
    ends = time.monotonic() + ATTACK_SECONDS
    full = 0

    def churn(_: int) -> int:
        nonlocal full
        made = 0
        while time.monotonic() < ends or not made:
            try:
                with tenant.sandbox():
                    made += 1
            except RateLimitException:
                full += 1
            assert time.monotonic() < ends + 60, "nobody gets a sandbox any more"
        return made

    with unnoticed(), ThreadPoolExecutor(max_workers=CLIENTS) as pool:
        made = sum(pool.map(churn, range(CLIENTS)))
    print(f"{made} sandboxes came and went, {full} were refused")
    assert full, "else the team was never at its limit"


def test_sandboxes_of_others(unnoticed, tenant, victim):
    other = victim.sandbox_id
    with unnoticed(), httpx.Client(base_url=API_URL, headers={"X-API-Key": tenant.key}, timeout=30) as client:
        with tenant.sandbox() as own:
            listed = client.get("/v2/sandboxes").json()
            assert [sandbox["sandboxID"] for sandbox in listed] == [own.sandbox_id]
            assert client.get("/v2/sandboxes", params={"metadata": f"journeys={MARK['journeys']}"}).json() == listed
            strangers = not_there(client, "i" + "0" * (len(other) - 1))
            theirs = not_there(client, other)
            # A sandbox of another team is treated like one that does not exist.
            assert theirs == strangers
            assert {status for status, _ in theirs[:CHANGES]} == {404}, theirs
            with pytest.raises(NotFoundException):
                Sandbox.connect(other, api_key=tenant.key)
            assert not Sandbox.kill(other, api_key=tenant.key)
            foreign = {**by_headers(other, ENVD_PORT), "X-Access-Token": own._envd_access_token}
            assert httpx.get(f"{SANDBOX_URL}/files?path=/etc/hostname", headers=foreign).status_code == 401
    assert victim.is_running()


def not_there(client: httpx.Client, sandbox: str) -> list[tuple[int, str]]:
    """Returns status and body of the replies to all requests for a sandbox, with its ID removed."""
    path = f"/sandboxes/{sandbox}"
    answers = [
        client.get(path),
        client.delete(path),
        client.post(f"{path}/timeout", json={"timeout": 1}),
        client.post(f"{path}/refreshes", json={"duration": 1}),
        client.post(f"{path}/connect", json={"timeout": 1}),
        client.post(f"/v2{path}/connect", json={"timeout": 1}),
        client.get(f"{path}/logs"),
        client.get(f"/v2{path}/logs"),
        client.get(f"{path}/metrics"),
    ]
    return [(answer.status_code, answer.text.replace(sandbox, "ID")) for answer in answers]
