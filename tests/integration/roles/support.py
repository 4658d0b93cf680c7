# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests of the roles share: a lab with a repository, real runs of the playbooks, and what they must leave."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.backup_chain import Chain
from ansible_collections.holdfast.backup.tests.lab.client import REPOSITORY, Lab

MIB = 1 << 20
BACKUP, RESTORE = "holdfast.backup.backup", "holdfast.backup.restore"
WAYS = ("vddk", "native")
ROLES = ("vm_backup", "vm_restore", "fcd_backup", "fcd_restore")
Hosts = dict[str, dict[str, Any]]


@dataclass
class Machine:
    """A VM of the lab. ``foreign`` are its snapshots that are not ours and must stay."""

    lab: Lab
    name: str
    moid: str
    uuid: str
    disks: list[dict[str, Any]]
    foreign: list[dict[str, Any]] = field(default_factory=list)

    def write(self, disk: int, offset: int, data: bytes) -> None:
        """As the guest would; ``disk`` counts from 0."""
        self.lab.write(self.moid, self.disks[disk]["key"], offset, data)

    def content(self, disk: int) -> bytes:
        return self.lab.read(self.moid, self.disks[disk]["key"])

    def contents(self) -> dict[str, bytes]:
        """The bytes of each disk by its backing UUID."""
        return {disk["backing_uuid"]: self.content(number) for number, disk in enumerate(self.disks)}

    def look(self) -> None:
        """See which disks there are now."""
        self.disks = self.lab.vm(self.moid)["disks"]

    @property
    def snapshots(self) -> list[dict[str, Any]]:
        return self.lab.snapshots(self.moid)


@dataclass(frozen=True)
class Outcome:
    """What became of one host: the events that the callback recorder wrote."""

    events: list[dict[str, Any]]

    @property
    def failed(self) -> bool:
        [stats] = [event["result"] for event in self.events if event["status"] == "stats"]
        return bool(stats["failures"] or stats["unreachable"])

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Results of the tasks that failed, in order."""
        return [event["result"] for event in self.events if event["status"] == "failed"]

    @property
    def message(self) -> str:
        """The last thing said of the failure."""
        return self.failures[-1]["msg"]

    @property
    def result(self) -> dict[str, Any]:
        """The fact that the role leaves."""
        facts = [event["result"].get("ansible_facts", {}) for event in self.events]
        return next(value for fact in reversed(facts) for name, value in fact.items() if name.endswith("_result"))

    @property
    def summary(self) -> list[str]:
        """The lines that the role shows at its end."""
        return next(e["result"]["msg"] for e in reversed(self.events) if e["task"] == "Report | Show the result")


class Run:
    """One ansible-playbook, running or ended."""

    def __init__(self, command: list[str], env: dict[str, str], directory: Path) -> None:
        self._output, self._record = directory / "output", directory / "record"
        self._record.touch()
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                command,
                env={**env, "RECORD": str(self._record)},
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def end(self, rc: int | None = None, timeout: float = 500) -> Run:
        """Wait for the end, and for the status if one is expected."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert rc is None or status == rc, f"ansible-playbook: {status}, not {rc}\n{self.output}"
        return self

    @cached_property
    def _events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._record.read_text().splitlines()]

    @property
    def hosts(self) -> list[str]:
        """The host of each task that ran, in the order of their ends."""
        return [event["host"] for event in self._events if event["status"] != "stats"]

    def __getitem__(self, host: str) -> Outcome:
        return Outcome([event for event in self._events if event["host"] == host])


class Site:
    """A lab, a repository for its VMs, and everything a run of a playbook leaves, below one directory.

    :param ways: to the disks; if there are both, hosts take them in turn
    """

    def __init__(self, lab: Lab, home: Path, ways: Sequence[str] = WAYS) -> None:
        self.lab, self.home, self.ways = lab, home, ways
        self._turns: dict[str, int] = {}
        self.repository = home / "repository"
        self.repository.mkdir()
        self._runs = 0

    def machine(self, name: str, disks: list[Any], **spec: Any) -> Machine:
        """A running VM with tracked disks whose first 64 KiB and last sector hold data."""
        given = {"power": "poweredOn", "tools": "running", "tracking": True, **spec}
        vm = self.lab.create_vm(name, disks=disks, **given)
        made = Machine(self.lab, name, vm["moid"], vm["instance_uuid"], vm["disks"])
        for number, disk in enumerate(made.disks):
            made.write(number, 0, os.urandom(65536))
            made.write(number, disk["capacity"] - 512, os.urandom(512))
        return made

    def library(self, way: str) -> str:
        """The directory of the stand-in for VDDK, if that is the way."""
        return self.lab.vddk_libdir if way == "vddk" else ""

    def way(self, host: str) -> str:
        """The way to the disks that it is a host's turn to take."""
        turn = self._turns.setdefault(host, len(self._turns))
        self._turns[host] += 1
        return self.ways[turn % len(self.ways)]

    def access(self, way: str) -> dict[str, str]:
        """The variables of a host that takes this way."""
        return {f"{role}_vddk_libdir": self.library(way) for role in ROLES}

    def variables(self) -> dict[str, Any]:
        """What all hosts of an inventory share."""
        common = {"repository": str(self.repository)}
        both = {f"vm_{role}_{name}": value for role in ("backup", "restore") for name, value in common.items()}
        return {**both, "vm_backup_copy_retries": 0}

    def start(
        self, playbook: str, hosts: Hosts, args: Sequence[str] = (), without: Sequence[str] = (), **groups: Hosts
    ) -> Run:
        """Start a playbook for hosts with variables of their own.

        :param without: environment variables to leave out
        :param groups: further groups of hosts
        """
        self._runs += 1
        directory = self.home / f"run-{self._runs}"
        directory.mkdir()
        children = {name: {"hosts": members} for name, members in groups.items()}
        chosen = {name: {**self.access(self.way(name)), **given} for name, given in hosts.items()}
        everything = {"hosts": chosen, "vars": self.variables(), "children": children}
        (directory / "inventory.json").write_text(json.dumps({"all": everything}))
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventory.json", playbook]
        environment = {name: value for name, value in self._environment().items() if name not in without}
        return Run([*command, *args], environment, directory)

    def run(self, playbook: str, hosts: Hosts, rc: int | None = 0, **more: Any) -> Run:
        """Run a playbook to its end, with the exit status expected."""
        return self.start(playbook, hosts, **more).end(rc)

    def vms(self) -> dict[str, str]:
        """The moids of all VMs by their names."""
        with Connection(Endpoint(**self.lab.module_args())) as c:
            root = c.content.rootFolder
            view = c.call(c.content.viewManager.CreateContainerView, root, [vim.VirtualMachine], True)
            return {vm.name: vm._GetMoId() for vm in view.view}

    def snapshot(self, machine: Machine) -> None:
        """Take a snapshot as somebody else would; it must stay."""
        modules.run("vm_snapshot", {**self.lab.module_args(), "moid": machine.moid, "snapshot_name": "somebody's"})
        machine.foreign = machine.snapshots

    def backup(self, machine: Machine) -> None:
        """Make a restore point as the role does, in a tenth of the time."""
        library = self.library(self.way(machine.name))
        Chain(self.lab.module_args(), machine.moid, str(self.repository), library).backup(modules.run)

    def points(self, machine: Machine, repository: Path | None = None, whole: bool = True) -> list[dict[str, Any]]:
        """The restore points of a VM, oldest first, whole unless damage was done, with nothing beside them."""
        repository = repository or self.repository
        assert leftovers(repository, machine.uuid) == []
        if not any((repository / machine.uuid).iterdir()):
            return []
        asked = {"repository": str(repository), "instance_uuid": machine.uuid, "verify": "content"}
        found = modules.run("restore_point_info", asked)["restore_points"]
        assert [point["verified"] for point in found if whole and not point["verified"]["ok"]] == []
        return found

    def _environment(self) -> dict[str, str]:
        here = Path(__file__).parent
        temporary = self.home / "tmp"
        temporary.mkdir(exist_ok=True)
        return {
            **os.environ,
            **self.lab.env(),
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".build" / "collections"),
            "ANSIBLE_CALLBACK_PLUGINS": str(here / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "recorder",
            "ANSIBLE_HOME": str(self.home / "ansible"),
            "ANSIBLE_LOCAL_TEMP": str(temporary / "local"),
            "ANSIBLE_REMOTE_TEMP": str(temporary / "remote"),
            "ANSIBLE_ASYNC_DIR": str(temporary / "async"),
            "TMPDIR": str(temporary),
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORKS": "12",
        }


def leftovers(repository: Path, uuid: str) -> list[str]:
    """What lies in the directory of a VM beside complete restore points."""
    directory = repository / uuid
    names = os.listdir(directory) if directory.is_dir() else []
    return sorted(name for name in names if not re.fullmatch(r"\d{8}T\d{6}Z", name))


def contents(point: dict[str, Any]) -> dict[str, bytes]:
    """The bytes of each disk of a restore point by its backing UUID, as qemu-img sees them."""
    return {disk["backing_uuid"]: image_content(disk["path"], disk["capacity"]) for disk in point["disks"]}


def image_content(path: str | os.PathLike[str], capacity: int) -> bytes:
    """The bytes of a qcow2 image with all below it."""
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory) / "raw"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
        return raw.read_bytes()[:capacity]


def tree(directory: Path) -> dict[str, tuple[Any, ...]]:
    """Every name below a directory with what tells whether it was touched."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(directory))] = (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns)
    return found


@contextlib.contextmanager
def mounted(directory: Path, *options: str) -> Iterator[None]:
    """A file system over a directory, for root: ``mounted(path, "-t", "tmpfs", "-o", "size=8m", "none")``."""
    subprocess.run(["mount", *options, directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
