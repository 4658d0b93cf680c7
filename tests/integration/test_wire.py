# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way to the server: certificates, proxies, and what answers that is no vCenter."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import threading
import time

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import CertificateRejected, ConnectionFailed
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection


def test_an_untrusted_certificate(endpoint):
    with (
        pytest.raises(CertificateRejected, match=r"is not trusted.*ca_path"),
        Connection(dataclasses.replace(endpoint, ca_path=None)),
    ):
        pass


def test_a_certificate_for_another_name(endpoint, monkeypatch):
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args: real(endpoint.hostname, *args))
    with (
        pytest.raises(CertificateRejected, match="Hostname mismatch"),
        Connection(dataclasses.replace(endpoint, hostname="vc.example.com")),
    ):
        pass


def test_an_unchecked_certificate(lab, endpoint):
    with Connection(dataclasses.replace(endpoint, ca_path=None, validate_certs=False)) as c:
        assert c.thumbprint() == lab.thumbprint


def test_the_thumbprint_is_that_of_the_checked_certificate(lab, c):
    assert c.thumbprint() == lab.thumbprint


def test_the_environment_has_no_say(lab, endpoint, monkeypatch):
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    with Connection(endpoint) as c:
        assert c.http().get(f"{lab.url.rsplit('/', 1)[0]}/sdk/vimServiceVersions.xml", timeout=10).ok


@contextlib.contextmanager
def listening(answer):
    """A server that hands each connection to ``answer``; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    peer, _address = server.accept()
                    threading.Thread(target=answer, args=(peer,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_a_proxy(endpoint):
    asked = []

    def relay(peer):
        request = peer.recv(4096).decode()
        asked.append(request.splitlines()[0])
        upstream = socket.create_connection((endpoint.hostname, endpoint.port))
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for source, sink in ((peer, upstream), (upstream, peer)):
            threading.Thread(target=pump, args=(source, sink), daemon=True).start()

    def pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    with listening(relay) as port:
        proxied = dataclasses.replace(endpoint, proxy_host="127.0.0.1", proxy_port=port)
        with Connection(proxied) as c:
            assert c.about.apiType == "VirtualCenter"
    assert asked[0].startswith(f"CONNECT {endpoint.address} ")


def test_a_proxy_that_refuses(endpoint):
    def refuse(peer):
        peer.recv(4096)
        peer.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        peer.close()

    with listening(refuse) as port:
        proxied = dataclasses.replace(endpoint, proxy_host="127.0.0.1", proxy_port=port)
        with pytest.raises(ConnectionFailed, match=r"by the proxy 127\.0\.0\.1.*403"), Connection(proxied):
            pass


def test_nobody_listens(endpoint):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        pytest.raises(ConnectionFailed, match="connection refused"),
        Connection(dataclasses.replace(endpoint, port=port)),
    ):
        pass


def test_a_port_that_speaks_no_tls(endpoint):
    with (
        listening(lambda peer: (peer.recv(1), peer.sendall(b"220 hello\r\n" * 9))) as port,
        pytest.raises(ConnectionFailed, match="TLS failed"),
        Connection(dataclasses.replace(endpoint, port=port)),
    ):
        pass


def test_a_web_server_that_is_no_vcenter(lab, endpoint, monkeypatch):
    monkeypatch.setattr(Connection, "_make_stub", _elsewhere(Connection._make_stub))
    with pytest.raises(ConnectionFailed), Connection(endpoint):
        pass


def _elsewhere(make):
    def made(self, *args):
        stub = make(self, *args)
        stub.path = "/nothing/here"
        return stub

    return made


def test_a_server_that_never_answers(endpoint, monkeypatch):
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.2)
    with (
        listening(lambda peer: time.sleep(5)) as port,
        pytest.raises(ConnectionFailed, match="no answer in time"),
        Connection(dataclasses.replace(endpoint, port=port)),
    ):
        pass


def test_a_call_that_takes_too_long(lab, endpoint, monkeypatch):
    with Connection(endpoint) as c:
        lab.fault(method="CreateFolder", delay_ms=1000)
        with monkeypatch.context() as impatient:
            impatient.setattr(connection, "READ_TIMEOUT", 0.3)
            c.stub.DropConnections()  # the next one is impatient
            with pytest.raises(ConnectionFailed, match="no answer in time"):
                c.call(c.content.rootFolder.CreateFolder, f"f{time.monotonic_ns()}")
    assert lab.sessions() == []


def test_the_context_is_the_endpoints_own(endpoint):
    assert endpoint.ssl_context().verify_mode is ssl.CERT_REQUIRED
