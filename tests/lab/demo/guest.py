# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens inside the demo's virtual machine, and the proof of what was restored.

The guest's file systems are real ext4, filled from this machine's own libraries and documents.
Beside each disk stands a tree of the same files: what a restored disk must contain is known
from there, and not from anything that the collection under test has written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from client import Lab
from client import _tool as tool

MIB = 1 << 20
# Per disk: label in the table, size (one is no multiple of 64 KiB on purpose) and bytes of files, where they come from.
DISKS = [
    ("system", 640 * MIB, 300 * MIB, ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"]),
    ("data", 200 * MIB + 3 * 512, 60 * MIB, ["/usr/share"]),
]
LABELS = [label for label, *dummy in DISKS]


class Guest:
    """The demo's VM, its trees and what was remembered of it, all below one directory."""

    def __init__(self, lab: Lab, home: Path) -> None:
        self.lab = lab
        self.home = home
        self._file = home / "guest.json"
        self.state: dict[str, Any] = (
            json.loads(self._file.read_text()) if self._file.exists() else {"remembered": [], "proofs": []}
        )

    def _save(self) -> None:
        self._file.write_text(json.dumps(self.state, indent=1))

    def _tree(self, disk: str) -> Path:
        return self.home / "trees" / disk

    def create(self) -> str:
        """Make the VM with its file systems; returns a sentence."""
        vm = self.lab.create_vm(
            "web01",
            disks=[size for _label, size, _fill, _sources in DISKS],
            power="poweredOn",
            tools="running",
            firmware="efi",
            nics=["VM Network", "VM Network"],
        )
        self.state["moid"] = vm["moid"]
        self.state["disks"] = {label: disk["key"] for label, disk in zip(LABELS, vm["disks"])}
        for label, _size, fill, sources in DISKS:
            _gather(self._tree(label), fill, sources)
            self.lab.format(vm["moid"], self.state["disks"][label], self._tree(label))
        self._save()
        return "web01 runs, with ext4 on " + " and ".join(
            f"{label} ({size // MIB} MiB)" for label, size, *dummy in DISKS
        )

    def work(self, day: int) -> str:
        """Change, remove and add files on every disk, as a day's work does; returns a sentence."""
        dice = random.Random(day)
        sentences = []
        for label in LABELS:
            tree = self._tree(label)
            files = sorted(path for path in tree.rglob("*") if path.is_file())
            changed, removed = dice.sample(files, 12), dice.sample(files, 6)
            added = [tree / f"day-{day}-{number}.bin" for number in range(8)]
            commands = []
            for path in {*changed, *removed}:
                path.unlink()
                commands.append(f'rm "/{path.relative_to(tree)}"')
            for path in [*(path for path in changed if path not in removed), *added]:
                path.write_bytes(dice.randbytes(dice.randrange(1, 400_000)))
                commands.append(f'write "{path}" "/{path.relative_to(tree)}"')
            with self.lab.edit(self.state["moid"], self.state["disks"][label]) as image:
                _debugfs(image, commands)
            sentences.append(f"{label}: {len(changed)} files changed, {len(removed)} removed, {len(added)} added")
        return "; ".join(sentences)

    def remember(self) -> str:
        """Note what every disk holds now: all bytes, and the hash of each file; returns a sentence."""
        number = len(self.state["remembered"]) + 1
        entry = {}
        for label in LABELS:
            copy = self.home / "remembered" / f"{number}-{label}.raw"
            copy.parent.mkdir(exist_ok=True)
            source = self.lab.file(self.state["moid"], self.state["disks"][label])
            subprocess.run(["cp", "--sparse=always", source, copy], check=True)
            entry[label] = {"raw": str(copy), "files": dict(_hashes(self._tree(label)))}
        self.state["remembered"].append(entry)
        self._save()
        return f"moment {number} remembered: " + ", ".join(
            f"{label} {len(part['files'])} files" for label, part in entry.items()
        )

    def destroy(self) -> str:
        """Delete the VM with all its disks; returns a sentence."""
        self.lab.destroy_vm(self.state["moid"])
        return "web01 and all its files are gone"

    def prove(self, moment: int, moid: str) -> str:
        """Hold a restored VM against a remembered moment, disk by disk.

        Returns a sentence; raises SystemExit on a difference.
        """
        restored = self.lab.vm(moid)
        sentences = []
        for label, disk in zip(LABELS, restored["disks"]):
            expected = self.state["remembered"][moment - 1][label]
            image = self.lab.file(moid, disk["key"])
            proof = {
                "moment": moment,
                "vm": restored["name"],
                "disk": label,
                "identical": subprocess.run(["cmp", "--quiet", expected["raw"], image], check=False).returncode == 0,
                "fsck": subprocess.run([tool("e2fsck"), "-fn", image], capture_output=True, check=False).returncode
                == 0,
                "files": self._files(image, expected["files"]),
                "expected": len(expected["files"]),
            }
            self.state["proofs"].append(proof)
            sentences.append(f"{label}: {_words(proof)}")
        self._save()
        if not all(_good(proof) for proof in self.state["proofs"]):
            raise SystemExit("NOT PROVEN: " + "; ".join(sentences))
        return "; ".join(sentences)

    def _files(self, image: Path, expected: dict[str, str]) -> int:
        """How many files of the image are the expected ones; -1 when there are others too."""
        out = self.home / "extracted"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        _debugfs(image, [f'rdump / "{out}"'], write=False)
        shutil.rmtree(out / "lost+found", ignore_errors=True)
        found = dict(_hashes(out))
        shutil.rmtree(out)
        return (
            sum(found.get(name) == digest for name, digest in expected.items())
            if found.keys() == expected.keys()
            else -1
        )


def _good(proof: dict[str, Any]) -> bool:
    return proof["identical"] and proof["fsck"] and proof["files"] == proof["expected"]


def _words(proof: dict[str, Any]) -> str:
    return ", ".join(
        [
            "identical" if proof["identical"] else "DIFFERENT",
            "fsck clean" if proof["fsck"] else "FSCK FAILED",
            f"{proof['files']} of {proof['expected']} files compared equal",
        ]
    )


def _gather(tree: Path, limit: int, sources: list[str]) -> None:
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


def _hashes(tree: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(tree)), hashlib.sha256(path.read_bytes()).hexdigest()


def _debugfs(image: Path, commands: list[str], write: bool = True) -> None:
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


def table(state: dict[str, Any], points: list[dict[str, Any]]) -> str:
    """The closing tables: the restore points, and what was proven of each restored disk."""
    rows = [["restore point", "disk", "kind", "read", "stored", "of"]]
    for point in points:
        for disk in point["disks"]:
            rows.append(
                [
                    point["id"].rpartition("/")[2],
                    disk["label"],
                    disk["kind"],
                    _mib(disk["bytes_read"]),
                    _mib(disk["bytes_stored"]),
                    _mib(disk["capacity"]),
                ]
            )
    proofs = [["restored as", "disk", "bytes", "e2fsck", "files"]]
    for proof in state["proofs"]:
        proofs.append(
            [
                proof["vm"],
                proof["disk"],
                "identical" if proof["identical"] else "DIFFERENT",
                "clean" if proof["fsck"] else "FAILED",
                f"{proof['files']} of {proof['expected']} equal",
            ]
        )
    return _aligned(rows) + "\n\n" + _aligned(proofs)


def _mib(count: int) -> str:
    return f"{count / MIB:.1f} MiB"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def main() -> None:
    """Run one verb on the demo's guest; the lab and the directory come from the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("create", "remember", "destroy"):
        verbs.add_parser(name)
    verbs.add_parser("work").add_argument("day", type=int)
    prove = verbs.add_parser("prove")
    prove.add_argument("moment", type=int)
    prove.add_argument("moid")
    given = vars(parser.parse_args())
    guest = Guest(Lab.attach(os.environ["DEMO_LAB"]), Path(os.environ["DEMO_HOME"]))
    print(getattr(guest, given.pop("verb"))(**given))


if __name__ == "__main__":
    main()
