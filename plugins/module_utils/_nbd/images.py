# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: qcow2 images as files, by qemu-img.

The format is always given and never guessed: the first bytes of a raw disk belong to its guest.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import CopyFailed, Damaged, InvalidInput, NoSpace
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.servers import (
    CLUSTER,
    bound_to_us,
    chain_name,
    discarding_name,
)

_LONGEST_CHAIN = 256


def virtual_size(capacity: int) -> int:
    """The size of the image of a disk: whole clusters, or compressed writes are refused."""
    return -(-capacity // CLUSTER) * CLUSTER


def create(path: str, capacity: int, parent: str | None = None, compression: str = "zstd") -> None:
    """Make an empty image, or an overlay over ``parent`` that names it relative to itself.

    :param capacity: the size of the disk in bytes
    :param compression: ``zstd``, ``zlib`` or ``none``
    :raises CopyFailed: the file cannot be made
    """
    # A lazy reference count saves nothing here and leaves an image that must be repaired after a kill.
    method = "zlib" if compression == "none" else compression
    options = f"compression_type={method},cluster_size={CLUSTER},lazy_refcounts=off"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options]
    if parent:
        command += ["-F", "qcow2", "-b", os.path.relpath(parent, os.path.dirname(path))]
    result = ask([*command, path, str(virtual_size(capacity))])
    if result.returncode:
        failure = NoSpace if "No space left" in result.stderr else CopyFailed
        raise failure(
            f"The image {path} cannot be made: {result.stderr.strip()}.", "See to the space and the access rights."
        )


def info(path: str) -> dict[str, Any]:
    """What the header of one image says (``qemu-img info``), its backing file untouched.

    :raises Damaged: it is missing, or no qcow2 image with all its content in it and its backing
    """
    result = ask(["qemu-img", "info", "--output=json", "-f", "qcow2", os.path.abspath(path)])
    if result.returncode:
        raise Damaged(f"The image {path} cannot be opened: {result.stderr.strip()}.", _FULL, path=path)
    header = json.loads(result.stdout)
    if "data-file" in header.get("format-specific", {}).get("data", {}):
        raise Damaged(f"The image {path} keeps its data in another file.", _FULL, path=path)
    backing = header.get("backing-filename")
    if backing and (header.get("backing-filename-format") != "qcow2" or os.path.isabs(backing) or ":" in backing):
        raise Damaged(f"The image {path} lies over {backing}, which is no image beside it.", _FULL, path=path)
    return header


def check_capacity(path: str, capacity: int) -> None:
    """See that an image is one of a disk of this many bytes.

    :raises InvalidInput: it is not
    """
    size = info(path)["virtual-size"]
    if size not in (capacity, virtual_size(capacity)):
        raise InvalidInput(
            f"The image {path} is of a disk of about {size} bytes, not of {capacity}.",
            "Give the capacity of the disk that was backed up, and a disk of that size.",
        )


def chain(path: str) -> list[str]:
    """The image and all the images below it, the topmost first.

    :raises Damaged: one of them is missing or not an image of ours
    """
    paths = [os.path.abspath(path)]
    while True:
        backing = info(paths[-1]).get("backing-filename")
        if not backing:
            return paths
        paths.append(os.path.normpath(os.path.join(os.path.dirname(paths[-1]), backing)))
        if len(paths) > _LONGEST_CHAIN or paths[-1] in paths[:-1]:
            raise Damaged(f"The images below {path} lead back to themselves.", _FULL)


def check(path: str, repair_leaks: bool = False) -> str | None:
    """What is wrong with the structure of one image, or None."""
    repair = ["-r", "leaks"] if repair_leaks else []
    result = ask(["qemu-img", "check", "-q", *repair, chain_name([path])])
    return (result.stderr or result.stdout).strip() or "unknown" if result.returncode else None


def present(path: str) -> list[areas.Area]:
    """The areas whose content lies in this very image and not below it."""
    parts = map_alone(path)
    # QEMU before 6.1 does not say "present"; its zero clusters are then copied once more.
    here = [part for part in parts if part["depth"] == 0 and part.get("present", part["data"])]
    size = sum(part["length"] for part in parts)
    return areas.normalise([(part["start"], part["length"]) for part in here], size)


def map_alone(path: str) -> list[dict[str, Any]]:
    """What ``qemu-img map`` says of one image as if it stood on nothing.

    :raises Damaged: it cannot be read
    """
    result = ask(["qemu-img", "map", "--output=json", chain_name([path])])
    if result.returncode:
        raise Damaged(f"The image {path} cannot be read: {result.stderr.strip()}.", _FULL, path=path)
    parts: list[dict[str, Any]] = json.loads(result.stdout)
    return parts


def counts(path: str) -> dict[str, Any]:
    """What ``qemu-img check`` counts in one image, like ``allocated-clusters`` and ``compressed-clusters``.

    :raises Damaged: it cannot be read
    """
    result = ask(["qemu-img", "check", "--output=json", chain_name([path])])
    try:
        found: dict[str, Any] = json.loads(result.stdout)
    except ValueError:
        raise Damaged(f"The image {path} cannot be read: {result.stderr.strip()}.", _FULL, path=path) from None
    return found


def edit(path: str, commands: Iterable[str], check: Callable[[], None]) -> None:
    """Have QEMU's qemu-io do something to one image; what it leaves is on no stable storage yet.

    :param commands: of qemu-io, one a line
    :param check: called at least twice a second; what it raises ends the work
    :raises CopyFailed: a command failed
    """
    with tempfile.TemporaryFile() as script, tempfile.TemporaryFile() as said:
        script.writelines(f"{command}\n".encode() for command in commands)
        script.seek(0)
        command = bound_to_us(["qemu-io", "-t", "unsafe", discarding_name(path)])
        with subprocess.Popen(command, stdin=script, stdout=said, stderr=said) as process:
            try:
                while True:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(0.5)
                        break
                    check()
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            said.seek(0)
            words = said.read().decode(errors="replace").replace("qemu-io> ", "").strip()
            failure = NoSpace if "No space left" in words or "quota exceeded" in words else CopyFailed
            raise failure(f"The image {path} cannot be changed: {words[-300:]}.", "See to the space.")


def digest(path: str, on_progress: Callable[[int], None] = lambda done: None) -> str:
    """SHA-256 of the file, in hexadecimal; ``on_progress`` gets the bytes hashed so far."""
    hasher, done = hashlib.sha256(), 0
    with open(path, "rb") as stream:
        while True:
            block = stream.read(4 * areas.MIB)
            if not block:
                return hasher.hexdigest()
            hasher.update(block)
            done += len(block)
            on_progress(done)


def sync(path: str) -> None:
    """Wait until the file or directory is on stable storage.

    :raises CopyFailed: the storage failed to take what was written before
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise CopyFailed(f"{path} could not be written to stable storage: {error.strerror}.", "See to it.") from error
    finally:
        os.close(descriptor)


def require_parent(path: str) -> list[str]:
    """The chain below a new overlay, checked to be there.

    :raises InvalidInput: there is no such file
    """
    if not os.path.isfile(path):
        raise InvalidInput(f"The parent image {path} does not exist.", _FULL)
    return chain(path)


_FULL = "Have this disk copied in full, and look for what happened to the repository."


def ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run one of QEMU's tools to its end, whatever that is."""
    # The messages are read by us and by the user's log: always in English.
    return subprocess.run(
        command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, errors="replace", check=False
    )
