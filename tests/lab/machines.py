"""Two resolvers and three gateways on machines of their own, clients, and an internet; both families everywhere.

    crowd .80-.111 ┐          ┌ gw1 .11 ┐
    ns1 .2  ns2 .3 ┤  inside  ├ gw2 .12 ┤ outside ── internet 203.0.113.2
    192.0.2.0/24   ┘          └ gw3 .13 ┘ 203.0.113.0/24
    2001:db8:c::/64                       2001:db8:f::/64
    10.99.0.0/24: the resolvers drive the enforcers of the gateways over it

New connections of the crowd go through any gateway that says that it is ready; established ones stay where they are.
"""

import contextlib
import json
import os
import signal
import subprocess
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

RUN = """\
node  = "{name}"
state = "{directory}/{name}/state"
[listen]
dns     = ["192.0.2.{last}:53", "[2001:db8:c::{last}]:53"]
workers = 1
[policy]
directory = "{directory}/policy"
[zones]
directory = "{directory}/zones"
[[upstream]]
name    = "internet"
servers = ["udp://203.0.113.53:53", "udp://[2001:db8:f::53]:53"]
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
clients = ["192.0.2.64/26", "2001:db8:c::1:0/112"]
scope   = "client"
[[rule]]
id       = "bulk"
action   = "allow"
segments = ["crowd"]
names    = ["**.example.com"]
private  = ["198.18.0.0/15", "198.51.100.0/24", "2001:db8:5::/64"]
"""


def address(last, family):
    """The address of a resolver or gateway, where clients are."""
    return f"192.0.2.{last}" if family == 4 else f"2001:db8:c::{last}"


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
    names["web"] = ("DNS:*.example.com", 0)
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
        client.end_all()
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
            self._space(switch).switch()

        def join(name, switch, interface, *addresses):
            network.cable(self.host(name), interface, self.host(switch), name)
            self.host(switch).ip("link", "set", name, "master", "switch0")
            self.host(name).addresses(interface, *addresses)

        def machine(name, last, outside):
            made = self._space(name)
            join(name, "inside", "inside0", f"{address(last, 4)}/24", f"{address(last, 6)}/64")
            join(name, "outside", "outside0", f"203.0.113.{outside}/24", f"2001:db8:f::{outside}/64")
            join(name, "back", "back0", f"10.99.0.{last}/24")
            os.makedirs(f"{self.directory}/{name}/state")
            return made

        outside = self._space("internet")
        join("internet", "outside", "eth0", "203.0.113.2/24", "2001:db8:f::2/64",
             f"{internet.RESOLVER4}/24", f"{internet.RESOLVER6}/64")
        internet.settle(outside)
        for name, last in RESOLVERS.items():
            machine(name, last, last + 20)
        for name, last in GATEWAYS.items():
            made = machine(name, last, last)
            made.forward(internet.BLOCKS, "203.0.113.2", "2001:db8:f::2")
            # What leaves by a gateway comes back by it.
            with made.inside():
                network.run("nft", "-f", "-", feed='table inet nat { chain out { type nat hook postrouting priority 100; '
                                                   'oifname "outside0" masquerade; }\n}')
        crowd = self._space("crowd")
        join("crowd", "inside", "eth0", *[f"{one}/24" for one in lab.sources("crowd", 4)],
             *[f"{one}/64" for one in lab.sources("crowd", 6)])
        for family in (4, 6):
            for last in GATEWAYS.values():
                crowd.ip(f"-{family}", "route", "add", "default", "via", address(last, family), "table", str(last))
                crowd.ip(f"-{family}", "rule", "add", "fwmark", str(last), "table", str(last))
            crowd.ip(f"-{family}", "route", "add", "default", "via", address(11, family))
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

    def start(self, name, binary=None):
        """Starts the process of a machine, of the outgate to test if no other is named."""
        verb = "run" if name in RESOLVERS else "enforce"
        log = open(f"{self.directory}/{name}/{verb}.log", "ab")
        self._processes[name] = self.host(name).start(
            binary or node.binary(), verb, "-c", f"{self.directory}/{name}/{verb}.toml", output=log)

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
        led = "meta l4proto { tcp, udp } th dport { 443, 8443 }"
        rules = (f"table inet steer {{ }}\nflush table inet steer\ntable inet steer {{ chain out {{ type route hook output priority -150; "
                 f"{led} ct state new {new}; {led} meta mark set ct mark; }}\n}}")
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
            asker = client.Asker("192.0.2.80", address(last, 4))
        while True:
            reply, _ = asker.ask("nowhere.example.net", packets.A, timeout=0.2)
            if reply is not None:
                return
            if time.monotonic() > end:
                raise RuntimeError(self.diagnostics("ns1") + self.diagnostics("ns2"))


def ask_both(askers, name, kind, then, patience):
    """Asks one resolver, then the other, and so on, as a stub does; the reply, what `then` gave, and the seconds until
    some resolver said anything."""
    began = time.monotonic()
    answered = None
    for attempt in range(40):
        asker = askers[attempt % len(askers)]
        reply, result = asker.ask(name, kind, then, timeout=0.4)
        if reply is not None and answered is None:
            answered = time.monotonic() - began
        if reply is not None and reply.rcode != packets.SERVFAIL:
            return reply, result, answered
        if time.monotonic() - began > patience:
            return None, None, answered if answered is not None else time.monotonic() - began
        time.sleep(0.01)
    return None, None, answered
