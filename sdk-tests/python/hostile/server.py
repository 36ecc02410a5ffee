"""Resources of the server's process, as reported by the operating system."""

import os
from pathlib import Path

PID = os.environ.get("JOURNEYS_SERVER_PID", "")


def descriptors() -> int:
    return len(os.listdir(f"/proc/{PID}/fd"))


def memory() -> int:
    """Returns the anonymous resident memory in bytes; it does not include mapped files."""
    status = Path(f"/proc/{PID}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
