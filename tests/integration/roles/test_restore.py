# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restores: which point, to what, what is refused, and what is left when they fail or are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.backup_chain import Chain
from ansible_collections.holdfast.backup.tests.integration.roles.support import (
    MIB,
    RESTORE,
    Machine,
    Run,
    Site,
    image_content,
)
from ansible_collections.holdfast.backup.tests.integration.running import kill, processes, wait_for

pytestmark = pytest.mark.timeout(600)

ACCESS = ["vddk", "native"]
ODD = 2 * MIB + 3 * 512  # bytes, no multiple of 64 KiB
Moment = dict[str, bytes]  # what each disk held, by its backing UUID


@dataclass(frozen=True)
class Past:
    """``web`` has three restore points; of the others there is one, that of ``hurt`` is damaged. The configuration in
    that of ``late`` has more disks than the restore point holds, and a newer one cannot be read."""

    web: Machine
    big: Machine
    late: Machine
    moments: list[Moment]
    points: list[dict[str, Any]]


def _backup_while_disks_are_added(site: Site, machine: Machine) -> None:
    """They come between the look at the VM and its snapshot, and a raw disk has no backing UUID."""

    def run(module: str, args: dict[str, Any]) -> dict[str, Any]:
        if "snapshot_name" in args:
            for _disk in range(3):
                site.lab.add_disk(machine.moid, MIB)
        if args.get("state") == "completed":
            args = {**args, "unprotected": [{"label": "Hard disk 9", "reason": "raw"}]}
        return modules.run(module, args)

    Chain(site.lab.module_args(), machine.moid, str(site.repository), site.library(site.ways[0])).backup(run)


@pytest.fixture(scope="module")
def past(site: Site) -> Past:
    web = site.machine("web", [ODD, MIB], nics=["VM Network"], firmware="efi")
    big = site.machine("big", [8 * MIB])
    hurt = site.machine("hurt", [MIB])
    late = site.machine("late", [MIB])
    _backup_while_disks_are_added(site, late)
    (site.repository / late.uuid / "20990101T000000Z").mkdir()
    moments = []
    for moment in range(3):
        web.write(moment % 2, moment * 65536 + 300, os.urandom(70_000))
        moments.append(web.contents())
        site.backup(web)
        time.sleep(1.1)  # the points get times of different seconds
    big.write(0, 0, os.urandom(8 * MIB))
    for machine in (big, hurt):
        site.backup(machine)
    [point] = site.points(hurt)
    image = Path(point["disks"][0]["path"])
    image.write_bytes(image.read_bytes()[:-1] + b"!")
    return Past(web, big, late, moments, site.points(web))


@dataclass(frozen=True)
class Case:
    """One host of the run. ``says``: what its message must hold; empty for a restore that must succeed."""

    variables: dict[str, Any]
    says: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def cases(site: Site, past: Past) -> dict[str, Case]:
    first, second, _third = past.points
    taken = site.home / "taken"
    taken.mkdir()
    (taken / f"disk-{past.web.disks[1]['key']}.raw").write_bytes(b"precious")
    shared = site.home / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    full = "VIX_E_DISK_FULL" if site.ways == ("vddk",) else "code 8"
    to_images = {"vm": "web", "to": "images", "image_dir": str(site.home / "images")}
    mapped = {
        "folder": "restored/here",
        "datastore": "LocalDS_1",
        "networks": {"VM Network": "DC0_DVPG0"},
        "power_on": True,
    }
    return {
        "newest": Case({**to_images}),
        "to-vmdk": Case({**to_images, "image_format": "vmdk", "image_dir": str(shared)}),
        "fewer-disks": Case({"vm": "late", "name": "late-again"}),
        "by-id": Case({**to_images, "id": first["id"], "image_format": "raw", "vm": "whatever"}),
        "as-of": Case({"vm": "web", "as_of": second["time"], "name": "web-as-of", **mapped}),
        "by-uuid": Case({"vm": past.web.uuid, "name": "web-by-uuid"}),
        "taken-name": Case({"vm": "web"}, ("web", "already", "name")),
        "taken-images": Case(
            {**to_images, "image_dir": str(taken), "image_format": "raw"}, ("exists already", "vm_restore_image_dir")
        ),
        "no-directory": Case({**to_images, "image_dir": ""}, ("vm_restore_image_dir",)),
        "no-network": Case({"vm": "web", "name": "n1", "networks": {"VM Network": "Nowhere"}}, ("Nowhere", "network")),
        "no-datastore": Case({"vm": "web", "name": "n2", "datastore": "Nodisk"}, ("Nodisk", "datastore")),
        "no-vm": Case({"vm": "stranger"}, ("stranger", "restore_point_info")),
        "no-point": Case({"id": first["id"][:-7] + "000000Z"}, (first["id"][:-7] + "000000Z",)),
        "too-early": Case({"vm": "web", "as_of": "2001-01-01T00:00:00Z"}, ("2001-01-01",)),
        "damaged": Case({"vm": "hurt", "name": "n3"}, ("is not whole", "disk-2000.qcow2", "vm_restore_id")),
        "write-error": Case({"vm": "big", "name": "n4"}, ("big was not restored", "Nothing of it", full)),
    }


@pytest.fixture(scope="module")
def restored(site: Site, cases: dict[str, Case]) -> Run:
    """All cases in one run. Writing behind the end of the small disks fails."""
    site.lab.create_vm("elsewhere", disks=[], folder="restored/here")
    fault = {"op": "write", "start": 5 * MIB, "length": MIB, "code": 8, "count": 1000}
    site.lab.vddk(faults=[fault])
    site.lab.nfc(faults=[{**fault, "action": "error"}])
    hosts = {
        name: {f"vm_restore_{option}": value for option, value in case.variables.items()}
        for name, case in cases.items()
    }
    run = site.run(RESTORE, hosts, rc=2)
    site.lab.vddk(reset=True)
    site.lab.nfc(reset=True)
    return run


def held(site: Site, run: Run, host: str) -> list[bytes]:
    """What the disks of a restored VM hold."""
    moid = run[host].result["vm"]["moid"]
    return [site.lab.read(moid, disk["key"]) for disk in site.lab.vm(moid)["disks"]]


def test_refused(restored: Run, cases: dict[str, Case]):
    """Each message says what, why and what to do; nobody else fails."""
    for host, case in cases.items():
        assert restored[host].failed == bool(case.says), host
        if case.says:
            message = restored[host].message
            assert [text for text in case.says if text not in message] == [], message


def test_newest_to_images(restored: Run, past: Past):
    """Images of the disk's true size, which need no other file."""
    images = restored["newest"].result["images"]
    for image, disk in zip(images, past.web.disks):
        assert (
            subprocess.run(["qemu-img", "info", image], capture_output=True, check=True).stdout.count(b"backing") == 0
        )
        content = image_content(image, 1 << 40)
        assert content == past.moments[2][disk["backing_uuid"]]


def test_by_id_to_raw_images(restored: Run, past: Past):
    images = restored["by-id"].result["images"]
    assert [Path(image).read_bytes() for image in images] == list(past.moments[0].values())
    assert f"  {images[0]}" in restored["by-id"].summary


def test_to_vmdk_images_in_a_directory_of_others(site: Site, restored: Run, past: Past):
    for image, wanted in zip(restored["to-vmdk"].result["images"], past.moments[2].values()):
        subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", image, f"{image}.raw"], check=True)
        assert Path(f"{image}.raw").read_bytes() == wanted
    assert (site.home / "shared").stat().st_mode & 0o777 == 0o755


def test_disks_that_the_point_does_not_hold(site: Site, restored: Run, past: Past):
    """Each disk gets its own image; those without one stay empty, and are told."""
    content, *others = held(site, restored, "fewer-disks")
    assert content == past.late.content(0)
    assert others == [bytes(MIB)] * 3
    assert "20990101T000000Z is damaged and passed over" in restored["fewer-disks"].result["warnings"][0]
    left_out = [disk["label"] for disk in restored["fewer-disks"].result["not_restored"]]
    assert left_out == ["Hard disk 9", "Hard disk 2", "Hard disk 3", "Hard disk 4"]
    assert "  NOT RESTORED: Hard disk 4 (the restore point does not hold it; it was made empty)" in (
        restored["fewer-disks"].summary
    )


def test_as_of_with_everything_mapped(site: Site, restored: Run, past: Past):
    result = restored["as-of"].result
    assert result["restore_point"] == past.points[1]["id"]
    vm = site.lab.vm(result["vm"]["moid"])
    assert vm["power"] == "poweredOn"
    assert vm["path"].endswith("/restored/here/web-as-of")
    assert {disk["path"].split("]")[0] for disk in vm["disks"]} == {"[LocalDS_1"}
    assert held(site, restored, "as-of") == list(past.moments[1].values())


def test_by_uuid(site: Site, restored: Run, past: Past):
    assert site.lab.vm(restored["by-uuid"].result["vm"]["moid"])["power"] == "poweredOff"
    assert held(site, restored, "by-uuid") == list(past.moments[2].values())


def test_nothing_else_is_made(site: Site, restored: Run):
    names = set(site.vms())
    assert names == {"web", "big", "hurt", "late", "elsewhere", "late-again", "web-as-of", "web-by-uuid"}
    assert [path.name for path in (site.home / "taken").iterdir()] == ["disk-2001.raw"]
    assert (site.home / "taken" / "disk-2001.raw").read_bytes() == b"precious"
    assert not list((site.home / "images").glob("*.partial"))


def test_killed_and_taken_up_again(site: Site, past: Past, restored: Run):
    """The next run finds the unfinished VM by its mark, and finishes it."""
    site.lab.vddk(latency_ms=250, in_flight=1)
    site.lab.nfc(latency_ms=250)
    wanted = {"big": {"vm_restore_name": "again"}}
    killed = site.start(RESTORE, wanted)
    handle = wait_for(lambda: site.lab.vddk()["open"] or site.lab.nfc()["open"], 60)[0]
    copiers = processes(f"/{past.big.uuid}/")
    os.killpg(killed.process.pid, signal.SIGKILL)
    kill(*copiers, *([handle["pid"]] if "pid" in handle else []))
    killed.process.wait()
    site.lab.vddk(reset=True)
    site.lab.nfc(reset=True)
    begun = site.vms()["again"]
    run = site.run(RESTORE, wanted)
    assert run["big"].result["vm"]["moid"] == begun
    assert held(site, run, "big") == list(past.big.contents().values())
