"""A resolver that may not touch the firewall, beside an enforcer that hears it over a socket of the machine.

    python3 apart.py      root; prints the counts as JSON; exit code 1 if something does not hold

- The resolver has one capability, to bind its port; whoever is not of the socket's group cannot speak to the enforcer.
- fresh: 2,000 names that nobody asked for before; the SYN of each at once.
- Each process is killed in turn. What is open stays open, a connection that was made goes on, and once both run again
  every answer connects.
"""

import json
import sys
import time

import client
import first_syn
import internet
import lab
import packets

FRESH = 2000
CLIENTS = 16
# Linux' capabilities(7): CAP_NET_BIND_SERVICE is number 10.
BIND_ALONE = 1 << 10
CONNECT = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
PATIENCE = 15


def capabilities(process):
    """What a process may do."""
    with open(f"/proc/{process}/status") as status:
        rows = dict(line.split(":", 1) for line in status)
    return {kind: int(rows[kind], 16) for kind in ("CapPrm", "CapEff", "CapBnd")}


def fresh(built, first):
    """Names from a number on, asked for by several clients at once."""
    crowd = built.host("crowd")
    tasks = [(*who, range(first + index, first + FRESH, CLIENTS))
             for index, who in enumerate(first_syn.clients(CLIENTS))]
    return client.total(client.Crowd(crowd, first_syn.fresh, tasks).results())


def answered(asker, name):
    """Asks until an address is told; closed is right while a process is away."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        reply, _ = asker.ask(name, packets.A, timeout=0.3)
        if reply is not None and reply.addresses:
            return reply.addresses[0]
        time.sleep(0.02)
    return None


def kills(built):
    """Faults, after each process was killed and started again."""
    faults = []
    source = lab.source("checkout1", 4)
    with built.host("checkout1").inside():
        asker = client.Asker(source, lab.SERVER[4])
        held = answered(asker, "shop.example.com")
        live = client.stream(source, 5.0)
        client.attempt(live, held)
        live.recv(128)
    there = {"resolver": (built.node.kill, built.node.start),
             "enforcer": (built.node.kill_enforcer, built.node.enforce)}
    for number, (name, (kill, start)) in enumerate(there.items()):
        kill()
        for moment in ("away", "there again"):
            with built.host("checkout1").inside():
                live.send(b"line")
                if live.recv(64) != b"line":
                    faults.append(f"with the {name} {moment} a connection ended")
                if client.connect(source, held).outcome != "connected":
                    faults.append(f"with the {name} {moment} an address that was told is closed")
            if moment == "away":
                start()
        with built.host("checkout1").inside():
            told = answered(asker, internet.bulk_name(2 * FRESH + number))
            if told is None or client.connect(source, told).outcome != "connected":
                faults.append(f"after the {name} was killed {told} is not reached")
    return faults


def main():
    """All of it; the exit code."""
    with lab.Lab() as built:
        built.node.take_apart()
        built.node.enforce()
        built.node.start()
        able = capabilities(built.node.process())
        said, code = built.host("gateway").output(
            "setpriv", "--reuid=64054", "--regid=64054", "--clear-groups",
            "python3", "-c", CONNECT, f"{built.directory}/socket/enforce")
        crowd = built.host("crowd")
        before = crowd.counter("TCPSynRetrans")
        count = fresh(built, 0)
        print(json.dumps({"fresh": first_syn.shown(count)}), flush=True)
        after_kills = kills(built)
        again = fresh(built, FRESH)
        print(json.dumps({"after both were killed": first_syn.shown(again)}), flush=True)
        repeated = crowd.counter("TCPSynRetrans") - before
        faults = after_kills + [fault for fault, so in (
            (f"the resolver may do more than bind its port: {able}", set(able.values()) != {BIND_ALONE}),
            (f"a stranger could connect to the enforcer: {said}", code == 0 or "Permission denied" not in said),
            (f"{count['connected']} and {again['connected']} of {FRESH} names each connected",
             [count["connected"], again["connected"]] != [FRESH, FRESH]),
            (f"{repeated} SYNs were lost", repeated),
            ("outgate has ended: " + built.node.diagnostics(), not built.node.alive()),
        ) if so]
        print("\n".join(faults) or "a resolver without privileges opens what it tells")
        return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
