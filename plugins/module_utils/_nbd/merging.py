# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: one new image that holds what several images of a chain held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch

COPY, REFLINK, REWRITE = "copy", "reflink", "rewrite"


@dataclass(frozen=True)
class Settings:
    """How to merge.

    :param directory: private to this run, for small files
    :param rate_limit: bytes per second of each reading, 0 for no limit
    :param compression: ``zstd``, ``zlib`` or ``none``; None for that of the newest of the old images
    """

    directory: str
    rate_limit: int = 0
    compression: str | None = None


@dataclass(frozen=True)
class Made:
    """A new image. Bytes are those of image files that were read and written."""

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
    renew: Callable[[], None],
) -> Made:
    """Make ``target`` of ``sources``, prove it, and have it on stable storage.

    :param sources: path, size and SHA-256 of the images that become one, the oldest first
    :param parent: path of the image that the oldest one stands on, and so the new one; with None the new one is full
    :param capacity: of the disk in bytes
    :param name: of the disk, for progress
    :param renew: called at least every few seconds; what it raises ends the work
    :raises Damaged: an image is not what was written; ``details["path"]`` says which
    """
    raise NotImplementedError


def can_reflink(directory: str) -> bool:
    """Whether files in a directory can share their blocks."""
    raise NotImplementedError
