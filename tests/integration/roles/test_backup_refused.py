# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Backups that cannot be: each host of one run of the playbook is one bad day, then one run in which all is well."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import find_vm
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.tasks import wait
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.roles.support import (
    BACKUP,
    MIB,
    Machine,
    Run,
    Site,
    contents,
    mounted,
)
from ansible_collections.holdfast.backup.tests.lab.client import Lab

pytestmark = pytest.mark.timeout(600)


@dataclass
class BadDays:
    """What the bad days share: ``web`` is the VM of all those that never come to a snapshot."""

    site: Site
    crooked: Lab
    web: Machine
    stack: ExitStack
    machines: list[Machine] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)  # moids of the VMs in the crooked lab

    def machine(self, name: str, disks: list[Any], **spec: Any) -> Machine:
        self.machines.append(self.site.machine(name, disks, **spec))
        return self.machines[-1]

    def directory(self, name: str) -> Path:
        made = self.site.home / name
        made.mkdir()
        return made

    def of_web(self, **variables: Any) -> dict[str, Any]:
        return {"vm_backup_name": "web", **{f"vm_backup_{name}": value for name, value in variables.items()}}


def unknown_vm(days: BadDays) -> dict[str, Any]:
    return {"vm_backup_name": "nobody"}


def two_of_a_name(days: BadDays) -> dict[str, Any]:
    for folder in ("left", "right"):
        days.machine("twin", [MIB], folder=folder)
    return {"vm_backup_name": "twin"}


def wrong_password(days: BadDays) -> dict[str, Any]:
    return days.of_web(password="guessed")


def untrusted_certificate(days: BadDays) -> dict[str, Any]:
    return days.of_web(ca_path=days.crooked.ca_file)


def strict(days: BadDays) -> dict[str, Any]:
    return days.of_web(strict=True)


def nothing_to_copy(days: BadDays) -> dict[str, Any]:
    return days.of_web(exclude_disks=["Hard disk 1"])


def incremental_without_earlier(days: BadDays) -> dict[str, Any]:
    return days.of_web(mode="incremental")


def repository_absent(days: BadDays) -> dict[str, Any]:
    return days.of_web(repository=str(days.site.home / "absent"))


def repository_of_newer_format(days: BadDays) -> dict[str, Any]:
    repository = days.directory("newer")
    about = {"format": "holdfast.repository", "version": 99, "id": "0" * 32, "created": "2040-01-01T00:00:00Z"}
    (repository / "repository.json").write_text(json.dumps(about))
    return days.of_web(repository=str(repository))


def repository_read_only(days: BadDays) -> dict[str, Any]:
    repository = days.directory("read-only")
    somebody = {"name": "a", "moid": "vm-1", "instance_uuid": str(uuid.uuid4())}
    begin = {"repository": str(repository), "vm": somebody, "disks": []}
    begun = modules.run("restore_point", begin)["restore_point"]
    modules.run("restore_point", {**begin, "state": "aborted", "id": begun["id"], "run": begun["run"]})
    if os.geteuid() == 0:
        days.stack.enter_context(mounted(repository, "--bind", str(repository)))
        subprocess.run(["mount", "-o", "remount,bind,ro", repository], check=True)
    else:
        repository.chmod(0o500)
    return days.of_web(repository=str(repository))


def locked(days: BadDays) -> dict[str, Any]:
    """By a run that is not known to be dead."""
    repository = days.directory("locked")
    vm = {"name": "web", "moid": days.web.moid, "instance_uuid": days.web.uuid}
    modules.run("restore_point", {"repository": str(repository), "vm": vm, "disks": [], "run": "another"})
    return days.of_web(repository=str(repository), lock_timeout=1)


def shared_disk(days: BadDays) -> dict[str, Any]:
    days.machine("cluster", [MIB, {"size": MIB, "sharing": "sharingMultiWriter"}])
    return {}


def snapshot_limit(days: BadDays) -> dict[str, Any]:
    deep = days.machine("deep", [MIB])
    with Connection(Endpoint(**days.site.lab.module_args())) as c:
        vm, _properties = find_vm(c, moid=deep.moid)
        for level in range(32):
            wait(c, c.call(vm.CreateSnapshot_Task, f"level {level}", "", False, False), timeout=300)
    return {}


def template(days: BadDays) -> dict[str, Any]:
    days.machine("golden", [MIB], template=True, power="poweredOff", tracking=False)
    return {}


def full_datastore(days: BadDays) -> dict[str, Any]:
    days.machine("crammed", [MIB])
    return {"vm_backup_min_free_space": "900PB"}


def quiesce_fault(days: BadDays) -> dict[str, Any]:
    loud = days.machine("loud", [MIB])
    days.site.lab.fault(task="createSnapshot*", fault="ApplicationQuiesceFault", count=0, object=loud.moid)
    return {"vm_backup_quiesce_policy": "fail"}


def library_missing(days: BadDays) -> dict[str, Any]:
    days.machine("bookless", [MIB])
    return {"vm_backup_vddk_libdir": str(days.site.home / "no-vddk")}


def library_lib64(days: BadDays) -> dict[str, Any]:
    days.machine("misled", [MIB])
    return {"vm_backup_vddk_libdir": f"{days.site.lab.vddk_libdir}/lib64"}


def library_broken(days: BadDays) -> dict[str, Any]:
    days.machine("unreadable", [MIB])
    root = days.directory("broken-vddk")
    (root / "lib64").mkdir()
    (root / "lib64" / "libvixDiskLib.so.8").write_bytes(b"not a library")
    return {"vm_backup_vddk_libdir": str(root)}


def in_crooked_lab(days: BadDays, name: str, library: str) -> dict[str, Any]:
    lab = days.crooked
    days.watched.append(lab.create_vm(name, disks=[MIB], tracking=True)["moid"])
    return {
        "vm_backup_hostname": lab.hostname,
        "vm_backup_port": lab.port,
        "vm_backup_ca_path": lab.ca_file,
        "vm_backup_vddk_libdir": library,
    }


def wrong_thumbprint(days: BadDays) -> dict[str, Any]:
    days.crooked.vddk(thumbprint=":".join(["00"] * 20))
    return in_crooked_lab(days, "watched", days.crooked.vddk_libdir)


def wrong_thumbprint_of_a_host(days: BadDays) -> dict[str, Any]:
    days.crooked.nfc(thumbprint=":".join(["00"] * 20))
    return in_crooked_lab(days, "replaced", "")


@dataclass(frozen=True)
class Day:
    """One bad day: makes the variables of its host; the message must hold object, cause and next step."""

    host: str
    prepare: Callable[[BadDays], dict[str, Any]]
    says: tuple[str, ...]


DAYS = [
    Day("unknown", unknown_vm, ("nobody",)),
    Day("twins", two_of_a_name, ("twin", "/left/twin", "/right/twin")),
    Day("password", wrong_password, ("password",)),
    Day("certificate", untrusted_certificate, ("certificate", "ca_path")),
    Day("strict", strict, ("web", "Hard disk 2", "independent", "vm_backup_exclude_disks")),
    Day("nothing", nothing_to_copy, ("web", "vm_backup_exclude_disks")),
    Day("incremental", incremental_without_earlier, ("web", "Hard disk 1", "no earlier restore point", "auto")),
    Day("absent", repository_absent, ("absent",)),
    Day("newer", repository_of_newer_format, ("newer", "99")),
    Day("read-only", repository_read_only, ("read-only",)),
    Day("locked", locked, ("locked", "run another", "lock_timeout")),
    Day("cluster", shared_disk, ("cluster", "Hard disk 2", "shared")),
    Day("deep", snapshot_limit, ("deep", "32")),
    Day("golden", template, ("golden", "template", "Convert")),
    Day("crammed", full_datastore, ("crammed", "free space", "LocalDS")),
    Day("loud", quiesce_fault, ("loud", "quiesc")),
    Day("bookless", library_missing, ("bookless", "no-vddk")),
    Day("misled", library_lib64, ("lib64", "parent")),
    Day("unreadable", library_broken, ("libvixDiskLib.so.8",)),
    Day("watched", wrong_thumbprint, ("watched", "thumbprint")),
    Day("replaced", wrong_thumbprint_of_a_host, ("replaced", "thumbprint", "00:00", "reconnect")),
]


@pytest.fixture(scope="module")
def days(site: Site) -> Iterator[BadDays]:
    with Lab.start() as crooked, ExitStack() as stack:
        web = site.machine("web", [MIB, {"size": MIB, "mode": "independent_persistent"}])
        yield BadDays(site, crooked, web, stack, [web])


@pytest.fixture(scope="module")
def refused(days: BadDays) -> Run:
    """The run in which everything goes wrong."""
    hosts = {day.host: day.prepare(days) for day in DAYS}
    for machine in days.machines:
        machine.foreign = machine.snapshots
    return days.site.run(BACKUP, hosts, rc=2)


@pytest.mark.parametrize("day", DAYS, ids=lambda day: day.prepare.__name__)
def test_message(refused: Run, day: Day):
    """The host fails, and its message says what, why and what to do."""
    outcome = refused[day.host]
    assert outcome.failed
    missing = [text for text in day.says if text.lower() not in outcome.message.lower()]
    assert not missing, outcome.message


def test_nothing_is_left(refused: Run, days: BadDays):
    for machine in days.machines:
        assert machine.snapshots == machine.foreign
        assert list((days.site.repository / machine.uuid).glob("*")) == []
    assert [days.crooked.snapshots(moid) for moid in days.watched] == [[], []]
    assert not (days.site.home / "absent").exists()


def test_refused_before_a_snapshot(refused: Run):
    """What can be known beforehand costs the VM no snapshot."""
    early = [day for day in DAYS if day.prepare in (incremental_without_earlier, strict, nothing_to_copy)]
    for day in early:
        assert not [event for event in refused[day.host].events if event["task"].endswith("Copy | Take the snapshot")]


def test_next_run(refused: Run, days: BadDays):
    """With the causes gone, the same VMs are backed up."""
    days.site.lab.clear_faults()
    well = [machine for machine in days.machines if machine.name in ("web", "loud", "unreadable")]
    run = days.site.run(BACKUP, {machine.name: {} for machine in well})
    for machine in well:
        assert not run[machine.name].failed
        [point] = days.site.points(machine)
        protected = {disk["backing_uuid"] for disk in point["disks"]}
        assert contents(point) == {uuid: data for uuid, data in machine.contents().items() if uuid in protected}
        assert machine.snapshots == []
