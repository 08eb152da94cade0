"""The lab's internet: what its names mean, who answers for them, and web servers on every address.

Names and addresses are fixed, so that a story can say what it expects:

    api.example.com        TTL 60     198.51.100.10   2001:db8:5::10
    nN.bulk.example.com    TTL 60     198.18.(N/256).(N%256)   2001:db8:5::18:N
"""

import ipaddress
import os
import sys

# Outside of every prefix that a rule calls private: no rule may open a resolver.
RESOLVER4, RESOLVER6 = "203.0.113.53", "2001:db8:f::53"
# Addresses that answer like any other, and that no name of an allowed rule ever had.
NEVER4, NEVER6 = "198.51.100.66", "2001:db8:5::66"
BLOCKS = ["198.51.100.0/24", "198.18.0.0/16", "2001:db8:5::/64"]
BULK = 24576

# name: (TTL, last part of both addresses)
HOSTS = {
    "api.example.com": (60, 10),
    "pop1.edge.cdn.example.com": (60, 20),
    "brief.example.com": (1, 30),
    "either.example.com": (60, 40),
    "quic.example.com": (60, 45),
    "one.example.com": (1, 51),
    "two.example.com": (2, 52),
    "three.example.com": (3, 54),
    "ages.example.com": (20, 55),
    "twin-short.example.com": (1, 70),
    "twin-long.example.com": (7, 70),
    "live.example.com": (300, 80),
    "admin.example.com": (60, 90),
    "mirror.example.org": (60, 94),
    "tracker.example.net": (60, 91),
}
ALIASES = {"shop.example.com": "edge.cdn.example.com", "edge.cdn.example.com": "pop1.edge.cdn.example.com"}


def address(name, family):
    """The address of a host of the table, as text; `family` is 4 or 6."""
    while name in ALIASES:
        name = ALIASES[name]
    last = HOSTS[name][1]
    return f"198.51.100.{last}" if family == 4 else str(ipaddress.ip_address(f"2001:db8:5::{last}"))


def bulk_name(number):
    """The name of bulk host NUMBER, below BULK."""
    return f"n{number}.bulk.example.com"


def bulk_address(number, family):
    """The address of bulk host NUMBER."""
    if family == 4:
        return f"198.18.{number >> 8}.{number & 255}"
    return str(ipaddress.IPv6Address(int(ipaddress.ip_address("2001:db8:5::18:0")) + number))


def _zone(origin):
    lines = [f"{origin}. 60 IN SOA ns.{origin}. admin.{origin}. 1 3600 600 86400 5",
             f"{origin}. 60 IN NS ns.{origin}.",
             f"ns.{origin}. 60 IN A {RESOLVER4}",
             f"ns.{origin}. 60 IN AAAA {RESOLVER6}"]
    for name, (ttl, _) in HOSTS.items():
        if name.endswith("." + origin):
            lines += [f"{name}. {ttl} IN A {address(name, 4)}", f"{name}. {ttl} IN AAAA {address(name, 6)}"]
    lines += [f"{name}. 60 IN CNAME {target}." for name, target in ALIASES.items() if name.endswith("." + origin)]
    if origin == "example.com":
        for number in range(BULK):
            name = bulk_name(number)
            lines += [f"{name}. 60 IN A {bulk_address(number, 4)}", f"{name}. 60 IN AAAA {bulk_address(number, 6)}"]
    return "\n".join(lines) + "\n"


def settle(namespace):
    """Makes a namespace the host of every address of the blocks, and of as many clients as come."""
    for block in BLOCKS:
        # A local route for a whole block: every address of it is this host's.
        namespace.ip("route", "add", "local", block, "dev", "lo")
    namespace.sysctl("ipv6/ip_nonlocal_bind", "1")
    namespace.sysctl("core/somaxconn", "8192")
    namespace.sysctl("ipv4/tcp_max_syn_backlog", "8192")


def start(namespace, directory):
    """Starts knotd and the web servers in the internet's namespace; the processes."""
    zones = ["example.com", "example.net", "example.org"]
    os.makedirs(f"{directory}/knot")
    for origin in zones:
        with open(f"{directory}/knot/{origin}.zone", "w") as file:
            file.write(_zone(origin))
    with open(f"{directory}/knot.conf", "w") as file:
        file.write(f'server:\n  rundir: "{directory}/knot"\n  listen: [ "0.0.0.0@53", "::@53" ]\n'
                   f'  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n'
                   f'database:\n  storage: "{directory}/knot"\n'
                   f'log:\n  - target: stdout\n    any: info\n'
                   f'template:\n  - id: default\n    storage: "{directory}/knot"\n    file: "%s.zone"\n'
                   f'    zonefile-sync: -1\n    journal-content: none\n'
                   f'zone:\n' + "".join(f"  - domain: {origin}\n" for origin in zones))
    with open(f"{directory}/knot.log", "w") as log:
        knot = namespace.start("knotd", "-c", f"{directory}/knot.conf", output=log)
    with open(f"{directory}/web.log", "w") as log:
        web = namespace.start(sys.executable, os.path.join(os.path.dirname(__file__), "web.py"), output=log)
    return [knot, web]
