# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks that are moved to another datastore between copies and in the middle of one, by both ways of access.

A copy must be what the disk held, or fail and say why. VDDK forbids it while disks are copied; natively nobody does.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests.integration.copies import BLOCK, MIB, Copies, image_content
from ansible_collections.holdfast.backup.tests.integration.running import wait_for
from ansible_collections.holdfast.backup.tests.lab.client import Lab, LabError

SIZE = 3 * MIB + 512
SLOW = {"request_size": 4 * BLOCK, "request_depth": 1}
HERE, THERE = "LocalDS_0", "LocalDS_1"


@pytest.fixture(params=["vddk", "native"])
def access(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def copies(lab: Lab, tmp_path: Path, access: str) -> Copies:
    """A full copy is there, and all of the disk was written since."""
    made = Copies(lab, tmp_path, SIZE, access=access)
    made.night()
    made.write(0, os.urandom(SIZE))
    return made


@contextlib.contextmanager
def moving_in_the_middle(lab: Lab, access: str, moid: str) -> Iterator[list[str]]:
    """Move the disks of a VM when one is being read; what the lab says if it refuses."""
    told: list[str] = []
    service = {"vddk": lab.vddk, "native": lab.nfc}[access]

    def is_read() -> bool:
        report = service()
        return bool(report["open"]) and (access == "vddk" or report["open"][0]["reads"] > 3)

    def move() -> None:
        wait_for(is_read)
        try:
            lab.relocate(moid, THERE)
        except LabError as refused:
            told.append(str(refused))

    service(latency_ms=100)
    mover = threading.Thread(target=move)
    mover.start()
    try:
        yield told
    finally:
        mover.join()
        service(latency_ms=0)


def assert_right(copies: Copies, scratch: Path) -> None:
    assert image_content(copies.last[0]["image"], SIZE, scratch) == copies.content()


def assert_goes_on(copies: Copies, scratch: Path) -> None:
    """The next copy is incremental: the disk's identity and its change ID hold wherever it is."""
    copies.write(MIB, os.urandom(BLOCK))
    [disk] = copies.night(audit=100)
    assert (disk["kind"], disk["reason"], disk["bytes_read"]) == ("incremental", None, BLOCK)
    assert disk["audit"]["mismatches"] == 0
    assert_right(copies, scratch)


def datastore(copies: Copies) -> str:
    [disk] = copies.lab.vm(copies.moid)["disks"]
    return disk["path"].partition("]")[0][1:]


def test_between_copies(copies: Copies, tmp_path: Path):
    copies.lab.relocate(copies.moid, THERE)
    assert copies.night()[0]["kind"] == "incremental"
    assert_right(copies, tmp_path)
    copies.look()
    copies.lab.relocate(copies.moid, HERE)  # between the question for changed areas and the copy
    copies.copy()
    assert_right(copies, tmp_path)
    assert_goes_on(copies, tmp_path)


@pytest.mark.parametrize("access", ["vddk"], indirect=True)
def test_forbidden_meanwhile(copies: Copies, tmp_path: Path, access: str):
    copies.look()
    with moving_in_the_middle(copies.lab, access, copies.moid) as told:
        copies.copy(**SLOW)
    assert "MethodDisabled" in told[0]
    assert datastore(copies) == HERE
    assert_right(copies, tmp_path)
    copies.lab.relocate(copies.moid, THERE)  # allowed again
    assert_goes_on(copies, tmp_path)


def test_hosts_that_read_on(copies: Copies, tmp_path: Path, access: str):
    """As they were seen to do. By VDDK, it is a server that does not let it forbid the move."""
    copies.look()
    copies.lab.vddk(faults=[{"op": "prepare", "code": 3014, "count": 1}])
    with moving_in_the_middle(copies.lab, access, copies.moid) as told:
        result = copies.copy(**SLOW)
    assert (told, datastore(copies)) == ([], THERE)
    assert_right(copies, tmp_path)
    assert len(result.get("warnings", [])) == (1 if access == "vddk" else 0)  # that it was not forbidden
    assert_goes_on(copies, tmp_path)


def test_hosts_that_do_not(copies: Copies, tmp_path: Path, access: str):
    """Natively the disk is opened where its snapshot has it now; VDDK is told one path only, and fails."""
    copies.look()
    copies.lab.tracking(on_move="break")
    copies.lab.vddk(faults=[{"op": "prepare", "code": 3014, "count": 1}])
    with moving_in_the_middle(copies.lab, access, copies.moid) as told:
        result = copies.copy(**SLOW, fail=access == "vddk")
    assert (told, datastore(copies)) == ([], THERE)
    if access == "native":
        assert "Reading" in str(result["warnings"])
        assert THERE in copies.lab.nfc()["closed"][-1]["path"]
    else:
        assert (result["error_type"], result["failed_disks"][0]["code"]) == ("CopyFailed", 4)
        assert result["next_step"]
        assert copies.copy()["disks"][0]["resumed"]
    assert_right(copies, tmp_path)
    assert_goes_on(copies, tmp_path)


@pytest.mark.parametrize("on_move", ["follow", "break"])
def test_a_first_class_disk_that_moves_with_its_machine(lab: Lab, run_module: Any, tmp_path: Path, on_move: str):
    """Natively, which reads it through that machine."""
    fcd = lab.create_fcd(f"moved {on_move}", 4 * MIB, tracking=True)["id"]
    vm = lab.create_vm(f"mover {on_move}", disks=[MIB], tracking=True)["moid"]
    lab.attach_fcd(fcd, vm)
    lab.power(vm, "poweredOn")
    lab.fcd_write(fcd, 0, os.urandom(4 * MIB))
    snapshot = lab.fcd_snapshot(fcd, "ours")
    lab.fcd_write(fcd, 0, b"later")
    lab.tracking(on_move=on_move)
    options = {"fcd_id": fcd, "snapshot": snapshot, "image_dir": str(tmp_path), "disks": [{"disk": fcd}], **SLOW}
    with moving_in_the_middle(lab, "native", vm) as told:
        [disk] = run_module("vddk_copy", {**lab.module_args(), "access": "native", **options})["disks"]
    assert told == []
    assert lab.fcd(fcd)["datastore"] == THERE
    assert image_content(disk["image"], 4 * MIB, tmp_path) == lab.fcd_read(fcd, snapshot=snapshot)
