# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab from outside: pyVmomi on the wire, raw files beside it."""

from __future__ import annotations

import contextlib
import random
import re
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import requests
from ansible_collections.holdfast.backup.tests.lab.client import Lab, LabError
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

BLOCK = 64 << 10
MIB = 1 << 20


class Guest:
    """A VM of the lab with pyVmomi's object of it."""

    def __init__(self, lab: Lab, si: Any, name: str, **spec: Any) -> None:
        self.lab = lab
        self.record = lab.create_vm(name, **{"disks": [MIB], "tracking": True, **spec})
        self.moid: str = self.record["moid"]
        self.vm = vim.VirtualMachine(self.moid, si._stub)

    def snapshot(self, name: str = "s", memory: bool = False, quiesce: bool = False) -> Any:
        task = self.vm.CreateSnapshot_Task(name, "", memory, quiesce)
        WaitForTask(task)
        return task.info.result

    def disk(self, holder: Any = None, key: int = 2000) -> Any:
        return next(d for d in (holder or self.vm).config.hardware.device if d.key == key)

    def change_id(self, holder: Any = None, key: int = 2000) -> str | None:
        return self.disk(holder, key).backing.changeId

    def areas(self, snapshot: Any, change_id: str, key: int = 2000) -> list[tuple[int, int]]:
        """All pages of a query, with the claims of each page checked."""
        capacity = self.disk(snapshot, key).capacityInBytes
        found, start = [], 0
        while start < capacity:
            page = self.vm.QueryChangedDiskAreas(snapshot, key, start, change_id)
            assert page.startOffset == start
            assert page.length > 0
            for area in page.changedArea:
                assert start <= area.start < area.start + area.length <= start + page.length
                found.append((area.start, area.length))
            start += page.length
        assert start == capacity
        return found


def connect(lab: Lab, password: str | None = None) -> Any:
    return SmartConnect(
        host=lab.hostname,
        port=lab.port,
        user=lab.username,
        pwd=password or lab.password,
        sslContext=ssl.create_default_context(cafile=lab.ca_file),
    )


@pytest.fixture
def si(lab: Lab) -> Iterator[Any]:
    instance = connect(lab)
    yield instance
    with contextlib.suppress(vim.fault.NotAuthenticated):  # the test ended the session
        Disconnect(instance)


@pytest.fixture
def guest(lab: Lab, si: Any, request: pytest.FixtureRequest) -> Callable[..., Guest]:
    """Makes VMs that are named after the test."""
    made: list[Guest] = []

    def make(**spec: Any) -> Guest:
        made.append(Guest(lab, si, f"{request.node.name}-{len(made)}"[-70:], **spec))
        return made[-1]

    return make


def task_fault(task: Any) -> Any:
    with pytest.raises(vmodl.MethodFault) as caught:
        WaitForTask(task)
    return caught.value


# sessions and connections


def test_wrong_password_is_refused(lab: Lab) -> None:
    with pytest.raises(vim.fault.InvalidLogin):
        connect(lab, password="wrong")


def test_speaks_the_api_it_says(si: Any) -> None:
    assert si._stub.version == "vim.version.v8_0_3_0"
    assert si.content.about.apiVersion == "8.0.3.0"


def test_certificate_and_thumbprint(lab: Lab) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(lab.url, timeout=10)
    assert requests.get(lab.url, verify=lab.ca_file, timeout=10).status_code == 405  # GET of what takes POST
    pem = ssl.get_server_certificate((lab.hostname, lab.port))
    told = subprocess.run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha1"], input=pem, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip().endswith(lab.thumbprint)


def test_an_expired_session_can_do_nothing(lab: Lab, si: Any, guest: Callable[..., Guest]) -> None:
    vm = guest().vm
    assert lab.expire_sessions() >= 1
    with pytest.raises(vim.fault.NotAuthenticated):
        vm.name  # noqa: B018
    with pytest.raises(vim.fault.NotAuthenticated):
        si.CurrentTime()


def test_dropped_connections_and_calls(lab: Lab, si: Any) -> None:
    si.CurrentTime()
    assert lab.drop_connections() >= 1
    lab.fault(method="CurrentTime", drop=True, count=3)
    with pytest.raises((ConnectionError, OSError)):
        si.CurrentTime()


def test_sessions_that_wait_at_once(lab: Lab, si: Any, guest: Callable[..., Guest]) -> None:
    """The simulator beneath tells only one of them of updates."""
    one = guest()
    lab.fault(task="createSnapshot", delay_ms=500, count=4)
    others = [connect(lab) for dummy in range(3)]
    task = one.vm.CreateSnapshot_Task("s", "", False, False)
    with ThreadPoolExecutor() as pool:
        waits = [pool.submit(WaitForTask, vim.Task(task._moId, other._stub), other) for other in others]
        assert {wait.result(20) for wait in waits} == {"success"}
    for other in others:
        Disconnect(other)


def test_requests_are_counted_by_method_and_session(lab: Lab, si: Any) -> None:
    lab.requests(reset=True)
    for dummy in range(3):
        si.CurrentTime()
    counts = lab.requests()
    assert counts["total"] == counts["methods"]["CurrentTime"] == 3
    key = si.content.sessionManager.currentSession.key
    assert lab.requests()["sessions"][key] > 3
    assert key in [session["key"] for session in lab.sessions()]


def test_datastore_files_need_a_session(lab: Lab, si: Any, guest: Callable[..., Guest]) -> None:
    one = guest(firmware="efi")
    nvram = next(o.value for o in one.vm.config.extraConfig if o.key == "nvram")
    assert any(f.type == "nvram" and f.name.endswith(nvram) for f in one.vm.layoutEx.file)
    url = f"https://{lab.hostname}:{lab.port}/folder/{one.vm.name}/{nvram}?dcPath=DC0&dsName=LocalDS_0"
    assert requests.get(url, verify=lab.ca_file, timeout=10).status_code == 401
    name, dummy, value = si._stub.cookie.partition(";")[0].partition("=")
    cookies = {name: value.strip('"')}
    assert len(requests.get(url, cookies=cookies, verify=lab.ca_file, timeout=10).content) == 270840
    assert requests.put(url, b"new", cookies=cookies, verify=lab.ca_file, timeout=10).ok
    assert requests.get(url, cookies=cookies, verify=lab.ca_file, timeout=10).content == b"new"
    lab.expire_sessions()
    assert requests.get(url, cookies=cookies, verify=lab.ca_file, timeout=10).status_code == 401


def test_every_property_of_a_vm_can_be_read(guest: Callable[..., Guest]) -> None:
    one = guest(power="poweredOn")
    snapshot = one.snapshot()
    for managed in (one.vm, snapshot):
        for prop in managed._GetPropertyList():
            getattr(managed, prop.name)


# faults on demand


def test_faults_of_calls(lab: Lab, si: Any) -> None:
    lab.fault(method="Current*", fault="TaskInProgress", message="busy today", skip=1, count=2)
    si.CurrentTime()
    for dummy in range(2):
        with pytest.raises(vim.fault.TaskInProgress, match="busy today"):
            si.CurrentTime()
    si.CurrentTime()
    with pytest.raises(LabError, match="NoSuchFault"):
        lab.fault(method="CurrentTime", fault="NoSuchFault")


def test_faults_and_delays_of_tasks(lab: Lab, guest: Callable[..., Guest]) -> None:
    one, other = guest(), guest()
    lab.fault(
        task="createSnapshot*", object=one.moid, fault="ApplicationQuiesceFault", message="VSS is ill", delay_ms=600
    )
    other.snapshot()
    task = one.vm.CreateSnapshot_Task("s", "", False, False)
    started = time.monotonic()
    assert one.vm.name  # a task at work does not lock the VM for readers
    assert isinstance(task_fault(one.vm.CreateSnapshot_Task("t", "", False, False)), vim.fault.TaskInProgress)
    seen = set()
    while task.info.state == "running":
        seen.add(task.info.progress)
    assert time.monotonic() - started > 0.4
    assert len(seen) > 2
    fault = task_fault(task)
    assert isinstance(fault, vim.fault.ApplicationQuiesceFault)
    assert fault.msg == "VSS is ill"
    assert one.vm.snapshot is None


def test_a_cancelled_task_stays_cancelled(lab: Lab, guest: Callable[..., Guest]) -> None:
    lab.fault(task="createSnapshot", delay_ms=300)
    task = guest().vm.CreateSnapshot_Task("s", "", False, False)
    task.CancelTask()
    time.sleep(0.5)
    assert task.info.state == "error"
    assert isinstance(task.info.error, vmodl.fault.RequestCanceled)


# snapshots


def test_random_life_of_a_disk(lab: Lab, guest: Callable[..., Guest]) -> None:
    """Write, snapshot, remove, revert at random; every state read back, every change told."""
    rng = random.Random(7)
    one = guest(power="poweredOn")
    lab.tracking(page=3)
    now = bytearray(MIB)
    states: dict[str, bytes] = {}
    objects: dict[str, Any] = {}
    for dummy in range(60):
        action = rng.choice(["write", "write", "write", "trim", "take", "take", "remove", "revert"])
        if action in ("write", "trim"):
            offset = rng.randrange(MIB)
            length = min(rng.randrange(1, 3 * BLOCK), MIB - offset)
            data = rng.randbytes(length) if action == "write" else bytes(length)
            if action == "write":
                lab.write(one.moid, 2000, offset, data)
            else:
                lab.trim(one.moid, 2000, offset, length)
            now[offset : offset + length] = data
        elif action == "take":
            snapshot = one.snapshot()
            objects[snapshot._moId], states[snapshot._moId] = snapshot, bytes(now)
        elif objects:
            moid = rng.choice(list(objects))
            if action == "remove":
                WaitForTask(objects.pop(moid).RemoveSnapshot_Task(False, True))
                del states[moid]
            else:
                WaitForTask(objects[moid].RevertToSnapshot_Task())
                now = bytearray(states[moid])
        assert lab.read(one.moid, 2000) == now
        for moid, content in states.items():
            assert lab.read(one.moid, 2000, snapshot=moid) == content
    truth_told(one, objects, states)
    WaitForTask(one.vm.RemoveAllSnapshots_Task())
    assert lab.read(one.moid, 2000) == now
    assert one.disk().backing.parent is None
    assert one.vm.snapshot is None


def truth_told(one: Guest, objects: dict[str, Any], states: dict[str, bytes]) -> None:
    """Whatever is answered about the changes between two snapshots covers the true difference."""
    told = 0
    for moid, snapshot in objects.items():
        for other, base in objects.items():
            try:
                areas = one.areas(snapshot, one.change_id(base))
            except vmodl.fault.InvalidArgument:
                continue  # said that it is not known
            told += 1
            for offset in range(0, MIB, BLOCK):
                if states[moid][offset : offset + BLOCK] != states[other][offset : offset + BLOCK]:
                    assert any(start <= offset < start + length for start, length in areas)
    assert told


def test_redo_files_and_chains(guest: Callable[..., Guest]) -> None:
    one = guest()
    first = one.snapshot("first")
    second = one.snapshot("second")
    base = one.disk(first).backing.fileName
    assert one.disk(second).backing.fileName.endswith("-000001.vmdk")
    live = one.disk().backing
    assert live.fileName.endswith("-000002.vmdk")
    assert (live.parent.fileName, live.parent.parent.fileName) == (one.disk(second).backing.fileName, base)
    assert live.uuid == one.disk(first).backing.uuid
    WaitForTask(first.RemoveSnapshot_Task(False))
    assert one.vm.snapshot.rootSnapshotList[0].snapshot == second
    assert one.disk(second).backing.fileName == base
    assert one.disk().backing.parent.fileName == base


def test_root_with_branches_can_go(guest: Callable[..., Guest]) -> None:
    """The simulator beneath ends its process here."""
    one = guest()
    root = one.snapshot("root")
    child = one.snapshot("child")
    WaitForTask(root.RevertToSnapshot_Task())
    branch = one.snapshot("branch")
    assert {tree.snapshot for tree in one.vm.snapshot.rootSnapshotList[0].childSnapshotList} == {child, branch}
    assert set(root.childSnapshot) == {child, branch}
    WaitForTask(root.RevertToSnapshot_Task())
    WaitForTask(root.RemoveSnapshot_Task(False))
    assert {tree.snapshot for tree in one.vm.snapshot.rootSnapshotList} == {child, branch}
    assert one.vm.snapshot.currentSnapshot is None
    WaitForTask(child.RemoveSnapshot_Task(True))
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        child.config  # noqa: B018


def test_rename_and_current(guest: Callable[..., Guest]) -> None:
    one = guest()
    with pytest.raises(vim.fault.NotFound):
        one.vm.RevertToCurrentSnapshot_Task()
    snapshot = one.snapshot("before")
    snapshot.RenameSnapshot("after", "why")
    tree = one.vm.snapshot.rootSnapshotList[0]
    assert (tree.name, tree.description) == ("after", "why")
    one.lab.write(one.moid, 2000, 0, b"x")
    WaitForTask(one.vm.RevertToCurrentSnapshot_Task())
    assert one.lab.read(one.moid, 2000, 0, 1) == b"\0"


def test_revert_restores_configuration_and_disks_of_then(guest: Callable[..., Guest]) -> None:
    one = guest(power="poweredOn", memory_mb=64)
    snapshot = one.snapshot(memory=True)
    WaitForTask(one.vm.PowerOffVM_Task())
    WaitForTask(one.vm.ReconfigVM_Task(vim.vm.ConfigSpec(memoryMB=128)))
    added = one.lab.add_disk(one.moid, MIB)
    WaitForTask(snapshot.RevertToSnapshot_Task())
    assert one.vm.config.hardware.memoryMB == 64
    assert added["key"] not in [d.key for d in one.vm.config.hardware.device]
    assert one.vm.runtime.powerState == "poweredOn"


@pytest.mark.parametrize(
    ("spec", "memory", "quiesce", "fault"),
    [
        ({"tools": "notRunning"}, False, True, vim.fault.FilesystemQuiesceFault),
        ({}, True, True, vmodl.fault.InvalidArgument),
        (
            {"disks": [{"size": MIB, "mode": "independent_persistent"}]},
            True,
            False,
            vim.fault.MemorySnapshotOnIndependentDisk,
        ),
        (
            {"disks": [{"size": MIB, "sharing": "sharingMultiWriter"}]},
            False,
            False,
            vim.fault.SnapshotIncompatibleDeviceInVm,
        ),
        ({"bus_sharing": "physicalSharing"}, False, False, vim.fault.SnapshotIncompatibleDeviceInVm),
        ({"template": True, "power": "poweredOff"}, False, False, vim.fault.InvalidState),
    ],
)
def test_snapshots_that_are_refused(
    guest: Callable[..., Guest], spec: dict[str, Any], memory: bool, quiesce: bool, fault: type
) -> None:
    one = guest(**{"power": "poweredOn", **spec})
    assert isinstance(task_fault(one.vm.CreateSnapshot_Task("s", "", memory, quiesce)), fault)
    assert one.vm.snapshot is None


def test_quiescing(guest: Callable[..., Guest]) -> None:
    one = guest(power="poweredOn")
    one.snapshot(quiesce=True)
    assert one.vm.snapshot.rootSnapshotList[0].quiesced
    late = vim.vm.GuestQuiesceSpec(timeout=3)
    assert isinstance(task_fault(one.vm.CreateSnapshotEx_Task("s", "", False, late)), vmodl.fault.InvalidArgument)
    off = guest()
    off.snapshot(quiesce=True)
    assert not off.vm.snapshot.rootSnapshotList[0].quiesced
    lame = guest(power="poweredOn", tools="notInstalled")
    lame.lab.tracking(quiesce_without_tools="ignored")
    lame.snapshot(quiesce=True)
    assert not lame.vm.snapshot.rootSnapshotList[0].quiesced


def test_the_snapshot_limit(guest: Callable[..., Guest]) -> None:
    one = guest()
    for dummy in range(32):
        one.snapshot()
    assert isinstance(task_fault(one.vm.CreateSnapshot_Task("s", "", False, False)), vim.fault.TooManySnapshotLevels)


@pytest.mark.parametrize("way", ["flag", "knob"])
def test_consolidation(lab: Lab, guest: Callable[..., Guest], way: str) -> None:
    one = guest()
    snapshot = one.snapshot()
    if way == "knob":
        lab.tracking(fail_consolidation=1)
    WaitForTask(snapshot.RemoveSnapshot_Task(False, way != "flag"))
    assert one.vm.runtime.consolidationNeeded
    assert one.disk().backing.parent is not None
    WaitForTask(one.vm.ConsolidateVMDisks_Task())
    assert not one.vm.runtime.consolidationNeeded
    assert one.disk().backing.parent is None


def test_the_first_idle_vms_are_like_all_others(lab: Lab, si: Any) -> None:
    for name in ("idle0001", "idle0002"):
        vm = si.content.searchIndex.FindByInventoryPath(f"DC0/vm/{name}")
        WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
        WaitForTask(vm.CreateSnapshot_Task("s", "", False, False))
        disk = next(d for d in vm.config.hardware.device if d.key == 2000)
        assert disk.backing.parent is not None
        assert disk.backing.changeId
        assert lab.read(vm._moId, 2000, 0, 3) == bytes(3)
        WaitForTask(vm.RemoveAllSnapshots_Task())


def test_files_and_sizes_of_snapshots(lab: Lab, guest: Callable[..., Guest]) -> None:
    machine = guest(power="poweredOn")
    first = lab.take_snapshot(machine.moid, "first", age=3600)
    lab.write(machine.moid, 2000, 0, b"x" * 100)
    second = machine.snapshot("second", memory=True)
    before = machine.vm.layoutEx
    machine.vm.RefreshStorageInfo()
    layout = machine.vm.layoutEx
    files = {file.key: file for file in layout.file}
    chains = {one.key._GetMoId(): [unit.fileKey[-1] for unit in one.disk[0].chain] for one in layout.snapshot}
    live = [unit.fileKey[-1] for unit in layout.disk[0].chain]
    assert (chains[first], chains[second._GetMoId()]) == (live[:1], live[:2])
    assert [files[key].size for key in live[1:]] == [BLOCK, 0]
    assert {file.size for file in before.file if file.type == "diskExtent"} == {0}  # as of the last look
    memory = {one.key._GetMoId(): one.memoryKey for one in layout.snapshot}
    assert memory[first] == -1
    assert files[memory[second._GetMoId()]].size == machine.vm.config.hardware.memoryMB * MIB
    age = datetime.now(timezone.utc) - machine.vm.snapshot.rootSnapshotList[0].createTime
    assert 3600 <= age.total_seconds() < 3660


def test_disks_that_snapshots_leave_out(lab: Lab, guest: Callable[..., Guest]) -> None:
    one = guest(
        disks=[
            MIB,
            {"size": MIB, "mode": "independent_persistent"},
            {"size": MIB, "backing": "rdm_physical"},
            {"size": MIB, "backing": "rdm_virtual"},
        ]
    )
    snapshot = one.snapshot()
    keys = (2000, 2001, 2002, 2003)
    kept = [key for key in keys if one.disk(key=key).backing.fileName != one.disk(snapshot, key).backing.fileName]
    assert kept == [2000, 2003] == [key for key in keys if one.change_id(snapshot, key)]


# change tracking


def test_changed_areas(lab: Lab, guest: Callable[..., Guest]) -> None:
    one = guest(disks=[4 * MIB])
    first = one.snapshot()
    lab.write(one.moid, 2000, 5 * BLOCK + 10, b"x")
    lab.write(one.moid, 2000, 9 * BLOCK - 1, b"xx")
    second = one.snapshot()
    change_id = one.change_id(first)
    assert change_id
    assert re.fullmatch(r"52( [0-9a-f]{2}){7}-[0-9a-f]{2}( [0-9a-f]{2}){7}/2", change_id)
    assert one.areas(second, change_id) == [(5 * BLOCK, BLOCK), (8 * BLOCK, 2 * BLOCK)]
    assert one.areas(second, one.change_id(second)) == []
    lab.write(one.moid, 2000, 0, lab.read(one.moid, 2000, 0, 1))
    assert one.areas(one.snapshot(), one.change_id(second)) == [(0, BLOCK)]


def test_allocated_areas(lab: Lab, guest: Callable[..., Guest]) -> None:
    one = guest(disks=[4 << 40])
    lab.write(one.moid, 2000, 3 << 40, b"x" * BLOCK)
    snapshot = one.snapshot()
    assert one.areas(snapshot, "*") == [(3 << 40, BLOCK)]
    lab.tracking(star="whole")
    assert one.areas(snapshot, "*") == [(0, 4 << 40)]
    lab.tracking(star="fault")
    with pytest.raises(vim.fault.FileFault):
        one.areas(snapshot, "*")


def test_more_areas_than_changed(lab: Lab, guest: Callable[..., Guest]) -> None:
    one = guest()
    first = one.snapshot()
    lab.write(one.moid, 2000, 5 * BLOCK, b"x")
    second = one.snapshot()
    lab.tracking(inflate=4 * BLOCK, untidy=True)
    assert one.areas(second, one.change_id(first)) == [(4 * BLOCK, 4 * BLOCK)] * 2


def test_queries_that_are_refused(lab: Lab, guest: Callable[..., Guest]) -> None:
    one, other = guest(power="poweredOn"), guest(power="poweredOn")
    foreign, snapshot, later = other.snapshot(), one.snapshot(), one.snapshot()
    change_id = one.change_id(snapshot)
    assert change_id

    def refused(snapshot: Any, key: int, start: int, change_id: str) -> str:
        with pytest.raises(vmodl.fault.InvalidArgument) as caught:
            one.vm.QueryChangedDiskAreas(snapshot, key, start, change_id)
        return caught.value.invalidProperty

    assert refused(snapshot, 2001, 0, change_id) == "deviceKey"
    assert refused(snapshot, 2000, MIB, change_id) == "startOffset"
    assert refused(snapshot, 2000, -1, change_id) == "startOffset"
    assert refused(None, 2000, 0, change_id) == "snapshot"
    for bad in ("", "nonsense", f"{'52' + change_id[2:-4]}ff/1", one.change_id(later), other.change_id(foreign)):
        assert refused(snapshot, 2000, 0, bad) == "changeId"
    with pytest.raises(vim.fault.NotFound):
        one.vm.QueryChangedDiskAreas(foreign, 2000, 0, change_id)
    lab.tracking(bad_change_id="FileFault")
    with pytest.raises(vim.fault.FileFault):
        one.vm.QueryChangedDiskAreas(snapshot, 2000, 0, "nonsense")


def test_tracking_that_is_reset_or_lost(lab: Lab, guest: Callable[..., Guest]) -> None:
    one = guest(power="poweredOn")
    before = one.change_id(one.snapshot())
    lab.reset_tracking(one.moid, 2000)
    after = one.snapshot()
    assert one.change_id(after).split("/")[0] != before.split("/")[0]
    with pytest.raises(vmodl.fault.InvalidArgument):
        one.areas(after, before)
    lab.reset_tracking(one.moid, 2000, lose=True)
    assert one.change_id() is None
    with pytest.raises(vim.fault.FileFault):
        one.areas(after, one.change_id(after))
    lost = one.snapshot()
    assert one.change_id(lost) is None
    assert one.change_id(one.snapshot()) is not None


@pytest.mark.parametrize("kept", [False, True])
def test_a_host_that_crashes(lab: Lab, guest: Callable[..., Guest], kept: bool) -> None:
    one = guest(power="poweredOn")
    lab.tracking(on_crash="keep" if kept else "reset")
    before = one.change_id()
    assert one.moid in lab.crash_host(one.moid)
    assert one.vm.runtime.powerState == "poweredOff"
    assert (one.change_id() == before) is kept


def test_tracking_per_vm_and_per_disk(lab: Lab, guest: Callable[..., Guest]) -> None:
    one = guest(disks=[MIB, MIB], tracking=False, extra_config={"scsi0:1.ctkEnabled": "FALSE"})
    WaitForTask(one.vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    assert one.vm.config.changeTrackingEnabled
    WaitForTask(one.snapshot().RemoveSnapshot_Task(False))
    assert [one.change_id(key=key) is None for key in (2000, 2001)] == [False, True]
    added = lab.add_disk(one.moid, MIB)["key"]
    assert one.change_id(key=added) is None
    WaitForTask(one.snapshot().RemoveSnapshot_Task(False))
    assert one.change_id(key=added)
    old = guest(version="vmx-04", tracking=False)
    assert not old.vm.capability.changeTrackingSupported
    fault = task_fault(old.vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    assert isinstance(fault, vim.fault.InvalidVmConfig)


# virtual machines and their disks


def create_spec(name: str, network: str = "VM Network", datastore: str = "LocalDS_0") -> Any:
    def add(device: Any, create: bool = False) -> Any:
        return vim.vm.device.VirtualDeviceSpec(
            operation="add", fileOperation="create" if create else None, device=device
        )

    def disk(key: int, controller: int, unit: int, size: int) -> Any:
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="", diskMode="persistent", thinProvisioned=True
        )
        return vim.vm.device.VirtualDisk(
            key=key,
            controllerKey=controller,
            unitNumber=unit,
            capacityInBytes=size,
            capacityInKB=size >> 10,
            backing=backing,
        )

    nic = vim.vm.device.VirtualVmxnet3(
        key=-9,
        macAddress="00:50:56:01:02:03",
        addressType="manual",
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName=network),
    )
    devices = [
        add(vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")),
        add(vim.vm.device.VirtualAHCIController(key=-2, busNumber=0)),
        add(disk(-3, -1, 0, 2 * MIB), create=True),
        add(disk(-4, -2, 3, 3 * MIB), create=True),
        add(disk(-5, -1, 8, 4 * MIB), create=True),
        add(nic),
    ]
    return vim.vm.ConfigSpec(
        name=name,
        guestId="debian12_64Guest",
        numCPUs=2,
        memoryMB=64,
        firmware="efi",
        deviceChange=devices,
        files=vim.vm.FileInfo(vmPathName=f"[{datastore}]"),
        extraConfig=[vim.option.OptionValue(key="a.b", value="c")],
    )


def test_create_and_destroy_by_specification(lab: Lab, si: Any) -> None:
    dc = si.content.rootFolder.childEntity[0]
    pool = dc.hostFolder.childEntity[0].resourcePool
    task = dc.vmFolder.CreateVM_Task(create_spec("made"), pool)
    WaitForTask(task)
    vm = task.info.result
    disks = {d.key: d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)}
    assert {key: (d.deviceInfo.label, d.capacityInBytes) for key, d in disks.items()} == {
        2000: ("Hard disk 1", 2 * MIB),
        16003: ("Hard disk 2", 3 * MIB),
        2008: ("Hard disk 3", 4 * MIB),
    }
    assert {d.controllerKey for d in disks.values()} == {1000, 15000}
    assert all(d.backing.uuid.startswith("6000C29") for d in disks.values())
    nic = next(d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualEthernetCard))
    assert (nic.key, nic.macAddress, nic.deviceInfo.label) == (4000, "00:50:56:01:02:03", "Network adapter 1")
    assert any((o.key, o.value) == ("a.b", "c") for o in vm.config.extraConfig)
    assert si.content.searchIndex.FindByUuid(None, vm.config.instanceUuid, True, True) == vm
    assert si.content.searchIndex.FindByInventoryPath("DC0/vm/made") == vm
    file = lab.file(vm._moId, 2000)
    assert file.stat().st_size == 2 * MIB

    for wrong, fault in (
        (create_spec("made"), vim.fault.DuplicateName),
        (create_spec("n", network="None"), vim.fault.InvalidDeviceSpec),
        (create_spec("d", datastore="None"), vim.fault.InvalidDatastorePath),
    ):
        assert isinstance(task_fault(dc.vmFolder.CreateVM_Task(wrong, pool)), fault)

    WaitForTask(vm.PowerOnVM_Task())
    assert isinstance(task_fault(vm.Destroy_Task()), vim.fault.InvalidPowerState)
    WaitForTask(vm.PowerOffVM_Task())
    WaitForTask(vm.CreateSnapshot_Task("s", "", False, False))
    WaitForTask(vm.Destroy_Task())
    assert not file.parent.exists()
    assert si.content.searchIndex.FindByInventoryPath("DC0/vm/made") is None
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vm.name  # noqa: B018


def test_growing_and_replacing_disks(lab: Lab, guest: Callable[..., Guest]) -> None:
    one = guest()
    lab.write(one.moid, 2000, 0, b"x")
    lab.grow_disk(one.moid, 2000, 2 * MIB)
    assert one.disk().capacityInKB == 2048
    assert lab.read(one.moid, 2000) == b"x" + bytes(2 * MIB - 1)
    with pytest.raises(LabError, match="InvalidDeviceOperation"):
        lab.grow_disk(one.moid, 2000, MIB)
    snapshot = one.snapshot()
    with pytest.raises(LabError, match="InvalidDeviceOperation"):
        lab.grow_disk(one.moid, 2000, 3 * MIB)
    WaitForTask(snapshot.RemoveSnapshot_Task(False))
    old = one.disk().backing.uuid
    new = lab.replace_disk(one.moid, 2000)
    assert (new["key"], new["capacity"]) == (2000, 2 * MIB)
    assert new["backing_uuid"] == one.disk().backing.uuid != old
    assert lab.read(one.moid, 2000, 0, 1) == b"\0"
    file = lab.file(one.moid, 2000)
    lab.remove_disk(one.moid, 2000)
    assert not file.exists()
    with pytest.raises(LabError, match="no disk 2000"):
        lab.read(one.moid, 2000)


def test_writes_off_the_disk_are_refused(lab: Lab, guest: Callable[..., Guest]) -> None:
    one = guest()
    for offset in (-1, MIB):
        with pytest.raises(LabError):
            lab.write(one.moid, 2000, offset, b"x")


def test_file_systems(lab: Lab, guest: Callable[..., Guest], tmp_path: Path) -> None:
    one = guest(disks=[64 * MIB])
    (tmp_path / "hello").write_text("world")
    lab.format(one.moid, 2000, tmp_path)
    listed = subprocess.run(
        ["/sbin/debugfs", "-R", "cat hello", lab.file(one.moid, 2000)], capture_output=True, check=True
    )
    assert listed.stdout == b"world"
    first = one.snapshot()
    (tmp_path / "second").write_bytes(b"x" * 100_000)
    lab.format(one.moid, 2000, tmp_path)
    changed = sum(length for dummy, length in one.areas(one.snapshot(), one.change_id(first)))
    assert 100_000 < changed < 2 * MIB
    with lab.edit(one.moid, 2000) as image:
        subprocess.run(["/sbin/debugfs", "-w", "-R", "rm hello", image], capture_output=True, check=True)
    subprocess.run(["/sbin/e2fsck", "-fn", lab.file(one.moid, 2000)], capture_output=True, check=True)


def test_scattered_writes(lab: Lab, guest: Callable[..., Guest]) -> None:
    one = guest(disks=[1 << 40])
    first = one.snapshot()
    places = lab.scatter(one.moid, 2000, 2000, seed=3)
    assert len(places) == 2000
    areas = one.areas(one.snapshot(), one.change_id(first))
    for (offset, length), (start, size) in zip(places, areas, strict=True):
        assert start <= offset < offset + length <= start + size
