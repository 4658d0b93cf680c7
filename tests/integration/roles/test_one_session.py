# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""All tasks of the roles work in one session, which the playbook opens before them and ends after them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests.integration.roles import volumes
from ansible_collections.holdfast.backup.tests.integration.roles.support import (
    BACKUP,
    MIB,
    RESTORE,
    Hosts,
    Run,
    Site,
    contents,
)

pytestmark = pytest.mark.timeout(600)

ACCESS = ["native"]  # VDDK logs in by itself
SESSION = "{{ hostvars.localhost.login.session }}"


def in_one_session(site: Site, playbook: str, hosts: Hosts) -> Run:
    """Run a playbook between a log-in and a log-out, with the session in the variable of its role."""
    role = {BACKUP: "vm_backup", RESTORE: "vm_restore"}.get(playbook, playbook.rpartition(".")[2])
    around: dict[str, Any] = {"hosts": "localhost", "gather_facts": False}
    login = {"name": "Log in", "holdfast.backup.vcenter_session": {"automation": True}, "register": "login"}
    logout = {"name": "Log out", "holdfast.backup.vcenter_session": {"state": "absent", "session": SESSION}}
    plays = [
        {"name": "Log in", **around, "tasks": [login]},
        {"import_playbook": playbook, "vars": {f"{role}_session": SESSION}},
        {"name": "Log out", **around, "tasks": [logout]},
    ]
    path = site.home / f"{role}.yml"
    path.write_text(json.dumps(plays))
    site.lab.requests(reset=True)
    run = site.run(str(path), hosts)
    assert site.lab.requests()["logins"] == 1
    assert site.lab.requests()["http"]["POST /api/session"] == 1
    assert site.lab.sessions() == []
    return run


def test_backup_and_restore(site: Site):
    machines = [site.machine(name, [MIB]) for name in ("one", "other")]
    in_one_session(site, BACKUP, {machine.name: {} for machine in machines})
    for machine in machines:
        [point] = site.points(machine)
        assert contents(point) == machine.contents()
        assert machine.snapshots == []
    run = in_one_session(site, RESTORE, {"one": {"vm_restore_name": "copy"}})
    copy = site.lab.vm(run["one"].result["vm"]["moid"])
    assert site.lab.read(copy["moid"], copy["disks"][0]["key"]) == machines[0].content(0)


def test_backup_and_restore_of_first_class_disks(site: Site):
    disk = volumes.volume(site, "volume", MIB)
    shared = volumes.variables(site)
    in_one_session(site, volumes.BACKUP, {"volume": shared})
    [point] = volumes.points(site, disk)
    assert volumes.content(point) == disk.content()
    run = in_one_session(site, volumes.RESTORE, {"volume": {**shared, "fcd_restore_name": "copy"}})
    assert site.lab.fcd_read(run["volume"].result["fcd"]["id"]) == disk.content()
