"""One case: its servers side by side, asked in turn, and what each answer cost."""

import contextlib
import functools
import json
import subprocess
import time

import machine
import systems
import upstream
from machine import Failure

# Background work that no query waits for: it hashes closed segments of outgate's log. Reported apart.
SEALING = ("audit-seal",)

# How long a peer may keep records to itself before it sends them on.
LINGER = 1.5


class Stage:
    """Where cases are played: the cores, the binaries, a directory, a certificate."""

    def __init__(self, directory, cores, binaries, say):
        self.directory, self.binaries, self.say = directory, binaries, say
        self.server_core, self.load_core = cores

    @functools.cached_property
    def identity(self):
        """Certificate and key of the servers."""
        return machine.identity(self.directory)

    def upstream(self, network, directory, stack):
        """Starts the upstream in this network: its port."""
        directory.mkdir()
        with network:
            port = machine.free_port()
            knot = machine.Process(upstream.knot(directory, port), [self.load_core], directory)
            stack.callback(knot.stop)
            machine.wait_until_ready(knot, port, "n00001.svc.example.net", True)
            knot.pin()
        return port


class Server:
    """One row of one case: a server with all that belongs to it."""

    def __init__(self, stage, case, row, directory, network, upstream_port, stack):
        self.stage, self.case, self.row, self.network = stage, case, row, network
        self.system = systems.SYSTEMS[row.system]
        self.directory = directory
        directory.mkdir()
        # What must be done to end it, in this order, and again when anything fails.
        self.ends = []
        # Answers so far: each has its record.
        self.answered = 0
        self.asked = 0
        self.rounds = []
        self.warm_faults = self.memory = 0
        with network:
            self.port, self.tls_port = machine.free_port(), machine.free_port()
            collector = self.collect(stack) if self.system.log else None
            identity = stage.identity if case.transport == "tls" else (None, None)
            setting = systems.Setting(
                case, row, directory, self.port, self.tls_port, upstream_port, identity, bool(self.system.log), collector,
                stage.binaries,
            )
            command = self.system.start(setting)
            cores = [stage.server_core, stage.load_core][: row.cores]
            began = time.monotonic()
            self.process = machine.Process(command, cores, directory)
            stack.callback(self.process.stop)
            self.ends.insert(0, self.process.stop)
            self.answered += machine.wait_until_ready(self.process, self.port, "n00001.svc.example.net", row.system != "echo")
            self.start_seconds = time.monotonic() - began

    def collect(self, stack):
        """Starts who takes the log, where the system sends it: where to."""
        door, command = self.system.log.collector(self.directory)
        if command:
            place = self.directory / "collector"
            place.mkdir()
            taker = machine.Process(command, [self.stage.load_core], place)
            stack.callback(taker.stop)
            self.ends += [lambda: taker.settle(self.directory), taker.stop]
            taker.wait_for(door)
        return door

    def warm_up(self):
        """Every name once: how many answers were lost or wrong; more than one in a hundred is a failure."""
        report = self.load("--order", "sequence")
        faults = report["lost"] + report["wrong"]
        if faults > report["sent"] / 100:
            raise Failure(f"{self.row.label} lost {report['lost']} answers and gave {report['wrong']} wrong ones while it was warmed up")
        return faults

    def load(self, *options):
        """Asks once: what the load reports, and the server's CPU time for it."""
        core = self.stage.server_core
        began, rested = time.monotonic(), machine.idle(core)
        threads, before = self.process.threads(), self.process.cpu()
        with self.network:
            done = subprocess.run(self.load_command(*options), capture_output=True, text=True, timeout=300, check=False)
        after, grown = self.process.cpu(), self.process.threads()
        ended, rested = time.monotonic(), machine.idle(core) - rested
        self.process.check()
        if done.returncode != 0:
            raise Failure(f"the load on {self.row.label} failed: {done.stderr.strip()}")
        report = json.loads(done.stdout)
        if report["answered"] == 0:
            raise Failure(f"{self.row.label} answered nothing; it said: {self.process.last_words()}")
        self.answered += report["answered"]
        self.asked += report["sent"] if self.case.unique else 0
        spent = {name: total - threads.get(name, 0) for name, total in grown.items()}
        sealing = sum(spent.get(name, 0) for name in SEALING)
        return report | {
            "threads_ns": spent,
            "cpu_us": (after - before - sealing) / 1000 / report["answered"],
            "sealing_us": sealing / 1000 / report["answered"],
            "busy": (after - before) / 1e9 / report["seconds"],
            # Who has two cores shares one with the load.
            "disturbed": 1 - (rested + (after - before) / 1e9) / (ended - began) if self.row.cores == 1 else 0,
            "per_second": report["answered"] / report["seconds"],
            "wrong": self.wrong(report),
        }

    def load_command(self, *options):
        connected = self.row.system != "echo" and self.case.transport
        if connected == "tls":
            door = [f"127.0.0.1:{self.tls_port}", "--tls", self.stage.identity[0]]
        else:
            door = [f"127.0.0.1:{self.port}", *(["--tcp"] if connected == "tcp" else [])]
        names = ["--names", self.case.pattern, "--count", str(self.case.count), "--first", str(self.asked)]
        pinned = ["taskset", "-c", str(self.stage.load_core), self.stage.binaries["load"]]
        return [*pinned, *door, *names, *self.case.options, *self.row.options, *options]

    def wrong(self, report):
        """How many answers are not what the case expects."""
        if self.row.system == "echo":
            return 0
        if self.case.expect == "address":
            return report["answered"] - report["with_records"]
        return report["with_records"] + report["rcodes"][2]

    def result(self):
        """Ends it: its rounds, and what its log holds."""
        result = {
            "rounds": self.rounds, "start_seconds": self.start_seconds, "memory": self.memory, "warm_faults": self.warm_faults,
        }
        for end in self.ends:
            end()
        if self.system.log:
            count, length = self.system.log.count(self.directory)
            result |= {"answered": self.answered, "records": count, "record_bytes": length}
        return result


def measure(stage, case, chosen, rounds, seconds):
    """Every round of one case: for each row its rounds and what its log holds, or why it failed."""
    place = stage.directory / case.name
    place.mkdir()
    with contextlib.ExitStack() as stack:
        servers, failed = start(stage, case, chosen, place, stack)
        rate = []
        if case.quarter and (echo := servers.get("echo")):
            rate = ["--rate", str(echo.load("--order", case.order, "--seconds", "1")["per_second"] / 4)]
        for number in range(rounds):
            for label in list(servers):
                stage.say(f"{case.name}: round {number + 1} of {rounds}, {label}")
                options = ["--order", case.order, "--seconds", str(seconds), "--seed", str(number + 1), *rate]
                with keep_failure(label, servers, failed):
                    servers[label].rounds.append(servers[label].load(*options))
        if any(server.system.log for server in servers.values()):
            time.sleep(LINGER)
        results = {label: server.result() for label, server in servers.items()} | failed
        return {row.label: results[row.label] for row in chosen}


def start(stage, case, chosen, place, stack):
    """The servers of a case, warm; and for those that failed, why."""
    servers, failed = {}, {}
    # Elements of others make nftables slower: who opens addresses is alone.
    alone = any(row.firewall for row in chosen)
    network = port = None
    for row in chosen:
        if alone or network is None:
            network = machine.Network()
            stack.callback(network.close)
            port = stage.upstream(network, place / f"upstream-{len(servers) + len(failed)}", stack)
        stage.say(f"{case.name}: {row.label} starts")
        with keep_failure(row.label, servers, failed):
            server = servers[row.label] = Server(stage, case, row, place / row.label, network, port, stack)
            server.warm_faults = server.warm_up() if case.warm else 0
            server.memory = server.process.memory()
    return servers, failed


@contextlib.contextmanager
def keep_failure(label, servers, failed):
    """One that fails does not end the others."""
    try:
        yield
    except Failure as failure:
        servers.pop(label, None)
        failed[label] = {"failed": str(failure)}
