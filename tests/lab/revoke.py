"""Revoked is closed: what a policy no longer grants is shut within a second, and nothing else is.

    python3 revoke.py      root; prints what was measured as JSON; exit code 1 if something stayed open, or was cut

- 1,000 live grants of one rule, and the rule goes: how long until the last of them is refused, ten times;
- a client that moves to another segment, a segment that changes its scope, its mode or its ports, a rule that is
  narrowed, a segment that goes: what is refused and what connects right after `outgate reload`;
- a policy reloaded without pause for some seconds, and a client that uses every answer at once;
- what was refused on the way reached the group of nfnetlink, with its segment's name.
"""

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

GRANTS, TURNS = 1000, 10
# The promise, in seconds, of the slowest turn.
WITHIN = 1.0
STORM_SECONDS = 4
API, EDGE, MIRROR = (internet.address(name, 4) for name in ("api.example.com", "shop.example.com", "mirror.example.org"))
TRACKER = internet.address("tracker.example.net", 4)
ALLOWED = 'names    = ["*.example.com"]'
# (what changes, before, after, who asks what beforehand, who connects whereto afterwards)
CHANGES = [
    ("a client moves to another segment",
     'clients = ["192.0.2.128/27"', 'clients = ["192.0.2.65/32", "192.0.2.128/27"',
     [("checkout1", "api.example.com"), ("checkout2", "api.example.com"), ("batch1", "mirror.example.org")],
     [("checkout1", API, False), ("checkout2", API, True), ("checkout1", MIRROR, True), ("batch1", MIRROR, True)]),
    ("a segment opens for all of it what it opened for one",
     'environment = "lab" }}\nmode    = "enforce"\nscope   = "client"',
     'environment = "lab" }}\nmode    = "enforce"\nscope   = "segment"',
     [("checkout1", "api.example.com")], [("checkout1", API, False), ("checkout2", API, False)]),
    ("an observed segment is enforced", 'mode    = "observe"\nuntil   = {until}\n', 'mode    = "enforce"\n',
     [("trial1", "tracker.example.net")], [("trial1", TRACKER, False), ("trial1", internet.NEVER4, False)]),
    ("a rule is narrowed", ALLOWED, ALLOWED + '\nwithin   = ["198.51.100.0/28"]',
     [("checkout1", "api.example.com"), ("checkout1", "shop.example.com")],
     [("checkout1", API, True), ("checkout1", EDGE, False)]),
    ("a rule has other ports", ALLOWED, ALLOWED + '\nports    = ["tcp/80"]',
     [("checkout1", "api.example.com")], [("checkout1", API, False)]),
    ("a deny is added", 'names    = ["admin.example.com"]', 'names    = ["admin.example.com", "api.example.com"]',
     [("checkout1", "api.example.com"), ("checkout1", "shop.example.com")],
     [("checkout1", API, False), ("checkout1", EDGE, True)]),
    ("a chain leads through a name that is denied",
     'names    = ["admin.example.com"]', 'names    = ["admin.example.com", "*.cdn.example.com"]',
     [("checkout1", "shop.example.com")], [("checkout1", EDGE, False)]),
    ("a client is in no segment any more", 'clients = ["192.0.2.128/27"', 'clients = ["192.0.2.130/32"',
     [("batch1", "mirror.example.org")], [("batch1", MIRROR, False)]),
]


def ask(built, host, name):
    """Asks once on a host's behalf; the addresses."""
    with built.host(host).inside():
        asker = client.Asker(lab.source(host, 4), lab.SERVER[4])
    reply, _ = asker.ask(name, packets.A)
    if reply is None or not reply.addresses:
        raise RuntimeError(f"{host} asks for {name}: {reply}")
    return reply.addresses


def connects(built, host, address):
    """Whether a connection comes about."""
    with built.host(host).inside():
        return client.connect(lab.source(host, 4), address).outcome == "connected"


def revocations(built):
    """The rule of 1,000 live grants goes: seconds until all of a sample are refused, each turn."""
    seconds = []
    with built.host("checkout1").inside():
        asker = client.Asker(lab.source("checkout1", 4), lab.SERVER[4])
    for _ in range(TURNS):
        for number in range(GRANTS):
            asker.ask(internet.bulk_name(number), packets.A)
        # They are closed some at a time, in no order that is promised: a sample of all, with the last.
        sample = [internet.bulk_address(number, 4) for number in (*range(0, GRANTS, 97), GRANTS - 1)]
        if not all(connects(built, "checkout1", address) for address in sample):
            raise RuntimeError("what was answered is not open")
        kept = built.node.amend_policy('names    = ["*.bulk.example.com"]', 'names    = ["*.bulk.example.net"]')
        start = time.monotonic()
        built.node.reload()
        while sample and time.monotonic() - start < 5:
            sample = [address for address in sample if connects(built, "checkout1", address)]
        seconds.append(time.monotonic() - start)
        if sample:
            raise RuntimeError(f"still open: {sample}")
        built.node.restore_policy(kept)
        built.node.command("reload")
    return seconds


def changes(built):
    """Every change of `CHANGES`; what came out otherwise."""
    faults = []
    for what, before, after, asked, expected in CHANGES:
        for host, name in asked:
            ask(built, host, name)
        kept = built.node.amend_policy(before, after)
        said, code = built.node.command("reload")
        if code != 0:
            faults.append(f"{what}: {said}")
        faults += [f"{what}: {host} {'reaches' if not wanted else 'does not reach'} {address}"
                   for host, address, wanted in expected if connects(built, host, address) != wanted]
        built.node.restore_policy(kept)
        built.node.command("reload")
    return faults


def storm(built):
    """Reloads without pause; how many answers a client got, how many it could use, how many reloads."""
    over = threading.Event()
    reloads = 0

    def reload():
        nonlocal reloads
        while not over.is_set():
            built.node.reload()
            reloads += 1
            time.sleep(0.005)

    thread = threading.Thread(target=reload)
    thread.start()
    told = used = 0
    with built.host("checkout2").inside():
        asker = client.Asker(lab.source("checkout2", 4), lab.SERVER[4])
        end = time.monotonic() + STORM_SECONDS
        number = 0
        while time.monotonic() < end:
            number = (number + 1) % 2000
            reply, _ = asker.ask(internet.bulk_name(number), packets.A)
            if reply is not None and reply.addresses:
                told += 1
                used += client.connect(asker.source, reply.addresses[0]).outcome == "connected"
    over.set()
    thread.join()
    return {"told": told, "used": used, "reloads": reloads}


class Refused:
    """What the firewall logs to its group of nfnetlink (linux/netfilter/nfnetlink_log.h)."""

    def __init__(self, namespace, group=5):
        with namespace.inside():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        self._socket.bind((0, 0))
        # NFULNL_CFG_CMD_BIND, then NFULNL_COPY_PACKET.
        for kind, data in ((1, struct.pack("B3x", 1)), (2, struct.pack("!IBx2x", 0xFFFF, 2))):
            length = 5 if kind == 1 else 10
            body = struct.pack("!BBH", 0, 0, group) + struct.pack("=HH", length, kind) + data
            self._socket.send(struct.pack("=IHHII", 16 + len(body), 4 << 8 | 1, 5, 1, 0) + body)
            self._socket.recv(4096)
        self._socket.settimeout(2)

    def prefixes(self, wanted):
        """The prefixes that were heard, until all that are wanted have been or nothing comes any more."""
        heard = set()
        try:
            while not wanted <= heard:
                data = self._socket.recv(1 << 16)
                heard |= {text for text in wanted if text.encode() + b"\0" in data}
        except TimeoutError:
            pass
        return heard


def main():
    """The four parts; the exit code."""
    with lab.Lab() as built:
        built.node.start()
        refused = Refused(built.host("gateway"))
        for host in ("checkout1", "batch1", "trial1", "stranger"):
            connects(built, host, internet.NEVER4)
        prefixes = {"outgate:deny:checkout", "outgate:deny:batch", "outgate:observe:trial", "outgate:deny:"}
        unheard = prefixes - refused.prefixes(prefixes)
        seconds = revocations(built)
        print(json.dumps({"revoked": GRANTS, "turns": TURNS, "slowest_ms": round(max(seconds) * 1000)}), flush=True)
        faults = changes(built)
        print(json.dumps({"changes": len(CHANGES), "faults": faults}), flush=True)
        count = storm(built)
        print(json.dumps({"storm": count}), flush=True)
        verified, code = built.node.verify_log()
        faults += [fault for fault, so in (
            (f"the slowest revocation took {max(seconds):.3f} s", max(seconds) > WITHIN),
            (f"{count['told'] - count['used']} answers of the storm could not be used", count["told"] != count["used"]),
            (f"too few answers to mean anything: {count['told']}", count["told"] < 100),
            (f"nobody heard of what was refused: {sorted(unheard)}", unheard),
            (f"outgate log verify: {verified}", code != 0),
            ("outgate has ended: " + built.node.diagnostics(), not built.node.alive()),
        ) if so]
        print("\n".join(faults) or "what was revoked was closed")
        return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
