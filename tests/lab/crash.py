"""Written before sent: kill -9 under load, twelve times, and nothing that was promised is lost.

    python3 crash.py      root; prints the counts as JSON; exit code 1 if a promise was broken

While outgate is killed and started again at random moments, over IPv4 and IPv6:
- clients ask and connect; every answer that one of them received has its record in the log, whatever the moment
  of the kill, and can be used at once and through the next restart;
- a live connection goes on;
- an address with a live grant is never refused: no moment at which everything is closed;
- an address that no answer ever held is never reached: no moment at which everything is open;
- an address whose grant ended stays closed: a restart revives nothing.
"""

import collections
import json
import multiprocessing
import random
import sys
import time

import client
import internet
import lab
import packets

KILLS = 12
LOADERS = 8
# Below a client's cap of grants; a loader that is through begins again, with answers from the cache.
NAMES = 2000
# The seed of a failing run is printed; put it here to repeat its choices.
SEED = random.SystemRandom().getrandbits(32)
# Shared with every client that is forked: set when the last restart is over.
OVER = multiprocessing.get_context("fork").Event()


def load(task):
    """One client under load: asks, connects at once, and tries again what it was told a while ago."""
    source, server, family, index = task
    asker = client.Asker(source, server)
    chance = random.Random(SEED + index)
    count = {"resolved": 0, "connected": 0, "unanswered": 0, "refusals": 0, "wrong": []}
    open_until = collections.deque(maxlen=400)
    number = 0

    def attempt(address, what):
        tried = client.connect(source, address, timeout=5.0)
        if tried.outcome == "connected":
            count["connected"] += 1
        else:
            count["wrong"].append(f"{source} {address} {what}: {tried}")

    while not OVER.is_set():
        name = internet.bulk_name(index * NAMES + number)
        reply, _ = asker.ask(name, packets.KIND[family], timeout=0.3)
        if reply is None:
            count["unanswered"] += 1
            time.sleep(0.01)
            continue
        if reply.rcode != packets.NOERROR:
            count["refusals"] += 1
            time.sleep(0.01)
            continue
        count["resolved"] += 1
        address = internet.bulk_address(index * NAMES + number, family)
        attempt(address, f"{name}, at once")
        open_until.append((address, time.monotonic() + reply.ttl))
        address, end = chance.choice(open_until)
        if time.monotonic() < end:
            attempt(address, "again, within its TTL")
        number = (number + 1) % NAMES
    return {**count, "told": asker.told}


def probe(task):
    """One address, tried without pause: how often it ended which way."""
    source, address, expected = task
    seen = collections.Counter()
    unexpected = []
    while not OVER.is_set():
        tried = client.connect(source, address)
        seen[tried.outcome] += 1
        if tried.outcome != expected:
            unexpected.append(f"{source} {address}, to be {expected}: {tried}")
        time.sleep(0.002)
    return {"address": address, "seen": dict(seen), "unexpected": unexpected[:5]}


def speak(task):
    """One connection, one line and its echo after the other; what broke it, if anything did."""
    source, address = task
    made = client.stream(source, 5.0)
    tried = client.attempt(made, address)
    if tried.outcome != "connected":
        return {"lines": 0, "unexpected": [f"{source} {address}: {tried}"]}
    made.recv(128)
    lines = 0
    try:
        while not OVER.is_set():
            made.send(b"line")
            if made.recv(64) != b"line":
                raise OSError("the connection was closed")
            lines += 1
            time.sleep(0.01)
    except OSError as error:
        return {"lines": lines, "unexpected": [f"{source} {address}, live for {lines} lines: {error}"]}
    return {"lines": lines, "unexpected": []}


def resolve(built, host, family, name):
    """Asks once on a host's behalf; what was told."""
    with built.host(host).inside():
        asker = client.Asker(lab.source(host, family), lab.SERVER[family])
    reply, _ = asker.ask(name, packets.KIND[family])
    if reply is None or reply.addresses != [internet.address(name, family)]:
        raise RuntimeError(f"{name} over IPv{family}: {reply}")
    return asker.told


def kill_and_restart(built, chance):
    """Kills at random moments: in full work, while it drains its first queue, and while it starts."""
    for turn in range(KILLS):
        if turn % 4 == 3:
            # Killed before its doors are open: in the middle of adopting what it finds.
            time.sleep(chance.uniform(0, 0.03))
        else:
            built.node.wait_ready()
            time.sleep(chance.uniform(0, 1.0))
        built.node.kill()
        time.sleep(chance.choice([0, 0, chance.uniform(0, 0.5)]))
        built.node.spawn()
    built.node.wait_ready()
    time.sleep(0.5)


def main():
    """The story; the exit code."""
    print(json.dumps({"seed": SEED}))
    with lab.Lab() as built:
        built.node.start()
        told = []
        for family in (4, 6):
            told += resolve(built, "checkout1", family, "live.example.com")
            told += resolve(built, "checkout2", family, "brief.example.com")
        both = [(4, internet.NEVER4), (6, internet.NEVER6)]
        probes = client.Crowd(built.host("checkout1"), probe, [
            *[(lab.source("checkout1", family), internet.address("live.example.com", family), "connected")
              for family, _ in both],
            *[(lab.source("checkout1", family), never, "refused") for family, never in both]])
        talks = client.Crowd(built.host("checkout1"), speak, [
            (lab.source("checkout1", family), internet.address("live.example.com", family)) for family, _ in both])
        loads = client.Crowd(built.host("crowd"), load, [
            (lab.sources("crowd", family)[index], lab.SERVER[family], family, index)
            for index, family in enumerate([4, 6] * (LOADERS // 2))])
        try:
            kill_and_restart(built, random.Random(SEED))
        finally:
            OVER.set()
        loaded, probed, spoken = loads.results(), probes.results(), talks.results()
        revived = []
        with built.host("checkout2").inside():
            for family, _ in both:
                tried = client.connect(lab.source("checkout2", family), internet.address("brief.example.com", family))
                if tried.outcome != "refused":
                    revived.append(f"brief.example.com over IPv{family}: {tried}")

        for count in loaded:
            told += count.pop("told")
        written = collections.Counter(
            (record["client"], record["port"], record.get("qid"), record.get("qname"))
            for record in built.node.records("query"))
        unwritten = collections.Counter(told) - written
        torn = built.node.records("torn")
        verified, code = built.node.verify_log()
        sums = {key: sum((count[key] for count in loaded), type(loaded[0][key])()) for key in loaded[0]}
        shown = {**sums, "wrong": sums["wrong"][:5]}
        print(json.dumps({"kills": KILLS, "load": shown, "answers": len(told), "unwritten": list(unwritten)[:5],
                          "probes": probed, "live": spoken, "log verify": verified.strip().splitlines()[-3:]}))
        unexpected = [fact for part in (*probed, *spoken) for fact in part["unexpected"]]
        faults = [fault for fault, so in (
            (f"{sum(unwritten.values())} of {len(told)} answers have no record", unwritten),
            (f"{len(sums['wrong'])} answers could not be used: {sums['wrong'][:3]}", sums["wrong"]),
            (f"across restarts: {unexpected[:3]}", unexpected),
            (f"a grant that had ended is open again: {revived}", revived),
            (f"{len(torn)} torn lines after {KILLS} kills: {torn[:3]}", len(torn) > KILLS),
            (f"the load was too small to mean anything: {sums['resolved']} answers", sums["resolved"] < 20 * KILLS),
            (f"outgate log verify exits with {code}", code != 0),
            ("outgate has ended: " + built.node.diagnostics(), not built.node.alive()),
        ) if so]
        print("\n".join(faults) or f"{len(told)} answers, {KILLS} kills, nothing lost")
        return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
