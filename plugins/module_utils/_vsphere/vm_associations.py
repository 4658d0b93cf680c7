# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what vCenter keeps of a VM beside its configuration: tags and storage policies.

Services of their own have them, which may be out of reach, or closed to the user. That costs the tags or the policies,
never a backup or a restore, and is told: by a note in the document, by a warning of a restore.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    AuthenticationFailed,
    ConnectionFailed,
    NotFound,
    NotSupported,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.automation import Automation
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.storage_policies import (
    Policy,
    StoragePolicies,
    named,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.tags import Tag, Tags

KEEP, CREATE, IGNORE = "keep", "create", "ignore"

_TROUBLE = (AuthenticationFailed, ConnectionFailed, NotFound, NotSupported, VsphereFault)
_NOTE = 1024  # characters that the document takes


def capture(c: Connection, document: dict[str, Any], tags: str = KEEP, storage_policies: str = KEEP) -> None:
    """Add them to the document of a VM, or to its notes why they are not in it.

    Requests: three for the policies; for the tags one, one for each tag and each category, and log-in and log-out if
    there is no session of the Automation API. A key that is missing means "not known".
    """
    asked = {"Storage policies": (storage_policies, _capture_policies), "Tags": (tags, _capture_tags)}
    wanted = {what: read for what, (wish, read) in asked.items() if wish != IGNORE}
    if wanted and not c.is_vcenter:
        what = " and ".join(wanted).capitalize()
        document["notes"].append(f"{what} are not captured: {c.endpoint.address} is no vCenter, which alone has them.")
        return
    for what, read in wanted.items():
        try:
            read(c, document)
        except _TROUBLE as error:
            document["notes"].append(re.sub("[\0-\x1f]+", " ", f"{what} are not captured: {error}")[:_NOTE])


def find(
    c: Connection, target: dict[str, Any], tags: str, storage_policies: str, mapping: Mapping[str, str]
) -> list[str]:
    """Make the tags and policies in the document of a VM to be made those of this vCenter; changes nothing there.

    Afterwards a policy that is set has the ID that it has here, and a tag without an ID is to be made.

    :param tags: ``keep`` those that exist, ``create`` the others too, or ``ignore`` all
    :param storage_policies: ``keep`` or ``ignore``
    :param mapping: names of other storage policies by those in the document
    :returns: warnings of what is not here
    :raises NotFound: a policy that was asked for by ``mapping`` does not exist
    """
    return _find_policies(c, target, storage_policies, mapping) + _find_tags(c, target, tags)


def choose(
    holders: Sequence[dict[str, Any]], known: Sequence[Policy], mapping: Mapping[str, str], at: str
) -> list[str]:
    """Replace the old policies of a VM's home and disks by those that are ``known`` here, or by None.

    A policy is known by its ID, whatever it is called by now, or else by its name. That of something encrypted would
    encrypt anew, which a restore does not do, so it is only replaced if ``mapping`` says so.

    :param at: address of the vCenter
    :returns: warnings, one for each policy that is not applied
    """
    lost: dict[tuple[str, str], list[str]] = {}
    for holder in holders:
        old, holder["storage_policy"] = holder["storage_policy"], None
        found = None
        if old["name"] in mapping:
            found = named(mapping[old["name"]], known, at)
        elif not holder.get("encryption"):
            same = [policy for policy in known if policy.id == old.get("id")]
            found = next(iter(same or [policy for policy in known if policy.name == old["name"]]), None)
        if found is not None:
            holder["storage_policy"] = asdict(found)
            continue
        why = "what it was for was encrypted" if holder.get("encryption") else f"{at} has none of that name"
        lost.setdefault((old["name"], why), []).append(holder.get("label", "the VM's home"))
    return [
        f"The storage policy {name} of {', '.join(labels)} is not applied, the default of the datastore is: {why}."
        for (name, why), labels in lost.items()
    ]


def policies_of(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What in a document has a storage policy: itself, for the VM's home, and disks."""
    yield from (holder for holder in (document, *document["disks"]) if holder.get("storage_policy"))


def attach(c: Connection, vm: Any, tags: Sequence[Mapping[str, str]]) -> list[str]:
    """Attach the tags that :func:`find` left in the document, and make those without an ID; returns warnings."""
    if not tags:
        return []
    try:
        with Automation(c) as api:
            # Who may not make tags has at least those that are there.
            Tags(api).attach(vm._GetMoId(), [tag["id"] for tag in tags if tag["id"]])
            Tags(api).attach(vm._GetMoId(), [_make(api, Tag(**tag)) for tag in tags if not tag["id"]])
    except _TROUBLE as error:
        return [f"Not all of the tags {_listed(Tag(**tag) for tag in tags)} are attached: {error}"]
    return []


def _capture_policies(c: Connection, document: dict[str, Any]) -> None:
    found = StoragePolicies(c).of_vm(document["vm"]["moid"], [disk["key"] for disk in document["disks"]])
    for key, holder in ((None, document), *((disk["key"], disk) for disk in document["disks"])):
        if key in found:
            policy = found[key]
            holder["storage_policy"] = policy and asdict(policy)
        else:
            document["notes"].append(
                f"The storage policy of {holder.get('label', 'the home')} is not captured: vCenter does not tell it."
            )


def _capture_tags(c: Connection, document: dict[str, Any]) -> None:
    with Automation(c) as api:
        document["tags"] = [asdict(tag) for tag in Tags(api).attached(document["vm"]["moid"])]


def _find_policies(c: Connection, target: dict[str, Any], wish: str, mapping: Mapping[str, str]) -> list[str]:
    holders, warnings = list(policies_of(target)), []
    known: list[Policy] | None = None
    if holders and wish != IGNORE:
        try:
            known = StoragePolicies(c).all()
        except _TROUBLE as error:
            warnings = [f"No storage policy is applied, the defaults of the datastores are: {error}"]
    if known is not None:
        return choose(holders, known, mapping, c.endpoint.address)
    for holder in holders:
        holder["storage_policy"] = None
    return warnings


def _find_tags(c: Connection, target: dict[str, Any], wish: str) -> list[str]:
    wanted = [Tag(tag.get("id", ""), tag["category"], tag["name"]) for tag in target.get("tags", ())]
    target["tags"] = []
    if wish == IGNORE or not wanted:
        return []
    try:
        with Automation(c) as api:
            tags = Tags(api)
            found = {tag: tags.seek(tag) for tag in wanted}
    except _TROUBLE as error:
        return [f"The tags {_listed(wanted)} are not attached: {error}"]
    lost = [tag for tag in wanted if found[tag] is None]
    target["tags"] = [
        asdict(found[tag] or Tag("", tag.category, tag.name)) for tag in wanted if found[tag] or wish == CREATE
    ]
    if not lost or wish == CREATE:
        return []
    return [f"The tags {_listed(lost)} are not attached: {c.endpoint.address} has none of these names."]


def _make(api: Automation, tag: Tag) -> str:
    try:
        return Tags(api).create(tag.category, tag.name)
    except VsphereFault as error:
        if error.details.get("fault") != "ALREADY_EXISTS":
            raise
        # Another restore has just made the tag, or its category.
        found = Tags(api).seek(tag)
        return found.id if found else Tags(api).create(tag.category, tag.name)


def _listed(tags: Iterator[Tag] | Sequence[Tag]) -> str:
    return ", ".join(sorted(map(str, tags)))
