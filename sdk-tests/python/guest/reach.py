"""Connects to addresses and prints those that accepted the connection. Arguments: host:port ..."""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor

SECONDS = 2


def reach(target):
    host, port = target.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=SECONDS):
            return target
    except OSError:
        return None


with ThreadPoolExecutor(max_workers=32) as pool:
    for reached in pool.map(reach, sys.argv[1:]):
        if reached:
            print(reached)
