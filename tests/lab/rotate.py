"""A name server whose names have other addresses every few seconds, as those of large services do.

    python3 rotate.py ADDRESS        A program of its own; serves UDP port 53 until killed.

nN.example.com has three addresses of 198.18.0.0/16 and three of 2001:db8:5::/64, others in every period of three seconds,
TTL 2 to 5 s.
"""

import hashlib
import socket
import struct
import sys
import time

PERIOD = 3.0
COUNT = 3


# Of each type of record the network that addresses are of.
NETWORKS = {1: bytes([198, 18]), 28: bytes.fromhex("20010db800050000") + bytes(6)}


def addresses(name, kind, period):
    """The addresses of a name in a period."""
    digest = hashlib.sha256(f"{name} {period}".encode()).digest()
    return [NETWORKS[kind] + digest[2 * index:2 * index + 2] for index in range(COUNT)]


def answer(query):
    """The reply to a query; None to what is none."""
    if len(query) < 17:
        return None
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode("latin-1").lower())
        at += 1 + query[at]
    question = query[12:at + 5]
    name, kind = ".".join(labels), struct.unpack("!H", query[at + 1:at + 3])[0]
    found = addresses(name, kind, int(time.time() / PERIOD)) if kind in NETWORKS and name.endswith(".example.com") else []
    ttl = 2 + sum(name.encode()) % 4
    records = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, ttl, len(address)) + address for address in found)
    soa = b"" if found else (b"\x00" + struct.pack("!HHIH", 6, 1, 2, 22) + b"\x00\x00" + struct.pack("!5I", 1, 3600, 600, 86400, 2))
    header = struct.pack("!2sHHHHH", query[:2], 0x8580, 1, len(found), 0 if found else 1, 0)
    return header + question + records + soa


def main():
    """Serves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((sys.argv[1], 53))
        while True:
            query, peer = bound.recvfrom(4096)
            reply = answer(query)
            if reply is not None:
                bound.sendto(reply, peer)


if __name__ == "__main__":
    main()
