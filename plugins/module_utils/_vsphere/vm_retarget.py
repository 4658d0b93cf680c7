# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: turn the document of an old VM into that of the VM to be made.

Pure: what the new VM shall be is a document of the same shape, so the two can be compared.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    Ambiguous,
    InvalidInput,
    NoSpace,
    NotFound,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import disks as disk_records
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vm_placement import (
    Datastore,
    Site,
    choose_network,
)

_DISK_SUMMARY = ("datastore", "provisioning", "mode")


@dataclass(frozen=True)
class Changes:
    """What shall differ from the old VM.

    :param datastore: for the VM and all of its disks; None keeps each where it was
    :param provisioning: ``thin``, ``lazy_zeroed`` or ``eager_zeroed`` for all disks; None keeps each as it was
    :param disks: exceptions by disk: {disk: selector, datastore, provisioning, create: bool}
    :param networks: new network (name or moid) by old network name or by the label of an adapter
    :param mac_policy: ``keep`` or ``generate``
    :param identity: ``keep`` or ``new`` BIOS, instance and disk UUIDs
    :param tags: ``keep`` those that exist, ``create`` the others too, or ``ignore`` all
    :param storage_policies: ``keep`` those that exist, or ``ignore`` them
    :param storage_policy_map: new storage policy by old one, by names
    """

    name: str
    datastore: str | None = None
    provisioning: str | None = None
    disks: Sequence[Mapping[str, Any]] = ()
    networks: Mapping[str, str] = field(default_factory=dict)
    mac_policy: str = "keep"
    identity: str = "new"
    tags: str = "keep"
    storage_policies: str = "keep"
    storage_policy_map: Mapping[str, str] = field(default_factory=dict)


def retarget(document: Mapping[str, Any], changes: Changes, site: Site) -> tuple[dict[str, Any], list[str]]:
    """The document of the new VM at ``site``, and warnings.

    :raises NotFound: networks or datastores are missing there; all of them are named
    :raises NoSpace: the disks do not fit
    """
    target = copy.deepcopy(dict(document))
    target["vm"].update(name=changes.name, moid="")
    if changes.identity == "new":
        target["vm"].update(instance_uuid=None, bios_uuid=None)
    target["placement"]["datastore"] = changes.datastore or document["placement"].get("datastore", "")
    target["disks"], warnings = _disks(target["disks"], changes)
    _check_datastores(target, site.datastores)
    warnings += check_space(target["disks"], site.datastores)
    _connect(target["nics"], changes.networks, site)
    if changes.mac_policy == "generate":
        for nic in target["nics"]:
            nic.pop("mac", None)
            nic["mac_type"] = "generated"
    return target, warnings


def summary(target: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader wants to know of a new VM: where it goes, its disks and its network adapters."""
    settings, place = target["settings"], target["placement"]
    return {
        "name": target["vm"]["name"],
        "instance_uuid": target["vm"]["instance_uuid"],
        **{key: place.get(key) for key in ("datacenter", "folder", "resource_pool", "datastore")},
        "firmware": settings.get("firmware", {}).get("type"),
        "cpus": settings.get("hardware", {}).get("cpus"),
        "memory_mb": settings.get("hardware", {}).get("memory_mb"),
        "storage_policy": _policy(target),
        "tags": [f"{tag['category']}:{tag['name']}" for tag in target.get("tags", ())],
        "disks": [
            {
                "label": disk["label"],
                "capacity": disk["capacity"],
                **{key: disk.get(key) for key in _DISK_SUMMARY},
                "storage_policy": _policy(disk),
            }
            for disk in target["disks"]
        ],
        "nics": [
            {"label": nic["label"], "type": nic["type"], "network": nic["network"]["name"], "mac": nic.get("mac")}
            for nic in target["nics"]
        ],
    }


def check_space(disks: Sequence[Mapping[str, Any]], datastores: Mapping[str, Datastore]) -> list[str]:
    """Refuse disks that cannot fit: thick ones need their capacity, thin ones what they used when captured."""
    warnings = []
    for name, datastore in datastores.items():
        here = [disk for disk in disks if disk["datastore"] == name]
        need = sum(disk.get("used", 0) if _is_thin(disk) else disk["capacity"] for disk in here)
        if need > datastore.free:
            raise NoSpace(
                f"The datastore {name} has {_gib(datastore.free)} free, and the disks need {_gib(need)}.",
                "Free space there, or give another datastore.",
                datastore=name,
                free=datastore.free,
                needed=need,
            )
        if sum(disk["capacity"] for disk in here) > datastore.free:
            warnings.append(f"The thin disks may grow beyond the {_gib(datastore.free)} free on {name}.")
    return warnings


def _disks(disks: list[dict[str, Any]], changes: Changes) -> tuple[list[dict[str, Any]], list[str]]:
    exceptions: dict[int, Mapping[str, Any]] = {}
    records: list[Any] = [SimpleNamespace(**disk) for disk in disks]
    for item in changes.disks:
        key = disk_records.pick(records, item["disk"]).key
        if key in exceptions:
            raise InvalidInput(f"Several entries of disks are about the disk {item['disk']}.", "Keep one of them.")
        exceptions[key] = item
    kept, warnings = [], []
    for disk in disks:
        wish = {name: value for name, value in exceptions.get(disk["key"], {}).items() if value is not None}
        if not wish.get("create", disk["protected"]):
            why = "as asked" if disk["protected"] else f"it is not protected ({disk['reason']})"
            warnings.append(f"{disk['label']} ({disk['path']}) is not made again: {why}.")
            continue
        if not disk["protected"]:
            warnings.append(f"{disk['label']} is made again empty, as asked: no restore point holds its content.")
        disk["datastore"] = wish.get("datastore") or changes.datastore or disk.get("datastore", "")
        disk["provisioning"] = wish.get("provisioning") or changes.provisioning or disk.get("provisioning", "thin")
        kept.append(disk)
    return kept, warnings


def _check_datastores(target: Mapping[str, Any], there: Mapping[str, Datastore]) -> None:
    wanted = {target["placement"]["datastore"], *(disk["datastore"] for disk in target["disks"])}
    missing = sorted(name for name in wanted if name not in there)
    listed = ", ".join(sorted(name for name, datastore in there.items() if datastore.usable)) or "none"
    if missing:
        raise NotFound(
            f"There is no datastore {', '.join(name or '(none named)' for name in missing)} there.",
            f"Give datastore one of: {listed}.",
            missing=missing,
        )
    unusable = sorted(name for name in wanted if not there[name].usable)
    if unusable:
        raise InvalidInput(
            f"The datastore {', '.join(unusable)} is not accessible or in maintenance mode.",
            f"Give datastore one of: {listed}.",
        )


def _connect(nics: Sequence[dict[str, Any]], mapping: Mapping[str, str], site: Site) -> None:
    known = {nic["network"]["name"] for nic in nics} | {nic["label"] for nic in nics}
    unknown = sorted(set(mapping) - known)
    if unknown:
        listed = ", ".join(sorted(known)) or "no network adapters"
        raise InvalidInput(f"networks maps {', '.join(unknown)}, which the VM does not have.", f"It has: {listed}.")
    missing = set()
    for nic in nics:
        before = nic["network"]
        source = next((key for key in (nic["label"], before["name"]) if key in mapping), None)
        wanted = before["name"] if source is None else mapping[source]
        try:
            nic["network"] = choose_network(site.networks, wanted, before)
        except NotFound:
            missing.add(wanted)
        except Ambiguous as error:
            raise Ambiguous(f"{nic['label']}: {error.message}", error.next_step, **error.details) from error
    if missing:
        listed = ", ".join(sorted(item["name"] for item in site.networks)) or "none"
        raise NotFound(
            f"There is no network {', '.join(sorted(missing))} there.",
            f"Map it to another by the option networks. There are: {listed}.",
            missing=sorted(missing),
        )


def _policy(holder: Mapping[str, Any]) -> str | None:
    return (holder.get("storage_policy") or {}).get("name")


def _is_thin(disk: Mapping[str, Any]) -> bool:
    return disk["provisioning"] == "thin"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
