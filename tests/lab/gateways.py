"""Two resolvers and three gateways on machines of their own: an answer waits for every gateway that could carry its flow.

    python3 gateways.py [--part NAME]        root; prints the counts as JSON; exit code 1 if something does not hold
    python3 gateways.py --before BINARY      every machine is upgraded from an older outgate under load, and goes back to it

The machines are those of `machines.py`. Names are connected to over IPv4 and over IPv6 by turns; half of the clients ask
over the one, half over the other.

- local: what an answer costs whose firewall is the resolver's own.
- fresh: 10,000 names that nobody asked for before; the SYN of each at once, through any gateway.
- chaos: under the same load processes are killed and paused, links cut, one at a time and in pairs; connections that
  were made before go on, and whoever tries both resolvers has an answer within a second.
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import time

import client
import internet
import lab
import machines
import network
import node
import packets
from machines import GATEWAYS, RESOLVERS, Site, ask_both

CLIENTS = 32
FRESH = 10000
LOCAL = 1500
LIVE = 12
PATIENCE = 1.0


def family_of(number):
    """Over which family a name is connected to."""
    return 4 if number % 2 == 0 else 6


def asks(index):
    """How one of the crowd asks: half of them over IPv6, half of each the second resolver first."""
    family = 4 if index // 2 % 2 == 0 else 6
    order = list(RESOLVERS.values()) if index % 2 == 0 else list(RESOLVERS.values())[::-1]
    return [client.Asker(lab.sources("crowd", family)[index], machines.address(last, family)) for last in order]


def fresh(task):
    """One client: asks for its share of the names, and connects before it even looks at the answer."""
    index, numbers = task
    askers = asks(index)
    count = {"connected": 0, "unanswered": 0, "wrong": [], "asked": []}
    for number in numbers:
        family = family_of(number)
        source, address = lab.sources("crowd", family)[index], internet.bulk_address(number, family)
        with client.stream(source, 5.0) as made:
            began = time.monotonic()

            def at_once(message):
                if not packets.promises_address(message):
                    return None
                count["asked"].append(time.monotonic() - began)
                return client.attempt(made, address)

            reply, attempt, _ = ask_both(askers, internet.bulk_name(number), packets.KIND[family], at_once, 5.0)
        if attempt is None:
            count["unanswered"] += 1
        elif attempt.outcome == "connected" and reply.addresses == [address]:
            count["connected"] += 1
        else:
            count["wrong"].append(f"{source} {internet.bulk_name(number)} {reply.addresses}: {attempt}")
    return count


def loaded(task):
    """One client under chaos: asks for names of which many are new, and connects at once, until it is told to stop."""
    index, over = task
    askers = asks(index)
    chance = random.Random(index)
    count = {"told": 0, "connected": 0, "failed": 0, "silent": 0, "waited": [], "wrong": []}
    while not os.path.exists(over):
        number = chance.randrange(internet.BULK)
        family = family_of(number)
        source, address = lab.sources("crowd", family)[index], internet.bulk_address(number, family)
        with client.stream(source, 5.0) as made:

            def at_once(message):
                return client.attempt(made, address) if packets.promises_address(message) else None

            _, attempt, answered = ask_both(askers, internet.bulk_name(number), packets.KIND[family], at_once, 1.5)
        count["waited"].append(answered or 9.0)
        if answered is None or answered > PATIENCE:
            count["silent"] += 1
        if attempt is None:
            count["failed"] += 1
            continue
        count["told"] += 1
        if attempt.outcome == "connected":
            count["connected"] += 1
        else:
            count["wrong"].append(f"{time.strftime('%T')} {source} {address}: {attempt}")
        time.sleep(chance.uniform(0, 0.04))
    return count


def percentiles(seconds):
    """The median and the 99th of a hundred, in milliseconds."""
    ordered = sorted(seconds)
    return {f"p{share}_ms": round(ordered[min(len(ordered) - 1, len(ordered) * share // 100)] * 1000, 2)
            for share in (50, 99)}


def local_part(site):
    """What an answer costs whose firewall is the resolver's own: one client, one question at a time."""
    site.configure("own")
    site.start("ns1")
    site.wait_answers(2)
    return one_client(site, range(20000, 20000 + LOCAL), connects=False)


def one_client(site, numbers, connects):
    """One client asks ns1 for these names, one after the other; how long it waited."""
    with site.host("crowd").inside():
        askers = {family: client.Asker(lab.source("crowd", family), machines.address(2, family)) for family in (4, 6)}
        waited = []
        for number in numbers:
            family = family_of(number)
            began = time.monotonic()
            reply, _ = askers[family].ask(internet.bulk_name(number), packets.KIND[family])
            waited.append(time.monotonic() - began)
            if reply is None or reply.addresses != [internet.bulk_address(number, family)]:
                raise RuntimeError(f"{internet.bulk_name(number)}: {reply}")
            if connects and client.connect(lab.source("crowd", family), reply.addresses[0]).outcome != "connected":
                raise RuntimeError(f"{internet.bulk_name(number)} is not open")
    return percentiles(waited)


def fresh_part(site):
    """Every first-time answer connects, through any gateway."""
    crowd = site.host("crowd")
    before = crowd.counter("TCPSynRetrans")
    tasks = [(index, range(index * FRESH // CLIENTS, (index + 1) * FRESH // CLIENTS)) for index in range(CLIENTS)]
    began = time.monotonic()
    total = client.total(client.Crowd(crowd, fresh, tasks).results())
    total |= percentiles(total.pop("asked"))
    total["seconds"] = round(time.monotonic() - began, 1)
    total["repeated_syns"] = crowd.counter("TCPSynRetrans") - before
    total["through"] = {name: _forwarded(site, name) for name in GATEWAYS}
    return total


def _forwarded(site, name):
    """How many packets a gateway forwarded, of each family."""
    rows = [line.split() for line in site.host(name).output("cat", "/proc/net/snmp")[0].splitlines()
            if line.startswith("Ip:")]
    rows6 = dict(line.split() for line in site.host(name).output("cat", "/proc/net/snmp6")[0].splitlines())
    return [int(dict(zip(*rows))["ForwDatagrams"]), int(rows6["Ip6OutForwDatagrams"])]


def refused(site):
    """What is told to an enforcer by who may not: nothing changes."""
    faults = []
    script = ("import socket,ssl,sys\nc=ssl.create_default_context(cafile=sys.argv[1])\nc.check_hostname=False\n"
              "sys.argv[2] and c.load_cert_chain(sys.argv[2],sys.argv[3])\n"
              "s=c.wrap_socket(socket.create_connection(('10.99.0.11',8953),3))\ns.settimeout(3)\n"
              "s.sendall(bytes.fromhex(sys.argv[4]))\n"
              "try:\n b=s.recv(4096)\nexcept OSError as e:\n b=str(e).encode()\nprint(b)")
    directory, ns1 = site.directory, site.host("ns1")
    for what, name, frame, expected in (
        ("no certificate", "", "0000000412020801", "alert|reset|pipe"),
        ("a stranger's", "stranger", "00000004120208 01", "no resolver that is configured"),
        ("another version", "ns2", "0000000412020809", "you speak version 9"),
        ("an over-long frame", "ns2", "ffffffff", "b''"),
        ("no hello", "ns2", "00000004 3a020801", "b''"),
    ):
        own = [f"{directory}/{name}.pem", f"{directory}/{name}.key"] if name else ["", ""]
        output, _ = ns1.output(sys.executable, "-c", script, f"{directory}/ca.pem", *own, frame.replace(" ", ""))
        if not any(word in output.lower() for word in expected.split("|")):
            faults.append(f"{what}: {output}")
    return faults


class Chaos:
    """What goes wrong, and when it is over. After 2 s a gateway fences, after 4 s answers go on without it: what is wrong with
    a gateway lasts for longer than that."""

    def __init__(self, site):
        self._site = site
        self.faults = []
        self.denied = None

    def kill(self, name, seconds=4.8):
        """kill -9, and started again after a while."""
        def begin():
            self._site.signal(name, signal.SIGKILL)

        def end():
            self._site.start(name)

        return f"kill {name}", begin, end, seconds

    def restart(self, name, binary=None):
        """SIGTERM and started again at once, perhaps as another version."""
        def begin():
            self._site.signal(name, signal.SIGTERM)
            self._site.start(name, binary)

        return f"restart {name}" + (f" as {binary}" if binary else ""), begin, lambda: None, 1

    def pause(self, name, seconds=10):
        """Does not run for a while."""
        return (f"pause {name}", lambda: self._site.signal(name, signal.SIGSTOP),
                lambda: self._site.signal(name, signal.SIGCONT), seconds)

    def cut(self, one, other, seconds=4.8):
        """No packet between two for a while."""
        return f"cut {one} {other}", lambda: self._site.cut(one, other), lambda: self._site.mend(one, other), seconds

    def later(self, fault, seconds):
        """A fault that begins while another one lasts."""
        name, begin, end, lasts = fault

        def wait():
            time.sleep(seconds)
            begin()

        return f"{name} after {seconds} s", wait, end, lasts

    def deny(self, name):
        """A change of the operator, which has to be taken now."""
        def begin():
            # It is in force; of the gateway that is dead it says that connections there could not be cut.
            self.denied, _ = self._site.host(name).output(
                node.binary(), "deny", "203.0.113.99", "--for", "1m", "--reason", "chaos", "-c",
                f"{self._site.directory}/{name}/run.toml")
            if "denied until" not in self.denied or "0 grants closed" not in self.denied:
                self.faults.append(f"a deny during a fault: {self.denied}")

        return f"deny at {name}", begin, lambda: None, 1

    def one_way(self, one, other, seconds=4.8):
        """Words of one do not come to the other for a while; those of the other come."""
        return (f"silence {one} to {other}", lambda: self._site.silence(one, other),
                lambda: self._site.hear(one, other), seconds)

    def all(self):
        """One at a time, and in pairs."""
        one = [self.kill("ns1", 3), self.kill("gw1"), self.cut("ns1", "gw1"), self.pause("ns2", 3), self.pause("gw2"),
               self.restart("ns1"), self.restart("gw1"), self.one_way("gw2", "ns1")]
        pairs = [(self.kill("ns1"), self.kill("gw1")), (self.kill("gw1"), self.kill("gw2")),
                 (self.pause("ns2", 5), self.cut("ns1", "gw3")), (self.cut("ns1", "gw1", 1.5), self.later(self.restart("ns2"), 4.5)),
                 (self.kill("gw1", 0.5), self.later(self.deny("ns1"), 4.5))]
        return [(fault,) for fault in one] + pairs


    def upgrades(self, before):
        """From a version that was before to the one under test, gateways first, one after the other; and back."""
        up = [*GATEWAYS, *RESOLVERS]
        return [(self.restart(name),) for name in up] + [(self.restart(name, before),) for name in reversed(up)]


def chaos_part(site, before):
    """Faults under load; where there is a version before, everything is upgraded to the one under test."""
    crowd, over = site.host("crowd"), f"{site.directory}/over"
    faults = []
    tasks = [(index, over) for index in range(1, 13)]
    pool = client.Crowd(crowd, loaded, tasks)
    try:
        chaos = Chaos(site)
        for together in chaos.upgrades(before) if before else chaos.all():
            what = " and ".join(name for name, *_ in together)
            live = [client.Download(crowd, lab.source("crowd", family_of(number)),
                                    internet.bulk_address(number, family_of(number)), socket.SOCK_STREAM)
                    for number in opened(site, range(24000, 24000 + LIVE))]
            began = time.monotonic()
            for _, begin, _, _ in together:
                begin()
            time.sleep(max(seconds for *_, seconds in together))
            broken = sum(not download.flows() for download in live)
            for _, _, end, _ in together:
                end()
            site.wait(GATEWAYS)
            broken += sum(not download.flows() for download in live)
            for download in live:
                download.close()
            if broken:
                faults.append(f"{what}: established connections broke, of {LIVE}: {broken}")
            print(json.dumps({"chaos": what, "until": time.strftime("%T"), "seconds": round(time.monotonic() - began, 1),
                              "broken": broken}), flush=True)
    finally:
        with open(over, "w"):
            pass
    if chaos.denied is None and not before:
        faults.append("nothing was denied")
    return client.total(pool.results()), faults + chaos.faults


def opened(site, numbers):
    """Has these names opened for the first of the crowd; the numbers."""
    one_client(site, numbers, connects=True)
    return numbers


def main():
    """Every part; the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=["local", "fresh", "chaos"])
    parser.add_argument("--before", metavar="BINARY", help="an older outgate: upgrade from it and go back to it, under load")
    options = parser.parse_args()
    wanted = lambda name: options.part in (None, name) if options.before is None else name == "chaos"
    faults = []
    with Site() as site:
        if wanted("local"):
            print(json.dumps({"local": local_part(site)}), flush=True)
            site.signal("ns1", signal.SIGTERM)
            with site.host("ns1").inside():
                network.run("nft", "delete", "table", "inet", "outgate")
        site.configure("remote")
        for name in [*GATEWAYS, *RESOLVERS]:
            site.start(name, options.before)
        site.watch()
        site.wait(GATEWAYS)
        if wanted("local"):
            print(json.dumps({"barrier": one_client(site, range(22000, 22000 + LOCAL), connects=False)}), flush=True)
        if wanted("fresh"):
            faults += refused(site)
            total = fresh_part(site)
            wrong = total["wrong"]
            print(json.dumps({"fresh": {**total, "wrong": wrong[:5]}}), flush=True)
            if total["connected"] != FRESH or total["repeated_syns"]:
                faults.append(f"{total['connected']} of {FRESH} connected, {total['repeated_syns']} SYNs were repeated")
            if min(min(carried) for carried in total["through"].values()) < FRESH // 10:
                faults.append(f"not every gateway carried its part: {total['through']}")
        if wanted("chaos"):
            total, broken = chaos_part(site, options.before)
            print(json.dumps({"chaos": {**total, "waited": max(total["waited"]), "wrong": total["wrong"][:8]}}), flush=True)
            faults += broken
            if total["wrong"]:
                faults.append(f"{len(total['wrong'])} answers could not be used")
            # A machine that is busy otherwise holds some of these clients up for longer than that.
            if total["silent"] * 1000 > total["told"]:
                faults.append(f"{total['silent']} questions went unanswered for more than {PATIENCE} s")
            if total["told"] < 500:
                faults.append(f"too few answers to mean anything: {total['told']}")
        if faults:
            faults += [f"{name}:\n{site.diagnostics(name)}" for name in [*RESOLVERS, *GATEWAYS]]
    print("\n".join(faults) or "whoever was told an address connected, through any gateway")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
