# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How runs are made: in check mode, by several proxies, with a limit; and that no secret shows."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests.integration.roles.support import (
    BACKUP,
    MIB,
    RESTORE,
    Machine,
    Run,
    Site,
    contents,
    tree,
)
from ansible_collections.holdfast.backup.tests.integration.running import wait_for
from ansible_collections.holdfast.backup.tests.lab.client import Lab

pytestmark = pytest.mark.timeout(600)

# Other runs on this machine, which may show theirs, have another.
SECRET = f"correct-h0rse/battery+staple-{os.urandom(6).hex()}"
CHECK = ["--check", "--diff"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose vCenter has a password that nothing else looks like."""
    with Lab.start(datastores=2, password=SECRET) as lab:
        yield Site(lab, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def machines(site: Site) -> dict[str, Machine]:
    """``old`` has a restore point; of ``new`` nothing is known, and its changes are not tracked."""
    old = site.machine("old", [MIB, {"size": MIB, "mode": "independent_persistent"}])
    site.backup(old)
    return {"old": old, "new": site.machine("new", [MIB], tracking=False)}


def world(site: Site) -> dict[str, Any]:
    """All that a run could change: VMs, their snapshots, every file of the lab and of the repository."""
    vms = {name: [site.lab.vm(moid), site.lab.snapshots(moid)] for name, moid in site.vms().items()}
    return {"vms": vms, "lab": tree(site.lab.root), "repository": tree(site.repository)}


def test_check_mode_of_backup(site: Site, machines: dict[str, Machine]):
    fresh = site.home / "fresh"
    fresh.mkdir()
    into_fresh = {"vm_backup_name": "new", "vm_backup_repository": str(fresh)}
    hosts = {
        "old": {},
        "new": into_fresh,
        "impossible": {**into_fresh, "vm_backup_mode": "incremental"},
    }
    before = world(site)
    run = site.run(BACKUP, hosts, rc=2, args=CHECK)
    assert world(site) == before
    assert list(fresh.iterdir()) == []
    [point] = site.points(machines["old"])
    assert run["old"].summary[:-1] == [
        "old: would make a restore point",
        f"  Hard disk 1: incremental, over {point['id']}",
        "  NOT PROTECTED: Hard disk 2 (independent disk (mode independent_persistent): snapshots leave it out)",
    ]
    assert run["new"].summary[:2] == [
        "new: would make a restore point",
        "  Hard disk 1: full (no earlier restore point)",
    ]
    assert run["impossible"].failed
    assert "no incremental backup is possible of Hard disk 1" in run["impossible"].message


def test_check_mode_of_restore(site: Site, machines: dict[str, Machine]):
    hosts = {
        "copy": {"vm_restore_vm": "old", "vm_restore_name": "copy"},
        "images": {
            "vm_restore_vm": "old",
            "vm_restore_to": "images",
            "vm_restore_image_dir": str(site.home / "images"),
        },
        "old": {},
    }
    before = world(site)
    run = site.run(RESTORE, hosts, rc=2, args=CHECK)
    assert world(site) == before
    assert not (site.home / "images").exists()
    [point] = site.points(machines["old"])
    assert run["copy"].summary[0] == f"old: would be restored to copy from {point['id']}"
    assert run["images"].summary[0] == f"old: would be restored from {point['id']}"
    assert run["old"].failed


@dataclass(frozen=True)
class Shared:
    """A run of three VMs on two proxies, watched for the secret."""

    run: Run
    machines: dict[str, Machine]
    seen: set[str]


@contextlib.contextmanager
def watching(secret: str) -> Iterator[set[str]]:
    """Gathers the processes, but the lab itself, in whose arguments or environment the secret shows meanwhile."""
    seen: set[str] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    arguments = (process / "cmdline").read_bytes()
                    shown = arguments + (process / "environ").read_bytes()
                    if secret.encode() in shown and b"/.build/lab\0" not in arguments:
                        seen.add(arguments.decode())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def holding(secret: str, directory: Path) -> list[Path]:
    """The files in which the secret is, but the inventories, into which the tests wrote it."""
    found = []
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.name != "inventory.json" and secret.encode() in path.read_bytes():
                found.append(path)
    return found


@pytest.fixture(scope="module")
def shared(site: Site, machines: dict[str, Machine]) -> Shared:
    made = {name: site.machine(name, [MIB]) for name in ("first", "second", "third", "outside")}
    broken = site.home / "broken" / "lib64"
    broken.mkdir(parents=True)
    (broken / "libvixDiskLib.so.8").write_bytes(b"not a library")
    hosts: dict = {name: {"vm_backup_password": SECRET} for name in made}
    hosts["third"]["vm_backup_vddk_libdir"] = str(broken.parent)
    proxy = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    options = ["-vvv", "--limit", "first,second,third", "--forks", "2"]
    with watching(SECRET) as seen:
        run = site.start(
            BACKUP,
            hosts,
            args=options,
            without=["VMWARE_PASSWORD"],
            backup_proxies={"proxy-1": proxy, "proxy-2": proxy},
        ).end(2)
    return Shared(run, made, seen)


def test_one_fails_and_the_others_do_not(site: Site, shared: Shared):
    assert [name for name in shared.machines if name != "outside" and shared.run[name].failed] == ["third"]
    for name in ("first", "second"):
        [point] = site.points(shared.machines[name])
        assert contents(point) == shared.machines[name].contents()
    assert all(machine.snapshots == [] for machine in shared.machines.values())


def test_proxies_share_the_work(shared: Shared):
    delegated = set(re.findall(r"changed: \[(\S+) -> (\S+?)\]", shared.run.output))
    assert delegated == {("first", "proxy-1"), ("second", "proxy-2"), ("third", "proxy-1")}


def test_one_after_the_other(shared: Shared):
    """A virtual machine's snapshot does not wait for the copies of others: the third begins when one has ended."""
    order = shared.run.hosts
    ended = [len(order) - 1 - order[::-1].index(name) for name in ("first", "second")]
    assert order.index("third") > min(ended)


def test_limit(site: Site, shared: Shared):
    assert not (site.repository / shared.machines["outside"].uuid).exists()


def test_no_secret_shows(site: Site, shared: Shared):
    """Not in the output at -vvv, not in arguments or environments of processes, not in any file that is left."""
    assert "EXEC" in shared.run.output
    assert SECRET not in shared.run.output
    assert shared.seen == set()
    # Ansible removes the files of a background job up to five seconds after its end.
    wait_for(lambda: not holding(SECRET, site.home) and not list((site.home / "tmp" / "async").glob("*")))
