# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Nights of backups of first class disks: loose ones, attached ones, and bad days.

Which disk is copied by which way is said in ``NATIVE``; the next night it is the other way.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.roles import support, volumes
from ansible_collections.holdfast.backup.tests.integration.roles.support import MIB, Run, Site, leftovers
from ansible_collections.holdfast.backup.tests.integration.roles.volumes import BACKUP, Volume
from ansible_collections.holdfast.backup.tests.integration.running import wait_for

pytestmark = pytest.mark.timeout(600)

CLAIM = "pvc-8a1d2c3e-6a55-4c2e-9d0e-5f3f6f6f2b10"
NATIVE = (CLAIM, "untracked", "apart", "unheard", "helpless")
METADATA = {"cns.k8s.pvc.name": "data", "cns.k8s.pvc.namespace": "shop", "cns.containerCluster.clusterId": "c1"}
# What the message must say of each that fails: object, cause and next step.
FAILED = {
    "nobody": ("nobody", "fcd_backup_name"),
    "twin": ("2 first class disks", "twin", "fcd_backup_id"),
    "frozen": ("No restore point of frozen was made", "Take the snapshot", "FileFault"),
    "unread": ("No restore point of unread was made", "14009", "902"),
    "unheard": ("No restore point of unheard was made", "refused with the code 7", "hostd.log"),
    "helpless": ("No restore point of helpless was made", "attached to no virtual machine", "native_helper_vm"),
    "stuck": ("is complete", "could not be removed", "the next run"),
}


@dataclass(frozen=True)
class Night:
    """One run over all disks, and what they held then."""

    run: Run
    disks: dict[str, Volume]
    held: dict[str, bytes]


@pytest.fixture(scope="module")
def disks(site: Site) -> dict[str, Volume]:
    """By the name of their inventory hosts, which is that of the disk or its ID."""
    made = {
        CLAIM: volumes.volume(site, CLAIM, 8 * MIB, metadata=METADATA),
        "untracked": volumes.volume(site, "untracked", MIB, tracking=False),
        "shared": volumes.volume(site, "shared", MIB),
        "apart": volumes.volume(site, "apart", MIB),
        "frozen": volumes.volume(site, "frozen", MIB),
        "unread": volumes.volume(site, "unread", 16 * MIB),
        "unheard": volumes.volume(site, "unheard", 16 * MIB),
        "helpless": volumes.volume(site, "helpless", MIB),
        "stuck": volumes.volume(site, "stuck", MIB),
    }
    for _twin in range(2):
        volumes.volume(site, "twin", MIB)
    return made


@pytest.fixture(scope="module")
def workers(site: Site, disks: dict[str, Volume]) -> Run:
    """The backups of two VMs: one with the disk that is attached to it, one by the playbook, without."""
    worker, loner = (site.machine(name, [MIB]) for name in ("worker", "loner"))
    site.lab.attach_fcd(disks["shared"].id, worker.moid)
    site.lab.attach_fcd(disks["apart"].id, loner.moid)
    site.backup(worker)
    return site.run(support.BACKUP, {"loner": {"vm_backup_fcds": "separate"}})


@pytest.fixture(scope="module")
def first(site: Site, disks: dict[str, Volume], workers: Run) -> Night:
    """A night that brings some disks bad days; the copy of another was killed before."""
    site.lab.nfc(latency_ms=2000)
    killed = volumes.start(site, BACKUP, {CLAIM: site.access("native")})
    wait_for(lambda: site.lab.nfc()["open"], 200)
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait()
    assert leftovers(site.repository, disks[CLAIM].id)
    assert disks[CLAIM].snapshots
    fault = {"op": "read", "start": 13 * MIB, "length": MIB, "count": 1000}
    site.lab.vddk(faults=[{**fault, "code": 14009}])
    site.lab.nfc(reset=True, faults=[{**fault, "code": 7, "action": "error"}])
    for name in ("unread", "unheard"):
        disks[name].write(13 * MIB, b"bad")
    site.lab.fault(method="*CreateSnapshot*", fault="FileFault", object=disks["frozen"].id, count=0)
    site.lab.fault(method="*DeleteSnapshot*", fault="FileFault", object=disks["stuck"].id, count=0)
    hosts = {name: site.access("native" if name in NATIVE else "vddk") for name in [*disks, *FAILED]}
    hosts["helpless"]["fcd_backup_native_helper_vm"] = ""
    hosts[disks["untracked"].id] = hosts.pop("untracked")
    held = {name: disk.content() for name, disk in disks.items()}
    run = volumes.run(site, BACKUP, hosts, rc=2)
    site.lab.clear_faults()
    site.lab.vddk(reset=True)
    site.lab.nfc(reset=True)
    volumes.assert_helper_is_clean(site)
    return Night(run, disks, held)


@pytest.mark.parametrize("name", FAILED)
def test_failed(first: Night, name: str):
    outcome = first.run[name]
    assert outcome.failed
    assert [text for text in FAILED[name] if text not in outcome.message] == [], outcome.message


def test_every_restore_point_is_whole(site: Site, first: Night):
    for name, disk in first.disks.items():
        held = [] if name in ("frozen", "unread", "unheard", "helpless", "shared") else [first.held[name]]
        assert [volumes.content(point) for point in volumes.points(site, disk)] == held


def test_full_copies_know_what_is_in_use(first: Night):
    """Natively too, where change tracking can tell: of a loose disk through its copy, of one on a running machine."""
    for name, allocation in ((CLAIM, "change_tracking"), ("apart", "change_tracking"), ("stuck", "library")):
        [copied] = first.run[name].result["disks"]
        way = "native" if name in NATIVE else "vddk"
        assert (copied["access"], copied["transport"], copied["allocation"]) == (way, "nbdssl", allocation), name


def test_no_snapshot_is_left(first: Night):
    """That of the killed run neither."""
    for name, disk in first.disks.items():
        assert [snapshot["own"] for snapshot in disk.snapshots] == ([True] if name == "stuck" else []), name


def test_restore_point_keeps_what_the_disk_is(site: Site, first: Night):
    [point] = volumes.points(site, first.disks[CLAIM])
    assert [file["name"] for file in point["files"]] == ["fcd.json"]
    saved = volumes.saved(point)
    assert (saved["format"], saved["version"], saved["name"], saved["metadata"]) == ("holdfast.fcd", 1, CLAIM, METADATA)
    assert "snapshots" not in saved
    assert volumes.saved(volumes.points(site, first.disks["apart"])[0])["attached_to"]["vm"]["name"] == "loner"


def test_attached_disk_is_left_to_its_virtual_machine(site: Site, first: Night):
    """The result names the restore point that holds it."""
    [point] = [point for point in volumes.holding(site, first.disks["shared"]) if point["vm"]]
    result = first.run["shared"].result
    assert (result["restore_point"], result["changed"]) == (None, False)
    assert (result["with_vm"]["restore_point"], result["with_vm"]["vm"]["name"]) == (point["id"], "worker")
    assert first.run["shared"].summary[0] == (
        f"shared: left to the backups of worker, whose restore point {point['id']} holds it"
    )


def test_virtual_machine_leaves_its_disk_out(first: Night, workers: Run):
    """And says so; fcd_backup copies that disk."""
    [left] = workers["loner"].result["not_protected"]
    assert (
        left["reason"] == f"first class disk {first.disks['apart'].id}, left to fcd_backup (vm_backup_fcds is separate)"
    )
    assert f"  NOT PROTECTED: {left['label']} ({left['reason']})" in workers["loner"].summary
    assert first.run["apart"].result["with_vm"] is None


@pytest.fixture(scope="module")
def second(site: Site, first: Night) -> Night:
    """The next night, of three disks: what changed, and after an unfinished restore."""
    names = [CLAIM, "stuck", "apart"]
    disks = {name: first.disks[name] for name in names}
    for disk in disks.values():
        disk.write(128 * 1024, os.urandom(1000))
    unfinished = {"id": disks["apart"].id, "stamp": {"job": "fcd_restore"}}
    modules.run("fcd_snapshot", {**site.lab.module_args(), **unfinished})
    held = {name: disk.content() for name, disk in disks.items()}
    hosts = {name: site.access("vddk" if name in NATIVE else "native") for name in names}
    return Night(volumes.run(site, BACKUP, hosts), disks, held)


def test_next_night_copies_what_changed(site: Site, second: Night):
    for name, disk in second.disks.items():
        [copied] = second.run[name].result["disks"]
        assert (copied["kind"], copied["reason"], copied["bytes_read"]) == ("incremental", None, 65536), name
        assert volumes.content(volumes.points(site, disk)[-1]) == second.held[name]
        assert f"  {name}: incremental" in second.run[name].summary[1]


def test_next_night_removes_the_snapshot_that_stayed(second: Night):
    assert second.disks["stuck"].snapshots == []


def test_unfinished_restore_is_told(second: Night):
    """Its safety snapshot is not the backup's to remove."""
    [warning] = second.run["apart"].result["warnings"]
    assert "A restore of this disk was not finished" in warning
    assert [snapshot["stamp"]["job"] for snapshot in second.disks["apart"].snapshots] == ["fcd_restore"]


def test_check_mode(site: Site, second: Night):
    """Says what would be copied (an attached disk too when its VM's restore point is too old), and touches nothing."""
    fresh = volumes.volume(site, "fresh", MIB, tracking=False)
    hosts = {
        CLAIM: {},
        "fresh": {},
        "impossible": {"fcd_backup_name": "fresh", "fcd_backup_mode": "incremental"},
        "shared": {"fcd_backup_with_vm_max_age": 0},
    }
    before = [support.tree(site.repository), support.tree(site.lab.root), fresh.record()]
    run = volumes.run(site, BACKUP, hosts, rc=2, args=["--check", "--diff"])
    assert [support.tree(site.repository), support.tree(site.lab.root), fresh.record()] == before
    newest = volumes.points(site, second.disks[CLAIM])[-1]
    assert run[CLAIM].summary[:2] == [
        f"{CLAIM}: would make a restore point",
        f"  {CLAIM}: incremental, over {newest['id']}",
    ]
    assert run["fresh"].summary[1] == "  fresh: full (no earlier restore point)"
    assert run["shared"].summary[0] == "shared: would make a restore point"
    assert run["impossible"].failed
    assert "no incremental backup is possible (no earlier restore point)" in run["impossible"].message
