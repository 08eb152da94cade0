"""Open before told: whoever has an answer connects, at once and for as long as the answer was told to live.

    python3 first_syn.py      root; prints the counts as JSON; exit code 1 if one connection was refused

Two parts, each over IPv4 and IPv6:
- fresh: 12,000 names that nobody asked for before, each with an address of its own, 32 clients at the same time.
- ages: for 20 s, 32 clients ask for names with short and long TTLs, so that answers come fresh, from the cache
  at every age, to second clients, across refreshes, for two names on one address with different ends, and
  while the policy is reloaded every second; each connects at once, at half of the told TTL and just before
  its end.
"""

import heapq
import json
import random
import sys
import time

import client
import internet
import lab
import packets

FRESH = 12000
AGES_SECONDS = 20
AGES_NAMES = ["one.example.com", "two.example.com", "three.example.com", "ages.example.com", "shop.example.com"]
# Two names on one address, TTL 1 and 7.
AGES_TWINS = ["twin-short.example.com", "twin-long.example.com"]
# Longer TTLs are tried at their beginning only.
AGES_LONGEST = 8
# A client may be told SERVFAIL (closed is safe) and asks again, as a resolver library would.
TRIES = 4


def fresh(task):
    """One client: asks for its share of the names and connects before it even looks at the answer."""
    source, server, family, numbers = task
    asker = client.Asker(source, server)
    count = {"resolved": 0, "connected": 0, "repeated": 0, "unanswered": 0, "wrong": []}
    for number in numbers:
        address = internet.bulk_address(number, family)
        for _ in range(TRIES):
            with client.stream(source, 5.0) as made:

                def at_once(message):
                    return client.attempt(made, address) if packets.promises_address(message) else None

                reply, attempt = asker.ask(internet.bulk_name(number), packets.KIND[family], at_once)
            if attempt is not None:
                break
            count["repeated"] += 1
        if attempt is None:
            count["unanswered"] += 1
            continue
        count["resolved"] += 1
        if attempt.outcome == "connected" and reply.addresses == [address]:
            count["connected"] += 1
        else:
            count["wrong"].append(f"{source} {internet.bulk_name(number)} {reply.addresses}: {attempt}")
    return count


def ages(task):
    """One client: tries every answer at its beginning, middle and end. A busy one asks without pause; a quiet
    one asks three times and then waits, since a new question would keep open what should have stayed open."""
    source, server, family, seed = task
    chance = random.Random(seed)
    quiet = seed % 4 >= 2
    asker = client.Asker(source, server)
    count = {"resolved": 0, "connected": 0, "repeated": 0, "unanswered": 0, "wrong": []}
    due = []
    end = time.monotonic() + AGES_SECONDS

    def attempt(address, what):
        tried = client.connect(source, address, timeout=5.0)
        if tried.outcome == "connected":
            count["connected"] += 1
        else:
            count["wrong"].append(f"{source} {address} {what}: {tried}")

    def ask(name):
        reply, _ = asker.ask(name, packets.KIND[family])
        told = time.monotonic()
        if reply is None or reply.rcode == packets.SERVFAIL:
            count["repeated"] += 1
            return
        expected = internet.address(name, family)
        if reply.addresses != [expected]:
            count["wrong"].append(f"{source} {name}: rcode {reply.rcode} {reply.addresses}")
            return
        count["resolved"] += 1
        attempt(expected, f"{name}, at once")
        for share in (0.5, 1.0):
            # The last moment of the told TTL, less what this machine may need to get the SYN out.
            moment = told + reply.ttl * share - 0.05
            if moment < end and reply.ttl <= AGES_LONGEST:
                heapq.heappush(due, (moment, told + reply.ttl, expected, f"{name}, {share:.0%} of {reply.ttl} s"))

    def wait(until):
        while due and due[0][0] < until:
            moment, last, address, what = heapq.heappop(due)
            time.sleep(max(0.0, moment - time.monotonic()))
            # A client that was kept off the processor until its answer had ended has no claim.
            if time.monotonic() < last:
                attempt(address, what)
        time.sleep(max(0.0, until - time.monotonic()))

    while time.monotonic() < end:
        if quiet:
            for name in chance.sample([*AGES_TWINS, chance.choice(AGES_NAMES)], 3):
                ask(name)
                wait(time.monotonic() + chance.uniform(0, 1))
            wait(max((moment for moment, *_ in due), default=0) + 0.01)
        else:
            ask(chance.choice(AGES_NAMES + AGES_TWINS))
            wait(time.monotonic() + chance.uniform(0, 0.02))
    return count


def shown(count):
    """A count with no more than a few examples of what went wrong."""
    return {**count, "wrong": count["wrong"][:5]}


def clients(count):
    """COUNT clients of the crowd, half of them of each family: (source, server, family)."""
    return [(lab.sources("crowd", family)[index // 2], lab.SERVER[family], family)
            for index, family in enumerate([4, 6] * (count // 2))]


def main():
    """Both parts; the exit code."""
    with lab.Lab() as built:
        built.node.start()
        crowd = built.host("crowd")
        before = crowd.counter("TCPSynRetrans")
        started = time.monotonic()
        tasks = [(*who, range(index, FRESH, 32)) for index, who in enumerate(clients(32))]
        first = client.total(client.Crowd(crowd, fresh, tasks).results())
        first["seconds"] = round(time.monotonic() - started, 1)
        first["names"] = FRESH
        print(json.dumps({"fresh": shown(first)}), flush=True)

        pool = client.Crowd(crowd, ages, [(*who, index) for index, who in enumerate(clients(32))])
        reloads = 0
        while not pool.done():
            time.sleep(1)
            built.node.reload()
            reloads += 1
        second = client.total(pool.results())
        second["reloads"] = reloads
        second["revisions"] = len({record["policy"] for record in built.node.records("query")})
        print(json.dumps({"ages": shown(second)}), flush=True)

        repeated_syns = crowd.counter("TCPSynRetrans") - before
        print(json.dumps({"repeated_syns": repeated_syns}), flush=True)
        faults = [fault for fault, so in (
            (f"{len(first['wrong']) + len(second['wrong'])} answers could not be used", first["wrong"] or second["wrong"]),
            (f"{first['unanswered']} names were never answered", first["unanswered"]),
            (f"{first['connected']} of {FRESH} names connected", first["connected"] != FRESH),
            (f"too few answers to mean anything: {second['resolved']}", second["resolved"] < 1000),
            (f"{repeated_syns} SYNs were lost", repeated_syns),
            ("the policy was never reloaded", second["revisions"] < 3),
            ("outgate has ended: " + built.node.diagnostics(), not built.node.alive()),
        ) if so]
        print("\n".join(faults) or "every answer connected on its first SYN")
        return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
