#!/usr/bin/env python3
"""Writes what is sent to a TCP port of 127.0.0.1 to files, one per connection: collect.py PORT DIRECTORY.

Where a peer sends its query log; some open a connection per thread.
"""

import itertools
import pathlib
import socket
import sys
import threading


def take(connection, path):
    with connection, open(path, "wb", buffering=0) as file:
        while received := connection.recv(1 << 20):
            file.write(received)


with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as door:
    for number in itertools.count():
        path = pathlib.Path(sys.argv[2]) / f"connection-{number}"
        threading.Thread(target=take, args=(door.accept()[0], path), daemon=True).start()
