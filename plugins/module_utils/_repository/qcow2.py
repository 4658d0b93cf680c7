# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what the header of a qcow2 image says.

A program that opens an image also opens whatever its header points to. So the header of an
image in a repository is read here first, without opening anything else, and refused when it
points elsewhere than the manifest says. Layout: "Qcow2 Image File Format" in QEMU's documentation
(docs/interop/qcow2.txt).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Iterator

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged
from ansible_collections.holdfast.backup.plugins.module_utils._repository import files

_MAGIC = b"QFI\xfb"
_V2_LENGTH = 72
_MAX_BACKING_NAME = 1023
_DIRTY, _CORRUPT, _COMPRESSION, _EXTENDED_L2 = 1, 2, 8, 16
_BACKING_FORMAT = 0xE2792ACA


@dataclass(frozen=True)
class Header:
    """What ties an image to others. Sizes in bytes."""

    virtual_size: int
    cluster_size: int
    backing_file: str | None
    backing_format: str | None


def read_header(path: str) -> Header:
    """The header of an image.

    :raises Damaged: not a qcow2 image, or one that this collection never writes (encrypted,
        with an external data file, marked corrupt or not closed)
    :raises OSError: it cannot be read
    """
    with files.naming(path), os.fdopen(files.open_plain(path), "rb") as file:
        start = file.read(1 << 16)
        try:
            return _parse(start, path)
        except (struct.error, UnicodeDecodeError, IndexError) as error:
            raise _damaged(path, f"has a broken header ({error})") from error


def _parse(start: bytes, path: str) -> Header:
    if start[:4] != _MAGIC:
        raise _damaged(path, "is not a qcow2 image")
    version, backing_offset, backing_length, cluster_bits, virtual_size, encryption = struct.unpack_from(
        ">IQIIQI", start, 4
    )
    if version not in (2, 3) or not 9 <= cluster_bits <= 21 or encryption:
        raise _damaged(path, "is a qcow2 image of a kind that this collection never writes")
    length = _V2_LENGTH
    if version == 3:
        features, length = struct.unpack_from(">Q", start, 72)[0], struct.unpack_from(">I", start, 100)[0]
        _check_features(features, path)
    if backing_length > _MAX_BACKING_NAME or backing_offset + backing_length > len(start):
        raise _damaged(path, "has a broken header (backing name)")
    name = start[backing_offset : backing_offset + backing_length].decode("utf-8") if backing_offset else None
    extensions = dict(_extensions(start, length, backing_offset or len(start)))
    form = extensions.get(_BACKING_FORMAT)
    return Header(virtual_size, 1 << cluster_bits, name, None if form is None else form.decode("ascii"))


def _check_features(features: int, path: str) -> None:
    if features & _CORRUPT:
        raise _damaged(path, "is marked corrupt by QEMU")
    if features & _DIRTY:
        raise _damaged(path, "was not closed by its writer")
    if features & ~(_COMPRESSION | _EXTENDED_L2):
        raise _damaged(path, "is a qcow2 image of a kind that this collection never writes")


def _extensions(start: bytes, offset: int, end: int) -> Iterator[tuple[int, bytes]]:
    while offset + 8 <= end:
        kind, length = struct.unpack_from(">II", start, offset)
        if kind == 0:
            return
        yield kind, start[offset + 8 : offset + 8 + length]
        offset += 8 + (length + 7) // 8 * 8


def _damaged(path: str, problem: str) -> Damaged:
    return Damaged(f"{path} {problem}.", "Back the disk up again: the next run makes a full copy of it.")
