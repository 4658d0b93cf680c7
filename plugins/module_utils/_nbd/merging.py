# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: one new image that holds what several images of a chain held.

The new one begins as a copy of the oldest image, or empty. Then come the areas that the newer images hold: they are
zeroed first, which also frees their old clusters (QEMU refuses to write a compressed cluster over one that is there);
what is not zero is copied. No old image is written to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ansible_collections.holdfast.backup.plugins.module_utils._errors import CopyFailed, Damaged, NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, cloning, copy, images, jobs, servers
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch

COPY, REFLINK, REWRITE = "copy", "reflink", "rewrite"

_LARGEST_ZERO = 1 << 30  # bytes that one request of QEMU's may zero
_AGAIN = "Restore it from a copy of the repository, or back up again: the next run makes a full copy of the disk."


@dataclass(frozen=True)
class Settings:
    """How to merge.

    :param directory: private to this run, for small files
    :param rate_limit: bytes per second of each reading, 0 for no limit
    :param compression: ``zstd``, ``zlib`` or ``none`` for what is written; None for that of the old images
    """

    directory: str
    rate_limit: int = 0
    compression: str | None = None


@dataclass(frozen=True)
class Made:
    """A new image. ``bytes_read`` and ``bytes_written`` are of image files."""

    size: int
    sha256: str
    bytes_read: int
    bytes_written: int
    way: str


def make_image(
    settings: Settings,
    watch: Watch,
    *,
    target: str,
    sources: Sequence[tuple[str, int, str]],
    parent: str | None,
    capacity: int,
    name: str,
    fresh: bool,
    renew: Callable[[], None],
) -> Made:
    """Make ``target`` of ``sources``, prove it, and have it on stable storage.

    :param sources: path, size and SHA-256 of the images that become one, the oldest first
    :param parent: path of the image that the oldest one stands on, and so the new one; with None the new one is full
    :param capacity: of the disk in bytes
    :param name: of the disk, for progress
    :param fresh: begin empty in any case
    :param renew: called at least every few seconds; what it raises ends the work
    :raises Damaged: an image is not what was written; ``details["path"]`` says which
    :raises NotSupported: an image is not as this collection makes them, or QEMU is too old
    """
    work = _Work(settings, watch, target, [path for path, _size, _sha256 in sources], parent, capacity, name, renew)
    sizes = [size for _path, size, _sha256 in sources]
    for path, _size, sha256 in sources[1:]:
        work.require(path, work.digest(path), sha256)
    held = [_held(path, capacity) for path in work.paths]
    newer = _union(held[1:], capacity)
    if fresh or _is_rewritten(sizes, areas.total(_union(held, capacity))):
        work.require(sources[0][0], work.digest(sources[0][0]), sources[0][2])
        way, changed, run = REWRITE, _union(held, capacity), work.paths
        images.create(target, capacity, parent, work.compression())
    else:
        shared, sha256 = work.clone(sources[0][0], sizes[0])
        work.require(sources[0][0], sha256, sources[0][2])
        way, changed, run = REFLINK if shared else COPY, newer, work.paths[1:]
    if changed:
        work.apply(run, changed, zeroed=way != REWRITE or parent is not None)
        work.prove(run, changed)
    _check(target, _union(held, capacity), capacity, exact=parent is not None or way != REWRITE)
    images.sync(target)
    sha256 = work.digest(target)
    size, applied = os.path.getsize(target), sum(sizes if way == REWRITE else sizes[1:])
    return Made(
        size=size,
        sha256=sha256,
        bytes_read=sum(sizes) + 2 * applied + (size if way == REWRITE else applied) + size,
        bytes_written=applied if way == REFLINK else size,
        way=way,
    )


@dataclass
class _Work:
    """What the steps of one merge have in common."""

    settings: Settings
    watch: Watch
    target: str
    paths: list[str]
    parent: str | None
    capacity: int
    name: str
    renew: Callable[[], None]
    _compression: str | None = field(default=None, init=False)

    def check(self) -> None:
        """Stop when told to; stay alive for others."""
        self.watch.check()
        self.renew()

    def digest(self, path: str) -> str:
        """SHA-256 of an image."""
        return cloning.digest(path, self._pace("hash", os.path.getsize(path)))

    def clone(self, path: str, size: int) -> tuple[bool, str]:
        """Begin with a copy of an image: whether it shares its blocks, and its hash."""
        return cloning.clone(path, self.target, self._pace("clone", size))

    def require(self, path: str, sha256: str, expected: str) -> None:
        """See that an image is what was written."""
        if sha256 != expected:
            raise Damaged(f"The content of {path} is not what was written.", _AGAIN, path=path)

    def compression(self) -> str:
        """What to compress with: as asked for, or as the newest image that is compressed was.

        If any is, the new one is: else it could be larger than all old ones together, which nobody has room for.
        """
        if self._compression is None:
            known = [one for one in map(_compression, reversed(self.paths)) if one]
            compressed = [one for one in known if one != "none"]
            self._compression = self.settings.compression or (compressed or known or ["zstd"])[0]
        return self._compression

    def apply(self, run: Sequence[str], changed: list[areas.Area], zeroed: bool) -> None:
        """Bring the content of areas from a run of images, the oldest first, into the new image."""
        if zeroed:
            _zero(self.target, changed, self.check)
        writer = servers.image_writer([self.target], self.compression() != "none")
        self._transfer("copy", run, changed, writer, [])

    def prove(self, run: Sequence[str], changed: list[areas.Area]) -> None:
        """Compare areas of the new image with a run of images."""
        # nbdkit's filter takes what is "written" and compares it.
        reader = servers.filtered(servers.image_reader([self.target]), [("checkwrite", "")], read_only=False)
        self._transfer("verify", run, changed, reader, ["--sparse=0"])

    def _transfer(
        self, stage: str, run: Sequence[str], changed: list[areas.Area], target: list[str], options: list[str]
    ) -> None:
        # Nothing but the areas may be read: QEMU refuses to compress over what is there, and the run has no more.
        request, total = areas.request_size(changed, over_read=1.0), areas.total(changed)
        log = copy.RequestLog()
        filters = jobs.only(changed, jobs.Settings(self.settings.directory))
        if self.settings.rate_limit:
            filters.append(("rate", f"rate={8 * self.settings.rate_limit}"))
        source = servers.filtered(servers.image_reader(run[::-1]), [*filters, ("log", f"logfile={log.path}")])
        queue = jobs.queue(request, jobs.default_depth(request))
        command = servers.nbdcopy(source, target, [*queue, "--destination-is-zero", *options])

        def tell(tally: copy.Tally) -> None:
            self.watch.tell(self.name, stage, min(tally.read, total - 1), total, tally.read)

        outcome = copy.run(command, log, (), tell, self.check)
        if outcome.error:
            raise outcome.error
        self.watch.tell(self.name, stage, total, total, outcome.tally.read)

    def _pace(self, stage: str, size: int) -> Callable[[int], None]:
        started, rate = time.monotonic(), self.settings.rate_limit

        def on_progress(done: int) -> None:
            self.watch.tell(self.name, stage, done, size, done)
            self.check()
            while rate and (early := started + done / rate - time.monotonic()) > 0:
                time.sleep(min(0.5, early))
                self.check()

        return on_progress


def _is_rewritten(sizes: Sequence[int], content: int) -> bool:
    """Whether a copy of the oldest image is a bad beginning: it is small, or has many gaps."""
    return 2 * sum(sizes[1:]) > sizes[0] or 8 * sizes[0] > 9 * content + 8 * areas.MIB


def _union(lists: Sequence[Sequence[areas.Area]], capacity: int) -> list[areas.Area]:
    return areas.normalise([area for some in lists for area in some], images.virtual_size(capacity))


def _held(path: str, capacity: int) -> list[areas.Area]:
    """The areas that an image holds itself, zeros that hide what lies below it included."""
    header = images.info(path)
    special = header.get("format-specific", {}).get("data", {})
    if (
        header["cluster-size"] != servers.CLUSTER
        or header["virtual-size"] != images.virtual_size(capacity)
        or special.get("extended-l2")
        or special.get("compat") == "0.10"
        or header.get("snapshots")
    ):
        raise NotSupported(f"The image {path} is not as this collection makes them.", "Have its disk copied in full.")
    parts = images.map_alone(path)
    if not all("present" in part for part in parts):
        raise NotSupported("This QEMU does not say where an image holds zeros.", "Use QEMU 6.1 or newer for merging.")
    return areas.normalise(
        [(part["start"], part["length"]) for part in parts if part["present"] and part["depth"] == 0],
        images.virtual_size(capacity),
    )


def _compression(path: str) -> str | None:
    """What an image is compressed with: ``zstd``, ``zlib`` or ``none``; None when it holds nothing that would tell."""
    found = images.counts(path)
    if not found.get("allocated-clusters"):
        return None
    method: str = images.info(path)["format-specific"]["data"].get("compression-type", "zlib")
    # An image that is not to be compressed is made with QEMU's default method.
    return "none" if method == "zlib" and not found.get("compressed-clusters") else method


def _zero(target: str, changed: Sequence[areas.Area], check: Callable[[], None]) -> None:
    pieces = (
        (start + done, min(_LARGEST_ZERO, length - done))
        for start, length in changed
        for done in range(0, length, _LARGEST_ZERO)
    )
    images.edit(target, [f"write -q -z -u {start} {length}" for start, length in pieces], check)


def _check(target: str, expected: list[areas.Area], capacity: int, exact: bool) -> None:
    """See that the new image is sound and holds what it must, and nothing else.

    :param exact: it also holds the zeros among them
    """
    problem = images.check(target)
    if problem:
        raise CopyFailed(f"The merged image {target} is not sound: {problem}.", "Run it again.")
    held = _held(target, capacity)
    if areas.subtract(held, expected) or (exact and held != expected):
        raise CopyFailed(f"The merged image {target} does not hold what the old ones held.", "Run it again.")
