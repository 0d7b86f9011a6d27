"""Clients that send half an upload and stay, and clients that send 400 MB in chunks. A separate process, as they take long.

python -m tests.workflows.bad_clients PORT COUNT: COUNT of each; prints how many MiB the largest sent, and ends with its input.
"""

import socket
import sys
import threading
from contextlib import closing, suppress

MIB = 2**20


def send_half(port: int, stop: threading.Event) -> None:
    """A client that sends half an upload, and stays."""
    with closing(socket.create_connection(("127.0.0.1", port), 30)) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000))
        stop.wait(60)


def send_huge(port: int, sent: list[int]) -> None:
    """A client that sends 400 MB in chunks, without saying how many there will be."""
    chunk, count = b"100000\r\n" + bytes(MIB) + b"\r\n", 0
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 60)) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        while count < 400:
            client.sendall(chunk)
            count += 1
    sent.append(count)


if __name__ == "__main__":
    port, count = map(int, sys.argv[1:])
    stop, sent = threading.Event(), []
    slow = [threading.Thread(target=send_half, args=(port, stop)) for _ in range(count)]
    huge = [threading.Thread(target=send_huge, args=(port, sent)) for _ in range(count)]
    for thread in (*slow, *huge):
        thread.start()
    for thread in huge:
        thread.join()
    print(max(sent), flush=True)
    sys.stdin.read()
    stop.set()
