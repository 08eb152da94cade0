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


ALLOWED = "n#####.svc.example.net"
WIDE = "n#####.wide.example.net"

CASES = (
    Case(
        "hot", "1,000 names, Zipf, all cached", ALLOWED, 1_000, "zipf", "address",
        ("echo", "outgate", "unbound", "unbound+log"), warm=True,
    ),
    Case(
        "denied", "random names under nothing allowed", "????????????.example.com", 1 << 30, "uniform", "refusal",
        ("echo", "outgate", "unbound", "unbound+log"), allowlist=True,
    ),
)

# The policy: 10,000 patterns, of which these are not single names.
WILDCARDS = ("wide.example.net", "miss.example.net", "open.example.net")
NAMES_IN_POLICY = 10_000 - len(WILDCARDS)


def allowed_names(count=NAMES_IN_POLICY):
    return (f"n{number:05}.svc.example.net" for number in range(count))
