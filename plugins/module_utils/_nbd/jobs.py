# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what a copy of one disk is, how one copy runs, and how several run at a time."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    CopyFailed,
    Damaged,
    InvalidInput,
    NoSpace,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, copy, servers
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch

_QUEUE = 8 * areas.MIB  # bytes in flight per disk: bounds the memory of a copy, and more of them gain nothing
_WHOLE_DISK = areas.MIB // 2  # bytes per request; larger ones leave the compression fewer to work on at a time
_DIFFERS = "does not match expected"  # says nbdkit's filter checkwrite
_UNREADABLE = "reading from file failed"  # says qemu-nbd of an image, and hangs up
_MOST_REQUESTS = 32  # the disk plugin has no more in flight either


class DiskAccess(Protocol):
    """A way to a disk, for instance :class:`vddk.VddkDisk`."""

    @property
    def transport(self) -> str | None:
        """How the disk was reached."""

    @property
    def warnings(self) -> list[str]:
        """What went wrong and was got over."""

    @property
    def error(self) -> BackupError | None:
        """Why the disk could not be read or written; it goes before what the copy says."""

    def open(self) -> AbstractContextManager[servers.Disk]:
        """The disk for one start of nbdkit."""


class Hints(Protocol):
    """Which areas of a disk are in use, by the word of somebody who may be wrong."""

    def known(self) -> list[areas.Area] | None:
        """Those areas; None if nobody knows them. All else is taken for zeros."""

    def distrust(self, reason: str) -> None:
        """Take them for unknown from now on."""


@dataclass(frozen=True)
class Task:
    """One disk and its image.

    :param name: of the disk, for messages and progress
    :param capacity: of the disk in bytes; the image holds whole clusters and may be a little larger
    :param work: areas to copy (a normal list), None for the whole disk
    :param parent: the image below the new one of a backup; goes together with ``work``
    :param identity: what the content of the image depends on besides; JSON-serialisable
    :param facts: keys that only pass through into the result
    :param allocation: where it was known from, in a full copy that is done, which areas are in use
    :param hints: what a full copy goes by, if it should see whether that is right
    """

    name: str
    disk: DiskAccess
    image: str
    capacity: int
    work: list[areas.Area] | None = None
    parent: str | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    allocation: Callable[[], str | None] = lambda: None
    hints: Hints | None = None


@dataclass(frozen=True)
class Settings:
    """How to copy.

    :param directory: private to this run, for small files
    :param request_size: bytes per request, None to choose
    :param request_depth: requests in flight per disk, None to choose
    :param compression: ``zstd``, ``zlib`` or ``none``
    :param target_is_zero: a disk that is restored holds only zeros yet, so zeros need not be written
    :param verify: compare the whole disk with the image afterwards
    :param audit: percent of what is called unchanged that is compared before an incremental copy, 0 for none
    :param audit_max: bytes of it at most
    """

    directory: str
    request_size: int | None = None
    request_depth: int | None = None
    compression: str = "zstd"
    target_is_zero: bool = False
    verify: bool = False
    audit: float = 0.0
    audit_max: int = 256 * areas.MIB

    def __post_init__(self) -> None:
        size = self.request_size
        if size is not None and (size & (size - 1) or not servers.CLUSTER <= size <= 2 * areas.MIB):
            raise InvalidInput(f"The request size {size} cannot be used.", "Give a power of two from 64 KiB to 2 MiB.")


Job = Callable[[Task, Settings, Watch], dict[str, Any]]


def run_all(job: Job, tasks: Sequence[Task], settings: Settings, watch: Watch, parallel: int) -> list[dict[str, Any]]:
    """Do several tasks at a time, all of them, whatever happens to one.

    :returns: their results, in the order of the tasks
    :raises BackupError: of the kind of the first error, naming each disk that failed; ``details["disks"]`` holds
        the results of the others
    """
    with ThreadPoolExecutor(max_workers=parallel) as pool:
        try:
            outcomes = [
                future.result() for future in [pool.submit(_outcome, job, task, settings, watch) for task in tasks]
            ]
        except BaseException:
            watch.stop()
            raise
    failed = [(task, outcome) for task, outcome in zip(tasks, outcomes) if isinstance(outcome, BackupError)]
    results = [outcome for outcome in outcomes if not isinstance(outcome, BackupError)]
    if not failed:
        return results
    first = failed[0][1]
    causes = " ".join(f"{task.name}: {error.message}" for task, error in failed)
    raise type(first)(
        f"{len(failed)} of {len(tasks)} disks failed. {causes}",
        first.next_step,
        failed_disks=[
            {"disk": task.name, "image": task.image, "msg": str(error), **error.details} for task, error in failed
        ],
        disks=results,
    )


def transfer(
    task: Task,
    settings: Settings,
    watch: Watch,
    stage: str,
    request: int,
    build: Callable[[Callable[..., list[str]], list[str]], list[str]],
    total: int | None = None,
) -> copy.Outcome:
    """Run one nbdcopy for a task.

    :param stage: a word for the progress
    :param request: bytes per request
    :param build: makes the command from ``servers.disk_server`` for this disk, and nbdcopy's options so far
    :param total: bytes that will pass, None if that is only known from the place on the disk
    """

    def tell(tally: copy.Tally) -> None:
        passed = tally.read + tally.written
        done, of = (tally.position, task.capacity) if total is None else (passed, total)
        # It works in several places at a time, so that the end may be reached before all is done.
        watch.tell(task.name, stage, min(done, of - 1), of, passed)

    depth = settings.request_depth or default_depth(request)
    options = queue(request, depth)
    log = copy.RequestLog()
    with task.disk.open() as disk:
        serve = partial(servers.disk_server, disk, threads=depth, log=log.path)
        inherited = [] if disk.descriptor is None else [disk.descriptor]
        outcome = copy.run(build(serve, options), log, inherited, tell, watch.check)
    if not outcome.error:
        # Holes at the end of a disk are passed over without a request.
        size = task.capacity if total is None else total
        watch.tell(task.name, stage, size, size, outcome.tally.read + outcome.tally.written)
    return outcome


def default_depth(request: int) -> int:
    """Requests of this size in flight per disk."""
    return min(_MOST_REQUESTS, _QUEUE // request)


def queue(request: int, depth: int) -> list[str]:
    """nbdcopy's options for requests of this size, as many in flight."""
    return ["--flush", f"--request-size={request}", f"--requests={depth}", f"--queue-size={depth * request}"]


def request_size(settings: Settings, work: Sequence[areas.Area] | None, over_read: float = 1.1) -> int:
    """Bytes per request for this work: the user's choice, or the best that reads little in vain."""
    if settings.request_size:
        return settings.request_size
    return _WHOLE_DISK if work is None else areas.request_size(work, over_read=over_read)


def only(work: Sequence[areas.Area] | None, settings: Settings) -> list[tuple[str, str]]:
    """nbdkit's filter that makes everything outside the areas look like a hole; none for the whole disk."""
    if work is None:
        return []
    descriptor, path = tempfile.mkstemp(dir=settings.directory, prefix="areas-")
    with os.fdopen(descriptor, "w") as stream:
        stream.writelines(f"{start} {length}\n" for start, length in work)
    return [("extentlist", f"extentlist={path}")]


def compare(
    task: Task,
    settings: Settings,
    watch: Watch,
    stage: str,
    chain: Sequence[str],
    within: Sequence[areas.Area] | None = None,
) -> list[areas.Area]:
    """Compare a disk with a chain of images, until something differs.

    :param stage: a word for the progress
    :param within: compare these areas (a normal list of whole clusters) and nothing else
    :returns: where they were found to differ; empty when they are the same
    :raises Damaged: an image cannot be read
    """
    if within is None:
        request = request_size(settings, None)
    else:
        # Whole requests are compared: they must not reach beyond the areas.
        request = areas.request_size(within, largest=settings.request_size or areas.MIB, over_read=1.0)

    def build(serve: Callable[..., list[str]], options: list[str]) -> list[str]:
        reader = servers.image_reader(chain, task.capacity)
        if within is not None:
            reader = servers.filtered(reader, only(within, settings))
            # Outside the areas nothing is compared, inside them everything, zeros too.
            options = [*options, "--destination-is-zero", "--sparse=0"]
        # nbdkit's filter takes what is "written" and compares it.
        return servers.nbdcopy(reader, serve([("checkwrite", "")], read_only=False), options)

    outcome = transfer(task, settings, watch, stage, request, build, None if within is None else areas.total(within))
    if outcome.error is None:
        return []
    if task.disk.error:
        raise task.disk.error
    if _DIFFERS in outcome.said:
        places = [(offset, min(request, task.capacity - offset)) for offset in outcome.unwritable]
        return areas.normalise(places or [(0, task.capacity)], task.capacity)
    if _UNREADABLE in outcome.said:
        raise Damaged(
            f"{chain[0]} or an image below it cannot be read.", "Verify the restore points of the disk."
        ) from outcome.error
    raise outcome.error


def verify(task: Task, settings: Settings, watch: Watch, chain: Sequence[str]) -> None:
    """Compare the whole disk with a chain of images.

    :raises Damaged: they differ
    """
    if compare(task, settings, watch, "verify", chain):
        raise Damaged(
            f"The image {task.image} is not the same as {task.name}.",
            "Have the disk copied in full, and its change tracking reset.",
        )


def figures(moved: int, seconds: float) -> dict[str, Any]:
    """Seconds and bytes per second of a copy, for its result."""
    return {"seconds": round(seconds, 3), "rate": round(moved / seconds) if seconds else 0}


def _outcome(job: Job, task: Task, settings: Settings, watch: Watch) -> dict[str, Any] | BackupError:
    try:
        return job(task, settings, watch)
    except BackupError as error:
        return error
    except OSError as error:
        kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else CopyFailed
        return kind(f"{error.filename or task.image}: {error.strerror}.", "See to the file system of the image.")
