# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sees whatever any process does to the files below a directory, by Linux's inotify."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_ACCESS, _MODIFY, _ATTRIB = 0x1, 0x2, 0x4
_OPEN, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x20, 0x40, 0x80, 0x100, 0x200
_ALL = _ACCESS | _MODIFY | _ATTRIB | _OPEN | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_HEADER = struct.Struct("iIII")


@contextlib.contextmanager
def untouched(root: Path) -> Iterator[None]:
    """Inside nobody may open, read, write, move, make or remove anything below ``root``, which must be there before."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    try:
        names = {}
        for place in (root, *root.rglob("*")):
            if not place.is_symlink():
                watch = libc.inotify_add_watch(descriptor, os.fsencode(place), _ALL)
                assert watch >= 0, os.strerror(ctypes.get_errno())
                names[watch] = place
        yield
        events = b""
        with contextlib.suppress(BlockingIOError):
            events = os.read(descriptor, 1 << 20)
    finally:
        os.close(descriptor)
    touched, at = [], 0
    while at < len(events):
        watch, mask, _cookie, length = _HEADER.unpack_from(events, at)
        name = os.fsdecode(events[at + _HEADER.size : at + _HEADER.size + length].rstrip(b"\0"))
        touched.append(f"{names.get(watch)} {name} {mask:#x}")
        at += _HEADER.size + length
    assert not touched, f"outside the repository: {touched[:10]}"
