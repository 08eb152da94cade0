"""A hostile name server: whoever owns an allowed name answers what he likes, and opens nothing but what the rule meant.

    python3 hostile.py      root; prints every name and what came of it; exit code 1 if something was told or opened
                            that must not be

The rule allows **.evil.example and addresses of the lab's internet. The server answers with internal, loopback and
metadata addresses, addresses of the gateway, of its upstream and of public resolvers, mixed with good ones; with
records of other names, aliases to denied and to internal names, loops, endless chains; with every TTL; with messages
that are cut, lie about their counts or belong to another question; and with another answer each time.
"""

import contextlib
import itertools
import json
import socket
import struct
import sys
import threading
import time

import client
import internet
import lab
import packets

SERVER, PORT = "203.0.113.54", 5454
GOOD = {packets.A: "198.51.100.200", packets.AAAA: "2001:db8:5::200"}
NEVER = {packets.A: internet.NEVER4, packets.AAAA: internet.NEVER6}
TXT, NS = 16, 2
UPSTREAM = """[[upstream]]
name    = "evil"
zones   = ["evil.example"]
servers = ["udp://203.0.113.54:5454"]

[grant] """
RULES = """
[[rule]]
id       = "evil"
action   = "allow"
segments = ["checkout"]
names    = ["**.evil.example"]
types    = ["A", "AAAA", "TXT"]
private  = ["198.51.100.0/24", "2001:db8:5::/64", "64:ff9b::/96"]

[[rule]]
id       = "internal"
action   = "allow"
segments = ["batch"]
names    = ["db.corp.example"]

[[rule]]
id       = "no-admin\""""
INTERNAL = "@ 60 IN SOA ns admin 1 3600 600 86400 5\n@ 60 IN NS ns\nns 60 IN A 192.0.2.1\ndb 60 IN A 10.20.0.5\n"


def _name(text):
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".")) + b"\0"


def _record(owner, kind, data, ttl=60):
    return _name(owner) + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def _address(owner, text, ttl=60):
    family, kind = (socket.AF_INET6, packets.AAAA) if ":" in text else (socket.AF_INET, packets.A)
    return _record(owner, kind, socket.inet_pton(family, text), ttl)


def _alias(owner, target):
    return _record(owner, packets.CNAME, _name(target))


def _chain(owner, length, end):
    names = [owner, *[f"c{number}.evil.example" for number in range(length)]]
    return [_alias(*pair) for pair in itertools.pairwise(names)] + [_address(names[-1], end)]


# Addresses that the rule does not mean, by the first label of the name that has them.
BAD = {
    "private": ["10.1.2.3", "fd00::1"], "loopback": ["127.0.0.1", "::1"], "none": ["0.0.0.0", "::"],
    "linklocal": ["169.254.1.1", "fe80::1"], "metadata": ["169.254.169.254", "fd00:ec2::254"],
    "platform": ["168.63.129.16"], "shared": ["100.64.0.1"], "multicast": ["224.0.0.1", "ff02::1"],
    "broadcast": ["255.255.255.255"], "gateway": ["192.0.2.1", "2001:db8:c::1"],
    "outside": ["203.0.113.1", "2001:db8:f::1"], "upstream": ["203.0.113.53", "2001:db8:f::53"],
    "itself": [SERVER], "resolver": ["9.9.9.9", "2620:fe::fe"], "other": ["8.8.8.8", "2001:4860:4860::8888"],
    "neighbour": ["192.0.2.66", "2001:db8:c::1:2"], "mapped": ["::ffff:198.51.100.66"], "compatible": ["::10.0.0.1"],
    "translated": ["64:ff9b::10.0.0.1"], "sixtofour": ["2002:a00:1::1"], "isatap": ["2001:db8:5::5efe:a00:1"],
}
# Names that have good addresses all the same: otherwise nothing here would mean anything.
RESOLVE = {"good", "zero", "negative", "longest", "chain8", "extra", "second", "family", "wrongid", "case", "cut",
           "thrice"}


def answers(owner, kind, turn):
    """The records of a name: answer and authority sections."""
    label = owner.split(".")[0]
    good, never = GOOD.get(kind, GOOD[packets.A]), NEVER.get(kind, NEVER[packets.A])
    ttl = {"zero": 0, "negative": 1 << 31, "longest": (1 << 31) - 1}.get(label, 60)
    plain = [_address(owner, good, ttl)]
    base = label.removeprefix("mixed-")
    if base in BAD:
        bad = [_address(owner, text) for text in BAD[base] if (":" in text) == (kind == packets.AAAA)]
        return (plain if base != label and bad else []) + bad, []
    if label.startswith("endless"):
        return [_alias(owner, f"endless{int(label[7:]) + 1}.evil.example")], []
    return {
        "manybad": [_address(owner, text) for text in [*[f"198.51.100.{n}" for n in range(1, 60)], "10.0.0.1"]],
        "loop": [_alias(owner, "loop2.evil.example"), _alias("loop2.evil.example", owner)],
        "self": [_alias(owner, owner)],
        "denied": [_alias(owner, "admin.example.com"), _address("admin.example.com", never)],
        "deniedopen": [_alias(owner, "admin.example.com")],
        "internal": [_alias(owner, "db.corp.example"), _address("db.corp.example", "10.20.0.5")],
        "internalopen": [_alias(owner, "db.corp.example")],
        "chain8": _chain(owner, 8, good), "chain9": _chain(owner, 9, good),
        "two": [_alias(owner, "a.evil.example"), _alias(owner, "b.evil.example"), _address("a.evil.example", good)],
        "second": [_address("x.evil.example", never), *_chain(owner, 1, good), _alias("y.example.com", owner)],
        "extra": [*plain, _address("api.example.com", never), _address("x.evil.example", never)],
        "family": [*plain, _address(owner, NEVER[packets.A + packets.AAAA - kind])] if kind in GOOD else [],
        "short": [_record(owner, kind, b"\1\2\3")], "long": [_record(owner, kind, b"\1" * 17)],
        "class": [_name(owner) + struct.pack("!HHIH", kind, 3, 60, 4) + b"\1" * 4],
        "text": [_record(owner, TXT, (b"\xff" + b"x" * 255) * 200)],
        "rebind": [_address(owner, "10.0.0.1" if turn % 2 else good, 1)] if kind == packets.A else plain,
    }.get(label, plain), [_record("com", NS, _name("ns.evil.example"))] if label == "extra" else []


def reply(query, stream, turn):
    """The messages that answer a query."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    owner, (kind, _), question = ".".join(labels).lower(), struct.unpack_from("!HH", query, at + 1), query[12:at + 5]
    label, identity = owner.split(".")[0], struct.unpack_from("!H", query)[0]
    answer, authority = answers(owner, kind, turn)

    def message(identity=identity, flags=0x8180, counts=None, question=question, answer=answer):
        counts = counts or (1, len(answer), len(authority))
        return struct.pack("!6H", identity, flags, *counts, 0) + question + b"".join([*answer, *authority])

    whole = message()
    if not stream and (label == "cut" or len(whole) > 1200):
        return [message(flags=0x8380, answer=[])]
    return {
        "wrongid": [whole] if stream else [message(identity=identity ^ 1)],
        "case": [whole] if stream else [message(question=question.lower())],
        "wrongname": [message(question=_name("api.example.com") + question[-4:])],
        "noquestion": [message(counts=(0, len(answer), 0), question=b"")],
        "notreply": [message(flags=0x0180)], "always": [message(flags=0x8380)], "half": [whole[:len(whole) // 2]],
        "lie": [message(counts=(1, 65535, 65535))], "nxdomain": [message(flags=0x8183)],
        "pointer": [message(answer=[b"\xc0\x0c" + struct.pack("!HHIH", packets.CNAME, 1, 60, 2) + b"\xc0\x0c"])],
        "beyond": [message(answer=[b"\xc0\xff" + struct.pack("!HHIH", kind, 1, 60, 4) + b"\1" * 4])],
        "thrice": [whole] * 3,
    }.get(label, [whole])


def serve(built):
    """Starts the server in the internet's namespace."""
    turns = {}

    def answer(query, stream):
        # The letter case is another each time.
        asked = query[12:].lower()
        turns[asked] = turn = turns.get(asked, -1) + 1
        return reply(query, stream, turn)

    def datagrams(bound):
        while True:
            query, peer = bound.recvfrom(4096)
            for message in answer(query, False):
                bound.sendto(message, peer)

    def connection(stream):
        with contextlib.suppress(OSError, struct.error), stream, stream.makefile("rb") as source:
            while True:
                query = source.read(*struct.unpack("!H", source.read(2)))
                for message in answer(query, True):
                    stream.sendall(struct.pack("!H", len(message)) + message)

    def connections(bound):
        while True:
            threading.Thread(target=connection, args=(bound.accept()[0],), daemon=True).start()

    built.host("internet").ip("address", "add", f"{SERVER}/24", "dev", "gateway0")
    with built.host("internet").inside():
        datagram, stream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.create_server((SERVER, PORT))
    datagram.bind((SERVER, PORT))
    threading.Thread(target=datagrams, args=(datagram,), daemon=True).start()
    threading.Thread(target=connections, args=(stream,), daemon=True).start()


def opened(built):
    """Every address in the kernel's sets of grants."""
    found = set()
    for name in ("host4", "host6", "hostany4", "hostany6", "shared4", "shared6", "sharedany4", "sharedany6"):
        text, _ = built.host("gateway").output("nft", "-j", "list", "set", "inet", "outgate", name)
        sets = [entry["set"] for entry in json.loads(text)["nftables"] if "set" in entry]
        found |= {element["elem"]["val"]["concat"][1] for entry in sets for element in entry.get("elem", [])}
    return found


def main():
    """Asks every name for every type; the exit code."""
    labels = [*BAD, *[f"mixed-{label}" for label in BAD], *sorted(RESOLVE), "manybad", "loop", "self", "denied",
              "deniedopen", "internal", "internalopen", "endless0", "chain9", "two", "short", "long", "class", "text",
              "wrongname", "noquestion", "notreply", "always", "half", "lie", "nxdomain", "pointer", "beyond"]
    faults = []
    with lab.Lab() as built:
        built.node.amend("[grant] ", UPSTREAM)
        built.node.amend_policy('\n[[rule]]\nid       = "no-admin"', RULES)
        with open(f"{built.directory}/zones/corp.example.zone", "w") as file:
            file.write(INTERNAL)
        serve(built)
        built.node.start()
        with built.host("checkout1").inside():
            asker = client.Asker(lab.source("checkout1", 4), lab.SERVER[4])

        def ask(label, kind):
            told, _ = asker.ask(f"{label}.evil.example", kind, timeout=5)
            if told is None:
                faults.append(f"{label}: no reply")
                return []
            wrong = set(told.addresses) - {GOOD.get(kind)}
            if wrong:
                faults.append(f"{label}: told {wrong}")
            if not 0 <= told.ttl <= 300:
                faults.append(f"{label}: a TTL of {told.ttl}")
            return told.addresses

        for label in labels:
            seen = {kind: ask(label, kind) for kind in (*GOOD, TXT)}
            print(f"{label:18} {' '.join([*seen[packets.A], *seen[packets.AAAA]]) or '-'}", flush=True)
            if (label in RESOLVE) != all(seen[kind] for kind in GOOD):
                faults.append(f"{label}: {'does not resolve' if label in RESOLVE else 'resolves'}")
        turns, end = set(), time.monotonic() + 5
        while len(turns) < 2 and time.monotonic() < end:
            turns.add(bool(ask("rebind", packets.A)))
        faults += [] if len(turns) == 2 else ["rebind: was not asked twice"]
        api, known = internet.address("api.example.com", 4), asker.ask("api.example.com", packets.A)[0]
        found, wanted = opened(built), {*GOOD.values(), api}
        verified, code = built.node.verify_log()
        faults += [fault for fault, so in (
            (f"the name of somebody else is now {known}", known is None or known.addresses != [api]),
            (f"open in the kernel: {sorted(found)}, and not {sorted(wanted)}", found != wanted),
            (f"outgate log verify: {verified}", code != 0),
            ("outgate has ended: " + built.node.diagnostics(), not built.node.alive()),
        ) if so]
    print("\n".join(faults) or "nothing was told or opened but what the rule meant")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
