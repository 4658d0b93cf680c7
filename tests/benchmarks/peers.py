# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Full copies of one snapshot: by the module, and by bare tools through the same servers."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._nbd import images, servers, vddk
from ansible_collections.holdfast.backup.tests.benchmarks import measure
from ansible_collections.holdfast.backup.tests.benchmarks.machine import Machine, empty
from ansible_collections.holdfast.backup.tests.benchmarks.measure import Cost

# OpenSSL's SHA-256, as in the module: several times faster than that of coreutils.
HASH = "import hashlib, sys; print(hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256').hexdigest())"


@dataclass(frozen=True)
class Copied:
    """One finished copy. Times in seconds, sizes in bytes.

    :param start_up: before anything is copied: Python, log-in, looking (the module only)
    :param copy: the copy itself
    :param proof: what comes after it: fsync, qemu-img check, SHA-256
    :param cost: of the copying command; the module's includes start-up and proof
    """

    start_up: float
    copy: float
    proof: float
    cost: Cost
    stored: int

    @property
    def whole(self) -> float:
        """From the beginning of the copy to the end of the proof."""
        return self.copy + self.proof

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "whole": self.whole}


class Copier:
    """Copies a snapshot of a VM with one disk in several ways; the images are removed again.

    nbdcopy and qemu-img have their own defaults where they are not the same as ours by purpose: the kind of image.
    """

    def __init__(self, machine: Machine, snapshot: str, place: Path) -> None:
        self.machine, self.snapshot, self.place = machine, snapshot, place
        self.bytes_read = 0
        self.plugin = vddk.ship(str(empty(place / "plugin")), machine.lab.vddk_libdir)

    def module(self) -> Copied:
        """By vddk_copy."""
        result, cost = self.machine.copy(self.snapshot, self.place / "ours")
        disk = result["disks"][0]
        self.bytes_read = disk["bytes_read"]
        proof = result["seconds"] - disk["seconds"]
        return Copied(cost.seconds - result["seconds"], disk["seconds"], proof, cost, _remove(Path(disk["image"])))

    def nbdcopy(self) -> Copied:
        """Into the same kind of image."""
        image = self.place / "nbdcopy.qcow2"
        images.create(str(image), self.machine.size)
        return self._nbdcopy(["[", *servers.image_writer([str(image)]), "]"], image, "--destination-is-zero")

    def raw(self) -> Copied:
        """Into a raw file."""
        image = self.place / "nbdcopy.raw"
        return self._nbdcopy([str(image)], image)

    def convert(self) -> Copied:
        """By qemu-img, from the same nbdkit and with as many coroutines as it takes."""
        image = self.place / "convert.qcow2"
        convert = f"qemu-img convert -c -W -m 16 -f raw -O qcow2 -o compression_type=zstd $uri {image}"
        return self._run([*self._source("--unix", "-"), "--run", convert], image)

    def _nbdcopy(self, destination: list[str], image: Path, *options: str) -> Copied:
        return self._run(["nbdcopy", *options, "--flush", "--", "[", *self._source(), "]", *destination], image)

    def _run(self, command: list[str], image: Path) -> Copied:
        cost = measure.run(command)
        proof = [["sync", str(image)], [sys.executable, "-c", HASH, str(image)]]
        if image.suffix == ".qcow2":
            proof.append(["qemu-img", "check", "-q", "-f", "qcow2", str(image)])
        return Copied(0, cost.seconds, sum(measure.run(step).seconds for step in proof), cost, _remove(image))

    def _source(self, *options: str) -> list[str]:
        lab = self.machine.lab
        parameters = {
            "library_dir": lab.vddk_libdir,
            "server": lab.hostname,
            "port": lab.port,
            "username": lab.username,
            "password": lab.password,
            "thumbprint": lab.thumbprint,
            "vm": self.machine.moid,
            "snapshot": self.snapshot,
            "path": self.machine.path,
        }
        secrets = self.place / "parameters"
        secrets.touch(mode=0o600)
        secrets.write_text(json.dumps(parameters))
        variables = [f"{name}={value}" for name, value in self.plugin.environment.items()]
        nbdkit = ["nbdkit", "--foreground", "--exit-with-parent", "--readonly", *options]
        return ["env", *variables, *nbdkit, "python", self.plugin.script, f"parameters={secrets}"]


def _remove(image: Path) -> int:
    """Remove an image; returns the bytes that it took."""
    stored = image.stat().st_size if image.suffix == ".qcow2" else image.stat().st_blocks * 512
    image.unlink()
    return stored
