# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files on the demo's disks: a day's work on them, what they are to be, and the proof of what they are.

Beside each file system stands a tree of the same files: what a restored disk must contain is known
from there, and not from anything that the collection under test has written.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from client import _tool as tool

MIB = 1 << 20


def gather(tree: Path, limit: int, sources: list[str]) -> None:
    """Fill a tree with files of this machine, up to ``limit`` bytes."""
    left = limit
    for source in (Path(name) for name in sources):
        for path in sorted(source.rglob("*")) if source.is_dir() else []:
            plain = (
                path.is_file()
                and not path.is_symlink()
                and os.access(path, os.R_OK)
                and not set('"\\') & set(str(path))
            )
            size = path.stat().st_size if plain else 0
            if not 0 < size <= min(left, 40 * MIB):
                continue
            target = tree / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            left -= size
        if left < limit // 20:
            return


def work(tree: Path, image: Path, dice: random.Random, name: str) -> str:
    """Change, remove and add files, in the tree and in the file system of a raw image; returns a few words.

    :param name: the beginning of the names of new files
    """
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    changed, removed = dice.sample(files, 12), dice.sample(files, 6)
    added = [tree / f"{name}-{number}.bin" for number in range(8)]
    commands = []
    for path in {*changed, *removed}:
        path.unlink()
        commands.append(f'rm "/{path.relative_to(tree)}"')
    for path in [*(path for path in changed if path not in removed), *added]:
        path.write_bytes(dice.randbytes(dice.randrange(1, 400_000)))
        commands.append(f'write "{path}" "/{path.relative_to(tree)}"')
    debugfs(image, commands)
    return f"{len(changed)} files changed, {len(removed)} removed, {len(added)} added"


def remember(source: Path, copy: Path, tree: Path) -> dict[str, Any]:
    """Note what a disk holds now: all bytes, and the hash of each file."""
    copy.parent.mkdir(exist_ok=True)
    subprocess.run(["cp", "--sparse=always", source, copy], check=True)
    return {"raw": str(copy), "files": dict(_hashes(tree))}


def prove(image: Path, expected: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Hold a raw image against what was remembered.

    :param scratch: a directory that is made, used and removed
    """
    return {
        "identical": subprocess.run(["cmp", "--quiet", expected["raw"], image], check=False).returncode == 0,
        "fsck": subprocess.run([tool("e2fsck"), "-fn", image], capture_output=True, check=False).returncode == 0,
        "files": _compared(image, expected["files"], scratch),
        "expected": len(expected["files"]),
    }


def demand(proofs: list[dict[str, Any]]) -> None:
    """Raises SystemExit if a proof failed."""
    bad = [f"{proof['as']}, {proof['disk']}: {words(proof)}" for proof in proofs if not _good(proof)]
    if bad:
        raise SystemExit("NOT PROVEN: " + "; ".join(bad))


def words(proof: dict[str, Any]) -> str:
    return ", ".join(
        [
            "identical" if proof["identical"] else "DIFFERENT",
            "fsck clean" if proof["fsck"] else "FSCK FAILED",
            f"{proof['files']} of {proof['expected']} files compared equal",
        ]
    )


def debugfs(image: Path, commands: list[str], write: bool = True) -> None:
    done = subprocess.run(
        [tool("debugfs"), *(["-w"] if write else []), "-f", "-", str(image)],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines()[1:] if "while changing ownership" not in line]
    if done.returncode or complaints:
        raise SystemExit(f"debugfs: {complaints or done.returncode}")


def _good(proof: dict[str, Any]) -> bool:
    return proof["identical"] and proof["fsck"] and proof["files"] == proof["expected"]


def _compared(image: Path, expected: dict[str, str], out: Path) -> int:
    """How many files of the image are the expected ones; -1 when there are others too."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    debugfs(image, [f'rdump / "{out}"'], write=False)
    shutil.rmtree(out / "lost+found", ignore_errors=True)
    found = dict(_hashes(out))
    shutil.rmtree(out)
    if found.keys() != expected.keys():
        return -1
    return sum(found[name] == digest for name, digest in expected.items())


def _hashes(tree: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(tree)), hashlib.sha256(path.read_bytes()).hexdigest()
