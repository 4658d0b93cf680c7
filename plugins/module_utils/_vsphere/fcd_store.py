# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: first class disks by either of vSphere's two APIs.

VStorageObjectManager (``vim``) wants the datastore with every call and its tasks are ordinary ones; ESXi has
it too. The storage lifecycle service (``vslm``) knows a disk's datastore itself. Their methods are named
alike, so one class works with both.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Callable, Iterable, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    ConnectionFailed,
    NotFound,
    NotSupported,
    TaskFailed,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd, stamps, tasks, vslm
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.changed_areas import Page
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.datastores import Datastores
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Details, Fcd, Snapshot
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_lookup import (
    AutoLookup,
    CatalogLookup,
    DatastoreLookup,
    Lookup,
    located,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

TIMEOUT = 3600  # seconds that a task may take
# A disk that is busy for a moment refuses with one of these; seconds to wait before each further attempt.
BUSY = ("InvalidState", "TaskInProgress")
PAUSES = (0.5, 1, 2, 4)
GONE = ("NotFound", "ManagedObjectNotFound")


def open_store(c: Connection, api: str = "auto") -> Store:
    """The disks that this connection leads to.

    :param api: ``vim``, ``vslm``, or ``auto``: vim, but for look-ups that the catalog of vslm answers cheaply
    :raises NotSupported: the server has not what was asked for
    """
    datastores = Datastores(c)
    if api == "vslm":
        catalog = vslm.open_catalog(c)
        if catalog is None:
            raise NotSupported(
                f"{c.endpoint.address} has no storage lifecycle service (/vslm/sdk), or pyVmomi here does not know it.",
                "Take api auto or vim: only vCenter 6.7 Update 2 and later has this service.",
            )
        return VslmStore(c, catalog.manager, datastores, CatalogLookup(catalog, datastores))
    manager = c.content.vStorageObjectManager
    if manager is None:
        raise NotSupported(f"{c.endpoint.address} knows no first class disks.", "This needs vSphere 6.5 or later.")
    lookup = (AutoLookup if api == "auto" else DatastoreLookup)(c, manager, datastores)
    return VimStore(c, manager, datastores, lookup)


class Store:
    """First class disks: looking them up, and working on one of them. Times are in seconds."""

    api = ""
    _update_metadata = ""

    def __init__(self, c: Connection, manager: Any, datastores: Datastores, lookup: Lookup) -> None:
        self.c = c
        self.datastores = datastores
        self._manager = manager
        self._lookup = lookup

    # looking up

    def find(self, *, id: str | None = None, name: str | None = None, datastore: str | None = None) -> Fcd:
        """The disk with this ID, or with this name; ``datastore`` (its name) narrows.

        :raises NotFound: there is none
        :raises Ambiguous: several have the name; ``details["candidates"]``: their identities
        """
        found = self.seek(id=id, name=name, datastore=datastore)
        if found is None:
            which = f"with the ID {id}" if id else f"named {name}"
            where = f"the datastore {datastore}" if datastore else self.c.endpoint.address
            raise NotFound(
                f"There is no first class disk {which} on {where}.", "Check the spelling, and that the user may see it."
            )
        return found

    def seek(self, *, id: str | None = None, name: str | None = None, datastore: str | None = None) -> Fcd | None:
        """Like :meth:`find`; None when there is none."""
        place = self.datastores.named(datastore) if datastore else None
        if id:
            return self._lookup.by_id(id, place)
        return fcd.only(self._lookup.search(name, place, {}, True), f"named {name}")

    def select(
        self,
        *,
        name: str | None = None,
        datastore: str | None = None,
        tag: tuple[str, str] | None = None,
        metadata: Mapping[str, str | None] | None = None,
        details: bool = True,
    ) -> list[Fcd]:
        """All disks that fulfil all conditions given, in the order of their names.

        :param tag: category and name of a tag that they have
        :param metadata: entries that they have; None as a value is any value
        :param details: whether everything is asked for, which may cost a request per disk
        """
        place = self.datastores.named(datastore) if datastore else None
        if tag is None:
            found = self._lookup.search(name, place, metadata or {}, details)
        else:
            tagged = self._lookup.among(self._tagged(*tag), place, details)
            found = [disk for disk in tagged if fcd.fits(disk, name, metadata or {})]
        return sorted(found, key=lambda disk: (disk.name, disk.id))

    def refreshed(self, disk: Fcd) -> Fcd:
        """The disk as it is now; raises NotFound when it is gone."""
        return located(self._on("RetrieveVStorageObject", disk), self.datastores)

    def _tagged(self, category: str, name: str) -> list[str]:
        """IDs of the disks with a tag."""
        try:
            found = self.c.read(self._method("ListVStorageObjectsAttachedToTag"), category, name)
        except VsphereFault as error:
            if error.details.get("fault") in GONE:
                return []  # there is no such tag
            raise
        return [one.id for one in found or ()]

    # snapshots

    def snapshots(self, disk: Fcd) -> list[Snapshot]:
        """All snapshots of a disk, the oldest first; one request."""
        info = self._on("RetrieveSnapshotInfo", disk)
        found = [fcd.from_snapshot(snapshot) for snapshot in info.snapshots or ()]
        return sorted(found, key=lambda snapshot: snapshot.created)

    def snapshot_details(self, disk: Fcd, snapshot: str) -> Details:
        """Path and change ID of the snapshot with this ID; one request."""
        found = self._on("RetrieveSnapshotDetails", disk, _id(snapshot))
        return Details(found.path or None, found.changedBlockTrackingId or None)

    def snapshot_metadata(self, disk: Fcd, snapshot: str) -> dict[str, str] | None:
        """The metadata that were kept with the snapshot; None where the API does not tell them."""
        return None

    def create_snapshot(self, disk: Fcd, description: str, *, timeout: float = TIMEOUT) -> str:
        """Make a snapshot; returns its ID, which the task tells. A busy disk is asked again some times."""
        try:
            return _patiently(lambda: self._run("CreateSnapshot", disk, description, timeout=timeout)).id
        except ConnectionFailed:
            made = self._made_meanwhile(disk, description)
            if made is None:
                raise
            return made

    def delete_snapshot(self, disk: Fcd, snapshot: str, *, timeout: float = TIMEOUT) -> None:
        """Delete the snapshot with this ID; one that is gone is fine. A busy disk is asked again some times."""

        def delete() -> None:
            try:
                self._run("DeleteSnapshot", disk, _id(snapshot), timeout=timeout)
            except ConnectionFailed:
                # It is about this one snapshot and never about another, so asking again is safe.
                self._run("DeleteSnapshot", disk, _id(snapshot), timeout=timeout)

        try:
            _patiently(delete)
        except VsphereFault as error:
            gone = error.details.get("fault") in GONE or all(one.id != snapshot for one in self.snapshots(disk))
            if not gone:
                raise

    def _made_meanwhile(self, disk: Fcd, description: str) -> str | None:
        """The snapshot that a call made whose answer was lost; only a stamp, with its run, tells it from others."""
        text, stamp = stamps.split(description)
        for pause in PAUSES if stamp else ():
            time.sleep(pause)
            for snapshot in self.snapshots(disk):
                if (snapshot.description, snapshot.stamp) == (text, stamp):
                    return snapshot.id
        return None

    def revert(self, disk: Fcd, snapshot: str, *, timeout: float = TIMEOUT) -> None:
        """Take the disk back to the content of the snapshot with this ID. It must not be in use."""
        self._run("RevertVStorageObject", disk, _id(snapshot), timeout=timeout)

    def changed_areas(self, disk: Fcd, snapshot: str, offset: int, change_id: str) -> Page:
        """What changed from the change ID up to the snapshot, from an offset (bytes) on: one answer of several."""
        answer = self._on("QueryChangedDiskAreas", disk, _id(snapshot), offset, change_id)
        return Page(answer.startOffset, answer.length, [(area.start, area.length) for area in answer.changedArea or ()])

    # the disk itself

    def create(self, spec: Any, *, timeout: float = TIMEOUT) -> Fcd:
        """Make a disk from a ``vim.vslm.CreateSpec``."""
        return located(self._wait(self.c.call(self._method("CreateDisk"), spec), timeout), self.datastores)

    def create_from_snapshot(
        self,
        disk: Fcd,
        snapshot: str,
        name: str,
        *,
        timeout: float = TIMEOUT,
        check: Callable[[], None] = lambda: None,
    ) -> Fcd:
        """Make another disk that holds what the snapshot with this ID holds; ``check`` is called now and then."""
        found = self._run("CreateDiskFromSnapshot", disk, _id(snapshot), name, timeout=timeout, check=check)
        return located(found, self.datastores)

    def register(self, url: str, name: str) -> Fcd:
        """Make a first class disk of a virtual disk that exists.

        :param url: where the disk is, as ``datastore_files.url`` says it
        """
        return located(self.c.call(self._method("RegisterDisk"), url, name), self.datastores)

    def extend(self, disk: Fcd, capacity: int, *, timeout: float = TIMEOUT) -> None:
        """Make the disk larger; ``capacity`` in bytes, whole MiB."""
        self._run("ExtendDisk", disk, capacity // fcd.MEBIBYTE, timeout=timeout)

    def rename(self, disk: Fcd, name: str) -> None:
        """Give the disk another name."""
        self._on("RenameVStorageObject", disk, name)  # doing it twice is as good as once

    def delete(self, disk: Fcd, *, timeout: float = TIMEOUT) -> None:
        """Delete the disk and its content."""
        self._run("DeleteVStorageObject", disk, timeout=timeout)

    def set_flags(self, disk: Fcd, flags: Mapping[str, bool]) -> None:
        """Set and clear control flags, named as in :data:`fcd.FLAGS`; one request for each of the two."""
        for wanted, method in ((True, "SetVStorageObjectControlFlags"), (False, "ClearVStorageObjectControlFlags")):
            names = [fcd.FLAGS[name][1] for name, value in flags.items() if value is wanted]
            if names:
                self._on(method, disk, names)  # doing it twice is as good as once

    def update_policy(self, disk: Fcd, profile: str, *, timeout: float = TIMEOUT) -> None:
        """Put the disk under the storage policy with this ID."""
        profiles = [vim.vm.DefinedProfileSpec(profileId=profile)]
        self._run("UpdateVStorageObjectPolicy", disk, profiles, timeout=timeout)

    def update_metadata(
        self, disk: Fcd, entries: Mapping[str, str], remove: Iterable[str] = (), *, timeout: float = TIMEOUT
    ) -> None:
        """Set entries of the metadata and remove others."""
        self._run(self._update_metadata, disk, key_values(entries), list(remove), timeout=timeout)

    def tags(self, disk: Fcd) -> list[dict[str, str]]:
        """``[{category, name}]`` of the tags on the disk; one request."""
        found = self.c.read(self._method("ListTagsAttachedToVStorageObject"), _id(disk.id)) or ()
        listed = [{"category": tag.parentCategoryName, "name": tag.tagName} for tag in found]
        return sorted(listed, key=lambda tag: (tag["category"], tag["name"]))

    def attach_tag(self, disk: Fcd, category: str, name: str) -> None:
        """Put a tag on the disk."""
        self.c.read(self._method("AttachTagToVStorageObject"), _id(disk.id), category, name)

    def detach_tag(self, disk: Fcd, category: str, name: str) -> None:
        """Take a tag off the disk."""
        self.c.read(self._method("DetachTagFromVStorageObject"), _id(disk.id), category, name)

    def attach(self, disk: Fcd, vm: Any, controller: int, unit: int, *, timeout: float = TIMEOUT) -> None:
        """Attach the disk to a VM, at a controller (its key) and a free unit of it."""
        raise NotImplementedError

    def detach(self, disk: Fcd, vm: Any, *, timeout: float = TIMEOUT) -> None:
        """Take the disk off a VM. Only the VM can do this, in either API."""
        tasks.wait(self.c, self.c.call(vm.DetachDisk, _id(disk.id)), timeout=timeout)

    def settle(self, seconds: float) -> None:
        """Have the task end whose end nobody saw, if the last wait for one was cut short.

        It would bring back what is put away before.

        :raises TimedOut: it cannot be cancelled, and has not ended after so many seconds
        """
        task, self._unseen = self._unseen, None
        if task is None:
            return
        with contextlib.suppress(VsphereFault):  # it cannot be cancelled, or ended just now
            self.c.call(self._canceller(task))
        with contextlib.suppress(TaskFailed):
            self._wait(task, seconds)

    # common

    _unseen: Any = None  # the task whose end nobody saw yet

    def _address(self, disk: Fcd) -> tuple[Any, ...]:
        """The arguments by which every method takes the disk."""
        raise NotImplementedError

    def _wait(self, task: Any, timeout: float, check: Callable[[], None] = lambda: None) -> Any:
        raise NotImplementedError

    def _canceller(self, task: Any) -> Any:
        """The method that cancels a task."""
        raise NotImplementedError

    def _method(self, name: str) -> Callable[..., Any]:
        method = getattr(self._manager, name, None)
        if method is None:
            raise NotSupported(f"{self.c.endpoint.address} cannot do {name}.", "Ask its vCenter instead of the host.")
        return method

    def _on(self, method: str, disk: Fcd, *args: Any) -> Any:
        """Call a method on a disk that may be called twice."""
        try:
            return self.c.read(self._method(method), *self._address(disk), *args)
        except VsphereFault as error:
            if error.details.get("fault") not in GONE:
                raise
            raise NotFound(
                f"The first class disk {disk.name} ({disk.id}), or what was asked of it, is not on "
                f"{disk.datastore.name} (any more): {error.message}",
                "Check the IDs; somebody may have deleted it.",
                **error.details,
            ) from error

    def _run(self, method: str, disk: Fcd, *args: Any, timeout: float, check: Callable[[], None] = lambda: None) -> Any:
        """Start a task on a disk, and wait for its result."""
        return self._result(self.c.call(self._method(method), *self._address(disk), *args), timeout, check)

    def _result(self, task: Any, timeout: float, check: Callable[[], None] = lambda: None) -> Any:
        """Wait for a task; one whose end is not seen is left to :meth:`settle`."""
        self._unseen = task
        try:
            result = self._wait(task, timeout, check)
        except TaskFailed:
            self._unseen = None
            raise
        self._unseen = None
        return result


class VslmStore(Store):
    """The work is done by the storage lifecycle service."""

    api = "vslm"
    _update_metadata = "UpdateVStorageObjectMetadata"

    def snapshot_metadata(self, disk: Fcd, snapshot: str) -> dict[str, str] | None:
        found = self._on("RetrieveVStorageObjectMetadata", disk, _id(snapshot), None)
        return {entry.key: entry.value for entry in found or ()}

    def attach(self, disk: Fcd, vm: Any, controller: int, unit: int, *, timeout: float = TIMEOUT) -> None:
        self._run("AttachDisk", disk, vm, controller, unit, timeout=timeout)

    def _address(self, disk: Fcd) -> tuple[Any, ...]:
        return (_id(disk.id),)

    def _wait(self, task: Any, timeout: float, check: Callable[[], None] = lambda: None) -> Any:
        return vslm.wait(self.c, task, timeout=timeout, check=check)

    def _canceller(self, task: Any) -> Any:
        return task.Cancel


class VimStore(Store):
    """The work is done by VStorageObjectManager."""

    api = "vim"
    _update_metadata = "UpdateVStorageObjectMetadataEx"

    def attach(self, disk: Fcd, vm: Any, controller: int, unit: int, *, timeout: float = TIMEOUT) -> None:
        self._result(self.c.call(vm.AttachDisk, *self._address(disk), controller, unit), timeout)

    def _address(self, disk: Fcd) -> tuple[Any, ...]:
        return (_id(disk.id), vim.Datastore(disk.datastore.moid, self.c.stub))

    def _wait(self, task: Any, timeout: float, check: Callable[[], None] = lambda: None) -> Any:
        return tasks.wait(self.c, task, timeout=timeout, check=check)

    def _canceller(self, task: Any) -> Any:
        return task.CancelTask


def key_values(entries: Mapping[str, str]) -> list[Any]:
    """Metadata as vSphere takes them."""
    return [vim.KeyValue(key=key, value=value) for key, value in entries.items()]


def _id(text: str) -> Any:
    return vim.vslm.ID(id=text)


def _patiently(action: Callable[[], Any]) -> Any:
    for pause in PAUSES:
        try:
            return action()
        except VsphereFault as error:
            if error.details.get("fault") not in BUSY:
                raise
        time.sleep(pause)
    return action()
