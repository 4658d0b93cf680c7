# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: which areas of a disk changed, or why it must be copied in full.

Pure but for the query that it is given. Whatever cannot be trusted ends in a full copy of that one
disk, with the reason: a change too many costs time, a change too few costs the data.

Where the rules come from: the paging and the snapshot argument from the vSphere API reference of
QueryChangedDiskAreas; the two parts of a change ID, the faults after a restart of tracking and the
"one extent" answers of non-VMFS storage from the VDDK programming guide (changed block tracking).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Callable, NamedTuple

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    InvalidInput,
    NotFound,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import reverts
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import Disk, pick
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.stamps import timestamp
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vi_json import (
    ViJson,
    identifier,
    reference,
)

Area = tuple[int, int]

ALLOCATED = "*"  # the change ID that asks for every area in use
SECTOR = 512  # bytes; disks are read in these
MAX_PAGES = 10_000  # far beyond honest answers; ends what an endless one would cost


class NeedsFull(BackupError):
    """The changed areas of a disk are unknown or cannot be trusted; the message is the reason."""


class ChangeId(NamedTuple):
    """``tracking`` changes whenever tracking starts anew, ``number`` grows with every snapshot."""

    tracking: str
    number: int


class Page(NamedTuple):
    """One answer of the query: the part of the disk that it covers, and what changed in it (bytes)."""

    start: int
    length: int
    areas: Sequence[Area]


# Device key, offset and change ID -> the answer.
Query = Callable[[int, int, str], Page]


class Host(NamedTuple):
    """What the ESXi host that runs the VM says of itself, e.g. ``("6.0.0", "2494585")``."""

    version: str
    build: str


@dataclass(frozen=True)
class Since:
    """What the earlier restore point knows of a disk; unknown parts are None.

    :param snapshot_time: when the snapshot was made that the restore point was copied from
    :param reason: why the owner of the restore point wants a full copy all the same
    :param parent: path of the image that an incremental one would be laid over
    """

    change_id: str | None = None
    capacity: int | None = None
    backing_uuid: str | None = None
    snapshot_time: datetime | None = None
    reason: str | None = None
    parent: str | None = None
    parent_id: str | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Since:
        """From an item of restore_point's ``since`` or one written by hand; what it has besides is left out."""
        known = {name: record.get(name) for name in cls.__dataclass_fields__}
        kinds: dict[str, tuple[Callable[[Any], Any], str]] = {
            "capacity": (int, "number of bytes"),
            "snapshot_time": (_moment, "time like 2026-11-20T02:15:00Z"),
        }
        for name, (kind, words) in kinds.items():
            try:
                known[name] = None if known[name] is None else kind(known[name])
            except (AttributeError, TypeError, ValueError) as error:
                raise InvalidInput(f"The {name} {known[name]!r} in since is no {words}.") from error
        return cls(**known)


@dataclass(frozen=True)
class Decision:
    """How to copy one disk.

    :param kind: ``full`` or ``incremental``
    :param reason: why it is full
    :param areas: what to copy; None is the whole disk
    :param warning: what the user should know of the answer
    """

    kind: str
    reason: str | None = None
    areas: list[Area] | None = None
    warning: str | None = None


# Hosts whose answers miss changes: version prefix, first good build (None: there is none), source.
BAD_BUILDS = (
    ("4.", None, "VMware KB 2090639"),
    ("5.", None, "VMware KB 2090639"),
    ("6.0.", 3073146, "VMware KB 2136854"),
)


def parse_change_id(text: str) -> ChangeId:
    """Split a change ID such as ``52 0a .. -8f 11 .. 7c/23``.

    :raises InvalidInput: the text is no change ID
    """
    match = re.fullmatch(r"(.+)/(\d+)", text.strip())
    if not match:
        raise InvalidInput(f"The text {text!r} is not a change ID (UUID/number).", "Copy the disk in full.")
    return ChangeId(match[1], int(match[2]))


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python before 3.11 knows no Z
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def bad_build(host: Host) -> str | None:
    """The source that says that this host's changed areas are wrong, or None."""
    build = int(host.build) if host.build.isdigit() else 0
    for prefix, first_good, source in BAD_BUILDS:
        if host.version.startswith(prefix) and (first_good is None or build < first_good):
            return source
    return None


def match(records: Iterable[Mapping[str, Any]], disks: Sequence[Disk]) -> dict[int, Since]:
    """Find the disk that each record speaks of.

    A record with ``disk`` names it by key, label or backing UUID. Any other is found by its backing UUID,
    which survives moves; failing that by its key, so that a replaced disk can be called so.

    :returns: disk key -> record; records of disks that are gone are left out
    :raises InvalidInput: two records name the same disk
    """
    found: dict[int, Since] = {}
    by_key: list[tuple[Any, Since]] = []
    for record in records:
        since = Since.from_record(record)
        if record.get("disk") is not None:
            keys = [pick(disks, record["disk"]).key]
        else:
            keys = [disk.key for disk in disks if since.backing_uuid and disk.backing_uuid == since.backing_uuid]
        if len(keys) > 1:
            since = replace(since, reason=f"{len(keys)} disks have the backing UUID {since.backing_uuid}")
        for key in keys:
            if key in found:
                raise InvalidInput(f"Two records of since speak of the disk {key}.", "Leave one of them out.")
            found[key] = since
        if not keys:
            by_key.append((record.get("key"), since))
    present = {disk.key for disk in disks}
    return {**{key: since for key, since in by_key if key in present}, **found}


def page_through(query: Callable[[int], Page], capacity: int) -> list[Area]:
    """Ask until the whole disk is covered: one answer may cover only a part of it.

    :param query: answers from the given offset on
    :param capacity: the size of the disk in bytes
    :returns: the areas as the server gave them
    :raises NeedsFull: the answers do not add up to the disk
    """
    areas: list[Area] = []
    offset = 0
    for _page in range(MAX_PAGES):
        page = query(offset)
        if page.start != offset or page.length <= 0 or offset + page.length > capacity:
            raise NeedsFull(
                f"the answer for offset {offset} covers {page.length} bytes from {page.start} "
                f"of a disk of {capacity} bytes"
            )
        areas.extend(page.areas)
        offset += page.length
        if offset == capacity:
            return areas
    raise NeedsFull(f"{MAX_PAGES} answers covered only {offset} of {capacity} bytes")


def full_reason(disk: Disk, since: Since | None, host: Host | None, reverted: datetime | None = None) -> str | None:
    """Why the server need not even be asked, or None.

    :param disk: the disk in the snapshot
    :param host: None when the account may not see it; hosts of today are not in the table
    :param reverted: when the VM was last reverted to a snapshot, as far as that is known
    """
    if since is None:
        return "no earlier restore point has this disk"
    if since.reason:
        return since.reason
    if since.backing_uuid and since.backing_uuid != disk.backing_uuid:
        return f"the disk was replaced: its backing UUID was {since.backing_uuid}"
    if not since.change_id:
        return "the earlier restore point has no change ID of this disk"
    if not disk.change_id:
        return "change tracking was not active on this disk when the snapshot was taken"
    if since.capacity is not None and since.capacity != disk.capacity:
        return f"the capacity changed from {since.capacity} to {disk.capacity} bytes"
    source = bad_build(host) if host else None
    if host and source:
        return f"ESXi {host.version} build {host.build} loses changes ({source})"
    if reverted and since.snapshot_time and reverted >= since.snapshot_time - reverts.MARGIN:
        return f"the virtual machine was reverted to a snapshot at {timestamp(reverted)}"
    return None if since.change_id == ALLOCATED else _broken_sequence(since.change_id, disk.change_id)


def soap_query(c: Connection, vm: Any, snapshot: Any) -> Query:
    """The query by SOAP, of a VM and one of its snapshots (managed objects)."""

    def query(key: int, offset: int, change_id: str) -> Page:
        answer = c.read(vm.QueryChangedDiskAreas, snapshot, key, offset, change_id)
        return Page(answer.startOffset, answer.length, [(area.start, area.length) for area in answer.changedArea or ()])

    return query


def vi_json_query(session: ViJson, vm: str, snapshot: str) -> Query:
    """The query by VI JSON, of a VM and one of its snapshots (their moids)."""
    end = reference("VirtualMachineSnapshot", snapshot)

    def query(key: int, offset: int, change_id: str) -> Page:
        answer = session.read(
            "VirtualMachine",
            vm,
            "QueryChangedDiskAreas",
            snapshot=end,
            deviceKey=key,
            startOffset=offset,
            changeId=change_id,
        )
        return _page(answer)

    return query


def vi_json_fcd_query(session: ViJson, manager: str, fcd: str, datastore: str, snapshot: str) -> Query:
    """The query by VI JSON, of a first class disk and one of its snapshots (their IDs).

    :param manager: moid of vCenter's VStorageObjectManager
    :param datastore: moid of the datastore that the disk is on
    """
    place, disk, end = reference("Datastore", datastore), identifier(fcd), identifier(snapshot)

    def query(key: int, offset: int, change_id: str) -> Page:
        answer = session.read(
            "VcenterVStorageObjectManager",
            manager,
            "VstorageObjectVCenterQueryChangedDiskAreas",
            id=disk,
            datastore=place,
            snapshotId=end,
            startOffset=offset,
            changeId=change_id,
        )
        return _page(answer)

    return query


def _page(answer: Mapping[str, Any]) -> Page:
    areas = answer.get("changedArea") or ()
    return Page(answer["startOffset"], answer["length"], [(area["start"], area["length"]) for area in areas])


def decide(
    disk: Disk,
    since: Since | None,
    query: Query,
    normalise: Callable[[Sequence[Area], int, int], list[Area]],
    host: Host | None = None,
    reverted: datetime | None = None,
) -> Decision:
    """Decide how one disk is copied, asking the server only when the answer could be used.

    :param disk: the disk in the snapshot
    :param since: what the earlier restore point knows of it
    :param query: the changed areas by device key, offset and change ID
    :param normalise: sorts, merges and checks areas: (areas, capacity, granularity)
    :param host: see :func:`full_reason`, as for ``reverted``
    :raises BackupError: the VM or the server is gone; a full copy would fail as well
    """
    reason = full_reason(disk, since, host, reverted)
    if reason or since is None or since.change_id is None:
        return Decision("full", reason)
    change_id = since.change_id
    try:
        found = page_through(lambda offset: query(disk.key, offset, change_id), disk.capacity)
        areas = normalise(found, disk.capacity, SECTOR)
    except (NeedsFull, InvalidInput) as error:
        return Decision("full", f"the changed areas cannot be trusted: {error.message}")
    except VsphereFault as error:
        return Decision("full", f"the query for changed areas failed: {error.message}")
    if change_id == ALLOCATED:
        return Decision("full", "asked for all areas in use (change ID *)", areas, _ALLOCATED_NOTE.format(disk.label))
    whole = areas == [(0, disk.capacity)]
    return Decision("incremental", None, areas, _WHOLE_NOTE.format(disk.label) if whole else None)


def in_use(
    disk: Disk, query: Query, normalise: Callable[[Sequence[Area], int, int], list[Area]], host: Host | None = None
) -> list[Area]:
    """Every area of a disk in a snapshot that was ever written, as far as change tracking knows.

    :raises NeedsFull: it does not know, or cannot be trusted; the message is the reason
    """
    if not disk.change_id:
        raise NeedsFull("change tracking was not active when the snapshot was taken")
    if disk.layered:
        # Tracking that began below a snapshot leaves out what was written before (VMware KB 320557).
        raise NeedsFull("it stands on an earlier snapshot, below which change tracking may have begun")
    source = bad_build(host) if host else None
    if host and source:
        raise NeedsFull(f"ESXi {host.version} build {host.build} loses changes ({source})")
    try:
        found = page_through(lambda offset: query(disk.key, offset, ALLOCATED), disk.capacity)
        return normalise(found, disk.capacity, SECTOR)
    except (InvalidInput, NotFound, VsphereFault) as error:
        raise NeedsFull(f"the query for the areas in use failed: {error.message}") from error


_ALLOCATED_NOTE = (
    "{0}: the change ID * is deprecated by VMware; take it as a hint of what is in use, "
    "never as proof that the rest is zero."
)
_WHOLE_NOTE = (
    "{0}: the whole disk is reported as changed. Storage that cannot track a disk in pieces answers so; "
    "all of it is read."
)


def _broken_sequence(before: str, now: str) -> str | None:
    """Why the two change IDs are not two moments of one uninterrupted tracking, or None."""
    try:
        old, new = parse_change_id(before), parse_change_id(now)
    except InvalidInput as error:
        return error.message
    if old.tracking != new.tracking:
        return f"another product or a reset restarted change tracking (was {before}, is {now})"
    if new.number <= old.number:
        return f"the change ID did not advance (was {before}, is {now}): its content may have been reverted"
    return None
