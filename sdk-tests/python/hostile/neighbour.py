"""The neighbour: sends ordinary requests to one sandbox, and measures their times.

It is a separate process, so that the CPU time of the attacking clients does not count as reply time. It measures between the
lines `begin` and `end` on its standard input, and then prints one line of JSON.
"""

import http.client
import json
import sys
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from e2b import Sandbox

from journeys import API_URL, ENVD_PORT, SANDBOX_URL, by_headers

# Timeout of a request; a timeout counts as a wrong reply.
REQUEST_SECONDS = 20
# Pauses between requests, as of a tenant who works and does not flood.
PAUSE = 0.01
COMMAND_PAUSE = 0.05


class Neighbour:
    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.token = sandbox._envd_access_token
        self.ended = threading.Event()
        self.times: dict[str, list[float]] = {}
        self.wrong: list[str] = []

    def health(self) -> None:
        status, _ = get(API_URL, "/health", {})
        assert status in (200, 204), f"status {status}"

    def file(self) -> None:
        headers = {**by_headers(self.sandbox.sandbox_id, ENVD_PORT), "X-Access-Token": self.token}
        status, body = get(SANDBOX_URL, "/files?path=/etc/hostname", headers)
        assert (status, body.decode().strip()) == (200, self.sandbox.sandbox_id), f"status {status}, {body[:200]!r}"

    def command(self) -> None:
        word = f"word {time.monotonic_ns()}"
        output = self.sandbox.commands.run(f"echo {word}", request_timeout=REQUEST_SECONDS).stdout
        assert output == f"{word}\n", f"`echo {word}` printed {output!r}"

    def repeat(self, kinds: list[Callable[[], None]], pause: float) -> None:
        while not self.ended.is_set():
            for kind in kinds:
                since = time.monotonic()
                try:
                    kind()
                except Exception as error:
                    self.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")
                self.times.setdefault(kind.__name__, []).append(time.monotonic() - since)
                time.sleep(pause)

    def measure(self) -> None:
        """Sends requests until the line `end`, and prints the measurements."""
        self.times, self.wrong = {}, []
        self.ended.clear()
        workers = [
            threading.Thread(target=self.repeat, args=([self.health, self.file], PAUSE)),
            threading.Thread(target=self.repeat, args=([self.command], COMMAND_PAUSE)),
        ]
        for worker in workers:
            worker.start()
        sys.stdin.readline()
        self.ended.set()
        for worker in workers:
            worker.join()
        print(json.dumps({"times": self.times, "wrong": self.wrong}), flush=True)


def get(base: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Sends a GET request on a new connection, because an open one does not test the acceptance of connections."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=REQUEST_SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def main() -> None:
    neighbour = Neighbour(Sandbox.connect(sys.argv[1]))
    while sys.stdin.readline():
        neighbour.measure()


if __name__ == "__main__":
    main()
