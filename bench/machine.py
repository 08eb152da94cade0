"""The machine: its cores, its packages, the binaries under test, and processes that are started and always ended."""

import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:" + os.path.expanduser("~/.cargo/bin")

# command: Debian package
PACKAGES = {
    "taskset": "util-linux",
    "setpriv": "util-linux",
    "ip": "iproute2",
    "nft": "nftables",
    "knotd": "knot",
    "unbound": "unbound",
    "dnsmasq": "dnsmasq-base",
    "dnsdist": "dnsdist",
    "kresd": "knot-resolver",
    "pdns_recursor": "pdns-recursor",
    "fstrm_capture": "fstrm-bin",
    "openssl": "openssl",
}


class Failure(Exception):
    """One sentence and the remedy, for people."""


def which(command):
    return shutil.which(command, path=PATH)


def install(commands):
    """What of these commands cannot be had: as root on Debian the missing packages are installed first."""
    missing = sorted({PACKAGES[command] for command in commands if not which(command)})
    if missing and os.geteuid() == 0 and which("apt-get"):
        # Debian starts what it installs; 101 says "not here". A policy that is already there is somebody else's.
        policy = pathlib.Path("/usr/sbin/policy-rc.d")
        ours = not policy.exists()
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        try:
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
                subprocess.run(["apt-get", "-qq", *command], env=environment, stdout=2, check=False)
        finally:
            if ours:
                policy.unlink()
    return {command for command in commands if not which(command)}


def cores():
    """The core of the servers and the core of the load."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise Failure("two cores are needed, one for the server and one for the load; this process may use one")
    return usable[0], usable[1]


class Network:
    """A network namespace with a loopback alone; what is started within the block is in it, and it ends with the last of
    them. Without root: the machine's own."""

    CLONE_NEWNET = 0x40000000
    LIBC = ctypes.CDLL(None, use_errno=True)

    def __init__(self):
        self.outside = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.inside = self.outside
        if os.geteuid() == 0:
            if self.LIBC.unshare(self.CLONE_NEWNET) != 0:
                raise Failure(f"no network namespace can be made: {os.strerror(ctypes.get_errno())}")
            self.inside = os.open("/proc/self/ns/net", os.O_RDONLY)
            subprocess.run([which("ip"), "link", "set", "lo", "up"], check=True)
            self.move(self.outside)

    def move(self, namespace):
        if self.inside != self.outside and self.LIBC.setns(namespace, self.CLONE_NEWNET) != 0:
            raise Failure(f"the network namespace cannot be entered: {os.strerror(ctypes.get_errno())}")

    def __enter__(self):
        self.move(self.inside)

    def __exit__(self, *_):
        self.move(self.outside)

    def close(self):
        for namespace in {self.inside, self.outside}:
            os.close(namespace)


def identity(directory):
    """A certificate for 127.0.0.1 and its key: files."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
        "-keyout", key, "-out", certificate,
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise Failure(f"openssl made no certificate: {made.stderr.strip()}")
    return certificate, key


def description():
    """The machine and the versions, as far as they can be had."""
    def lines(*command):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        return done.stdout.strip().splitlines()

    with open("/proc/cpuinfo") as info:
        model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown")
    versions = lines("dpkg-query", "-W", "-f", "${Package} ${Version}\n", *sorted(set(PACKAGES.values()))) if which("dpkg-query") else []
    return {
        "processor": model, "kernel": os.uname().release, "outgate": "".join(lines("git", "describe", "--always", "--dirty")),
        "packages": dict(line.split(" ", 1) for line in versions if " " in line),
    }


def build(binary):
    """The paths of outgate, echo and load: built here, outgate only where no binary was given."""
    cargo = shutil.which("cargo", path=PATH)
    if not cargo:
        raise Failure("cargo is missing; install Rust as rust-version in Cargo.toml says")
    found = {"outgate": binary} if binary else {}
    wanted = [["--example", "echo", "--example", "load"], *([] if binary else [["--bin", "outgate"]])]
    for targets in wanted:
        command = [cargo, "build", "--release", "--message-format=json-render-diagnostics", *targets]
        built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if built.returncode != 0:
            raise Failure(f"cargo build {' '.join(targets)} failed; what went wrong is above")
        for line in built.stdout.splitlines():
            message = json.loads(line)
            if message.get("executable"):
                found[message["target"]["name"]] = message["executable"]
    return found


def free_port():
    """A port of 127.0.0.1 that neither UDP nor TCP uses now."""
    for _ in range(100):
        with socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind(("127.0.0.1", 0))
            port = udp.getsockname()[1]
            with contextlib.suppress(OSError):
                tcp.bind(("127.0.0.1", port))
                return port
    raise Failure("no port of 127.0.0.1 is free for both UDP and TCP; stop what uses them")


def listens(port):
    """Whether somebody listens on this TCP port of 127.0.0.1; state 0A of /proc/net/tcp."""
    with open("/proc/net/tcp") as table:
        return any(f":{port:04X} 00000000:0000 0A" in line for line in table) if isinstance(port, int) else False


def idle(core):
    """Seconds that a core had nothing to do, in hundredths: the fourth figure of its line in /proc/stat, and for I/O the fifth."""
    with open("/proc/stat") as stat:
        line = next(line for line in stat if line.startswith(f"cpu{core} "))
    return sum(map(int, line.split()[4:6])) / os.sysconf("SC_CLK_TCK")


class Process:
    """A process on one core, ended with the block that it is used in, and with this one should that be killed."""

    def __init__(self, command, cores, directory):
        self.name = os.path.basename(command[0])
        self.said = directory / "output.txt"
        pinned = ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", ",".join(map(str, cores)), *command]
        with open(self.said, "wb") as output:
            self.child = subprocess.Popen(
                [str(part) for part in pinned],
                cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, "PATH": PATH},
            )
        self.pid, self.cores = self.child.pid, cores

    def check(self):
        if self.child.poll() is not None:
            raise Failure(f"{self.name} ended with {self.child.returncode}; it said: {self.last_words()}")

    def last_words(self):
        lines = self.said.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "nothing"

    def cpu(self):
        """CPU time in nanoseconds, user and system, of all threads, those that have ended too: CPUCLOCK_SCHED of
        linux/posix-timers_types.h."""
        return time.clock_gettime_ns((~self.pid << 3) | 2)

    def threads(self):
        """Nanoseconds on a processor by thread name, of those that live; names that end in a number are one."""
        names = {}
        for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                name = (task / "comm").read_text().strip().rstrip("-0123456789")
                names[name] = names.get(name, 0) + int((task / "schedstat").read_text().split()[0])
        return names

    def memory(self):
        """Resident bytes."""
        pages = int(pathlib.Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def pin(self):
        """Puts every thread where it belongs: knotd gives each of its UDP threads a processor, from the first one on."""
        for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), self.cores)

    def wait_for(self, door, patience=10):
        """Until it listens on this unix socket or port of 127.0.0.1; it is not connected to."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            self.check()
            if isinstance(door, pathlib.Path) and door.exists() or listens(door):
                return
            time.sleep(0.01)
        raise Failure(f"{self.name} did not listen on {door} in {patience} s; it said: {self.last_words()}")

    def settle(self, directory, patience=20):
        """Until nothing more is written below this directory."""
        end, before = time.monotonic() + patience, None
        while time.monotonic() < end:
            sizes = [file.stat().st_size for file in directory.iterdir()]
            if sizes == before:
                return
            before = sizes
            time.sleep(0.3)

    def stop(self):
        """Asks it to end, then makes it."""
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


def ask(port, name, timeout=0.2):
    """One query for an address over UDP: the response code and the number of answers, or nothing."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\x00\x00\x01\x00\x01"
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.settimeout(timeout)
        try:
            udp.connect(("127.0.0.1", port))
            udp.send(query)
            answer = udp.recv(4096)
        except OSError:
            return None
    return answer[3] & 15, int.from_bytes(answer[6:8])


def wait_until_ready(process, port, name, records, patience=60):
    """Asks until it answers with NOERROR, and with records where they are expected; how many queries were answered."""
    end = time.monotonic() + patience
    answered, last = 0, None
    while time.monotonic() < end:
        process.check()
        last = ask(port, name) or last
        if last:
            answered += 1
            if last[0] == 0 and (last[1] > 0 or not records):
                return answered
        time.sleep(0.02)
    raise Failure(f"{process.name} did not answer {name} in {patience} s (last: {last}); it said: {process.last_words()}")
