# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Machines and first class disks without a vCenter: bytes in memory, with a list of what was written to them."""

from __future__ import annotations

import random
import uuid
import zlib
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.areas import Area

SECTOR = 512
BLOCK = 65536
MIB = 1 << 20
SIZES = (MIB + 3 * SECTOR, 2 * MIB, 64 * SECTOR, 3 * MIB - SECTOR, MIB + BLOCK)
MOST_DISKS = 3


@dataclass
class Disk:
    """The twin of a disk, and its change tracking.

    :param log: the blocks written after each change ID; another ``tracking`` is another beginning
    """

    key: int
    backing_uuid: str
    content: bytearray
    tracking: str = field(default_factory=lambda: str(uuid.uuid4()))
    log: list[set[int]] = field(default_factory=lambda: [set()])
    fcd_id: str | None = None

    def copy(self) -> Disk:
        """As it is now, with a tracking of its own."""
        return Disk(self.key, self.backing_uuid, bytearray(self.content), fcd_id=self.fcd_id)

    def put(self, offset: int, data: bytes) -> None:
        """The guest writes."""
        assert offset + len(data) <= len(self.content)
        self.content[offset : offset + len(data)] = data
        self.log[-1].update(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))

    def lose_track(self) -> None:
        """Something ends the change tracking."""
        self.tracking, self.log = str(uuid.uuid4()), [set()]

    def snapshot(self) -> str:
        """The change ID of a snapshot taken now."""
        self.log.append(set())
        return f"{self.tracking}/{len(self.log) - 1}"

    def changed(self, since: str, until: str) -> list[Area] | None:
        """What was written between two change IDs; None when nobody knows."""
        tracking, _slash, first = since.rpartition("/")
        if tracking != until.rpartition("/")[0]:
            return None
        blocks = set().union(*self.log[int(first) : int(until.rpartition("/")[2])])
        found = [(block * BLOCK, BLOCK) for block in blocks]
        size = len(self.content)
        return areas.normalise([(start, min(length, size - start)) for start, length in found if start < size], size)

    def record(self) -> dict[str, Any]:
        """As disk_changed_areas returns it."""
        return {
            "key": self.key,
            "label": f"Hard disk {self.key - 1999}",
            "backing_uuid": self.backing_uuid,
            "capacity": len(self.content),
            "fcd_id": self.fcd_id,
            "protected": True,
            "reason": None,
        }


@dataclass(frozen=True)
class Held:
    """One disk at the moment of a backup."""

    content: bytes  # compressed
    capacity: int

    @classmethod
    def of(cls, disk: Disk) -> Held:
        """What it holds now."""
        return cls(zlib.compress(disk.content, 1), len(disk.content))

    def raw(self) -> bytes:
        """All of its bytes."""
        return zlib.decompress(self.content)


Moment = dict[str, Held]  # by backing UUID


class Machine:
    """A virtual machine, or a first class disk, and its twin: what its guest and its administrators do to it."""

    def __init__(self, dice: random.Random, number: int = 0, fcd: bool = False) -> None:
        self.dice = dice
        self.id = str(uuid.UUID(int=dice.getrandbits(128), version=4))
        name = f"{'pvc' if fcd else 'web'}-{number}"
        self.owner: dict[str, Any] = (
            {"fcd": {"id": self.id, "name": name, "datastore": "ds1"}}
            if fcd
            else {"vm": {"name": name, "moid": f"vm-{number}", "instance_uuid": self.id}}
        )
        self.disks: dict[int, Disk] = {}
        self.snapshots: list[dict[int, Disk]] = []
        for _disk in range(1 if fcd else dice.randint(1, 2)):
            self.add()
        for disk in self.disks.values():
            disk.put(0, dice.randbytes(len(disk.content) // 2))

    @property
    def is_fcd(self) -> bool:
        """Whether it is a first class disk."""
        return "fcd" in self.owner

    def moment(self) -> Moment:
        """What a snapshot taken now holds."""
        return {disk.backing_uuid: Held.of(disk) for disk in self.disks.values()}

    def _any(self) -> Disk:
        return self.disks[self.dice.choice(sorted(self.disks))]

    def write(self) -> str:
        """A few writes of all kinds."""
        return ", ".join(self._write_once() for _write in range(self.dice.randint(1, 4)))

    def _write_once(self) -> str:
        disk, dice = self._any(), self.dice
        size = len(disk.content)
        length = min(size, dice.choice((1, SECTOR, 4096, BLOCK, dice.randrange(1, 3 * BLOCK), dice.randrange(1, MIB))))
        offset = dice.choice((0, size - length, dice.randrange(size - length + 1)))
        if dice.random() < 0.4:
            offset = offset // BLOCK * BLOCK
        kind = dice.choice(("noise", "noise", "text", "zeros"))
        data = {"noise": dice.randbytes, "text": lambda n: (b"%d " % n * n)[:n], "zeros": bytes}[kind](length)
        disk.put(offset, data)
        return f"{length} {kind} at {offset} of {disk.key}"

    def trim(self) -> str:
        """The guest discards a range."""
        disk = self._any()
        offset = self.dice.randrange(len(disk.content) // SECTOR) * SECTOR
        length = self.dice.randint(1, (len(disk.content) - offset) // SECTOR) * SECTOR
        disk.put(offset, bytes(length))
        return f"{length} at {offset} of {disk.key}"

    def grow(self) -> str:
        """A disk becomes larger."""
        disk = self._any()
        if len(disk.content) > 4 * MIB:
            return "large enough"
        disk.content += bytes(self.dice.choice((SECTOR, BLOCK, 100 * SECTOR, MIB)))
        disk.lose_track()
        return f"{disk.key} to {len(disk.content)}"

    def add(self) -> str:
        """One more disk."""
        if len(self.disks) >= (1 if self.is_fcd else MOST_DISKS):
            return "enough disks"
        key = next(key for key in range(2000, 2010) if key not in self.disks)
        size = self.dice.choice(SIZES)
        if self.is_fcd:
            self.disks[0] = Disk(0, self.id, bytearray(size), fcd_id=self.id)
        else:
            identity = str(uuid.UUID(int=self.dice.getrandbits(128), version=4))
            self.disks[key] = Disk(key, identity, bytearray(size))
        return f"{key} of {size}"

    def remove(self) -> str:
        """One disk fewer."""
        if len(self.disks) == 1:
            return "the last disk stays"
        return f"{self.disks.pop(self._any().key).key}"

    def snapshot(self) -> str:
        """A user's snapshot."""
        self.snapshots = [*self.snapshots[-2:], {key: disk.copy() for key, disk in self.disks.items()}]
        return f"{len(self.snapshots)}"

    def revert(self) -> str:
        """Back to a user's snapshot: bytes, sizes and disks."""
        if not self.snapshots:
            return f"there must be one first: {self.snapshot()}"
        self.disks = {key: disk.copy() for key, disk in self.dice.choice(self.snapshots).items()}
        return f"{sorted(self.disks)}"

    def reset_tracking(self) -> str:
        """Another product resets the change tracking of a disk."""
        disk = self._any()
        disk.lose_track()
        return f"{disk.key}"
