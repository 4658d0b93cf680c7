# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the note beside an image that says what it holds and how far it is.

An image is complete only when its note says so. Without a note it is rubbish.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

COPYING = "copying"
INTERRUPTED = "interrupted"
COMPLETE = "complete"


def note_path(image: str) -> str:
    """Where the note of an image lies."""
    return f"{image}.state"


def save(image: str, status: str, identity: Mapping[str, Any], result: Mapping[str, Any] | None = None) -> None:
    """Write the note, whole or not at all.

    :param identity: JSON-serialisable; two copies with the same identity would give the same image
    :param result: what a complete copy returned
    """
    note = {"status": status, "boot": _boot_id(), "identity": identity, "result": result}
    temporary = note_path(image) + ".new"
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(note, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, note_path(image))


def result_of(image: str, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the copy that made this image returned, when it is complete and the same copy as is wanted now."""
    note = _load(image)
    if note.get("status") != COMPLETE or note.get("identity") != identity:
        return None
    result = note.get("result")
    if not isinstance(result, dict) or not os.path.isfile(image) or os.path.getsize(image) != result["bytes_stored"]:
        return None
    return result


def is_resumable(image: str, identity: Mapping[str, Any]) -> bool:
    """Whether the image is the sound first part of the wanted copy.

    Only a copy that was seen to end in order counts, and only while the machine has not been started anew: the
    writes were not waited for, and of a writer that was killed nobody knows what it still owed to the file.
    """
    note = _load(image)
    return (
        note.get("status") == INTERRUPTED
        and note.get("identity") == identity
        and note.get("boot") == _boot_id()
        and os.path.isfile(image)
    )


def discard(image: str) -> None:
    """Remove an image and its note; the note last, so that nothing is left that has none."""
    for path in (image, note_path(image) + ".new", note_path(image)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _load(image: str) -> dict[str, Any]:
    try:
        with open(note_path(image), encoding="utf-8") as stream:
            note = json.load(stream)
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return stream.read().strip()
