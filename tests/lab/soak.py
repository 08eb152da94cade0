"""A soak: clients of every habit, names whose addresses change every three seconds, two resolvers and three gateways.

    python3 soak.py [--seconds 180]      root; prints the counts as JSON; exit code 1 if one connection too many was refused

| client | habit |
|---|---|
| asks | looks up before every connection, and connects at once |
| keeps | uses an answer for 30 s whatever its TTL says, as a Java machine does |
| pools | looks up once and connects again and again to the same address, for as long as a grant is held at least (`hold`) |
| python, node, curl, java | the real ones, each looking up in its own way |

Of 100,000 connections to allowed names at most one may be refused, and the log says of each why.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import client
import internet
import lab
import machines
import packets

NAMES = [f"n{number}.example.com" for number in range(24)]
HOLD, KEPT = 300, 30
HABITS = {"asks": 12, "keeps": 6, "pools": 6}
ALLOWED = 100_000

# How the real clients do it.
PYTHON = """
import random, socket, time, sys
names, end = sys.argv[2:], time.monotonic() + float(sys.argv[1])
good = 0
while time.monotonic() < end:
    name = random.choice(names)
    try:
        socket.create_connection((name, 443), 5).close()
        good += 1
    except socket.gaierror as error:
        print("unresolved", name, error, flush=True)
    except OSError as error:
        print("refused", name, error, flush=True)
    time.sleep(0.02)
print("connected", good, flush=True)
"""
NODE = """
const net = require('net'), names = process.argv.slice(2);
const end = Date.now() + 1000 * Number(names.shift());
let good = 0;
function next() {
    if (Date.now() > end) { console.log('connected', good); process.exit(0); }
    const name = names[Math.floor(Math.random() * names.length)];
    const made = net.connect(443, name);
    made.setTimeout(5000, () => made.destroy(new Error('timeout')));
    made.on('connect', () => { good++; made.destroy(); setTimeout(next, 20); });
    made.on('error', error => {
        console.log(error.syscall === 'getaddrinfo' ? 'unresolved' : 'refused', name, error.message); setTimeout(next, 20);
    });
}
next();
"""
CURL = """
end=$(($(date +%s) + $1)); shift; good=0
while [ "$(date +%s)" -lt "$end" ]; do
    for name in "$@"; do
        # Nobody speaks HTTP there: that it connected is what counts.
        said=$(curl --silent --http0.9 --max-time 0.3 --output /dev/null --write-out '%{time_namelookup} %{time_connect}' "http://$name:443/")
        case $said in
            "0.000000 "*) echo "unresolved $name" ;;
            *" 0.000000") echo "refused $name" ;;
            *) good=$((good + 1)) ;;
        esac
    done
done
echo "connected $good"
"""
JAVA = """
import java.net.*;
public class Soak {
    public static void main(String[] names) throws Exception {
        long end = System.currentTimeMillis() + (long) (1000 * Double.parseDouble(names[0]));
        java.util.Random chance = new java.util.Random();
        int good = 0;
        while (System.currentTimeMillis() < end) {
            String name = names[1 + chance.nextInt(names.length - 1)];
            try (Socket made = new Socket()) {
                made.connect(new InetSocketAddress(name, 443), 5000);
                good++;
            } catch (UnknownHostException error) {
                System.out.println("unresolved " + name);
            } catch (Exception error) {
                // An address that was not looked up again because it could not be resolved is told so.
                boolean unresolved = error.getMessage() != null && error.getMessage().contains("nresolved");
                System.out.println((unresolved ? "unresolved " : "refused ") + name + " " + error);
            }
            Thread.sleep(20);
        }
        System.out.println("connected " + good);
    }
}
"""


def outside(namespace, directory):
    """The internet of the soak: web servers everywhere, and a name server that changes its mind."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(f"{directory}/web.log", "w") as log:
        web = namespace.start(sys.executable, f"{here}/web.py", output=log)
    with open(f"{directory}/rotate.log", "w") as log:
        names = namespace.start(sys.executable, f"{here}/rotate.py", internet.RESOLVER4, output=log)
    return [web, names]


def habit(task):
    """One client; what it saw."""
    kind, source, seed, seconds = task
    chance = random.Random(seed)
    order = list(machines.RESOLVERS.values())
    chance.shuffle(order)
    askers = [client.Asker(source, f"192.0.2.{last}") for last in order]
    count = {"connected": 0, "unanswered": 0, "refused": []}
    kept = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name = chance.choice(NAMES)
        until, addresses = kept.get(name, (0, []))
        if until < time.monotonic():
            reply, _, _ = machines.ask_both(askers, name, packets.A, lambda message: None, 3.0)
            if reply is None or not reply.addresses:
                count["unanswered"] += 1
                continue
            addresses = reply.addresses
            # A pool that asks no more than it must; both stay below what a rule holds open.
            life = {"asks": 0, "keeps": KEPT, "pools": HOLD - 10}[kind]
            kept[name] = (time.monotonic() + life, addresses)
        address = chance.choice(addresses)
        attempt = client.connect(source, address, timeout=5.0)
        if attempt.outcome == "connected":
            count["connected"] += 1
        else:
            count["refused"].append((source, address, name, str(attempt)))
        time.sleep(chance.uniform(0, 0.03))
    return count


class Program:
    """A real client in the crowd's namespace, with a resolv.conf of its own."""

    def __init__(self, site, source, command):
        conf = f"{site.directory}/resolv.conf"
        with open(conf, "w") as file:
            file.writelines(f"nameserver 192.0.2.{last}\n" for last in machines.RESOLVERS.values())
            file.write("options timeout:1 attempts:3\n")
        bound = ["unshare", "--mount", "sh", "-c", f'mount --bind {conf} /etc/resolv.conf && exec "$@"', "sh", *command]
        self.source, self.name = source, os.path.basename(command[0])
        with open(f"{site.directory}/{self.name}.out", "w") as out:
            self._process = site.host("crowd").start(*bound, output=out)
        self._out = f"{site.directory}/{self.name}.out"

    def result(self, seconds):
        """What it printed, once it has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with open(self._out, errors="replace") as file:
            lines = file.read().splitlines()
        good = [int(line.split()[1]) for line in lines if line.startswith("connected ")]
        return {"connected": sum(good), "ended": bool(good), "refused": [line for line in lines if line.startswith("refused")],
                "unresolved": sum(line.startswith("unresolved") for line in lines), "said": lines[-2:]}


def programs(site, seconds):
    """The real clients that this machine has."""
    directory, names = site.directory, NAMES[:8]
    for file, text in (("soak.py", PYTHON), ("soak.js", NODE), ("soak.sh", CURL), ("Soak.java", JAVA)):
        with open(f"{directory}/{file}", "w") as made:
            made.write(text)
    all_of = [(sys.executable, f"{directory}/soak.py"), ("node", f"{directory}/soak.js"), ("sh", f"{directory}/soak.sh"),
              ("java", f"{directory}/Soak.java")]
    needs = {"sh": "curl"}
    sources = lab.sources("crowd", 4)
    return [Program(site, sources[0], [*command, str(int(seconds)), *names]) for command in all_of
            if shutil.which(needs.get(command[0], command[0]))]


def told_of(site, source, address):
    """What the logs of both resolvers say of an address that was refused."""
    found = []
    for name in machines.RESOLVERS:
        with open(f"{site.directory}/{name}/query.jsonl", "rb") as file:
            for line in file:
                line = line.strip(b"\0\n")
                if line and address.encode() in line and source.encode() in line and b'"type":"grant"' in line:
                    found.append(f"{name}: {line.decode()[:400]}")
    return found[-3:]


def main():
    """The soak; the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("SOAK_SECONDS", "180")))
    seconds = parser.parse_args().seconds
    with machines.Site(outside) as site:
        # As an operator has it: five minutes at least, and a minute beyond the TTL.
        machines.RUN = machines.RUN.replace('grace   = "2s"', 'grace   = "60s"').replace('hold    = "30s"', f'hold    = "{HOLD}s"')
        site.configure("remote")
        for name in [*machines.GATEWAYS, *machines.RESOLVERS]:
            site.start(name)
        site.watch()
        site.wait(machines.GATEWAYS)
        sources = lab.sources("crowd", 4)[1:]
        kinds = [kind for kind, count in HABITS.items() for _ in range(count)]
        tasks = [(kind, sources[index % len(sources)], index, seconds) for index, kind in enumerate(kinds)]
        real = programs(site, seconds)
        pool = client.Crowd(site.host("crowd"), habit, tasks)
        over = threading.Event()
        threading.Thread(target=tell, args=(seconds, over), daemon=True).start()
        results = pool.results()
        over.set()
        ended = {program.name: program.result(30) for program in real}
        total = {kind: client.total([result for result, task in zip(results, tasks) if task[0] == kind]) for kind in HABITS}
        connected = sum(count["connected"] for count in [*total.values(), *ended.values()])
        refused = [fault for count in total.values() for fault in count["refused"]]
        of_programs = [f"{name}: {line}" for name, count in ended.items() for line in count["refused"]]
        print(json.dumps({"seconds": seconds, "connected": connected, "refused": len(refused) + len(of_programs),
                          **{kind: {**count, "refused": len(count["refused"])} for kind, count in total.items()},
                          **{name: {**count, "refused": len(count["refused"])} for name, count in ended.items()}}), flush=True)
        faults = []
        if (len(refused) + len(of_programs)) * ALLOWED > max(connected, ALLOWED):
            faults.append(f"{len(refused) + len(of_programs)} of {connected} connections were refused")
        for source, address, name, attempt in refused[:5]:
            faults.append("\n  ".join([f"{source} {name} {address}: {attempt}", *told_of(site, source, address)]))
        faults += of_programs[:5]
        faults += [f"{name} did not end as it should: {count['said']}" for name, count in ended.items() if not count["ended"]]
        unanswered = sum(count["unanswered"] for count in total.values()) + sum(count["unresolved"] for count in ended.values())
        # A machine that is busy otherwise lets some time out.
        if unanswered * 1000 > connected:
            faults.append(f"{unanswered} questions were not answered")
        if connected < 100 * seconds:
            faults.append(f"too few connections to mean anything: {connected}")
        if faults:
            faults += [f"{name}:\n{site.diagnostics(name)}" for name in [*machines.RESOLVERS, *machines.GATEWAYS]]
    print("\n".join(faults) or "whoever was told an address could connect to it for as long as it was held")
    return 1 if faults else 0


def tell(seconds, over):
    """Says how far it is, in a long one."""
    began = time.monotonic()
    while not over.wait(60):
        print(f"{time.monotonic() - began:.0f} of {seconds:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(lab.told(main))
