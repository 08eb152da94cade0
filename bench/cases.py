"""The cases: what is asked, what must come back, and who is compared."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
    """One row per fact; patterns of names as `load --help` says."""

    name: str
    what: str
    # What is asked: a pattern, of how many names, in which order.
    pattern: str
    count: int
    order: str
    # What an answer must be: "address", "refusal" (any response code but SERVFAIL, no record).
    expect: str
    systems: tuple
    # Every name once before anything is measured.
    warm: bool = False
    # Peers have their allowlist in both variants: without it they would not refuse.
    allowlist: bool = False
    # Names that were never asked: each run goes on where the last one ended.
    unique: bool = False
    # Each answer's addresses are opened in nftables.
    firewall: bool = False
    # More for the load.
    options: tuple = ()


ALLOWED = "n#####.svc.example.net"
WIDE = "n#####.wide.example.net"

EVERYONE = (
    "echo", "outgate", "dnsdist", "dnsdist+log", "unbound", "unbound+log", "pdns", "pdns+log", "kresd", "kresd+log", "dnsmasq",
    "dnsmasq+log",
)

CASES = (
    Case(
        "hot", "1,000 names, Zipf, all cached", ALLOWED, 1_000, "zipf", "address",
        EVERYONE, warm=True,
    ),
    Case(
        "wide", "20,000 names, uniform, all cached", WIDE, 20_000, "uniform", "address", EVERYONE, warm=True,
    ),
    Case(
        "denied", "random names under nothing allowed", "????????????.example.com", 1 << 30, "uniform", "refusal",
        EVERYONE, allowlist=True,
    ),
    Case(
        "miss", "unique names under an allowed wildcard, forwarded to a local knot on the core of the load",
        "q########.miss.example.net", 10**8, "sequence", "address",
        ("echo", "outgate", "dnsdist", "unbound", "unbound+log", "pdns", "pdns+log", "kresd", "kresd+log", "dnsmasq", "dnsmasq+log"), unique=True,
    ),
    Case(
        "open", "unique names of 30,000 clients: every answer opens an address in real nftables sets",
        "h-10-%%%-%%%-%%%.open.example.net", 300_000, "sequence", "address",
        ("echo", "outgate", "dnsmasq", "dnsmasq+log"), unique=True, firewall=True,
        options=("--clients", "30000", "--each", "10", "--step", "10"),
    ),
)

# The policy: 10,000 patterns, of which these are not single names.
WILDCARDS = ("wide.example.net", "miss.example.net", "open.example.net")
NAMES_IN_POLICY = 10_000 - len(WILDCARDS)


def allowed_names(count=NAMES_IN_POLICY):
    return (f"n{number:05}.svc.example.net" for number in range(count))
