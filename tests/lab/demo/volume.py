# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens on the demo's Kubernetes volume, and the proof of what was restored.

The volume is a first class disk with the name and the metadata that the storage interface of Kubernetes gives,
and with a snapshot that it took, which is none of the backup's business. Its ext4 is real.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trees
from client import Lab
from client import _tool as tool

MIB = 1 << 20
SIZE, FILL = 96 * MIB, 12 * MIB
METADATA = {
    "cns.containerCluster.clusterId": "demo-cluster",
    "cns.containerCluster.clusterType": "KUBERNETES",
    "cns.k8s.pvc.name": "data",
    "cns.k8s.pvc.namespace": "shop",
}


class Volume:
    """The demo's volume, its image and tree, and what was remembered of it, all below one directory."""

    def __init__(self, lab: Lab, home: Path) -> None:
        self.lab = lab
        self.home = home
        self._file, self._image, self._tree = home / "volume.json", home / "volume.raw", home / "trees" / "volume"
        self.state: dict[str, Any] = (
            json.loads(self._file.read_text()) if self._file.exists() else {"remembered": [], "proofs": []}
        )

    def _save(self) -> None:
        self._file.write_text(json.dumps(self.state, indent=1))

    def create(self, name: str) -> str:
        """Make the disk with its file system; returns a sentence."""
        disk = self.lab.create_fcd(name, SIZE, keep=True, tracking=True, metadata=METADATA)
        trees.gather(self._tree, FILL, ["/usr/share"])
        self._image.touch()
        os.truncate(self._image, SIZE)
        subprocess.run([tool("mkfs.ext4"), "-q", "-F", "-d", self._tree, self._image], check=True)
        self.lab.fcd_load(disk["id"], self._image)
        foreign = self.lab.fcd_snapshot(disk["id"], "cns: VolumeSnapshot shop/before-release")
        self.state.update(id=disk["id"], foreign=foreign, foreign_holds=self._remembered("foreign"))
        self._save()
        return f"{name} is there with ext4 ({SIZE // MIB} MiB), and with a snapshot of Kubernetes' own"

    def work(self, day: int) -> str:
        """Change, remove and add files, as a day's work does, and remember what there is; returns a sentence."""
        done = trees.work(self._tree, self._image, random.Random(day), f"day-{day}")
        self.lab.fcd_load(self.state["id"], self._image)
        self.state["remembered"].append(self._remembered(f"day-{day}"))
        self._save()
        return f"{done}; moment {len(self.state['remembered'])} remembered"

    def _remembered(self, name: str) -> dict[str, Any]:
        return trees.remember(self._image, self.home / "remembered" / f"volume-{name}.raw", self._tree)

    def prove(self, moment: int, fcd: str) -> str:
        """Hold a disk against a remembered moment, and Kubernetes' snapshot against what it held.

        Returns a sentence; raises SystemExit on a difference.
        """
        disk = self.lab.fcd(fcd)
        if disk["metadata"] != METADATA:
            raise SystemExit(f"NOT PROVEN: the metadata are {disk['metadata']}")
        if [snapshot["id"] for snapshot in self.lab.fcd_snapshots(self.state["id"])] != [self.state["foreign"]]:
            raise SystemExit("NOT PROVEN: other snapshots than Kubernetes' own are there")
        scratch = self.home / "extracted"
        expected, snapshot = (
            self.state["remembered"][moment - 1],
            self.lab.fcd_file(self.state["id"], self.state["foreign"]),
        )
        where = "in place" if fcd == self.state["id"] else disk["name"]
        proofs = [
            {"as": where, "disk": f"volume, day {moment}", **trees.prove(self.lab.fcd_file(fcd), expected, scratch)},
            {
                "as": where,
                "disk": "Kubernetes' snapshot",
                **trees.prove(snapshot, self.state["foreign_holds"], scratch),
            },
        ]
        self.state["proofs"] += proofs
        self._save()
        trees.demand(proofs)
        return "; ".join(f"{proof['disk']}: {trees.words(proof)}" for proof in proofs)


def main() -> None:
    """Run one verb on the demo's volume; the lab and the directory come from the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("create").add_argument("name")
    verbs.add_parser("work").add_argument("day", type=int)
    prove = verbs.add_parser("prove")
    prove.add_argument("moment", type=int)
    prove.add_argument("fcd")
    given = vars(parser.parse_args())
    volume = Volume(Lab.attach(os.environ["DEMO_LAB"]), Path(os.environ["DEMO_HOME"]))
    print(getattr(volume, given.pop("verb"))(**given))


if __name__ == "__main__":
    main()
