# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: finding one virtual machine without reading the inventory.

Requests: one by ``moid``, two by ``uuid`` or by name and absolute folder, three by name alone (names only, whatever
the number of VMs) or by name and relative folder (one more for each further datacenter).

vCenter stores the characters ``/``, backslash and ``%`` in names as ``%2f``, ``%5c`` and ``%25``.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence
from urllib.parse import unquote

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim, vmodl

IDENTITY = ("name", "config.instanceUuid")


def find_vm(
    c: Connection,
    *,
    name: str | None = None,
    folder: str | None = None,
    datacenter: str | None = None,
    uuid: str | None = None,
    use_instance_uuid: bool = False,
    moid: str | None = None,
    properties: Sequence[str] = (),
    along: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Find one VM or template and read its properties.

    :param name: its name, as shown or as stored (escaped)
    :param folder: the path of its folder: ``/dc/vm/a/b``, or ``a/b`` below each datacenter's VM folder
    :param datacenter: the name (or path) of its datacenter, to narrow a search by name
    :param uuid: its BIOS UUID, or its instance UUID with ``use_instance_uuid``
    :param moid: its managed object ID
    :param properties: as for :func:`read_vm`
    :param along: as for :func:`read_vm`
    :returns: the managed object and what :func:`read_vm` returns
    :raises NotFound: no VM fits
    :raises Ambiguous: several fit; ``details["candidates"]`` lists {name, moid, path}
    """
    if moid:
        vm = vim.VirtualMachine(moid, c.stub)
    elif uuid:
        by = "instance UUID" if use_instance_uuid else "BIOS UUID"
        found = c.read(c.content.searchIndex.FindAllByUuid, None, uuid, True, use_instance_uuid)
        vm = _only(c, found, f"with the {by} {uuid}")
    elif name:
        found = _in_folder(c, name, folder, datacenter) if folder else _anywhere(c, name, datacenter)
        where = f" in the folder {folder}" if folder else ""
        where += f" of the datacenter {datacenter}" if datacenter else ""
        vm = _only(c, found, f"named {name}{where}")
    else:
        raise InvalidInput("No virtual machine was named.", "Give one of name, uuid and moid.")
    return vm, read_vm(c, vm, properties, along)


def read_vm(
    c: Connection, vm: Any, properties: Sequence[str] = (), along: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Any]:
    """Read a VM, and what it refers to, in one request.

    :param properties: property paths to read beside :data:`IDENTITY`
    :param along: ``recentTask`` or ``datastore``: property paths of the objects there
    :returns: {path: value}, where an unset property is a missing key; for each path of ``along``
        {object: {path: value}}; and ``serverClock``, the server's time
    :raises NotFound: the VM cannot be read
    """
    along = along or {}
    collector = vmodl.query.PropertyCollector
    clock = vim.ServiceInstance("ServiceInstance", c.stub)
    kinds = {"recentTask": vim.Task, "datastore": vim.Datastore}
    ways = [collector.TraversalSpec(type=vim.VirtualMachine, path=path) for path in along]
    specs = [collector.ObjectSpec(obj=vm, selectSet=ways), collector.ObjectSpec(obj=clock)]
    wanted = {
        vim.VirtualMachine: [*dict.fromkeys((*IDENTITY, *properties, *along))],
        vim.ServiceInstance: ["serverClock"],
        **{kinds[path]: paths for path, paths in along.items()},
    }
    read = c.collect(specs, wanted)
    if vm not in read:
        raise NotFound(f"The virtual machine {vm._GetMoId()} cannot be read.", "Check the role of the user on it.")
    there = {path: {one: read.get(one, {}) for one in read[vm].get(path, ())} for path in along}
    return {**read[vm], **there, **read.get(clock, {})}


def find_host(c: Connection, name: str) -> Any:
    """The host with this name or managed object ID; two requests for a name.

    :raises NotFound: there is none
    :raises Ambiguous: several have the name
    """
    read = _below(c, [c.content.rootFolder], vim.HostSystem)
    found = [host for host, stored in read.items() if name == host._GetMoId() or same_name(stored, name)]
    if not found:
        known = ", ".join(sorted(map(unescape, read.values()))) or "none that this user may see"
        raise NotFound(f"There is no host {name} on {c.endpoint.address}.", f"It has {known}.")
    if len(found) > 1:
        candidates = [{"name": unescape(read[host]), "moid": host._GetMoId()} for host in found]
        raise Ambiguous(
            f"There are {len(found)} hosts named {name}: {', '.join(one['moid'] for one in candidates)}.",
            "Give the managed object ID of the one that is meant.",
            candidates=candidates,
        )
    return found[0]


def vm_dict(vm: Any, properties: dict[str, Any]) -> dict[str, Any]:
    """``{name, moid, instance_uuid}``, which every result carries; from what :func:`find_vm` returned."""
    return {
        "name": unescape(properties["name"]),
        "moid": vm._GetMoId(),
        "instance_uuid": properties.get("config.instanceUuid"),
    }


def unescape(name: str) -> str:
    """A name as people see it."""
    return unquote(name)


def escape(name: str) -> str:
    """A name as vCenter stores it."""
    return name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")


def same_name(stored: str, given: str) -> bool:
    """Whether a stored name is the given one, which may be written as shown or as stored."""
    return unescape(stored) in (given, unescape(given))


def paths(c: Connection, entities: Iterable[Any]) -> dict[Any, str]:
    """Inventory paths (``/dc/vm/folder/name``, names as stored) of managed entities, in one request."""
    entities = list(entities)
    upwards = [
        traverse("up", vim.ManagedEntity, "parent", "up"),
        traverse("vapp", vim.VirtualMachine, "parentVApp", "up"),
    ]
    specs = [vmodl.query.PropertyCollector.ObjectSpec(obj=entity, selectSet=upwards) for entity in entities]
    read = c.collect(specs, {vim.ManagedEntity: ["name", "parent"], vim.VirtualMachine: ["parentVApp"]})
    return {entity: _path(entity, read) for entity in entities}


def _path(entity: Any, read: dict[Any, dict[str, Any]]) -> str:
    names = []
    while entity in read:
        parent = read[entity].get("parent") or read[entity].get("parentVApp")
        if parent is None and names:  # the root folder has no name in paths
            break
        names.append(read[entity]["name"])
        entity = parent
    return "/" + "/".join(reversed(names))


def _only(c: Connection, found: Sequence[Any], described: str) -> Any:
    if not found:
        raise NotFound(
            f"There is no virtual machine {described} on {c.endpoint.address}.",
            "Check the spelling, and that the user may see it.",
        )
    if len(found) > 1:
        where = paths(c, found)
        candidates = [
            {"name": unescape(path.rsplit("/", 1)[-1]), "moid": vm._GetMoId(), "path": path}
            for vm, path in sorted(where.items(), key=lambda item: (item[1], item[0]._GetMoId()))
        ]
        listed = ", ".join(f"{candidate['path']} ({candidate['moid']})" for candidate in candidates)
        raise Ambiguous(
            f"There are {len(found)} virtual machines {described}: {listed}.",
            "Say which by moid, folder or datacenter.",
            candidates=candidates,
        )
    return found[0]


def _in_folder(c: Connection, name: str, folder: str, datacenter: str | None) -> list[Any]:
    if folder.startswith("/"):
        parents = [folder.strip("/")]
    else:
        parents = [f"{path}/vm/{folder.strip('/')}" for path in _datacenters(c, datacenter)]
    names = dict.fromkeys((escape(name), name) if "/" not in name else (escape(name),))
    for spelling in names:
        found = [c.read(c.content.searchIndex.FindByInventoryPath, f"{parent}/{spelling}") for parent in parents]
        found = [vm for vm in found if isinstance(vm, vim.VirtualMachine)]
        if found:
            return found
    return []


def _datacenters(c: Connection, wanted: str | None) -> dict[str, Any]:
    """The datacenters by inventory path (without a leading slash): all of them or those that ``wanted`` names."""
    root = vmodl.query.PropertyCollector.ObjectSpec(
        obj=c.content.rootFolder, selectSet=[traverse("folders", vim.Folder, "childEntity", "folders")]
    )
    read = c.collect([root], {vim.Folder: ["name", "parent"], vim.Datacenter: ["name", "parent"]})
    found = {_path(entity, read).strip("/"): entity for entity in read if isinstance(entity, vim.Datacenter)}
    if wanted is None:
        return found
    wanted = wanted.strip("/")
    matching = {
        path: entity for path, entity in found.items() if path == wanted or same_name(path.rsplit("/", 1)[-1], wanted)
    }
    if not matching:
        raise NotFound(
            f"There is no datacenter {wanted} on {c.endpoint.address}.",
            f"It has {', '.join(sorted(found)) or 'none that this user may see'}.",
        )
    return matching


def _anywhere(c: Connection, name: str, datacenter: str | None) -> list[Any]:
    starts = _datacenters(c, datacenter).values() if datacenter else [c.content.rootFolder]
    return [vm for vm, stored in _below(c, starts, vim.VirtualMachine).items() if same_name(stored, name)]


def _below(c: Connection, starts: Iterable[Any], kind: Any) -> dict[Any, str]:
    """All objects of one type below some others, with their names as stored."""
    # A view costs a request more than walking down the folders, and is answered far faster. The logout ends it.
    views = [c.read(c.content.viewManager.CreateContainerView, start, [kind], True) for start in starts]
    into = traverse("view", vim.view.ContainerView, "view")
    specs = [vmodl.query.PropertyCollector.ObjectSpec(obj=view, skip=True, selectSet=[into]) for view in views]
    return {one: values.get("name", "") for one, values in c.collect(specs, {kind: ["name"]}).items()}


def traverse(spec_name: str, kind: Any, path: str, *then: str) -> Any:
    """A TraversalSpec: from objects of ``kind`` along ``path``, and on by the traversals named ``then``."""
    return vmodl.query.PropertyCollector.TraversalSpec(
        name=spec_name,
        type=kind,
        path=path,
        selectSet=[vmodl.query.PropertyCollector.SelectionSpec(name=following) for following in then],
    )
