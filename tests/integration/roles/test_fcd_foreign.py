# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots that the storage interface of Kubernetes, Velero and others made of a disk are none of our business.

One disk gets such snapshots before, during, between and after backups and restores by the real playbooks. None of them
may be read, reverted to or deleted, and what is backed up and restored must be what the disk held. Of the backups and
of the restores, the first is made by VDDK and the second natively.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from ansible_collections.holdfast.backup.tests.integration.roles import volumes
from ansible_collections.holdfast.backup.tests.integration.roles.support import MIB, Run, Site
from ansible_collections.holdfast.backup.tests.integration.roles.volumes import BACKUP, RESTORE, Volume
from ansible_collections.holdfast.backup.tests.integration.running import wait_for

pytestmark = pytest.mark.timeout(600)

NAME = "pvc-3f9d7c52-5a0e-4a43-9d0b-6c1b1a9e2f77"
SIZE = 8 * MIB


@dataclass(frozen=True)
class Life:
    """A disk that was backed up twice and restored in place, with the snapshots of others all the while."""

    disk: Volume
    held: list[bytes]  # at each restore point
    before: bytes  # before the restores
    backups: list[Run]
    failed: Run
    restored: Run
    after: bytes
    opened: list[str]  # the snapshots that the disk library was asked for; empty for the disk itself


def _opened(site: Site, disk: Volume) -> list[str]:
    """The snapshots that were read since the last time this was asked, or none for the disk itself."""
    closed = site.lab.vddk()["closed"]
    site.lab.vddk(reset=True)
    return [handle["snapshot"] for handle in closed if handle["fcd"] == disk.id]


def _backup_with_a_snapshot_in_its_middle(site: Site, disk: Volume) -> Run:
    """While the disk is read, somebody takes a snapshot: now ours is neither the first nor the last of all."""
    site.lab.vddk(latency_ms=300, in_flight=1)
    run = volumes.start(site, BACKUP, {NAME: site.access("vddk")})
    wait_for(lambda: site.lab.vddk()["open"], 200)
    disk.snapshot("taken during a backup")
    disk.write(3 * MIB, os.urandom(70_000))
    site.lab.vddk(latency_ms=0)
    return run.end(0)


@pytest.fixture(scope="module")
def life(site: Site) -> Life:
    disk = volumes.volume(site, NAME, SIZE)
    disk.write(0, os.urandom(SIZE))
    disk.snapshot("cns: VolumeSnapshot snap-1")
    disk.write(MIB, os.urandom(100_000))
    held = [disk.content()]
    backups = [_backup_with_a_snapshot_in_its_middle(site, disk)]
    disk.snapshot("velero: nightly")
    disk.write(2 * MIB, os.urandom(100_000))
    held.append(disk.content())
    backups.append(volumes.run(site, BACKUP, {NAME: site.access("native")}))
    disk.snapshot("")
    disk.write(4 * MIB, os.urandom(100_000))
    before = disk.content()
    keep = {"fcd_restore_to": "same", "fcd_restore_foreign_snapshots": "keep"}
    unaware = {"fcd_restore_fcd": NAME, "fcd_restore_to": "same"}
    opened = _opened(site, disk)
    site.lab.vddk(faults=[{"op": "write", "start": 0, "length": SIZE, "code": 14009, "count": 1000}])
    hosts = {NAME: {**keep, **site.access("vddk")}, "unaware": {**unaware, **site.access("native")}}
    failed = volumes.run(site, RESTORE, hosts, rc=2)
    opened += _opened(site, disk)
    assert disk.content() == before
    first = {"fcd_restore_id": volumes.points(site, disk)[0]["id"]}
    restored = volumes.run(site, RESTORE, {NAME: {**keep, **first, **site.access("native")}})
    volumes.assert_helper_is_clean(site)
    opened += _opened(site, disk)
    return Life(disk, held, before, backups, failed, restored, disk.content(), opened)


def test_they_are_there_and_hold_what_they_held(life: Life):
    assert len(life.disk.foreign) == 4
    life.disk.others_are_untouched()


def test_no_one_read_them(life: Life):
    """The disk library was asked for snapshots of ours and for the disk itself, never for theirs."""
    assert set(life.opened) & set(life.disk.foreign) == set()
    # That of the first backup. The second was made natively, of a disk that vCenter made from its snapshot.
    assert len({snapshot for snapshot in life.opened if snapshot}) == 1
    assert "" in life.opened


def test_restore_points_hold_what_the_disk_held(site: Site, life: Life):
    found = volumes.points(site, life.disk)
    assert [volumes.content(point) for point in found] == life.held
    assert [disk["kind"] for point in found for disk in point["disks"]] == ["full", "incremental"]


def test_a_restore_that_fails_sets_back_its_own_snapshot(life: Life):
    message = life.failed[NAME].message
    for text in ("was not restored", "It holds what it held before", "14009"):
        assert text in message


def test_a_restore_in_place_writes_above_them(life: Life):
    assert life.after == life.held[0] != life.before
    result = life.restored[NAME].result
    assert result["fcd"]["id"] == life.disk.id
    # The restore that failed has ended the tracking of changes, which cannot begin anew below snapshots that stay.
    assert "tracking" in result["disks"][0]["reason"]


def test_refused_unless_said(life: Life):
    """Who does not know of them shall hear of them first."""
    message = life.failed["unaware"].message
    for text in (*life.disk.foreign, "velero: nightly", "fcd_restore_foreign_snapshots"):
        assert text in message
