"""DNS messages by hand (RFC 1035, RFC 6891, RFC 8914): the few bytes that the lab sends and reads."""

import dataclasses
import socket
import struct

A, CNAME, AAAA, OPT = 1, 5, 28, 41
NOERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5
KIND = {4: A, 6: AAAA}
NAME = {A: "A", AAAA: "AAAA"}


def query(identity, name, kind):
    """A recursive query with EDNS, 1232 bytes."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    header = struct.pack("!6H", identity, 0x0100, 1, 0, 0, 1)
    return header + labels + b"\0" + struct.pack("!HH", kind, 1) + b"\0" + struct.pack("!HHIH", OPT, 1232, 0, 0)


def promises_address(message):
    """Whether a reply is NOERROR with an answer: told by two bytes, for those who cannot wait to parse it."""
    return len(message) >= 12 and message[3] & 15 == NOERROR and message[7] > 0


@dataclasses.dataclass
class Reply:
    """What a reply says."""

    identity: int
    rcode: int
    addresses: list
    ttl: int
    ede: int | None


def _skip_name(message, at):
    while True:
        length = message[at]
        if length == 0:
            return at + 1
        if length & 0xC0:
            return at + 2
        at += 1 + length


def parse(message):
    """Reads a reply. `ttl` is the smallest of the answer section, 0 where that is empty."""
    identity, flags, questions, answers, authority, additional = struct.unpack_from("!6H", message)
    at = 12
    for _ in range(questions):
        at = _skip_name(message, at) + 4
    addresses, ttls, ede = [], [], None
    for index in range(answers + authority + additional):
        at = _skip_name(message, at)
        kind, _, ttl, length = struct.unpack_from("!HHIH", message, at)
        data = message[at + 10:at + 10 + length]
        at += 10 + length
        if index < answers:
            ttls.append(ttl)
            if kind in (A, AAAA):
                addresses.append(socket.inet_ntop(socket.AF_INET if kind == A else socket.AF_INET6, data))
        elif kind == OPT:
            ede = _extended_error(data)
    return Reply(identity, flags & 15, addresses, min(ttls, default=0), ede)


def _extended_error(options):
    at = 0
    while at + 4 <= len(options):
        code, length = struct.unpack_from("!HH", options, at)
        if code == 15:
            return struct.unpack_from("!H", options, at + 4)[0]
        at += 4 + length
    return None
