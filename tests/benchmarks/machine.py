# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules in processes of their own, and a VM of the lab to use them on."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.tests.benchmarks import measure
from ansible_collections.holdfast.backup.tests.benchmarks.measure import Cost
from ansible_collections.holdfast.backup.tests.lab.client import BUILD, Lab

MIB = 1 << 20
GIB = 1 << 30
OURS = "holdfast.backup"
RUNNER = str(Path(__file__).with_name("module_main.py"))


def setting(name: str, default: str) -> str:
    """What the environment variable ``BENCH_<name>`` says."""
    return os.environ.get(f"BENCH_{name}", default)


def run_module(name: str, args: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> tuple[dict, Cost]:
    """Run a module, of ours if no collection is named, and return its result and what it cost."""
    cost = measure.run([sys.executable, RUNNER], task(name, args), environment)
    return json.loads(cost.output.strip().splitlines()[-1]), cost


def task(name: str, args: Mapping[str, Any]) -> str:
    """What ``RUNNER`` reads, to run a module of ours or of the collection that is named."""
    collection, dummy, module = (name if "." in name else f"{OURS}.{name}").rpartition(".")
    return json.dumps({"module": f"ansible_collections.{collection}.plugins.modules.{module}", "args": dict(args)})


class Machine:
    """A VM of the lab with one tracked disk, and the shortest way to what benchmarks do to it."""

    def __init__(self, lab: Lab, name: str, size: int) -> None:
        self.lab = lab
        self.vm = lab.create_vm(name, disks=[size], tracking=True, power="poweredOn")
        self.moid: str = self.vm["moid"]
        self.key: int = self.vm["disks"][0]["key"]
        self.path: str = lab.vm(self.moid)["disks"][0]["path"]  # in the first snapshot too
        self.size = size

    def module(self, name: str, **args: Any) -> tuple[dict, Cost]:
        """Run a module of ours on this VM."""
        return run_module(name, {**self.lab.module_args(), "moid": self.moid, **args})

    def snapshot(self, name: str = "bench") -> str:
        """Take a snapshot; returns its moid."""
        return self.module("vm_snapshot", snapshot_name=name, stamp={"job": name})[0]["snapshot"]["moid"]

    def remove_snapshot(self, name: str = "bench") -> None:
        """Remove it again."""
        self.module("vm_snapshot", state="absent", stamp={"job": name})

    def copy(self, snapshot: str, directory: Path, **disk: Any) -> tuple[dict, Cost]:
        """Run vddk_copy into ``disk-<key>.qcow2`` in an empty directory."""
        empty(directory)
        return self.module(
            "vddk_copy",
            snapshot=snapshot,
            vddk_libdir=self.lab.vddk_libdir,
            image_dir=str(directory),
            disks=[{"disk": self.key, **disk}],
        )


def empty(directory: Path) -> Path:
    """Make a directory anew."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def workplace(name: str, needed: int, in_memory: bool) -> Path:
    """An empty directory for files: below ``BENCH_DIR``, else in memory if wanted and there is room, else in .build."""
    memory = Path("/dev/shm")
    roomy = in_memory and memory.is_dir() and shutil.disk_usage(memory).free > 2 * needed
    base = Path(setting("DIR", "") or (memory if roomy else BUILD))
    return empty(base / f"holdfast-bench-{os.getpid()}" / name)
