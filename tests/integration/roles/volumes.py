# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests of the roles for first class disks share: the disks of a site, and what runs must leave of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.roles.support import (
    Hosts,
    Run,
    Site,
    image_content,
    leftovers,
)
from ansible_collections.holdfast.backup.tests.lab.client import Lab

HELPER = "helper of the native access"
BACKUP, RESTORE = "holdfast.backup.fcd_backup", "holdfast.backup.fcd_restore"


@dataclass
class Volume:
    """A first class disk of the lab. ``foreign`` are its snapshots that are not ours, with what each holds."""

    lab: Lab
    name: str
    id: str
    foreign: dict[str, bytes] = field(default_factory=dict)

    def write(self, offset: int, data: bytes) -> None:
        """As its user would."""
        self.lab.fcd_write(self.id, offset, data)

    def content(self, snapshot: str = "") -> bytes:
        return self.lab.fcd_read(self.id, snapshot=snapshot)

    def snapshot(self, description: str) -> str:
        """Take a snapshot as the storage interface of Kubernetes or Velero would; it must stay."""
        taken = self.lab.fcd_snapshot(self.id, description)
        self.foreign[taken] = self.content(taken)
        return taken

    @property
    def snapshots(self) -> list[dict[str, Any]]:
        return self.record()["snapshots"]

    def record(self) -> dict[str, Any]:
        """All that there is to know of it, as a module tells it."""
        asked = {**self.lab.module_args(), "id": self.id, "snapshots": True}
        [found] = modules.run("fcd_info", asked)["fcds"]
        return found

    def others_are_untouched(self) -> None:
        """Only others' snapshots are there, and each holds what it held."""
        assert {snapshot["id"]: self.content(snapshot["id"]) for snapshot in self.snapshots} == self.foreign


def volume(site: Site, name: str, size: int, **spec: Any) -> Volume:
    """Make a first class disk, tracked unless said otherwise, whose first 64 KiB and last sector hold data."""
    made = site.lab.create_fcd(name, size, **{"tracking": True, "keep": True, **spec})
    disk = Volume(site.lab, name, made["id"])
    disk.write(0, os.urandom(65536))
    disk.write(size - 512, os.urandom(512))
    return disk


def helper(site: Site) -> str:
    """The VM that disks are attached to for the native access, made when it is first needed."""
    if HELPER not in site.vms():
        site.lab.create_vm(HELPER, disks=[1 << 20])
    return HELPER


def assert_helper_is_clean(site: Site) -> None:
    """No disk is left on it, no copy for reading anywhere, no disk open on a host."""
    assert [disk["label"] for disk in site.lab.vm(site.vms()[HELPER])["disks"]] == ["Hard disk 1"]
    assert [fcd["name"] for fcd in site.lab.fcds() if fcd["name"].startswith("holdfast.backup")] == []
    assert site.lab.nfc()["open"] == []


def variables(site: Site) -> dict[str, Any]:
    """What all hosts of an inventory of first class disks share."""
    common = {"repository": str(site.repository), "native_helper_vm": helper(site)}
    both = {f"fcd_{role}_{name}": value for role in ("backup", "restore") for name, value in common.items()}
    return {**both, "fcd_backup_copy_retries": 0}


def start(site: Site, playbook: str, hosts: Hosts, args: Sequence[str] = ()) -> Run:
    """Start a playbook for first class disks: hosts with variables of their own."""
    shared = variables(site)
    return site.start(playbook, {name: {**shared, **given} for name, given in hosts.items()}, args)


def run(site: Site, playbook: str, hosts: Hosts, rc: int | None = 0, args: Sequence[str] = ()) -> Run:
    """Run a playbook to its end, with the exit status expected."""
    return start(site, playbook, hosts, args).end(rc)


def backup(site: Site, disk: Volume) -> None:
    """Make a restore point as the role does, in a tenth of the time."""
    vcenter, repository = site.lab.module_args(), {"repository": str(site.repository)}
    chosen = {**vcenter, "fcd_id": disk.id}
    found = modules.run("disk_changed_areas", {**chosen, "tracking": "enabled"})
    begin = {"state": "started", "fcd": found["fcd"], "disks": found["disks"]}
    started = modules.run("restore_point", {**repository, **begin})
    point = started["restore_point"]
    taken = modules.run("fcd_snapshot", {**vcenter, "id": disk.id, "stamp": {"job": "test"}})["snapshot"]
    record = modules.run("fcd_info", {**vcenter, "id": disk.id})["fcds"][0]
    with open(os.path.join(point["path"], "fcd.json"), "w", encoding="utf-8") as file:
        json.dump(record, file)
    of_snapshot = {**chosen, "snapshot": taken["id"]}
    areas = modules.run("disk_changed_areas", {**of_snapshot, "since": started["since"], "areas_dir": point["path"]})
    copy = {"disks": areas["disks"], "image_dir": point["path"], "native_helper_vm": helper(site)}
    copy["vddk_libdir"] = site.library(site.way(disk.name))
    copied = modules.run("vddk_copy", {**of_snapshot, **copy})
    modules.run("fcd_snapshot", {**vcenter, "id": disk.id, "state": "absent", "stamp": {"job": "test"}})
    done = {"state": "completed", "id": point["id"], "run": point["run"], "fcd": found["fcd"], "disks": copied["disks"]}
    modules.run("restore_point", {**repository, **done, "snapshot_time": taken["creation_time"]})


def points(site: Site, disk: Volume) -> list[dict[str, Any]]:
    """The restore points of a disk, oldest first, whole, with nothing beside them."""
    assert leftovers(site.repository, disk.id) == []
    directory = site.repository / disk.id
    if not directory.is_dir() or not any(directory.iterdir()):
        return []
    found = [point for point in holding(site, disk, "content") if point["fcd"]]
    assert [point["verified"] for point in found if not point["verified"]["ok"]] == []
    return found


def holding(site: Site, disk: Volume, verify: str = "none") -> list[dict[str, Any]]:
    """The restore points that hold a disk: its own, and those of the VM that it is attached to."""
    asked = {"repository": str(site.repository), "fcd_id": disk.id, "verify": verify}
    return modules.run("restore_point_info", asked)["restore_points"]


def saved(point: dict[str, Any]) -> dict[str, Any]:
    """What the restore point of a disk keeps of it beside its content."""
    return json.loads((Path(point["path"]) / "fcd.json").read_text())


def content(point: dict[str, Any]) -> bytes:
    """The bytes of the disk of a restore point, as qemu-img sees them."""
    [disk] = point["disks"]
    return image_content(disk["path"], disk["capacity"])
