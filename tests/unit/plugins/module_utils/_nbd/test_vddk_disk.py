# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The arithmetic on allocated blocks against a model, and time; the rest of the disk is tested on the stand-in."""

from __future__ import annotations

import contextlib
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._nbd import reopening, vddk_disk
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugin_interface import Status
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.reopening import allocated
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_interface import Parameters
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_library import ASYNC, Info
from hypothesis import given
from hypothesis import strategies as st

END = 60


@st.composite
def blocks(draw):
    edges = sorted(draw(st.sets(st.integers(0, END), max_size=12)))
    pairs = list(zip(edges[::2], edges[1::2]))
    return [(start, end - start) for start, end in pairs]


@given(blocks(), st.integers(0, END - 1), st.integers(1, END))
def test_allocated_covers_the_range_once_and_tells_the_truth(known, start, length):
    end = min(END, start + length)
    truth = {byte for first, size in known for byte in range(first, first + size)}
    position = start
    for first, size, is_allocated in allocated(known, start, end):
        assert first == position
        assert size > 0
        assert all((byte in truth) == is_allocated for byte in range(first, first + size))
        position += size
    assert position == end


class Library:
    """Opens whatever it is asked to, and remembers the sectors that were read."""

    path = "libvixDiskLib.so"
    version = (8, 0)

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def connect_params(self, parameters: Parameters):
        yield None

    def check(self, stage: str, what: str, result: int) -> None:
        assert result == 0

    def __getattr__(self, name: str) -> Any:
        if name == "QueryAllocatedBlocks":
            raise AttributeError(name)
        return lambda *arguments: 0

    def GetInfo(self, handle: Any, info: Any) -> int:
        info.contents = Info(capacity=2048)
        return 0

    def GetTransportMode(self, handle: Any) -> bytes:
        return b"nbdssl"

    def ReadAsync(self, handle: Any, start: int, count: int, address: int, completion: Any, number: int) -> int:
        self.reads.append((start, count))
        completion(number, 0)
        return ASYNC


def test_an_idle_disk_is_kept_alive(monkeypatch):
    """The host drops a connection that says nothing; a read of one sector says something."""
    clock = [1000.0]
    monkeypatch.setattr(reopening.time, "monotonic", lambda: clock[0])
    library = Library()
    disk = vddk_disk.Disk(library, Parameters("/vddk", "vc", "u", "p", "AA", "vm-1", "[ds] a.vmdk"), Status(None))
    disk.keep_alive()  # not open yet
    disk.open()
    clock[0] += reopening.KEEP_ALIVE - 1
    disk.keep_alive()
    assert library.reads == []
    clock[0] += 1
    disk.keep_alive()
    disk.keep_alive()
    assert library.reads == [(0, 1)]
    disk.close()
