# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sizes of snapshots against a model that takes and removes them as vSphere does."""

from __future__ import annotations

from datetime import datetime, timezone

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import snapshot_sizes
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshots import Snapshot
from hypothesis import given
from hypothesis import strategies as st

Layout = vim.vm.FileLayoutEx
NO_MEMORY = -1


class Machine:
    """A VM's files. A disk's chain is a list of files, the oldest first; a file is known by its key."""

    def __init__(self) -> None:
        self.files: dict[int, tuple[str, int]] = {}
        self.live: dict[int, list[int]] = {}  # chains by device key
        self.frozen: dict[int, dict[int, list[int]]] = {}
        self.state: dict[int, tuple[int, int]] = {}
        self.parents: dict[int, int | None] = {}
        self.current: int | None = None

    def file(self, size: int, store: str = "ds1") -> int:
        key = len(self.files)
        self.files[key] = (f"[{store}] vm/{key}", size)
        return key

    def add_disk(self, size: int) -> None:
        self.live[2000 + len(self.live)] = [self.file(size)]

    def snapshot(self, sizes: list[int], memory: int | None) -> None:
        number = len(self.parents) + 1
        self.parents[number] = self.current
        self.frozen[number] = {key: list(chain) for key, chain in self.live.items()}
        self.state[number] = (self.file(10), NO_MEMORY if memory is None else self.file(memory))
        for position, chain in enumerate(self.live.values()):
            chain.append(self.file(sizes[position % len(sizes)], f"ds{position}"))
        self.current = number

    def revert(self, number: int, size: int) -> None:
        self.live = {key: [*chain, self.file(size)] for key, chain in self.frozen[number].items()}
        self.current = number

    def layout(self) -> Layout:
        def disks(chains: dict[int, list[int]]) -> list[Layout.DiskLayout]:
            units = {key: [Layout.DiskUnit(fileKey=[one]) for one in chain] for key, chain in chains.items()}
            return [Layout.DiskLayout(key=key, chain=chain) for key, chain in units.items()]

        return Layout(
            file=[
                Layout.FileInfo(key=key, name=name, type="diskExtent", size=size)
                for key, (name, size) in self.files.items()
            ],
            disk=disks(self.live),
            snapshot=[
                Layout.SnapshotLayout(
                    key=vim.vm.Snapshot(f"snapshot-{number}"),
                    dataKey=self.state[number][0],
                    memoryKey=self.state[number][1],
                    disk=disks(chains),
                )
                for number, chains in self.frozen.items()
            ],
        )

    def snapshots(self) -> list[Snapshot]:
        return [
            Snapshot(
                id=number,
                moid=f"snapshot-{number}",
                name="",
                description="",
                created=datetime(2026, 11, 26, tzinfo=timezone.utc),
                state="poweredOff",
                quiesced=False,
                parent_id=parent,
                child_ids=(),
                depth=1,
                current=number == self.current,
                stamp=None,
            )
            for number, parent in self.parents.items()
        ]

    def measure(self) -> dict[int, snapshot_sizes.Size]:
        found = snapshot_sizes.measure(self.layout(), self.snapshots())
        return {int(moid.rpartition("-")[2]): size for moid, size in found.items()}


SIZES = st.integers(min_value=0, max_value=10**12)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("disk"), SIZES),
        st.tuples(st.just("take"), st.lists(SIZES, min_size=1, max_size=3), st.none() | SIZES),
        st.tuples(st.just("revert"), st.integers(min_value=1, max_value=9), SIZES),
    ),
    max_size=12,
)


@given(actions=ACTIONS)
def test_every_file_above_the_first_snapshots_belongs_to_one_of_them(actions):
    machine = Machine()
    machine.add_disk(5)
    bases = {0}
    orphans = set()
    for action in actions:
        if action[0] == "disk":
            bases.add(len(machine.files))
            machine.add_disk(action[1])
        elif action[0] == "take":
            machine.snapshot(action[1], action[2])
        elif action[1] in machine.frozen:
            before = {one for chain in machine.live.values() for one in chain}
            machine.revert(action[1], action[2])
            held = {one for chains in machine.frozen.values() for chain in chains.values() for one in chain}
            orphans |= before - held  # vSphere deletes what a revert leaves behind
    counted = sum(size.total for size in machine.measure().values())
    assert counted == sum(size for key, (_name, size) in machine.files.items() if key not in bases | orphans)


@given(actions=ACTIONS)
def test_the_parts_add_up(actions):
    machine = Machine()
    machine.add_disk(5)
    for action in actions:
        if action[0] == "take":
            machine.snapshot(action[1], action[2])
    for size in machine.measure().values():
        assert size.total == size.disks + size.memory + size.state == sum(size.datastores.values())
        assert size.problem is None


def test_a_snapshot_owns_what_was_written_after_it():
    machine = Machine()
    machine.add_disk(1000)
    machine.snapshot([200], memory=None)
    machine.snapshot([30], memory=4000)
    first, second = machine.measure()[1], machine.measure()[2]
    assert (first.disks, first.memory, first.state) == (200, 0, 10)
    assert (second.disks, second.memory, second.state) == (30, 4000, 10)


def test_a_disk_that_came_later_belongs_to_no_snapshot():
    machine = Machine()
    machine.add_disk(1000)
    machine.snapshot([200], memory=None)
    machine.add_disk(10**9)
    assert machine.measure()[1].total == 210


def test_a_disk_is_known_by_its_files_and_not_by_its_key():
    machine = Machine()
    machine.add_disk(1000)
    machine.snapshot([200], memory=None)
    machine.live = {2064: machine.live[2000]}  # moved to another controller
    assert machine.measure()[1].disks == 200


def test_files_that_a_failed_consolidation_left_are_counted_below_it():
    machine = Machine()
    machine.add_disk(1000)
    machine.snapshot([200], memory=None)
    machine.snapshot([30], memory=None)
    machine.current = 1
    for known in (machine.parents, machine.frozen, machine.state):
        del known[2]
    assert machine.measure()[1].disks == 230


def test_what_is_not_known_is_said_to_be():
    machine = Machine()
    machine.add_disk(1000)
    machine.snapshot([200], memory=None)
    layout = machine.layout()
    layout.file[1].accessible = False
    layout.file = layout.file[:2]  # the redo file is missing
    size = snapshot_sizes.measure(layout, machine.snapshots())["snapshot-1"]
    assert size.as_dict()["size_bytes"] == 10
    assert size.problem == "vSphere cannot reach [ds1] vm/1, a file of its disks"
    layout.snapshot = []
    for nothing in (layout, None):
        size = snapshot_sizes.measure(nothing, machine.snapshots())["snapshot-1"].as_dict()
        assert (size["size_bytes"], size["memory_bytes"], size["datastores"]) == (None, None, {})
        assert size["size_problem"]
