"""What really went out: every flow is in the node's own log, by the name that it went to.

    python3 flows.py      root; prints what was measured as JSON; exit code 1 if a flow is classed otherwise

- one flow for each class and its details: a name, two names on one address, a refresh that extends, a revoke, a grant that
  ends, a hard-coded address, the address of a name that is denied, of one that another segment was told, a static rule;
- some hundred downloads of 30 names: the bytes of the records by name are those that the web servers sent;
- more events than the kernel keeps, while the node stands still: what is lost is unknown, and not guessed;
- all of it on a gateway; a host that governs itself tells its own.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import sys
import time

import client
import internet
import lab
import packets

FLOW = '[flow]\nopen = true\nbuffer = "{buffer}"\n\n[health]'
STATIC = ('\n[[rule]]\nid       = "partner"\naction   = "allow"\nsegments = ["batch"]\nnetworks = ["198.51.100.200/32"]\n'
          'ports    = ["tcp/443"]\n')
DENIED = "198.51.100.201"
NAMES, DOWNLOADS, PAYLOAD = 30, 300, 40_000
CROWD = 1500
# What the kernel waits for before it calls a flow over, in seconds.
TIMEOUTS = ("tcp_timeout_close", "tcp_timeout_time_wait", "tcp_timeout_fin_wait", "tcp_timeout_last_ack", "udp_timeout",
            "udp_timeout_stream", "icmp_timeout")


def web(name):
    """The IPv4 address of a host of the lab's internet."""
    return internet.address(name, 4)


class Reaper:
    """Lists the gateway's connections, by which the kernel forgets those that are over."""

    def __init__(self, namespace):
        with namespace.inside():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        self._socket.bind((0, 0))
        self._socket.settimeout(5)

    def reap(self):
        """Once."""
        # IPCTNL_MSG_CT_GET with NLM_F_DUMP.
        self._socket.send(struct.pack("=IHHIIBBH", 20, 1 << 8 | 1, 0x301, 1, 0, 0, 0, 0))
        while struct.unpack_from("=IH", self._socket.recv(1 << 18))[1] != 3:
            pass


class Tale:
    """A node that tells of flows, and what it told."""

    def __init__(self, built):
        self.built = built
        self.node = built.node
        self.faults = []
        self.reaper = Reaper(built.host("gateway"))

    def ask(self, host, name):
        """Asks once on a host's behalf; the id of the record."""
        with self.built.host(host).inside():
            asker = client.Asker(lab.source(host, 4), lab.SERVER[4])
        asker.ask(name, packets.A)
        return self.node.record(client=asker.source, port=asker.port, qname=name)["id"]

    def flow(self, host, address, port=443):
        """Begins a connection; where from, and the socket, which is None where it was refused."""
        with self.built.host(host).inside():
            made = client.stream(lab.source(host, 4), 2.0)
        outcome = client.attempt(made, address, port)
        from_port = made.getsockname()[1]
        if outcome.outcome != "connected":
            made.close()
            return from_port, None
        made.recv(128)
        return from_port, made

    def once(self, host, address, port=443):
        """Begins a connection and ends it; the port that it came from."""
        from_port, made = self.flow(host, address, port)
        if made is not None:
            made.close()
        return from_port

    def late(self, host, address):
        """Connects until that is refused; the port that it came from then."""
        end = time.monotonic() + 10
        while True:
            port, made = self.flow(host, address)
            if made is None:
                return port
            made.close()
            if time.monotonic() > end:
                raise RuntimeError(f"{address} stays open")
            time.sleep(0.1)

    def records(self, host, port, *ops, seconds=10.0):
        """The records of a flow, as soon as there is one for each of these operations."""
        end = time.monotonic() + seconds
        while True:
            found = [record for record in self.node.records("flow")
                     if (record["client"], record.get("port")) == (lab.source(host, 4), port)]
            if {record["op"] for record in found} >= set(ops) or time.monotonic() > end:
                return found
            self.reaper.reap()
            time.sleep(0.05)

    def told(self, what, host, port, op, **expected):
        """Checks what the record of a flow says; the record."""
        wanted = ("open", "close") if op == "close" else (op,)
        found = self.records(host, port, *wanted)
        record = next((record for record in found if record["op"] == op), None)
        shown = {key: value for key, value in (record or {}).items() if key not in ("v", "node", "tags", "id", "ts")}
        print(f"{what}\n    {json.dumps(shown)}", flush=True)
        if record is None:
            self.faults.append(f"{what}: no record \"{op}\" of {lab.source(host, 4)}:{port}: {found}")
            return {}
        for key, value in expected.items():
            if record.get(key) != value:
                self.faults.append(f"{what}: \"{key}\" is {json.dumps(record.get(key))}, not {json.dumps(value)}: {shown}")
        if op == "close":
            began = [other for other in found if other["op"] == "open"]
            if [other.get("class") for other in began] != [record.get("class")]:
                self.faults.append(f"{what}: it began as another one: {began}")
        return record


def classes(tale):
    """A flow for each class."""
    api, brief, live = web("api.example.com"), web("brief.example.com"), web("live.example.com")

    query = tale.ask("checkout1", "api.example.com")
    port = tale.once("checkout1", api)
    record = tale.told("one name", "checkout1", port, "close", action="allow", qname="api.example.com", rule="shop",
                       query=query, segment="checkout", service="tcp/443", address=api, source="conntrack",
                       **{"class": "exact"})
    if not (record.get("bytes_in", 0) > 0 and record.get("packets_out", 0) > 0 and record.get("end")):
        tale.faults.append(f"nothing was counted: {record}")

    tale.ask("checkout1", "twin-short.example.com")
    tale.ask("checkout1", "twin-long.example.com")
    port = tale.once("checkout1", web("twin-long.example.com"))
    record = tale.told("two names on one address", "checkout1", port, "close", detail="same_rule", rule="shop",
                       **{"class": "ambiguous"})
    if {name["qname"] for name in record.get("names", [])} != {"twin-short.example.com", "twin-long.example.com"}:
        tale.faults.append(f"two names, and the record says {record.get('names')}")

    # TTL 3 and grace 2: open for 5 s, and for 5 more from the second time on.
    tale.ask("checkout1", "three.example.com")
    start = time.monotonic()
    time.sleep(3.5)
    query = tale.ask("checkout1", "three.example.com")
    time.sleep(max(0.0, start + 5.3 - time.monotonic()))
    port = tale.once("checkout1", web("three.example.com"))
    tale.told("a refresh that extends", "checkout1", port, "close", qname="three.example.com", query=query,
              **{"class": "exact"})

    # TTL 1, open for some seconds.
    tale.ask("checkout1", "brief.example.com")
    lived, living = tale.flow("checkout1", brief)
    time.sleep(1.8)
    port = tale.once("checkout1", brief)
    record = tale.told("in the grace of a grant", "checkout1", port, "close", qname="brief.example.com", detail="grace",
                       **{"class": "stale"})
    if not 0 < record.get("late_us", 0) < 2_000_000:
        tale.faults.append(f"late by {record.get('late_us')} us")
    late = tale.late("checkout1", brief)
    record = tale.told("after the end of a grant", "checkout1", late, "refuse", action="deny", qname="brief.example.com",
                       detail="cached", source="nflog", segment="checkout", **{"class": "stale"})
    if "grant ended" not in record.get("why", ""):
        tale.faults.append(f"why: {record.get('why')}")
    living.close()
    record = tale.told("a flow that outlives its grant", "checkout1", lived, "close", qname="brief.example.com",
                       **{"class": "exact"})
    if not record.get("outlived_us", 0) > 500_000:
        tale.faults.append(f"outlived by {record.get('outlived_us')} us")

    tale.ask("checkout2", "live.example.com")
    lived, living = tale.flow("checkout2", live)
    said, code = tale.node.command("revoke", "--name", "live.example.com", "--reason", "the lab")
    if code != 0:
        tale.faults.append(f"revoke: {said}")
    late = tale.late("checkout2", live)
    tale.told("after a revoke", "checkout2", late, "refuse", qname="live.example.com", **{"class": "stale"})
    living.close()
    record = tale.told("a revoke while it lives", "checkout2", lived, "close", qname="live.example.com",
                       **{"class": "exact"})
    if not record.get("outlived_us", 0) > 0:
        tale.faults.append(f"a revoked grant was outlived by {record.get('outlived_us')} us")

    port = tale.once("checkout2", internet.NEVER4)
    tale.told("before any look-up", "checkout2", port, "refuse", detail="unknown_address", segment="checkout",
              **{"class": "none"})
    tale.ask("batch1", "mirror.example.org")
    port = tale.once("checkout2", web("mirror.example.org"))
    tale.told("the address of another segment's name", "checkout2", port, "refuse", detail="peer_name",
              **{"class": "none"})
    tale.ask("trial1", "admin.example.com")
    tale.ask("checkout1", "admin.example.com")
    port = tale.once("checkout1", web("admin.example.com"))
    tale.told("the address of a denied name", "checkout1", port, "refuse", detail="denied_name", qname="admin.example.com",
              **{"class": "none"})
    port = tale.once("checkout1", api, 80)
    tale.told("another port", "checkout1", port, "refuse", service="tcp/80", detail="other_service", **{"class": "none"})

    port = tale.once("batch1", "198.51.100.200")
    tale.told("a rule for networks", "batch1", port, "close", rule="partner", segment="batch", **{"class": "static"})
    port = tale.once("trial1", internet.NEVER4)
    tale.told("observed", "trial1", port, "close", action="allow", segment="trial", detail="unknown_address",
              **{"class": "none"})
    said, code = tale.node.command("deny", f"{DENIED}/32", "--reason", "the lab")
    if code != 0:
        tale.faults.append(f"deny: {said}")
    port = tale.once("batch1", DENIED)
    tale.told("denied to everybody", "batch1", port, "refuse", segment="batch", **{"class": "none"})


def bytes_by_name(tale):
    """Downloads of many names; what was counted."""
    sent, worked = {}, tale.node.worked("flow")
    for number in range(DOWNLOADS):
        name = internet.bulk_name(number % NAMES)
        host = ("checkout1", "checkout2")[number % 2]
        if number < 2 * NAMES:
            tale.ask(host, name)
            tale.ask(host, internet.bulk_name((number + 1) % NAMES))
        _, made = tale.flow(host, internet.bulk_address(number % NAMES, 4))
        if made is None:
            tale.faults.append(f"{host} does not reach {name}")
            continue
        size = PAYLOAD + number * 100
        made.send(f"give {size}\n".encode())
        got = 0
        with contextlib.suppress(OSError):
            while piece := made.recv(1 << 16):
                got += len(piece)
        made.close()
    served = tale.built.served()
    for number in range(NAMES):
        sent[internet.bulk_name(number)] = served.get(internet.bulk_address(number, 4), 0)
    end = time.monotonic() + 20
    while True:
        flows = [record for record in tale.node.records("flow")
                 if record["op"] == "close" and record["address"].startswith("198.18.")]
        if len(flows) >= DOWNLOADS or time.monotonic() > end:
            break
        tale.reaper.reap()
        time.sleep(0.1)
    worked = (tale.node.worked("flow") - worked) * 1e6 / DOWNLOADS
    counted, exact = {}, 0
    for record in flows:
        if record["class"] == "exact":
            exact += record.get("bytes_in", 0)
            counted[record["qname"]] = counted.get(record["qname"], 0) + record.get("bytes_in", 0)
    total = sum(record.get("bytes_in", 0) for record in flows)
    each = DOWNLOADS // NAMES
    # Headers: 60 octets a packet of 1448, some packets without anything, and what ends a connection.
    off = {name: (size, counted.get(name, 0)) for name, size in sent.items()
           if not size <= counted.get(name, 0) <= size * 1.06 + 1500 * each}
    uncounted = [record for record in flows if "bytes_in" not in record]
    if uncounted:
        tale.faults.append(f"{len(uncounted)} downloads were not counted: {uncounted[0]}")
    tale.faults += [f"{name}: {size} bytes were sent, {count} are in the records" for name, (size, count) in off.items()]
    if len(flows) != DOWNLOADS:
        tale.faults.append(f"{DOWNLOADS} downloads, {len(flows)} records")
    if exact < 0.95 * total:
        tale.faults.append(f"{exact} of {total} bytes carry exactly one name")
    print(json.dumps({"downloads": len(flows), "sent": sum(sent.values()), "counted": total, "exact": exact,
                      "processor_us_per_flow": round(worked)}), flush=True)


def overrun(tale):
    """More begins and ends than the kernel keeps while nobody reads."""
    api = web("api.example.com")
    tale.ask("checkout1", "api.example.com")
    # Flows before these may have had the same ports.
    before = len(tale.node.records("flow"))
    pid = tale.node.process()
    os.kill(pid, signal.SIGSTOP)
    try:
        ports = {tale.once("checkout1", api) for _ in range(CROWD)}
        # They are over a second after they were reset.
        end = time.monotonic() + 3
        while time.monotonic() < end:
            tale.reaper.reap()
            time.sleep(0.2)
    finally:
        os.kill(pid, signal.SIGCONT)
    end, found = time.monotonic() + 15, []
    while time.monotonic() < end:
        records = tale.node.records("flow")[before:]
        found = [record for record in records if record.get("port") in ports and record["op"] == "close"
                 and record["client"] == lab.source("checkout1", 4) and record["address"] == api]
        begun = [record for record in records if record.get("port") in ports and record["op"] == "open"]
        if found and len(found) >= len({record["port"] for record in begun}):
            break
        time.sleep(0.1)
    kinds = {}
    for record in found:
        kind = f"{record['class']} {record.get('detail', '')}".strip()
        kinds[kind] = kinds.get(kind, 0) + 1
    print(json.dumps({"flows": CROWD, "records": kinds}), flush=True)
    if not 0 < len(found) < CROWD:
        tale.faults.append(f"nothing was lost: {len(found)} of {CROWD} flows have a record")
    if set(kinds) != {"unknown events_lost"}:
        tale.faults.append(f"what ended while events were lost is guessed: {kinds}")
    lost = tale.node.metric("outgate_flow_events_lost_total")
    if not lost:
        tale.faults.append(f"the metric says that {lost} events were lost")
    port = tale.once("checkout1", api)
    tale.told("after the overrun", "checkout1", port, "close", qname="api.example.com", **{"class": "exact"})


def host(tale):
    """The gateway as a host that governs itself."""
    node, gateway = tale.node, tale.built.host("gateway")
    node.stop()
    node.amend('hook   = "forward"\ninside = ["inside0"]\n',
               'hook   = "output"\nown_uid = 65533\nungated = ["203.0.113.53/32", "2001:db8:f::53/128"]\n')
    node.amend_policy('clients = ["192.0.2.64/26"', 'clients = ["127.0.0.0/8", "::1/128", "192.0.2.1/32", "192.0.2.64/26"')
    node.spawn()
    with gateway.inside():
        asker = client.Asker("192.0.2.1", "192.0.2.1")
        end = time.monotonic() + 15
        while time.monotonic() < end:
            reply, _ = asker.ask("api.example.com", packets.A, timeout=0.3)
            if reply is not None and reply.addresses:
                break
            time.sleep(0.05)
        ports = []
        for address in (web("api.example.com"), internet.NEVER4, web("brief.example.com")):
            made = client.stream("203.0.113.1", 2.0)
            client.attempt(made, address)
            ports.append(made.getsockname()[1])
            made.close()
        # The kernel tells no time of what a host refuses itself: this one is open by the time that is read.
        asker.ask("brief.example.com", packets.A)
    end, found = time.monotonic() + 10, {}
    while time.monotonic() < end and len(found) < 3:
        tale.reaper.reap()
        found = {(record["op"], record["class"], record.get("qname"), record["address"]): record
                 for record in node.records("flow")
                 if record["client"] == "203.0.113.1" and record.get("port") in ports and record["op"] != "open"}
        time.sleep(0.05)
    print(f"a host of its own\n    {sorted(found, key=str)}", flush=True)
    if set(found) != {("close", "exact", "api.example.com", web("api.example.com")),
                      ("refuse", "none", None, internet.NEVER4), ("refuse", "none", None, web("brief.example.com"))}:
        tale.faults.append(f"a host of its own: {sorted(found, key=str)}: {node.diagnostics()}")


def main():
    """All of it; the exit code."""
    with lab.Lab() as built:
        gateway = built.host("gateway")
        for name in TIMEOUTS:
            gateway.sysctl(f"netfilter/nf_conntrack_{name}", "1")
        built.node.amend("[health]", FLOW.format(buffer="256KiB"))
        built.node.amend_policy('[[rule]]\nid       = "no-admin"', STATIC.lstrip() + '\n[[rule]]\nid       = "no-admin"')
        built.node.start()
        tale = Tale(built)
        classes(tale)
        bytes_by_name(tale)
        overrun(tale)
        verified, code = built.node.verify_log()
        host(tale)
        tale.faults += [fault for fault, so in (
            (f"outgate log verify: {verified}", code != 0),
            ("outgate has ended: " + built.node.diagnostics(), not built.node.alive()),
        ) if so]
        print("\n".join(tale.faults) or "every flow is in the log as what it was")
        return 1 if tale.faults else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
