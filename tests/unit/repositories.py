# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes restore points as a backup does: the real modules around images made by qemu-img and qemu-io."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

CAPACITY = 1 << 20
VM = {"name": "web01", "moid": "vm-42", "instance_uuid": "5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11"}


FCD = {"id": "1ec1b4a8-2a5f-4dcd-a3f9-3d1e0c7f5b11", "name": "pvc-1", "datastore": "ds1"}


def disk(key: int = 2000, uuid: str = "", **changes: Any) -> dict[str, Any]:
    """A disk record of a VM."""
    record = {
        "key": key,
        "label": f"Hard disk {key - 1999}",
        "backing_uuid": uuid or f"6000C295-0000-0000-0000-{key:012d}",
        "capacity": CAPACITY,
        "protected": True,
        "reason": None,
    }
    return {**record, **changes}


def fcd_disk(fcd: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """The disk record of a first class disk."""
    fcd = fcd or FCD
    return disk(0, fcd["id"], **{"label": fcd["name"], "fcd_id": fcd["id"], **changes})


def qemu_img(*arguments: str | Path) -> str:
    """What qemu-img says; it must succeed."""
    return subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def make_image(path: Path, parent: str | None, content: int, capacity: int = CAPACITY) -> None:
    """An image whose 64 KiB at content * 64 KiB are filled with that number."""
    backing = ["-F", "qcow2", "-b", os.path.relpath(parent, path.parent)] if parent else []
    size = -(-capacity // 65536) * 65536
    qemu_img("create", "-q", "-f", "qcow2", *backing, "-o", "compression_type=zstd", path, str(size))
    command = f"write -c -P {content} {content % 16 * 65536} 65536"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(path)], check=True, capture_output=True)


def expected(contents: list[int]) -> bytes:
    """The disk after writing these, one after the other."""
    data = bytearray(CAPACITY)
    for content in contents:
        data[content % 16 * 65536 : (content % 16 + 1) * 65536] = bytes([content]) * 65536
    return bytes(data)


def restored(image: Path | str, to: Path) -> bytes:
    """The disk that an image and its chain hold, by plain qemu-img."""
    qemu_img("convert", "-O", "raw", image, to)
    return to.read_bytes()


class Backup:
    """Backs up one VM or first class disk into a repository, step by step or at once."""

    def __init__(
        self,
        run_module: Callable[..., dict[str, Any]],
        path: Path,
        vm: dict[str, str] | None = None,
        fcd: dict[str, str] | None = None,
    ) -> None:
        self.run_module = run_module
        self.path = path
        self.owner: dict[str, Any] = {"fcd": fcd} if fcd else {"vm": vm or VM}
        self.directory = path / (fcd["id"] if fcd else self.owner["vm"]["instance_uuid"])
        self.disk = fcd_disk(fcd) if fcd else disk()
        self.content = 0

    def module(self, state: str, **options: Any) -> dict[str, Any]:
        """One call of restore_point."""
        how = {name: options.pop(name) for name in ("check", "diff", "fail") if name in options}
        return self.run_module("restore_point", {"repository": str(self.path), "state": state, **options}, **how)

    def info(self, **options: Any) -> list[dict[str, Any]]:
        """The restore points that restore_point_info lists."""
        return self.run_module("restore_point_info", {"repository": str(self.path), **options})["restore_points"]

    def start(self, disks: list[dict[str, Any]] | None = None, **options: Any) -> dict[str, Any]:
        """The state ``started``."""
        disks = [self.disk] if disks is None else disks
        self._fcds = {each["backing_uuid"]: each.get("fcd_id") for each in disks}
        return self.module("started", **self.owner, disks=disks, **options)

    def copy(self, started: dict[str, Any]) -> list[dict[str, Any]]:
        """Images for all disks of a started point, and results like those of vddk_copy."""
        partial = Path(started["restore_point"]["path"])
        self.content += 1
        results = []
        for since in started["since"]:
            image = partial / f"disk-{since['key']}.qcow2"
            make_image(image, since["parent"], self.content)
            results.append(
                {
                    **{name: since[name] for name in ("key", "label", "backing_uuid", "parent", "reason")},
                    "image": str(image),
                    "capacity": CAPACITY,
                    "fcd_id": self._fcds[since["backing_uuid"]],
                    "change_id": f"52 aa/{self.content}",
                    "kind": "incremental" if since["parent"] else "full",
                    "transport": "nbdssl",
                    "bytes_read": 65536,
                    "bytes_stored": image.stat().st_size,
                    "sha256": hashlib.sha256(image.read_bytes()).hexdigest(),
                    "resumed": False,
                }
            )
        return results

    def complete(self, started: dict[str, Any], disks: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """The state ``completed``."""
        point = started["restore_point"]
        return self.module("completed", id=point["id"], run=point["run"], **self.owner, disks=disks, **options)

    def abort(self, started: dict[str, Any], **options: Any) -> dict[str, Any]:
        """The state ``aborted``."""
        point = started["restore_point"]
        return self.module("aborted", id=point["id"], run=point["run"], **options)

    def backup(self, disks: list[dict[str, Any]] | None = None, **options: Any) -> dict[str, Any]:
        """A whole backup; the restore point."""
        started = self.start(disks, **options)
        return self.complete(started, self.copy(started))["restore_point"]

    def point_directory(self, point: dict[str, Any]) -> Path:
        """Where a restore point lies."""
        return self.path / point["id"]
