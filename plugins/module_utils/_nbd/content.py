# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: one hash for the content of a disk, whatever images hold it.

The content hash is the SHA-256 of the SHA-256 digests (binary) of the disk's consecutive blocks of 4 MiB, the last
one shorter. By hand: ``split -b 4M --filter='sha256sum | xxd -r -p' disk.raw | sha256sum``. So blocks can be hashed
several at a time and in any order, and those that hold no data need not be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import CopyFailed
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, copy, hashing, images, servers

BLOCK = 4 * areas.MIB
_AT_ONCE = 1 << 16  # blocks without data
_SECTOR = 512
_REQUESTS = 4
_NEXT_STEP = "Verify the images; have the disk copied in full if they are damaged."


def content_hash(
    chain: Sequence[str],
    capacity: int,
    check: Callable[[], None] = lambda: None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, int]:
    """The content hash of the disk that a chain of images holds, and the bytes that were read for it.

    :param chain: paths, the topmost first; their headers are known to be right
    :param capacity: the size of the disk in bytes
    :param check: called at least twice a second; what it raises ends the reading
    :param tell: called as often with the bytes hashed and to be hashed
    :raises CopyFailed: the content cannot be read
    """
    wanted = blocks(_data(chain, capacity), capacity)
    found: dict[int, bytes] = {}
    if wanted:
        with tempfile.TemporaryDirectory(prefix="holdfast-content-") as directory:
            found = _digests(directory, chain, capacity, wanted, check, tell)
    missing = sum(number not in found for number in _numbers(wanted))
    if missing:
        raise CopyFailed(f"{missing} blocks of {chain[0]} were not read.", _NEXT_STEP)
    return combine(found, capacity, check), areas.total(wanted)


def blocks(data: Iterable[Sequence[int]], capacity: int) -> list[areas.Area]:
    """The areas of whole blocks that hold data."""
    within = [(start, min(length, capacity - start)) for start, length in data if start < capacity]
    return areas.normalise(within, capacity, BLOCK)


def combine(digests: dict[int, bytes], capacity: int, check: Callable[[], None] = lambda: None) -> str:
    """The content hash from the digests of the blocks that hold data, by their numbers."""
    hasher, position, last = hashlib.sha256(), 0, (capacity - 1) // BLOCK
    zeros = hashlib.sha256(bytes(min(BLOCK, capacity))).digest()
    end = {last: hashlib.sha256(bytes(capacity - last * BLOCK)).digest()}
    for number, digest in sorted({**end, **digests}.items()):
        for begin in range(position, number, _AT_ONCE):  # a disk may be huge, and empty
            check()
            hasher.update(zeros * min(_AT_ONCE, number - begin))
        hasher.update(digest)
        position = number + 1
    return hasher.hexdigest()


def _data(chain: Sequence[str], capacity: int) -> list[areas.Area]:
    """The areas of the disk that are not known to be zeros."""
    result = images.ask(["qemu-img", "map", "--output=json", servers.chain_name(chain)])
    if result.returncode:
        raise CopyFailed(f"The image {chain[0]} cannot be read: {result.stderr.strip()}.", _NEXT_STEP)
    return [(part["start"], part["length"]) for part in json.loads(result.stdout) if part["data"] and not part["zero"]]


def _digests(
    directory: str,
    chain: Sequence[str],
    capacity: int,
    wanted: Sequence[areas.Area],
    check: Callable[[], None],
    tell: Callable[[int, int], None],
) -> dict[int, bytes]:
    size, total = -(-capacity // _SECTOR) * _SECTOR, areas.total(wanted)
    listed, output, script = (os.path.join(directory, name) for name in ("blocks", "digests", "hashing.py"))
    with open(listed, "w", encoding="ascii") as stream:
        stream.writelines(f"{start} {-(-length // _SECTOR) * _SECTOR}\n" for start, length in wanted)
    with open(script, "w", encoding="utf-8") as stream:
        stream.write(hashing.__loader__.get_source(hashing.__name__))  # type: ignore[union-attr]
    plugin = ("python", script, f"size={size}", f"capacity={capacity}", f"block={BLOCK}", f"digests={output}")
    log = copy.RequestLog()
    source = servers.filtered(servers.image_reader(chain, size), [("extentlist", f"extentlist={listed}")])
    target = servers.disk_server(servers.Disk(plugin), read_only=False, threads=_REQUESTS, log=log.path)
    options = [
        # Blocks without data are passed over, the others are written, zeros too, and each by one request.
        "--destination-is-zero",
        "--sparse=0",
        f"--request-size={BLOCK}",
        f"--requests={_REQUESTS}",
        f"--queue-size={_REQUESTS * BLOCK}",
    ]
    outcome = copy.run(
        servers.nbdcopy(source, target, options),
        log,
        on_progress=lambda tally: tell(min(tally.written, total), total),
        check=check,
    )
    if outcome.error:
        raise outcome.error
    with open(output, "rb") as stream:
        return dict(hashing.RECORD.iter_unpack(stream.read()))


def _numbers(wanted: Iterable[areas.Area]) -> list[int]:
    return [number for start, length in wanted for number in range(start // BLOCK, -(-(start + length) // BLOCK))]
