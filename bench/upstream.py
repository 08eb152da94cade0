"""The name server that every system forwards to: knot, with one zone per case, on the core of the load."""

# zone: its records, and where knot makes them up: one address for each name that spells it.
ZONES = {
    "svc.example.net": lambda: addresses(10_000),
    "wide.example.net": lambda: addresses(20_000),
    "miss.example.net": lambda: "* A 198.18.0.1\n",
    "open.example.net": None,
}


def addresses(names):
    """Benchmark addresses (RFC 2544), 4,000 of them: a client may have 4,096 open."""
    return "".join(f"n{number:05} A 198.18.{number % 4000 // 250}.{number % 250 + 1}\n" for number in range(names))


def knot(directory, port):
    """Writes its files; the command."""
    entries = ""
    for zone, records in ZONES.items():
        head = f"$ORIGIN {zone}.\n$TTL 3600\n@ SOA ns.example.net. host.example.net. 1 3600 600 86400 60\n@ NS ns.example.net.\n"
        (directory / f"{zone}.zone").write_text(head + (records() if records else ""))
        entries += f"""
  - domain: {zone}
    file: {directory}/{zone}.zone
    zonefile-sync: -1
    journal-content: none
"""
        if records is None:
            entries += "    module: mod-synthrecord/open\n"
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
zone:{entries}""")
    return ["knotd", "-c", directory / "knot.conf"]
