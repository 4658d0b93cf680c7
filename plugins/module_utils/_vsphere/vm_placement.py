# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: where a new VM goes: folder, resource pool, host, datastores and networks.

Everything that was asked for is looked up before anything is made. What is missing is named, with
what there is instead. Five or six requests, whatever the number of VMs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Iterable, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import inventory
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim, vmodl


@dataclass(frozen=True)
class Wishes:
    """Where the new VM shall go; None means as before.

    ``folder`` is an absolute inventory path; the others are names or absolute paths.
    """

    folder: str
    resource_pool: str | None = None
    cluster: str | None = None
    host: str | None = None


@dataclass(frozen=True)
class Datastore:
    """A datastore that the new VM's host can use. ``free`` is in bytes."""

    name: str
    free: int
    usable: bool


@dataclass(frozen=True)
class Site:
    """The place that was found. ``host`` is None where DRS chooses.

    ``networks`` has the shape of a network adapter's ``network`` in the document, with the moid beside it.
    """

    folder: Any
    pool: Any
    host: Any
    datacenter: str
    pool_path: str
    datastores: dict[str, Datastore]
    networks: list[dict[str, str]] = field(default_factory=list)


def find(c: Connection, wishes: Wishes, before: Mapping[str, str]) -> Site:
    """Find everything that ``wishes`` names, or that the VM had ``before`` (``placement`` of its document).

    :raises NotFound: something is missing; the message lists what there is
    :raises Ambiguous: a name fits several
    """
    folder = _folder(c, wishes.folder)
    datacenter, path = _datacenter(c, wishes.folder)
    tree = _Tree.read(c, datacenter, path)
    host = tree.pick(vim.HostSystem, wishes.host, "ESXi host") if wishes.host else None
    pool = _pool(tree, wishes, host, before)
    compute = tree.owner(pool)
    if host is None and not tree.props[compute].get("configuration.drsConfig.enabled"):
        host = _any_host(tree, compute)
    if host is not None:
        _check_host(tree, host, compute)
    reach = tree.props[host if host is not None else compute]
    datastores, networks = _reachable(c, reach)
    return Site(folder, pool, host, path, tree.path(pool), datastores, networks)


def choose_network(networks: Iterable[Mapping[str, str]], wanted: str, before: Mapping[str, str]) -> dict[str, str]:
    """The network with this name or moid, without its moid.

    Of several with one name the adapter's own port group (``before``) is preferred.
    """
    found = [item for item in networks if wanted in (item["moid"], item["name"], inventory.escape(item["name"]))]
    own = [item for item in found if before.get("portgroup_key") and item["moid"] == before["portgroup_key"]]
    if len(found) > 1 and not own:
        raise Ambiguous(
            f"There are {len(found)} networks named {wanted} there.",
            "Say which by its moid.",
            candidates=[{"name": item["name"], "moid": item["moid"]} for item in found],
        )
    if not found:
        raise NotFound(f"There is no network {wanted} there.")
    return {key: value for key, value in (own or found)[0].items() if key != "moid"}


def _folder(c: Connection, path: str) -> Any:
    found = c.read(c.content.searchIndex.FindByInventoryPath, path.strip("/"))
    if isinstance(found, vim.Folder):
        return found
    if found is not None:
        raise InvalidInput(f"{path} is no folder but a {type(found).__name__.rpartition('.')[2]}.", "Give a folder.")
    parent, _slash, _missing = path.rstrip("/").rpartition("/")
    above = c.read(c.content.searchIndex.FindByInventoryPath, parent.strip("/")) if parent.strip("/") else None
    children = c.retrieve([above], {vim.Folder: ["childEntity"]}).get(above, {}) if above is not None else {}
    folders = [child for child in children.get("childEntity", ()) if isinstance(child, vim.Folder)]
    names = c.retrieve(folders, {vim.Folder: ["name"]}).values()
    raise NotFound(
        f"There is no folder {path}.",
        f"{parent} has the folders: {_listed(item['name'] for item in names)}."
        if above is not None
        else f"{parent or '/'} does not exist either; a path looks like /datacenter/vm/folder.",
    )


def _datacenter(c: Connection, folder: str) -> tuple[Any, str]:
    """The datacenter of a VM folder; its own folders may be called ``vm`` as well."""
    parts = folder.strip("/").split("/")
    for index, part in enumerate(parts):
        if part == "vm" and index:
            path = "/".join(parts[:index])
            found = c.read(c.content.searchIndex.FindByInventoryPath, path)
            if isinstance(found, vim.Datacenter):
                return found, f"/{path}"
    raise InvalidInput(f"{folder} is no folder for VMs.", "A path looks like /datacenter/vm/folder.")


class _Tree:
    """Clusters, hosts and resource pools of a datacenter, read in one request."""

    def __init__(self, props: dict[Any, dict[str, Any]], root: str) -> None:
        self.props = props
        self._root = root

    @classmethod
    def read(cls, c: Connection, datacenter: Any, path: str) -> _Tree:
        spec = vmodl.query.PropertyCollector.ObjectSpec(
            obj=datacenter,
            selectSet=[
                inventory.traverse("hosts", vim.Datacenter, "hostFolder", "folder"),
                inventory.traverse("folder", vim.Folder, "childEntity", "folder", "pool", "host"),
                inventory.traverse("pool", vim.ComputeResource, "resourcePool", "pools"),
                inventory.traverse("pools", vim.ResourcePool, "resourcePool", "pools"),
                inventory.traverse("host", vim.ComputeResource, "host"),
            ],
        )
        compute = ["name", "parent", "resourcePool", "host", "datastore", "network"]
        state = ["runtime.connectionState", "runtime.inMaintenanceMode"]
        wanted = {
            vim.Folder: ["name", "parent"],
            vim.ComputeResource: compute,
            vim.ClusterComputeResource: ["configuration.drsConfig.enabled"],
            vim.ResourcePool: ["name", "parent", "owner"],
            vim.HostSystem: ["name", "parent", "datastore", "network", *state],
        }
        return cls(c.collect([spec], wanted), path)

    def path(self, entity: Any) -> str:
        names = []
        while entity in self.props:
            names.append(self.props[entity]["name"])
            entity = self.props[entity].get("parent")
        return "/".join((self._root, *reversed(names)))

    def owner(self, entity: Any) -> Any:
        """The cluster or stand-alone host that a resource pool or host belongs to."""
        while not isinstance(entity, vim.ComputeResource):
            entity = self.props[entity]["parent"]
        return entity

    def all(self, kind: Any, within: Any = None) -> list[Any]:
        found = [entity for entity in self.props if isinstance(entity, kind) and not isinstance(entity, vim.VirtualApp)]
        return [entity for entity in found if within is None or self.owner(entity) == within]

    def pick(self, kind: Any, wanted: str, described: str, within: Any = None) -> Any:
        """The one object of this kind with this name or absolute path."""
        there = self.all(kind, within)
        if wanted.startswith("/"):
            found = [entity for entity in there if self.path(entity) == wanted.rstrip("/")]
        else:
            found = [entity for entity in there if inventory.same_name(self.props[entity]["name"], wanted)]
        listed = _listed(self.path(entity) for entity in there)
        if not found:
            raise NotFound(f"There is no {described} {wanted} in {self._root}.", f"There are: {listed}.")
        if len(found) > 1:
            raise Ambiguous(
                f"There are {len(found)} of the name {wanted} in {self._root}.",
                "Say which by its path.",
                candidates=[{"moid": entity._GetMoId(), "path": self.path(entity)} for entity in found],
            )
        return found[0]


def _pool(tree: _Tree, wishes: Wishes, host: Any, before: Mapping[str, str]) -> Any:
    cluster = tree.pick(vim.ComputeResource, wishes.cluster, "cluster") if wishes.cluster else None
    if cluster is None and host is not None:
        cluster = tree.owner(host)
    if wishes.resource_pool:
        return tree.pick(vim.ResourcePool, wishes.resource_pool, "resource pool", cluster)
    if cluster is not None:
        return tree.props[cluster]["resourcePool"]
    if not before.get("resource_pool"):
        raise InvalidInput(
            "The configuration does not say which resource pool the VM was in.",
            "Give resource_pool, cluster or esxi_hostname.",
        )
    return tree.pick(vim.ResourcePool, before["resource_pool"], "resource pool")


def _any_host(tree: _Tree, compute: Any) -> Any:
    hosts = sorted(tree.all(vim.HostSystem, compute), key=tree.path)
    if not hosts:
        raise NotFound(f"{tree.path(compute)} has no hosts.", "Give another cluster or resource pool.")
    return next((host for host in hosts if _obstacle(tree.props[host]) is None), hosts[0])


def _check_host(tree: _Tree, host: Any, compute: Any) -> None:
    path = tree.path(host)
    if tree.owner(host) != compute:
        raise InvalidInput(f"The host {path} is not in {tree.path(compute)}.", "Give a host of that cluster, or none.")
    obstacle = _obstacle(tree.props[host])
    if obstacle:
        raise InvalidInput(f"The host {path} is {obstacle}.", "Give another host.")


def _obstacle(props: Mapping[str, Any]) -> str | None:
    if props.get("runtime.connectionState") != "connected":
        return str(props.get("runtime.connectionState"))
    return "in maintenance mode" if props.get("runtime.inMaintenanceMode") else None


def _reachable(c: Connection, props: Mapping[str, Any]) -> tuple[dict[str, Datastore], list[dict[str, str]]]:
    wanted = {
        vim.Datastore: ["name", "summary.freeSpace", "summary.accessible", "summary.maintenanceMode"],
        vim.Network: ["name"],
        vim.dvs.DistributedVirtualPortgroup: ["config.distributedVirtualSwitch", "config.uplink"],
        vim.OpaqueNetwork: ["summary"],
    }
    found = c.retrieve([*props.get("datastore", ()), *props.get("network", ())], wanted)
    datastores = {
        inventory.unescape(values["name"]): Datastore(
            inventory.unescape(values["name"]),
            int(values.get("summary.freeSpace", 0)),
            bool(values.get("summary.accessible")) and values.get("summary.maintenanceMode", "normal") == "normal",
        )
        for entity, values in found.items()
        if isinstance(entity, vim.Datastore)
    }
    networks = {entity: values for entity, values in found.items() if isinstance(entity, vim.Network)}
    return datastores, _networks(c, networks)


def _networks(c: Connection, found: Mapping[Any, Mapping[str, Any]]) -> list[dict[str, str]]:
    switches = {values.get("config.distributedVirtualSwitch") for values in found.values()} - {None}
    uuids = c.retrieve(switches, {vim.DistributedVirtualSwitch: ["uuid"]})
    networks = []
    for entity, values in found.items():
        item = {"name": inventory.unescape(values["name"]), "moid": entity._GetMoId(), "kind": "standard"}
        if isinstance(entity, vim.dvs.DistributedVirtualPortgroup):
            switch = values.get("config.distributedVirtualSwitch")
            if values.get("config.uplink") or switch not in uuids:
                continue
            item.update(kind="distributed", portgroup_key=item["moid"], switch_uuid=uuids[switch]["uuid"])
        elif isinstance(entity, vim.OpaqueNetwork):
            summary = values["summary"]
            item.update(kind="opaque", opaque_id=summary.opaqueNetworkId, opaque_type=summary.opaqueNetworkType)
        networks.append(item)
    return networks


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
