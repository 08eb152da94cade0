"""What outgate does, step by step, over IPv4 and IPv6: each step prints what was run and what was seen.

    python3 story.py [--quick] [--keep]      root; exit code 1 if any step does not hold
"""

import argparse
import contextlib
import json
import re
import signal
import socket
import sys
import textwrap
import time

import client
import internet
import lab
import network
import packets

FAMILIES = (4, 6)
STEPS = []
# Too long for a look; the log has them.
UNSHOWN = ("v", "node", "tags", "policy", "flags", "bytes", "latency_us", "stages_us", "id")


class DoesNotHold(Exception):
    """A fact that a step relies on is not so."""


def step(title, slow=False):
    """Adds a function to the story. A slow one waits for a grant to end."""

    def add(function):
        STEPS.append((title, slow, function))
        return function

    return add


def say(text):
    """Tells one line, indented."""
    print(textwrap.indent(text, "    "), flush=True)


def holds(condition, fact):
    """Ends the step unless the fact is so."""
    if not condition:
        raise DoesNotHold(fact)


class Dug:
    """What dig showed."""

    def __init__(self, source, output):
        head = re.search(r"status: (\w+), id: (\d+)", output)
        self.source = source
        self.status, self.identity = (head[1], int(head[2])) if head else (None, None)
        extended = re.search(r"EDE: (\d+)", output)
        self.ede = int(extended[1]) if extended else None
        self.answers = re.findall(r"^[^;\s]\S*\s+\d+\s+IN\s+.*$", output, re.MULTILINE)
        shown = [line.strip("; ") for line in output.splitlines() if "EDE:" in line]
        self.text = "\n".join([f"{self.status or output.strip().splitlines()[-1]}", *shown, *self.answers])

    def addresses(self):
        """The addresses of the answer."""
        return [line.split()[-1] for line in self.answers if line.split()[3] in ("A", "AAAA")]


class Teller:
    """A lab with outgate running, and the verbs of the story."""

    def __init__(self, built):
        self.lab = built
        self.node = built.node
        self.upstream = network.Tap(built.host("internet"), "gateway0")

    def dig(self, host, family, name, kind=None, server=None, *options):
        """Asks over one family; by default for the addresses of the same family."""
        kind = kind or packets.NAME[packets.KIND[family]]
        source, server = lab.source(host, family), server or lab.SERVER[family]
        say(f"{host}$ dig @{server} {name} {kind} {' '.join(options)}".rstrip())
        output, _ = self.lab.host(host).output(
            "dig", f"@{server}", "-b", source, "+tries=1", "+time=3", "+nosearch", *options, name, kind)
        dug = Dug(source, output)
        say(textwrap.indent(dug.text, "  "))
        return dug

    def reach(self, host, address, port=443):
        """Tries to connect; how that went."""
        with self.lab.host(host).inside():
            attempt = client.connect(lab.source(host, 6 if ":" in address else 4), address, port)
        say(f"{host}$ connect {address} tcp/{port}\n  {attempt}")
        return attempt.outcome

    def exchange(self, host, address, port=443):
        """Sends one datagram; whether it came back."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.lab.host(host).inside(), socket.socket(family, socket.SOCK_DGRAM) as made:
            made.connect((address, port))
            made.settimeout(2)
            try:
                made.send(b"datagram")
                outcome = "answered" if made.recv(64) == b"datagram" else "garbled"
            except TimeoutError:
                outcome = "silent"
            except OSError as error:
                outcome = "refused" if error.errno in client.REFUSALS else str(error)
        say(f"{host}$ send {address} udp/{port}\n  {outcome}")
        return outcome

    def live(self, host, address):
        """An open connection, past its greeting."""
        with self.lab.host(host).inside():
            made = client.stream(lab.source(host, 6 if ":" in address else 4), 2.0)
        attempt = client.attempt(made, address)
        say(f"{host}$ connect {address} tcp/443, and stay\n  {attempt}")
        holds(attempt.outcome == "connected", "it connects")
        made.recv(128)
        return made

    def logged(self, dug, **expected):
        """The record of a query, there already now that the answer is; checks what it says."""
        record = self.node.record(client=dug.source, qid=dug.identity)
        holds(record is not None, f"the query {dug.identity} of {dug.source} has a record when its answer is there")
        say("log: " + json.dumps({key: value for key, value in record.items() if key not in UNSHOWN}))
        for key, value in expected.items():
            holds(record.get(key) == value, f'the record says "{key}": {json.dumps(value)}')
        return record

    def opened(self, name, address, **expected):
        """The grant record of an address; checks what it says."""
        records = [record for record in self.node.records("grant")
                   if record["qname"] == name and record["address"] == address and record["op"] == "open"]
        holds(records, f"the log says that {address} was opened for {name}")
        record = records[-1]
        say("log: " + json.dumps({key: value for key, value in record.items() if key not in UNSHOWN}))
        for key, value in expected.items():
            holds(record.get(key) == value, f'the record says "{key}": {json.dumps(value)}')
        return record


@step("The configuration is valid")
def configuration_is_valid(told):
    output, code = told.node.check()
    say(f"gateway$ outgate check\n  {output.strip()}")
    holds(code == 0, "outgate check exits with 0")


@step("An allowed name connects on its first SYN")
def allowed_name_connects_on_its_first_syn(told):
    before = told.lab.host("checkout1").counter("TCPSynRetrans")
    for family in FAMILIES:
        address = internet.address("api.example.com", family)
        holds(told.reach("checkout1", address) == "refused", "nobody reaches it before they asked")
        dug = told.dig("checkout1", family, "api.example.com")
        holds(dug.addresses() == [address], f"the answer is {address}")
        holds(told.reach("checkout1", address) == "connected", "the answer can be used at once")
        told.logged(dug, verdict="allow", reason="rule", rule="shop", segment="checkout", rcode="NOERROR")
        told.opened("api.example.com", address, client=dug.source, scope="client", rule="shop", ports=["tcp/443"])
    holds(told.lab.host("checkout1").counter("TCPSynRetrans") == before, "no SYN was sent twice")


@step("An alias is followed: one rule for the name that is asked, not for the names behind it")
def alias_is_followed(told):
    for family in FAMILIES:
        dug = told.dig("checkout1", family, "shop.example.com")
        holds(len(dug.answers) == 3, "two aliases and an address")
        holds(told.reach("checkout1", dug.addresses()[0]) == "connected", "it connects")
        told.logged(dug, verdict="allow", rule="shop")


@step("A denied name does not exist, says why, and never travels upstream")
def denied_name_does_not_exist(told):
    for family in FAMILIES:
        for name, expected in (("tracker.example.net", {"reason": "default"}),
                               ("admin.example.com", {"reason": "rule", "rule": "no-admin"})):
            label = name.split(".")[0].encode()
            told.upstream.carried(label)
            dug = told.dig("checkout1", family, name)
            holds(dug.status == "NXDOMAIN", "the answer is NXDOMAIN")
            holds(dug.ede == 15, "the extended error is 15 (Blocked)")
            told.logged(dug, verdict="deny", rcode="NXDOMAIN", **expected)
            holds(not told.upstream.carried(label), "no packet with that name went towards the internet")


@step("A hard-coded address is refused at once, and so is another port of an open one")
def hard_coded_address_is_refused_at_once(told):
    for never, family in ((internet.NEVER4, 4), (internet.NEVER6, 6)):
        holds(told.reach("checkout1", never) == "refused", "an address that no answer held is refused")
        holds(told.reach("checkout1", internet.address("api.example.com", family), 80) == "refused",
              "a port that no rule names is refused")


@step("A second client of a cached name: refused before it asks, then open without a question upstream")
def second_client_of_a_cached_name(told):
    for family in FAMILIES:
        address = internet.address("api.example.com", family)
        holds(told.reach("checkout2", address) == "refused", "what another client asked for opens nothing for this one")
        told.upstream.carried(b"")
        dug = told.dig("checkout2", family, "api.example.com")
        holds(told.reach("checkout2", address) == "connected", "it connects")
        record = told.logged(dug, verdict="allow")
        holds(record.get("cache") in ("open", "hit"), "the answer came from the cache")
        holds(not told.upstream.carried(b"\x03api\x07example"), "nobody asked upstream again")


@step("Asked over one family, connected over the other")
def asked_over_one_family_connected_over_the_other(told):
    for family, other in ((4, 6), (6, 4)):
        kind = packets.NAME[packets.KIND[other]]
        dug = told.dig("checkout1", family, "either.example.com", kind)
        address = internet.address("either.example.com", other)
        holds(told.reach("checkout1", address) == "connected", f"asked over IPv{family}, connects over IPv{other}")
        told.opened("either.example.com", address, scope="segment", client=dug.source)


@step("Ports and protocols: udp/443 where a rule says so")
def udp_where_a_rule_says_so(told):
    for family in FAMILIES:
        told.dig("checkout1", family, "quic.example.com")
        address = internet.address("quic.example.com", family)
        holds(told.exchange("checkout1", address) == "answered", "UDP passes to the name that has it")
        holds(told.reach("checkout1", address) == "connected", "so does TCP, by the other rule of this name")
        other = internet.address("api.example.com", family)
        holds(told.exchange("checkout1", other) == "refused", "UDP to another name's address is refused")


@step("Scope segment: one host asks, another of its segment connects")
def scope_segment(told):
    for family in FAMILIES:
        address = internet.address("mirror.example.org", family)
        holds(told.reach("batch2", address) == "refused", "closed at first")
        told.logged(told.dig("batch1", family, "mirror.example.org"), verdict="allow", segment="batch")
        holds(told.reach("batch2", address) == "connected", "the other host of the segment connects")
        holds(told.reach("checkout2", address) == "refused", "another segment does not")
        told.opened("mirror.example.org", address, scope="segment", segment="batch")


@step("Observe: nothing is refused, everything is recorded")
def observe_passes_and_is_recorded(told):
    for family in FAMILIES:
        dug = told.dig("trial1", family, "tracker.example.net")
        address = internet.address("tracker.example.net", family)
        holds(dug.addresses() == [address], "the name resolves")
        holds(told.reach("trial1", address) == "connected", "it connects")
        never = internet.NEVER4 if family == 4 else internet.NEVER6
        holds(told.reach("trial1", never) == "connected", "a hard-coded address passes too")
        told.logged(dug, segment="trial", reason="default", enforced=False)


@step("A host in no segment gets nothing")
def host_in_no_segment_gets_nothing(told):
    for family in FAMILIES:
        dug = told.dig("stranger", family, "api.example.com")
        holds((dug.status, dug.ede) == ("REFUSED", 18), "REFUSED, extended error 18 (Prohibited)")
        told.logged(dug, verdict="deny", reason="no_segment")
        address = internet.address("api.example.com", family)
        holds(told.reach("stranger", address) == "refused", "and it connects to nothing")


@step("Port 53 elsewhere is refused")
def port_53_elsewhere_is_refused(told):
    for family, other in ((4, internet.NEVER4), (6, internet.NEVER6)):
        with told.lab.host("gateway").inside():
            own = "203.0.113.1" if family == 4 else "2001:db8:f::1"
            reply, _ = client.Asker(own, other).ask("api.example.com", packets.KIND[family])
        holds(reply is not None and reply.addresses, f"there is a name server at {other}")
        for options in ((), ("+tcp",)):
            dug = told.dig("checkout1", family, "api.example.com", None, other, *options)
            holds(dug.status is None, "no answer from a name server that is not ours")
        holds(told.exchange("checkout1", other, 53) == "refused", "it is refused, not lost")
        holds(told.reach("checkout1", other, 53) == "refused", "so is a connection")


@step("A grant ends: new connections are refused, the live one goes on", slow=True)
def grant_ends_and_the_live_connection_goes_on(told):
    lives = []
    for family in FAMILIES:
        dug = told.dig("checkout1", family, "brief.example.com")
        lives.append(told.live("checkout1", dug.addresses()[0]))
    say("... until a new connection is refused (answer TTL 1 s, grace 2 s, hold 3 s)")
    for family in FAMILIES:
        address = internet.address("brief.example.com", family)
        end = time.monotonic() + 10
        with told.lab.host("checkout1").inside():
            while client.connect(lab.source("checkout1", family), address).outcome == "connected":
                holds(time.monotonic() < end, "the grant ends")
                time.sleep(0.1)
        holds(told.reach("checkout1", address) == "refused", "a new connection is refused")
    for made in lives:
        made.send(b"still there?")
        holds(made.recv(64) == b"still there?", "the live connection goes on")
        say(f"live connection to {made.getpeername()[0]}: still there")
        made.close()
    for family in FAMILIES:
        told.dig("checkout1", family, "brief.example.com")
        address = internet.address("brief.example.com", family)
        holds(told.reach("checkout1", address) == "connected", "who asks again connects again")


@step("The log is complete")
def log_is_complete(told):
    output, code = told.node.verify_log()
    say(f"gateway$ outgate log verify\n  {output.strip()}")
    holds(code == 0, "outgate log verify finds no gap")
    count = {}
    for record in told.node.records():
        key = " ".join(str(record[field]) for field in ("type", "verdict", "reason", "op") if field in record)
        count[key] = count.get(key, 0) + 1
    say("\n".join(f"{number:5} {key}" for key, number in sorted(count.items())))


def tell(built, quick=False):
    """Tells every step; the titles of those that do not hold."""
    told, broken = Teller(built), []
    for number, (title, slow, function) in enumerate(STEPS, 1):
        if slow and quick:
            continue
        print(f"\n{number}. {title}", flush=True)
        try:
            function(told)
            say("holds")
        except (DoesNotHold, OSError, RuntimeError, IndexError) as fact:
            say(f"DOES NOT HOLD: {fact}")
            broken.append(title)
            if not built.node.alive():
                say(f"outgate has ended:\n{built.node.diagnostics()}")
                break
    return broken


def main(description=__doc__):
    """The command line; the exit code."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="leave out the steps that wait for a grant to end")
    arguments.add_argument("--keep", action="store_true", help="keep the lab until Ctrl-C, to try things by hand")
    chosen = arguments.parse_args()
    with lab.Lab() as built:
        built.node.start()
        broken = tell(built, chosen.quick)
        print(f"\n{len(broken)} steps do not hold: {'; '.join(broken)}" if broken else "\nEvery step holds.")
        if chosen.keep:
            host = built.host("checkout1").full
            print(f"\nThe lab stays until Ctrl-C; its files are in {built.directory}. For example:\n"
                  f"    ip netns exec {host} dig @{lab.SERVER[4]} api.example.com\n"
                  f"    ip netns exec {built.host('gateway').full} nft list ruleset", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
