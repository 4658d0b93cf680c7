# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A session of our own with the lab: what it costs, how it ends in every case, and when it is renewed."""

from __future__ import annotations

import dataclasses
import time

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    AuthenticationFailed,
    ConnectionFailed,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests.integration.vsphere import methods


def test_a_session_costs_three_requests_and_is_closed(lab, endpoint):
    with Connection(endpoint) as c:
        assert c.is_vcenter
        assert len(lab.sessions()) == 1
    assert methods(lab) == {"RetrieveServiceContent": 1, "Login": 1, "Logout": 1}
    assert lab.sessions() == []


def test_the_session_is_closed_after_an_error(lab, endpoint):
    with pytest.raises(KeyboardInterrupt), Connection(endpoint):
        raise KeyboardInterrupt
    assert lab.sessions() == []


def test_the_session_is_closed_although_the_connection_dropped(lab, endpoint):
    with Connection(endpoint):
        lab.drop_connections()
    assert lab.sessions() == []


def test_a_login_whose_reply_is_lost_leaves_no_session(lab, endpoint, monkeypatch):
    real = Connection._login

    def login(self):
        real(self)
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(Connection, "_login", login)
    with pytest.raises(ConnectionFailed), Connection(endpoint):
        pass
    assert lab.sessions() == []


def test_closing_hides_no_error(lab, endpoint):
    lab.fault(method="Logout", drop=True, count=0)
    with pytest.raises(ZeroDivisionError), Connection(endpoint):
        raise ZeroDivisionError
    assert lab.expire_sessions() == 1  # so no other test meets it


def test_the_server_chooses_the_version(c):
    assert c.stub.version == connection.newest_version(c.about.apiVersion)


def test_an_expired_session_is_renewed_once(lab, c):
    lab.expire_sessions()
    assert c.call(c.content.rootFolder.CreateFolder, f"f{time.monotonic_ns()}")._GetMoId()
    assert lab.requests()["logins"] == 2
    assert methods(lab)["CreateFolder"] == 2


def test_a_session_expires_and_the_connection_drops(lab, c):
    lab.expire_sessions()
    lab.drop_connections()
    assert c.retrieve([c.content.rootFolder], {vim.Folder: ["name"]})
    assert lab.requests()["logins"] == 2


def test_a_read_is_repeated_after_a_drop(lab, c):
    lab.fault(method="RetrievePropertiesEx", drop=True)
    assert c.retrieve([c.content.rootFolder], {vim.Folder: ["name"]})[c.content.rootFolder]["name"]
    lab.fault(method="RetrievePropertiesEx", drop=True, count=2)
    with pytest.raises(ConnectionFailed):
        c.retrieve([c.content.rootFolder], {vim.Folder: ["name"]})


def test_a_call_is_never_repeated_after_a_drop(lab, c):
    lab.fault(method="CreateFolder", drop=True)
    with pytest.raises(ConnectionFailed):
        c.call(c.content.rootFolder.CreateFolder, f"f{time.monotonic_ns()}")
    assert methods(lab)["CreateFolder"] == 1


def test_http_status_of_a_sick_server(lab, c):
    lab.fault(method="CreateFolder", status=503)
    with pytest.raises(ConnectionFailed, match="503"):
        c.call(c.content.rootFolder.CreateFolder, "f")


def test_a_fault_keeps_its_type_and_cause(lab, c):
    lab.fault(method="CreateFolder", fault="DuplicateName", fields={"name": "f"})
    with pytest.raises(VsphereFault, match=r"refused CreateFolder of group-.*DuplicateName") as caught:
        c.call(c.content.rootFolder.CreateFolder, "f")
    assert caught.value.details["fault"] == "DuplicateName"
    assert caught.value.__cause__.name == "f"


def test_a_wrong_password(lab, endpoint):
    wrong = dataclasses.replace(endpoint, password="s3cret")
    with pytest.raises(AuthenticationFailed) as caught, Connection(wrong):
        pass
    assert "s3cret" not in str(caught.value)
    assert lab.sessions() == []


def test_http_shares_the_session(c):
    assert c.soap_cookie().startswith("vmware_soap_session=")
    assert ";" not in c.soap_cookie()
    assert c.http().headers["Cookie"] == c.soap_cookie()
