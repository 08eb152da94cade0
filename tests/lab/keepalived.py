"""Two gateways that share an address of each family by keepalived, with contrib/keepalived/keepalived.conf.

    python3 keepalived.py        root, and Debian's keepalived; prints the counts as JSON; exit code 1 if something does not hold

Clients know one gateway, the shared address, and connect to names that nobody asked for before. The address moves when the
enforcer of the gateway that has it is killed, and back when that of the other one is cut off and fences itself; where none is
ready nobody has it.
"""

import json
import os
import shutil
import signal
import sys
import time

import client
import gateways
import lab
import machines

SHARED = {4: "192.0.2.1", 6: "2001:db8:c::1"}
TWO = {"gw1": 11, "gw2": 12}
# Of docs/gateways.md: after so long an answer does not wait for a gateway that is silent.
FENCED = 4.0
# Two looks of keepalived that are good, until then a gateway that is back is not led through.
BACK = 10.0


def keepalived(site, name):
    """Starts it on a gateway; what contrib has, with what is this gateway's."""
    contrib = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "contrib", "keepalived", "keepalived.conf")
    with open(contrib) as file:
        text = file.read()
    for before, after in (("interface eth1", "interface inside0"), ("10.99.0.11", f"192.0.2.{TWO[name]}")):
        if before not in text:
            raise ValueError(f"not in the example: {before}")
        text = text.replace(before, after)
    directory = f"{site.directory}/{name}"
    with open(f"{directory}/keepalived.conf", "w") as file:
        file.write(text)
    # Its exit code says nothing in 2.2.7: it ends itself by a signal.
    said, _ = site.host(name).output("keepalived", "--config-test", "-f", f"{directory}/keepalived.conf")
    if said.strip():
        raise RuntimeError(f"keepalived has something to say of the example: {said}")
    log = open(f"{directory}/keepalived.log", "ab")
    return site.host(name).start("keepalived", "--dont-fork", "--log-console", "--no-syslog", "--vrrp", "-D",
                                 "-f", f"{directory}/keepalived.conf", "-p", f"{directory}/keepalived.pid",
                                 "-r", f"{directory}/vrrp.pid", output=log)


def has(site, family):
    """The gateways that have the shared address of a family."""
    return [name for name in TWO if f" {SHARED[family]}/" in site.host(name).ip("-o", "address", "show", "dev", "inside0")]


def moved(site, to, seconds):
    """Waits until these have both shared addresses, and nobody else; how long that took."""
    began = time.monotonic()
    while any(has(site, family) != to for family in SHARED):
        if time.monotonic() - began > seconds:
            logs = []
            for name in TWO:
                with open(f"{site.directory}/{name}/keepalived.log", errors="replace") as file:
                    logs.append(f"{name}: {site.ready(name)}\n{''.join(file.readlines()[-12:])}")
            raise RuntimeError(f"{has(site, 4)} and {has(site, 6)} have the address, not {to}:\n" + "\n".join(logs))
        time.sleep(0.02)
    return round(time.monotonic() - began, 2)


def story(site, over):
    """What happens; how long each move took."""
    crowd = site.host("crowd")
    for family, address in SHARED.items():
        crowd.ip(f"-{family}", "route", "replace", "default", "via", address)
    took = {}
    tasks = [(index, over) for index in range(1, 7)]
    pool = client.Crowd(crowd, gateways.loaded, tasks)
    try:
        time.sleep(1)
        site.signal("gw1", signal.SIGKILL)
        took["killed"] = moved(site, ["gw2"], FENCED)
        time.sleep(FENCED)
        site.start("gw1")
        end = time.monotonic() + BACK
        while not site.ready("gw1") and time.monotonic() < end:
            time.sleep(0.05)
        # Two good looks, and nothing is taken from the one that has it.
        time.sleep(3)
        moved(site, ["gw2"], 0)
        for resolver in machines.RESOLVERS:
            site.silence("gw2", resolver)
        took["fenced"] = moved(site, ["gw1"], FENCED)
        time.sleep(1)
        for resolver in machines.RESOLVERS:
            site.hear("gw2", resolver)
        time.sleep(1)
    finally:
        with open(over, "w"):
            pass
    total = client.total(pool.results())
    for name in TWO:
        site.signal(name, signal.SIGKILL)
    took["none"] = moved(site, [], FENCED)
    return took, total


def main():
    """The story; the exit code."""
    if shutil.which("keepalived") is None:
        raise lab.Missing("keepalived not found; apt-get install keepalived")
    machines.GATEWAYS = TWO
    faults, daemons = [], []
    with machines.Site() as site:
        site.configure("remote")
        for name in [*TWO, *machines.RESOLVERS]:
            site.start(name)
        end = time.monotonic() + 20
        while not all(site.ready(name) for name in TWO) and time.monotonic() < end:
            time.sleep(0.05)
        try:
            daemons.append(keepalived(site, "gw1"))
            moved(site, ["gw1"], BACK)
            daemons.append(keepalived(site, "gw2"))
            took, total = story(site, f"{site.directory}/over")
        finally:
            for daemon in daemons:
                daemon.terminate()
                daemon.wait(5)
        print(json.dumps({"moved_after": took, **total, "waited": max(total["waited"]), "wrong": total["wrong"][:8]}), flush=True)
        if total["wrong"]:
            faults.append(f"{len(total['wrong'])} answers could not be used")
        if total["told"] < 200:
            faults.append(f"too few answers to mean anything: {total['told']}")
    print("\n".join(faults) or "whoever was told an address connected, through the gateway that had it")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
