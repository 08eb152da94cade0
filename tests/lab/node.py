"""The node under test: its configuration, its life, its log."""

import json
import os
import signal
import subprocess
import time
import urllib.request

import client
import packets

CONFIG = """\
node  = "og-lab"
state = "{directory}/state"

[listen]
dns     = ["192.0.2.1:53", "[2001:db8:c::1]:53"]
workers = 2

[policy]
directory = "{directory}/policy"

[zones]
directory = "{directory}/zones"

[[upstream]]
name    = "internet"
servers = ["udp://203.0.113.53:53", "udp://[2001:db8:f::53]:53"]

[grant]                              # seconds where an operator writes minutes: one sees it end
ttl_min = "1s"
ttl_max = "300s"
grace   = "2s"
hold    = "3s"

[[firewall]]
name   = "gateway"
kind   = "nftables"
hook   = "forward"
inside = ["inside0"]

[audit]
file        = "{directory}/query.jsonl"
on_full     = "refuse"
rotate_size = "64MiB"
max_size    = "1GiB"

[health]
listen = "127.0.0.1:9953"

[admin]
socket = "{directory}/admin.sock"
"""

# The enforcer of a resolver that may not touch the firewall itself.
ENFORCE = """\
state = "{directory}/enforce"

[enforce]
listen    = "unix:{directory}/socket/enforce"
resolvers = ["og-lab"]

[[firewall]]
name   = "gateway"
kind   = "nftables"
hook   = "forward"
inside = ["inside0"]
"""
REMOTE = """\
kind   = "remote"
server = "unix:{directory}/socket/enforce"
"""
LOCAL = """\
kind   = "nftables"
hook   = "forward"
inside = ["inside0"]
"""
# The user of such a resolver: nobody on this machine.
USER = 64053

# {until}: the end of the trial; {reason}: changes with every reload.
POLICY = """\
[[segment]]
name    = "checkout"
clients = ["192.0.2.64/26", "2001:db8:c::1:0/112"]
tags    = {{ service = "checkout", environment = "lab" }}
mode    = "enforce"
scope   = "client"

[[segment]]
name    = "batch"
clients = ["192.0.2.128/27", "2001:db8:c::2:0/112"]
mode    = "enforce"
scope   = "segment"

[[segment]]
name    = "trial"
clients = ["192.0.2.160/27", "2001:db8:c::3:0/112"]
mode    = "observe"
until   = {until}
scope   = "client"

[[rule]]
id       = "shop"
action   = "allow"
segments = ["checkout"]
names    = ["*.example.com"]
cname    = "trust"
private  = ["198.51.100.0/24", "2001:db8:5::/64"]
reason   = "{reason}"

[[rule]]
id       = "bulk"
action   = "allow"
segments = ["checkout"]
names    = ["*.bulk.example.com"]
private  = ["198.18.0.0/15", "2001:db8:5::/64"]

[[rule]]
id       = "quic"
action   = "allow"
segments = ["checkout"]
names    = ["quic.example.com"]
ports    = ["udp/443"]
private  = ["198.51.100.0/24", "2001:db8:5::/64"]

[[rule]]
id       = "mirror"
action   = "allow"
segments = ["batch"]
names    = ["mirror.example.org"]
private  = ["198.51.100.0/24", "2001:db8:5::/64"]

[[rule]]
id       = "no-admin"
action   = "deny"
segments = ["*"]
names    = ["admin.example.com"]
"""


def binary():
    """The outgate to test: $OUTGATE, else target/release/outgate, else one that is built now."""
    if os.environ.get("OUTGATE"):
        return os.path.abspath(os.environ["OUTGATE"])
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    built = os.path.abspath(f"{root}/target/release/outgate")
    if not os.path.exists(built):
        subprocess.run(["cargo", "build", "--release", "--bin", "outgate"], cwd=root, check=True)
    return built


def _record(line):
    try:
        return json.loads(line)
    except ValueError:
        return {"type": "torn", "line": line}


class Node:
    """One outgate on the gateway."""

    def __init__(self, namespace, directory):
        self._namespace = namespace
        self._directory = directory
        self._binary = binary()
        self._config = f"{directory}/outgate.toml"
        self._process = None
        self._enforcer = None
        self._as_user = []
        self._reloads = 0
        self._policy = POLICY
        for folder in ("policy", "zones", "state"):
            os.makedirs(f"{directory}/{folder}")
        with open(self._config, "w") as file:
            file.write(CONFIG.format(directory=directory))
        self._write_policy("first")
        self._diagnostics = open(f"{directory}/outgate.log", "ab")

    def amend(self, before, after):
        """Replaces a piece of the configuration; from the next start on."""
        with open(self._config) as file:
            text = file.read()
        if before not in text:
            raise ValueError(f"not in the configuration: {before}")
        with open(self._config, "w") as file:
            file.write(text.replace(before, after))

    def amend_policy(self, before, after):
        """Replaces a piece of the policy, from the next start or reload on; the policy that it was."""
        if before not in self._policy:
            raise ValueError(f"not in the policy: {before}")
        kept = self._policy
        self.restore_policy(kept.replace(before, after))
        return kept

    def restore_policy(self, policy):
        """Writes what `amend_policy` gave back."""
        self._policy = policy
        self._write_policy("amended")

    def _write_policy(self, reason):
        until = time.strftime("%Y-%m-%dT00:00:00Z", time.gmtime(time.time() + 2 * 86400))
        path = f"{self._directory}/policy/lab.toml"
        with open(path + ".new", "w") as file:
            file.write(self._policy.format(until=until, reason=reason))
        os.rename(path + ".new", path)

    def take_apart(self):
        """From the next start on it runs as a user who may bind a port and nothing else; the firewall is an enforcer's."""
        self.amend(LOCAL, REMOTE.format(directory=self._directory))
        with open(f"{self._directory}/enforce.toml", "w") as file:
            file.write(ENFORCE.format(directory=self._directory))
        os.makedirs(f"{self._directory}/socket", 0o750)
        for path in ("", "policy", "zones", "state", "socket"):
            os.chown(f"{self._directory}/{path}", 0 if path == "socket" else USER, USER)
        self._as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--pdeathsig=KILL",
                         "--inh-caps=-all,+net_bind_service", "--ambient-caps=+net_bind_service",
                         "--bounding-set=-all,+net_bind_service", "--no-new-privs"]

    def enforce(self):
        """Starts the enforcer; its socket belongs to the group of the resolver."""
        group = ["setpriv", f"--regid={USER}", "--clear-groups", "--pdeathsig=KILL"]
        command = [self._binary, "enforce", "-c", f"{self._directory}/enforce.toml"]
        self._enforcer = self._namespace.start(*group, *command, output=self._diagnostics)

    def kill_enforcer(self):
        """kill -9."""
        self._enforcer.kill()
        self._enforcer.wait()

    def spawn(self):
        """Starts it, and does not wait."""
        command = [*self._as_user, self._binary, "run", "-c", self._config]
        self._process = self._namespace.start(*command, output=self._diagnostics)

    def start(self):
        """Starts it and waits until its doors are open."""
        self.spawn()
        self.wait_ready()

    def wait_ready(self, seconds=15):
        """Waits until both doors answer. The gateway itself is in no segment: any answer is a sign of life."""
        end = time.monotonic() + seconds
        for source in ("192.0.2.1", "2001:db8:c::1"):
            with self._namespace.inside():
                asker = client.Asker(source, source)
            while asker.ask("ready.example.com", packets.A, timeout=0.2)[0] is None:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"outgate did not open its doors (exit code {self._process.poll()}):\n"
                                       f"{self.diagnostics()}")
                time.sleep(0.01)

    def process(self):
        """The number of its process."""
        return self._process.pid

    def worked(self, thread):
        """How long a thread of this name has worked, in seconds."""
        tasks = f"/proc/{self._process.pid}/task"
        for task in os.listdir(tasks):
            with open(f"{tasks}/{task}/comm") as comm, open(f"{tasks}/{task}/schedstat") as times:
                if comm.read().strip() == thread:
                    return int(times.read().split()[0]) / 1e9
        return None

    def metric(self, name):
        """The sum of a metric's series, as /metrics shows it."""
        with self._namespace.inside(), urllib.request.urlopen("http://127.0.0.1:9953/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def alive(self):
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self):
        """kill -9, and waits for the body."""
        self._process.kill()
        self._process.wait()

    def stop(self):
        """SIGTERM, and waits for it to drain; its exit code. The enforcer is killed."""
        if self._enforcer is not None:
            self.kill_enforcer()
        if self._process is None:
            return None
        self._process.terminate()
        try:
            return self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode

    def reload(self):
        """Writes a policy of a new revision and sends SIGHUP. Does not wait for it to be in force."""
        self._reloads += 1
        self._write_policy(f"reload {self._reloads}")
        self._process.send_signal(signal.SIGHUP)

    def run(self, *arguments):
        """Another verb of the binary, on the gateway; output and exit code."""
        return self._namespace.output(self._binary, *arguments, timeout=60)

    def command(self, *verb):
        """A verb of the binary with this configuration; output and exit code."""
        return self.run(*verb, "-c", self._config)

    def check(self):
        """`outgate check` of this configuration; output and exit code."""
        return self.command("check")

    def verify_log(self):
        """`outgate log verify`; output and exit code."""
        return self.command("log", "verify")

    def diagnostics(self, lines=15):
        """The last lines that it printed."""
        with open(f"{self._directory}/outgate.log", errors="replace") as file:
            return "".join(file.readlines()[-lines:])

    def records(self, kind=None):
        """Every record of the log, archive first. Space that is reserved and not written yet reads as NUL; a
        line that a kill cut off reads as a record of type "torn"."""
        archive = f"{self._directory}/archive"
        files = sorted(f"{archive}/{name}" for name in os.listdir(archive)) if os.path.isdir(archive) else []
        found = []
        for path in [file for file in files if ".jsonl" in file] + [f"{self._directory}/query.jsonl"]:
            with open(path, "rb") as file:
                lines = [line.strip(b"\0\n") for line in file]
            records = [_record(line) for line in lines if line]
            found += [record for record in records if kind is None or record["type"] == kind]
        return found

    def record(self, **fields):
        """The latest query record with these fields, or None. The promise is "written before sent": whoever
        holds an answer need not wait for its record."""
        for record in reversed(self.records("query")):
            if all(record.get(key) == value for key, value in fields.items()):
                return record
        return None
