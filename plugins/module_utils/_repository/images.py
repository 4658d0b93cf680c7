# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: does an image of a restore point fit its manifest?"""

from __future__ import annotations

import os
from typing import Callable, Optional

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged
from ansible_collections.holdfast.backup.plugins.module_utils._repository import files, qcow2
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Disk

CheckImage = Callable[[str], Optional[str]]
"""What is wrong with the qcow2 structure of the image at a path, by QEMU's own check; None when nothing is."""

NEXT_STEP = "Restore it from a copy of the repository, or back up again: the next run makes a full copy of the disk."


def check_header(path: str, capacity: int, parent: str | None) -> None:
    """See that an image may be opened: it names no other file than its parent, and has the disk's size.

    :param parent: the backing name it must have
    :raises Damaged: it is missing, no such image, or tied to something else
    """
    with files.reporting("read an image"):
        try:
            header = qcow2.read_header(path)
        except FileNotFoundError as error:
            raise Damaged(f"Image missing: {path}.", NEXT_STEP) from error
    if header.backing_file != parent:
        raise Damaged(f"{path} has the backing file {header.backing_file!r} instead of {parent!r}.", NEXT_STEP)
    if parent is not None and header.backing_format != "qcow2":
        raise Damaged(f"{path} does not say that its backing file is qcow2.", NEXT_STEP)
    if not capacity <= header.virtual_size < capacity + header.cluster_size:
        raise Damaged(f"{path} is an image of {header.virtual_size} bytes, the disk has {capacity}.", NEXT_STEP)


def check(path: str, disk: Disk) -> None:
    """See that the image is there, has its recorded size, and a header that fits; reads only the header.

    :raises Damaged: it is not so
    """
    with files.reporting("read an image"):
        try:
            size = os.lstat(path).st_size
        except FileNotFoundError as error:
            raise Damaged(f"Image missing: {path}.", NEXT_STEP) from error
    if size != disk.size:
        raise Damaged(f"{path} has {size} bytes instead of {disk.size}.", NEXT_STEP)
    check_header(path, disk.capacity, None if disk.parent is None else disk.parent.image)


def check_structure(path: str, check_image: CheckImage) -> None:
    """See that QEMU finds nothing wrong; only for an image that passed :func:`check`.

    :raises Damaged: it does
    """
    problem = check_image(path)
    if problem:
        # The last words of a long list say how much is wrong.
        raise Damaged(f"qemu-img finds {path} damaged: {' '.join(problem.split())[-300:]}.", NEXT_STEP)
