# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: arithmetic on areas of a disk, and the file that carries them.

An area is ``(start, length)`` in bytes. A *normal* list is sorted, holds no empty area, and its
areas neither overlap nor touch; :func:`normalise` makes one, everything else expects and returns one.
"""

from __future__ import annotations

import json
import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput

Area = tuple[int, int]

KIB = 1024
MIB = 1024 * KIB

FORMAT = "holdfast.areas"
VERSION = 1


def normalise(areas: Iterable[Sequence[int]], capacity: int, granularity: int = 1) -> list[Area]:
    """Sort and merge areas after rounding them outward.

    :param areas: pairs of start and length in bytes, in any order, overlapping or not
    :param capacity: the size of the disk in bytes
    :param granularity: starts and ends become multiples of this (the end of the disk excepted)
    :raises InvalidInput: an area is negative or reaches past the end of the disk
    """
    ranges = []
    for start, length in areas:
        if start < 0 or length < 0 or start + length > capacity:
            raise InvalidInput(
                f"The area of {length} bytes at {start} does not lie on a disk of {capacity} bytes.",
                "Copy the disk in full.",
            )
        if length:
            end = -(-(start + length) // granularity) * granularity
            ranges.append((start // granularity * granularity, min(end, capacity)))
    ranges.sort()
    return list(_as_areas(_merged(ranges)))


def total(areas: Iterable[Area]) -> int:
    """Bytes in all areas together."""
    return sum(length for start, length in areas)


def intersect(left: Sequence[Area], right: Sequence[Area]) -> list[Area]:
    """What lies in both lists."""
    result: list[Area] = []
    i = j = 0
    while i < len(left) and j < len(right):
        left_end, right_end = sum(left[i]), sum(right[j])
        start, end = max(left[i][0], right[j][0]), min(left_end, right_end)
        if start < end:
            result.append((start, end - start))
        if left_end <= right_end:
            i += 1
        else:
            j += 1
    return result


def subtract(areas: Sequence[Area], taken: Sequence[Area]) -> list[Area]:
    """What lies in ``areas`` but not in ``taken``."""
    if not areas:
        return []
    return intersect(areas, _complement(taken, sum(areas[-1])))


def request_size(areas: Sequence[Area], smallest: int = 64 * KIB, largest: int = MIB, over_read: float = 1.1) -> int:
    """The largest request that reads few bytes besides the areas.

    The copy reads whole, aligned requests wherever they touch an area.

    :param smallest: never go below this power of two, in bytes
    :param largest: never go above this power of two, in bytes
    :param over_read: bytes read per byte in the areas that are acceptable
    """
    size, wanted = largest, total(areas)
    while size > smallest and _touched(areas, size) > over_read * wanted:
        size //= 2
    return size


def write_file(path: str, capacity: int, areas: Sequence[Area]) -> None:
    """Write the areas file of one disk so that a reader sees the old or the new one, whole.

    :param path: of the file; its directory exists
    :param capacity: the size of the disk in bytes
    """
    content = {"format": FORMAT, "version": VERSION, "capacity": capacity, "areas": areas}
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".areas-")
    try:
        with os.fdopen(descriptor, "w") as stream:
            json.dump(content, stream, separators=(",", ":"))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_file(path: str) -> tuple[int, list[Area]]:
    """Read an areas file, trusting nothing in it.

    :returns: the size of the disk in bytes, and its areas as a normal list
    :raises InvalidInput: the file is missing or is no areas file that this version reads
    """
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"The areas file {path} cannot be read: {error}.", _AGAIN) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InvalidInput(f"The file {path} is not an areas file.", _AGAIN)
    if content.get("version") != VERSION:
        raise InvalidInput(
            f"The areas file {path} has version {content.get('version')}, this version reads {VERSION}.", _AGAIN
        )
    capacity: Any = content.get("capacity")
    pairs: Any = content.get("areas")
    if not _is_int(capacity) or not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        raise InvalidInput(f"The areas file {path} is damaged.", _AGAIN)
    return capacity, normalise(pairs, capacity)


_AGAIN = "Have disk_changed_areas write it again, or copy the disk in full."


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_int, value))


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join sorted (start, end) ranges that overlap or touch."""
    current_start = current_end = -1
    for start, end in ranges:
        if start > current_end:
            if current_end > current_start:
                yield current_start, current_end
            current_start, current_end = start, end
        else:
            current_end = max(current_end, end)
    if current_end > current_start:
        yield current_start, current_end


def _as_areas(ranges: Iterable[tuple[int, int]]) -> Iterator[Area]:
    return ((start, end - start) for start, end in ranges)


def _complement(areas: Sequence[Area], end: int) -> list[Area]:
    """What lies outside the areas, from 0 to ``end``."""
    gaps = []
    position = 0
    for start, length in areas[: bisect_left(areas, (end, 0))]:
        if start > position:
            gaps.append((position, start - position))
        position = start + length
    if position < end:
        gaps.append((position, end - position))
    return gaps


def _touched(areas: Sequence[Area], size: int) -> int:
    """Bytes in the aligned blocks of ``size`` that the areas touch."""
    blocks, last = 0, -1
    for start, length in areas:
        first_block, last_block = start // size, (start + length - 1) // size
        blocks += last_block - max(first_block, last + 1) + 1
        last = last_block
    return blocks * size
