"""Two resolvers and three gateways on machines of their own: an answer waits for every gateway that could carry its flow.

    python3 gateways.py [--part NAME]     root; prints the counts as JSON; exit code 1 if something does not hold

    crowd .80-.111 ┐          ┌ gw1 .11 ┐
    ns1 .2  ns2 .3 ┤  inside  ├ gw2 .12 ┤ outside ── internet 203.0.113.2
    192.0.2.0/24   ┘          └ gw3 .13 ┘ 203.0.113.0/24
    10.99.0.0/24: the resolvers drive the enforcers of the gateways over it

New connections of the crowd go through any gateway that says that it is ready; established ones stay where they are.

- local: what an answer costs whose firewall is the resolver's own.
- fresh: 10,000 names that nobody asked for before; the SYN of each at once, through any gateway.
- chaos: under the same load processes are killed and paused, links cut, one at a time and in pairs; connections that
  were made before go on, and whoever tries both resolvers has an answer within a second.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import client
import internet
import lab
import network
import node
import packets

PREFIX = "og-gates"
GATEWAYS = {"gw1": 11, "gw2": 12, "gw3": 13}
RESOLVERS = {"ns1": 2, "ns2": 3}
CLIENTS = 32
FRESH = 10000
LOCAL = 1500
LIVE = 12
PATIENCE = 1.0

RUN = """\
node  = "{name}"
state = "{directory}/{name}/state"
[listen]
dns     = ["192.0.2.{last}:53"]
workers = 1
[policy]
directory = "{directory}/policy"
[zones]
directory = "{directory}/zones"
[[upstream]]
name    = "internet"
servers = ["udp://203.0.113.53:53"]
[grant]
ttl_min = "1s"
ttl_max = "300s"
grace   = "2s"
hold    = "30s"
[audit]
file        = "{directory}/{name}/query.jsonl"
rotate_size = "64MiB"
max_size    = "1GiB"
[admin]
socket = "{directory}/{name}/admin.sock"
[health]
listen = "127.0.0.1:9953"
"""
REMOTE = """\
[[firewall]]
name        = "{gateway}"
kind        = "remote"
server      = "10.99.0.{last}"
deadline    = "200ms"
ca          = "{directory}/ca.pem"
certificate = "{directory}/{name}.pem"
key         = "{directory}/{name}.key"
"""
OWN = """\
[[firewall]]
name = "own"
kind = "nftables"
hook = "sets"
"""
ENFORCE = """\
node  = "{name}"
state = "{directory}/{name}/state"
[enforce]
listen      = "10.99.0.{last}:8953"
resolvers   = ["ns1.corp.example", "ns2.corp.example"]
ca          = "{directory}/ca.pem"
certificate = "{directory}/{name}.pem"
key         = "{directory}/{name}.key"
[health]
listen = "192.0.2.{last}:9954"
[[firewall]]
name   = "gateway"
kind   = "nftables"
hook   = "forward"
inside = ["inside0"]
"""
POLICY = """\
[[segment]]
name    = "crowd"
clients = ["192.0.2.64/26"]
scope   = "client"
[[rule]]
id       = "bulk"
action   = "allow"
segments = ["crowd"]
names    = ["**.example.com"]
private  = ["198.18.0.0/15", "198.51.100.0/24"]
"""


def certificates(directory):
    """An authority and a certificate of each machine."""
    def openssl(*arguments):
        network.run("openssl", *arguments)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", f"{directory}/ca.key", "-out", f"{directory}/ca.pem", "-days", "2",
            "-subj", "/CN=lab")
    names = {name: (f"DNS:{name}.corp.example", last) for name, last in RESOLVERS.items()}
    names |= {name: (f"IP:10.99.0.{last}", last) for name, last in GATEWAYS.items()}
    names["stranger"] = ("DNS:stranger.corp.example", 0)
    for name, (alternative, _) in names.items():
        openssl("req", *curve, "-keyout", f"{directory}/{name}.key", "-out", f"{directory}/{name}.csr",
                "-subj", f"/CN={name}")
        with open(f"{directory}/{name}.ext", "w") as file:
            file.write(f"subjectAltName={alternative}\nbasicConstraints=CA:FALSE\n")
        openssl("x509", "-req", "-in", f"{directory}/{name}.csr", "-CA", f"{directory}/ca.pem",
                "-CAkey", f"{directory}/ca.key", "-CAcreateserial", "-out", f"{directory}/{name}.pem", "-days", "2",
                "-extfile", f"{directory}/{name}.ext")
        os.chmod(f"{directory}/{name}.key", 0o600)


class Site:
    """The machines; built on entry, gone on exit. `outside` starts what the internet is made of."""

    def __init__(self, outside=internet.start):
        lab.require()
        self._outside = outside
        self._spaces = {}
        self._processes = {}
        self._internet = []
        self.directory = None
        self._over = threading.Event()
        self._ready = ()

    def __enter__(self):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            network.sweep(PREFIX)
            self.directory = tempfile.mkdtemp(prefix=f"{PREFIX}-")
            certificates(self.directory)
            self._build()
            self._internet = self._outside(self.host("internet"), self.directory)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._over.set()
        for process in [*self._processes.values(), *self._internet]:
            process.kill()
            process.wait()
        for space in self._spaces.values():
            with contextlib.suppress(RuntimeError):
                space.remove()
        if self.directory is not None:
            subprocess.run(["rm", "-rf", self.directory], check=False)

    def host(self, name):
        """A machine's namespace."""
        return self._spaces[name]

    def _space(self, name):
        made = network.Namespace(f"{PREFIX}-{os.getpid()}-", name)
        self._spaces[name] = made
        return made

    def _build(self):
        for switch in ("inside", "outside", "back"):
            made = self._space(switch)
            made.sysctl("bridge/bridge-nf-call-iptables", "0")
            made.ip("link", "add", "switch0", "type", "bridge")
            made.ip("link", "set", "switch0", "up")

        def join(name, switch, interface, *addresses):
            network.cable(self.host(name), interface, self.host(switch), name)
            self.host(switch).ip("link", "set", name, "master", "switch0")
            for address in addresses:
                self.host(name).ip("address", "add", address, "dev", interface)

        outside = self._space("internet")
        join("internet", "outside", "eth0", "203.0.113.2/24", f"{internet.RESOLVER4}/24")
        for block in internet.BLOCKS:
            if ":" not in block:
                outside.ip("route", "add", "local", block, "dev", "lo")
        outside.sysctl("ipv6/ip_nonlocal_bind", "1")
        outside.sysctl("core/somaxconn", "8192")
        outside.sysctl("ipv4/tcp_max_syn_backlog", "8192")
        for name, last in RESOLVERS.items():
            self._space(name)
            join(name, "inside", "inside0", f"192.0.2.{last}/24")
            join(name, "outside", "outside0", f"203.0.113.{last + 20}/24")
            join(name, "back", "back0", f"10.99.0.{last}/24")
            os.makedirs(f"{self.directory}/{name}/state")
        for name, last in GATEWAYS.items():
            made = self._space(name)
            join(name, "inside", "inside0", f"192.0.2.{last}/24")
            join(name, "outside", "outside0", f"203.0.113.{last}/24")
            join(name, "back", "back0", f"10.99.0.{last}/24")
            made.sysctl("ipv4/ip_forward", "1")
            for block in internet.BLOCKS:
                if ":" not in block:
                    made.ip("route", "add", block, "via", "203.0.113.2")
            # What leaves by a gateway comes back by it.
            with made.inside():
                network.run("nft", "-f", "-", feed='table ip nat { chain out { type nat hook postrouting priority 100; '
                                                   'oifname "outside0" masquerade; }\n}')
            os.makedirs(f"{self.directory}/{name}/state")
        crowd = self._space("crowd")
        join("crowd", "inside", "eth0", *[f"{address}/24" for address in lab.sources("crowd", 4)])
        for name, last in GATEWAYS.items():
            crowd.ip("route", "add", "default", "via", f"192.0.2.{last}", "table", str(last))
            crowd.ip("rule", "add", "fwmark", str(last), "table", str(last))
        crowd.ip("route", "add", "default", "via", "192.0.2.11")
        for folder in ("policy", "zones"):
            os.makedirs(f"{self.directory}/{folder}")
        with open(f"{self.directory}/policy/lab.toml", "w") as file:
            file.write(POLICY)

    def configure(self, firewall):
        """Writes every machine's configuration; `firewall` is "remote" or "own"."""
        for name, last in RESOLVERS.items():
            known = {"directory": self.directory, "name": name}
            text = RUN.format(last=last, **known)
            if firewall == "own":
                text += OWN
            else:
                text += "".join(REMOTE.format(gateway=gateway, last=of_it, **known) for gateway, of_it in GATEWAYS.items())
            with open(f"{self.directory}/{name}/run.toml", "w") as file:
                file.write(text)
        for name, last in GATEWAYS.items():
            with open(f"{self.directory}/{name}/enforce.toml", "w") as file:
                file.write(ENFORCE.format(directory=self.directory, name=name, last=last))

    def start(self, name):
        """Starts the process of a machine."""
        verb = "run" if name in RESOLVERS else "enforce"
        log = open(f"{self.directory}/{name}/{verb}.log", "ab")
        self._processes[name] = self.host(name).start(
            node.binary(), verb, "-c", f"{self.directory}/{name}/{verb}.toml", output=log)

    def signal(self, name, number):
        """Sends a signal to the process of a machine."""
        self._processes[name].send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._processes[name].wait(15)

    def cut(self, one, other):
        """Nothing goes between two machines on the back network any more."""
        for here, there in ((one, other), (other, one)):
            self.host(here).ip("route", "add", "blackhole", f"10.99.0.{self._last(there)}/32")

    def silence(self, one, other):
        """Nothing goes from one machine to another any more; the other way is open."""
        self.host(one).ip("route", "add", "blackhole", f"10.99.0.{self._last(other)}/32")

    def hear(self, one, other):
        """Takes that back."""
        self.host(one).ip("route", "delete", "blackhole", f"10.99.0.{self._last(other)}/32")

    def mend(self, one, other):
        """Takes a cut back."""
        for here, there in ((one, other), (other, one)):
            self.host(here).ip("route", "delete", "blackhole", f"10.99.0.{self._last(there)}/32")

    def _last(self, name):
        return (RESOLVERS | GATEWAYS)[name]

    def diagnostics(self, name, lines=12):
        """The last lines that a machine's process printed."""
        verb = "run" if name in RESOLVERS else "enforce"
        with open(f"{self.directory}/{name}/{verb}.log", errors="replace") as file:
            return "".join(file.readlines()[-lines:])

    def ready(self, name):
        """Whether a gateway says that new flows may be led through it."""
        with self.host("crowd").inside():
            try:
                with urllib.request.urlopen(f"http://192.0.2.{GATEWAYS[name]}:9954/health/ready", timeout=0.4) as page:
                    return page.status == 200
            except (OSError, urllib.error.URLError):
                return False

    def steer(self, ready):
        """Leads new connections through these gateways; established ones stay where they are."""
        marks = ", ".join(f"{index} : {GATEWAYS[name]}" for index, name in enumerate(ready))
        new = f"ct mark set numgen random mod {len(ready)} map {{ {marks} }}" if ready else "drop"
        rules = (f"table ip steer {{ }}\nflush table ip steer\ntable ip steer {{ chain out {{ type route hook output priority -150; "
                 f"tcp dport 443 ct state new {new}; tcp dport 443 meta mark set ct mark; }}\n}}")
        with self.host("crowd").inside():
            network.run("nft", "-f", "-", feed=rules)

    def _watch(self):
        """What keepalived or a routing daemon does: asks every gateway, four times a second."""
        while not self._over.wait(0.25):
            ready = tuple(name for name in GATEWAYS if self.ready(name))
            if ready != self._ready:
                self.steer(ready)
                self._ready = ready
                print(json.dumps({"led_through": ready, "at": time.strftime("%T")}), flush=True)

    def wait(self, names, seconds=20):
        """Until these gateways are ready and led through."""
        end = time.monotonic() + seconds
        while not set(names) <= set(self._ready):
            if time.monotonic() > end:
                said = "\n".join(f"{name}:\n{self.diagnostics(name)}" for name in [*RESOLVERS, *GATEWAYS]
                                 if name in self._processes)
                raise RuntimeError(f"{names} are not ready, {self._ready} are\n{said}")
            time.sleep(0.05)

    def watch(self):
        """Begins to lead."""
        threading.Thread(target=self._watch, daemon=True).start()

    def wait_answers(self, last, seconds=20):
        """Until a resolver answers."""
        end = time.monotonic() + seconds
        with self.host("crowd").inside():
            asker = client.Asker("192.0.2.80", f"192.0.2.{last}")
        while True:
            reply, _ = asker.ask("nowhere.example.net", packets.A, timeout=0.2)
            if reply is not None:
                return
            if time.monotonic() > end:
                raise RuntimeError(self.diagnostics("ns1") + self.diagnostics("ns2"))


def ask_both(askers, name, then, patience):
    """Asks one resolver, then the other, and so on, as a stub does; the reply, what `then` gave, and the seconds until
    some resolver said anything."""
    began = time.monotonic()
    answered = None
    for attempt in range(40):
        asker = askers[attempt % len(askers)]
        reply, result = asker.ask(name, packets.A, then, timeout=0.4)
        if reply is not None and answered is None:
            answered = time.monotonic() - began
        if reply is not None and reply.rcode != packets.SERVFAIL:
            return reply, result, answered
        if time.monotonic() - began > patience:
            return None, None, answered if answered is not None else time.monotonic() - began
        time.sleep(0.01)
    return None, None, answered


def fresh(task):
    """One client: asks for its share of the names, and connects before it even looks at the answer."""
    source, first, numbers = task
    order = list(RESOLVERS.values()) if first == 0 else list(RESOLVERS.values())[::-1]
    askers = [client.Asker(source, f"192.0.2.{last}") for last in order]
    count = {"connected": 0, "unanswered": 0, "wrong": [], "asked": []}
    for number in numbers:
        address = internet.bulk_address(number, 4)
        with client.stream(source, 5.0) as made:
            began = time.monotonic()

            def at_once(message):
                if not packets.promises_address(message):
                    return None
                count["asked"].append(time.monotonic() - began)
                return client.attempt(made, address)

            reply, attempt, _ = ask_both(askers, internet.bulk_name(number), at_once, 5.0)
        if attempt is None:
            count["unanswered"] += 1
        elif attempt.outcome == "connected" and reply.addresses == [address]:
            count["connected"] += 1
        else:
            count["wrong"].append(f"{source} {internet.bulk_name(number)} {reply.addresses}: {attempt}")
    return count


def loaded(task):
    """One client under chaos: asks for names of which many are new, and connects at once, until it is told to stop."""
    source, first, seed, over = task
    order = list(RESOLVERS.values()) if first == 0 else list(RESOLVERS.values())[::-1]
    askers = [client.Asker(source, f"192.0.2.{last}") for last in order]
    chance = random.Random(seed)
    count = {"told": 0, "connected": 0, "failed": 0, "silent": 0, "waited": [], "wrong": []}
    while not os.path.exists(over):
        number = chance.randrange(internet.BULK)
        address = internet.bulk_address(number, 4)
        with client.stream(source, 5.0) as made:

            def at_once(message):
                return client.attempt(made, address) if packets.promises_address(message) else None

            _, attempt, answered = ask_both(askers, internet.bulk_name(number), at_once, 1.5)
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
        asker = client.Asker("192.0.2.80", "192.0.2.2")
        waited = []
        for number in numbers:
            began = time.monotonic()
            reply, _ = asker.ask(internet.bulk_name(number), packets.A)
            waited.append(time.monotonic() - began)
            if reply is None or reply.addresses != [internet.bulk_address(number, 4)]:
                raise RuntimeError(f"{internet.bulk_name(number)}: {reply}")
            if connects and client.connect("192.0.2.80", reply.addresses[0]).outcome != "connected":
                raise RuntimeError(f"{internet.bulk_name(number)} is not open")
    return percentiles(waited)


def fresh_part(site):
    """Every first-time answer connects, through any gateway."""
    crowd = site.host("crowd")
    before = crowd.counter("TCPSynRetrans")
    tasks = [(source, index % 2, range(index, FRESH, CLIENTS))
             for index, source in enumerate(lab.sources("crowd", 4)[:CLIENTS])]
    began = time.monotonic()
    total = client.total(client.Crowd(crowd, fresh, tasks).results())
    total |= percentiles(total.pop("asked"))
    total["seconds"] = round(time.monotonic() - began, 1)
    total["repeated_syns"] = crowd.counter("TCPSynRetrans") - before
    total["through"] = {name: _forwarded(site, name) for name in GATEWAYS}
    return total


def _forwarded(site, name):
    """How many packets a gateway forwarded."""
    rows = [line.split() for line in site.host(name).output("cat", "/proc/net/snmp")[0].splitlines()
            if line.startswith("Ip:")]
    return int(dict(zip(*rows))["ForwDatagrams"])


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
    """What goes wrong, and when it is over."""

    def __init__(self, site):
        self._site = site
        self.faults = []
        self.denied = None

    def kill(self, name, seconds=6):
        """kill -9, and started again after a while."""
        def begin():
            self._site.signal(name, signal.SIGKILL)

        def end():
            self._site.start(name)

        return f"kill {name}", begin, end, seconds

    def restart(self, name):
        """SIGTERM and started again at once, as an upgrade does."""
        def begin():
            self._site.signal(name, signal.SIGTERM)
            self._site.start(name)

        return f"restart {name}", begin, lambda: None, 4

    def pause(self, name, seconds=10):
        """Does not run for a while."""
        return (f"pause {name}", lambda: self._site.signal(name, signal.SIGSTOP),
                lambda: self._site.signal(name, signal.SIGCONT), seconds)

    def cut(self, one, other, seconds=8):
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

    def one_way(self, one, other, seconds=8):
        """Words of one do not come to the other for a while; those of the other come."""
        return (f"silence {one} to {other}", lambda: self._site.silence(one, other),
                lambda: self._site.hear(one, other), seconds)

    def all(self):
        """One at a time, and in pairs."""
        one = [self.kill("ns1"), self.kill("gw1"), self.cut("ns1", "gw1"), self.pause("ns2"), self.pause("gw2"),
               self.restart("ns1"), self.restart("gw1"), self.one_way("gw2", "ns1")]
        pairs = [(self.kill("ns1"), self.kill("gw1")), (self.kill("gw1"), self.kill("gw2")),
                 (self.pause("ns2"), self.cut("ns1", "gw3")), (self.cut("ns1", "gw1", 8), self.later(self.restart("ns2"), 6)),
                 (self.kill("gw1", 3), self.later(self.deny("ns1"), 5))]
        return [(fault,) for fault in one] + pairs


def chaos_part(site):
    """Faults under load."""
    crowd, over = site.host("crowd"), f"{site.directory}/over"
    faults = []
    tasks = [(source, index % 2, index, over) for index, source in enumerate(lab.sources("crowd", 4)[1:13])]
    pool = client.Crowd(crowd, loaded, tasks)
    try:
        chaos = Chaos(site)
        for together in chaos.all():
            what = " and ".join(name for name, *_ in together)
            live = [client.Download(crowd, "192.0.2.80", internet.bulk_address(number, 4), socket.SOCK_STREAM)
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
    if chaos.denied is None:
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
    part = parser.parse_args().part
    wanted = lambda name: part in (None, name)
    faults = []
    with Site() as site:
        if wanted("local"):
            print(json.dumps({"local": local_part(site)}), flush=True)
            site.signal("ns1", signal.SIGTERM)
            with site.host("ns1").inside():
                network.run("nft", "delete", "table", "inet", "outgate")
        site.configure("remote")
        for name in [*GATEWAYS, *RESOLVERS]:
            site.start(name)
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
            if min(total["through"].values()) < FRESH // 10:
                faults.append(f"not every gateway carried its part: {total['through']}")
        if wanted("chaos"):
            total, broken = chaos_part(site)
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
