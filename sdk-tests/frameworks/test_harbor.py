"""Harbor runs tasks in sandboxes of an existing template, more at a time than the team's limit allows."""

import json
import os
import subprocess
import sys
from pathlib import Path

from operators import new_team

TASKS = 6
AT_A_TIME = 5
SANDBOXES_MAX = 3
TASK = """
schema_version = "1.4"
[task]
name = "hearth/task-{number}"
version = "1.0.0"
[verifier]
timeout_sec = 120.0
environment_mode = "shared"
[agent]
timeout_sec = 120.0
[environment]
build_timeout_sec = 180.0
"""
# Long enough that the first sandboxes still run when Harbor requests more than the team's limit.
SOLUTION = "#!/bin/bash\nsleep 3\necho {number} > /home/user/answer\n"
TEST = '#!/bin/bash\ngrep -qx {number} /home/user/answer && echo 1 > /logs/verifier/reward.txt || echo 0 > /logs/verifier/reward.txt\n'


def write_task(folder: Path, number: int) -> None:
    """Writes a task that its own solution solves."""
    files = {
        "task.toml": TASK,
        "instruction.md": "Write {number} into /home/user/answer.\n",
        "environment/Dockerfile": "FROM base\n",
        "solution/solve.sh": SOLUTION,
        "tests/test.sh": TEST,
    }
    for name, text in files.items():
        file = folder / f"task-{number}" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(number=number))


def test_trials_wait_for_their_turn(tmp_path):
    for number in range(TASKS):
        write_task(tmp_path / "tasks", number)
    environment = {
        **{name: os.environ[name] for name in ("PATH", "E2B_API_URL", "E2B_SANDBOX_URL")},
        "E2B_API_KEY": new_team(SANDBOXES_MAX),
        "HARBOR_TELEMETRY": "0",
        "HOME": str(tmp_path),
    }
    words = ["--path", "tasks", "--agent", "oracle", "--env", "e2b", "--environment-kwarg", "prebuilt_template_id=base"]
    words += ["--n-concurrent", str(AT_A_TIME), "--jobs-dir", "jobs", "--job-name", "all", "--debug", "--quiet", "--yes"]
    harbor = Path(sys.executable).with_name("harbor")
    done = subprocess.run(
        [harbor, "run", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trials = [json.loads(file.read_text()) for file in (tmp_path / "jobs/all").glob("*/result.json")]
    failures = [trial["exception_info"] for trial in trials if trial["exception_info"]]
    assert not failures, failures
    assert [trial["verifier_result"]["rewards"]["reward"] for trial in trials] == [1] * TASKS
    log = "".join(file.read_text(errors="replace") for file in (tmp_path / "jobs/all").rglob("*.log"))
    assert "waiting for a slot" in log, "the team was never at its limit"
