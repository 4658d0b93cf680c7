# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A copy of the stand-in for VDDK that serves one raw file without a lab, and records what it is asked."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.tests.lab.client import BUILD, SOURCES

MIB = 1 << 20
PIECE = 256 << 10


class Kit:
    """``root`` is what users call their VDDK directory, ``disk`` the file behind every disk.

    :param capacity: bytes; by default no multiple of the 64 KiB in which allocated blocks are told
    """

    def __init__(self, root: Path, capacity: int = 4 * MIB + 3 * 512) -> None:
        self.root = root
        self.disk = root / "disk.raw"
        self.capacity = capacity
        self.report = root / "report"
        self._behaviour: list[str] = []
        make_disk(self.disk, capacity)
        self.take(".")

    def take(self, variant: str) -> None:
        """Lay out a variant: ``.`` for the newest, ``no-blocks``, ``6.5``."""
        shutil.rmtree(self.root / "lib64", ignore_errors=True)
        shutil.copytree(BUILD / "vddk" / variant / "lib64", self.root / "lib64")
        self._write()

    def behave(self, *lines: str, **values: Any) -> None:
        """Set what tests/lab/vddk/README.md lists, as whole lines or by name."""
        self._behaviour = [*lines, *(f"{key}={value}" for key, value in values.items())]
        self._write()

    def _write(self) -> None:
        lines = [f"flat={self.disk}", f"capacity={self.capacity}", f"report={self.report}", *self._behaviour]
        (self.root / "lib64" / "lab.conf").write_text("".join(f"{line}\n" for line in lines))

    def records(self, verb: str) -> list[dict[str, str]]:
        """What the library was asked or had to tell, of one kind."""
        texts = self.report.read_text().split("\n\n") if self.report.exists() else []
        found = [dict(line.split("=", 1) for line in text.splitlines()) for text in texts]
        return [each for each in found if each.get("verb") == verb]

    def violations(self) -> list[str]:
        """Rules that the client broke."""
        return [each["text"] for each in self.records("violation")]


def make_disk(path: Path, size: int) -> None:
    """A sparse file: about half of its pieces hold random bytes, and the last sector does."""
    source = random.Random(7)
    with path.open("wb") as file:
        file.truncate(size)
        for start in range(0, size, PIECE):
            if source.random() < 0.5:
                file.seek(start)
                file.write(source.randbytes(min(PIECE, size - start)))
        file.seek(size - 512)
        file.write(source.randbytes(512))


def build() -> None:
    """Compile the stand-in if a source is newer."""
    subprocess.run(["make", "-s", "-C", str(SOURCES / "vddk")], check=True)
