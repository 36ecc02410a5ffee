"""Runs Schemathesis against a live server: no reply may be a server error or violate the server's OpenAPI document.

Reads E2B_API_URL, E2B_API_KEY and, if set, HEARTH_ADMIN_TOKEN. Afterwards it deletes everything that the requests created, and
restores the status of nodes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

FOLDER = Path(__file__).parent
# Seed of the requests, which otherwise depend only on the document and the server's replies.
SEED = 1
# ID of a team that does not exist, used without an admin token.
NO_TEAM = "00000000-0000-0000-0000-000000000000"


class Server:
    def __init__(self, url, key, admin_token):
        self.url, self.key, self.admin_token = url, key, admin_token
        self.team_id = self.find_team() if admin_token else NO_TEAM

    def call(self, method, path, headers, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read()
            return json.loads(text) if text else None, response.headers

    def by_key(self):
        return {"X-API-Key": self.key}

    def as_operator(self):
        return {"X-Admin-Token": self.admin_token}

    def for_team(self):
        return {**self.as_operator(), "X-Team-ID": self.team_id}

    def find_team(self):
        """Returns the ID of the key's team: the one that lists a sandbox created with the key."""
        sandbox, _ = self.call("POST", "/v2/sandboxes", self.by_key(), {"templateID": "base"})
        counts, _ = self.call("GET", "/admin/sandboxes/running-counts", self.as_operator())
        for team_id in (count["teamID"] for count in counts):
            listed, _ = self.call("GET", "/sandboxes", {**self.as_operator(), "X-Team-ID": team_id})
            if sandbox["sandboxID"] in (item["sandboxID"] for item in listed):
                self.call("DELETE", f"/sandboxes/{sandbox['sandboxID']}", self.by_key())
                return team_id
        raise RuntimeError("no team has the sandbox that was just created")

    def sandboxes(self):
        listed, _ = self.call("GET", "/sandboxes", self.by_key())
        return {item["sandboxID"] for item in listed}

    def keys(self):
        if not self.admin_token:
            return set()
        listed, _ = self.call("GET", "/api-keys", self.for_team())
        return {item["id"] for item in listed}

    def nodes(self):
        if not self.admin_token:
            return {}
        listed, _ = self.call("GET", "/nodes", self.as_operator())
        return {item["id"]: item["status"] for item in listed}

    def restore(self, kept_nodes):
        for node_id, status in self.nodes().items():
            if status != kept_nodes.get(node_id, status):
                change = {"status": kept_nodes[node_id]}
                self.call("POST", f"/nodes/{node_id}", self.as_operator(), change)

    def remove(self, kept_sandboxes, kept_keys):
        for sandbox_id in self.sandboxes() - kept_sandboxes:
            self.delete(f"/sandboxes/{sandbox_id}", self.by_key())
        for key_id in self.keys() - kept_keys:
            self.delete(f"/api-keys/{key_id}", self.for_team())

    def delete(self, path, headers):
        try:
            self.call("DELETE", path, headers)
        except urllib.error.HTTPError as error:
            # 404: it has expired in the meantime.
            if error.code != 404:
                raise


def plan(server):
    """Yields the runs: name of the caller, its credentials, and arguments of Schemathesis."""
    yield "a key", server.by_key(), ["--phases", "examples,coverage,fuzzing", "--max-examples", "8"]
    sandboxes = ["--include-tag", "sandboxes"]
    yield "a key, in sequences", server.by_key(), ["--phases", "stateful", "--max-examples", "40", *sandboxes]
    if not server.admin_token:
        return
    tags = [word for tag in ("sandboxes", "templates", "teams", "keys") for word in ("--include-tag", tag)]
    # Without `deleteApiKey`: Schemathesis would find and delete the key of the other runs. Without `ignored_auth`: that
    # check expects a rejection if one of several credentials is wrong, while the server accepts any valid one.
    kept = ["--exclude-operation-id", "deleteApiKey", "--exclude-checks", "ignored_auth"]
    some = ["--phases", "examples,fuzzing,stateful", "--max-examples", "4"]
    yield "an operator for a team", server.for_team(), [*some, *tags, *kept]
    yield "an operator", server.as_operator(), ["--max-examples", "8", "--include-tag", "operators"]


def run(server, seed, headers, arguments):
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(FOLDER / "schemathesis.toml"), "run"]
    command += [server.url + "/openapi.json", "--seed", str(seed), *arguments]
    for name, value in headers.items():
        command += ["--header", f"{name}: {value}"]
    with tempfile.TemporaryDirectory() as storage:
        environment = {**os.environ, "SCHEMA_TEAM_ID": server.team_id, "HYPOTHESIS_STORAGE_DIRECTORY": storage}
        return subprocess.run(command, cwd=FOLDER, env=environment, check=False).returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the random requests")
    seed = parser.parse_args().seed
    environment = os.environ
    server = Server(environment["E2B_API_URL"], environment["E2B_API_KEY"], environment.get("HEARTH_ADMIN_TOKEN"))
    kept_sandboxes, kept_keys, kept_nodes = server.sandboxes(), server.keys(), server.nodes()
    failed = []
    for who, headers, arguments in plan(server):
        since = time.monotonic()
        print(f"\n{who}, seed {seed}", flush=True)
        try:
            if not run(server, seed, headers, arguments):
                failed.append(who)
        finally:
            # After each run, because a team's number of sandboxes is limited.
            server.restore(kept_nodes)
            server.remove(kept_sandboxes, kept_keys)
        print(f"{who}: {time.monotonic() - since:.0f} s", flush=True)
    if failed:
        sys.exit(f"the server violates its OpenAPI document, called by {'; '.join(failed)}")


if __name__ == "__main__":
    main()
