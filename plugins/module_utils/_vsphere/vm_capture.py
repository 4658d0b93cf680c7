# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: read a VM's configuration from the server and keep it in files.

Requests: the VM, the snapshot if one is given, names and places in the inventory, the NVRAM by HTTPS, and what
``vm_associations`` asks for.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    InvalidInput,
    NotFound,
    NotSupported,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    datastore_files,
    extra_config,
    inventory,
    vm_associations,
    vm_config,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

CONFIG_FILE = "config.json"
_PLACE = ("parent", "parentVApp", "resourcePool", "runtime.host", "network")
_VM = (*_PLACE, "config.files.vmPathName", "customValue", "availableField", "layoutEx.disk", "layoutEx.file")


@dataclass(frozen=True)
class Captured:
    """A VM's configuration. ``nvram`` is None for a VM that was never switched on."""

    vm: dict[str, Any]
    document: dict[str, Any]
    nvram: bytes | None


def read(
    c: Connection,
    selection: Mapping[str, Any],
    snapshot: str | None = None,
    tags: str = "keep",
    storage_policies: str = "keep",
) -> Captured:
    """Read the configuration of a VM, or the frozen one of a snapshot of it.

    :param selection: arguments of ``inventory.find_vm``
    :param snapshot: moid of the snapshot
    :param tags: ``ignore`` to do without them, and the same for ``storage_policies``; both are always the present ones
    :raises InvalidInput: the snapshot belongs to another VM
    """
    vm, props = inventory.find_vm(c, **selection, properties=(*_VM, *(() if snapshot else ("config",))))
    config = _frozen(c, vm, snapshot) if snapshot else props.get("config")
    if config is None or "runtime.host" not in props:
        raise NotSupported(
            f"The configuration of {props['name']} ({vm._GetMoId()}) cannot be read.",
            "Look at the VM in vCenter: it may be inaccessible or orphaned, or the role of the user hides it.",
        )
    paths = _paths(c, vm, config, props)
    document = vm_config.capture(config, _network_names(c, paths, props))
    place, notes = _placement(paths, vm, props)
    nvram = _nvram(c, config, props, place["datacenter"])
    used = _used(props)
    for disk in document["disks"]:
        if disk["key"] in used:
            disk["used"] = min(used[disk["key"]], disk["capacity"])
    document["vm"].update(name=inventory.unescape(props["name"]), moid=vm._GetMoId())
    document["notes"] += notes
    vm_associations.capture(c, document, tags, storage_policies)
    document.update(
        captured_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        source={"vcenter": c.about.instanceUuid or "", "version": c.about.version, "snapshot": snapshot},
        placement=place,
        custom_attributes=_custom_attributes(props),
        nvram=nvram and {"file": vm_config.NVRAM_FILE, "size": len(nvram), "sha256": hashlib.sha256(nvram).hexdigest()},
    )
    return Captured(inventory.vm_dict(vm, props), vm_config.parse(document), nvram)


def files(captured: Captured) -> dict[str, bytes | None]:
    """The files that keep it, by name; None is a file that must not be there."""
    text = json.dumps(captured.document, indent=2, sort_keys=False, ensure_ascii=False) + "\n"
    return {CONFIG_FILE: text.encode(), vm_config.NVRAM_FILE: captured.nvram}


def changes(directory: str, wanted: Mapping[str, bytes | None]) -> list[str]:
    """The names of those files that are not yet in the directory as wanted.

    A configuration that differs by nothing but the time of its capture is as wanted.
    """
    return [name for name, content in wanted.items() if _essence(_read_file(directory, name)) != _essence(content)]


def save(directory: str, wanted: Mapping[str, bytes | None], names: list[str]) -> None:
    """Write (or remove) the named files: each is whole or not there, readable by its owner only, and on disk.

    :raises BackupError: the directory cannot be written to
    """
    try:
        for name in names:
            content = wanted[name]
            if content is None:
                os.unlink(os.path.join(directory, name))
            else:
                _write_file(directory, name, content)
        _sync(directory)
    except OSError as error:
        raise BackupError(
            f"The configuration cannot be kept in {directory}: {error.strerror}.",
            "Check that the directory exists, has space, and may be written to.",
        ) from error


def load(source: Any) -> tuple[dict[str, Any], bytes | None]:
    """The checked document and the NVRAM of a directory, of the path of a config.json, or of a mapping.

    NVRAM comes only from beside the file. :raises InvalidInput: the document or the NVRAM is not right
    """
    if isinstance(source, Mapping):
        return vm_config.parse(source), None
    path = os.path.join(source, CONFIG_FILE) if os.path.isdir(source) else source
    directory = os.path.dirname(path)
    content = _read_file(directory, os.path.basename(path), limit=16 << 20)
    if content is None:
        raise NotFound(f"There is no file {path}.", "Give the path of a config.json that vm_config wrote.")
    document = vm_config.parse(content)
    expected = document.get("nvram")
    if not expected:
        return document, None
    nvram = _read_file(directory, vm_config.NVRAM_FILE, limit=vm_config.NVRAM_LIMIT)
    if nvram is None or hashlib.sha256(nvram).hexdigest() != expected["sha256"]:
        state = "is missing" if nvram is None else "is not what was written"
        raise InvalidInput(
            f"{os.path.join(directory, vm_config.NVRAM_FILE)} {state}.",
            "Restore from another restore point, or set nvram to null in a copy of the configuration to do without.",
        )
    return document, nvram


def _frozen(c: Connection, vm: Any, moid: str) -> Any:
    snapshot = vim.vm.Snapshot(moid, c.stub)
    props = c.retrieve([snapshot], {vim.vm.Snapshot: ["config", "vm"]}).get(snapshot, {})
    if props.get("vm") != vm:
        raise InvalidInput(f"The snapshot {moid} is not one of {vm._GetMoId()}.", "Check moid and snapshot.")
    return props["config"]


def _paths(c: Connection, vm: Any, config: Any, props: Mapping[str, Any]) -> dict[Any, str]:
    """Inventory paths of the VM, its resource pool, its host and its distributed port groups."""
    backings = [device.backing for device in config.hardware.device]
    kind = vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo
    keys = {backing.port.portgroupKey or "" for backing in backings if isinstance(backing, kind)} - {""}
    groups = [vim.dvs.DistributedVirtualPortgroup(key, c.stub) for key in sorted(keys)]
    others = [entity for entity in (vm, props.get("resourcePool"), props["runtime.host"]) if entity is not None]
    try:
        return inventory.paths(c, [*others, *groups])
    except NotFound:
        if not groups:
            raise
        return inventory.paths(c, others)  # a snapshot may name a port group that is gone


def _network_names(c: Connection, paths: Mapping[Any, str], props: Mapping[str, Any]) -> dict[str, str]:
    """Names of the networks that devices name by a key only."""
    names = {
        entity._GetMoId(): inventory.unescape(path.rpartition("/")[2])
        for entity, path in paths.items()
        if isinstance(entity, vim.dvs.DistributedVirtualPortgroup)
    }
    opaque = [network for network in props.get("network", ()) if isinstance(network, vim.OpaqueNetwork)]
    for values in c.retrieve(opaque, {vim.OpaqueNetwork: ["name", "summary"]}).values():
        names[values["summary"].opaqueNetworkId] = inventory.unescape(values["name"])
    return {key: name for key, name in names.items() if name}  # without one that the user may not see


def place(vm: str, host: str, pool: str | None, in_vapp: bool) -> tuple[dict[str, str], list[str]]:
    """The ``placement`` in the document, but for the datastore, and notes on it.

    :param vm: inventory path of the VM; ``host`` and ``pool`` are those of its host and resource pool
    """
    found = {"host": host}
    if in_vapp:
        # The path of the VM goes through the vApp, which is no folder, and its resource pool.
        found["datacenter"] = vm.partition("/host/")[0]
        return found, [f"The VM was in the vApp {vm.split('/')[-2]}; it is restored outside of it."]
    found.update(folder=vm.rpartition("/")[0], datacenter=os.path.commonpath([vm, host]))
    if pool is not None:  # a template has none
        found["resource_pool"] = pool
    return found, []


def _placement(paths: Mapping[Any, str], vm: Any, props: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    pool, host = props.get("resourcePool"), props["runtime.host"]
    found, notes = place(paths[vm], paths[host], paths.get(pool), props.get("parentVApp") is not None)
    datastore, _file = datastore_files.split(props["config.files.vmPathName"])
    return {**found, "datastore": datastore}, notes


def _nvram(c: Connection, config: Any, props: Mapping[str, Any], datacenter: str) -> bytes | None:
    vmx = props["config.files.vmPathName"]
    name = extra_config.value(config.extraConfig or (), "nvram").rpartition("/")[2]
    name = name or vmx.rpartition("/")[2].removesuffix(".vmx") + ".nvram"
    return datastore_files.download(c, datacenter, datastore_files.sibling(vmx, name), vm_config.NVRAM_LIMIT) or None


def _used(props: Mapping[str, Any]) -> dict[int, int]:
    """Bytes on the datastore by disk key: all files of its chain, so rather too many with snapshots."""
    sizes = {file.key: file.size for file in props.get("layoutEx.file", ())}
    return {
        disk.key: sum(sizes.get(key, 0) for link in disk.chain for key in link.fileKey)
        for disk in props.get("layoutEx.disk", ())
    }


def _custom_attributes(props: Mapping[str, Any]) -> dict[str, str]:
    names = {field.key: str(field.name) for field in props.get("availableField", ())}
    values = props.get("customValue", ())
    return {names[item.key]: str(item.value) for item in values if item.key in names and item.value}


def _essence(content: bytes | None) -> Any:
    try:
        document = json.loads(content or b"null")
    except ValueError:
        return content
    if isinstance(document, dict):
        return {key: value for key, value in document.items() if key != "captured_at"}
    return content


def _read_file(directory: str, name: str, limit: int = -1) -> bytes | None:
    path = os.path.join(directory, name)
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1 if limit >= 0 else -1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    if 0 <= limit < len(content):
        raise InvalidInput(f"{path} is larger than {limit} bytes.", "Give a file that vm_config wrote.")
    return content


def _write_file(directory: str, name: str, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=f".{name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:  # mkstemp made it 0600
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, os.path.join(directory, name))
    except BaseException:
        os.unlink(temporary)
        raise


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
