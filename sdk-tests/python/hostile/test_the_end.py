"""Checks after all attacks: wrong replies, leaked resources, and full tables of the host."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hostile import server
from hostile.neighbour import Neighbour
from journeys import eventually

ANSWERS = 3000
MEMORY_LEFT_MAX = 96 << 20
DESCRIPTORS_LEFT_MAX = 32
# Limits for the host's tables, which other programs use too.
NEIGHBOURS_MAX = 256
CONNECTIONS_MAX = 10_000
# Seconds until resources are released: idle connections stay open for a while, and memory is returned gradually.
BACK_WITHIN = 60
# The same for tracked connections: the kernel forgets a closed one after 120 s (nf_conntrack_tcp_timeout_time_wait).
FORGOTTEN_WITHIN = 180


def test_thousands_of_replies_to_the_neighbour_are_correct(measured, victim):
    """Counts the replies during the attacks; on a slow machine it sends more requests."""
    neighbour = Neighbour(victim)

    def ask(number: int) -> None:
        neighbour.health() if number % 2 else neighbour.file()

    print(f"{measured.answers} answers during the attacks")
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(ask, range(ANSWERS - measured.answers)))
    assert not measured.wrong, measured.wrong[:5]


def test_the_server_has_released_its_resources(before):
    def left() -> tuple[int, int]:
        return server.descriptors() - before["descriptors"], server.memory() - before["memory"]

    def is_back() -> bool:
        descriptors, memory = left()
        return descriptors <= DESCRIPTORS_LEFT_MAX and memory <= MEMORY_LEFT_MAX

    try:
        eventually(is_back, within=BACK_WITHIN, every=0.5)
    finally:
        descriptors, memory = left()
        print(f"{descriptors} descriptors and {memory >> 20} MiB more than before")


def test_the_hosts_tables_are_not_full(before):
    neighbours = subprocess.run(["ip", "neighbour"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(neighbours) < NEIGHBOURS_MAX, neighbours[:5]
    count = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    if count.exists():
        eventually(lambda: int(count.read_text()) < CONNECTIONS_MAX, within=FORGOTTEN_WITHIN, every=0.5)
