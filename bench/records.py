"""Query logs: where a system leaves its records, who collects them, and how many there are."""

import dataclasses
import mmap
import pathlib
import sys

import machine


@dataclasses.dataclass(frozen=True)
class Lines:
    """Lines of text in files that the system writes itself."""

    files: tuple
    # What every line of a query holds and no other line.
    mark: bytes

    def collector(self, directory):
        """What the log is sent to and the command that takes it: nothing."""
        return None, None

    def count(self, directory):
        """Records, and their average length."""
        count = length = 0
        for pattern in self.files:
            for file in directory.glob(pattern):
                with open(file, "rb") as lines:
                    for line in lines:
                        if self.mark in line:
                            count += 1
                            length += len(line)
        return count, length / max(count, 1)


def framed(files, width):
    """Counts frames with their length before them in `width` octets, network order, and measures them."""
    count = length = 0
    for file in files:
        if file.stat().st_size == 0:
            continue
        at = 0
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as data:
            while at + width <= len(data):
                size = int.from_bytes(data[at:at + width])
                at += width
                if size == 0:
                    # Frame Streams: a control frame, whose own length follows.
                    at += width + int.from_bytes(data[at:at + width])
                else:
                    count, length, at = count + 1, length + size, at + size
    return count, length / max(count, 1)


class Frames:
    """dnstap over a unix socket, collected by fstrm_capture."""

    command = "fstrm_capture"

    def collector(self, directory):
        path = directory / "dnstap.sock"
        return path, ["fstrm_capture", "-t", "protobuf:dnstap.Dnstap", "-u", path, "-w", directory / "dnstap.log"]

    def count(self, directory):
        # One message for the query, one for the response.
        count, length = framed([directory / "dnstap.log"], 4)
        return count // 2, length * 2


class Protobuf:
    """PowerDNS's messages over TCP, collected by collect.py."""

    def collector(self, directory):
        port = machine.free_port()
        script = pathlib.Path(__file__).with_name("collect.py")
        return port, [sys.executable, script, str(port), directory]

    def count(self, directory):
        return framed(directory.glob("connection-*"), 2)


Log = Lines | Frames | Protobuf
