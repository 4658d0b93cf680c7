# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The limit of the loopback: bytes from one Python process to another, or to a program in C, through TCP or TLS.

``loopback.py plain|tls <bytes> <directory> [program]`` prints seconds, and processor seconds of who sends and of who
receives; the directory gets a certificate. The program is ``socat`` for TCP, ``openssl`` for TLS.
"""

from __future__ import annotations

import multiprocessing
import resource
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

PIECE = 1 << 20


def _send(listener: socket.socket, total: int, certificate: Path | None) -> None:
    connection, _address = listener.accept()
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        connection = context.wrap_socket(connection, server_side=True)
    piece = bytes(PIECE)
    for _piece in range(total // PIECE):
        connection.sendall(piece)
    connection.close()


def _receiver(program: str, port: int) -> list[str]:
    """The command that takes all bytes and does nothing with them."""
    if program == "socat":
        return ["socat", "-u", "-b", str(PIECE), f"TCP4:127.0.0.1:{port}", "OPEN:/dev/null,wronly"]
    return ["openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{port}"]


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Send and receive."""
    kind, total, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    certificate = directory / "loopback.pem" if kind == "tls" else None
    if certificate and not certificate.exists():
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=loopback"]
        subprocess.run([*make, "-keyout", certificate, "-out", directory / "c.pem"], check=True, capture_output=True)
        with certificate.open("a") as stream:
            stream.write((directory / "c.pem").read_text())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = multiprocessing.get_context("fork").Process(target=_send, args=(listener, total, certificate))
        before = _cpu(resource.RUSAGE_CHILDREN)
        sender.start()
        if sys.argv[4:]:
            began = time.monotonic()
            command = _receiver(sys.argv[4], listener.getsockname()[1])
            # Its status tells only that the sender hung up; the sender's tells whether it got rid of all.
            nothing = subprocess.DEVNULL
            subprocess.run(command, stdin=nothing, stdout=nothing, stderr=nothing, check=False)
            seconds, received = time.monotonic() - began, _cpu(resource.RUSAGE_CHILDREN) - before
            sender.join()
            print(seconds, _cpu(resource.RUSAGE_CHILDREN) - before - received, received)
            sys.exit(sender.exitcode)
        connection = socket.create_connection(listener.getsockname())
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(connection)
        buffer, got, began, used = memoryview(bytearray(PIECE)), 0, time.monotonic(), _cpu(resource.RUSAGE_SELF)
        while got < total:
            if certificate:
                got += connection.recv_into(buffer)
            else:
                got += connection.recv_into(buffer, PIECE, socket.MSG_WAITALL)
        seconds, received = time.monotonic() - began, _cpu(resource.RUSAGE_SELF) - used
        sender.join()
        print(seconds, _cpu(resource.RUSAGE_CHILDREN) - before, received)


if __name__ == "__main__":
    main()
