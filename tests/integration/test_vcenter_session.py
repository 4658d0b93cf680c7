# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vcenter_session, and modules in a session that was given, against the lab."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import AuthenticationFailed, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import sso
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.automation import Automation
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.session import Session
from ansible_collections.holdfast.backup.tests import modules


@pytest.fixture
def args(lab):
    return lab.module_args()


@pytest.fixture
def nobody(args):
    """The server, and no user."""
    return {name: value for name, value in args.items() if name not in ("username", "password")}


def open_session(args, **options):
    return modules.run("vcenter_session", {**args, **options})


def end(nobody, session):
    return modules.run("vcenter_session", {**nobody, "session": session, "state": "absent"})


@pytest.mark.parametrize("check", [False, True])
def test_a_session_is_opened_kept_and_ended(lab, args, nobody, check):
    opened = modules.run("vcenter_session", args, check=check)
    session = opened.pop("session")
    vcenter = opened.pop("vcenter")
    opened.pop("invocation", None)
    assert opened == {"changed": False, "outcome": "opened", "user": lab.username}
    assert (vcenter["hostname"], vcenter["port"], vcenter["version"]) == (lab.hostname, lab.port, "8.0.3")
    (there,) = lab.sessions()
    assert there["key"] in Session.parse(session).soap

    kept = modules.run("vcenter_session", {**args, "session": session}, check=check)
    assert (kept["outcome"], kept["changed"], kept["user"]) == ("kept", False, lab.username)
    assert Session.parse(kept["session"]) == Session.parse(session)
    assert len(lab.sessions()) == 1
    assert lab.requests()["logins"] == 1

    ended = modules.run("vcenter_session", {**nobody, "session": kept["session"], "state": "absent"}, check=check)
    assert (ended["outcome"], ended["session"], ended["user"]) == ("ended", None, lab.username)
    assert lab.sessions() == []
    again = end(nobody, session)
    assert (again["outcome"], again["session"], again["user"]) == ("none", None, None)


def test_many_tasks_log_in_once(lab, args, nobody):
    vm = lab.create_vm(f"once-{time.monotonic_ns()}", disks=[1 << 20])
    session = open_session(args)["session"]
    given = {**nobody, "session": session, "moid": vm["moid"]}
    modules.run("vm_snapshot", {**given, "snapshot_name": "a"})
    modules.run("vm_snapshot", {**given, "snapshot_name": "a", "new_snapshot_name": "b"})
    assert [one["name"] for one in modules.run("vm_snapshot_info", given)["snapshots"]] == ["b"]
    assert modules.run("vm_snapshot_info", {**nobody, "session": session})["virtual_machines"]
    modules.run("vm_snapshot", {**given, "snapshot_name": "b", "state": "absent"})
    assert modules.run("vm_snapshot_info", {**nobody, "session": session, "name": vm["name"]})["snapshots"] == []
    used = lab.requests()["methods"]
    # What was made in it is gone.
    assert used["CreateContainerView"] == used["DestroyView"]
    assert used["CreatePropertyCollector"] == used["DestroyPropertyCollector"]
    assert used.get("CreateCollectorForTasks") == used.get("DestroyCollector")
    assert lab.requests()["logins"] == 1
    assert len(lab.sessions()) == 1
    assert end(nobody, session)["outcome"] == "ended"
    assert lab.sessions() == []
    lab.destroy_vm(vm["moid"])


def test_a_session_that_ended_is_opened_anew(lab, args, nobody):
    session = open_session(args)["session"]
    lab.expire_sessions()
    failed = modules.run("vcenter_session", {**nobody, "session": session, "private_key": "k"}, fail=True)
    assert "has ended, and there is no password" in failed["msg"]
    renewed = open_session(args, session=session)
    assert renewed["outcome"] == "opened"
    assert len(lab.sessions()) == 1
    end(nobody, renewed["session"])


def test_what_cannot_be_a_session(lab, args, nobody):
    failed = modules.run("vcenter_session", {**args, "session": "s3cret nonsense"}, fail=True)
    assert failed["error_type"] == "InvalidInput"
    assert "s3cret" not in str(failed)
    assert "state is absent but" in modules.run("vcenter_session", {**args, "state": "absent"}, fail=True)["msg"]
    foreign = Session("vmware_soap_session=x", server="42a8c1de-0000-4000-8000-000000000001").encode()
    failed = modules.run("vcenter_session", {**nobody, "session": foreign, "state": "absent"}, fail=True)
    assert "one of another server" in failed["msg"]
    assert lab.sessions() == []


def test_a_wrong_password_leaves_nothing(lab, args):
    failed = modules.run("vcenter_session", {**args, "password": "wrong-1"}, fail=True)
    assert failed["error_type"] == "AuthenticationFailed"
    assert "wrong-1" not in str(failed)
    assert lab.sessions() == []


# what needs more than the VIM API in its own session


@pytest.fixture
def session(args, nobody):
    """Options of somebody who has a session and nothing else."""
    given = {**nobody, "session": open_session(args)["session"]}
    yield given
    assert end(nobody, given["session"])["outcome"] == "ended"


def test_disks_are_copied_natively_in_a_session(lab, session, tmp_path):
    vm = lab.create_vm(f"native-{time.monotonic_ns()}", disks=[1 << 20], tracking=True, power="poweredOn")
    key = vm["disks"][0]["key"]
    lab.write(vm["moid"], key, 0, b"content")
    args = {**session, "moid": vm["moid"]}
    taken = modules.run("vm_snapshot", {**args, "snapshot_name": "s", "stamp": {"job": "session"}})["snapshot"]["moid"]
    copy = {**args, "snapshot": taken, "disks": [{"disk": key}], "image_dir": str(tmp_path)}
    copy["vddk_libdir"] = lab.vddk_libdir
    refused = modules.run("vddk_copy", {**copy, "access": "vddk"}, fail=True)
    assert refused["error_type"] == "InvalidInput"
    assert "VDDK logs in by itself" in refused["msg"]
    assert list(tmp_path.iterdir()) == []
    assert modules.run("vddk_copy", {**copy, "access": "native"})["disks"][0]["access"] == "native"
    user = {"username": lab.username, "password": lab.password}
    # Its own log-in in the middle of the copy leaves ours alone.
    (tmp_path / "vddk").mkdir()
    assert modules.run("vddk_copy", {**copy, **user, "access": "vddk", "image_dir": str(tmp_path / "vddk")})["changed"]
    assert len(lab.sessions()) == 1
    lab.destroy_vm(vm["moid"])


def test_a_cancelled_task_leaves_the_session_as_it_was(lab, session):
    vm = lab.create_vm(f"cancelled-{time.monotonic_ns()}", disks=[1 << 20])
    lab.fault(task="*createSnapshot*", delay_ms=2000)

    def cancel():
        while "WaitForUpdatesEx" not in lab.requests()["methods"]:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    cancelling = threading.Thread(target=cancel, daemon=True)
    cancelling.start()
    before = signal.getsignal(signal.SIGTERM)
    try:
        args = {**session, "moid": vm["moid"], "snapshot_name": "s"}
        assert "asked to stop" in modules.run("vm_snapshot", args, fail=True)["msg"]
    finally:
        signal.signal(signal.SIGTERM, before)
        cancelling.join()
    used = lab.requests()["methods"]
    assert used["CreatePropertyCollector"] == used["DestroyPropertyCollector"] >= 1
    assert (used.get("Logout"), len(lab.sessions())) == (None, 1)
    lab.destroy_vm(vm["moid"])


def test_the_storage_lifecycle_service_in_a_session(lab, session):
    disk = lab.create_fcd("in-session", 1 << 20)
    found = modules.run("fcd_info", {**session, "id": disk["id"], "api": "vslm"})
    assert "in-session" in str(found)
    lab.destroy_fcd(disk["id"])


def test_vi_json_has_sessions_of_its_own(lab, session):
    vm = lab.create_vm(f"vi-{time.monotonic_ns()}", disks=[1 << 20], tracking=True)
    args = {**session, "moid": vm["moid"]}
    taken = modules.run("vm_snapshot", {**args, "snapshot_name": "s", "stamp": {"job": "vi"}})["snapshot"]["moid"]
    refused = modules.run("disk_changed_areas", {**args, "snapshot": taken, "api": "vi_json"}, fail=True)
    assert "VI JSON has sessions of its own" in refused["msg"]
    lab.destroy_vm(vm["moid"])


# with the Automation API


def test_a_session_of_the_automation_api_goes_with_it(lab, args, nobody):
    session = open_session(args, automation=True)["session"]
    with Connection(Endpoint(**nobody, session=session)) as c, Automation(c) as api:
        assert isinstance(api.get("/cis/tagging/category"), list)
    kept = open_session(args, automation=True, session=session)
    assert kept["outcome"] == "kept"
    assert Session.parse(kept["session"]) == Session.parse(session)
    assert end(nobody, session)["outcome"] == "ended"
    renewed = open_session(args, automation=True, session=session)
    assert renewed["outcome"] == "opened"
    assert Session.parse(renewed["session"]).rest != Session.parse(session).rest
    end(nobody, renewed["session"])
    assert lab.sessions() == []


def test_a_session_gets_one_of_the_automation_api_later(lab, args, nobody):
    plain = open_session(args)["session"]
    with (
        Connection(Endpoint(**nobody, session=plain)) as c,
        pytest.raises(AuthenticationFailed, match="automation: true"),
        Automation(c),
    ):
        pass
    more = open_session(args, automation=True, session=plain)
    assert Session.parse(more["session"]).soap == Session.parse(plain).soap
    assert Session.parse(more["session"]).rest
    end(nobody, more["session"])
    assert lab.sessions() == []


def test_the_automation_api_without_a_session(lab, args):
    with Connection(Endpoint(**args)) as c, Automation(c) as api:
        category = api.post(
            "/cis/tagging/category", name="tier", description="", cardinality="SINGLE", associable_types=[]
        )
        assert api.get(f"/cis/tagging/category/{category}")["name"] == "tier"
        with pytest.raises(NotFound) as caught:
            api.get(f"/cis/tagging/category/{category}0")
    http = lab.requests()["http"]
    assert (http["POST /api/session"], http["DELETE /api/session"]) == (1, 1)
    assert caught.value.next_step


def test_the_automation_api_by_a_token(lab, args, nobody):
    token = lab.saml_token()
    session = open_session(nobody, token=token, automation=True)["session"]
    with Connection(Endpoint(**nobody, session=session)) as c, Automation(c) as api:
        assert isinstance(api.get("/cis/tagging/category"), list)
    end(nobody, session)
    with (
        Connection(Endpoint(**args)) as c,
        pytest.raises(AuthenticationFailed),
        Automation(c, lambda: sso.authorization(token.replace("vsphere.local", "example.com"))),
    ):
        pass
    key = {"token": token, "private_key": "k", "automation": True}
    assert "holder of a key" in modules.run("vcenter_session", {**nobody, **key}, fail=True)["msg"]
