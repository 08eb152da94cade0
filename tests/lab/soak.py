"""A soak: clients of every habit, names whose addresses change every three seconds, two resolvers and three gateways.

    python3 soak.py [--seconds 180]      root; prints the counts as JSON; exit code 1 if one connection too many was refused

| client | habit |
|---|---|
| asks | looks up before every connection, and connects at once |
| keeps | uses an answer for 30 s whatever its TTL says, as a Java machine does |
| pools | looks up once and connects again and again to the same address, for as long as a grant is held at least (`hold`) |
| streams | flows over UDP as those of QUIC: each lives for long, changes its port, and moves to another address by a look-up |
| python, node, curl, java | the real ones, each looking up in its own way |
| http2, curl2 | node and curl over HTTP/2: pools of connections that are kept, many requests in each |

All connect over IPv4 and IPv6. No client of QUIC itself is among them: Debian 12 has none that has a server.
Of 100,000 connections to allowed names at most one may be refused, and the log says of each why. The kernel counts
attempts that failed: what a client hid by trying the next address is found out.
"""

import argparse
import glob
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time

import client
import internet
import lab
import machines
import network
import packets

NAMES = [f"n{number}.example.com" for number in range(24)]
HOLD, KEPT = 300, 30
HABITS = {"asks": 12, "keeps": 6, "pools": 6, "streams": 4}
PORTS = 'ports    = ["tcp/443", "tcp/8443", "udp/443"]'
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
# A server for both of them.
SERVER2 = """
const fs = require('fs'), [directory] = process.argv.slice(2);
const pem = name => fs.readFileSync(`${directory}/web.${name}`);
const server = require('http2').createSecureServer({ key: pem('key'), cert: pem('pem') }, (_, reply) => reply.end('here\\n'));
server.listen(8443, '::', 4096);
"""
# A session for each name, kept for a while; its end and the next begin are those of a pool.
HTTP2 = """
const http2 = require('http2'), fs = require('fs'), [ca, seconds, ...names] = process.argv.slice(2);
const end = Date.now() + 1000 * Number(seconds), known = { ca: fs.readFileSync(ca) };
const say = (what, name, error) => console.log(what, name, error.message);
let sessions = 0, requests = 0, open = names.length;
function keep(name) {
    if (Date.now() > end) { if (--open === 0) { console.log('requests', requests); console.log('connected', sessions); process.exit(0); } return; }
    const until = Date.now() + 500 + 7500 * Math.random();
    const session = http2.connect(`https://${name}:8443`, known);
    let failed = false;
    const over = error => {
        if (failed) return;
        failed = true;
        if (error) say(error.syscall === 'getaddrinfo' ? 'unresolved' : 'refused', name, error);
        session.destroy();
        setTimeout(keep, 20, name);
    };
    session.setTimeout(5000, () => over(new Error('timeout')));
    session.on('error', over);
    session.on('connect', () => { sessions++; ask(); });
    function ask() {
        if (failed) return;
        if (Date.now() > until) return over();
        const stream = session.request({ ':path': '/' });
        stream.on('error', over);
        stream.on('end', () => { requests++; setTimeout(ask, 50); });
        stream.resume().end();
    }
}
names.forEach(keep);
"""
# One process for a while: it keeps its connections, of which it has five at most, and addresses for a minute.
CURL2 = """
ca=$1 end=$(($(date +%s) + $2)); shift 2
said=$(mktemp) urls=$(mktemp) good=0 requests=0
for turn in 1 2 3 4 5 6 7 8 9 10; do
    for name in "$@"; do printf 'url = "https://%s:8443/"\\noutput = /dev/null\\n' "$name"; done
done >"$urls"
while [ "$(date +%s)" -lt "$end" ]; do
    curl --silent --http2 --cacert "$ca" --max-time 5 --rate 20/s --config "$urls" \\
        --write-out '%{http_version} %{response_code} %{exitcode} %{num_connects} %{url}\\n' >"$said"
    while read -r version code exit connects url; do
        case "$version $code $exit" in
            "2 200 0") requests=$((requests + 1)) good=$((good + connects)) ;;
            *" 6") echo "unresolved $url" ;;
            *) echo "refused $url HTTP/$version $code, curl ended with $exit" ;;
        esac
    done <"$said"
done
rm -f "$said" "$urls"
echo "requests $requests"
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
    made = [web, names]
    if shutil.which("node"):
        with open(f"{directory}/server2.js", "w") as file:
            file.write(SERVER2)
        with open(f"{directory}/server2.log", "w") as log:
            made.append(namespace.start("node", f"{directory}/server2.js", directory, output=log))
    return made


def askers_of(index, chance):
    """How a client asks: every other over IPv6, each of both resolvers first."""
    order = list(machines.RESOLVERS.values())
    chance.shuffle(order)
    family = 4 if index % 2 == 0 else 6
    return [client.Asker(lab.sources("crowd", family)[1 + index], machines.address(last, family)) for last in order]


def habit(task):
    """One client; what it saw."""
    kind, index, seconds = task
    if kind == "streams":
        return streams(task)
    chance = random.Random(index)
    askers = askers_of(index, chance)
    count = {"connected": 0, "unanswered": 0, "refused": []}
    kept = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name, family = chance.choice(NAMES), chance.choice((4, 6))
        # A pool asks no more than it must; both stay below what a rule holds open.
        life = {"asks": 0, "keeps": KEPT, "pools": HOLD - 10}[kind]
        until, addresses = kept.get((name, family), (0, []))
        if until < time.monotonic():
            reply, _, _ = machines.ask_both(askers, name, packets.KIND[family], lambda message: None, 3.0)
            if reply is None or not reply.addresses:
                count["unanswered"] += 1
                continue
            addresses = reply.addresses
            kept[name, family] = (time.monotonic() + life, addresses)
        source, address = lab.sources("crowd", family)[1 + index], chance.choice(addresses)
        attempt = client.connect(source, address, timeout=5.0)
        if attempt.outcome == "connected":
            count["connected"] += 1
        else:
            ago = life - (kept[name, family][0] - time.monotonic())
            count["refused"].append((source, address, name, f"{attempt} at {lab.now()}, {ago:.1f} s after it was told"))
        time.sleep(chance.uniform(0, 0.07))
    return count


def streams(task):
    """One client of long flows; what it saw."""
    _, index, seconds = task
    chance = random.Random(index)
    askers = askers_of(index, chance)
    count = {"connected": 0, "unanswered": 0, "refused": []}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name, family = chance.choice(NAMES), chance.choice((4, 6))
        reply, _, _ = machines.ask_both(askers, name, packets.KIND[family], lambda message: None, 3.0)
        if reply is None or not reply.addresses:
            count["unanswered"] += 1
            continue
        source, address = lab.sources("crowd", family)[1 + index], chance.choice(reply.addresses)
        until = min(end, time.monotonic() + chance.uniform(2, 20))
        while time.monotonic() < until:
            # For some seconds by one port, then by the next.
            failed = flow(source, address, min(until, time.monotonic() + chance.uniform(1, 10)))
            if failed is not None:
                count["refused"].append((source, address, name, f"{failed} at {lab.now()}"))
                break
            count["connected"] += 1
    return count


def flow(source, address, until):
    """Asks for echoes by one port; why it failed, if it did. A datagram may be lost, three in a row are not."""
    with socket.socket(client.family(source), socket.SOCK_DGRAM) as made:
        made.bind((source, 0))
        made.connect((address, 443))
        made.settimeout(1.0)
        lost, number = 0, 0
        while lost < 3:
            number += 1
            try:
                made.send(b"%d" % number)
                while made.recv(64) != b"%d" % number:
                    pass
                lost = 0
            except TimeoutError:
                lost += 1
            except OSError as error:
                return f"{error} after {number} datagrams"
            if time.monotonic() > until:
                return None
            time.sleep(0.05)
        return f"no echo for 3 s after {number} datagrams"


class Program:
    """A real client in the crowd's namespace, with a resolv.conf of its own."""

    def __init__(self, site, name, command):
        conf = f"{site.directory}/resolv.conf"
        with open(conf, "w") as file:
            file.writelines(f"nameserver 192.0.2.{last}\n" for last in machines.RESOLVERS.values())
            file.write("options timeout:1 attempts:3\n")
        bound = ["unshare", "--mount", "sh", "-c", f'mount --bind {conf} /etc/resolv.conf && exec "$@"', "sh", *command]
        self.name = name
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
        good, requests = ([int(line.split()[1]) for line in lines if line.startswith(what)] for what in ("connected ", "requests "))
        return {"connected": sum(good), **({"requests": sum(requests)} if requests else {}), "ended": bool(good), "refused": [line for line in lines if line.startswith("refused")],
                "unresolved": sum(line.startswith("unresolved") for line in lines), "said": lines[-2:]}


def programs(site, seconds):
    """The real clients that this machine has."""
    directory, ca = site.directory, f"{site.directory}/ca.pem"
    second = "curl" if shutil.which("node") and "HTTP2" in network.run("curl", "--version").split() else "curl with HTTP/2 and node"
    # name: (what it needs, what runs it, its file, its text, its first arguments)
    known = {"python": (sys.executable, sys.executable, "soak.py", PYTHON, []), "node": ("node", "node", "soak.js", NODE, []),
             "curl": ("curl", "sh", "soak.sh", CURL, []), "java": ("java", "java", "Soak.java", JAVA, []),
             "http2": ("node", "node", "soak2.js", HTTP2, [ca]), "curl2": (second, "sh", "soak2.sh", CURL2, [ca])}
    found = []
    for name, (needs, runs, file, text, first) in known.items():
        if shutil.which(needs) is None:
            print(f"{name} is left out: {needs} not found", flush=True)
            continue
        with open(f"{directory}/{file}", "w") as made:
            made.write(text)
        names = NAMES[8:12] if name == "curl2" else NAMES[:8]
        found.append(Program(site, name, [runs, f"{directory}/{file}", *first, str(int(seconds)), *names]))
    return found


def failed(crowd):
    """How many attempts to connect have failed, as the kernel counts."""
    with crowd.inside(), open("/proc/thread-self/net/snmp") as file:
        rows = [line.split() for line in file if line.startswith("Tcp:")]
    return int(dict(zip(*rows))["AttemptFails"])


def unanswered_why(site):
    """Why the resolvers told clients that they could not answer: how often, by reason."""
    why = {}
    for name in machines.RESOLVERS:
        with open(f"{site.directory}/{name}/query.jsonl", "rb") as file:
            for line in file:
                if b'"rcode":"SERVFAIL"' in line:
                    record = json.loads(line)
                    said = f"{record.get('reason')} {record.get('why', '')}".strip()
                    why[said] = why.get(said, 0) + 1
    return why


def told_of(site, source, address):
    """What the logs of both resolvers say of an address that was refused: to whom asked for it there, or to others."""
    found = []
    for name in machines.RESOLVERS:
        for path in sorted(glob.glob(f"{site.directory}/{name}/archive/*.jsonl")) + [f"{site.directory}/{name}/query.jsonl"]:
            with open(path, "rb") as file:
                for line in file:
                    line = line.strip(b"\0\n")
                    if line and f'"{address}"'.encode() in line and b'"type":"grant"' in line:
                        found.append(f"{name}: {line.decode()[:400]}")
    return sorted(found, key=lambda line: f'"{source}"' in line)[-6:]


def main():
    """The soak; the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=180)
    seconds = parser.parse_args().seconds
    machines.POLICY = machines.POLICY.replace("private  =", f"{PORTS}\nprivate  =")
    with machines.Site(outside) as site:
        # As an operator has it: five minutes at least, and a minute beyond the TTL.
        machines.RUN = machines.RUN.replace('grace   = "2s"', 'grace   = "60s"').replace('hold    = "30s"', f'hold    = "{HOLD}s"')
        site.configure("remote")
        for name in [*machines.GATEWAYS, *machines.RESOLVERS]:
            site.start(name)
        site.watch()
        site.wait(machines.GATEWAYS)
        kinds = [kind for kind, count in HABITS.items() for _ in range(count)]
        tasks = [(kind, index, seconds) for index, kind in enumerate(kinds)]
        before = failed(site.host("crowd"))
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
        # Flows over UDP are no attempts of TCP.
        counted = len(refused) - len(total["streams"]["refused"]) + len(of_programs)
        hidden = max(0, failed(site.host("crowd")) - before - counted)
        print(json.dumps({"seconds": seconds, "connected": connected, "refused": len(refused) + len(of_programs), "hidden": hidden, "servfail": unanswered_why(site),
                          **{kind: {**count, "refused": len(count["refused"])} for kind, count in total.items()},
                          **{name: {**count, "refused": len(count["refused"])} for name, count in ended.items()}}), flush=True)
        faults = []
        wrong = len(refused) + len(of_programs) + hidden
        if wrong * ALLOWED > max(connected, ALLOWED):
            faults.append(f"{wrong} of {connected} connections were refused, {hidden} of them unseen")
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
