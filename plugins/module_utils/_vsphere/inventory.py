# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: finding one virtual machine without reading the inventory.

Requests: one by ``moid``, two by ``uuid``, by inventory path or by name and absolute folder, three by name alone (names
only, whatever the number of VMs) or by name and relative folder (one more for each further datacenter). A VM that is
not in the folder itself but somewhere below it costs three more, and one that has the folder elsewhere on its path
about as many again.

vCenter stores the characters ``/``, backslash and ``%`` in names as ``%2f``, ``%5c`` and ``%25``.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim, vmodl

IDENTITY = ("name", "config.instanceUuid")
_ESCAPED = {"2f": "/", "5c": "\\", "25": "%"}


def find_vm(
    c: Connection,
    *,
    name: str | None = None,
    name_match: str | None = None,
    folder: str | None = None,
    folder_paths_are_absolute: bool = False,
    datacenter: str | None = None,
    inventory_path: str | None = None,
    uuid: str | None = None,
    use_instance_uuid: bool = False,
    moid: str | None = None,
    properties: Sequence[str] = (),
    along: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Find one VM or template and read its properties. If several of name, UUID and ID are given, all must fit.

    :param name: its name, as shown or as stored (escaped)
    :param name_match: of several VMs of that name, take the ``first`` or the ``last``, in the order of their IDs
    :param folder: the path of a folder that it is in or below: ``/dc/vm/a/b``, or ``a/b`` or ``vm/a/b`` in each
        datacenter; with or without slashes at both ends. If it is in none of these, any part of its path
    :param folder_paths_are_absolute: never take ``folder`` for a relative path
    :param datacenter: the name (or path) of its datacenter, to narrow a search by name
    :param inventory_path: its own path, ``/dc/vm/a/b/name``
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
        vm = _only(
            c, c.read(c.content.searchIndex.FindAllByUuid, None, uuid, True, use_instance_uuid), f"with the {by} {uuid}"
        )
    elif inventory_path:
        vm = _only(c, _at(c, [inventory_path]), f"at {inventory_path}")
    elif name:
        found = _named(c, name, folder, datacenter or None, folder_paths_are_absolute)
        found.sort(
            key=lambda one: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", one._GetMoId())]
        )
        where = f" in the folder {folder}" if folder else ""
        where += f" of the datacenter {datacenter}" if datacenter else ""
        if found and name_match:
            found = found[:1] if name_match == "first" else found[-1:]
        vm = _only(c, found, f"named {name}{where}", name)
    else:
        raise InvalidInput("No virtual machine was named.", "Give one of name, uuid, moid and inventory_path.")
    path = "config.instanceUuid" if use_instance_uuid else "config.uuid"
    read = read_vm(c, vm, [*properties, *([path] if uuid else [])], along)
    if name and not same_name(read["name"], name):
        raise _misfit(read, f"is not named {name}")
    if uuid and str(read.get(path)).lower() != uuid.lower():
        raise _misfit(read, f"has the UUID {read.get(path)} and not {uuid}")
    return vm, read


def read_vm(
    c: Connection, vm: Any, properties: Sequence[str] = (), along: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Any]:
    """Read a VM, and what it refers to, in one request.

    :param properties: property paths to read beside :data:`IDENTITY`
    :param along: ``recentTask``, ``datastore`` or ``rootSnapshot`` (with all snapshots below): property paths of the
        objects there
    :returns: {path: value}, where an unset property is a missing key; for each path of ``along``
        {object: {path: value}}; and ``serverClock``, the server's time
    :raises NotFound: the VM cannot be read
    """
    along = along or {}
    collector = vmodl.query.PropertyCollector
    clock = vim.ServiceInstance("ServiceInstance", c.stub)
    kinds = {"recentTask": vim.Task, "datastore": vim.Datastore, "rootSnapshot": vim.vm.Snapshot}
    ways = [collector.TraversalSpec(type=vim.VirtualMachine, path=path) for path in along]
    for way in ways:
        if way.path == "rootSnapshot":
            way.selectSet = [traverse("below", vim.vm.Snapshot, "childSnapshot", "below")]
    specs = [collector.ObjectSpec(obj=vm, selectSet=ways), collector.ObjectSpec(obj=clock)]
    wanted: dict[Any, Sequence[str]] = {
        vim.VirtualMachine: [*dict.fromkeys((*IDENTITY, *properties, *along))],
        vim.ServiceInstance: ["serverClock"],
        **{kinds[path]: paths for path, paths in along.items()},
    }
    read = c.collect(specs, wanted)
    if vm not in read:
        raise NotFound(f"The virtual machine {vm._GetMoId()} cannot be read.", "Check the role of the user on it.")
    there: dict[str, dict[Any, dict[str, Any]]] = {
        path: {one: {} for one in read[vm].get(path, ())}  # even what is gone by now
        for path in along
    }
    for path, found in there.items():
        found.update({one: values for one, values in read.items() if isinstance(one, kinds[path])})
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


def vm_dict(vm: Any, properties: Mapping[str, Any]) -> dict[str, Any]:
    """``{name, moid, instance_uuid}``, which every result carries; from what :func:`find_vm` returned."""
    return {
        "name": unescape(properties["name"]),
        "moid": vm._GetMoId(),
        "instance_uuid": properties.get("config.instanceUuid"),
    }


def unescape(name: str) -> str:
    """A name as people see it."""
    return re.sub("%(2f|5c|25)", lambda found: _ESCAPED[found[1].lower()], name, flags=re.IGNORECASE)


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
    names: list[str] = []
    while entity in read:
        parent = read[entity].get("parent") or read[entity].get("parentVApp")
        if parent is None and names:  # the root folder has no name in paths
            break
        names.append(read[entity]["name"])
        entity = parent
    return "/" + "/".join(reversed(names))


def _in_order(moid: str) -> tuple[int, str]:
    """Sorts ``vm-9`` before ``vm-10``."""
    number = re.search("[0-9]+$", moid)
    return int(number[0]) if number else 0, moid


def _misfit(read: Mapping[str, Any], how: str) -> NotFound:
    return NotFound(
        f"The virtual machine {unescape(read['name'])} {how}.",
        "Give what fits one machine, or only one way to find it.",
    )


def _only(c: Connection, found: Sequence[Any], described: str, name: str | None = None) -> Any:
    if not found:
        raise NotFound(
            f"There is no virtual machine {described} on {c.endpoint.address}.",
            _elsewhere(c, name) if name else "Check the spelling, and that the user may see it.",
        )
    if len(found) > 1:
        candidates = _candidates(c, found)
        raise Ambiguous(
            f"There are {len(found)} virtual machines {described}: {_listed(candidates)}.",
            "Say which by moid, folder or datacenter.",
            candidates=candidates,
        )
    return found[0]


def _elsewhere(c: Connection, name: str) -> str:
    """The advice on a name that was not found: where it is, or what is written nearly like it."""
    wanted = unescape(name).lower()
    near = [
        vm
        for vm, stored in _below(c, [c.content.rootFolder], vim.VirtualMachine).items()
        if unescape(stored).lower() == wanted
    ]
    if not near:
        return "Check the spelling, and that the user may see it."
    return (
        f"Upper and lower case are told apart, and the folder must be right. There is {_listed(_candidates(c, near))}."
    )


def _candidates(c: Connection, found: Iterable[Any]) -> list[dict[str, str]]:
    """``{name, moid, path}`` of VMs, in the order of their paths."""
    return [
        {"name": unescape(path.rsplit("/", 1)[-1]), "moid": vm._GetMoId(), "path": path}
        for vm, path in sorted(paths(c, found).items(), key=lambda item: (item[1], item[0]._GetMoId()))
    ]


def _listed(candidates: Iterable[Mapping[str, str]]) -> str:
    return ", ".join(f"{candidate['path']} ({candidate['moid']})" for candidate in candidates)


def _named(c: Connection, name: str, folder: str | None, datacenter: str | None, absolute: bool) -> list[Any]:
    """The VMs of this name in a folder, or below it, or anywhere."""
    if not (folder or "").strip("/"):
        starts = _datacenters(c, datacenter).values() if datacenter else [c.content.rootFolder]
        return [vm for vm, stored in _below(c, starts, vim.VirtualMachine).items() if same_name(stored, name)]
    tried: list[str] = []
    for parents in _folder_paths(c, folder or "", datacenter, absolute):
        tried += parents
        for spelling in dict.fromkeys((escape(name), name) if "/" not in name else (escape(name),)):
            found = _at(c, [f"{parent}/{spelling}" for parent in parents])
            if found:
                return found
    starts = [c.read(c.content.searchIndex.FindByInventoryPath, parent) for parent in tried]
    folders = [start for start in starts if isinstance(start, vim.Folder)]
    found = [vm for vm, stored in _below(c, folders, vim.VirtualMachine).items() if same_name(stored, name)]
    return found if found or absolute else _within(c, name, folder or "", datacenter)


def _within(c: Connection, name: str, folder: str, datacenter: str | None) -> list[Any]:
    """The VMs of this name that have the folders given somewhere on the way to them, one directly after the other."""
    wanted = folder.strip("/").split("/")
    found = []
    for vm, path in paths(c, _named(c, name, None, datacenter, False)).items():
        way = path.strip("/").split("/")[:-1]
        runs = (way[start : start + len(wanted)] for start in range(len(way) - len(wanted) + 1))
        if any(all(map(same_name, run, wanted)) for run in runs):
            found.append(vm)
    return found


def _at(c: Connection, wanted: Iterable[str]) -> list[Any]:
    """The VMs at these inventory paths."""
    found = [c.read(c.content.searchIndex.FindByInventoryPath, path) for path in wanted]
    return [one for one in found if isinstance(one, vim.VirtualMachine)]


def _folder_paths(c: Connection, folder: str, datacenter: str | None, absolute: bool) -> Iterable[list[str]]:
    """What a folder may be meant to be, the likeliest first: absolute paths without slashes at their ends.

    All folders of VMs are below a datacenter's folder ``vm``, so an absolute path has that name in it, and not first.
    """
    parts = folder.strip("/").split("/")
    before = parts[: parts.index("vm", 1)] if "vm" in parts[1:] else []
    if absolute or (before and (datacenter is None or same_name(before[-1], datacenter.strip("/").rsplit("/", 1)[-1]))):
        yield ["/".join(parts)]
    if not absolute and not (before and folder.startswith("/")):
        below = parts[1:] if parts[0] == "vm" else parts
        yield ["/".join([path, "vm", *below]) for path in _datacenters(c, datacenter)]


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


def _below(c: Connection, starts: Iterable[Any], kind: Any) -> dict[Any, str]:
    """All objects of one type below some others, with their names as stored."""
    into = traverse("view", vim.view.ContainerView, "view")
    with contextlib.ExitStack() as held:
        # A view costs a request more than walking down the folders, and is answered far faster.
        views = [held.enter_context(c.view(start, [kind])) for start in starts]
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
