# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: finding first class disks, in vCenter's catalog or datastore by datastore.

A look-up answers three questions. What it asks the server for depends on how many disks fit, and in a
catalog on nothing else.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Protocol, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd, vslm
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.datastores import Datastore, Datastores
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Fcd
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim


class Lookup(Protocol):
    """How disks are found; ``place`` is the datastore that they must be on, None for any."""

    def by_id(self, disk: str, place: Datastore | None) -> Fcd | None:
        """The disk with this ID."""

    def search(
        self, name: str | None, place: Datastore | None, metadata: Mapping[str, str | None], details: bool
    ) -> list[Fcd]:
        """The disks that :func:`fcd.fits` these; ``details``: with all that one disk tells."""

    def among(self, disks: Sequence[str], place: Datastore | None, details: bool) -> list[Fcd]:
        """Those of the disks with these IDs that exist."""


class CatalogLookup:
    """By the storage lifecycle service: one request for a hundred disks, and one for each disk's details."""

    def __init__(self, catalog: vslm.Catalog, datastores: Datastores) -> None:
        self._catalog = catalog
        self._datastores = datastores

    def by_id(self, disk: str, place: Datastore | None) -> Fcd | None:
        found = self._catalog.retrieve(disk)
        known = None if found is None else located(found, self._datastores)
        return known if known and place in (None, known.datastore) else None

    def search(
        self, name: str | None, place: Datastore | None, metadata: Mapping[str, str | None], details: bool
    ) -> list[Fcd]:
        conditions = [("name", name)] if name is not None else []
        for key, value in metadata.items():
            conditions.append(("metadataKey", key))
            if value is not None:
                conditions.append(("metadataValue", value))
        found = self._disks(self._catalog.search(*conditions), place, details)
        # The catalog takes key and value as two conditions, which two entries may fulfil.
        return [disk for disk in found if fcd.fits(disk, name, metadata)]

    def among(self, disks: Sequence[str], place: Datastore | None, details: bool) -> list[Fcd]:
        return self._disks(self._catalog.results(disks), place, details)

    def _disks(self, results: Iterable[Any], place: Datastore | None, details: bool) -> list[Fcd]:
        found = [self._detailed(result) if details else self._plain(result) for result in results]
        return [disk for disk in found if disk is not None and place in (None, disk.datastore)]

    def _detailed(self, result: Any) -> Fcd | None:
        found = self._catalog.retrieve(result.id.id)
        return None if found is None else located(found, self._datastores)  # None: just deleted

    def _plain(self, result: Any) -> Fcd | None:
        place = self._datastores.by_url(result.datastoreUrl)
        # A disk on a datastore that its URL does not lead to must not be left out.
        return self._detailed(result) if place is None else fcd.from_result(result, place)


class DatastoreLookup:
    """By VStorageObjectManager, which cannot search: a request for each datastore, and one for each disk on it."""

    def __init__(self, c: Connection, manager: Any, datastores: Datastores) -> None:
        self._c = c
        self._manager = manager
        self._datastores = datastores

    def by_id(self, disk: str, place: Datastore | None) -> Fcd | None:
        return next((found for one in self._places(place) if (found := self._on(disk, one)) is not None), None)

    def search(
        self, name: str | None, place: Datastore | None, metadata: Mapping[str, str | None], details: bool
    ) -> list[Fcd]:
        return [disk for disk in self._everything(place) if fcd.fits(disk, name, metadata)]

    def among(self, disks: Sequence[str], place: Datastore | None, details: bool) -> list[Fcd]:
        return [disk for disk in self._everything(place, disks) if disk.id in disks]

    def _places(self, place: Datastore | None) -> list[Datastore]:
        return self._datastores.all() if place is None else [place]

    def _everything(self, place: Datastore | None, wanted: Sequence[str] | None = None) -> Iterable[Fcd]:
        """All disks, or only those with the wanted IDs."""
        for one in self._places(place):
            for found in self._c.read(self._manager.ListVStorageObject, vim.Datastore(one.moid, self._c.stub)) or ():
                disk = self._on(found.id, one) if wanted is None or found.id in wanted else None
                if disk is not None:  # None: just deleted
                    yield disk

    def _on(self, disk: str, place: Datastore) -> Fcd | None:
        """The disk with this ID on a datastore."""
        reference = vim.Datastore(place.moid, self._c.stub)
        try:
            found = self._c.read(self._manager.RetrieveVStorageObject, vim.vslm.ID(id=disk), reference)
        except VsphereFault as error:
            if error.details.get("fault") in vslm.UNKNOWN_DISK:
                return None
            raise
        return fcd.from_object(found, place)


class AutoLookup:
    """In the catalog where that saves requests and the server has one, else datastore by datastore."""

    def __init__(self, c: Connection, manager: Any, datastores: Datastores) -> None:
        self._c = c
        self._datastores = datastores
        self._walking = DatastoreLookup(c, manager, datastores)
        self._searching: Lookup | None = None

    def by_id(self, disk: str, place: Datastore | None) -> Fcd | None:
        lookup = self._walking if place is not None else self._best()
        return lookup.by_id(disk, place)

    def search(
        self, name: str | None, place: Datastore | None, metadata: Mapping[str, str | None], details: bool
    ) -> list[Fcd]:
        # Of a whole datastore, every disk is wanted anyway.
        whole = place is not None and name is None and not metadata
        lookup = self._walking if whole and details else self._best()
        return lookup.search(name, place, metadata, details)

    def among(self, disks: Sequence[str], place: Datastore | None, details: bool) -> list[Fcd]:
        return self._best().among(disks, place, details)

    def _best(self) -> Lookup:
        if self._searching is None:
            catalog = vslm.open_catalog(self._c)
            self._searching = self._walking if catalog is None else CatalogLookup(catalog, self._datastores)
        return self._searching


def located(found: Any, datastores: Datastores) -> Fcd:
    """A disk from the server's object, with its datastore."""
    return fcd.from_object(found, datastores.by_moid(found.config.backing.datastore._GetMoId()))
