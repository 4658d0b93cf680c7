# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Nights after days in which change tracking missed what guests wrote, by the real playbooks."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.backup_chain import Chain
from ansible_collections.holdfast.backup.tests.integration.roles import volumes
from ansible_collections.holdfast.backup.tests.integration.roles.support import (
    BACKUP,
    MIB,
    Machine,
    Run,
    Site,
    contents,
)
from ansible_collections.holdfast.backup.tests.integration.roles.volumes import Volume

pytestmark = pytest.mark.timeout(600)

REASON = "change tracking missed changes: at least "


@dataclass(frozen=True)
class Nights:
    """The night of the lies, the next one, and what the disks held then."""

    machines: dict[str, Machine]
    first: Run
    second: Run
    held: dict[str, list[dict[str, bytes]]]
    before: dict[str, list[str]]
    between: dict[str, list[str]]


def _trackings(machine: Machine) -> list[str]:
    return [disk["change_id"].partition("/")[0] for disk in machine.lab.vm(machine.moid)["disks"]]


def _write(site: Site, machines: dict[str, Machine]) -> None:
    """A little on all disks, and all of the first disk of the liars unnoticed."""
    for machine in machines.values():
        for number in range(len(machine.disks)):
            machine.write(number, 128 * 1024, os.urandom(1000))
    site.lab.tracking(forget=True)
    for name in ("liar", "snapped"):
        machines[name].write(0, 0, os.urandom(machines[name].disks[0]["capacity"]))
    site.lab.tracking(forget=False)


@pytest.fixture(scope="module")
def nights(site: Site) -> Nights:
    """``snapped`` has somebody's snapshot, above which no tracking may begin; of ``honest`` nothing is missed."""
    names = ("liar", "snapped", "honest")
    machines = {name: site.machine(name, [2 * MIB, MIB]) for name in names}
    site.snapshot(machines["snapped"])
    for machine in machines.values():
        site.backup(machine)
    levels = {"liar": "content", "snapped": "structure", "honest": "restore"}
    hosts = {name: {"vm_backup_verify": level} for name, level in levels.items()}
    before = {name: _trackings(machine) for name, machine in machines.items()}
    _write(site, machines)
    held = {name: [machine.contents()] for name, machine in machines.items()}
    first = site.run(BACKUP, hosts, rc=2)
    between = {name: _trackings(machine) for name, machine in machines.items()}
    for name, machine in machines.items():
        machine.write(0, 256 * 1024, os.urandom(1000))
        held[name].append(machine.contents())
    second = site.run(BACKUP, {name: {} for name in names})
    return Nights(machines, first, second, held, before, between)


@pytest.mark.parametrize("name", ["liar", "snapped", "honest"])
def test_all_restore_points_are_right(site: Site, nights: Nights, name: str):
    machine = nights.machines[name]
    points = site.points(machine)
    assert len(points) == 3
    assert [contents(point) for point in points[1:]] == nights.held[name]
    assert machine.snapshots == machine.foreign


@pytest.mark.parametrize("name", ["liar", "snapped"])
def test_the_run_fails_loudly(nights: Nights, name: str):
    """With a complete restore point, whose disk was copied in full; the other disk was not."""
    outcome = nights.first[name]
    assert outcome.failed
    result = outcome.result
    assert result["distrusted"] == ["Hard disk 1"]
    assert result["verified"]["ok"]
    liar, other = result["disks"]
    assert liar["kind"] == "full"
    assert liar["reason"].startswith(REASON)
    assert (other["kind"], other["audit"]["mismatches"]) == ("incremental", 0)
    for text in (result["restore_point"], "is complete", "Hard disk 1", "missed changes", "verify them"):
        assert text in outcome.message
    assert any(liar["reason"] in line for line in outcome.summary)
    assert any(liar["reason"] in warning for warning in result["warnings"])


def test_tracking_begins_anew(nights: Nights):
    """Of the disk that it lied about alone."""
    before, after = nights.before["liar"], nights.between["liar"]
    assert (after[0] != before[0], after[1]) == (True, before[1])
    assert "Change tracking was started anew" in nights.first["liar"].message


def test_tracking_that_cannot_begin_anew(nights: Nights):
    """It is told why; the copy of the next night is full all the same."""
    assert nights.between["snapped"] == nights.before["snapped"]
    message = nights.first["snapped"].message
    assert "could not be started anew" in message
    assert "somebody's" in message


@pytest.mark.parametrize("name", ["liar", "snapped"])
def test_the_next_copy_is_full(nights: Nights, name: str):
    outcome = nights.second[name]
    assert not outcome.failed
    liar, other = outcome.result["disks"]
    assert (liar["kind"], other["kind"]) == ("full", "incremental")
    assert "no change ID" in liar["reason"]


def test_others_know_nothing_of_it(nights: Nights):
    for run in (nights.first, nights.second):
        assert not run["honest"].failed
        result = run["honest"].result
        assert [disk["kind"] for disk in result["disks"]] == ["incremental", "incremental"]
        assert (result["distrusted"], result["warnings"]) == ([], [])
    assert nights.between["honest"] == nights.before["honest"]
    verified = nights.first["honest"].result["verified"]
    assert (verified["level"], verified["ok"]) == ("restore", True)
    assert "  verified (restore)" in nights.first["honest"].summary
    assert nights.second["honest"].result["verified"] is None


def test_verification_that_finds_damage(site: Site):
    """What lies below the new image is no longer what it was: the restore point is there, and the run says so."""
    machine = site.machine("rotten", [MIB])
    site.backup(machine)
    [point] = site.points(machine)
    with open(point["disks"][0]["path"], "r+b") as image:
        image.seek(5 * 65536 + 1)
        old = image.read(1)
        image.seek(5 * 65536 + 1)
        image.write(bytes([old[0] ^ 1]))
    hosts = {"rotten": {"vm_backup_verify": "content", "vm_backup_audit": 0}}
    outcome = site.run(BACKUP, hosts, rc=2)["rotten"]
    assert not outcome.result["verified"]["ok"]
    for text in ("is complete", "its verification failed", point["id"].rpartition("/")[2]):
        assert text in outcome.message


@pytest.fixture(scope="module")
def volume(site: Site) -> Volume:
    disk = volumes.volume(site, "pvc-liar", 2 * MIB)
    volumes.backup(site, disk)
    return disk


def test_first_class_disk(site: Site, volume: Volume):
    """The same of a first class disk, through its control flag."""
    before = site.lab.fcd(volume.id)["change_id"].partition("/")[0]
    site.lab.tracking(forget=True)
    volume.write(0, os.urandom(2 * MIB))
    site.lab.tracking(forget=False)
    held = volume.content()
    outcome = volumes.run(site, volumes.BACKUP, {"pvc-liar": {"fcd_backup_verify": "content"}}, rc=2)["pvc-liar"]
    assert outcome.result["distrusted"] == ["pvc-liar"]
    assert outcome.result["verified"]["ok"]
    assert outcome.result["disks"][0]["reason"].startswith(REASON)
    for text in ("is complete", "missed changes", "Change tracking was started anew"):
        assert text in outcome.message
    assert site.lab.fcd(volume.id)["change_id"].partition("/")[0] != before
    assert site.lab.fcd(volume.id)["control_flags"]["enable_changed_block_tracking"]
    assert volume.snapshots == []
    volumes.backup(site, volume)
    older, liar, newest = volumes.points(site, volume)
    assert [point["disks"][0]["kind"] for point in (older, liar, newest)] == ["full", "full", "full"]
    assert volumes.content(liar) == volumes.content(newest) == held


def test_first_class_disk_that_is_left_to_its_machine(site: Site):
    """Nothing is proved of what is not copied."""
    disk = volumes.volume(site, "pvc-with-vm", MIB)
    machine = site.machine("holder", [MIB])
    site.lab.attach_fcd(disk.id, machine.moid)
    modules.run("disk_changed_areas", {**site.lab.module_args(), "moid": machine.moid, "tracking": "enabled"})
    site.backup(machine)
    hosts = {"pvc-with-vm": {"fcd_backup_verify": "restore"}}
    outcome = volumes.run(site, volumes.BACKUP, hosts)["pvc-with-vm"]
    assert (outcome.result["restore_point"], outcome.result["verified"]) == (None, None)
    assert outcome.result["distrusted"] == []


# Another way in which what is known of a machine does not hold for it any more.
ELSEWHERE = "7f3c1d0e-5a1b-4a8e-9c39-0d2b6a0c7e41"


def test_restore_points_of_another_vcenter(site: Site):
    """One of two machines with the same UUID, or one that has moved: only a person knows, and says so once."""
    stranger, moved = (site.machine(name, [MIB]) for name in ("stranger", "moved"))
    for machine in (stranger, moved):
        options = {"restore_point": {"vcenter": ELSEWHERE}}
        library = site.library(site.way(machine.name))
        Chain(site.lab.module_args(), machine.moid, str(site.repository), library, options).backup(modules.run)
    run = site.run(BACKUP, {"stranger": {}, "moved": {"vm_backup_moved": True}}, rc=2)
    message = run["stranger"].message
    assert ELSEWHERE in message
    assert run["moved"].result["disks"][0]["reason"] == f"moved here from vCenter {ELSEWHERE}"
    assert not run["moved"].failed
    assert len(site.points(stranger)) == 1
    older, newer = site.points(moved)
    assert contents(newer) == moved.contents()
    told = modules.run("disk_changed_areas", {**site.lab.module_args(), "moid": moved.moid})["vcenter"]
    recorded = [json.loads((Path(point["path"]) / "point.json").read_text())["vcenter"] for point in (older, newer)]
    assert recorded == [ELSEWHERE, told]
