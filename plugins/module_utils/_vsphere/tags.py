# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: tags of vCenter, by the Automation API (``/api/cis/tagging``, 7.0 Update 2 and later).

A tag is called ``category:name``, or by its ID (``urn:vmomi:InventoryServiceTag:...``), which costs nothing to find.
The API gives names one by one, so a name costs a request for each category until its own is found, and one for each tag
in it. What is asked about VMs takes one request for any number of them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Iterable, Sequence
from urllib.parse import quote

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, NotFound, VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.automation import Automation
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection

ID = "urn:vmomi:InventoryServiceTag:"
_ROOT = "/cis/tagging"
_VM = "VirtualMachine"


@dataclass(frozen=True)
class Tag:
    """One tag, with the name of its category."""

    id: str
    category: str
    name: str

    def __str__(self) -> str:
        return f"{self.category}:{self.name}"


def holders(c: Connection, wanted: Iterable[str], every: bool) -> frozenset[str]:
    """Managed object IDs of the VMs that have these tags.

    :param every: all of the tags, and not any of them
    :raises NotFound: one of the tags does not exist
    """
    with Automation(c) as api:
        tags = Tags(api)
        return tags.holders(tags.need(wanted), every)


class Tags:
    """The tags of one vCenter, as they are asked for; names are asked for once."""

    def __init__(self, api: Automation) -> None:
        self._api = api
        self._category = functools.lru_cache(maxsize=None)(lambda id: api.get(f"{_ROOT}/category/{quote(id, safe='')}"))
        self._tag = functools.lru_cache(maxsize=None)(lambda id: api.get(f"{_ROOT}/tag/{quote(id, safe='')}"))
        self._categories = functools.lru_cache(maxsize=None)(lambda: api.get(f"{_ROOT}/category"))

    def find(self, wanted: Iterable[str]) -> dict[str, str | None]:
        """The IDs of tags by what they are called; None for one that does not exist."""
        return {called: called if called.startswith(ID) else self._find(called) for called in wanted}

    def need(self, wanted: Iterable[str]) -> list[str]:
        """The IDs of tags; raises NotFound when one does not exist."""
        found = self.find(wanted)
        lost = [called for called, id in found.items() if id is None]
        if lost:
            raise NotFound(
                f"There is no tag {' and no tag '.join(lost)}.",
                "Write tags as category:name, exactly as vCenter shows them, and check that the user may see them.",
            )
        return [id for id in found.values() if id]

    def holders(self, ids: Sequence[str], every: bool) -> frozenset[str]:
        """Managed object IDs of the VMs that have these tags; one request.

        :param every: all of the tags, and not any of them
        """
        answer = self._api.query(f"{_ROOT}/tag-association?action=list-attached-objects-on-tags", tag_ids=list(ids))
        sets = {
            entry["tag_id"]: {one["id"] for one in entry["object_ids"] or () if one["type"] == _VM}
            for entry in answer or ()
        }
        found = [sets.get(id, set()) for id in ids]
        return frozenset(set.intersection(*found) if every else set.union(*found)) if found else frozenset()

    def seek(self, tag: Tag) -> Tag | None:
        """The tag with this ID, whatever it is called by now, or else the one with these names, or None."""
        try:
            return self.named(tag.id) if tag.id else self._seek(tag)
        except NotFound:
            return self._seek(tag)

    def attached(self, moid: str) -> list[Tag]:
        """The tags that a VM has, sorted by name."""
        ids = self._api.query(f"{_ROOT}/tag-association?action=list-attached-tags", object_id=_object(moid))
        return sorted((self.named(id) for id in ids or ()), key=str)

    def named(self, id: str) -> Tag:
        """A tag with its names, by ID."""
        tag = self._tag(id)
        return Tag(id, self._category(tag["category_id"])["name"], tag["name"])

    def attach(self, moid: str, ids: Sequence[str]) -> None:
        """Attach tags to a VM; those that it has already are left alone."""
        self._change("attach-multiple-tags-to-object", moid, ids)

    def detach(self, moid: str, ids: Sequence[str]) -> None:
        """Take tags off a VM."""
        self._change("detach-multiple-tags-from-object", moid, ids)

    def create(self, category: str, name: str, single: bool = False) -> str:
        """Make a tag, and its category if there is none; returns the tag's ID.

        :param single: whether a VM may have only one tag of a category that is made
        """
        there = {self._category(id)["name"]: id for id in self._categories()}
        home = there.get(category) or self._api.post(
            f"{_ROOT}/category",
            name=category,
            description="",
            cardinality="SINGLE" if single else "MULTIPLE",
            associable_types=[],
        )
        made: str = self._api.post(f"{_ROOT}/tag", name=name, description="", category_id=home)
        self._categories.cache_clear()
        return made

    def _find(self, called: str) -> str | None:
        # A colon may be part of either name.
        for id in self._categories():
            start = f"{self._category(id)['name']}:"
            found = self._member(id, called[len(start) :]) if called.startswith(start) else None
            if found:
                return found
        return None

    def _seek(self, tag: Tag) -> Tag | None:
        homes = [id for id in self._categories() if self._category(id)["name"] == tag.category]
        found = next(filter(None, (self._member(id, tag.name) for id in homes)), None)
        return Tag(found, tag.category, tag.name) if found else None

    def _member(self, category: str, name: str) -> str | None:
        """The ID of the tag with this name in a category, by the category's ID."""
        members = self._api.query(f"{_ROOT}/tag?action=list-tags-for-category", category_id=category)
        return next((tag for tag in members or () if self._tag(tag)["name"] == name), None)

    def _change(self, action: str, moid: str, ids: Sequence[str]) -> None:
        if not ids:
            return
        answer = self._api.post(f"{_ROOT}/tag-association?action={action}", object_id=_object(moid), tag_ids=list(ids))
        if not answer["success"]:
            said = [str(one.get("default_message") or one.get("id")) for one in answer.get("error_messages") or ()]
            raise VsphereFault(
                f"vCenter refused to change tags of {moid}: {'; '.join(said) or 'no cause given'}.",
                "Check that the category takes virtual machines and more than one tag, and the user's role on the tag.",
                fault="TagAssociation",
            )


def _object(moid: str) -> dict[str, Any]:
    return {"id": moid, "type": _VM}


def split(called: str) -> tuple[str, str]:
    """Category and name of a tag that is to be made; raises InvalidInput when it is not called ``category:name``."""
    category, _colon, name = called.partition(":")
    if not (category and name):
        raise InvalidInput(f"{called} names no tag.", "Write category:name.")
    return category, name
