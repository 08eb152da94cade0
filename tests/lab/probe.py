"""`outgate probe` where a client stands: it says that the network holds while it does, and where there is a hole.

    python3 probe.py       root; prints each round's checks; exit code 1 if the probe said something that is not so

A client's namespace behind a real gateway. The ways around are those of the lab: its resolver, its web servers.
"""

import json
import sys

import internet
import lab
import node

FILE = """\
resolvers = ["192.0.2.1", "2001:db8:c::1"]
allowed   = ["api.example.com", "shop.example.com:443", "n7.bulk.example.com:443"]
denied    = ["admin.example.com", "tracker.example.net"]
blocked   = ["{never4}:443", "[{never6}]:443", "udp/{never4}:443", "udp/[{never6}]:443"]
timeout   = "1s"

[around]
dns   = ["{resolver4}", "{resolver6}"]
dot   = ["{never4}", "{never6}"]
doh   = ["198.51.100.67", "2001:db8:5::67"]
cloud = []
"""
NEVER = {f"tcp/{internet.NEVER4}:443"}
# Nobody listens at port 853 there: a reset does not say whose it is, and over UDP that is a warning.
OPEN = {
    *(f"{protocol}/{address}:443" for protocol in ("tcp", "udp")
      for address in (internet.NEVER4, f"[{internet.NEVER6}]", "198.51.100.67", "[2001:db8:5::67]")),
    *(f"{protocol}/{address}:53" for protocol in ("tcp", "udp")
      for address in (internet.RESOLVER4, f"[{internet.RESOLVER6}]")),
}


def probed(built, host):
    """What the probe says on a host: its exit code, and each check."""
    file = f"{built.directory}/probe.toml"
    said, code = built.host(host).output(node.binary(), "probe", "--file", file, "--json", timeout=60)
    return code, json.loads(said)["checks"]


def fails(checks):
    """The targets that failed."""
    return {check["target"] for check in checks if check["state"] == "fail"}


def told(checks, *states):
    """The checks of these states, for people."""
    return [f"{check['state']} {check['check']} {check['target']} at {check['resolver']}: {check['seen']}"
            for check in checks if check["state"] in states]


def main():
    """Four rounds; the exit code."""
    faults = []

    def expect(what, host, expected, code):
        found, checks = probed(built, host)
        print(json.dumps({"round": what, "checks": len(checks), "code": found}), flush=True)
        if found != code or fails(checks) != expected:
            faults.append(f"{what}: exit code {found}, missing {sorted(expected - fails(checks))}, too many "
                          f"{sorted(fails(checks) - expected)}\n  " + "\n  ".join(told(checks, "fail", "warn")))
        return checks

    with lab.Lab() as built:
        with open(f"{built.directory}/probe.toml", "w") as file:
            file.write(FILE.format(never4=internet.NEVER4, never6=internet.NEVER6,
                                   resolver4=internet.RESOLVER4, resolver6=internet.RESOLVER6))
        built.node.start()
        checks = expect("it holds", "checkout1", set(), 0)
        faults += [f"it holds: {fault}" for fault in told(checks, "warn")]
        faults += [f"not refused by policy: {check}" for check in checks
                   if check["check"] == "denied" and "EDE 15 (Blocked)" not in check["seen"]]
        faults += [f"not refused by the gateway: {check}" for check in checks
                   if check["target"].startswith("udp/") and "administratively prohibited from" not in check["seen"]]
        # Of a client in no segment nothing is allowed; nothing is open for it either.
        expect("a stranger", "stranger", {"api.example.com:443", "shop.example.com:443", "n7.bulk.example.com:443"}, 1)
        said, code = built.node.command("allow", internet.NEVER4, "--ports", "tcp/443", "--segment", "checkout",
                                        "--for", "1m", "--reason", "a hole")
        faults += [f"allow: {said}"] if code else []
        expect("one address is open", "checkout1", NEVER, 1)
        # Somebody took the firewall away, and the resolver decides and records as before.
        built.node.stop()
        built.node.amend('kind   = "nftables"\nhook   = "forward"\ninside = ["inside0"]', 'kind   = "memory"')
        built.host("gateway").output("nft", "delete", "table", "inet", "outgate")
        built.node.start()
        expect("nothing is enforced", "checkout1", OPEN, 1)
        faults += [] if built.node.alive() else ["outgate has ended: " + built.node.diagnostics()]
    print("\n".join(faults) or "the probe said what was so")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
