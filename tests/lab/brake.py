"""What is denied while it flows: live downloads end within a second, over TCP and UDP, IPv4 and IPv6, also where nothing else is
refused; whoever is somewhere else is left alone.

    python3 brake.py                         root; exit code 1 if anything does not hold

- downloads of three clients, one of them observed, then a deny rule for the addresses of two: from its reload on, seconds
  until the last byte of each;
- who sends there is refused, at once; new connections and lookups are, too;
- a download from elsewhere goes on all the while;
- once the rule is gone, all of it can be begun again.
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
# Nothing comes for so long: it has ended.
SILENCE = 0.5
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
# (host, name, kind): what is to end, and what is to go on.
ENDS = [("checkout1", "api.example.com", TCP), ("checkout1", "quic.example.com", UDP),
        ("trial1", "tracker.example.net", TCP), ("trial1", "tracker.example.net", UDP)]
STAYS = [("checkout2", "shop.example.com", TCP), ("checkout2", "either.example.com", TCP)]
DENIED = ["api.example.com", "quic.example.com", "tracker.example.net"]
ADMIN = 'names    = ["admin.example.com"]\n'


def deny():
    """The policy's last rule with a deny for every denied address behind it."""
    networks = ", ".join(f'"{internet.address(name, family)}"' for name in DENIED for family in (4, 6))
    return f'{ADMIN}\n[[rule]]\nid       = "brake"\naction   = "deny"\nsegments = ["*"]\nnetworks = [{networks}]\n'


def begin(built, host, name, kind, family):
    """Asks, and downloads from the answer."""
    with built.host(host).inside():
        asker = client.Asker(lab.source(host, family), lab.SERVER[family])
    reply, _ = asker.ask(name, packets.KIND[family])
    if reply is None or reply.addresses != [internet.address(name, family)]:
        raise RuntimeError(f"{host} asks for {name}: {reply}")
    return client.Download(built.host(host), lab.source(host, family), reply.addresses[0], kind)


def main():
    """The exit code."""
    faults = []
    with lab.Lab() as built:
        built.node.start()
        for family in (4, 6):
            ending = {task: begin(built, *task, family) for task in ENDS}
            staying = {task: begin(built, *task, family) for task in STAYS}
            for task, download in [*ending.items(), *staying.items()]:
                if not download.flows():
                    faults.append(f"{task} over IPv{family} has not begun")
            kept = built.node.amend_policy(ADMIN, deny())
            start = time.monotonic()
            said, code = built.node.command("reload")
            faults += [said] if code else []
            seconds = {}
            for task, download in ending.items():
                seconds[task] = download.silent(SILENCE) - start
                if seconds[task] > WITHIN:
                    faults.append(f"{task} over IPv{family} ended after {seconds[task]:.3f} s")
                if not download.refused():
                    faults.append(f"{task} over IPv{family}: who sends is not told")
            for host, name, _ in ENDS:
                with built.host(host).inside():
                    again = client.connect(lab.source(host, family), internet.address(name, family))
                    reply, _ = client.Asker(lab.source(host, family), lab.SERVER[family]).ask(name, packets.KIND[family])
                # Where only is observed, names are told all the same.
                told = reply is None or reply.addresses != [] and host != "trial1"
                if again.outcome != "refused" or told:
                    faults.append(f"{host} {name} over IPv{family} while it is denied: {again}, {reply}")
            for task, download in staying.items():
                if not download.flows():
                    faults.append(f"{task} over IPv{family} does not go on")
            built.node.restore_policy(kept)
            built.node.command("reload")
            again = [begin(built, *task, family) for task in ENDS]
            if not all(download.flows() for download in again):
                faults.append(f"not all over IPv{family} begins again")
            for download in [*ending.values(), *staying.values(), *again]:
                download.close()
            print(json.dumps({"family": family, "ended": len(seconds),
                              "slowest_ms": round(max(seconds.values()) * 1000)}), flush=True)
        verified, code = built.node.verify_log()
        faults += [f"outgate log verify: {verified}"] if code else []
        faults += [] if built.node.alive() else ["outgate has ended: " + built.node.diagnostics()]
    print("\n".join(faults) or "what was denied has ended")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
