"""The lab: clients - gateway - internet, in network namespaces, on documentation and benchmark addresses.

    checkout1 .65  checkout2 .66  crowd .80-.111 ┐
    batch1 .129    batch2 .130                   │ switch ── gateway .1 / 203.0.113.1 ── internet 203.0.113.2
    trial1 .161                                  │           outgate, nftables           knotd, web servers
    stranger .200 (in no segment)                ┘
    192.0.2.0/24   2001:db8:c::/64                                198.51.100.0/24 198.18.0.0/16 2001:db8:5::/64

    with Lab() as lab:
        lab.node.start()
        with lab.host("checkout1").inside(): ...

Leaving the block stops every process that it started and removes every namespace and file that it made.
"""

import datetime
import os
import shutil
import signal
import sys
import tempfile
import time

import client
import internet
import network
import node
import packets

PREFIX = "og-lab"
SERVER = {4: "192.0.2.1", 6: "2001:db8:c::1"}
CROWD = 32
# host: (last part of the IPv4 addresses, last part of the IPv6 addresses)
HOSTS = {
    "checkout1": (["65"], ["1:1"]),
    "checkout2": (["66"], ["1:2"]),
    "crowd": ([str(80 + index) for index in range(CROWD)], [f"1:{0x10 + index:x}" for index in range(CROWD)]),
    "batch1": (["129"], ["2:1"]),
    "batch2": (["130"], ["2:2"]),
    "trial1": (["161"], ["3:1"]),
    "stranger": (["200"], ["ff:1"]),
}
TOOLS = ["ip", "knotd", "dig", "nft"]


def sources(host, family):
    """A host's addresses of one family."""
    four, six = HOSTS[host]
    return [f"192.0.2.{last}" for last in four] if family == 4 else [f"2001:db8:c::{last}" for last in six]


def source(host, family):
    """A host's first address of one family."""
    return sources(host, family)[0]


def now():
    """The time as the log writes it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


class Missing(Exception):
    """This machine cannot hold the lab."""


def require():
    """Raises `Missing` unless the lab can be built here."""
    if os.geteuid() != 0:
        raise Missing("the lab makes network namespaces and needs root")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise Missing(f"{', '.join(missing)} not found; apt-get install iproute2 knot bind9-dnsutils nftables")


def told(story):
    """The exit code of a story: its own, 2 where this machine cannot hold the lab, 130 after Ctrl-C."""
    try:
        return story()
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


class Lab:
    """Built on entry, gone on exit; outgate is configured and not yet started."""

    def __init__(self):
        require()
        self._namespaces = {}
        self._processes = []
        self.node = None
        self.directory = None

    def __enter__(self):
        # Told to stop, a lab cleans up as after Ctrl-C: the exception runs every `finally` on its way.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            network.sweep(PREFIX)
            self.directory = tempfile.mkdtemp(prefix=f"{PREFIX}-")
            self._build()
            self._processes = internet.start(self.host("internet"), self.directory)
            self.node = node.Node(self.host("gateway"), self.directory)
            self._wait_internet()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        client.end_all()
        if self.node is not None:
            self.node.stop()
        for process in self._processes:
            process.kill()
            process.wait()
        for namespace in self._namespaces.values():
            namespace.remove()
        self._namespaces = {}
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def host(self, name):
        """The namespace of a host, of "gateway" or of "internet"."""
        return self._namespaces[name]

    def served(self):
        """The bytes that each address of the web servers gave to who asked for some."""
        with open(f"{self.directory}/web.log") as file:
            gave = [line.split()[1:] for line in file if line.startswith("gave ")]
        served = {}
        for address, size in gave:
            served[address] = served.get(address, 0) + int(size)
        return served

    def _namespace(self, name):
        made = network.Namespace(f"{PREFIX}-{os.getpid()}-", name)
        self._namespaces[name] = made
        return made

    def _build(self):
        switch, gateway, outside = self._namespace("switch"), self._namespace("gateway"), self._namespace("internet")
        # The switch is a host of its own: what passes between clients never comes by the gateway's firewall.
        switch.switch()
        network.cable(gateway, "inside0", switch, "gateway")
        switch.ip("link", "set", "gateway", "master", "switch0")
        network.cable(gateway, "outside0", outside, "gateway0")
        gateway.addresses("inside0", "192.0.2.1/24", "2001:db8:c::1/64")
        gateway.addresses("outside0", "203.0.113.1/24", "2001:db8:f::1/64")
        outside.addresses("gateway0", "203.0.113.2/24", "2001:db8:f::2/64",
                          f"{internet.RESOLVER4}/24", f"{internet.RESOLVER6}/64")
        gateway.forward(internet.BLOCKS, "203.0.113.2", "2001:db8:f::2")
        internet.settle(outside)
        outside.ip("route", "add", "default", "via", "203.0.113.1")
        outside.ip("route", "add", "default", "via", "2001:db8:f::1")
        for name in HOSTS:
            host = self._namespace(name)
            network.cable(host, "eth0", switch, name)
            switch.ip("link", "set", name, "master", "switch0")
            host.addresses("eth0", *[f"{address}/24" for address in sources(name, 4)],
                           *[f"{address}/64" for address in sources(name, 6)])
            host.ip("route", "add", "default", "via", SERVER[4])
            host.ip("route", "add", "default", "via", SERVER[6])

    def _wait_internet(self, seconds=15):
        """Until names and web servers answer the gateway, which nothing stands in the way of yet."""
        end = time.monotonic() + seconds
        with self.host("gateway").inside():
            for family, own in ((4, "203.0.113.1"), (6, "2001:db8:f::1")):
                asker = client.Asker(own, internet.RESOLVER4 if family == 4 else internet.RESOLVER6)
                api = internet.address("api.example.com", family)
                while True:
                    reply, _ = asker.ask("api.example.com", packets.KIND[family], timeout=0.5)
                    if (reply and reply.addresses == [api]
                            and client.connect(own, api, timeout=0.5).outcome == "connected"):
                        break
                    if time.monotonic() > end:
                        raise RuntimeError(f"the lab's internet does not answer over IPv{family}")
                    time.sleep(0.02)
