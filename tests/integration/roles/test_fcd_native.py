# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""First class disks without VDDK, by the roles: a night and a restore, and a helper VM that is left as it was.

What goes wrong with them is in test_nfc_fcd.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests.integration.roles import volumes
from ansible_collections.holdfast.backup.tests.integration.roles.support import MIB, Machine, Run, Site
from ansible_collections.holdfast.backup.tests.integration.roles.volumes import BACKUP, RESTORE, Volume

pytestmark = pytest.mark.timeout(600)

ACCESS = ["native"]


@dataclass(frozen=True)
class Scene:
    """``loose`` is attached nowhere, ``attached`` to a running VM."""

    site: Site
    disks: dict[str, Volume]
    helper: Machine
    held: dict[str, bytes]

    def hosts(self, role: str, names: tuple[str, ...], **more: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Inventory hosts of a role; those of these names are given the helper."""
        helper = {f"{role}_native_helper_vm": self.helper.name}
        return {name: {**more.get(name, {}), **(helper if name in names else {})} for name in self.disks}

    def assert_tidy(self) -> None:
        """No copy, nothing on the helper, no snapshot, no disk open on a host."""
        lab = self.site.lab
        assert [fcd["name"] for fcd in lab.fcds() if fcd["name"].startswith("holdfast.backup")] == []
        assert lab.vm(self.helper.moid)["disks"] == self.helper.disks
        assert [disk.snapshots for disk in self.disks.values()] == [[], []]
        assert lab.nfc()["open"] == []


@pytest.fixture(scope="module")
def scene(site: Site) -> Scene:
    disks = {name: volumes.volume(site, name, 8 * MIB) for name in ("loose", "attached")}
    site.lab.attach_fcd(disks["attached"].id, site.machine("worker", [MIB]).moid)
    helper = site.machine("helper", [MIB], power="poweredOff", tracking=False)
    return Scene(site, disks, helper, {name: disk.content() for name, disk in disks.items()})


@pytest.fixture(scope="module")
def night(scene: Scene) -> Run:
    hosts = scene.hosts("fcd_backup", ("loose",), attached={"fcd_backup_with_vm_max_age": 0})
    run = volumes.run(scene.site, BACKUP, {**hosts, "nobody": {"fcd_backup_name": "loose"}}, rc=2)
    scene.assert_tidy()
    return run


def test_backups(scene: Scene, night: Run):
    for name, disk in scene.disks.items():
        assert not night[name].failed, night[name].failures
        [point] = volumes.points(scene.site, disk)
        assert volumes.content(point) == scene.held[name]
        [told] = night[name].result["disks"]
        assert (told["access"], told["transport"], told["allocation"]) == ("native", "nbdssl", "change_tracking")


def test_without_a_helper(night: Run):
    """The same disk is backed up beside it."""
    assert night["nobody"].failed
    assert "native_helper_vm" in night["nobody"].message


def test_restores(scene: Scene, night: Run):
    """Into the disk itself, of which only what changed is written, and to a new disk."""
    for disk in scene.disks.values():
        disk.write(3 * MIB, os.urandom(100_000))
    options = {"loose": {"fcd_restore_to": "same"}, "attached": {"fcd_restore_name": "new"}}
    run = volumes.run(scene.site, RESTORE, scene.hosts("fcd_restore", ("loose", "attached"), **options))
    assert scene.disks["loose"].content() == scene.held["loose"]
    assert run["loose"].result["disks"][0]["bytes_written"] <= 3 * 65536
    assert scene.site.lab.fcd_read(run["attached"].result["fcd"]["id"]) == scene.held["attached"]
    scene.assert_tidy()
