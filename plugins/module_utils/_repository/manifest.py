# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what a restore point's ``point.json`` says.

Pure: bytes in, checked records out, and back. A manifest that parses cannot name a path
outside its own VM's or first class disk's directory: names are built from checked parts, never taken as paths.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Mapping, Union

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._repository import documents
from ansible_collections.holdfast.backup.plugins.module_utils._repository.documents import Fields

FORMAT = "holdfast.restore_point"
VERSION = 1
FILE = "point.json"

KINDS = ("full", "incremental")
CONSISTENCIES = ("application", "filesystem", "crash")
RUN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_TIME = r"2[0-9]{7}T[0-9]{6}Z"
_IMAGE = r"disk-[0-9]{1,10}\.qcow2"
_FILE = r"[a-z0-9][a-z0-9._-]{0,99}"
_SHA256 = r"[0-9a-f]{64}"
_ISO = r"[0-9TZ:.+-]{20,40}"
_NAME_FORMAT = "%Y%m%dT%H%M%SZ"

MAX_BYTES = 1 << 50
"""1 PiB, sixteen times the largest disk of vSphere: more is not a size but an attack."""
_MAX_KEY = (1 << 31) - 1
_MAX_DISKS = 1024
_MAX_NOTES = 4096


@dataclass(frozen=True, order=True)
class PointId:
    """``<object>/<UTC time>``: the name of a restore point, sorted by time within an object.

    The object is a VM, by its instance UUID, or a first class disk, by its ID.
    """

    object_id: str
    time: str

    def __str__(self) -> str:
        return f"{self.object_id}/{self.time}"

    @classmethod
    def parse(cls, text: str) -> PointId:
        """The ID in ``text``.

        :raises InvalidInput: it has another form
        """
        uuid, _slash, time = text.partition("/")
        if not re.fullmatch(_UUID, uuid) or not is_time(time):
            raise InvalidInput(
                f"{text[:100]!r} is not the ID of a restore point.",
                "Give <UUID>/<UTC time>, like the 'id' that restore_point_info returns.",
            )
        return cls(uuid, time)

    @property
    def moment(self) -> datetime:
        """The time in the ID."""
        return datetime.strptime(self.time, _NAME_FORMAT).replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class Vm:
    """The identity of the VM; the instance UUID is the one that stays."""

    name: str | None
    moid: str | None
    instance_uuid: str

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> Vm:
        """The VM as a module returned it; further keys are ignored.

        :raises InvalidInput: it has no usable instance UUID
        """
        return cls(result.get("name"), result.get("moid"), check_uuid(str(result.get("instance_uuid"))))

    @property
    def object_id(self) -> str:
        """What its points are filed under."""
        return self.instance_uuid

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Fcd:
    """The identity of a first class disk. ``datastore`` is the name of the one that it was on."""

    id: str
    name: str | None
    datastore: str | None

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> Fcd:
        """The disk as a module returned it; further keys are ignored.

        :raises InvalidInput: it has no usable ID
        """
        fcd_id = check_uuid(str(result.get("id")), "the ID of a first class disk")
        return cls(fcd_id, result.get("name"), result.get("datastore"))

    @property
    def object_id(self) -> str:
        """What its points are filed under."""
        return self.id

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


Owner = Union[Vm, Fcd]


def by_kind(owner: Owner) -> dict[str, Any]:
    """``vm`` and ``fcd``, one of them None: the two keys of a point and of a result."""
    return {"vm": owner if isinstance(owner, Vm) else None, "fcd": owner if isinstance(owner, Fcd) else None}


def unnamed(object_id: str, like: Owner | None) -> Owner:
    """An object of which nothing but the ID is known; of the kind of a known one, else taken for a VM."""
    return Fcd(object_id, None, None) if isinstance(like, Fcd) else Vm(None, None, object_id)


@dataclass(frozen=True)
class Parent:
    """The image that an incremental one stands on."""

    id: str
    image: str

    @property
    def time(self) -> str:
        """The directory of the point."""
        return self.id.partition("/")[2]

    @property
    def file(self) -> str:
        """The name of the image within that directory."""
        return self.image.rpartition("/")[2]


@dataclass(frozen=True)
class Disk:
    """One disk in one restore point. Sizes in bytes."""

    key: int
    label: str
    backing_uuid: str
    capacity: int
    change_id: str | None
    kind: str
    reason: str | None
    parent: Parent | None
    image: str
    size: int
    sha256: str
    transport: str | None
    bytes_read: int
    bytes_stored: int
    fcd_id: str | None = None

    @property
    def identity(self) -> tuple[str, int]:
        """What the images of one chain have in common."""
        return self.backing_uuid, self.capacity


@dataclass(frozen=True)
class File:
    """A file beside the images, like the VM's configuration."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Unprotected:
    """Something that the point does not hold, and why."""

    label: str | None
    key: int | None
    backing_uuid: str | None
    reason: str


@dataclass(frozen=True)
class Point:
    """One restore point, of a VM or of a first class disk.

    Times are ISO 8601 in UTC; ``snapshot_time`` is the moment it shows. ``vcenter`` is the instance UUID of the vCenter
    that had it, as far as known.
    """

    id: str
    run: str
    vm: Vm | None
    fcd: Fcd | None
    started: str
    completed: str
    snapshot_time: str | None
    consistency: str
    disks: tuple[Disk, ...]
    files: tuple[File, ...]
    unprotected: tuple[Unprotected, ...]
    warnings: tuple[str, ...]
    collection_version: str
    vcenter: str | None = None

    @property
    def time(self) -> str:
        """The name of its directory."""
        return self.id.partition("/")[2]

    @property
    def owner(self) -> Owner:
        """What it is of."""
        owner = self.vm or self.fcd
        if owner is None:
            raise TypeError("A restore point is of something.")  # parse() sees to that
        return owner

    def holds(self, fcd_id: str) -> bool:
        """Whether one of its disks is, or was, this first class disk."""
        return any(disk.fcd_id == fcd_id for disk in self.disks)

    @property
    def moment(self) -> datetime:
        """What "as of" means: the moment of the snapshot, else of the start."""
        return parse_time(self.snapshot_time or self.started)

    @property
    def size(self) -> int:
        """Bytes of all files that the manifest names."""
        return sum(disk.size for disk in self.disks) + sum(file.size for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """JSON values, as in the file."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def check_uuid(text: str, what: str = "an instance UUID") -> str:
    """A UUID in lower case.

    :raises InvalidInput: it is none
    """
    if not is_uuid(text.lower()):
        raise InvalidInput(f"{text[:100]!r} is not {what}.", "Pass the vm or fcd that another module returned.")
    return text.lower()


def check_run(text: str) -> str:
    """The name of a run, fit to be a file name.

    :raises InvalidInput: it is not
    """
    if not re.fullmatch(RUN, text):
        raise InvalidInput(
            f"{text[:100]!r} is not a name for a run.", "Use at most 64 letters, digits, dots, hyphens and underscores."
        )
    return text


def is_uuid(text: str) -> bool:
    """Whether a directory of this name may hold the points of one VM or first class disk."""
    return re.fullmatch(_UUID, text) is not None


def is_time(text: str) -> bool:
    """Whether a directory of this name may be a restore point."""
    if not re.fullmatch(_TIME, text):
        return False
    try:
        datetime.strptime(text, _NAME_FORMAT)
    except ValueError:
        return False
    return True


def is_image(text: str) -> bool:
    """Whether this is the name of a disk's image."""
    return re.fullmatch(_IMAGE, text) is not None


def relative_image(time: str, image: str) -> str:
    """How an image names another point's image of the same object; stays right when a directory is renamed or moved."""
    return f"../{time}/{image}"


def next_time(now: datetime, taken: list[str]) -> str:
    """The name of a new point: now, but after every name that was ever given.

    So a child sorts after its parent, whatever the clock did meanwhile.
    """
    moment = now.astimezone(timezone.utc).replace(microsecond=0)
    if taken:
        newest = datetime.strptime(max(taken), _NAME_FORMAT).replace(tzinfo=timezone.utc)
        moment = max(moment, newest + timedelta(seconds=1))
    return moment.strftime(_NAME_FORMAT)


def format_time(moment: datetime) -> str:
    """ISO 8601 in UTC with a final Z, to the second."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def exact_time(text: str) -> str:
    """A moment given as ISO 8601 in the form that a manifest has it: UTC, with its fractions of a second.

    :raises InvalidInput: it is no time
    """
    return parse_time(text).isoformat().replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """A moment given as ISO 8601; UTC when no zone is given.

    :raises InvalidInput: it is no time
    """
    # Python before 3.11 reads neither Z nor fractions of other than three or six digits.
    plain = re.sub(r"[zZ]$", "+00:00", text.strip())
    plain = re.sub(r"\.([0-9]+)", lambda match: "." + match.group(1)[:6].ljust(6, "0"), plain)
    try:
        moment = datetime.fromisoformat(plain)
        return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{text[:100]!r} is not a time.", "Give it like 2026-11-20T02:15:00Z.") from error


def render(point: Point) -> bytes:
    """The bytes of the point's manifest."""
    return documents.render(FORMAT, VERSION, point.as_dict())


def parse(data: bytes, expected: PointId) -> Point:
    """The point in ``data``, everything checked.

    :param expected: the ID that its directory stands for
    :raises Damaged: torn, altered, or not what this collection writes
    :raises RepositoryError: a newer release wrote it
    """
    name = f"{FILE} of {expected}"
    fields = Fields(documents.parse(data, FORMAT, VERSION, name), name)
    if fields.text("id") != str(expected):
        fields.refuse("id", f"is not {expected}: the directory was renamed or its content exchanged")
    point = Point(
        id=str(expected),
        run=fields.text("run", RUN),
        **by_kind(_owner(fields, expected)),
        started=_time(fields, "started"),
        completed=_time(fields, "completed"),
        snapshot_time=None if fields.optional_text("snapshot_time") is None else _time(fields, "snapshot_time"),
        consistency=fields.text("consistency", "|".join(CONSISTENCIES)),
        disks=tuple(_disk(item, expected) for item in fields.objects("disks", _MAX_DISKS)),
        files=tuple(_file(item) for item in fields.objects("files", _MAX_DISKS)),
        unprotected=tuple(_unprotected(item) for item in fields.objects("unprotected", _MAX_NOTES)),
        warnings=fields.strings("warnings", _MAX_NOTES),
        collection_version=fields.text("collection_version", longest=64),
        vcenter=fields.optional_text("vcenter", _UUID),
    )
    names = [disk.image for disk in point.disks] + [file.name for file in point.files]
    if len(set(names)) != len(names):
        fields.refuse("disks", "or files name one file twice")
    return point


def _owner(fields: Fields, expected: PointId) -> Owner:
    vm, fcd = fields.optional_object("vm"), fields.optional_object("fcd")
    owner: Owner
    if vm is not None and fcd is None:
        owner = Vm(vm.optional_text("name"), vm.optional_text("moid"), vm.text("instance_uuid", _UUID))
    elif fcd is not None and vm is None:
        owner = Fcd(fcd.text("id", _UUID), fcd.optional_text("name"), fcd.optional_text("datastore"))
    else:
        fields.refuse("vm", "or fcd must be there, and only one of them")
    if owner.object_id != expected.object_id:
        fields.refuse("vm" if vm else "fcd", f"is not {expected.object_id}")
    return owner


def _disk(fields: Fields, point: PointId) -> Disk:
    kind = fields.text("kind", "|".join(KINDS))
    found = fields.optional_object("parent")
    parent = None if found is None else _parent(found, point)
    if (kind == "incremental") != (parent is not None):
        fields.refuse("parent", f"does not fit the kind {kind}")
    return Disk(
        key=fields.integer("key", _MAX_KEY),
        label=fields.text("label"),
        backing_uuid=fields.text("backing_uuid", r".{1,200}"),
        capacity=fields.integer("capacity", MAX_BYTES, smallest=1),
        change_id=fields.optional_text("change_id"),
        kind=kind,
        reason=fields.optional_text("reason"),
        parent=parent,
        image=fields.text("image", _IMAGE),
        size=fields.integer("size", MAX_BYTES),
        sha256=fields.text("sha256", _SHA256),
        transport=fields.optional_text("transport"),
        bytes_read=fields.integer("bytes_read", MAX_BYTES),
        bytes_stored=fields.integer("bytes_stored", MAX_BYTES),
        fcd_id=fields.optional_text("fcd_id", _UUID),
    )


def _parent(fields: Fields, point: PointId) -> Parent:
    parent = Parent(fields.text("id", f"{_UUID}/{_TIME}"), fields.text("image"))
    if parent.id != f"{point.object_id}/{parent.time}":
        fields.refuse("id", "belongs to another VM or first class disk")
    # Strictly older: so a chain cannot loop.
    if not is_time(parent.time) or parent.time >= point.time:
        fields.refuse("id", "is not older than the point itself")
    if not is_image(parent.file) or parent.image != relative_image(parent.time, parent.file):
        fields.refuse("image", "is not an image of the parent point")
    return parent


def _file(fields: Fields) -> File:
    name = fields.text("name", _FILE)
    if name == FILE or is_image(name):
        fields.refuse("name", f"may not be {name}")
    return File(name, fields.integer("size", MAX_BYTES), fields.text("sha256", _SHA256))


def _unprotected(fields: Fields) -> Unprotected:
    return Unprotected(
        label=fields.optional_text("label"),
        key=fields.optional_integer("key", _MAX_KEY),
        backing_uuid=fields.optional_text("backing_uuid"),
        reason=fields.text("reason"),
    )


def _time(fields: Fields, key: str) -> str:
    text = fields.text(key, _ISO)
    try:
        parse_time(text)
    except InvalidInput:
        fields.refuse(key, "is not a time")
    return text
