# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what has to be done to a first class disk, and doing it.

A plan is a pair of records, as the disk is and as it should be. Only where they differ is something done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Fcd
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_store import Store, key_values
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.storage_policies import StoragePolicies

# The key of the metadata that marks a disk as made by a restore that is not finished; its value names the restore.
MARK = "holdfast.backup/unfinished-restore"

# What differs between two records -> what that takes, in the order in which it is done. Metadata come last, for
# with them a restore is declared finished.
_ACTIONS = {
    "name": "rename",
    "capacity": "extend",
    "control_flags": "set_control_flags",
    "storage_policy": "set_storage_policy",
    "tags": "set_tags",
    "metadata": "set_metadata",
}


@dataclass(frozen=True)
class Wish:
    """What somebody wants of a disk; what is None or not named is left as it is.

    :param capacity: bytes, whole MiB
    :param metadata: entries to set; None as a value removes the entry
    :param purge_metadata: whether entries that are not named are removed (the mark of a restore never is)
    :param tags: ``{category, name}`` of tags to attach
    """

    name: str | None = None
    capacity: int | None = None
    storage_policy: str | None = None
    control_flags: Mapping[str, bool] = field(default_factory=dict)
    metadata: Mapping[str, str | None] = field(default_factory=dict)
    purge_metadata: bool = False
    tags: Sequence[Mapping[str, str]] = ()
    purge_tags: bool = False


def target(before: Mapping[str, Any], wish: Wish) -> dict[str, Any]:
    """The full record that the disk of ``before`` should have.

    :raises InvalidInput: the disk would have to shrink
    """
    if wish.capacity is not None and wish.capacity < before["capacity"]:
        raise InvalidInput(
            f"The first class disk {before['name']} has {before['capacity']} bytes and cannot shrink to "
            f"{wish.capacity}.",
            "Give at least its present capacity, or make a new disk.",
        )
    return {
        **before,
        "name": wish.name or before["name"],
        "capacity": wish.capacity or before["capacity"],
        "storage_policy": wish.storage_policy or before["storage_policy"],
        "control_flags": {**before["control_flags"], **wish.control_flags},
        "metadata": _metadata(before["metadata"], wish),
        "tags": _tags(before["tags"], wish),
    }


def blank(name: str, datastore: str, provisioning: str | None, path: str | None) -> dict[str, Any]:
    """The record of a disk that does not exist yet."""
    return {
        "id": None,
        "name": name,
        "datastore": datastore,
        "datastore_moid": None,
        "capacity": 0,
        "path": path,
        "backing_object_id": None,
        "provisioning": provisioning,
        "create_time": None,
        "consumers": [],
        "attached_to": None,
        "control_flags": dict.fromkeys(fcd.FLAGS, False),
        "metadata": {},
        "tags": [],
        "storage_policy": None,
    }


def as_created(after: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`create_spec` makes of the disk that should have the record ``after``."""
    flags = {name: value and name == "keep_after_delete_vm" for name, value in after["control_flags"].items()}
    return {**after, "control_flags": flags, "tags": []}


def actions(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names of what has to be done, in its order."""
    return [action for key, action in _ACTIONS.items() if before[key] != after[key]]


def apply(
    store: Store,
    policies: StoragePolicies,
    disk: Fcd,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    timeout: float,
) -> None:
    """Do what :func:`actions` names."""
    todo = actions(before, after)
    if "rename" in todo:
        store.rename(disk, after["name"])
    if "extend" in todo:
        store.extend(disk, after["capacity"], timeout=timeout)
    if "set_control_flags" in todo:
        store.set_flags(disk, dict(after["control_flags"].items() - before["control_flags"].items()))
    if "set_storage_policy" in todo:
        store.update_policy(disk, policies.id_of(after["storage_policy"]), timeout=timeout)
    if "set_tags" in todo:
        _set_tags(store, disk, before["tags"] or [], after["tags"])
    if "set_metadata" in todo:
        entries = dict(after["metadata"].items() - before["metadata"].items())
        store.update_metadata(disk, entries, sorted(before["metadata"].keys() - after["metadata"]), timeout=timeout)


def create_spec(store: Store, policies: StoragePolicies, record: Mapping[str, Any]) -> Any:
    """A ``vim.vslm.CreateSpec``: a disk with this (planned) record, but for its tags and other control flags.

    The metadata belong to the creation, so that a disk of an unfinished restore is never without its mark.
    """
    place = store.datastores.named(record["datastore"])
    spec = vim.vslm.CreateSpec(
        name=record["name"],
        capacityInMB=record["capacity"] // fcd.MEBIBYTE,
        keepAfterDeleteVm=record["control_flags"]["keep_after_delete_vm"],
        backingSpec=vim.vslm.CreateSpec.DiskFileBackingSpec(
            datastore=vim.Datastore(place.moid, store.c.stub), provisioningType=record["provisioning"]
        ),
        metadata=key_values(record["metadata"]),
    )
    if record["storage_policy"]:
        spec.profile = [vim.vm.DefinedProfileSpec(profileId=policies.id_of(record["storage_policy"]))]
    return spec


def _metadata(before: Mapping[str, str], wish: Wish) -> dict[str, str]:
    kept = {key: value for key, value in before.items() if key == MARK} if wish.purge_metadata else dict(before)
    merged = {**kept, **wish.metadata}
    return {key: value for key, value in merged.items() if value is not None}


def _tags(before: Sequence[Mapping[str, str]] | None, wish: Wish) -> list[dict[str, str]] | None:
    if not wish.tags and not wish.purge_tags:
        return None if before is None else [dict(tag) for tag in before]
    pairs = {(tag["category"], tag["name"]) for tag in wish.tags}
    pairs |= set() if wish.purge_tags else {(tag["category"], tag["name"]) for tag in before or ()}
    return [{"category": category, "name": name} for category, name in sorted(pairs)]


def _set_tags(store: Store, disk: Fcd, before: Sequence[Mapping[str, str]], after: Sequence[Mapping[str, str]]) -> None:
    for tag in after:
        if tag not in before:
            store.attach_tag(disk, tag["category"], tag["name"])
    for tag in before:
        if tag not in after:
            store.detach_tag(disk, tag["category"], tag["name"])
