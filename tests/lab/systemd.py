"""What tests/systemd runs inside of a systemd of its own: contrib's units, restarted under load.

    python3 systemd.py       as root, where nothing else runs; prints the counts as JSON; exit code 1 if something does not hold
"""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time

import client
import packets

SERVER, NAME = "192.0.2.1", "www.corp.example"
RESTARTS = 5
# What a query may wait for its answer, over a restart too.
PATIENCE = 2.0
# An enforcer that is away for longer fences its gateway.
FENCE = 2.0


def run(*command):
    """Runs a command; what it printed. A failure ends the test."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = subprocess.run(["journalctl", "--no-pager", "-n", "30"], capture_output=True, text=True).stdout
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}\n{said}")
    return done.stdout


class Load:
    """Clients that ask until it is over: three over UDP, each query once, and one over TCP, again where a connection ended."""

    def __init__(self):
        self.waited, self.lost, self.again = [], 0, 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(3)] + [threading.Thread(target=self._stream)]
        for thread in self._threads:
            thread.start()

    def _told(self, began, reply):
        if reply is None or reply.addresses != ["192.0.2.80"]:
            self.lost += 1
        self.waited.append(time.monotonic() - began)

    def _ask(self):
        asker = client.Asker(SERVER, SERVER)
        while not self._over.is_set():
            began = time.monotonic()
            self._told(began, asker.ask(NAME, packets.A, timeout=10)[0])

    def _stream(self):
        stream = None
        while not self._over.is_set():
            began, reply = time.monotonic(), None
            while reply is None and time.monotonic() - began < 10:
                try:
                    stream = stream or socket.create_connection((SERVER, 53), 10)
                    query = packets.query(7, NAME, packets.A)
                    stream.sendall(struct.pack("!H", len(query)) + query)
                    length = stream.recv(2, socket.MSG_WAITALL)
                    reply = packets.parse(stream.recv(struct.unpack("!H", length)[0], socket.MSG_WAITALL))
                except (OSError, struct.error):
                    stream = None
                    self.again += 1
            self._told(began, reply)

    def more(self, count=200):
        """Waits for so many answers more."""
        wanted, end = len(self.waited) + count, time.monotonic() + 20
        while len(self.waited) < wanted:
            if time.monotonic() > end:
                raise RuntimeError("nobody is answered any more")
            time.sleep(0.01)

    def end(self):
        """Ends it."""
        self._over.set()
        for thread in self._threads:
            thread.join()


def without_privileges():
    """The firewall in the hands of the enforcer; what does not hold."""
    run("systemctl", "stop", "outgate.socket", "outgate", "outgate-enforce")
    os.makedirs("/etc/systemd/system/outgate.service.d")
    for file, to in (("outgate.toml", "/etc/outgate"), ("enforce.toml", "/etc/outgate"),
                     ("override.conf", "/etc/systemd/system/outgate.service.d")):
        run("cp", f"/lab/{file}", to)
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "outgate-enforce", "outgate.socket", "outgate")
    faults = []
    for name, address in (("one.corp.example", "192.0.2.81"), ("two.corp.example", "192.0.2.82")):
        # Whoever asks while the enforcer starts is told to ask again.
        end, asker, reply = time.monotonic() + 10, client.Asker(SERVER, SERVER), None
        while (reply is None or reply.rcode == packets.SERVFAIL) and time.monotonic() < end:
            reply, _ = asker.ask(name, packets.A)
            time.sleep(0.05)
        if reply is None or reply.addresses != [address]:
            faults.append(f"{name} without privileges: {reply}")
        if address not in run("nft", "list", "ruleset"):
            faults.append(f"{name}: the enforcer opened nothing")
        run("systemctl", "restart", "outgate-enforce", "outgate")
    with open(f"/proc/{run('systemctl', 'show', '--value', '-p', 'MainPID', 'outgate').strip()}/status") as file:
        rights = int(dict(line.split(":", 1) for line in file)["CapEff"], 16)
    net_bind_service = 1 << 10
    if rights & ~net_bind_service:
        faults.append(f"the resolver has more rights than to bind a port: {rights:x}")
    return faults


def main():
    """The restarts; the exit code."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{SERVER}/24", "dev", "lo")
    run("systemctl", "enable", "--now", "outgate.socket", "outgate.service", "outgate-enforce.service")
    took, enforcer = [], []
    load = Load()
    try:
        for turn in range(RESTARTS):
            load.more()
            if turn == RESTARTS - 1:
                # An upgrade: another file under the same name.
                run("cp", "-p", "/usr/bin/outgate", "/usr/bin/outgate.next")
                run("mv", "/usr/bin/outgate.next", "/usr/bin/outgate")
            began = time.monotonic()
            run("systemctl", "restart", "outgate")
            took.append(round(time.monotonic() - began, 2))
        load.more()
        run("systemctl", "reload", "outgate")
        load.more()
        killed = run("systemctl", "show", "--value", "-p", "MainPID", "outgate").strip()
        os.kill(int(killed), 9)
        load.more()
    finally:
        load.end()
    for _ in range(2):
        began = time.monotonic()
        run("systemctl", "restart", "outgate-enforce")
        # It answers on its port: a resolver would be connected.
        while True:
            try:
                socket.create_connection((SERVER, 8953), 1).close()
                break
            except OSError:
                time.sleep(0.01)
        enforcer.append(round(time.monotonic() - began, 2))
    run("outgate", "log", "verify", "-c", "/etc/outgate/outgate.toml")
    run("outgate", "status", "-c", "/etc/outgate/outgate.toml")
    said = run("journalctl", "--no-pager", "-u", "outgate").splitlines()
    warned = [line for line in said if "WARN" in line or "ERROR" in line]
    faults = [f"the journal has {line}" for line in warned]
    restarts = int(run("systemctl", "show", "--value", "-p", "NRestarts", "outgate"))
    found = {"asked": len(load.waited), "lost": load.lost, "again_over_tcp": load.again, "restart_s": took,
             "enforcer_s": enforcer, "started_by_itself": restarts, "longest_wait_s": round(max(load.waited), 2)}
    print(json.dumps(found), flush=True)
    faults += without_privileges()
    if load.lost > 0:
        faults.append(f"{load.lost} queries were lost")
    if max(load.waited) > PATIENCE:
        faults.append(f"a query waited for {max(load.waited):.2f} s")
    if restarts != 1:
        faults.append(f"systemd started it again {restarts} times, and it was killed once")
    if max(enforcer) > FENCE:
        faults.append(f"a restart of the enforcer took {max(enforcer)} s")
    print("\n".join(faults) or "nobody noticed a restart")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
