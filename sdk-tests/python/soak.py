"""Soak test: three sandboxes are busy for minutes; every hash must be correct, and no program may be killed by a signal.

Each sandbox repeatedly writes a file larger than its memory, and hashes it from disk and from the page cache. The host
generates the same content with the same programs to compute the expected hashes.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from e2b import CommandExitException, Sandbox

SANDBOXES = 3
# The file repeats one part, each time after a different line, so that no two blocks are equal.
PART_BYTES = 64 << 20
PARTS = 11
# Timeout of one command, also on a busy machine.
COMMAND_SECONDS = 600
# Timeout of a sandbox, set at the start of each round.
SANDBOX_SECONDS = 2 * COMMAND_SECONDS
# Number of hashes of one file content, before the next content is written.
HASHES_OF_ONE = 4
# Kernel messages about crashed programs and hardware or file system errors.
BAD_NEWS = "segfault|general protection|traps: |Oops|BUG: |I/O error|EXT4-fs error|Out of memory|Killed process|Call Trace"


def content(first: int) -> str:
    """Returns a shell command that prints the content: numbers from `first` on."""
    part = f"seq {first} 999999999 | head -c {PART_BYTES} > soak.part"
    return f"{part}; for number in $(seq {PARTS}); do echo part $number; cat soak.part; done"


@cache
def known_hash(program: str, first: int) -> str:
    """Returns the expected hash, computed on the host."""
    with tempfile.TemporaryDirectory() as folder:
        command = f"{{ {content(first)}; }} | {program}"
        done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


class Fault(Exception):
    """Crashed program, or wrong result."""


@dataclass
class Worker:
    """Sandbox with its results."""

    number: int
    ends: float
    sandbox: Sandbox
    hashes: int = 0
    faults: list[str] = field(default_factory=list)

    def run(self, command: str, user: str = "user") -> str:
        try:
            return self.sandbox.commands.run(command, user=user, timeout=COMMAND_SECONDS).stdout
        except CommandExitException as error:
            # -1: a signal killed the shell; above 128: a signal killed the shell's child process.
            signal = f" (signal {error.exit_code - 128})" if error.exit_code > 128 else ""
            raise Fault(f"`{command}` failed: exit code {error.exit_code}{signal}: {error.stderr.strip()}") from error

    def work(self) -> None:
        """Writes and hashes until the time is over or a fault occurs."""
        try:
            round_number = 0
            while time.monotonic() < self.ends and not self.faults:
                self.round(first=1 + 1000 * (round_number * SANDBOXES + self.number))
                round_number += 1
            if news := self.kernel_news():
                raise Fault(f"messages of the guest's kernel:\n{news}")
        except Exception as error:
            self.faults.append(f"sandbox {self.sandbox.sandbox_id}: {error or type(error).__name__}")
            self.examine()

    def round(self, first: int) -> None:
        self.sandbox.set_timeout(SANDBOX_SECONDS)
        self.run(f"{{ {content(first)}; }} > soak.dat && sync")
        for repetition in range(HASHES_OF_ONE):
            # On a busy machine, compute at least one hash.
            if time.monotonic() > self.ends and self.hashes:
                return
            if repetition % 2 == 0:
                # Every other hash reads from disk instead of the page cache.
                self.run("echo 3 > /proc/sys/vm/drop_caches", user="root")
            program = "md5sum" if repetition < HASHES_OF_ONE - 1 else "sha256sum"
            found = self.run(f"{program} soak.dat").split()[0]
            known = known_hash(program, first)
            if found != known:
                raise Fault(f"{program} of the numbers from {first} on is {found}, expected {known}")
            self.hashes += 1

    def kernel_news(self) -> str:
        return self.run(f"dmesg | grep -E '{BAD_NEWS}' || true", user="root").strip()

    def examine(self) -> None:
        """Adds diagnostic output of the guest to the faults, if its commands still work."""
        for command in ("dmesg | tail -n 60", "cat /proc/meminfo | head -n 8", "df -h /", "ls -l soak.dat"):
            try:
                self.faults.append(f"$ {command}\n{self.run(command, user='root')}")
            except Exception as error:
                self.faults.append(f"$ {command}: {error}")


def start(number: int, ends: float) -> Worker:
    return Worker(number, ends, Sandbox.create(timeout=SANDBOX_SECONDS, metadata={"soak": str(number)}))


def at_once(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, required=True)
    minutes = parser.parse_args().minutes
    ends = time.monotonic() + minutes * 60
    workers: list[Worker] = []
    try:
        for number in range(SANDBOXES):
            workers.append(start(number, ends))
        at_once([worker.work for worker in workers])
    finally:
        for worker in workers:
            worker.sandbox.kill()
    for fault in (fault for worker in workers for fault in worker.faults):
        print(fault, flush=True)
    hashes = sum(worker.hashes for worker in workers)
    print(f"soak: {hashes} hashes of {(PART_BYTES * PARTS) >> 20} MiB in {SANDBOXES} sandboxes and {minutes:g} minutes", flush=True)
    return 1 if any(worker.faults or not worker.hashes for worker in workers) else 0


if __name__ == "__main__":
    sys.exit(main())
