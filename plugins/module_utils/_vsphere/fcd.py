# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: first class disks and their snapshots as plain records.

Pure functions over pyVmomi's data objects. What asks the server is in ``fcd_store``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Iterable, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import stamps
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.datastores import Datastore

MEBIBYTE = 1 << 20

# Our name of a control flag -> its property in a disk's configuration, its name where it is set.
FLAGS = {
    "keep_after_delete_vm": ("keepAfterDeleteVm", "keepAfterDeleteVm"),
    "disable_relocation": ("relocationDisabled", "disableRelocation"),
    "enable_changed_block_tracking": ("changedBlockTrackingEnabled", "enableChangedBlockTracking"),
}
TRACKING = "enable_changed_block_tracking"


@dataclass(frozen=True)
class Fcd:
    """One first class disk. Of a disk known from a list only, what the list does not tell is None.

    :param capacity: bytes
    :param consumers: IDs of what the disk is attached to
    :param control_flags: name (of :data:`FLAGS`) -> whether it is set
    :param metadata: None where the API does not tell it
    """

    id: str
    name: str
    datastore: Datastore
    capacity: int
    path: str | None = None
    backing_object_id: str | None = None
    provisioning: str | None = None
    create_time: datetime | None = None
    consumers: tuple[str, ...] | None = None
    control_flags: Mapping[str, bool] | None = None
    metadata: Mapping[str, str] | None = None

    @property
    def tracked(self) -> bool:
        """Whether changed block tracking is switched on."""
        return bool(self.control_flags and self.control_flags[TRACKING])

    def identity(self) -> dict[str, str]:
        """``{id, name, datastore, datastore_moid}``, which every result carries."""
        return {
            "id": self.id,
            "name": self.name,
            "datastore": self.datastore.name,
            "datastore_moid": self.datastore.moid,
        }

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape that all results use, as far as the disk itself tells it."""
        return {
            **self.identity(),
            "capacity": self.capacity,
            "path": self.path,
            "backing_object_id": self.backing_object_id,
            "provisioning": self.provisioning,
            "create_time": stamps.timestamp(self.create_time) if self.create_time else None,
            "consumers": None if self.consumers is None else list(self.consumers),
            "attached_to": None,
            "control_flags": None if self.control_flags is None else dict(self.control_flags),
            "metadata": None if self.metadata is None else dict(self.metadata),
            "tags": None,
            "storage_policy": None,
        }


@dataclass(frozen=True)
class Snapshot:
    """One snapshot of a first class disk. ``description`` is without the stamp."""

    id: str
    description: str
    created: datetime
    backing_object_id: str | None
    stamp: stamps.Stamp | None

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape that all results use."""
        return {
            "id": self.id,
            "description": self.description,
            "creation_time": stamps.timestamp(self.created),
            "backing_object_id": self.backing_object_id,
            "own": self.stamp is not None,
            "stamp": self.stamp.as_dict() if self.stamp else None,
        }


@dataclass(frozen=True)
class Details:
    """What the server tells of one snapshot only: ``change_id`` is None unless changes were tracked."""

    path: str | None
    change_id: str | None

    def as_dict(self) -> dict[str, Any]:
        return {"path": self.path, "change_id": self.change_id}


def from_object(found: Any, datastore: Datastore) -> Fcd:
    """A disk from a ``vim.vslm.VStorageObject`` on the datastore that its backing names."""
    config = found.config
    return Fcd(
        id=config.id.id,
        name=config.name,
        datastore=datastore,
        capacity=config.capacityInMB * MEBIBYTE,
        path=getattr(config.backing, "filePath", None),
        backing_object_id=getattr(config.backing, "backingObjectId", None) or None,
        provisioning=getattr(config.backing, "provisioningType", None) or None,
        create_time=config.createTime,
        consumers=tuple(consumer.id for consumer in config.consumerId or ()),
        control_flags={name: bool(getattr(config, read)) for name, (read, _set) in FLAGS.items()},
        metadata={entry.key: entry.value for entry in getattr(config, "metadata", None) or ()},
    )


def from_result(found: Any, datastore: Datastore) -> Fcd:
    """A disk from a ``vslm.vso.VStorageObjectResult``, which tells less."""
    return Fcd(
        id=found.id.id,
        name=found.name or "",
        datastore=datastore,
        capacity=found.capacityInMB * MEBIBYTE,
        path=found.diskPath or None,
        backing_object_id=found.backingObjectId.id if found.backingObjectId else None,
        create_time=found.createTime,
        metadata={entry.key: entry.value for entry in found.metadata or ()},
    )


def from_snapshot(found: Any) -> Snapshot:
    """A snapshot from an item of a ``VStorageObjectSnapshotInfo``."""
    text, stamp = stamps.split(found.description or "")
    return Snapshot(
        id=found.id.id,
        description=text,
        created=found.createTime,
        backing_object_id=found.backingObjectId or None,
        stamp=stamp,
    )


def only(found: Iterable[Fcd], described: str) -> Fcd | None:
    """The one disk found, or None.

    :raises Ambiguous: there are several; ``details["candidates"]`` lists their identities
    """
    disks = sorted(found, key=lambda disk: (disk.datastore.name, disk.id))
    if len(disks) > 1:
        listed = ", ".join(f"{disk.id} on {disk.datastore.name}" for disk in disks)
        raise Ambiguous(
            f"There are {len(disks)} first class disks {described}: {listed}.",
            "Say which by id, or by datastore.",
            candidates=[disk.identity() for disk in disks],
        )
    return disks[0] if disks else None


def fits(disk: Fcd, name: str | None, metadata: Mapping[str, str | None]) -> bool:
    """Whether a disk has this name and these metadata; None as a value is any value, None as the name any name."""
    there = disk.metadata or {}
    return name in (None, disk.name) and all(
        key in there and value in (None, there[key]) for key, value in metadata.items()
    )
