"""Forged packets: what a client sends that no socket would send, and what leaves the gateway of it.

    python3 forged.py      root; prints what left; exit code 1 if something did that must not

A client with raw access to its link tries to reach an address that nobody granted, over IPv4 and IPv6:
- datagrams, fragments, extension headers, every combination of TCP flags, ICMP, tunnels;
- sources of other clients, of nobody, of the gateway;
- replies to connections that never were: a packet that names the far address as its source, sent to the gateway or
  back to a client, makes connection tracking know a flow in which the client's own packets are replies;
- errors and replies that the gateway itself sends to a forged source, with contrib/sources.nft in force.
Then it is cut off from a live connection as the manual says, while the server goes on talking.
"""

import contextlib
import os
import shutil
import socket
import struct
import sys
import threading
import time

import client
import internet
import lab
import network
import packets

ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "contrib", "sources.nft")
# In every packet that must not leave.
TAG = b"forged--"
OWN = {4: ("192.0.2.1", "203.0.113.1"), 6: ("2001:db8:c::1", "2001:db8:f::1")}
NEVER = {4: internet.NEVER4, 6: internet.NEVER6}
OTHER = {4: "198.51.100.67", 6: "2001:db8:5::67"}
NOBODY = {4: "203.0.113.77", 6: "2001:db8:77::1"}


def _number(address):
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _sum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _summed(source, destination, protocol, data, place):
    """A transport packet with its checksum at `place`."""
    pseudo = _number(source) + _number(destination) + struct.pack("!II", len(data), protocol)
    total = _sum((b"" if protocol == ICMP else pseudo) + data) or 0xFFFF
    return data[:place] + struct.pack("!H", total) + data[place + 2:]


def packet(source, destination, protocol, data, fragment=0, identity=1, hops=64):
    """An IP packet; `fragment` is the field of the IPv4 header, in units of 8 bytes, 0x2000 for more."""
    if ":" in source:
        return struct.pack("!IHBB", 6 << 28, len(data), protocol, hops) + _number(source) + _number(destination) + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), identity, fragment, hops, protocol, 0)
    head += _number(source) + _number(destination)
    return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + data


def udp(source, destination, ports, data=TAG):
    """The UDP part of a packet."""
    return _summed(source, destination, UDP, struct.pack("!4H", *ports, 8 + len(data), 0) + data, 6)


def tcp(source, destination, ports, flags, data=TAG):
    """The TCP part of a packet."""
    head = struct.pack("!HHIIBBHHH", *ports, 1000, 1000 if flags & ACK else 0, 5 << 4, flags, 64240, 0, 0)
    return _summed(source, destination, TCP, head + data, 16)


def icmp(source, destination, kind, code=0, data=TAG):
    """The ICMP part of a packet, of the family of its addresses."""
    protocol = ICMP6 if ":" in source else ICMP
    return _summed(source, destination, protocol, struct.pack("!BBHI", kind, code, 0, 1) + data, 2)


class Link:
    """Raw access of one host to its link, and an eye on what reaches the internet."""

    def __init__(self, built, host):
        with built.host("gateway").inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as gateway:
            gateway.bind(("inside0", 0))
            there = gateway.getsockname()[4][:6]
        with built.host(host).inside():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind(("eth0", 0))
        self._head = there + self._socket.getsockname()[4][:6]
        every_protocol = 0x0003
        with built.host("internet").inside():
            self._eye = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every_protocol))
        self._eye.bind(("gateway0", 0))
        self._eye.settimeout(2)
        self._sent = 0

    def send(self, *sent):
        """Sends packets to the gateway."""
        for data in sent:
            self._socket.send(self._head + (b"\x86\xdd" if data[0] >> 4 == 6 else b"\x08\x00") + data)

    def leaves(self, *sent, text=TAG):
        """Whether anything with `text` leaves the gateway after these packets. They are followed by one that does
        leave, so that nobody need guess how long to wait."""
        self._sent += 1
        last = b"the end %d." % self._sent
        source, address = lab.source("checkout1", 4), internet.address("quic.example.com", 4)
        self.send(*sent, packet(source, address, UDP, udp(source, address, (999, 443), last)))
        found = False
        while True:
            # What is granted passes; a timeout here ends the story.
            data = self._eye.recv(65535)
            found |= text in data
            if last in data:
                return found


def oddities(family):
    """Packets to what nobody granted: (what, packets)."""
    me, never, other = lab.source("checkout1", family), NEVER[family], lab.source("checkout2", family)
    api, own = internet.address("api.example.com", family), OWN[family][0]
    plain = udp(me, never, (1, 443), TAG * 4)

    def one(what, source, destination, protocol, data):
        return what, [packet(source, destination, protocol, data)]

    yield one("a datagram", me, never, UDP, plain)
    yield one("another protocol of a granted address", me, api, UDP, udp(me, api, (1, 443)))
    for port in (53, 853, 8853):
        yield one(f"udp/{port} of a granted address", me, api, UDP, udp(me, api, (1, port)))
    for flags in range(FIN | SYN | RST | PSH | ACK | URG):
        yield one(f"TCP flags {flags:#x}", me, never, TCP, tcp(me, never, (2, 443), flags))
    for what, source in (("nobody", NOBODY[family]), ("the gateway", own)):
        yield one(f"from {what}", source, never, UDP, udp(source, never, (3, 443)))
    yield one("from another client, of what was granted to this one", other, api, TCP, tcp(other, api, (3, 443), SYN))
    for protocol in (4, 41, 47, 50, 132, 136, 253):
        yield one(f"protocol {protocol}", me, api, protocol, TAG * 4)
    if family == 4:
        yield one("an echo", me, never, ICMP, icmp(me, never, 8))
        yield one("an echo's reply", me, never, ICMP, icmp(me, never, 0))
        about = packet(never, me, UDP, udp(never, me, (443, 4), b""))
        yield one("an error about nothing", me, never, ICMP, icmp(me, never, 3, 3, about + TAG))
        yield "fragments", [packet(me, never, UDP, plain[:24], 0x2000), packet(me, never, UDP, plain[24:], 3)]
        yield "a last fragment", [packet(me, never, UDP, TAG * 4, 100, 2)]
        begun = tcp(me, never, (5, 443), SYN)
        yield "a TCP header in two", [packet(me, never, TCP, begun[:8], 0x2000, 3), packet(me, never, TCP, begun[8:], 1, 3)]
        return
    for kind in (128, 129, 135, 143):
        yield one(f"ICMPv6 type {kind}", me, never, ICMP6, icmp(me, never, kind))
    for extension, name in ((0, "hop-by-hop options"), (60, "destination options")):
        yield one(name, me, never, extension, bytes([UDP, 0, 1, 4, 0, 0, 0, 0]) + plain)
    dns = udp(me, api, (6, 53))
    yield one("udp/53 of a granted address behind options", me, api, 60, bytes([UDP, 0, 1, 4, 0, 0, 0, 0]) + dns)

    def fragment(offset, more, data, identity):
        return packet(me, never, 44, struct.pack("!BBHI", UDP, 0, offset << 3 | more, identity) + data)

    yield "fragments", [fragment(0, 1, plain[:24], 1), fragment(3, 0, plain[24:], 1)]
    yield "a fragment of one", [fragment(0, 0, plain, 2)]
    yield "a last fragment", [fragment(100, 0, TAG * 4, 3)]
    yield one("no next header", me, never, 59, TAG * 4)
    route = bytes([UDP, 2, 0, 1, 0, 0, 0, 0]) + _number(never)
    yield one("a routing header", me, own, 43, route + udp(me, never, (7, 443)))


def replies(family):
    """Replies to flows that never were: (what, packets)."""
    never = NEVER[family]
    via = [*OWN[family], lab.source("checkout1", family), lab.source("checkout2", family)]
    for number, claimed in enumerate(via):
        for port in (443, 53):
            ports = (port, 2000 + number)
            yield f"a datagram from {claimed} to port {port}, as a reply", [
                packet(never, claimed, UDP, udp(never, claimed, ports, b"seed")),
                packet(claimed, never, UDP, udp(claimed, never, ports[::-1]))]
            yield f"a SYN from {claimed} to port {port}, into one from there", [
                packet(never, claimed, TCP, tcp(never, claimed, ports, SYN, b"")),
                packet(claimed, never, TCP, tcp(claimed, never, ports[::-1], SYN)),
                packet(claimed, never, TCP, tcp(claimed, never, ports[::-1], ACK))]
        error = packet(never, claimed, UDP, udp(never, claimed, (443, 2100 + number), b"seed"))
        kind = (ICMP6, 1, 4) if family == 6 else (ICMP, 3, 3)
        yield f"an error from {claimed}", [
            error, packet(claimed, never, kind[0], icmp(claimed, never, *kind[1:], error + TAG))]


def reflections(family):
    """What makes the gateway speak to a source that is not a client's: (what, packets)."""
    never, other, own = NEVER[family], OTHER[family], OWN[family][0]
    echo = (ICMP6, 128) if family == 6 else (ICMP, 8)
    yield "a refusal to a forged source", [packet(never, other, UDP, udp(never, other, (9, 443)))]
    yield "an echo's reply to a forged source", [packet(never, own, echo[0], icmp(never, own, echo[1]))]
    yield "a closed port, to a forged source", [packet(never, own, UDP, udp(never, own, (9, 9)))]
    last = packet(never, other, UDP, udp(never, other, (9, 443)), hops=1)
    yield "the end of the hops, to a forged source", [last]


def grants(built, family):
    """What the client may: one address over TCP, another over UDP as well."""
    with built.host("checkout1").inside():
        asker = client.Asker(lab.source("checkout1", family), lab.SERVER[family])
    for name in ("api.example.com", "quic.example.com", "live.example.com"):
        reply, _ = asker.ask(name, packets.KIND[family])
        if reply is None or reply.addresses != [internet.address(name, family)]:
            raise RuntimeError(f"{name}: {reply}")


def forge(built, families_of):
    """Sends everything; what left."""
    link, left, tried = Link(built, "checkout1"), [], 0
    for family in (4, 6):
        grants(built, 4)
        grants(built, family)
        me, api = lab.source("checkout1", family), internet.address("api.example.com", family)
        begun = packet(me, api, TCP, tcp(me, api, (8, 443), SYN, b""))
        if not link.leaves(begun, text=struct.pack("!HH", 8, 443) + struct.pack("!I", 1000)):
            raise RuntimeError(f"what is granted does not pass over IPv{family}")
        for what, sent in families_of(family):
            tried += 1
            if link.leaves(*sent):
                left.append(f"IPv{family}: {what}")
    return tried, left


def talker(built, port):
    """A server that never stops talking, on one port of every address."""
    def talk(stream):
        with contextlib.suppress(OSError), stream:
            while True:
                stream.send(b"tick")
                time.sleep(0.2)

    def accept(listening):
        while True:
            threading.Thread(target=talk, args=(listening.accept()[0],), daemon=True).start()

    with built.host("internet").inside():
        listening = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    threading.Thread(target=accept, args=(listening,), daemon=True).start()


def cut(built):
    """Cuts a live connection off as the manual says; what went on all the same."""
    gateway, live = built.host("gateway"), []
    for family in (4, 6):
        source, address = lab.source("checkout1", family), internet.address("live.example.com", family)
        grants(built, family)
        with built.host("checkout1").inside():
            made = client.stream(source, 2.0)
        if client.attempt(made, address, 8080).outcome != "connected" or not made.recv(64):
            raise RuntimeError("no live connection")
        live.append((family, made))
    built.node.amend_policy('names    = ["*.example.com"]', 'names    = ["*.example.net"]')
    built.node.reload()
    end, source, address = time.monotonic() + 5, lab.source("checkout1", 4), internet.address("live.example.com", 4)
    with built.host("checkout1").inside():
        while client.connect(source, address, 8080).outcome != "refused":
            if time.monotonic() > end:
                raise RuntimeError("nothing was revoked")
    went_on = []
    for family, made in live:
        made.settimeout(2)
        try:
            for turn in range(5):
                # Acknowledged as it comes: the next to speak is the server.
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                made.recv(4096)
                if turn == 0:
                    gateway.output("conntrack", "-D", "-f", f"ipv{family}", "--mark", "0x00010000/0x00010000",
                                   "--orig-src", lab.source("checkout1", family))
                elif turn > 1:
                    made.send(b"still here")
            went_on.append(f"IPv{family}: a connection that was cut")
        except OSError:
            pass
    return went_on


def main():
    """Every part; the exit code."""
    if shutil.which("conntrack") is None:
        raise lab.Missing("conntrack not found; apt-get install conntrack")
    left = []
    for name, families_of in (
            ("as configured", lambda family: [*oddities(family), *replies(family)]),
            ("with clients ungated", replies),
            ("with sources held", reflections)):
        with lab.Lab() as built:
            if families_of is replies:
                built.node.amend('inside = ["inside0"]',
                                 'inside = ["inside0"]\nungated = ["192.0.2.0/24", "2001:db8:c::/64"]')
            built.node.amend_policy('names    = ["*.example.com"]',
                                    'names    = ["*.example.com"]\nports    = ["tcp/443", "tcp/8080"]')
            built.node.start()
            # The forger's own kernel would answer what comes back to it.
            built.host("checkout1").output("nft", "add table inet quiet; add chain inet quiet in { type filter hook input "
                                           "priority 0; }; add rule inet quiet in tcp sport { 443, 53 } tcp dport 2000-2100 drop")
            if families_of is reflections:
                with open(SOURCES) as file:
                    network.run("ip", "netns", "exec", built.host("gateway").full, "nft", "-f", "-",
                                feed=file.read().replace("eth1", "inside0"))
            tried, found = forge(built, families_of)
            print(f"{name}: {tried} tried, {len(found)} left the gateway")
            left += [f"{fact} ({name})" for fact in found]
            if name == "as configured":
                talker(built, 8080)
                left += cut(built)
            if not built.node.alive():
                left.append("outgate has ended: " + built.node.diagnostics())
    print("\n".join(left) or "nothing forged left the gateway")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(lab.told(main))
