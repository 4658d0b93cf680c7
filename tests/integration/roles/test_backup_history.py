# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two nights of backups of VMs that are not as one would wish, or that were changed by day.

Each VM is copied by the other way to its disks in the second night.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.roles.support import (
    BACKUP,
    MIB,
    Machine,
    Run,
    Site,
    contents,
)

pytestmark = pytest.mark.timeout(600)

ODD = MIB + 3 * 512  # bytes, no multiple of 64 KiB


@dataclass(frozen=True)
class Night:
    """One run over all VMs, and what their disks held then."""

    run: Run
    machines: dict[str, Machine]
    held: dict[str, dict[str, bytes]]


def _quiesce_fault(site: Site, machine: Machine) -> None:
    fault = {"task": "createSnapshot*", "fault": "FilesystemQuiesceFault", "object": machine.moid}
    site.lab.fault(**fault, message="the guest is too busy")


@pytest.fixture(scope="module")
def first(site: Site) -> Night:
    """A night in which every VM is backed up; of ``stuck`` the snapshot cannot be removed."""
    special = [
        {"size": MIB, "mode": "independent_persistent"},
        {"size": MIB, "backing": "rdm_physical"},
        {"size": MIB, "mode": "independent_persistent", "sharing": "sharingMultiWriter"},
    ]
    machines = [
        site.machine("mixed", [ODD, *special, MIB]),
        site.machine("untracked", [MIB], tracking=False),
        site.machine("ancient", [MIB], tracking=False, version="vmx-04"),
        site.machine("warned", [MIB]),
        site.machine("silent", [MIB]),
        site.machine("stuck", [MIB]),
    ]
    mixed, untracked, _ancient, warned, silent, stuck = machines
    site.snapshot(untracked)
    _quiesce_fault(site, warned)
    _quiesce_fault(site, silent)
    site.lab.fault(task="removeSnapshot*", fault="FileFault", object=stuck.moid, count=0)
    variables = {
        "mixed": {
            "vm_backup_exclude_disks": [*(mixed.disks[-1][name] for name in ("backing_uuid", "label")), "Hard disk 99"]
        },
        "silent": {"vm_backup_quiesce_policy": "crash_consistent"},
    }
    held = {machine.name: machine.contents() for machine in machines}
    run = site.run(BACKUP, {machine.name: variables.get(machine.name, {}) for machine in machines}, rc=2)
    site.lab.clear_faults()
    return Night(run, {machine.name: machine for machine in machines}, held)


def test_every_restore_point_is_whole(site: Site, first: Night):
    for name, machine in first.machines.items():
        [point] = site.points(machine)
        for uuid, data in contents(point).items():
            assert data == first.held[name][uuid]


def test_foreign_snapshots_are_untouched(first: Night):
    for name, machine in first.machines.items():
        if name != "stuck":
            assert machine.snapshots == machine.foreign


def test_unprotected_disks_are_told(site: Site, first: Night):
    """Independent, raw and shared disks, and an excluded one: in the result, the summary and the restore point."""
    mixed = first.machines["mixed"]
    result = first.run["mixed"].result
    assert [disk["key"] for disk in result["disks"]] == [mixed.disks[0]["key"]]
    reasons = {disk["label"]: disk["reason"] for disk in result["not_protected"]}
    assert len(reasons) == len(result["not_protected"])
    expected = {"Hard disk 2": "independent", "Hard disk 3": "raw", "Hard disk 4": "", "Hard disk 5": "exclude_disks"}
    assert {label: word for label, word in expected.items() if word in reasons[label]} == expected
    [point] = site.points(mixed)
    assert {disk["label"] for disk in point["unprotected"]} == set(expected)
    assert any("Hard disk 99" in warning for warning in result["warnings"])
    for label, reason in reasons.items():
        assert f"  NOT PROTECTED: {label} ({reason})" in first.run["mixed"].summary


@pytest.mark.parametrize(("name", "cause"), [("untracked", "snapshot"), ("ancient", "4")])
def test_no_change_tracking(site: Site, first: Night, name: str, cause: str):
    """Backed up all the same, in full, with a warning that says why."""
    result = first.run[name].result
    assert [disk["kind"] for disk in result["disks"]] == ["full"]
    [warning] = [warning for warning in result["warnings"] if "in full" in warning]
    assert name in warning
    assert cause in warning
    [point] = site.points(first.machines[name])
    assert warning in point["warnings"]


def test_quiesce_policies(first: Night):
    warned, silent = first.run["warned"].result, first.run["silent"].result
    assert (warned["consistency"], silent["consistency"]) == ("crash", "crash")
    [warning] = warned["warnings"]
    assert "the guest is too busy" in warning
    assert f"  warning: {warning}" in first.run["warned"].summary
    assert silent["warnings"] == []


def test_snapshot_that_will_not_go(first: Night):
    """The restore point counts, but the run fails and says what stayed."""
    stuck = first.run["stuck"]
    assert stuck.failed
    for text in ("is complete", "could not be removed", "FileFault", "the next run"):
        assert text in stuck.message
    assert [snapshot["name"][:15] for snapshot in first.machines["stuck"].snapshots] == ["holdfast.backup"]


@pytest.fixture(scope="module")
def second(site: Site, first: Night) -> Night:
    """The next night, after a day in which much was done to disks and images."""
    reshaped = site.machine("reshaped", [MIB, MIB, MIB, ODD, MIB])
    neglected = site.machine("neglected", [MIB, MIB, MIB])
    machines = [reshaped, neglected, first.machines["stuck"]]
    for machine in (reshaped, neglected):
        site.backup(machine)
    grown, removed, replaced, _steady, restarted = (disk["key"] for disk in reshaped.disks)
    lab, moid = site.lab, reshaped.moid
    lab.grow_disk(moid, grown, 2 * MIB)
    lab.remove_disk(moid, removed)
    lab.replace_disk(moid, replaced)
    lab.reset_tracking(moid, restarted)
    lab.add_disk(moid, MIB)
    reshaped.look()
    for machine in machines:
        for number in range(len(machine.disks)):
            machine.write(number, 128 * 1024, os.urandom(1000))
    [point] = site.points(neglected)
    os.unlink(point["disks"][0]["path"])
    os.truncate(point["disks"][1]["path"], 65536)
    held = {machine.name: machine.contents() for machine in machines}
    run = site.run(BACKUP, {machine.name: {} for machine in machines})
    return Night(run, {machine.name: machine for machine in machines}, held)


def test_disks_decide_one_by_one(site: Site, second: Night):
    """A disk that cannot be copied incrementally is copied in full and says why; the others are not."""
    reshaped = second.machines["reshaped"]
    result = second.run["reshaped"].result
    found = {disk["label"]: (disk["kind"], disk["reason"] or "") for disk in result["disks"]}
    expected = {
        "Hard disk 1": ("full", "capacity"),
        "Hard disk 2": ("full", "no earlier restore point of this disk"),  # a new one in the place of the removed one
        "Hard disk 3": ("full", "no earlier restore point of this disk"),
        "Hard disk 4": ("incremental", ""),
        "Hard disk 5": ("full", "change tracking"),
    }
    assert found.keys() == expected.keys()
    for label, (kind, word) in expected.items():
        assert (found[label][0], word in found[label][1]) == (kind, True), found[label]
    assert [disk["bytes_read"] for disk in result["disks"] if disk["kind"] == "incremental"] == [65536]
    older, newer = site.points(reshaped)
    assert len(older["disks"]) == len(newer["disks"]) == 5
    assert contents(newer) == second.held["reshaped"]


def test_images_that_are_gone_or_damaged(site: Site, second: Night):
    """Their disks are copied in full with the reason, and the new restore point stands on its own."""
    found = {disk["label"]: (disk["kind"], disk["reason"]) for disk in second.run["neglected"].result["disks"]}
    assert found["Hard disk 3"] == ("incremental", None)
    assert found["Hard disk 1"][0] == found["Hard disk 2"][0] == "full"
    assert "missing" in found["Hard disk 1"][1]
    assert "65536 bytes instead of" in found["Hard disk 2"][1]
    older, newer = site.points(second.machines["neglected"], whole=False)
    assert not older["verified"]["ok"]
    assert newer["verified"]["ok"]
    assert contents(newer) == second.held["neglected"]


def test_next_run_removes_the_snapshot_that_stayed(site: Site, second: Night):
    stuck = second.machines["stuck"]
    assert stuck.snapshots == []
    assert [disk["kind"] for disk in second.run["stuck"].result["disks"]] == ["incremental"]
    assert contents(site.points(stuck)[-1]) == second.held["stuck"]


def test_disks_that_need_consolidation(site: Site):
    """It is told, and the next removal of a snapshot tries again."""
    loose = site.machine("loose", [MIB])
    site.lab.tracking(fail_consolidation=1)
    site.lab.fault(task="consolidate*", fault="FileLocked", object=loose.moid, fields={"file": "[ds] loose.vmdk"})
    warnings = site.run(BACKUP, {"loose": {}})["loose"].result["warnings"]
    assert "FileLocked" in warnings[0]
    assert "need consolidation" in warnings[1]
    site.lab.clear_faults()
    assert site.run(BACKUP, {"loose": {}})["loose"].result["warnings"] == [warnings[1]]  # before its removal
    assert [point["warnings"] for point in site.points(loose)] == [warnings, [warnings[1]]]
    looked = modules.run("vm_snapshot_info", {**site.lab.module_args(), "moid": loose.moid})
    assert not looked["consolidation_needed"]
