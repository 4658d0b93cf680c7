# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Starts the lab vCenter and drives its control interface.

Sizes and offsets are bytes, ``moid`` is a VM's managed object ID, ``key`` the device key of a
disk. What the lab refuses raises :class:`LabError`.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any, Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / ".build"
SOURCES = REPOSITORY / "tests" / "lab"
START_TIMEOUT = 600


class LabError(Exception):
    """The lab refused or failed a control request."""


def build() -> Path:
    """Compile the lab if a source is newer than the program, and return the program's path."""
    program = BUILD / "lab"
    BUILD.mkdir(exist_ok=True)
    with open(BUILD / "lab.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = [*SOURCES.glob("*.go"), SOURCES / "go.mod", SOURCES / "go.sum"]
        newest = max(path.stat().st_mtime for path in sources if not path.name.endswith("_test.go"))
        if not program.exists() or program.stat().st_mtime < newest:
            go = BUILD / "bin" / "go"
            command = [str(go) if go.exists() else "go", "build", "-buildvcs=false", "-o", str(program), "."]
            done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
            if done.returncode:
                raise LabError(f"the lab does not compile: {done.stderr.strip()}")
        # The stand-in for VDDK: make knows what is older than its sources.
        subprocess.run(["make", "-s", "-C", str(SOURCES / "vddk")], check=True)
    return program


class Lab:
    """A running lab. Use :meth:`start` for one of your own, :meth:`attach` for somebody else's."""

    def __init__(self, ready: dict[str, Any], process: subprocess.Popen[str] | None = None) -> None:
        self._process = process
        self.ready = ready
        self.url: str = ready["url"]
        self.hostname: str = ready["host"]
        self.port: int = ready["port"]
        self.username: str = ready["user"]
        self.password: str = ready["password"]
        self.ca_file: str = ready["ca_file"]
        self.thumbprint: str = ready["thumbprint"]
        self.control: str = ready["control"]
        self.root = Path(ready["root"])
        self.vddk_libdir: str = ready["vddk_libdir"]
        self.nfc_port: int = ready["nfc_port"]
        self.nfc_thumbprint: str = ready["nfc_thumbprint"]

    # life

    @classmethod
    def start(cls, vms: int = 0, datastores: int = 1, **flags: Any) -> Lab:
        """Build if needed, start a lab on free ports and wait until it answers.

        :param vms: VMs to begin with, powered off, named ``idle0001`` ...
        :param flags: further command line flags: ``hosts``, ``user``, ``password``, ``root``, ``port``, ``verbose`` ...
        """
        given = {"vms": vms, "datastores": datastores, "vddk": BUILD / "vddk", **flags}
        command = [
            str(build()),
            *(f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in given.items()),
        ]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise LabError(f"the lab ended with status {process.wait()}: {' '.join(command)}")
        return cls(json.loads(line), process)

    @classmethod
    def attach(cls, control: str) -> Lab:
        """Join a running lab by the URL of its control interface."""
        return cls(_post(control, "ready", b"{}"))

    def stop(self) -> None:
        """End the lab if it is ours; its files go with it."""
        if self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # how others reach it

    def module_args(self) -> dict[str, Any]:
        """Connection options of the collection's modules."""
        return {
            "hostname": self.hostname,
            "port": self.port,
            "username": self.username,
            "password": self.password,
            "ca_path": self.ca_file,
        }

    def env(self) -> dict[str, str]:
        """The same as ``VMWARE_*`` environment variables."""
        return {
            "VMWARE_HOST": self.hostname,
            "VMWARE_PORT": str(self.port),
            "VMWARE_USER": self.username,
            "VMWARE_PASSWORD": self.password,
            "VMWARE_CA_PATH": self.ca_file,
            "VMWARE_VALIDATE_CERTS": "true",
        }

    def call(self, verb: str, **params: Any) -> Any:
        """Send any verb of the control interface (tests/lab/README.md) and return its answer."""
        return _post(self.control, verb, json.dumps(params).encode())

    # virtual machines and disks

    def create_vm(self, name: str, disks: list[int | dict[str, Any]] | None = None, **spec: Any) -> dict[str, Any]:
        """Create a VM; returns ``{"moid", "instance_uuid", "name", "path", "disks": [{"key", "label", ...}]}``.

        :param disks: sizes, or ``{"size", "mode", "thin", "sharing", "backing", "controller", "datastore", "policy"}``
        :param spec: ``folder``, ``power`` ("poweredOn" or "poweredOff"), ``tracking`` (set and active), ``firmware``,
            ``nics`` (network names), ``tools`` ("running" or "notRunning"), ``version`` ("vmx-21"), ``controller``
            ("pvscsi", "lsilogic", "sata", "nvme", "ide"), ``bus_sharing``, ``extra_config``, ``guest_id``,
            ``datastore``, ``template``, ``fault_tolerance``, ``annotation``, ``cpus``, ``memory_mb``, ``policy``
        """
        given = [disk if isinstance(disk, dict) else {"size": disk} for disk in ([1 << 30] if disks is None else disks)]
        return self.call("create_vm", name=name, disks=given, **spec)

    def vm(self, moid: str) -> dict[str, Any]:
        """What :meth:`create_vm` returned, as it is now, with ``power`` and each disk's ``path`` and ``change_id``."""
        return self.call("vm", vm=moid)

    def vms(self) -> list[dict[str, str]]:
        """``moid`` and ``name`` of all VMs, the oldest first."""
        return self.call("vms")

    def destroy_vm(self, moid: str) -> None:
        """Delete a VM and its files at once, whatever runs on it."""
        self.call("destroy_vm", vm=moid)

    def power(self, moid: str, state: str) -> None:
        """Set the power state: ``poweredOn``, ``poweredOff`` or ``suspended``."""
        self.call("power", vm=moid, state=state)

    def connection(self, moid: str, state: str) -> None:
        """``connected``, ``disconnected``, ``inaccessible``, ``invalid``, ``orphaned``."""
        self.call("connection", vm=moid, state=state)

    def tools(self, moid: str, running: bool) -> None:
        """Start or stop VMware Tools, as the guest does when it has booted."""
        self.call("tools", vm=moid, running=running)

    def add_disk(self, moid: str, size: int, **spec: Any) -> dict[str, Any]:
        """Add an empty disk; takes the keys of a disk of :meth:`create_vm` and returns the disk's record."""
        return self.call("add_disk", vm=moid, disk={"size": size, **spec})

    def grow_disk(self, moid: str, key: int, size: int) -> None:
        """Make a disk larger."""
        self.call("grow_disk", vm=moid, key=key, size=size)

    def remove_disk(self, moid: str, key: int) -> None:
        """Detach a disk and delete its files."""
        self.call("remove_disk", vm=moid, key=key)

    def replace_disk(self, moid: str, key: int, size: int | None = None) -> dict[str, Any]:
        """Put a new, empty disk with a new backing UUID under the same key; returns its record."""
        return self.call("replace_disk", vm=moid, key=key, size=size or 0)

    def relocate(self, moid: str, datastore: str) -> None:
        """Storage vMotion: move all disks of a VM, with what its snapshots hold, to another datastore."""
        self.call("relocate", vm=moid, datastore=datastore)

    # first class disks: with ``fcd`` in their name as those of a VM's disk, by the disk's ID

    def create_fcd(
        self, name: str, size: int, datastore: str = "", tracking: bool = False, **spec: Any
    ) -> dict[str, Any]:
        """Create a first class disk of whole MiB; returns what :meth:`fcd` returns.

        :param spec: ``provisioning`` ("thin", "lazyZeroedThick", "eagerZeroedThick"), ``keep`` when its VM is deleted,
            ``metadata`` (a dict), ``policy`` (name or ID of a storage policy), ``consumers`` (IDs of who else uses it)
        """
        return self.call("create_fcd", name=name, size=size, datastore=datastore, tracking=tracking, **spec)

    def fcd(self, fcd: str) -> dict[str, Any]:
        """All about it: ``{"id", "name", "datastore", "datastore_moid", "path", "capacity", "backing_uuid",
        "change_id", "provisioning", "metadata", "policy", "consumers", "control_flags", "snapshots", "vm", "key"}``;
        ``vm`` (moid) and ``key`` are those of the device if attached."""
        return self.call("fcd", fcd=fcd)

    def fcds(self) -> list[dict[str, Any]]:
        """All first class disks, by ID."""
        return self.call("fcds")

    def destroy_fcd(self, fcd: str) -> None:
        """Delete it at once with its snapshots, whoever uses it."""
        self.call("destroy_fcd", fcd=fcd)

    def attach_fcd(self, fcd: str, moid: str, controller: int = 0, unit: int | None = None) -> dict[str, Any]:
        """Attach it to a VM; returns the VM's record of the disk."""
        return self.call("attach_fcd", fcd=fcd, vm=moid, controller=controller, unit=unit)

    def detach_fcd(self, fcd: str) -> None:
        """Take it off its VM, if it is on any."""
        self.call("detach_fcd", fcd=fcd)

    def create_tag(self, category: str, name: str) -> str:
        """Make a tag, and its category if there is none; returns the tag's ID."""
        return self.call("create_tag", category=category, name=name)

    def fcd_snapshot(self, fcd: str, description: str = "") -> str:
        """Take a snapshot, as somebody else would; returns its ID."""
        return self.call("fcd_snapshot", fcd=fcd, description=description)

    def fcd_delete_snapshot(self, fcd: str, snapshot: str) -> None:
        """Delete a snapshot by its ID."""
        self.call("fcd_delete_snapshot", fcd=fcd, snapshot=snapshot)

    def fcd_snapshots(self, fcd: str) -> list[dict[str, Any]]:
        """Its snapshots, oldest first: ``[{"id", "description", "path", "change_id", "created"}]``."""
        return self.call("fcd_snapshots", fcd=fcd)

    def fcd_file(self, fcd: str, snapshot: str = "") -> Path:
        """The raw file, of now or of a snapshot. To read only."""
        return Path(self.call("file", fcd=fcd, snapshot=snapshot)["file"])

    def fcd_write(self, fcd: str, offset: int, data: bytes) -> None:
        """Write as its user would, be it attached or not."""
        self.call("write", fcd=fcd, offset=offset, data=base64.b64encode(data).decode())

    def fcd_read(self, fcd: str, offset: int = 0, length: int | None = None, snapshot: str = "") -> bytes:
        """Read from it or from a snapshot."""
        return _read(self.fcd_file(fcd, snapshot), offset, length)

    def fcd_trim(self, fcd: str, offset: int, length: int) -> None:
        """Discard a range."""
        self.call("trim", fcd=fcd, offset=offset, length=length)

    def fcd_scatter(self, fcd: str, places: int, length: int = 65536, seed: int = 0) -> list[list[int]]:
        """Write incompressible data in many places; returns ``[[offset, length], ...]``."""
        return self.call("scatter", fcd=fcd, places=places, length=length, seed=seed)

    def fcd_load(self, fcd: str, image: str | os.PathLike[str]) -> int:
        """Make its content that of a raw file; returns the bytes written."""
        return self.call("load", fcd=fcd, file=os.fspath(image))

    def fcd_reset_tracking(self, fcd: str, lose: bool = False) -> None:
        """Give its tracking a new UUID, or ``lose`` it."""
        self.call("reset_tracking", fcd=fcd, lose=lose)

    # disk content

    def file(self, moid: str, key: int, snapshot: str | None = None) -> Path:
        """The raw file of a disk, of the running VM or of a snapshot (moid). To read only: see :meth:`edit`."""
        return Path(self.call("file", vm=moid, key=key, snapshot=snapshot or "")["file"])

    def write(self, moid: str, key: int, offset: int, data: bytes) -> None:
        """Write as the guest would; change tracking sees it."""
        self.call("write", vm=moid, key=key, offset=offset, data=base64.b64encode(data).decode())

    def read(
        self, moid: str, key: int, offset: int = 0, length: int | None = None, snapshot: str | None = None
    ) -> bytes:
        """Read from the running VM's disk or from a snapshot."""
        return _read(self.file(moid, key, snapshot), offset, length)

    def trim(self, moid: str, key: int, offset: int, length: int) -> None:
        """Discard a range as the guest would: it reads as zeros and is unallocated."""
        self.call("trim", vm=moid, key=key, offset=offset, length=length)

    def scatter(self, moid: str, key: int, places: int, length: int = 65536, seed: int = 0) -> list[list[int]]:
        """Write incompressible data in many places, spread evenly; returns ``[[offset, length], ...]``."""
        return self.call("scatter", vm=moid, key=key, places=places, length=length, seed=seed)

    def load(self, moid: str, key: int, image: str | os.PathLike[str]) -> int:
        """Make the disk's content that of a raw file, writing only what differs; returns the bytes written."""
        return self.call("load", vm=moid, key=key, file=os.fspath(image))

    @contextlib.contextmanager
    def edit(self, moid: str, key: int) -> Iterator[Path]:
        """A copy of the disk as a raw file, to change by any tool; what differs is written back at the end."""
        with tempfile.TemporaryDirectory(dir=self.root) as scratch:
            copy = Path(scratch) / "disk.raw"
            source = self.file(moid, key)
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, copy], check=True)
            yield copy
            self.load(moid, key, copy)

    def format(self, moid: str, key: int, directory: str | os.PathLike[str] | None = None, fs: str = "ext4") -> None:
        """Make a file system, filled from a directory. The same disk gets the same UUIDs each time,
        so that formatting again with a changed directory writes little but the changes."""
        with tempfile.TemporaryDirectory(dir=self.root) as scratch:
            image = Path(scratch) / "disk.raw"
            image.touch()
            os.truncate(image, self.file(moid, key).stat().st_size)
            command = [_tool(f"mkfs.{fs}"), "-q", "-F", "-U", "5eed0000-0000-4000-8000-000000000000"]
            if fs.startswith("ext"):
                command += ["-E", "hash_seed=5eed0000-0000-4000-8000-000000000001,lazy_itable_init=1,nodiscard"]
            if directory is not None:
                command += ["-d", os.fspath(directory)]
            subprocess.run([*command, str(image)], check=True, capture_output=True)
            self.load(moid, key, image)

    # snapshots and change tracking

    def snapshots(self, moid: str) -> list[dict[str, Any]]:
        """All snapshots, parents first, each as the verb ``snapshots`` describes it (README.md)."""
        return self.call("snapshots", vm=moid)

    def take_snapshot(self, moid: str, name: str, **how: Any) -> str:
        """Take a snapshot as somebody else would; returns its moid, or "" of one that is still being taken.

        :param how: ``description``, ``memory``, ``age`` (so many seconds ago), ``user`` (whose task it was; without one
            vCenter remembers no task), ``seconds`` (how long it takes), ``background`` (do not wait for it)
        """
        return self.call("take_snapshot", vm=moid, name=name, **how).get("moid", "")

    def remove_snapshot(self, moid: str, snapshot: str, **how: Any) -> None:
        """Remove a snapshot as somebody else would: ``children``, ``consolidate``, ``seconds``, ``background``."""
        self.call("remove_snapshot", vm=moid, snapshot=snapshot, **how)

    def busy(self, moid: str, seconds: float, name: str = "relocate") -> None:
        """Let a task of this name run on a VM for so long: others are refused meanwhile."""
        self.call("task", vm=moid, name=name, seconds=seconds, background=True)

    def tasks(self, moid: str) -> list[dict[str, Any]]:
        """A VM's tasks, oldest first, each as the verb ``tasks`` describes it (README.md)."""
        return self.call("tasks", vm=moid)

    def before(self, method: str, verb: str, count: int = 1, skip: int = 0, object: str = "", **params: Any) -> None:
        """When a client next calls ``method``, do a verb of the control interface first: the world changes meanwhile.

        :param skip: let so many calls go by first; ``object``: only calls to the object of this moid
        """
        self.call("fault", method=method, do=verb, count=count, skip=skip, object=object, **{"with": params})

    def datastore(self, name: str, **values: Any) -> dict[str, Any]:
        """Set a datastore's ``free`` and ``capacity`` (bytes) and ``maintenance_mode``; returns its summary."""
        return self.call("datastore", name=name, **values)

    def tracking(self, **knobs: Any) -> dict[str, Any]:
        """Turn knobs of change tracking and snapshots (README.md) and return them all; clear_faults puts them back."""
        return self.call("knobs", **knobs)

    def reset_tracking(self, moid: str, key: int, lose: bool = False) -> None:
        """Give a disk's tracking a new UUID, or ``lose`` it: its tracking file is gone until the next stun."""
        self.call("reset_tracking", vm=moid, key=key, lose=lose)

    # bad days

    def fault(
        self,
        method: str = "",
        task: str = "",
        fault: str = "",
        fields: dict[str, Any] | None = None,
        count: int = 1,
        skip: int = 0,
        delay_ms: int = 0,
        message: str = "",
        object: str = "",
        drop: bool = False,
        status: int = 0,
        partly: int = 0,
    ) -> None:
        """Misbehave ``count`` times (0: for ever) in a call of ``method`` or in a ``task``, after ``skip`` good ones.

        Names are patterns: ``CreateSnapshot*_Task``, ``createSnapshot*``, ``VirtualMachine.reconfigVm``.
        :param object: only for the object of this moid
        :param fault: type name of the fault; none for a mere delay
        :param drop: reset the connection (calls only); ``status``: answer with this HTTP status
        :param partly: of a removal of several snapshots: so many are gone when it fails
        """
        rule = {
            "method": method,
            "task": task,
            "fault": fault,
            "fields": fields or {},
            "count": count,
            "skip": skip,
            "delay_ms": delay_ms,
            "message": message,
            "object": object,
            "drop": drop,
            "status": status,
            "partly": partly,
        }
        self.call("fault", **rule)

    def clear_faults(self) -> None:
        """Forget all injected faults and put the knobs of tracking back."""
        self.call("clear_faults")

    def expire_sessions(self) -> int:
        """End all sessions as an idle time-out would; returns how many."""
        return self.call("expire_sessions")

    def solution_user(self, name: str, certificate: str) -> None:
        """Make a user of Single Sign-On who has a key instead of a password. ``certificate`` is PEM."""
        self.call("solution_user", name=name, certificate=certificate)

    def saml_token(self, user: str | None = None, seconds: int = 600, audience: str = "") -> str:
        """A bearer token, good for so many seconds; negative: that has expired."""
        return self.call("saml_token", user=user or self.username, seconds=seconds, audience=audience)

    def drop_connections(self) -> int:
        """Reset all open connections to the vCenter; returns how many."""
        return self.call("drop_connections")

    def crash_host(self, host: str) -> list[str]:
        """A host dies (named by its moid or that of one of its VMs): its VMs lose power; returns their moids."""
        return self.call("crash_host", host=host)

    # what clients did

    def requests(self, reset: bool = False) -> dict[str, Any]:
        """Requests since the last reset: ``{"total", "logins", "methods": {}, "sessions": {}, "http": {}}``."""
        return self.call("requests", reset=reset)

    def sessions(self) -> list[dict[str, Any]]:
        """The open sessions: ``[{"key", "userName", "userAgent", "callCount", ...}]``."""
        return self.call("sessions")

    def vddk(self, **knobs: Any) -> dict[str, Any]:
        """Change how the stand-in for VDDK behaves; what is not given stays. tests/lab/vddk/README.md lists the knobs.

        :returns: ``{"knobs", "opens", "open", "closed", "prepared", "violations"}``, what it has been used for
        """
        return self.call("vddk", **knobs)

    def nfc(self, **knobs: Any) -> dict[str, Any]:
        """Change how the hosts' NFC service behaves; what is not given stays. README.md lists the knobs.

        :returns: ``{"knobs", "tickets", "connections", "open", "closed", "reads", "writes", "bytes_read",
            "bytes_written", "max_in_flight", "violations"}``, what it has been used for
        """
        return self.call("nfc", **knobs)


def _read(file: Path, offset: int, length: int | None) -> bytes:
    with open(file, "rb") as disk:
        disk.seek(offset)
        return disk.read() if length is None else disk.read(length)


def _post(control: str, verb: str, body: bytes) -> Any:
    parts = urllib.parse.urlsplit(control)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=START_TIMEOUT)
    try:
        connection.request("POST", f"/control/{verb}", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status == http.client.NOT_FOUND:
            raise LabError(f"no control verb {verb!r}")
        result = json.loads(content)
        if answer.status != http.client.OK:
            raise LabError(f"{verb}: {result['error']}")
        return result
    finally:
        connection.close()


def _tool(name: str) -> str:
    """File system tools live in sbin, which is not in everybody's PATH."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise LabError(f"{name} is not installed")
    return found
