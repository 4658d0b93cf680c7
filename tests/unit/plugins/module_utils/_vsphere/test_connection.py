# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The parts of the connection that need no server."""

from __future__ import annotations

import http.client
import socket
import ssl

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import ConnectionFailed, InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from pyVmomi import VmomiSupport, vim, vmodl

ENDPOINT = Endpoint("vc.example.com", "backup@vsphere.local", "s3cret")


def test_the_password_is_in_no_representation():
    assert "s3cret" not in repr(ENDPOINT) + str(ENDPOINT)
    assert "s3cret" not in repr(vars(Connection(ENDPOINT)))


def test_an_address_is_good_for_a_url():
    assert ENDPOINT.address == "vc.example.com:443"
    assert Endpoint("2001:db8::7", "u", "p", 8443).address == "[2001:db8::7]:8443"


@pytest.mark.parametrize(
    ("server", "chosen"),
    [
        ("6.7", "6.7"),
        ("6.7.3", "6.7.3"),
        ("7.0", "7.0.0.0"),
        ("7.0.3.0", "7.0.3.0"),
        ("8.0.0.1", "8.0.0.1"),
        ("8.0.3.0", "8.0.3.0"),
        ("8.0.3.99", "8.0.3.1"),
        ("9.0.0.0", "9.0.0.0"),
    ],
)
def test_the_newest_version_that_both_know(server, chosen):
    assert VmomiSupport.versionIdMap[connection.newest_version(server)] == chosen


def test_a_server_from_the_future_gets_the_newest_known():
    newest = connection.newest_version("99.0")
    assert connection.newest_version("99.1.2.3") == newest
    assert VmomiSupport.IsChildVersion(newest, connection.newest_version("9.0.0.0"))


def test_a_server_from_the_past_is_refused():
    with pytest.raises(ConnectionFailed, match=r"version 1\.0"):
        connection.newest_version("1.0")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "cannot be resolved"),
        (socket.timeout("timed out"), "no answer in time"),
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "TLS failed"),
        (http.client.RemoteDisconnected("closed without response"), "closed without response"),
        (http.client.HTTPException("503 Service Unavailable"), "503 Service Unavailable"),
        (OSError(113, "No route to host"), "No route to host"),
    ],
)
def test_what_went_wrong_on_the_wire_is_told_with_a_next_step(error, words):
    told = connection.broken_wire(error, ENDPOINT)
    assert isinstance(told, ConnectionFailed)
    assert "vc.example.com:443" in told.message
    assert words in told.message
    assert told.next_step


def test_a_missing_privilege_is_named():
    fault = vim.fault.NoPermission(object=vim.Folder("group-v3"), privilegeId="VirtualMachine.State.CreateSnapshot")
    told = connection._from_fault(fault, ENDPOINT, "CreateFolder of group-v3")
    assert told.message == ("backup@vsphere.local lacks the privilege VirtualMachine.State.CreateSnapshot on group-v3.")
    assert told.details == {"fault": "NoPermission", "privilege": "VirtualMachine.State.CreateSnapshot"}


def test_a_fault_is_told_in_the_servers_words_once():
    fault = vim.fault.FileFault(file="[ds] a", msg="Error caused by file.")
    fault.faultMessage = [
        vmodl.LocalizableMessage(key="k", message="Error caused by file."),
        vmodl.LocalizableMessage(key="l", message="The disk is locked"),
    ]
    assert connection.fault_text(fault) == "Error caused by file; The disk is locked"
    assert connection.fault_text(vim.fault.FileFault(file="x")) == "FileFault"


def test_certificates_are_checked_unless_said_otherwise():
    assert ENDPOINT.ssl_context().verify_mode is ssl.CERT_REQUIRED
    assert ENDPOINT.ssl_context().check_hostname
    trusting = Endpoint("h", "u", "p", validate_certs=False).ssl_context()
    assert trusting.verify_mode is ssl.CERT_NONE


def test_a_ca_path_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"missing\.pem"):
        Endpoint("h", "u", "p", ca_path=str(tmp_path / "missing.pem")).ssl_context()
    (tmp_path / "not.pem").write_text("no certificate", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"not\.pem"):
        Endpoint("h", "u", "p", ca_path=str(tmp_path / "not.pem")).ssl_context()


def test_http_takes_certificates_and_proxy_from_the_options_alone(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/elsewhere.pem")
    monkeypatch.setenv("HTTPS_PROXY", "http://elsewhere:1")
    session = Endpoint("h", "u", "p", ca_path="/ca.pem", proxy_host="proxy", proxy_port=3128).http_session()
    settings = session.merge_environment_settings("https://h/folder", {}, None, None, None)
    assert settings["verify"] == "/ca.pem"
    assert settings["proxies"] == {"https": "http://proxy:3128"}
    unchecked = Endpoint("h", "u", "p", validate_certs=False, ca_path="/ca.pem").http_session()
    assert unchecked.merge_environment_settings("https://h/folder", {}, None, None, None)["verify"] is False
