# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: first class disks by either of vSphere's two APIs.

VStorageObjectManager (``vim``) wants the datastore with every call and its tasks are ordinary ones; ESXi has
it too. The storage lifecycle service (``vslm``) finds a disk without the datastore. Their methods are named
alike, so one class works with both. ``auto`` looks up in the catalog of vslm what would else mean to go
through the datastores, and works with vim.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Iterable, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    ConnectionFailed,
    NotFound,
    NotSupported,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd, tasks, vslm
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.changed_areas import Page
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.datastores import Datastore, Datastores
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Details, Fcd, Snapshot
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

APIS = ("auto", "vim", "vslm")
TIMEOUT = 600  # seconds that a task may take
# A disk that is busy for a moment refuses with one of these; seconds to wait before each further attempt.
BUSY = ("InvalidState", "TaskInProgress")
PAUSES = (0.5, 1, 2, 4)
GONE = ("NotFound", "ManagedObjectNotFound")


def open_store(c: Connection, api: str = "auto") -> Store:
    """The disks that this connection leads to.

    :param api: one of :data:`APIS`
    :raises NotSupported: the server has not what was asked for
    """
    if api != "vslm":
        return VimStore(c, use_catalog=api == "auto")
    catalog = vslm.open_catalog(c)
    if catalog is None:
        raise NotSupported(
            f"{c.endpoint.address} has no storage lifecycle service (/vslm/sdk), or pyVmomi here does not know it.",
            "Take api auto or vim: only vCenter 6.7 Update 2 and later has this service.",
        )
    return VslmStore(c, catalog)


class Store:
    """First class disks: looking them up and working on one of them. Times are in seconds."""

    api = ""
    _manager: Any

    def __init__(self, c: Connection) -> None:
        self.c = c
        self.datastores = Datastores(c)

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
            return self._by_id(id, place)
        return fcd.only(self._select(name, place, {}, True), f"named {name}")

    def select(
        self,
        *,
        name: str | None = None,
        datastore: str | None = None,
        tag: tuple[str, str] | None = None,
        metadata: Mapping[str, str | None] | None = None,
        details: bool = True,
    ) -> list[Fcd]:
        """All disks that fulfil all conditions given.

        :param tag: category and name of a tag that they have
        :param metadata: entries that they have; None as a value is any value
        :param details: whether everything is asked for, which may cost a request per disk
        """
        place = self.datastores.named(datastore) if datastore else None
        wanted = metadata or {}
        if tag is None:
            found = self._select(name, place, wanted, details)
        else:
            found = [disk for disk in self._by_tag(tag, place, details) if fcd.fits(disk, name, wanted)]
        return sorted(found, key=lambda disk: (disk.name, disk.id))

    def refreshed(self, disk: Fcd) -> Fcd:
        """The disk as it is now.

        :raises NotFound: it is gone
        """
        return fcd.from_object(self._read("RetrieveVStorageObject", disk), disk.datastore)

    def _by_id(self, disk: str, place: Datastore | None) -> Fcd | None:
        raise NotImplementedError

    def _select(
        self, name: str | None, place: Datastore | None, metadata: Mapping[str, str | None], details: bool
    ) -> list[Fcd]:
        raise NotImplementedError

    def _by_tag(self, tag: tuple[str, str], place: Datastore | None, details: bool) -> list[Fcd]:
        raise NotImplementedError

    def _tagged(self, tag: tuple[str, str]) -> list[str]:
        """IDs of the disks with a tag."""
        try:
            return [found.id for found in self.c.read(self._method("ListVStorageObjectsAttachedToTag"), *tag) or ()]
        except VsphereFault as error:
            if error.details.get("fault") in GONE:
                return []  # there is no such tag
            raise

    # snapshots

    def snapshots(self, disk: Fcd) -> list[Snapshot]:
        """All snapshots of a disk, the oldest first; one request."""
        info = self._read("RetrieveSnapshotInfo", disk)
        found = [fcd.from_snapshot(snapshot) for snapshot in info.snapshots or ()]
        return sorted(found, key=lambda snapshot: snapshot.created)

    def snapshot_details(self, disk: Fcd, snapshot: str) -> Details:
        """Path and change ID of the snapshot with this ID; one request."""
        found = self._read("RetrieveSnapshotDetails", disk, _id(snapshot))
        return Details(found.path or None, found.changedBlockTrackingId or None)

    def create_snapshot(self, disk: Fcd, description: str, *, timeout: float = TIMEOUT) -> str:
        """Make a snapshot; returns its ID, which the task tells. A busy disk is asked again some times."""
        return self._patiently(lambda: self._run("CreateSnapshot", disk, description, timeout=timeout)).id

    def delete_snapshot(self, disk: Fcd, snapshot: str, *, timeout: float = TIMEOUT) -> None:
        """Delete the snapshot with this ID; one that is gone is fine. A busy disk is asked again some times."""

        def delete() -> None:
            try:
                self._run("DeleteSnapshot", disk, _id(snapshot), timeout=timeout)
            except ConnectionFailed:
                # It is about this one snapshot and never about another, so asking again is safe.
                self._run("DeleteSnapshot", disk, _id(snapshot), timeout=timeout)

        try:
            self._patiently(delete)
        except VsphereFault as error:
            if error.details.get("fault") not in GONE:
                raise

    def revert(self, disk: Fcd, snapshot: str, *, timeout: float = TIMEOUT) -> None:
        """Take the disk back to the content of the snapshot with this ID. It must not be in use."""
        self._run("RevertVStorageObject", disk, _id(snapshot), timeout=timeout)

    def changed_areas(self, disk: Fcd, snapshot: str, offset: int, change_id: str) -> Page:
        """What changed from the change ID up to the snapshot, from an offset (bytes) on: one answer of several."""
        answer = self._read("QueryChangedDiskAreas", disk, _id(snapshot), offset, change_id)
        return Page(answer.startOffset, answer.length, [(area.start, area.length) for area in answer.changedArea or ()])

    def snapshot_metadata(self, disk: Fcd, snapshot: str) -> dict[str, str] | None:
        """The metadata that were frozen with the snapshot; None where the API does not tell them."""
        return None

    # the disk itself

    def set_flags(self, disk: Fcd, flags: Mapping[str, bool]) -> None:
        """Set and clear control flags, named as in :data:`fcd.FLAGS`; one request for each of the two."""
        for wanted, method in ((True, "SetVStorageObjectControlFlags"), (False, "ClearVStorageObjectControlFlags")):
            names = [fcd.FLAGS[name][1] for name, value in flags.items() if value is wanted]
            if names:
                self._read(method, disk, names)  # doing it twice is as good as once

    def create(self, spec: Any, *, timeout: float = TIMEOUT) -> Fcd:
        """Make a disk from a ``vim.vslm.CreateSpec``."""
        made = self._wait(self.c.call(self._method("CreateDisk"), spec), timeout)
        return self._object(made)

    def register(self, url: str, name: str) -> Fcd:
        """Make a first class disk of a virtual disk that exists.

        :param url: ``https://host/folder/dir/disk.vmdk?dcPath=...&dsName=...``
        """
        return self._object(self.c.call(self._method("RegisterDisk"), url, name))

    def extend(self, disk: Fcd, capacity: int, *, timeout: float = TIMEOUT) -> None:
        """Make the disk larger; ``capacity`` in bytes, whole MiB."""
        self._run("ExtendDisk", disk, capacity // fcd.MEBIBYTE, timeout=timeout)

    def rename(self, disk: Fcd, name: str) -> None:
        """Give the disk another name."""
        self._read("RenameVStorageObject", disk, name)  # doing it twice is as good as once

    def delete(self, disk: Fcd, *, timeout: float = TIMEOUT) -> None:
        """Delete the disk and its content."""
        self._run("DeleteVStorageObject", disk, timeout=timeout)

    def update_policy(self, disk: Fcd, profile: str, *, timeout: float = TIMEOUT) -> None:
        """Put the disk under the storage policy with this ID."""
        profiles = [vim.vm.DefinedProfileSpec(profileId=profile)]
        self._run("UpdateVStorageObjectPolicy", disk, profiles, timeout=timeout)

    def update_metadata(
        self, disk: Fcd, entries: Mapping[str, str], remove: Iterable[str] = (), *, timeout: float = TIMEOUT
    ) -> None:
        """Set entries of the metadata and remove others."""
        pairs = [vim.KeyValue(key=key, value=value) for key, value in entries.items()]
        self._run(self._update_metadata, disk, pairs, list(remove), timeout=timeout)

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

    # what differs between the APIs

    _update_metadata = ""

    def _address(self, disk: Fcd) -> tuple[Any, ...]:
        """The arguments by which every method takes the disk."""
        raise NotImplementedError

    def _wait(self, task: Any, timeout: float) -> Any:
        raise NotImplementedError

    # common

    def _method(self, name: str) -> Callable[..., Any]:
        method = getattr(self._manager, name, None)
        if method is None:
            raise NotSupported(f"{self.c.endpoint.address} cannot do {name}.", "Ask its vCenter instead of the host.")
        return method

    def _read(self, method: str, disk: Fcd, *args: Any) -> Any:
        try:
            return self.c.read(self._method(method), *self._address(disk), *args)
        except VsphereFault as error:
            if error.details.get("fault") == "NotFound":
                raise NotFound(
                    f"The first class disk {disk.name} ({disk.id}), or what was asked of it, does not exist on "
                    f"{disk.datastore.name} (any more): {error.message}",
                    "Check the IDs; somebody may have deleted it.",
                    **error.details,
                ) from error
            raise

    def _run(self, method: str, disk: Fcd, *args: Any, timeout: float) -> Any:
        """Start a task on a disk once, and wait for its result."""
        return self._wait(self.c.call(self._method(method), *self._address(disk), *args), timeout)

    def _patiently(self, action: Callable[[], Any]) -> Any:
        for pause in PAUSES:
            try:
                return action()
            except VsphereFault as error:
                if error.details.get("fault") not in BUSY:
                    raise
            time.sleep(pause)
        return action()

    def _object(self, found: Any) -> Fcd:
        """A disk from the server's object, with its datastore."""
        return fcd.from_object(found, self.datastores.by_moid(found.config.backing.datastore._GetMoId()))

    def _in_catalog(
        self,
        catalog: vslm.Catalog,
        results: Iterable[Any],
        place: Datastore | None,
        details: bool,
    ) -> list[Fcd]:
        """The disks of some answers of the catalog, on ``place`` only."""
        if details:
            objects = [catalog.retrieve(result.id.id) for result in results]
            disks = [self._object(found) for found in objects if found is not None]  # None: deleted meanwhile
        else:
            disks = [
                fcd.from_result(result, self.datastores.by_url(result.datastoreUrl) or Datastore("", ""))
                for result in results
            ]
        return [disk for disk in disks if place in (None, disk.datastore)]

    def _search(
        self,
        catalog: vslm.Catalog,
        name: str | None,
        place: Datastore | None,
        metadata: Mapping[str, str | None],
        details: bool,
    ) -> list[Fcd]:
        """Ask the catalog for the disks with a name and metadata."""
        conditions = [("name", name)] if name is not None else []
        for key, value in metadata.items():
            conditions.append(("metadataKey", key))
            if value is not None:
                conditions.append(("metadataValue", value))
        found = self._in_catalog(catalog, catalog.search(*conditions), place, details)
        # The catalog takes key and value as two conditions, which two entries may fulfil.
        return [disk for disk in found if fcd.fits(disk, name, metadata)]


class VslmStore(Store):
    """Everything by the storage lifecycle service."""

    api = "vslm"
    _update_metadata = "UpdateVStorageObjectMetadata"

    def __init__(self, c: Connection, catalog: vslm.Catalog) -> None:
        super().__init__(c)
        self._catalog = catalog
        self._manager = catalog.manager

    def snapshot_metadata(self, disk: Fcd, snapshot: str) -> dict[str, str] | None:
        found = self._read("RetrieveVStorageObjectMetadata", disk, _id(snapshot), None)
        return {entry.key: entry.value for entry in found or ()}

    def _by_id(self, disk: str, place: Datastore | None) -> Fcd | None:
        found = self._catalog.retrieve(disk)
        known = None if found is None else self._object(found)
        return known if known and place in (None, known.datastore) else None

    def _select(
        self, name: str | None, place: Datastore | None, metadata: Mapping[str, str | None], details: bool
    ) -> list[Fcd]:
        return self._search(self._catalog, name, place, metadata, details)

    def _by_tag(self, tag: tuple[str, str], place: Datastore | None, details: bool) -> list[Fcd]:
        return self._in_catalog(self._catalog, self._catalog.results(self._tagged(tag)), place, details)

    def _address(self, disk: Fcd) -> tuple[Any, ...]:
        return (_id(disk.id),)

    def _wait(self, task: Any, timeout: float) -> Any:
        return vslm.wait(self.c, task, timeout=timeout)


class VimStore(Store):
    """Everything by VStorageObjectManager, but for look-ups that the catalog answers far more cheaply."""

    api = "vim"
    _update_metadata = "UpdateVStorageObjectMetadataEx"

    def __init__(self, c: Connection, use_catalog: bool) -> None:
        super().__init__(c)
        self._manager = c.content.vStorageObjectManager
        if self._manager is None:
            raise NotSupported(f"{c.endpoint.address} knows no first class disks.", "This needs vSphere 6.5 or later.")
        self._use_catalog = use_catalog
        self._opened: list[vslm.Catalog | None] = []

    @property
    def _catalog(self) -> vslm.Catalog | None:
        """The catalog, opened when it is needed; None if it is not to be used or there is none."""
        if not self._opened:
            self._opened.append(vslm.open_catalog(self.c) if self._use_catalog else None)
        return self._opened[0]

    def _by_id(self, disk: str, place: Datastore | None) -> Fcd | None:
        if place is None and self._catalog is not None:
            found = self._catalog.retrieve(disk)
            return None if found is None else self._object(found)
        places = self.datastores.all() if place is None else [place]
        return next((found for one in places if (found := self._on(disk, one)) is not None), None)

    def _select(
        self, name: str | None, place: Datastore | None, metadata: Mapping[str, str | None], details: bool
    ) -> list[Fcd]:
        # Of a whole datastore, every disk is wanted anyway.
        narrow = place is None or name is not None or metadata
        if narrow and self._catalog is not None:
            return self._search(self._catalog, name, place, metadata, details)
        return [disk for disk in self._everywhere(place) if fcd.fits(disk, name, metadata)]

    def _by_tag(self, tag: tuple[str, str], place: Datastore | None, details: bool) -> list[Fcd]:
        tagged = self._tagged(tag)
        if not tagged:
            return []
        if self._catalog is not None:
            return self._in_catalog(self._catalog, self._catalog.results(tagged), place, details)
        return [disk for disk in self._everywhere(place) if disk.id in tagged]

    def _everywhere(self, place: Datastore | None) -> Iterable[Fcd]:
        for one in self.datastores.all() if place is None else [place]:
            reference = vim.Datastore(one.moid, self.c.stub)
            for found in self.c.read(self._method("ListVStorageObject"), reference) or ():
                disk = self._on(found.id, one)
                if disk is not None:  # None: deleted meanwhile
                    yield disk

    def _on(self, disk: str, place: Datastore) -> Fcd | None:
        """The disk with this ID on a datastore."""
        reference = vim.Datastore(place.moid, self.c.stub)
        try:
            found = self.c.read(self._method("RetrieveVStorageObject"), _id(disk), reference)
        except VsphereFault as error:
            if error.details.get("fault") in vslm.UNKNOWN_DISK:
                return None
            raise
        return fcd.from_object(found, place)

    def _address(self, disk: Fcd) -> tuple[Any, ...]:
        return (_id(disk.id), vim.Datastore(disk.datastore.moid, self.c.stub))

    def _wait(self, task: Any, timeout: float) -> Any:
        return tasks.wait(self.c, task, timeout=timeout)


def _id(text: str) -> Any:
    return vim.vslm.ID(id=text)
