# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: storage policies by name, from vCenter's policy service.

How objects are named to the service is from the storage policy API reference, "PbmObjectType" and "PbmServerObjectRef":
a first class disk by its ID (``virtualDiskUUID``), a VM's home by the VM's managed object ID, and a disk of a VM by
that and its device key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotFound, NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import pbm

PATH = "/pbm"
_FCD, _HOME, _DISK = "virtualDiskUUID", "virtualMachine", "virtualDiskId"


@dataclass(frozen=True)
class Policy:
    """A storage policy."""

    id: str
    name: str


class StoragePolicies:
    """The service, asked by the session of ``c``; opened when it is first needed, by one request."""

    def __init__(self, c: Connection, path: str = PATH) -> None:
        self._c = c
        self._path = path
        self._opened: Any = None

    def of_disks(self, disks: Sequence[str]) -> dict[str, str]:
        """ID -> name of the storage policy, of the first class disks with these IDs that have one; two requests."""
        found = self._of({(_FCD, disk): disk for disk in disks})
        return {disk: policy.name for disk, policy in found.items() if policy}

    def of_vm(self, moid: str, keys: Sequence[int]) -> dict[int | None, Policy | None]:
        """The storage policies of a VM's disks by their device keys, and that of its home under None; two requests.

        A policy of None is the default one of the datastore; what the service cannot tell of is left out.
        """
        return self._of({(_HOME, moid): None, **{(_DISK, f"{moid}:{key}"): key for key in keys}})

    def id_of(self, name: str) -> str:
        """The ID of the storage policy with this name; two requests.

        :raises NotFound: there is none
        """
        return named(name, self.all(), self._c.endpoint.address).id

    def all(self) -> list[Policy]:
        """All policies for VMs and disks that the user may see; two requests."""
        manager = self._manager()
        kind = pbm.profile.ResourceType(resourceType="STORAGE")
        names = self._names(self._c.read(manager.QueryProfile, kind, "REQUIREMENT") or [])
        return [Policy(unique, name) for unique, name in names.items()]

    def _of(self, objects: Mapping[tuple[str, str], Any]) -> dict[Any, Policy | None]:
        """The policies of objects by what is given for each."""
        if not objects:
            return {}
        manager = self._manager()
        references = [pbm.ServerObjectRef(objectType=kind, key=key) for kind, key in objects]
        answers = [one for one in self._c.read(manager.QueryAssociatedProfiles, references) or () if not one.fault]
        first = {(one.object.objectType, one.object.key): (one.profileId or [None])[0] for one in answers}
        names = self._names(list({profile.uniqueId: profile for profile in first.values() if profile}.values()))
        return {
            objects[place]: profile and Policy(profile.uniqueId, names[profile.uniqueId])
            for place, profile in first.items()
            if profile is None or profile.uniqueId in names
        }

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


def named(name: str, known: Sequence[Policy], address: str) -> Policy:
    """The storage policy with this name.

    :param address: of the vCenter that has the ``known`` ones
    :raises NotFound: there is none
    """
    found = [policy for policy in known if policy.name == name]
    if not found:
        raise NotFound(
            f"There is no storage policy {name} on {address}.",
            f"It has {', '.join(sorted(policy.name for policy in known)) or 'none that this user may see'}.",
        )
    return found[0]
