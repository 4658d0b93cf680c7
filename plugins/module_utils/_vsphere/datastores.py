# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the datastores of a server by name, managed object ID and URL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import inventory
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim, vmodl


@dataclass(frozen=True)
class Datastore:
    """One datastore; ``url`` is what other services know it by."""

    moid: str
    name: str
    url: str | None = None


class Datastores:
    """Looks datastores up and remembers them: two requests for all of them, or one for a single one's name."""

    def __init__(self, c: Connection) -> None:
        self._c = c
        self._known: dict[str, Datastore] = {}
        self._complete = False

    def all(self) -> list[Datastore]:
        """All that the user may see, in the order of their names."""
        if not self._complete:
            into = inventory.traverse("view", vim.view.ContainerView, "view")
            with self._c.view(self._c.content.rootFolder, [vim.Datastore]) as view:
                self._read(vmodl.query.PropertyCollector.ObjectSpec(obj=view, skip=True, selectSet=[into]))
            self._complete = True
        return sorted(self._known.values(), key=lambda one: (one.name, one.moid))

    def named(self, name: str) -> Datastore:
        """The datastore with this name (or managed object ID, which tells several of one name apart)."""
        found = [one for one in self.all() if inventory.same_name(one.name, name)]
        found = found or [one for one in self.all() if one.moid == name]
        if not found:
            raise NotFound(
                f"There is no datastore {name} on {self._c.endpoint.address}.",
                f"It has {', '.join(one.name for one in self.all()) or 'none that this user may see'}.",
            )
        if len(found) > 1:
            raise Ambiguous(
                f"There are {len(found)} datastores named {name}: {', '.join(one.moid for one in found)}.",
                "Give the managed object ID of the one that is meant instead of the name.",
                candidates=[{"name": one.name, "moid": one.moid} for one in found],
            )
        return found[0]

    def by_moid(self, moid: str) -> Datastore:
        """The datastore with this managed object ID; one that cannot be read is named like its ID."""
        if moid not in self._known and not self._complete:
            self._read(vmodl.query.PropertyCollector.ObjectSpec(obj=vim.Datastore(moid, self._c.stub)))
        return self._known.get(moid) or Datastore(moid, moid)

    def by_url(self, url: str | None) -> Datastore | None:
        """The datastore with this URL."""
        return next((one for one in self.all() if url and _same_url(one.url, url)), None)

    def _read(self, spec: Any) -> None:
        read = self._c.collect([spec], {vim.Datastore: ["name", "summary.url"]})
        for entity, values in read.items():
            moid = entity._GetMoId()
            self._known[moid] = Datastore(moid, inventory.unescape(values["name"]), values.get("summary.url"))


def _same_url(one: str | None, other: str) -> bool:
    # The same place is written with and without the slash at the end.
    return one is not None and one.rstrip("/") == other.rstrip("/")
