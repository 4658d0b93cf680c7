# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A session that others use too."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import AuthenticationFailed
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.session import Session
from ansible_collections.holdfast.backup.tests.integration.running import once
from ansible_collections.holdfast.backup.tests.integration.vsphere import begin_snapshot, methods


@pytest.fixture
def shared(c, endpoint):
    """The endpoint with the session of ``c`` and nobody to log in as."""
    given = Session(c.soap_cookie(), server=c.vcenter).encode()
    return dataclasses.replace(endpoint, username=None, password=None, session=given)


def test_a_shared_session_costs_one_request_and_stays(lab, c, shared):
    lab.requests(reset=True)
    with Connection(shared) as other:
        assert other.shared
        assert other.retrieve([other.content.rootFolder], {vim.Folder: ["name"]})
    assert methods(lab) == {"RetrieveServiceContent": 1, "RetrievePropertiesEx": 1}
    assert len(lab.sessions()) == 1


def test_a_wait_in_a_shared_session_leaves_nothing_there(lab, c, vm, shared):
    with Connection(shared) as other:
        task = begin_snapshot(other, vm)
        lab.requests(reset=True)
        assert tasks.wait(other, task, timeout=10)
        used = methods(lab)
    assert used.pop("WaitForUpdatesEx") <= 2
    assert used == {"CreatePropertyCollector": 1, "CreateFilter": 1, "DestroyPropertyCollector": 1}


def test_waits_in_one_session_do_not_meet(lab, c, vm, shared):
    """The session's own property collector serves one wait at a time."""
    others = [lab.create_vm(f"meet{number}-{time.monotonic_ns()}", disks=[]) for number in range(3)]
    lab.fault(task="*createSnapshot*", delay_ms=500, count=0)
    results = []

    def work(machine):
        with Connection(shared) as other:
            results.append(tasks.wait(other, begin_snapshot(other, machine), timeout=10))

    threads = [threading.Thread(target=work, args=(machine,)) for machine in others]
    for thread in threads:
        thread.start()
    assert tasks.wait(c, begin_snapshot(c, vm), timeout=10)
    for thread in threads:
        thread.join()
    lab.clear_faults()
    assert len(set(results)) == 3
    for machine in others:
        lab.destroy_vm(machine["moid"])


def test_a_view_is_destroyed_in_a_shared_session_only(lab, c, shared):
    for session, end in ((c.endpoint, 0), (shared, 1)):
        lab.requests(reset=True)
        with Connection(session) as other, other.view(other.content.rootFolder, [vim.VirtualMachine]):
            pass
        assert methods(lab).get("DestroyView", 0) == end


def test_a_shared_session_that_ended(lab, c, endpoint, shared):
    lab.expire_sessions()
    with pytest.raises(AuthenticationFailed, match=r"has ended, and there is no password.*vcenter_session again"):
        _root_name(shared)
    assert _root_name(dataclasses.replace(shared, username=endpoint.username, password=endpoint.password))
    assert lab.sessions() == []  # the one that replaced it was our own


def test_a_shared_session_that_ends_in_mid_wait(lab, endpoint, vm, monkeypatch):
    monkeypatch.setattr(tasks, "SLICE", 1)
    with Connection(endpoint) as opener:
        given = opener.leave_open().encode()
    lab.fault(task="*createSnapshot*", delay_ms=3000)
    with Connection(dataclasses.replace(endpoint, session=given)) as c:
        task = begin_snapshot(c, vm)
        with once(lambda: "CreateFilter" in methods(lab), lab.expire_sessions):
            assert tasks.wait(c, task, timeout=20)
        assert not c.shared
    assert lab.sessions() == []


def _root_name(endpoint):
    with Connection(endpoint) as c:
        return c.retrieve([c.content.rootFolder], {vim.Folder: ["name"]})[c.content.rootFolder]["name"]


def test_a_session_of_another_vcenter_is_not_shown_to_this_one(lab, c, shared):
    foreign = Session(c.soap_cookie(), server="42a8c1de-0000-4000-8000-000000000001").encode()
    lab.requests(reset=True)
    with (
        pytest.raises(AuthenticationFailed, match="one of another server"),
        Connection(dataclasses.replace(shared, session=foreign)),
    ):
        pass
    asked = lab.requests()
    assert set(asked["methods"]) == {"RetrieveServiceContent"}, asked
    assert set(asked["sessions"]) == {""}, asked  # asked who it is without the session, perhaps twice
