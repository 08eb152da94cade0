"""A client: asks, and connects the instant it is told. Works in whatever namespace its thread stands in."""

import concurrent.futures
import dataclasses
import errno
import multiprocessing
import socket
import struct
import threading
import time

import packets

# Of <linux/in.h>: bind chooses no port, connect does; Python 3.11 does not name it.
IP_BIND_ADDRESS_NO_PORT = 24
# Refused by a reset, or by ICMP "administratively prohibited" of either family.
REFUSALS = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM, errno.ENETUNREACH)


def family(address):
    """The family of an address, as sockets have it."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def stream(source, timeout):
    """A TCP socket that will connect from `source`, and that is gone without TIME_WAIT once closed."""
    made = socket.socket(family(source), socket.SOCK_STREAM)
    if family(source) == socket.AF_INET:
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.bind((source, 0))
    made.settimeout(timeout)
    return made


@dataclasses.dataclass
class Attempt:
    """How a connection attempt ended: connected, refused (at once, by a packet) or silent (no answer)."""

    outcome: str
    milliseconds: float
    detail: str = ""

    def __str__(self):
        return f"{self.outcome}{' ' + self.detail if self.detail else ''} after {self.milliseconds:.1f} ms"


def attempt(made, address, port=443):
    """Connects a socket of `stream`; the caller closes it."""
    start = time.monotonic()
    try:
        made.connect((address, port))
        outcome, detail = "connected", ""
    except TimeoutError:
        outcome, detail = "silent", ""
    except OSError as error:
        outcome = "refused" if error.errno in REFUSALS else "failed"
        detail = errno.errorcode.get(error.errno, str(error.errno))
    return Attempt(outcome, (time.monotonic() - start) * 1000, detail)


def connect(source, address, port=443, timeout=2.0):
    """One connection attempt, closed at once."""
    with stream(source, timeout) as made:
        return attempt(made, address, port)


class Asker:
    """A client's UDP socket to its server. Every answer that it ever got is in `told`."""

    def __init__(self, source, server):
        self.source = source
        self.told = []
        self._identity = 0
        self._socket = socket.socket(family(source), socket.SOCK_DGRAM)
        self._socket.bind((source, 0))
        self._socket.connect((server, 53))
        self.port = self._socket.getsockname()[1]

    def ask(self, name, kind, then=lambda message: None, timeout=2.0):
        """One question, once. `then` is handed the message before anybody looks at it; the reply and what
        `then` gave, or (None, None) where no answer came."""
        self._identity = (self._identity + 1) & 0xFFFF
        deadline = time.monotonic() + timeout
        try:
            self._socket.send(packets.query(self._identity, name, kind))
            while True:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                message = self._socket.recv(4096)
                if message[:2] == struct.pack("!H", self._identity):
                    break
        except (TimeoutError, ConnectionRefusedError):
            return None, None
        result = then(message)
        self.told.append((self.source, self.port, self._identity, name))
        return packets.parse(message), result


def end_all():
    """Ends every client that still runs, so that nobody waits for them."""
    for process in multiprocessing.active_children():
        process.kill()


class Crowd:
    """`work(task)` for every task at the same time, a process each, in one namespace."""

    def __init__(self, namespace, work, tasks):
        context = multiprocessing.get_context("fork")
        self._pool = concurrent.futures.ProcessPoolExecutor(len(tasks), context, namespace.enter)
        self._futures = [self._pool.submit(work, task) for task in tasks]

    def done(self):
        """Whether every client has finished."""
        return all(future.done() for future in self._futures)

    def results(self):
        """Waits for every client; what each one gave, in the order of the tasks."""
        try:
            return [future.result() for future in self._futures]
        except BaseException:
            end_all()
            raise
        finally:
            self._pool.shutdown()


def total(counts):
    """The sum of many clients' counts; of what went wrong, all."""
    return {key: sum((count[key] for count in counts), type(counts[0][key])()) for key in counts[0]}


class Download:
    """Bytes that keep coming from a web server of the lab's internet, over TCP or UDP, read by a thread of its own."""

    def __init__(self, namespace, source, address, kind, port=443):
        with namespace.inside():
            made = stream(source, 2.0) if kind == socket.SOCK_STREAM else socket.socket(family(source), kind)
        if kind == socket.SOCK_DGRAM:
            made.bind((source, 0))
        made.settimeout(2.0)
        made.connect((address, port))
        made.send(b"pour")
        made.settimeout(0.1)
        self._socket = made
        self._last = 0.0
        self._over = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        while not self._over:
            try:
                if not self._socket.recv(65536):
                    return
                self._last = time.monotonic()
            except TimeoutError:
                pass
            except OSError:
                return

    def flows(self, seconds=2.0):
        """Whether bytes come from now on."""
        start = time.monotonic()
        while self._last <= start and time.monotonic() - start < seconds:
            time.sleep(0.01)
        return self._last > start

    def silent(self, seconds):
        """Waits until nothing has come for so long, 5 s at most; when the last byte came."""
        end = time.monotonic() + 5
        while time.monotonic() - self._last < seconds and time.monotonic() < end:
            time.sleep(0.01)
        return self._last

    def refused(self, seconds=2.0):
        """Whether who sends is told that it does not arrive."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self._socket.send(b"more")
                time.sleep(0.02)
            except OSError as error:
                return error.errno in (*REFUSALS, errno.ECONNRESET, errno.EPIPE)
        return False

    def close(self):
        """Ends it."""
        self._over = True
        self._socket.close()
