"""Operations of an operator on the server's machine, by the command line of Hearth."""

import json
import os
import subprocess
from uuid import uuid4

import pytest


def hearth(*words: str) -> str:
    """Runs the `hearth` program of the server, and returns its output."""
    program, data = os.environ.get("HEARTH_PROGRAM"), os.environ.get("HEARTH_DATA_DIR")
    if not program or not data:
        pytest.exit("HEARTH_PROGRAM or HEARTH_DATA_DIR is not set: this test needs a private server, as started by `make sdk-tests`", 4)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [program, *words], env={**environment, "HEARTH_DATA_DIR": data}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"hearth {words[0]}: {done.stderr}"
    return done.stdout


def new_team(sandboxes: int) -> str:
    """Creates a team with a limit of concurrent sandboxes, and returns an API key of it."""
    slug = f"team-{uuid4().hex[:8]}"
    hearth("team", "create", slug, "--sandboxes", str(sandboxes))
    return json.loads(hearth("key", "create", slug, "--json"))["key"]
