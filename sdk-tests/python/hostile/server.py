"""The server's process, as its operating system sees it."""

import os
from pathlib import Path

PID = os.environ.get("JOURNEYS_SERVER_PID", "")


def descriptors() -> int:
    return len(os.listdir(f"/proc/{PID}/fd"))


def memory() -> int:
    """Bytes of memory that it holds by itself: not what it maps from files."""
    status = Path(f"/proc/{PID}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
