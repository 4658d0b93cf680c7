# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: storage policies by name, from vCenter's policy service.

How a first class disk is named to the service (``virtualDiskUUID``) is from the storage policy API
reference, "PbmObjectType".
"""

from __future__ import annotations

from typing import Any, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotFound, NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import pbm

PATH = "/pbm"
_DISK = "virtualDiskUUID"


class StoragePolicies:
    """The service, asked by the session of ``c``; opened when it is first needed, by one request."""

    def __init__(self, c: Connection, path: str = PATH) -> None:
        self._c = c
        self._path = path
        self._opened: Any = None

    def of_disks(self, disks: Sequence[str]) -> dict[str, str]:
        """ID -> name of the storage policy, of the first class disks with these IDs that have one; two requests."""
        if not disks:
            return {}
        objects = [pbm.ServerObjectRef(objectType=_DISK, key=disk) for disk in disks]
        found = self._c.read(self._manager().QueryAssociatedProfiles, objects) or ()
        first = {one.object.key: one.profileId[0] for one in found if one.profileId}
        names = self._names(list({profile.uniqueId: profile for profile in first.values()}.values()))
        return {disk: names[profile.uniqueId] for disk, profile in first.items() if profile.uniqueId in names}

    def id_of(self, name: str) -> str:
        """The ID of the storage policy with this name; two requests.

        :raises NotFound: there is none
        """
        kind = pbm.profile.ResourceType(resourceType="STORAGE")
        names = self._names(self._c.read(self._manager().QueryProfile, kind, "REQUIREMENT") or [])
        found = [unique for unique, known in names.items() if known == name]
        if not found:
            raise NotFound(
                f"There is no storage policy {name} on {self._c.endpoint.address}.",
                f"It has {', '.join(sorted(names.values())) or 'none that this user may see'}.",
            )
        return found[0]

    def _names(self, profiles: Sequence[Any]) -> dict[str, str]:
        found = self._c.read(self._manager().RetrieveContent, list(profiles)) if profiles else ()
        return {one.profileId.uniqueId: one.name for one in found or ()}

    def _manager(self) -> Any:
        if self._opened is None:
            if pbm is None or not self._c.is_vcenter:
                raise NotSupported(
                    f"{self._c.endpoint.address} has no storage policies.", "Only vCenter has them; leave them out."
                )
            stub = self._c.beside(self._path, "pbm")
            self._opened = self._c.read(pbm.ServiceInstance("ServiceInstance", stub).RetrieveContent).profileManager
        return self._opened
