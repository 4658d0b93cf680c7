# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: choosing many VMs and reading them, in a number of requests that does not grow with it.

Requests of :func:`survey`: a view (one) and its reading (one for each :data:`PAGE` objects); for a folder, a datacenter
or a cluster one more that reads the tree of folders before; for each further condition on the place a view and its
reading. Whatever cannot be read is listed with the reason, and never ends the reading of the others.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Callable, Iterable, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import tags
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, fault_name
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import (
    IDENTITY,
    same_name,
    traverse,
    unescape,
    vm_dict,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim, vmodl

PAGE = 500  # objects in one answer: some megabytes
_PLACE = ("parent", "config.uuid", "config.template", "runtime.connectionState", "runtime.powerState")
_SELECTS = {"name", "uuid", "instance_uuid", "moid", "folder"}
_LOST = {
    "disconnected": "its host does not answer; what is listed is what vCenter remembers",
    "inaccessible": "its host cannot reach its files (inaccessible); what is listed is what vCenter remembers",
    "invalid": "its host cannot read its configuration (invalid)",
    "orphaned": "its host does not know it any more (orphaned); what is listed is what vCenter remembers",
}


@dataclass(frozen=True)
class Choice:
    """Which VMs are meant: those that fit all that is set; all of the inventory if nothing is.

    ``folder`` is a path (``/dc/vm/a``, or ``a`` below the VM folder of each datacenter), with all below it if
    ``recursive``; ``cluster`` and ``datacenter`` are names or paths. ``moids`` are the only ones that may be chosen.
    ``selections`` are names, UUIDs or managed object IDs, or mappings of ``name``, ``uuid`` (BIOS or instance),
    ``instance_uuid``, ``moid`` and ``folder``.
    """

    folder: str | None = None
    recursive: bool = True
    cluster: str | None = None
    datacenter: str | None = None
    moids: frozenset[str] | None = None
    selections: Sequence[str | Mapping[str, str]] | None = None

    @classmethod
    def from_options(cls, c: Connection, options: Mapping[str, Any]) -> Choice:
        """By the options ``vms`` to ``tags`` that modules have in common, and ``folder_recursive`` and ``tag_match``.

        Who has the tags is asked here, which costs requests.

        :raises NotFound: there is no such tag
        :raises InvalidInput: an element of ``vms`` names nothing
        """
        every = options.get("tag_match") != "any"
        return cls(
            folder=options["folder"],
            recursive=options.get("folder_recursive", True),
            cluster=options["cluster"],
            datacenter=options["datacenter"],
            moids=tags.holders(c, options["tags"], every=every) if options["tags"] else None,
            selections=None if options["vms"] is None else [_selection(one) for one in options["vms"]],
        )


@dataclass
class Machine:
    """One VM that was found. ``folder`` is the path of its folder; None in a vApp."""

    vm: Any
    properties: dict[str, Any]
    folder: str | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "vm": vm_dict(self.vm, self.properties),
            "folder": self.folder,
            "template": bool(self.properties.get("config.template")),
            "power_state": self.properties.get("runtime.powerState"),
            "connection_state": self.properties.get("runtime.connectionState"),
        }


@dataclass
class Survey:
    """What was found: ``machines``, ``unreadable`` ({vm, reason}), and the ``clock`` of the server."""

    clock: datetime
    machines: list[Machine] = field(default_factory=list)
    unreadable: list[dict[str, Any]] = field(default_factory=list)

    def complain(
        self, reason: str, name: str | None = None, moid: str | None = None, instance_uuid: str | None = None
    ) -> None:
        self.unreadable.append({"vm": {"name": name, "moid": moid, "instance_uuid": instance_uuid}, "reason": reason})


def survey(c: Connection, choice: Choice, properties: Iterable[str]) -> Survey:
    """Find the VMs that are meant and read their properties.

    :raises NotFound: the folder, cluster or datacenter does not exist
    :raises Ambiguous: several clusters have the name
    """
    places = Places(c) if choice.folder or choice.cluster or choice.datacenter else None
    conditions = _conditions(c, choice, places)
    kinds = {
        vim.VirtualMachine: [*dict.fromkeys((*IDENTITY, *_PLACE, *properties))],
        vim.ServiceInstance: ["serverClock"],
    }
    with contextlib.ExitStack() as open_views:
        views = [
            [open_views.enter_context(c.view(place, [vim.VirtualMachine])) for place in condition]
            for condition in conditions
        ]
        specs = [*(_members(views[0]) if views else _named(c, choice.moids)), server(c)]
        if places is None:
            specs.append(Places.spec(c))
            kinds.update(Places.kinds())
        read, refused = read_all(c, specs, kinds)
        within = [_inside(c, condition) for condition in views[1:]]
    places = places or Places(c, read)
    only = conditions[0] if choice.folder and not choice.recursive else None
    found = Survey(clock(read))
    machines = [
        Machine(one, props, places.path(props.get("parent")))
        for one, props in read.items()
        if isinstance(one, vim.VirtualMachine)
        and (choice.moids is None or one._GetMoId() in choice.moids)
        and (only is None or props.get("parent") in only)
        and all(one in allowed for allowed in within)
    ]
    if choice.selections is not None:
        machines = _pick(machines, choice.selections, found)
    for one in sorted(machines, key=lambda one: (one.properties.get("name", ""), one.vm._GetMoId())):
        _take(found, one, refused.get(one.vm))
    return found


def read_all(
    c: Connection,
    specs: Sequence[Any],
    properties: Mapping[Any, Sequence[str]],
    convert: Callable[[Any, str, Any], Any] = lambda managed, path, value: value,
) -> tuple[dict[Any, dict[str, Any]], dict[Any, str]]:
    """Read in pages; an object that has gone meanwhile is left out.

    :param convert: makes of a value (of an object and a path) what is kept of it, so that a page can be forgotten
    :returns: object -> {path: value}, and object -> why some of it could not be read
    """
    specs = list(specs)
    while True:
        found: dict[Any, dict[str, Any]] = {}
        refused: dict[Any, str] = {}
        try:
            for entry in c.contents(specs, properties, page=PAGE):
                values = {prop.name: convert(entry.obj, prop.name, prop.val) for prop in entry.propSet}
                found.setdefault(entry.obj, {}).update(values)
                for missing in entry.missingSet:
                    refused[entry.obj] = fault_name(missing.fault)
            return found, refused
        except NotFound as error:
            left = [spec for spec in specs if spec.obj._GetMoId() != error.details.get("moid")]
            if len(left) == len(specs):
                raise
            specs = left


def server(c: Connection) -> Any:
    """The ObjectSpec by which the server's clock comes with another read."""
    return vmodl.query.PropertyCollector.ObjectSpec(obj=vim.ServiceInstance("ServiceInstance", c.stub))


def clock(read: Mapping[Any, Mapping[str, Any]]) -> datetime:
    """The server's clock from what was read with :func:`server`."""
    return next(props["serverClock"] for props in read.values() if "serverClock" in props)


class Places:
    """The tree of datacenters, folders and clusters: where things are, and where names lead."""

    @staticmethod
    def kinds() -> dict[Any, list[str]]:
        """What is read of them."""
        return {kind: ["name", "parent"] for kind in (vim.Folder, vim.Datacenter, vim.ComputeResource)}

    def __init__(self, c: Connection, read: Mapping[Any, Mapping[str, Any]] | None = None) -> None:
        self._address = c.endpoint.address
        self._read = c.collect([self.spec(c)], self.kinds()) if read is None else read

    @staticmethod
    def spec(c: Connection) -> Any:
        """The ObjectSpec that leads to all of them."""
        ways = [
            traverse("folders", vim.Folder, "childEntity", "folders", "machines", "hosts"),
            traverse("machines", vim.Datacenter, "vmFolder", "folders"),
            traverse("hosts", vim.Datacenter, "hostFolder", "folders"),
        ]
        return vmodl.query.PropertyCollector.ObjectSpec(obj=c.content.rootFolder, selectSet=ways)

    def path(self, place: Any) -> str | None:
        """``/dc/vm/a/b`` as people see it; None if it is not known."""
        names = []
        while place in self._read:
            parent = self._read[place].get("parent")
            if parent is None:  # the root folder has no name in paths
                break
            names.append(unescape(self._read[place].get("name", "")))
            place = parent
        return "/" + "/".join(reversed(names)) if names else None

    def named(self, kind: Any, wanted: str, below: Any = None) -> Any:
        """The one place of a kind that has this name or path."""
        found = [
            place
            for place, props in self._read.items()
            if isinstance(place, kind)
            and (same_name(props.get("name", ""), wanted) or self.path(place) == "/" + wanted.strip("/"))
            and (below is None or (self.path(place) or "").startswith(f"{self.path(below)}/"))
        ]
        what = "datacenter" if kind is vim.Datacenter else "cluster"
        if not found:
            there = sorted(filter(None, (self.path(place) for place in self._read if isinstance(place, kind))))
            raise NotFound(
                f"There is no {what} {wanted} on {self._address}.",
                f"There are: {', '.join(there) or 'none that this user may see'}.",
            )
        if len(found) > 1:
            paths = sorted(str(self.path(place)) for place in found)
            raise Ambiguous(
                f"There are {len(found)} {what}s {wanted}: {', '.join(paths)}.", "Give the path.", candidates=paths
            )
        return found[0]

    def folders(self, wanted: str, datacenter: Any = None) -> list[Any]:
        """The VM folders of this path: one of an absolute path, one in each datacenter of a relative one."""
        spellings = {f"/{wanted.strip('/')}"}
        if not wanted.startswith("/"):
            centers = [datacenter] if datacenter else [one for one in self._read if isinstance(one, vim.Datacenter)]
            spellings |= {
                f"{self.path(center)}{root}/{wanted.strip('/')}" for center in centers for root in ("/vm", "")
            }
        found = [one for one in self._read if isinstance(one, vim.Folder) and self.path(one) in spellings]
        if not found:
            raise NotFound(
                f"There is no folder {wanted} on {self._address}.",
                "Give its path, like /dc1/vm/production or production/web, and check that the user may see it.",
            )
        return found


def _conditions(c: Connection, choice: Choice, places: Places | None) -> list[list[Any]]:
    """Where to look: a VM must be below one place of each of them. The first is the folder, if one is meant."""
    if places is None:
        return [[c.content.rootFolder]] if choice.moids is None else []
    datacenter = places.named(vim.Datacenter, choice.datacenter) if choice.datacenter else None
    conditions = []
    if choice.folder:
        conditions.append(places.folders(choice.folder, datacenter))
    if choice.cluster:
        conditions.append([places.named(vim.ComputeResource, choice.cluster, datacenter)])
    return conditions or [[datacenter]]


def _inside(c: Connection, views: Sequence[Any]) -> set[Any]:
    read = c.retrieve(views, {vim.view.ContainerView: ["view"]})
    return {one for props in read.values() for one in props.get("view", ())}


def _named(c: Connection, moids: Iterable[str] | None) -> list[Any]:
    return [
        vmodl.query.PropertyCollector.ObjectSpec(obj=vim.VirtualMachine(moid, c.stub)) for moid in sorted(moids or ())
    ]


def _members(views: Iterable[Any]) -> list[Any]:
    into = traverse("view", vim.view.ContainerView, "view")
    return [vmodl.query.PropertyCollector.ObjectSpec(obj=view, skip=True, selectSet=[into]) for view in views]


def _selection(given: Any) -> str | Mapping[str, str]:
    """One element of an option ``vms``; a name of digits only is a number in YAML."""
    text = str(given) if isinstance(given, int) else given
    if isinstance(text, str) and text:
        return text
    if isinstance(given, Mapping) and any(given.values()) and given.keys() <= _SELECTS:
        return {key: str(value) for key, value in given.items() if value}
    raise InvalidInput(
        f"{given!r} among the virtual machines (vms) names none.",
        f"Write a name, a UUID, a managed object ID, or a dictionary of some of {', '.join(sorted(_SELECTS))}.",
    )


def _pick(machines: Sequence[Machine], selections: Iterable[str | Mapping[str, str]], found: Survey) -> list[Machine]:
    """The VMs that are named, each once; of a name that several have, all. What is not there is noted."""
    chosen: dict[Any, Machine] = {}
    for wanted in selections:
        fitting = [one for one in machines if _is(one, wanted)]
        chosen.update((one.vm, one) for one in fitting)
        if not fitting:
            given = {"name": wanted} if isinstance(wanted, str) else wanted
            shown = ", ".join(f"{key} {value}" for key, value in given.items() if value) or "nothing"
            reason = f"there is no such virtual machine ({shown}) where it was looked for, or the user may not see it"
            if isinstance(wanted, str):
                reason = (
                    "there is no virtual machine of this name or ID where it was looked for, or the user may not see it"
                )
            found.complain(
                reason, given.get("name"), given.get("moid"), given.get("instance_uuid") or given.get("uuid")
            )
    return list(chosen.values())


def _is(machine: Machine, wanted: str | Mapping[str, str]) -> bool:
    name, moid = machine.properties.get("name", ""), machine.vm._GetMoId()
    uuids = [str(machine.properties.get(key)).lower() for key in ("config.instanceUuid", "config.uuid")]
    if isinstance(wanted, str):
        return wanted == moid or same_name(name, wanted) or wanted.lower() in uuids
    checks = {
        "moid": lambda value: value == moid,
        "name": lambda value: same_name(name, value),
        "uuid": lambda value: value.lower() in uuids,
        "instance_uuid": lambda value: value.lower() == uuids[0],
        "folder": lambda value: f"{machine.folder}/".endswith(f"/{value.strip('/')}/"),
    }
    given = {key: value for key, value in wanted.items() if value and key in checks}
    return bool(given) and all(checks[key](value) for key, value in given.items())


def _take(found: Survey, one: Machine, refused: str | None) -> None:
    """Note a VM, and what keeps it from being read."""
    props = one.properties
    state = props.get("runtime.connectionState")
    name = unescape(props["name"]) if "name" in props else None
    known = (name, one.vm._GetMoId(), props.get("config.instanceUuid"))
    if name is None:
        found.complain(f"it cannot be read ({refused or 'no reason given'}): check the role of the user on it", *known)
        return
    if refused:
        found.complain(f"some of it cannot be read ({refused}): check the role of the user on it", *known)
    elif state in _LOST:
        found.complain(_LOST[str(state)], *known)
    found.machines.append(one)
