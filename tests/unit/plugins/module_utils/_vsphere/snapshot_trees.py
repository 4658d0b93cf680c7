# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshot trees as pyVmomi delivers them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from hypothesis import strategies as st
from pyVmomi import vim

BEGIN = datetime(2026, 11, 1, tzinfo=timezone.utc)


def node(number, name="s", description="", children=(), created=None):
    """A node as pyVmomi delivers it."""
    return vim.vm.SnapshotTree(
        snapshot=vim.vm.Snapshot(f"snapshot-{number}"),
        vm=vim.VirtualMachine("vm-1"),
        id=number,
        name=name,
        description=description,
        createTime=created or BEGIN + timedelta(hours=number),
        state="poweredOff",
        quiesced=False,
        childSnapshotList=list(children),
    )


def info(*roots, current=None):
    return vim.vm.SnapshotInfo(
        rootSnapshotList=list(roots), currentSnapshot=vim.vm.Snapshot(f"snapshot-{current}") if current else None
    )


# Two roots; the first has two branches, the second of which branches again. vmware.vmware#330 got this wrong.
BRANCHED = info(
    node(1, "base", children=[node(2, "left"), node(3, "right", children=[node(4, "leaf"), node(5, "leaf")])]),
    node(6, "other"),
    current=5,
)


# {id: parent id} of a forest: each node hangs below an earlier one or is a root.
def forests(most):
    """Forests of up to so many nodes."""
    return st.lists(st.integers(0, 30), min_size=1, max_size=most).map(
        lambda drawn: {number: (pick % number) or None for number, pick in enumerate(drawn, start=1)}
    )


FORESTS = forests(20)


def forest(parents):
    def build(number):
        return node(number, children=[build(child) for child, parent in parents.items() if parent == number])

    return info(*(build(number) for number, parent in parents.items() if parent is None), current=len(parents))


def ids(found):
    return [snapshot.id for snapshot in found]


def chain(depth):
    """So many snapshots in a row."""
    inner = node(depth)
    for number in range(depth - 1, 0, -1):
        inner = node(number, children=[inner])
    return info(inner, current=depth)
