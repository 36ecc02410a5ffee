"""Measures the effect of an attack on a neighbour, compared with measurements without an attack."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

# Minimum duration of an attack.
ATTACK_SECONDS = 3.0
# Allowed factor compared with the time without load ...
QUIET_FACTOR = 3.0
# ... or, on machines with few processors, compared with the time under the same load without an attack.
LOAD_FACTOR = 3.0
# Minimum numbers of replies for a meaningful median and 95th percentile. With fewer, no reply may take longer than the
# stall limit.
SAMPLES_MIN = {"median": 5, "19 in 20": 20}
STALL_SECONDS = 10.0
# Times in seconds that are always allowed, as median and 95th percentile: about one time slice of a busy processor.
FLOORS = {"health": (0.03, 0.25), "file": (0.1, 0.6), "command": (0.4, 1.5)}


@dataclass(frozen=True)
class Seen:
    """Measurements of the neighbour in one interval."""

    times: dict[str, list[float]]
    wrong: list[str]

    def answers(self) -> int:
        return sum(map(len, self.times.values()))

    def marks(self, kind: str) -> tuple[float, float]:
        """Returns the median and the 95th percentile of the times of a kind."""
        times = sorted(self.times[kind])
        return median(times), times[int(len(times) * 0.95)]

    def __str__(self) -> str:
        def told(kind: str) -> str:
            middle, high = self.marks(kind)
            return f"{kind} {middle * 1000:.0f}/{high * 1000:.0f} ms of {len(self.times[kind])}"

        return ", ".join(told(kind) for kind in sorted(self.times))


class Watch:
    """Process of the neighbour."""

    def __init__(self, sandbox_id: str) -> None:
        folder = Path(__file__).parent
        environment = {**os.environ, "PYTHONPATH": str(folder.parent)}
        self.process = subprocess.Popen(
            [sys.executable, folder / "neighbour.py", sandbox_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    @contextmanager
    def measuring(self, seconds: float) -> Iterator[list[Seen]]:
        """Measures during the body, at least for `seconds`; the list contains the measurements afterwards."""
        outcome: list[Seen] = []
        self.say("begin")
        since = time.monotonic()
        try:
            yield outcome
            time.sleep(max(0.0, seconds - (time.monotonic() - since)))
        finally:
            self.say("end")
            line = self.process.stdout.readline()
            assert line, "the neighbour ended"
            outcome.append(Seen(**json.loads(line)))

    def say(self, word: str) -> None:
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@dataclass
class Measured:
    """All measurements of this run."""

    watch: Watch
    quiet: Seen
    loaded: Seen
    answers: int = 0
    wrong: list[str] = field(default_factory=list)

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """Fails if the body affects the neighbour more than allowed."""
        with self.watch.measuring(ATTACK_SECONDS) as outcome:
            yield
        seen = outcome[0]
        self.answers += seen.answers()
        self.wrong += seen.wrong
        print(f"neighbour: {seen}")
        assert not seen.wrong, seen.wrong[:5]
        slow = list(self.too_slow(seen))
        assert not slow, f"{slow}; in quiet: {self.quiet}; under the same load: {self.loaded}"

    def too_slow(self, seen: Seen) -> Iterator[str]:
        for kind, floors in FLOORS.items():
            rows = zip(("median", "19 in 20"), seen.marks(kind), self.quiet.marks(kind), self.loaded.marks(kind), floors)
            for mark, took, quiet, loaded, floor in rows:
                limit = max(QUIET_FACTOR * quiet, LOAD_FACTOR * loaded, floor)
                if len(seen.times[kind]) < SAMPLES_MIN[mark]:
                    took, limit = max(seen.times[kind]), STALL_SECONDS
                if took > limit:
                    yield f"{kind}, {mark}: {took * 1000:.0f} ms, allowed {limit * 1000:.0f} ms"
