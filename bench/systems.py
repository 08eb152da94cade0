"""The systems: one row each in SYSTEMS, and how outgate is configured; `peers` has the others.

Each serves with one thread from a cache big enough for every name, forwards to the same upstream and validates nothing.
A name with "+log" also has an allowlist of 10,000 names and leaves one record of every query in a file.
"""

import dataclasses
import pathlib

import cases
import peers
import records


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a system is started for."""

    case: cases.Case
    row: cases.Row
    directory: pathlib.Path
    # Ports of 127.0.0.1: its own for UDP and TCP, its own for TLS, the upstream's.
    port: int
    tls_port: int
    upstream: int
    # Certificate and key.
    identity: tuple
    # Whether it keeps a query log, and where it sends it if it sends it: a path or a port of 127.0.0.1.
    log: bool
    collector: object
    binaries: dict

    @property
    def allowlist(self):
        return self.log or self.case.allowlist

    @property
    def tls(self):
        return self.case.transport == "tls"

    def write(self, name, text):
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@dataclasses.dataclass(frozen=True)
class System:
    """`start` writes the configuration and gives the command."""

    command: str
    start: object
    # Its query log; none: it keeps none.
    log: records.Log = None


def echo(setting):
    return [setting.binaries["echo"], f"127.0.0.1:{setting.port}"]


def outgate(setting):
    certificate, key = setting.identity
    # Sets alone, as dnsmasq keeps them: rules would have the kernel track the connections of the load as well.
    firewall = 'kind = "nftables"\nhook = "sets"' if setting.row.firewall else 'kind = "memory"'
    setting.write("outgate.toml", f"""
node = "bench"
state = "state"
[listen]
dns = ["127.0.0.1:{setting.port}"]
{f'tls = ["127.0.0.1:{setting.tls_port}"]' if setting.tls else ""}
workers = {setting.row.workers}
{f'[tls]{chr(10)}certificate = "{certificate}"{chr(10)}key = "{key}"' if setting.tls else ""}
[[upstream]]
servers = ["udp://127.0.0.1:{setting.upstream}"]
private = ["198.18.0.0/15", "10.0.0.0/8"]
[[firewall]]
name = "bench"
{firewall}
""")
    # The single client, and the many from 127.1.0.1 on by 4,096: one segment may have 262,144 addresses open.
    sources = ["127.0.0.0/16", *(f"127.{number // 16 + 1}.{number % 16 * 16}.0/20" for number in range(32))]
    segments = "".join(
        f'[[segment]]\nname = "s{number}"\nclients = ["{source}"]\n' for number, source in enumerate(sources)
    )
    names = [*cases.allowed_names(setting.row.policy), *(f"*.{suffix}" for suffix in cases.WILDCARDS)]
    setting.write("policy/bench.toml", f"""
{segments}
[[rule]]
id = "bench"
action = "allow"
segments = ["*"]
names = [{", ".join(f'"{name}"' for name in names)}]
""")
    return [setting.binaries["outgate"], "run", "-c", "outgate.toml"]


SYSTEMS = {
    "echo": System("echo", echo),
    "outgate": System("outgate", outgate, records.Lines(("query.jsonl", "archive/*"), b'"type":"query"')),
    "dnsdist": System("dnsdist", peers.dnsdist),
    "dnsdist+log": System("dnsdist", peers.dnsdist, records.Lines(("dnsdist.log",), b"Packet from ")),
    "unbound": System("unbound", peers.unbound),
    "unbound+log": System("unbound", peers.unbound, records.Lines(("unbound.log",), b" info: 127.")),
    "pdns": System("pdns_recursor", peers.pdns_recursor),
    "pdns+log": System("pdns_recursor", peers.pdns_recursor, records.Protobuf()),
    "kresd": System("kresd", peers.kresd),
    "kresd+log": System("kresd", peers.kresd, records.Frames()),
    "dnsmasq": System("dnsmasq", peers.dnsmasq),
    "dnsmasq+log": System("dnsmasq", peers.dnsmasq, records.Lines(("dnsmasq.log",), b" query[A] ")),
}
