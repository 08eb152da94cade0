"""The cases: what is asked, what must come back, and who is asked. One row of CASES each."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One server of a case, a line of its table."""

    label: str
    system: str
    # How many patterns outgate's policy has, and how many workers it serves with.
    policy: int = 10_000
    workers: int = 1
    # How many cores it has; the second is the load's.
    cores: int = 1
    # Each answer's addresses are opened in nftables.
    firewall: bool = False
    # More for the load.
    options: tuple = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """`pattern`, `count` and `order` are as `load --help` says."""

    name: str
    what: str
    pattern: str
    count: int
    order: str
    rows: tuple
    # What an answer must be: "address", or "refusal": any response code but SERVFAIL, and no record.
    expect: str = "address"
    # Every name is asked once before anything is measured.
    warm: bool = False
    # All peers have their allowlist: without it they would not refuse.
    allowlist: bool = False
    # Names that were never asked: each round goes on where the last one ended.
    unique: bool = False
    # "udp", "tcp" or "tls".
    transport: str = "udp"
    # At a fixed rate, a quarter of what the echo takes: latency counts here, not CPU time.
    quarter: bool = False
    # More for the load of every row.
    options: tuple = ()


def rows(*systems, **changes):
    return tuple(Row(system, system, **changes) for system in systems)


def with_log(*systems):
    return tuple(name for system in systems for name in (system, f"{system}+log"))


ALLOWED = "n#####.svc.example.net"
PEERS = ("dnsdist", "unbound", "pdns", "kresd", "dnsmasq")
EVERYONE = rows("echo", "outgate", *with_log(*PEERS))
# Connections have no ceiling of their own: the ratio is to the echo over UDP.
ECHO = Row("echo", "echo")
OPENING = ("h-10-%%%-%%%-%%%.open.example.net", 300_000, "sequence")
MANY = ("--clients", "30000", "--each", "10", "--step", "10")

CASES = (
    Case("hot", "1,000 names, Zipf, all cached", ALLOWED, 1_000, "zipf", EVERYONE, warm=True),
    Case(
        "single", "as hot, but each query leaves by a system call of its own: smaller batches for the server",
        ALLOWED, 1_000, "zipf", rows("echo", "outgate", "dnsdist", "unbound"), warm=True, options=("--single",),
    ),
    Case(
        "wide", "20,000 names, uniform, all cached; MiB is what the process holds then",
        "n#####.wide.example.net", 20_000, "uniform", EVERYONE, warm=True,
    ),
    Case(
        "denied", "random names that no rule allows", "????????????.example.com", 1 << 30, "uniform", EVERYONE,
        expect="refusal", allowlist=True,
    ),
    Case(
        "miss", "unique names under an allowed wildcard, each forwarded to a knot on the core of the load",
        "q########.miss.example.net", 10**8, "sequence", EVERYONE, unique=True,
    ),
    Case(
        "open", "unique names of 30,000 clients: each answer opens an address in real nftables sets", *OPENING,
        rows("echo", "outgate", *with_log("dnsmasq"), firewall=True), unique=True, options=MANY,
    ),
    Case(
        "tcp", "as hot, over 4 persistent TCP connections, pipelined; the echo is UDP", ALLOWED, 1_000, "zipf",
        (ECHO, *rows("outgate", *with_log("unbound", "kresd"))), warm=True, transport="tcp",
    ),
    Case(
        "dot", "as tcp, over TLS 1.3; the echo is UDP", ALLOWED, 1_000, "zipf",
        (ECHO, *rows("outgate", *with_log("unbound", "kresd"))), warm=True, transport="tls",
    ),
    Case(
        "latency", "as hot, at a quarter of the rate that saturates the echo", ALLOWED, 1_000, "zipf",
        rows("echo", "outgate", "dnsdist", "unbound"), warm=True, quarter=True,
    ),
    Case(
        "grants", "5,000 new grants a second: what nftables adds to the latency", *OPENING,
        (Row("memory", "outgate"), Row("nftables", "outgate", firewall=True)), unique=True,
        options=(*MANY, "--rate", "5000"),
    ),
    Case(
        "names", "as hot with 990 names, and policies of different size", ALLOWED, 990, "zipf",
        (ECHO, *(Row(f"{names:,} names", "outgate", policy=names) for names in (1_000, 10_000, 100_000, 1_000_000))),
        warm=True,
    ),
    Case(
        "clients", "different numbers of clients, each with 4 of 1,000 names", ALLOWED, 1_000, "uniform",
        (
            Row("echo", "echo", options=("--clients", "1000")),
            *(Row(f"{clients:,} clients", "outgate", options=("--clients", str(clients))) for clients in (10, 1_000, 100_000)),
        ),
        warm=True, options=("--each", "4"),
    ),
    Case(
        "workers", "as hot, on two cores, of which one has the load as well", ALLOWED, 1_000, "zipf",
        (ECHO, *(Row(name, "outgate", workers=workers, cores=2) for name, workers in (("one worker", 1), ("two workers", 2)))),
        warm=True, options=("--ports", "16"),
    ),
)

# The patterns of the policy that are not single names.
WILDCARDS = ("wide.example.net", "miss.example.net", "open.example.net")


def allowed_names(policy=10_000):
    """The single names of a policy of so many patterns."""
    return (f"n{number:05}.svc.example.net" for number in range(policy - len(WILDCARDS)))
