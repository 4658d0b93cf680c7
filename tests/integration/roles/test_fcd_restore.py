# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restores of first class disks: which point, to what, what is refused, and what failures and kills leave.

The hosts in ``NATIVE`` take that way to the disks, so that a new disk, one in place and a failure are tried by both.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.roles import volumes
from ansible_collections.holdfast.backup.tests.integration.roles.support import (
    MIB,
    Machine,
    Run,
    Site,
)
from ansible_collections.holdfast.backup.tests.integration.roles.volumes import RESTORE, Volume
from ansible_collections.holdfast.backup.tests.integration.running import kill, processes, wait_for

pytestmark = pytest.mark.timeout(600)

CLAIM = "pvc-0b7c9d51-2f64-4f0e-8a3e-7c5d1e2f3a4b"
METADATA = {"cns.k8s.pvc.name": "data", "cns.k8s.pvc.namespace": "shop"}
NATIVE = ("back", "worked", "unwritten-natively")
FLAGS = {"keep_after_delete_vm": True, "enable_changed_block_tracking": True, "disable_relocation": True}


@dataclass(frozen=True)
class Past:
    """``claim`` has three restore points, the others one each; of ``hurt`` it is damaged, ``gone`` is no more."""

    disks: dict[str, Volume]
    worker: Machine
    moments: list[bytes]  # of the claim
    points: list[dict[str, Any]]
    held: dict[str, bytes]  # at the backup
    now: dict[str, bytes]  # of those that were written to since


@pytest.fixture(scope="module")
def past(site: Site) -> Past:
    claim = volumes.volume(site, CLAIM, 2 * MIB, metadata=METADATA)
    modules.run("fcd", {**site.lab.module_args(), "id": claim.id, "control_flags": FLAGS})
    moments = []
    for moment in range(3):
        claim.write(moment * 65536 + 300, os.urandom(70_000))
        moments.append(claim.content())
        volumes.backup(site, claim)
        time.sleep(1.1)  # the points get times of different seconds
    names = ("inside", "worked", "stubborn", "hurt", "gone", "grown")
    disks = {name: volumes.volume(site, name, 16 * MIB if name == "stubborn" else MIB) for name in names}
    worker = site.machine("worker", [MIB])
    for name in ("inside", "worked", "gone"):
        site.lab.attach_fcd(disks[name].id, worker.moid)
    site.backup(worker)
    disks["stubborn"].write(9 * MIB, os.urandom(MIB))
    for name, disk in disks.items():
        if name != "inside":
            volumes.backup(site, disk)
    held = {name: disk.content() for name, disk in disks.items()}
    [point] = volumes.points(site, disks["hurt"])
    image = Path(point["disks"][0]["path"])
    image.write_bytes(image.read_bytes()[:-1] + b"!")
    site.lab.destroy_fcd(disks["gone"].id)
    modules.run("fcd", {**site.lab.module_args(), "id": disks["grown"].id, "capacity": 2 * MIB})
    for name in ("worked", "stubborn"):
        disks[name].write(9 * MIB if name == "stubborn" else 0, os.urandom(100_000))
    now = {name: disks[name].content() for name in ("worked", "stubborn")}
    return Past({**disks, CLAIM: claim}, worker, moments, volumes.points(site, claim), held, now)


@dataclass(frozen=True)
class Case:
    """One host of the run. ``says``: what its message must hold; empty for a restore that must succeed."""

    variables: dict[str, Any]
    says: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def cases(site: Site, past: Past) -> dict[str, Case]:
    first, second, _third = past.points
    images, disks = str(site.home / "images"), past.disks
    taken = site.home / "taken"
    taken.mkdir()
    (taken / f"{disks[CLAIM].id}.qcow2").write_bytes(b"precious")
    return {
        CLAIM: Case({"name": "newest"}),
        disks[CLAIM].id: Case({"as_of": second["time"], "name": "as-of", "datastore": "LocalDS_1", "with": []}),
        "image": Case({"id": first["id"], "to": "image", "image_dir": images, "image_format": "raw"}),
        "inside": Case(
            {"fcd": disks["inside"].id, "name": "of-vm", "attach": True},
            ("of-vm is restored", "attached to worker", "taken"),
        ),
        "back": Case({"fcd": "gone", "name": "back", "attach": True}),
        "worked": Case({"to": "same", "detach": True}),
        "attached": Case({"fcd": "worked", "to": "same"}, ("worked is attached to worker", "fcd_restore_detach")),
        "taken-name": Case({"fcd": CLAIM}, (CLAIM, "name")),
        "taken-image": Case(
            {"fcd": CLAIM, "to": "image", "image_dir": str(taken)}, ("exists already", "fcd_restore_image_dir")
        ),
        "no-datastore": Case({"fcd": CLAIM, "name": "n1", "datastore": "Nodisk"}, ("Nodisk",)),
        "no-disk": Case({"fcd": "stranger"}, ("stranger", "restore_point_info")),
        "not-in-it": Case(
            {"fcd": disks["hurt"].id, "id": past_vm_point(site, past)}, ("does not hold", disks["inside"].id)
        ),
        "gone": Case({"to": "same"}, (disks["gone"].id, "any more", "new")),
        "grown": Case({"to": "same"}, ("2097152 bytes now", "1048576 at the backup")),
        "hurt": Case({"name": "n2"}, ("is not whole", "disk-0.qcow2", "fcd_restore_id")),
        "stubborn": Case({"to": "same"}, ("stubborn was not restored", "It holds what it held before", "DISK_FULL")),
        "unwritten": Case(
            {"fcd": "stubborn", "name": "n3"},
            ("stubborn was not restored", "Nothing of it was left behind", "DISK_FULL"),
        ),
        "unwritten-natively": Case(
            {"fcd": "stubborn", "name": "n4"},
            ("stubborn was not restored", "Nothing of it was left behind", "refused with the code 8"),
        ),
    }


def past_vm_point(site: Site, past: Past) -> str:
    """The restore point of the VM."""
    return next(point["id"] for point in volumes.holding(site, past.disks["inside"]) if point["vm"])


@pytest.fixture(scope="module")
def restored(site: Site, cases: dict[str, Case]) -> Run:
    """All cases in one run. Writing behind the end of the small disks fails."""
    fault = {"op": "write", "start": 9 * MIB, "length": MIB, "code": 8, "count": 1000}
    site.lab.vddk(faults=[fault])
    site.lab.nfc(faults=[{**fault, "action": "error"}])
    hosts = {
        name: {
            **site.access("native" if name in NATIVE else "vddk"),
            **{f"fcd_restore_{option}": value for option, value in case.variables.items()},
        }
        for name, case in cases.items()
    }
    run = volumes.run(site, RESTORE, hosts, rc=2)
    site.lab.vddk(reset=True)
    site.lab.nfc(reset=True)
    volumes.assert_helper_is_clean(site)
    return run


def made(site: Site, restored: Run, host: str) -> dict[str, Any]:
    """The record of a disk that was made, as it is now."""
    return Volume(site.lab, host, restored[host].result["fcd"]["id"]).record()


def test_refused(restored: Run, cases: dict[str, Case]):
    """Each message says what, why and what to do; nobody else fails."""
    for host, case in cases.items():
        assert restored[host].failed == bool(case.says), f"{host}: {restored[host].failures}"
        if case.says:
            message = restored[host].message
            assert [text for text in case.says if text not in message] == [], message


def test_newest_to_a_new_disk(site: Site, restored: Run, past: Past):
    """By the disk's name: all that it was is back, and it is another disk."""
    new = made(site, restored, CLAIM)
    assert new["id"] != past.disks[CLAIM].id
    assert (new["name"], new["datastore"], new["capacity"]) == ("newest", "LocalDS_0", 2 * MIB)
    assert (new["metadata"], new["control_flags"], new["provisioning"]) == (METADATA, FLAGS, "thin")
    assert site.lab.fcd_read(new["id"]) == past.moments[2]
    assert f"{CLAIM}: restored to newest ({new['id']})" in restored[CLAIM].summary[0]


def test_as_of_by_id(site: Site, restored: Run, past: Past):
    host = past.disks[CLAIM].id
    new = made(site, restored, host)
    assert restored[host].result["restore_point"] == past.points[1]["id"]
    assert (new["name"], new["datastore"], new["metadata"]) == ("as-of", "LocalDS_1", {})
    assert site.lab.fcd_read(new["id"]) == past.moments[1]


def test_image(restored: Run, past: Past):
    image = Path(restored["image"].result["image"])
    assert image.name == f"{past.disks[CLAIM].id}.raw"
    assert image.read_bytes() == past.moments[0]


def test_of_a_virtual_machines_restore_point(site: Site, restored: Run, past: Past):
    """A disk that was only ever backed up with its VM; that its place is taken does not take it away again."""
    [new] = [fcd for fcd in site.lab.fcds() if fcd["name"] == "of-vm"]
    assert restored["inside"].result["fcd"]["id"] == new["id"]
    assert new["vm"] == ""
    assert site.lab.fcd_read(new["id"]) == past.held["inside"]


def test_attached_where_it_was(site: Site, restored: Run, past: Past):
    """A disk that is gone, its restore point one of its own."""
    new = made(site, restored, "back")
    saved = volumes.saved(volumes.points(site, past.disks["gone"])[0])
    assert new["attached_to"] == saved["attached_to"]
    assert new["attached_to"]["vm"]["moid"] == past.worker.moid
    assert site.lab.fcd_read(new["id"]) == past.held["gone"]


def test_in_place(site: Site, restored: Run, past: Past):
    """Same ID, old content, only what changed written, attached where it was, and no snapshot left."""
    disk = past.disks["worked"]
    assert disk.content() == past.held["worked"] != past.now["worked"]
    record = disk.record()
    assert record["attached_to"]["vm"]["moid"] == past.worker.moid
    assert record["snapshots"] == []
    assert record["control_flags"]["enable_changed_block_tracking"]
    assert restored["worked"].result["fcd"]["id"] == disk.id
    [written] = restored["worked"].result["disks"]
    assert (written["reason"], written["bytes_written"]) == (None, 131072)


def test_backup_after_a_restore_in_place_is_full(site: Site, restored: Run, past: Past):
    volumes.backup(site, past.disks["worked"])
    newest = volumes.points(site, past.disks["worked"])[-1]
    assert newest["disks"][0]["kind"] == "full"
    assert "tracking" in newest["disks"][0]["reason"]
    assert volumes.content(newest) == past.held["worked"]


def test_failure_in_place_changes_nothing(restored: Run, past: Past):
    disk = past.disks["stubborn"]
    assert disk.content() == past.now["stubborn"]
    record = disk.record()
    assert record["snapshots"] == []
    assert record["control_flags"]["enable_changed_block_tracking"]


def test_nothing_else_is_made(site: Site, restored: Run):
    names = sorted(fcd["name"] for fcd in site.lab.fcds())
    assert names == sorted([CLAIM, "inside", "worked", "stubborn", "hurt", "grown", "newest", "as-of", "of-vm", "back"])
    assert (site.home / "taken").glob("*") != []
    assert [path.read_bytes() for path in (site.home / "taken").iterdir()] == [b"precious"]
    assert not list((site.home / "images").glob("*.partial"))


def test_killed_and_taken_up_again(site: Site, past: Past, restored: Run):
    """The next run finds the unfinished disk by its mark and finishes it; in place it writes what is needed."""
    wanted = {
        "stubborn": {"fcd_restore_name": "again"},
        "same": {"fcd_restore_fcd": "stubborn", "fcd_restore_to": "same"},
    }
    site.lab.vddk(latency_ms=5000, in_flight=1)  # both are in the middle of their copies at the same time
    by_vddk = {name: {**options, **site.access("vddk")} for name, options in wanted.items()}
    killed = volumes.start(site, RESTORE, by_vddk)
    wait_for(lambda: len(site.lab.vddk()["open"]) == 2, 200)
    handles = site.lab.vddk()["open"]
    copiers = processes(f"/{past.disks['stubborn'].id}/")
    os.killpg(killed.process.pid, signal.SIGKILL)
    kill(*copiers, *(handle["pid"] for handle in handles))
    killed.process.wait()
    site.lab.vddk(reset=True)
    [begun] = [fcd for fcd in site.lab.fcds() if fcd["name"] == "again"]
    natively = {name: {**options, **site.access("native")} for name, options in wanted.items()}
    run = volumes.run(site, RESTORE, natively)
    volumes.assert_helper_is_clean(site)
    assert run["stubborn"].result["fcd"]["id"] == begun["id"]
    assert site.lab.fcd_read(begun["id"]) == past.held["stubborn"] == past.disks["stubborn"].content()
    assert past.disks["stubborn"].snapshots == []
    assert Volume(site.lab, "again", begun["id"]).record()["metadata"] == {}
