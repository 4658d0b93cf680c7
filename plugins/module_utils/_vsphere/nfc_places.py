# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: where a first class disk can be reached over NFC, which knows disks of VMs only.

An attached disk is reached through its VM. One that is not attached is, for the time of the copy, attached to a
helper VM, which is powered off: to be written, the disk itself; to be read, a disk that is made from the snapshot for
this purpose, so that the volume stays free for whoever wants to attach it.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, NotSupported, VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd_attachments, inventory
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import from_devices
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Fcd
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_store import Store

_PAUSES = (1, 2, 4, 8)  # seconds; somebody else may be attaching to the helper too
_COPYING = 7 * 24 * 3600  # seconds that vSphere may take to copy a disk; for users there is the option timeout
_SETTLING = 60.0  # seconds for a task that was cut short to end
_OFF = "poweredOff"


class Place(NamedTuple):
    """A disk on a VM: the VM's managed object ID, the disk's device key and its file."""

    machine: str
    key: int
    path: str


class Machine(NamedTuple):
    """A VM and what is looked at: its name, whether it is powered off, its devices."""

    vm: Any
    name: str
    powered_off: bool
    devices: list[Any]


class FcdPlace:
    """The way to one first class disk.

    :param snapshot: to read of, None to write
    :param frozen: file of that snapshot, if the server tells
    :param helper: name or managed object ID (``vm-42``) of the helper VM, if the user named one
    :raises NotSupported: there is no way; before anything is done
    """

    def __init__(self, store: Store, disk: Fcd, snapshot: str | None, frozen: str | None, helper: str | None) -> None:
        self._store, self._disk, self._snapshot, self._frozen = store, disk, snapshot, frozen
        self._helper_name = helper
        self._holder = self._find_holder()
        direct = self._holder is not None and (snapshot is None or self._is_frozen(self._holder))
        self._helper = None if direct or helper is None else self._find_helper(helper)
        if direct or self._helper:
            return
        if self._holder:
            raise NotSupported(
                f"{disk.name} ({disk.id}) is written to by the running virtual machine {self._holder.name}, and the "
                "server does not say which file its snapshot is in.",
                "Name a helper virtual machine (native_helper_vm), or use VDDK (access: vddk).",
            )
        raise NotSupported(
            f"{disk.name} ({disk.id}) is attached to no virtual machine that can be seen, and NFC reaches only disks "
            "of virtual machines.",
            "Name a helper virtual machine that is powered off (native_helper_vm), or use VDDK (access: vddk).",
        )

    @contextlib.contextmanager
    def reached(self, warn: Callable[[str], None], check: Callable[[], None]) -> Iterator[Callable[[], Place]]:
        """Tells the place as it is now, as long as the block runs.

        What was attached and made for it goes in every path.

        :param check: called now and then while vSphere copies; raises why to wait no longer
        """
        if self._helper is None and self._holder is not None:
            holder = self._holder
            if self._helper_name in (holder.name, holder.vm._GetMoId()):
                warn(
                    f"{self._disk.name} ({self._disk.id}) is attached to the helper virtual machine {holder.name}, and "
                    "stays so. Detach it if a killed run left it there."
                )
            yield lambda: self._direct(holder)
        elif self._snapshot is None:
            try:
                yield self._attach(self._disk)
            finally:
                self._settle(self._disk.name, warn)
                self._put_away(self._detach, self._disk, warn)
        else:
            self._remove_copies(warn)
            self._free_slot(self._look_again(self._needed_helper))  # rather than to learn it after hours of copying
            try:
                copy = self._store.create_from_snapshot(
                    self._disk, self._snapshot, self._copy_name, timeout=_COPYING, check=check
                )
                yield self._attach(copy)
            finally:
                self._settle(self._copy_name, warn)
                self._remove_copies(warn)

    # Looking

    def _find_holder(self) -> Machine | None:
        if not self._disk.consumers:
            return None
        properties = ["runtime.powerState", fcd_attachments.DEVICES]
        found = fcd_attachments.consumers(self._store.c, [self._disk], properties).get(self._disk.id)
        return self._machine(*found) if found else None

    def _find_helper(self, helper: str) -> Machine:
        choice: dict[str, Any] = {"moid": helper} if re.fullmatch(r"vm-\d+", helper) else {"name": helper}
        found = self._machine(
            *inventory.find_vm(self._store.c, **choice, properties=["runtime.powerState", fcd_attachments.DEVICES])
        )
        if not found.powered_off:
            raise NotSupported(
                f"The helper virtual machine {found.name} is not powered off.",
                "Power it off: the disks of a running virtual machine cannot be read.",
            )
        return found

    @staticmethod
    def _machine(vm: Any, found: dict[str, Any]) -> Machine:
        off = found.get("runtime.powerState") == _OFF
        return Machine(vm, inventory.unescape(found["name"]), off, list(found.get(fcd_attachments.DEVICES, ())))

    def _is_frozen(self, holder: Machine) -> bool:
        """Whether the snapshot's file is known, and not what the VM writes to."""
        if not self._frozen:
            return False
        return holder.powered_off or self._frozen not in {disk.path for disk in from_devices(holder.devices)}

    def _direct(self, holder: Machine) -> Place:
        """Where the disk, or its snapshot's file, is on the VM that has it."""
        place = self._place(self._look_again(holder), self._disk)
        if self._snapshot is None:
            return place
        now = self._store.find(id=self._disk.id)  # on another datastore than before, if it was moved
        return place._replace(path=self._store.snapshot_details(now, self._snapshot).path or self._frozen or "")

    def _place(self, machine: Machine, disk: Fcd) -> Place:
        key = fcd_attachments.device_key(machine.devices, disk.id)
        there = next((one for one in from_devices(machine.devices) if one.key == key), None)
        if there is None:
            raise NotSupported(
                f"The virtual machine {machine.name} does not show {disk.name} ({disk.id}) among its disks.",
                "Check in vCenter where the disk is attached.",
            )
        return Place(machine.vm._GetMoId(), there.key, there.path)

    # Attaching and putting away

    @property
    def _copy_name(self) -> str:
        """Only a disk of ours has this name."""
        return f"holdfast.backup copy for reading {self._disk.id}"

    @property
    def _needed_helper(self) -> Machine:
        """The helper: without one, nothing is attached."""
        if self._helper is None:
            raise NotSupported(f"There is no helper virtual machine for {self._disk.name}.", "Name native_helper_vm.")
        return self._helper

    def _look_again(self, machine: Machine) -> Machine:
        read = self._store.c.retrieve([machine.vm], {type(machine.vm): [fcd_attachments.DEVICES]})
        return machine._replace(devices=list(read.get(machine.vm, {}).get(fcd_attachments.DEVICES, ())))

    @staticmethod
    def _free_slot(machine: Machine) -> fcd_attachments.Slot:
        try:
            return fcd_attachments.choose_slot(machine.devices, None)
        except NotSupported as error:
            raise NotSupported(f"{machine.name}: {error.message}", error.next_step) from error

    def _attach(self, disk: Fcd) -> Callable[[], Place]:
        helper = self._needed_helper
        for pause in (*_PAUSES, None):
            machine = self._look_again(helper)
            slot = self._free_slot(machine)
            try:
                self._store.attach(disk, machine.vm, slot.controller, slot.unit)
                break
            except VsphereFault:
                if pause is None:
                    raise
                time.sleep(pause)
        return lambda: self._place(self._look_again(helper), disk)

    def _detach(self, disk: Fcd) -> None:
        helper = self._needed_helper
        if fcd_attachments.device_key(self._look_again(helper).devices, disk.id) is not None:
            self._store.detach(disk, helper.vm)

    def _remove(self, disk: Fcd) -> None:
        self._detach(disk)
        self._store.delete(disk)

    def _settle(self, name: str, warn: Callable[[str], None]) -> None:
        """See the end of a task that was cut short: it would bring back what is put away before."""
        try:
            self._store.settle(_SETTLING)
        except BackupError as error:
            warn(f"{name} may be left by a task that goes on: {error.message}")

    def _remove_copies(self, warn: Callable[[str], None]) -> None:
        """Delete our copies of this disk, that of a killed run too."""
        found = self._store.select(name=self._copy_name, datastore=self._disk.datastore.name, details=False)
        for copy in found:
            self._put_away(self._remove, copy, warn)

    @staticmethod
    def _put_away(action: Callable[[Fcd], None], disk: Fcd, warn: Callable[[str], None]) -> None:
        """Try several times; what stays is told."""
        for pause in (*_PAUSES[:2], None):
            try:
                action(disk)
                return
            except BackupError as error:
                if pause is None:
                    warn(f"{disk.name} ({disk.id}) could not be put away again: {error.message}")
                    return
                time.sleep(pause)
