"""One case: its systems side by side, asked in turn, and what each answer cost."""

import contextlib
import json
import os
import pathlib
import subprocess
import time

import cases
import systems
import upstream as upstreams
from machine import PATH, Failure, Process, free_port, idle, wait_until_ready

# Background work that no query waits for: it hashes closed segments of outgate's log. Reported apart.
SEALING = ("audit-seal",)


class Running:
    """One system that serves one case."""

    def __init__(self, name, case, place, upstream, binaries, cores, stack):
        self.name, self.case, self.system = name, case, systems.SYSTEMS[name]
        self.directory = place / name
        self.directory.mkdir()
        self.port = free_port()
        collector = None
        self.ends = []
        if self.system.log:
            collector, command = self.system.log.collector(self.directory)
            if command:
                place = self.directory / "collector"
                place.mkdir()
                taker = Process(command, cores[1], place)
                self.begin(taker, stack).wait_for(collector)
                self.ends.insert(0, lambda: taker.settle(self.directory))
        setting = systems.Setting(case, self.directory, self.port, upstream, collector, bool(self.system.log), binaries)
        self.process = self.begin(Process(self.system.start(setting), cores[0], self.directory), stack)
        # Every answer so far, and the rounds.
        self.answered = wait_until_ready(self.process, self.port, "n00001.svc.example.net", name != "echo")
        self.asked = 0
        self.rounds = []

    def begin(self, process, stack):
        stack.callback(process.stop)
        self.ends.insert(0, process.stop)
        return process

    def stop(self):
        """The server first, then who collects its log."""
        for end in self.ends:
            end()

    def load(self, binaries, core, options):
        """Runs the load once; what it reports, with the server's CPU time."""
        pattern = ["--names", self.case.pattern, "--count", str(self.case.count), "--first", str(self.asked)]
        command = ["taskset", "-c", str(core), binaries["load"], f"127.0.0.1:{self.port}", *pattern, *self.case.options, *options]
        began, rested = time.monotonic(), idle(self.process.core)
        threads, before = self.process.threads(), self.process.cpu()
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PATH": PATH}, check=False)
        after, grown = self.process.cpu(), self.process.threads()
        ended, rested = time.monotonic(), idle(self.process.core) - rested
        self.process.check()
        if done.returncode != 0:
            raise Failure(f"the load on {self.name} failed: {done.stderr.strip()}")
        report = json.loads(done.stdout)
        if report["answered"] == 0:
            raise Failure(f"{self.name} answered nothing; it said: {self.process.last_words()}")
        self.answered += report["answered"]
        if self.case.unique:
            self.asked += report["sent"]
        report["threads_ns"] = {name: spent - threads.get(name, 0) for name, spent in grown.items()}
        sealing = sum(report["threads_ns"].get(name, 0) for name in SEALING)
        report["cpu_us"] = (after - before - sealing) / 1000 / report["answered"]
        report["sealing_us"] = sealing / 1000 / report["answered"]
        report["busy"] = (after - before) / 1e9 / report["seconds"]
        report["disturbed"] = 1 - (rested + (after - before) / 1e9) / (ended - began)
        report["per_second"] = report["answered"] / report["seconds"]
        report["wrong"] = self.wrong(report)
        return report

    def wrong(self, report):
        """How many answers are not what the case expects."""
        if self.name == "echo":
            return 0
        if self.case.expect == "address":
            return report["answered"] - report["with_records"]
        return report["with_records"] + report["rcodes"][2]


def measure(case, names, rounds, seconds, binaries, cores, place, say):
    """Every round of one case: for each system its rounds, and what its log holds."""
    place.mkdir()
    load_core = cores[1]
    with contextlib.ExitStack() as stack:
        knot = place / "upstream"
        knot.mkdir()
        port = free_port()
        upstream = Process(upstreams.knot(knot, port), load_core, knot)
        stack.callback(upstream.stop)
        wait_until_ready(upstream, port, "n00001.svc.example.net", True)
        running = []
        for name in names:
            say(f"{case.name}: {name} starts")
            running.append(Running(name, case, place, port, binaries, cores, stack))
            if case.warm:
                report = running[-1].load(binaries, load_core, ["--order", "sequence", "--window", "64"])
                if report["lost"] or report["wrong"]:
                    raise Failure(f"{name} lost {report['lost']} answers and gave {report['wrong']} wrong ones while it was warmed up")
        for number in range(rounds):
            for system in running:
                say(f"{case.name}: round {number + 1} of {rounds}, {system.name}")
                options = ["--order", case.order, "--seconds", str(seconds), "--seed", str(number + 1)]
                system.rounds.append(system.load(binaries, load_core, options))
        results = {}
        for system in running:
            system.stop()
            result = {"rounds": system.rounds}
            if system.system.log:
                count, length = system.system.log.count(system.directory)
                result |= {"answered": system.answered, "records": count, "record_bytes": length}
            results[system.name] = result
        return results
