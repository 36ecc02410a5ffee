"""Floods the network from a guest, as root: `arp`, or `udp` to a network."""

import itertools
import random
import socket
import struct
import sys
import time

# Bounds, after which it exits.
SECONDS = 8
PACKETS_MAX = 400_000
LINK = "eth0"


def arp():
    """Sends ARP requests from always new addresses, which receivers store in their neighbour tables."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    link.bind((LINK, 0x0806))
    own = link.getsockname()[4]
    with open("/proc/net/route") as routes:
        gateways = [line.split()[2] for line in routes if line.split()[1] == "00000000"]
    gateway = struct.pack("<I", int(gateways[0], 16))
    network = gateway[:2]
    for number in itertools.count():
        sender = network + struct.pack(">H", number % 65536)
        for operation in (1, 2):
            body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation) + own + sender + bytes(6) + gateway
            yield lambda body=body: link.send(b"\xff" * 6 + own + b"\x08\x06" + body)


def udp(network):
    """Sends datagrams to always new addresses and ports, from always new ports."""
    head = network.rsplit(".", 1)[0]
    for number in itertools.count():
        if number % 64 == 0:
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        target = (f"{head}.{number % 253 + 1}", random.randrange(1024, 65536))
        yield lambda sender=sender, target=target: sender.sendto(b"x", target)


packets = arp() if sys.argv[1] == "arp" else udp(sys.argv[2])
ends = time.monotonic() + SECONDS
sent = 0
print("ready", flush=True)
while sent < PACKETS_MAX and time.monotonic() < ends:
    try:
        next(packets)()
    except OSError:
        # The kernel rejected the packet, or has no buffer space: a limit works.
        pass
    sent += 1
print(f"sent {sent}", flush=True)
