"""Web servers for a whole internet: TCP and UDP echo on ports 80 and 443 of every local address.

A program of its own; the lab starts it in the internet's namespace. A TCP client is greeted with one line,
the address that it reached, and then gets back whatever it sends. Who sends "pour" gets a kilobyte every 10 ms, for a
minute. Who sends "give N" gets N bytes and the end of the connection; a line of the output says which address gave them.
"""

import selectors
import socket
import threading
import time

PORTS = [80, 443]
POUR, PIECE, EVERY, TIMES = b"pour", bytes(1024), 0.01, 6000
GIVE = b"give "
# Of <linux/in.h> and <linux/in6.h>; Python 3.11 does not name the first.
IP_PKTINFO = 8


def listener(family, kind, port):
    """A socket of one family on every address; a datagram socket learns which address was asked."""
    bound = socket.socket(family, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    bound.bind(("", port))
    bound.setblocking(False)
    if kind == socket.SOCK_STREAM:
        bound.listen(4096)
    elif family == socket.AF_INET:
        bound.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    return bound


def give(stream, size):
    """Sends so many bytes and closes."""
    with stream:
        try:
            stream.setblocking(True)
            stream.sendall(bytes(size))
            print("gave", stream.getsockname()[0], size, flush=True)
        except OSError:
            pass


def main():
    """Serves until killed."""
    ready = selectors.DefaultSelector()
    # What sends a piece: how often still.
    pouring = {}

    def accept(bound):
        for _ in range(64):
            try:
                stream, _ = bound.accept()
            except BlockingIOError:
                return
            except OSError:
                continue
            stream.setblocking(False)
            try:
                stream.send(f"{stream.getsockname()[0]}\n".encode())
            except OSError:
                stream.close()
                continue
            ready.register(stream, selectors.EVENT_READ, echo)

    def echo(stream):
        try:
            data = stream.recv(4096)
            if data.startswith(GIVE):
                ready.unregister(stream)
                threading.Thread(target=give, args=(stream, int(data[len(GIVE):])), daemon=True).start()
                return
            if data == POUR:
                pouring[lambda: stream.send(PIECE)] = TIMES
            elif data:
                stream.send(data)
            if data:
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        ready.unregister(stream)
        stream.close()

    def reflect(bound):
        try:
            data, ancillary, _, peer = bound.recvmsg(4096, 256)
            # The reply leaves from the address that was asked: the same control message, sent back.
            bound.sendmsg([data], ancillary, 0, peer)
            if data == POUR:
                pouring[lambda: bound.sendmsg([PIECE], ancillary, 0, peer)] = TIMES
        except OSError:
            pass

    def pour():
        for send, times in list(pouring.items()):
            try:
                send()
            except BlockingIOError:
                pass
            except OSError:
                times = 0
            if times:
                pouring[send] = times - 1
            else:
                del pouring[send]

    for port in PORTS:
        for family in (socket.AF_INET, socket.AF_INET6):
            ready.register(listener(family, socket.SOCK_STREAM, port), selectors.EVENT_READ, accept)
            ready.register(listener(family, socket.SOCK_DGRAM, port), selectors.EVENT_READ, reflect)
    next_piece = 0.0
    while True:
        for key, _ in ready.select(EVERY if pouring else None):
            key.data(key.fileobj)
        if pouring and time.monotonic() >= next_piece:
            next_piece = time.monotonic() + EVERY
            pour()


if __name__ == "__main__":
    main()
