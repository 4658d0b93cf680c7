# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: one writer per VM or first class disk.

The lock is the directory ``.lock`` in the object's directory with one record in it, ``<run>.json``.
Three steps that every file system does at once, NFS too, are all it needs:

- take: a prepared directory with the record is renamed to ``.lock``, which succeeds only while
  ``.lock`` is absent or empty;
- break or release: the record of *that* run is unlinked by its name, so that nobody can ever
  remove the record of a run that came after;
- renew: the record of that run is touched by its name.

A run that backs up lasts over several tasks, so the owner is a run, not a process. It is **dead** when its play (or its
process, where it is a single task) ran on this machine and is gone, or, from elsewhere, when it gave no sign of life
for its lease: its record was not touched and nothing in a ``.partial`` or ``.merging`` directory was written. Times are
compared by the file system's own clock, so clocks of several machines do not matter.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged, Locked, RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    documents,
    files,
    layout,
    manifest,
    owners,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.documents import Fields
from ansible_collections.holdfast.backup.plugins.module_utils._repository.owners import Process

FORMAT = "holdfast.lock"
VERSION = 1
NAME = ".lock"
DEFAULT_LEASE = 1800

_PREPARED = ".lock-"
_SUFFIX = ".json"
_POLL = 0.5
_ABANDONED = 600
"""Seconds after which a prepared lock belongs to nobody: a waiting run touches its own all the time."""


@dataclass(frozen=True)
class Holder:
    """The run that has the lock. ``lease`` in seconds."""

    run: str
    host: str
    started: str
    lease: int
    play: Process | None

    def __str__(self) -> str:
        return f"run {self.run} from {self.host}, started {self.started}"


def acquire(
    directory: str, run: str, lease: int = DEFAULT_LEASE, wait: float = 0, process: Process | None = None
) -> Holder | None:
    """Take the lock of an object's directory; the dead owner whose lock was broken for it, if any.

    :param wait: seconds to wait for a living owner
    :param process: with which the run dies; by default the play, as far as it can be seen from here
    :raises Locked: a living run has it
    """
    with files.reporting("take the lock of the restore points"):
        prepared = _prepare(directory, run, lease, process or owners.running_play())
        try:
            return _contend(directory, prepared, run, time.monotonic() + wait)
        finally:
            files.remove(prepared)


def holder(directory: str) -> Holder | None:
    """Who has the lock, dead or alive."""
    with files.reporting("read the lock of the restore points"):
        return _holder(directory)


def check_free(directory: str, run: str) -> None:
    """Say what :func:`acquire` would say without waiting, changing nothing.

    :raises Locked: another run, not known to be dead, has it
    """
    held = holder(directory)
    if held is not None and held.run != run and not _is_stale(directory, held, time.time()):
        raise _locked(directory, held)


def check_owner(directory: str, run: str) -> None:
    """See that this run has the lock.

    :raises Locked: it has not
    """
    held = holder(directory)
    if held is None or held.run != run:
        raise _lost(directory, run, held)


def rejoin(directory: str, run: str) -> bool:
    """Go on with a lock that this run took earlier; False when it has none.

    A run whose play was killed has none: it takes the lock anew, in the name of its new play.
    """
    held = holder(directory)
    if held is None or held.run != run:
        return False
    if held.play is not None and owners.is_alive(held.play) is False:
        release(directory, run)
        return False
    renew(directory, run)
    return True


def renew(directory: str, run: str) -> None:
    """Give a sign of life.

    :raises Locked: the lock is no longer this run's
    """
    try:
        with files.reporting("renew the lock of the restore points"):
            os.utime(_record(directory, run))
    except RepositoryError:
        check_owner(directory, run)
        raise


def release(directory: str, run: str) -> bool:
    """Give the lock back; whether this run had it."""
    with files.reporting("release the lock of the restore points"):
        return _break(directory, run)


def _prepare(directory: str, run: str, lease: int, process: Process | None) -> str:
    now = manifest.format_time(datetime.now(timezone.utc))
    record = Holder(run, socket.gethostname()[:255], now, lease, process)
    prepared = os.path.join(directory, _PREPARED + run)
    files.remove(prepared)
    os.mkdir(prepared, 0o700)
    files.write(os.path.join(prepared, run + _SUFFIX), documents.render(FORMAT, VERSION, asdict(record)))
    return prepared


def _contend(directory: str, prepared: str, run: str, deadline: float) -> Holder | None:
    dead = None
    while not _take(directory, prepared, run):
        held = _holder(directory)
        if held is not None:
            if _is_stale(directory, held, _now(os.path.join(prepared, run + _SUFFIX))):
                _break(directory, held.run)
                dead = held
                continue
            if time.monotonic() >= deadline:
                raise _locked(directory, held)
        elif time.monotonic() >= deadline + 10 * _POLL:
            raise RepositoryError(
                f"{os.path.join(directory, NAME)} is no lock of this collection.", "Look at it and remove it."
            )
        time.sleep(_POLL)
    _sweep_prepared(directory, _now(_record(directory, run)))
    return dead


def _take(directory: str, prepared: str, run: str) -> bool:
    lock = os.path.join(directory, NAME)
    with suppress(OSError):  # an empty one is free, but SMB does not rename over it
        os.rmdir(lock)
    try:
        os.rename(prepared, lock)
    except OSError as error:
        # NFS may have done it although it says it failed, when the answer to the first request was lost.
        if not os.path.exists(_record(directory, run)):
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                return False
            raise
    files.sync_directory(directory)
    return True


def _break(directory: str, run: str) -> bool:
    if not files.is_directory(os.path.join(directory, NAME)):
        return False
    try:
        os.unlink(_record(directory, run))
    except (FileNotFoundError, NotADirectoryError):
        return False
    with suppress(OSError):  # the next run may have it by now
        os.rmdir(os.path.join(directory, NAME))
    files.sync_directory(directory)
    return True


def _holder(directory: str) -> Holder | None:
    lock = os.path.join(directory, NAME)
    # A link in a hostile repository would have us take files elsewhere for records, and delete them.
    if not files.is_directory(lock):
        return None
    try:
        names = sorted(os.listdir(lock))
    except (FileNotFoundError, NotADirectoryError):
        return None
    for name in names:
        run = name[: -len(_SUFFIX)]
        if name.endswith(_SUFFIX) and re.fullmatch(manifest.RUN, run):
            try:
                return _read(directory, run)
            except FileNotFoundError:
                return None
    return None


def _read(directory: str, run: str) -> Holder:
    path = _record(directory, run)
    try:
        fields = Fields(documents.parse(files.read(path, documents.MAX_BYTES), FORMAT, VERSION, path), path)
        play = fields.optional_object("play")
        return Holder(
            run,
            fields.text("host", longest=255),
            fields.text("started", longest=40),
            fields.integer("lease", 1 << 31),
            None if play is None else _process(play),
        )
    except Damaged:
        # It is somebody's all the same: only the time since it was touched tells.
        return Holder(run, "an unknown host", "at an unknown time", DEFAULT_LEASE, None)


def _process(fields: Fields) -> Process:
    return Process(
        fields.text("boot"),
        fields.text("namespace"),
        fields.integer("pid", 1 << 31, 2),
        fields.integer("start", 1 << 62),
    )


def _is_stale(directory: str, held: Holder, now: float) -> bool:
    alive = None if held.play is None else owners.is_alive(held.play)
    if alive is None:
        return now - _last_sign(directory, held.run) > held.lease
    return not alive


def _last_sign(directory: str, run: str) -> float:
    """When the run last touched its record or wrote anything, by the file system's clock."""
    signs = [_mtime(_record(directory, run))]
    for name in layout.leftovers(directory):
        partial = os.path.join(directory, name)
        if files.is_directory(partial):
            signs.append(_mtime(partial))
            signs.extend(_mtime(os.path.join(partial, inner)) for inner in os.listdir(partial))
    return max(signs)


def _mtime(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def _now(own: str) -> float:
    """The file system's own clock, read from a file that is ours."""
    os.utime(own)
    return os.lstat(own).st_mtime


def _sweep_prepared(directory: str, now: float) -> None:
    for name in os.listdir(directory):
        if name.startswith(_PREPARED):
            path = os.path.join(directory, name)
            record = os.path.join(path, name[len(_PREPARED) :] + _SUFFIX)
            if now - max(_mtime(path), _mtime(record)) > _ABANDONED:
                files.remove(path)


def _record(directory: str, run: str) -> str:
    return os.path.join(directory, NAME, run + _SUFFIX)


def _locked(directory: str, held: Holder) -> Locked:
    return Locked(
        f"Restore points in {directory} are being written by {held}.",
        f"Wait for it, or set lock_timeout. Without a sign of life for {held.lease} seconds it is taken for dead.",
        holder={"run": held.run, "host": held.host, "started": held.started, "lease": held.lease},
    )


def _lost(directory: str, run: str, held: Holder | None) -> Locked:
    return Locked(
        f"Run {run} does not have the lock of {directory}" + (f"; {held} has it." if held else "."),
        "It was taken for dead or aborted. Start the backup again.",
    )
