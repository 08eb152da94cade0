"""Network namespaces: a place to stand in, and the cables between them."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1


def run(*command, feed=None):
    """Runs a command to its end; its output. A failure shows the command and what it said."""
    done = subprocess.run(command, input=feed, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _enter(descriptor):
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Namespace:
    """One network namespace. Sockets keep the namespace that they were made in."""

    def __init__(self, prefix, name):
        self.name = name
        self.full = prefix + name
        run("ip", "netns", "add", self.full)
        self._descriptor = os.open(f"/run/netns/{self.full}", os.O_RDONLY | os.O_CLOEXEC)
        self.ip("link", "set", "lo", "up")
        # No neighbour can be asked for while a link's own address is still being tried for uniqueness.
        self.sysctl("ipv6/conf/default/dad_transmits", "0")

    def ip(self, *arguments):
        """`ip` in this namespace."""
        return run("ip", "-n", self.full, *arguments)

    def addresses(self, interface, *prefixes):
        """Gives an interface its addresses."""
        for prefix in prefixes:
            # Duplicate address detection would hold an IPv6 address back for a second.
            self.ip("address", "add", prefix, "dev", interface, *(["nodad"] if ":" in prefix else []))

    def switch(self):
        """Makes it one, "switch0". What passes through comes by no firewall."""
        for table in ("ip", "ip6", "arp"):
            self.sysctl(f"bridge/bridge-nf-call-{table}tables", "0")
        self.ip("link", "add", "switch0", "type", "bridge")
        self.ip("link", "set", "switch0", "up")

    def forward(self, blocks, four, six):
        """Makes it a router to these blocks, by way of a neighbour of each family."""
        self.sysctl("ipv4/ip_forward", "1")
        self.sysctl("ipv6/conf/all/forwarding", "1")
        for block in blocks:
            self.ip("route", "add", block, "via", six if ":" in block else four)

    def enter(self):
        """Moves the calling thread here, for good."""
        _enter(self._descriptor)

    @contextlib.contextmanager
    def inside(self):
        """Moves the calling thread here for a while."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.enter()
            yield
        finally:
            _enter(home)
            os.close(home)

    def sysctl(self, path, value):
        """Writes /proc/sys/net/PATH where this kernel has it."""
        with self.inside(), contextlib.suppress(FileNotFoundError), open(f"/proc/sys/net/{path}", "w") as file:
            file.write(value)

    def counter(self, name):
        """A counter of /proc/net/netstat's TcpExt, such as TCPSynRetrans."""
        with self.inside(), open("/proc/thread-self/net/netstat") as file:
            rows = [line.split() for line in file if line.startswith("TcpExt:")]
        return int(dict(zip(*rows))[name])

    def start(self, *command, output=subprocess.DEVNULL):
        """Starts a process here. It dies with the lab, however the lab ends."""

        def settle():
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            self.enter()

        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=settle)

    def output(self, *command, timeout=15):
        """Runs a command here to its end; what it printed on stdout and stderr, and its exit code."""
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=timeout, preexec_fn=self.enter)
        return done.stdout, done.returncode

    def remove(self):
        """Removes it; its interfaces go with it."""
        os.close(self._descriptor)
        run("ip", "netns", "delete", self.full)


def cable(left, left_interface, right, right_interface):
    """A veth pair, one end in each namespace, both up."""
    run("ip", "link", "add", left_interface, "netns", left.full,
        "type", "veth", "peer", "name", right_interface, "netns", right.full)
    left.ip("link", "set", left_interface, "up")
    right.ip("link", "set", right_interface, "up")


def sweep(prefix):
    """Removes what labs that were killed left: namespaces PREFIX-PID-* of processes that are no more."""
    for line in run("ip", "netns", "list").splitlines():
        name = line.split()[0] if line else ""
        pid = name.removeprefix(f"{prefix}-").split("-")[0]
        if name.startswith(f"{prefix}-") and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            run("ip", "netns", "delete", name)


class Tap:
    """Every frame that passes one interface from now on."""

    def __init__(self, namespace, interface):
        every_protocol = 0x0003
        with namespace.inside():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every_protocol))
        self._socket.bind((interface, 0))
        self._socket.setblocking(False)

    def carried(self, text):
        """Whether anything that passed since the last call held these bytes, in either case."""
        found = False
        with contextlib.suppress(BlockingIOError):
            while True:
                found |= text in self._socket.recv(65535).lower()
        return found
