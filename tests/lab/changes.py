"""What operators change while it runs, against live downloads: the emergency brake by name, an exception that ends by itself, a
client that is forgotten, a rule that is renamed.

    python3 changes.py                       root; exit code 1 if anything does not hold

- `deny NAME` while it is downloaded: seconds until the verb has returned, and until the last byte; whoever downloads
  something else is left alone; `retract` lets it begin again;
- `allow NAME --for 3s --cut`: it resolves and flows, and neither after its end; the same of an address;
- `forget CLIENT`: its downloads end, nothing is open for it, and the kernel knows no connection of it;
- a reload that renames a rule: what flows goes on flowing, and what is open stays open.
"""

import json
import socket
import sys
import time

import client
import internet
import lab
import packets

# The promise, in seconds.
WITHIN = 1.0
# The kernel drops an element so much later at most: its clock ticks are coarse.
ROUNDING = 0.1
# Nothing comes for so long: it has ended.
SILENCE = 0.5
DENIED, OTHER, EXCEPTION = "api.example.com", "shop.example.com", "mirror.example.org"
PRIVATE = {4: "198.51.100.0/24", 6: "2001:db8:5::/64"}


def ask(built, host, name, family):
    """The reply to one query."""
    with built.host(host).inside():
        reply, _ = client.Asker(lab.source(host, family), lab.SERVER[family]).ask(name, packets.KIND[family])
    return reply


def begin(built, host, name, family):
    """Asks, and downloads from the answer."""
    reply = ask(built, host, name, family)
    if reply is None or reply.addresses != [internet.address(name, family)]:
        raise RuntimeError(f"{host} asks for {name}: {reply}")
    return client.Download(built.host(host), lab.source(host, family), reply.addresses[0], socket.SOCK_STREAM)


class Story:
    """One run over one family."""

    def __init__(self, built, family, faults):
        self.built, self.family, self.faults = built, family, faults
        self.seen = {"family": family}

    def holds(self, fact, otherwise):
        """Notes a fault unless it holds."""
        if not fact:
            self.faults.append(f"over IPv{self.family}: {otherwise}")

    def verb(self, *words):
        """Runs a verb that must succeed; what it said and how long it took."""
        start = time.monotonic()
        said, code = self.built.node.command(*words)
        self.holds(code == 0, f"{' '.join(words)}: {said}")
        return said, time.monotonic() - start

    def grants(self, *filters):
        """What is open."""
        return json.loads(self.verb("grants", "--json", *filters)[0])

    def brake(self):
        """A name is denied while it is downloaded."""
        ends, stays = (begin(self.built, "checkout1", name, self.family) for name in (DENIED, OTHER))
        self.holds(ends.flows() and stays.flows(), "a download has not begun")
        start = time.monotonic()
        said, took = self.verb("deny", DENIED, "--reason", "incident 12")
        last = ends.silent(SILENCE) - start
        self.holds(" 1 connections cut" in said, f"the verb says: {said}")
        self.holds(took < WITHIN and last < WITHIN, f"deny took {took:.3f} s, the last byte came after {last:.3f} s")
        self.holds(ends.refused(), "who sends on is not told")
        self.holds(ask(self.built, "checkout1", DENIED, self.family).addresses == [], f"{DENIED} is told while it is denied")
        self.holds(stays.flows(), f"{OTHER} does not go on")
        self.verb("retract", said.split(":")[0])
        again = begin(self.built, "checkout1", DENIED, self.family)
        self.holds(again.flows(), f"{DENIED} does not begin again")
        self.seen |= {"deny_ms": round(took * 1000), "last_byte_ms": round(last * 1000)}
        for download in (ends, stays, again):
            download.close()

    def exception(self):
        """A name is allowed for three seconds."""
        refused = ask(self.built, "checkout1", EXCEPTION, self.family)
        self.holds(refused.addresses == [], f"{EXCEPTION} is told before it is allowed")
        self.verb("allow", EXCEPTION, "--segment", "checkout", "--for", "3s", "--cut", "--private",
                  PRIVATE[self.family], "--reason", "release")
        start = time.monotonic()
        download = begin(self.built, "checkout1", EXCEPTION, self.family)
        self.holds(download.flows(), f"{EXCEPTION} does not flow")
        time.sleep(max(0.0, start + 3.0 + ROUNDING - time.monotonic()))
        source, address = lab.source("checkout1", self.family), internet.address(EXCEPTION, self.family)
        with self.built.host("checkout1").inside():
            late = client.connect(source, address)
        self.holds(late.outcome == "refused", f"after its end a connection is {late}")
        self.holds(ask(self.built, "checkout1", EXCEPTION, self.family).addresses == [], f"{EXCEPTION} is told after its end")
        last = download.silent(SILENCE) - start - 3.0
        self.holds(last < WITHIN, f"a connection lives {last:.1f} s after the end")
        self.holds(not [row for row in self.grants() if row["rule"].startswith("runtime-")], "a grant outlives its rule")
        self.seen["cut_after_end_ms"] = round(last * 1000)
        download.close()

    def forget(self):
        """A client's address is about to be another's."""
        gone = [begin(self.built, "checkout1", name, self.family) for name in (DENIED, OTHER)]
        stays = begin(self.built, "checkout2", OTHER, self.family)
        self.holds(all(download.flows() for download in [*gone, stays]), "a download has not begun")
        source = lab.source("checkout1", self.family)
        start = time.monotonic()
        self.verb("forget", source)
        last = max(download.silent(SILENCE) for download in gone) - start
        self.holds(last < WITHIN, f"a download of a forgotten client ends after {last:.3f} s")
        self.holds(self.grants("--client", source) == [], "something is open for a forgotten client")
        left = self.built.host("gateway").output("conntrack", "-L", "-s", source, "-p", "tcp", "--state", "ESTABLISHED")[0]
        self.holds(source not in left, f"the kernel knows connections of it: {left}")
        self.holds(stays.flows(), "another client's download does not go on")
        self.seen["forget_ms"] = round(last * 1000)
        for download in [*gone, stays]:
            download.close()

    def exception_by_address(self):
        """An address is allowed for three seconds, and nothing is asked."""
        source, address = lab.source("checkout1", self.family), internet.address(DENIED, self.family)
        self.verb("allow", address, "--segment", "checkout", "--ports", "tcp/443", "--for", "3s", "--cut", "--reason", "release")
        start = time.monotonic()
        download = client.Download(self.built.host("checkout1"), source, address, socket.SOCK_STREAM)
        self.holds(download.flows(), f"{address} does not flow")
        last = download.silent(SILENCE) - start - 3.0
        self.holds(last < WITHIN, f"a connection to an address lives {last:.1f} s after the end")
        self.seen["address_cut_after_end_ms"] = round(last * 1000)
        download.close()

    def rename(self):
        """A rule gets another id."""
        download = begin(self.built, "checkout1", OTHER, self.family)
        address = internet.address(OTHER, self.family)
        kept = self.built.node.amend_policy('id       = "shop"', 'id       = "store"')
        said, _ = self.verb("reload")
        self.holds(" 0 grants revoked" in said, f"the reload says: {said}")
        self.holds(download.flows() and self.grants("--address", address) != [], "a rename closes what is open")
        with self.built.host("checkout1").inside():
            again = client.connect(lab.source("checkout1", self.family), address)
        self.holds(again.outcome == "connected", f"a new connection is {again}")
        self.built.node.restore_policy(kept)
        self.verb("reload")
        download.close()


def main():
    """The exit code."""
    faults = []
    with lab.Lab() as built:
        built.node.start()
        for family in (4, 6):
            story = Story(built, family, faults)
            for part in (story.brake, story.exception, story.forget, story.exception_by_address, story.rename):
                part()
            print(json.dumps(story.seen), flush=True)
        verified, code = built.node.verify_log()
        faults += [f"outgate log verify: {verified}"] if code else []
        faults += [] if built.node.alive() else ["outgate has ended: " + built.node.diagnostics()]
    print("\n".join(faults) or "every change held")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
