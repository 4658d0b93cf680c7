# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens to copies in their middle: connections, sessions, disks and processes go, space ends.

Hosts that refuse, connections that break and sources that go are tried by both ways to the disks. Which process of a
copy is killed has nothing to do with the way: the victims are divided between them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.roles.support import (
    BACKUP,
    MIB,
    Machine,
    Run,
    Site,
    contents,
    leftovers,
    mounted,
)
from ansible_collections.holdfast.backup.tests.integration.running import kill, parent, processes, wait_for

pytestmark = pytest.mark.timeout(600)

SIZE = 8 * MIB
# Larger disks than the others, so that faults can be put where only these have bytes.
SIZES = {"dropped": 12 * MIB, "reset": 12 * MIB, "refused": 16 * MIB, "rejected": 16 * MIB}
FAULTS = {
    "vddk": [
        {"op": "read", "start": 9 * MIB, "length": MIB, "code": 14011, "count": 2},
        {"op": "read", "start": 13 * MIB, "length": MIB, "code": 14009, "count": 1000},
    ],
    "native": [
        {"op": "read", "start": 9 * MIB, "length": MIB, "action": "drop", "count": 2},
        {"op": "read", "start": 13 * MIB, "length": MIB, "action": "error", "code": 7, "count": 1000},
    ],
}
NATIVE = ("rejected", "unsnapped", "module", "reset", "again")
# What the message must say of each that fails: cause and next step.
FAILED = {
    "refused": ("14009", "902"),
    "rejected": ("refused with the code 7", "hostd.log"),
    "gone": ("VIX_E_VM_NOT_FOUND", "run the backup again"),
    "unsnapped": ("snapshot-", "run the backup again"),
    "servers": ("1: The copy failed: nbdcopy was ended by SIGKILL", "2: The copy failed: qemu-nbd was", "journal"),
    "module": ("ended without a result", "journal"),
    "full": ("No space left", "Make room"),
}
SURVIVED = ("dropped", "reset", "again")


@dataclass(frozen=True)
class Day:
    machines: dict[str, Machine]
    run: Run
    held: dict[str, dict[str, bytes]]
    small: Path


def _slow(site: Site) -> None:
    """Copies of 0.7 MiB per second, so that each is in its middle while others are being interrupted."""
    site.lab.vddk(latency_ms=750, in_flight=1)
    site.lab.nfc(rate=2 * MIB // 3)


def _is_copied(machine: Machine) -> bool:
    """Whether all disks of a VM are being read."""
    handles = [*machine.lab.vddk()["open"], *machine.lab.nfc()["open"]]
    return len([handle for handle in handles if handle["vm"] == machine.moid]) == len(machine.disks)


def _copier(machine: Machine, program: str, disk: int = 0) -> int:
    """The process of a program that works on an image of the VM, which may be about to start."""
    words = (f"/{machine.uuid}/", f"disk-{machine.disks[disk]['key']}.qcow2")

    def found() -> int | None:
        return next((number for number, args in processes(*words).items() if Path(args[0]).name == program), None)

    return wait_for(found)


def _reader(machine: Machine) -> int:
    """The process of nbdkit, which knows the disk only; nbdcopy has started it."""
    copier = _copier(machine, "nbdcopy")
    return wait_for(lambda: next((pid for pid in processes("nbdkit", "python") if parent(pid) == copier), None))


def _kill_servers(machine: Machine) -> None:
    """Of one disk's copy nbdcopy, of the other's the server that writes the image."""
    for disk, program in enumerate(("nbdcopy", "qemu-nbd")):
        kill(_copier(machine, program, disk))


def _remove_snapshot(site: Site, machine: Machine) -> None:
    ours = {"moid": machine.moid, "stamp": {"job": f"vm_backup {site.repository}"}}
    assert modules.run("vm_snapshot", {**site.lab.module_args(), **ours, "state": "absent"})["changed"]


@pytest.fixture(scope="module")
def small(site: Site) -> Iterator[Path]:
    """A file system with room for less than a disk."""
    directory = site.home / "small"
    directory.mkdir()
    if os.geteuid():
        yield directory
        return
    with mounted(directory, "-t", "tmpfs", "-o", "size=4m", "none"):
        yield directory


@pytest.fixture(scope="module")
def day(site: Site, small: Path) -> Day:
    """One run in which each VM's copy is interrupted in its own way. Some VMs have a restore point already."""
    names = [*FAILED, *SURVIVED]
    if os.geteuid():
        names.remove("full")
    machines = {name: site.machine(name, [SIZES.get(name, SIZE)] * (2 if name == "servers" else 1)) for name in names}
    for name in ("refused", "rejected", "unsnapped", "module"):
        site.backup(machines[name])
        site.snapshot(machines[name])
    for machine in machines.values():
        for number, disk in enumerate(machine.disks):
            machine.write(number, 0, os.urandom(disk["capacity"]))
    held = {name: machine.contents() for name, machine in machines.items()}
    site.lab.vddk(faults=FAULTS["vddk"])
    site.lab.nfc(faults=FAULTS["native"])
    _slow(site)
    hosts: dict = {name: site.access("native" if name in NATIVE else "vddk") for name in names}
    hosts["again"]["vm_backup_copy_retries"] = 1
    if "full" in hosts:
        hosts["full"]["vm_backup_repository"] = str(small)
    run = site.start(BACKUP, hosts)
    waiting = {
        "again": lambda vm: kill(_reader(vm)),
        "servers": _kill_servers,
        "module": lambda vm: kill(parent(_copier(vm, "nbdcopy"))),
        "gone": lambda vm: site.lab.destroy_vm(vm.moid),
        "unsnapped": lambda vm: _remove_snapshot(site, vm),
        "dropped": lambda vm: (site.lab.expire_sessions(), site.lab.drop_connections()),
    }
    while waiting:
        name = wait_for(lambda: next((name for name in waiting if _is_copied(machines[name])), None), 200)
        waiting.pop(name)(machines[name])
    run.end(2)
    site.lab.vddk(reset=True)
    site.lab.nfc(reset=True)
    return Day(machines, run, held, small)


@pytest.mark.parametrize("name", FAILED)
def test_failed(day: Day, name: str):
    if name not in day.machines:
        pytest.skip("only root can make a small file system")
    outcome = day.run[name]
    assert outcome.failed
    assert f"No restore point of {name} was made" in outcome.message
    assert [text for text in FAILED[name] if text not in outcome.message] == [], outcome.message


@pytest.mark.parametrize("name", SURVIVED)
def test_survived(site: Site, day: Day, name: str):
    """A connection that comes back, sessions that expire, and, with a second try, a server that was killed."""
    assert not day.run[name].failed
    [point] = site.points(day.machines[name])
    assert contents(point) == day.held[name]


def test_nothing_is_left(site: Site, day: Day):
    """Earlier restore points are whole, no snapshot of ours and no process is left."""
    for name, machine in day.machines.items():
        assert leftovers(day.small if name == "full" else site.repository, machine.uuid) == []
        if name != "gone":
            assert machine.snapshots == machine.foreign
        wait_for(lambda vm=machine: not processes(f"/{vm.uuid}/"))
    for name in ("refused", "rejected", "unsnapped", "module"):
        assert len(site.points(day.machines[name])) == 1


def test_next_run(site: Site, day: Day):
    """By the role where the copy left the most, module by module for the others."""
    roles = {name: {} for name in ("unsnapped", "module", "full") if name in day.machines}
    if "full" in roles:
        roles["full"] = {"vm_backup_repository": str(day.small)}
        day.machines["full"].write(0, 0, bytes(6 * MIB))
    run = site.run(BACKUP, roles)
    for name in FAILED:
        if name not in day.machines or name == "gone":
            continue
        machine = day.machines[name]
        if name in roles:
            assert not run[name].failed
        else:
            site.backup(machine)
        assert contents(site.points(machine, day.small if name == "full" else None)[-1]) == machine.contents()
        assert machine.snapshots == machine.foreign


def test_killed_playbook(site: Site):
    """The copy of a playbook that was killed does not get in the way of the next run, and ends."""
    machine = site.machine("orphan", [SIZE])
    site.backup(machine)
    machine.write(0, 0, os.urandom(SIZE))
    _slow(site)
    killed = site.start(BACKUP, {"orphan": {}})
    wait_for(lambda: _is_copied(machine), 200)
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait()
    site.lab.vddk(reset=True)
    site.lab.nfc(reset=True)
    assert leftovers(site.repository, machine.uuid)
    run = site.run(BACKUP, {"orphan": {}})
    assert [disk["kind"] for disk in run["orphan"].result["disks"]] == ["incremental"]
    wait_for(lambda: not processes(f"/{machine.uuid}/"))
    assert machine.snapshots == []
    older, newer = site.points(machine)
    assert contents(newer) == machine.contents() != contents(older)


def test_disk_added_meanwhile(site: Site):
    """Between the look at the VM and its snapshot: the restore point says that it does not hold the disk."""
    machine = site.machine("growing", [MIB])
    run = site.start(BACKUP, {"growing": {}})
    wait_for(lambda: leftovers(site.repository, machine.uuid), 60)
    added = site.lab.add_disk(machine.moid, MIB)
    run.end(0)
    [told] = run["growing"].result["not_protected"]
    [point] = site.points(machine)
    [recorded] = point["unprotected"]
    assert told["backing_uuid"] == recorded["backing_uuid"] == added["backing_uuid"]
    assert "added after this backup began" in recorded["reason"]
