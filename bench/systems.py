"""The systems: one row each in SYSTEMS, with what writes its configuration and how it is started.

Each serves with one thread from a cache big enough for every name, forwards to the same upstream and validates nothing.
A name with "+log" also has an allowlist of 10,000 names and writes one record of every query to a file.
"""

import dataclasses
import pathlib

import cases


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a system is started for."""

    case: cases.Case
    directory: pathlib.Path
    port: int
    # The port of the upstream on 127.0.0.1.
    upstream: int
    log: bool
    binaries: dict

    @property
    def allowlist(self):
        return self.log or self.case.allowlist

    def write(self, name, text):
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@dataclasses.dataclass(frozen=True)
class System:
    """`start` writes the configuration and gives the command."""

    command: str
    start: object
    log: bool = False
    # The files of its query log, and what every line of a query holds and no other line.
    log_files: tuple = ()
    log_mark: bytes = b""


def echo(setting):
    return [setting.binaries["echo"], f"127.0.0.1:{setting.port}"]


def outgate(setting):
    setting.write("outgate.toml", f"""
node = "bench"
state = "state"
[listen]
dns = ["127.0.0.1:{setting.port}"]
workers = 1
[[upstream]]
servers = ["udp://127.0.0.1:{setting.upstream}"]
private = ["198.18.0.0/15", "10.0.0.0/8"]
[[firewall]]
name = "memory"
kind = "memory"
""")
    names = [*cases.allowed_names(), *(f"*.{suffix}" for suffix in cases.WILDCARDS)]
    setting.write("policy/bench.toml", f"""
[[segment]]
name = "bench"
clients = ["127.0.0.0/8"]
[[rule]]
id = "bench"
action = "allow"
segments = ["bench"]
names = [{", ".join(f'"{name}"' for name in names)}]
""")
    return [setting.binaries["outgate"], "run", "-c", "outgate.toml"]


def unbound(setting):
    allowed = [*cases.allowed_names(), *cases.WILDCARDS] if setting.allowlist else []
    zones = "\n".join(f'  local-zone: "{name}." transparent' for name in allowed)
    setting.write("unbound.conf", f"""
server:
  interface: 127.0.0.1@{setting.port}
  num-threads: 1
  username: ""
  chroot: ""
  directory: "{setting.directory}"
  pidfile: "{setting.directory}/unbound.pid"
  use-syslog: no
  logfile: "{setting.directory}/unbound.log"
  log-replies: {"yes" if setting.log else "no"}
  do-not-query-localhost: no
  module-config: "iterator"
  minimal-responses: yes
  so-rcvbuf: 4m
  so-sndbuf: 4m
  msg-cache-size: 64m
  rrset-cache-size: 128m
  num-queries-per-thread: 4096
  outgoing-range: 8192
{'  local-zone: "." refuse' if allowed else ""}
{zones}
forward-zone:
  name: "."
  forward-addr: 127.0.0.1@{setting.upstream}
""")
    return ["unbound", "-d", "-c", "unbound.conf"]


SYSTEMS = {
    "echo": System("echo", echo),
    "outgate": System("outgate", outgate, True, ("query.jsonl", "archive/*"), b'"type":"query"'),
    "unbound": System("unbound", unbound),
    "unbound+log": System("unbound", unbound, True, ("unbound.log",), b" info: 127."),
}


def upstream(directory, port):
    """The name server that all of them forward to: knot, with one zone per case."""
    zones = {
        "svc.example.net": "".join(f"n{n:05} A {address(n % 4000)}\n" for n in range(cases.NAMES_IN_POLICY)),
        "wide.example.net": "".join(f"n{n:05} A {address(n % 4000)}\n" for n in range(20_000)),
        "miss.example.net": "* A 198.18.0.1\n",
        "open.example.net": "",
    }
    entries = ""
    for zone, records in zones.items():
        text = f"$ORIGIN {zone}.\n$TTL 3600\n@ SOA ns.example.net. host.example.net. 1 3600 600 86400 60\n@ NS ns.example.net.\n"
        (directory / f"{zone}.zone").write_text(text + records)
        module = "    module: mod-synthrecord/open\n" if zone.startswith("open") else ""
        entries += f"  - domain: {zone}\n    file: {directory}/{zone}.zone\n    zonefile-sync: -1\n    journal-content: none\n{module}"
    (directory / "knot.conf").write_text(f"""
server:
    rundir: {directory}
    listen: 127.0.0.1@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: {directory}
log:
  - target: stderr
    any: warning
mod-synthrecord:
  - id: open
    type: forward
    prefix: h-
    ttl: 3600
    network: 10.0.0.0/8
zone:
{entries}""")
    return ["knotd", "-c", directory / "knot.conf"]


def address(number):
    """A benchmark address (RFC 2544)."""
    return f"198.18.{number // 250}.{number % 250 + 1}"
