# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Storage that is full, or fails: file systems and files of a test's own. Only root may mount them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests.integration.processes import is_change

_PLUGIN = """
import builtins, errno, os
import nbdkit

API_VERSION = 2


def config(key, value):
    globals()[key] = value


def open(readonly):
    return builtins.open(path, "rb", buffering=0)


def get_size(file):
    return os.fstat(file.fileno()).st_size


def pread(file, buffer, offset, flags):
    if offset <= int(at) < offset + len(buffer):
        nbdkit.set_error(errno.EIO)
        raise RuntimeError("cannot be read")
    buffer[:] = os.pread(file.fileno(), len(buffer), offset)
"""


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"may not mount file systems here: {done.stderr.strip()}")


def _unmount(place: Path) -> None:
    subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def small_file_system(place: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of this size in memory."""
    if os.geteuid():
        pytest.skip("only root may mount a file system")
    place.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "none", place)
    try:
        yield place
    finally:
        _unmount(place)


def free(place: Path) -> int:
    """Bytes that are left there."""
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def fill(place: Path, left: int = 0) -> Path:
    """Somebody else writes until so many bytes are left; the file."""
    filler = place / "somebody else's"
    with open(filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
        # Others may write meanwhile: until it is full, not so many bytes.
        while (size := free(place) - left) > 0:
            file.write(bytes(min(size, 1 << 20)))
    return filler


def filling_at(step: int, place: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """The file system is full from this step of a process's work on; a moment for a child."""
    left = [step]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if is_change(event, arguments):
            left[0] -= 1
            if left[0] == -1:
                fill(place)

    return watch


@contextlib.contextmanager
def _served(place: Path, *server: str | Path, read_only: bool = False) -> Iterator[None]:
    """What an NBD server has, in place of an existing file."""
    if os.geteuid() or not os.path.exists("/dev/fuse") or not shutil.which("nbdfuse"):
        pytest.skip("only root can mount an NBD server as a file, with nbdfuse and /dev/fuse")
    command = ["nbdfuse", *(("-r",) if read_only else ()), place, "[", *server, "]"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 20
            while not os.path.ismount(place) and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.02)
            if not os.path.ismount(place):
                process.kill()
                pytest.skip("nbdfuse cannot mount here")
            yield
        finally:
            if os.path.ismount(place):
                _unmount(place)


@contextlib.contextmanager
def unreadable(file: Path, at: int, scratch: Path) -> Iterator[None]:
    """A file that cannot be read where this byte is: EIO, as of a disk with a bad sector."""
    plugin, origin = scratch / "unreadable.py", scratch / "origin"
    plugin.write_text(_PLUGIN)
    shutil.copy2(file, origin)
    with _served(file, "nbdkit", "python", plugin, f"path={origin}", f"at={at}", read_only=True):
        yield


class FailingDisk:
    """A file system on a disk that fails to write once it is told to."""

    def __init__(self, scratch: Path, place: Path) -> None:
        self.place, self._disk, self._trigger = place, scratch / "failing-disk", scratch / "failing"

    @contextlib.contextmanager
    def mounted(self) -> Iterator[FailingDisk]:
        """The file system, new."""
        self._disk.touch()
        self.place.mkdir()
        options = ("error-pwrite=EIO", "error-pwrite-rate=100%", f"error-file={self._trigger}")
        with _served(self._disk, "nbdkit", "--filter=error", "memory", "64M", *options):
            _run("mkfs.ext4", "-q", "-F", self._disk)
            self._mount()
            try:
                yield self
            finally:
                _unmount(self.place)

    def fail(self) -> None:
        """From now on nothing is written any more."""
        self._trigger.touch()

    def replug(self) -> None:
        """The machine starts again, and the disk works: what was not written is gone."""
        _unmount(self.place)
        self._trigger.unlink()
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-o", "loop", self._disk, self.place)
