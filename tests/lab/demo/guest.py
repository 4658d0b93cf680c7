# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens inside the demo's virtual machine, and the proof of what was restored.

The guest's file systems are real ext4, filled from this machine's own libraries and documents.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trees
from client import Lab

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
            trees.gather(self._tree(label), fill, sources)
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
            with self.lab.edit(self.state["moid"], self.state["disks"][label]) as image:
                sentences.append(f"{label}: {trees.work(self._tree(label), image, dice, f'day-{day}')}")
        return "; ".join(sentences)

    def remember(self) -> str:
        """Note what every disk holds now: all bytes, and the hash of each file; returns a sentence."""
        number = len(self.state["remembered"]) + 1
        entry = {}
        for label in LABELS:
            source = self.lab.file(self.state["moid"], self.state["disks"][label])
            copy = self.home / "remembered" / f"{number}-{label}.raw"
            entry[label] = trees.remember(source, copy, self._tree(label))
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
        proofs = []
        for label, disk in zip(LABELS, restored["disks"]):
            expected = self.state["remembered"][moment - 1][label]
            proof = trees.prove(self.lab.file(moid, disk["key"]), expected, self.home / "extracted")
            proofs.append({"as": restored["name"], "disk": label, **proof})
        self.state["proofs"] += proofs
        self._save()
        trees.demand(proofs)
        return "; ".join(f"{proof['disk']}: {trees.words(proof)}" for proof in proofs)


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
