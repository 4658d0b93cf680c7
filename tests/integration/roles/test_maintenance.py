# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks maintenance and verify over a repository with restore points of several VMs."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.roles.support import (
    BACKUP,
    MIB,
    Machine,
    Outcome,
    Run,
    Site,
    contents,
    tree,
)

pytestmark = pytest.mark.timeout(600)

MAINTENANCE, VERIFY = "holdfast.backup.maintenance", "holdfast.backup.verify"
NIGHTS = 4


@dataclass(frozen=True)
class Estate:
    """The VMs, and for each what its disks held in each night."""

    site: Site
    machines: dict[str, Machine]
    held: dict[str, list[dict[str, bytes]]]

    def run(self, playbook: str, rc: int = 0, args: tuple[str, ...] = (), **options: Any) -> tuple[Run, Outcome]:
        """Run a playbook on the host that has the repository."""
        variables = {f"repository_maintenance_{name}": value for name, value in options.items()}
        proxy = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "repository_maintenance_repository": str(self.site.repository),
        }
        hosts = {"web": {}}  # a VM of the inventory, which these playbooks leave alone
        run = self.site.run(playbook, hosts, rc=rc, args=args, backup_proxies={"proxy": {**proxy, **variables}})
        assert set(run.hosts) == {"proxy"}
        return run, run["proxy"]

    def points(self, name: str, **options: Any) -> list[dict[str, Any]]:
        return self.site.points(self.machines[name], **options)


@pytest.fixture(scope="module")
def estate(site: Site) -> Estate:
    """Restore points of several nights: ``web`` and ``db`` change a little each day."""
    machines = {name: site.machine(name, [8 * MIB, MIB + 3 * 512]) for name in ("web", "db")}
    held: dict[str, list[dict[str, bytes]]] = {name: [] for name in machines}
    for night in range(NIGHTS):
        for name, machine in machines.items():
            machine.write(0, night * MIB, os.urandom(100_000))
            site.backup(machine)
            held[name].append(machine.contents())
    return Estate(site, machines, held)


@pytest.fixture(scope="module")
def planned(estate: Estate) -> tuple[dict[str, Any], Outcome]:
    """What there was before, and a run in check mode."""
    before = tree(estate.site.repository)
    return before, estate.run(MAINTENANCE, args=("--check",), keep_last=2)[1]


def test_check_mode_says_what_would_go_and_changes_nothing(estate: Estate, planned: tuple[dict[str, Any], Outcome]):
    before, outcome = planned
    assert tree(estate.site.repository) == before
    assert not outcome.failed
    assert (outcome.result["changed"], outcome.result["removed"]) == (True, 4)
    for name in estate.machines:
        assert any(line.startswith(f"{name}: 2 of 4 restore points") for line in outcome.summary), outcome.summary
        for number, point in enumerate(estate.points(name)):
            [line] = [line for line in outcome.summary if line.strip().startswith(os.path.basename(point["id"]) + ":")]
            assert ("last" in line) == (number >= NIGHTS - 2)
            assert ("would go" in line) == (number < NIGHTS - 2)


@pytest.fixture(scope="module")
def kept(estate: Estate, planned: tuple[dict[str, Any], Outcome]) -> Outcome:
    return estate.run(MAINTENANCE, keep_last=2, level="restore")[1]


def test_what_stays_is_what_was(estate: Estate, kept: Outcome):
    assert not kept.failed
    assert (kept.result["changed"], kept.result["removed"], kept.result["damage"]) == (True, 4, [])
    assert kept.result["bytes_freed"] > 0
    for name in estate.machines:
        points = estate.points(name)
        assert [contents(point) for point in points] == estate.held[name][-2:]
        assert {disk["kind"] for disk in points[0]["disks"]} == {"full"}
        assert {point["verification"]["level"] for point in points} == {"restore"}


def test_a_second_run_finds_nothing_to_do(estate: Estate, kept: Outcome):
    again = estate.run(MAINTENANCE, keep_last=2, min_age="1d")[1]
    assert (again.result["changed"], again.result["removed"]) == (False, 0)


def test_a_single_vm(estate: Estate, kept: Outcome):
    outcome = estate.run(MAINTENANCE, name="db", keep_last=1, verification=False)[1]
    assert [one["vm"]["name"] for one in outcome.result["objects"]] == ["db"]
    assert (len(estate.points("web")), len(estate.points("db"))) == (2, 1)
    assert outcome.result["examined"] == {}


@pytest.fixture(scope="module")
def damaged(estate: Estate, kept: Outcome) -> tuple[str, Outcome]:
    """An image of the only restore point of ``db`` has a flipped bit, and everything is verified."""
    image = estate.points("db")[-1]["disks"][0]["path"]
    with open(image, "r+b") as stream:
        stream.seek(-1000, os.SEEK_END)
        [byte] = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    return os.path.relpath(image, estate.site.repository), estate.run(VERIFY, rc=2)[1]


def test_damage_is_told_and_fails_the_run(estate: Estate, damaged: tuple[str, Outcome]):
    image, outcome = damaged
    assert outcome.failed
    assert image in outcome.message
    [damage] = outcome.result["damage"]
    [lost] = damage["lost"]
    assert (damage["vm"]["name"], lost["disks"], damage["restorable"]["newest"]) == ("db", ["Hard disk 1"], None)
    lines = [line.strip() for line in outcome.summary]
    number = next(number for number, line in enumerate(lines) if line.startswith(f"DAMAGED: db, {image}: "))
    assert lines[number + 1 : number + 3] == [
        f"lost: {os.path.basename(lost['restore_point'])} (Hard disk 1)",
        "newest that is whole: none",
    ]


def test_verify_lets_nothing_go(estate: Estate, damaged: tuple[str, Outcome]):
    assert damaged[1].result["objects"] == []
    assert len(estate.points("web")) == 2


def test_the_next_backup_of_a_damaged_disk_is_full(estate: Estate, damaged: tuple[str, Outcome]):
    result = estate.site.run(BACKUP, {"db": {}})["db"].result
    assert [disk["kind"] for disk in result["disks"]] == ["full", "incremental"]
    assert "damaged" in result["disks"][0]["reason"]


def test_what_cannot_be_done_leaves_the_rest_to_be_done(estate: Estate, damaged: tuple[str, Outcome]):
    """Another run is writing a restore point of ``web``; ``db`` gets rid of its damaged one."""
    machine = estate.machines["web"]
    vm = {"name": "web", "moid": machine.moid, "instance_uuid": machine.uuid}
    modules.run("restore_point", {"repository": str(estate.site.repository), "vm": vm, "disks": [], "run": "another"})
    wishes = {"keep_last": 1, "lock_timeout": 1, "remove_damaged": True}
    outcome = estate.run(MAINTENANCE, rc=2, **wishes)[1]
    assert "web: " in outcome.message
    assert "another" in outcome.message
    problems = {one["vm"]["name"]: one["problem"] for one in outcome.result["objects"]}
    assert (problems["web"]["error_type"], problems["db"]) == ("Locked", None)
    assert any(line.startswith("  NOT DONE: ") for line in outcome.summary)
    [point] = estate.points("db")
    assert contents(point) == estate.machines["db"].contents()
    assert outcome.result["damage"] == []


def test_a_repository_that_is_not_there(estate: Estate):
    outcome = estate.run(MAINTENANCE, rc=2, repository=str(estate.site.home / "absent"))[1]
    assert "absent" in outcome.message
