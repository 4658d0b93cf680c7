# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The audit of change tracking in vddk_copy, through its main() against a lab whose tracking lies.

What is read of the disk is tried by both ways of access. What needs no disk is tried by one, and so is who is killed:
each process once, and the one that reads the disk by both ways.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import audit
from ansible_collections.holdfast.backup.tests.integration.copies import BLOCK, MIB, Copies, image_content
from ansible_collections.holdfast.backup.tests.integration.running import processes, program, wait_for

ODD = 3 * MIB + 3 * 512  # bytes, no multiple of 64 KiB


BOTH = pytest.mark.parametrize("copies", ["vddk", "native"], indirect=True)


@pytest.fixture
def copies(lab, tmp_path: Path, request: pytest.FixtureRequest) -> Copies:
    made = Copies(lab, tmp_path, 4 * MIB, ODD, access=getattr(request, "param", "vddk"))
    made.write(0, os.urandom(2 * MIB))
    made.write(ODD - 1000, os.urandom(1000), disk=1)
    first = made.night()
    assert [disk["kind"] for disk in first] == ["full", "full"]
    assert [disk["audit"] for disk in first] == [None, None]
    return made


def is_right(copies: Copies, disk: int, scratch: Path) -> bool:
    there = copies.disks[disk]
    return image_content(copies.last[disk]["image"], there["capacity"], scratch) == copies.content(disk)


@BOTH
def test_honest_tracking(copies: Copies, tmp_path: Path):
    """Some of what did not change is compared, and that is all there is to it."""
    copies.write(MIB, os.urandom(BLOCK))
    changed, idle = copies.night()
    assert (changed["kind"], changed["bytes_read"]) == ("incremental", BLOCK)
    assert changed["audit"] == {"checked_bytes": 16 * BLOCK, "samples": 16, "mismatches": 0, "areas": []}
    assert (idle["kind"], idle["bytes_read"], idle["audit"]["samples"]) == ("incremental", 0, 16)
    assert is_right(copies, 0, tmp_path)
    assert is_right(copies, 1, tmp_path)


@BOTH
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_missed_change(copies: Copies, tmp_path: Path, busy: bool):
    """One run finds it, and makes a right copy all the same; the next copy is full, whatever tracking says then."""
    copies.write_unnoticed(MIB, os.urandom(MIB))
    if busy:
        copies.write(3 * MIB, b"noticed")
    copies.look()
    assert copies.changed[0]["kind"] == "incremental"
    assert copies.changed[0]["changed_bytes"] == (BLOCK if busy else 0)
    result = copies.copy()
    liar, other = result["disks"]
    assert (liar["kind"], liar["parent"], liar["parent_id"], liar["change_id"]) == ("full", None, None, None)
    audit = liar["audit"]
    assert audit["mismatches"] == len(audit["areas"]) >= 1
    assert all(MIB <= start < 2 * MIB and length == BLOCK for start, length in audit["areas"])
    n, m, first = audit["mismatches"], audit["samples"], audit["areas"][0][0]
    expected = f"change tracking missed changes: at least {n} of {m} samples differ, the first at byte {first}"
    assert liar["reason"] == expected
    assert liar["warnings"] == [f"It was copied in full: {liar['reason']}."]
    assert f"{copies.name} Hard disk 1: {liar['warnings'][0]}" in str(result["warnings"])
    assert is_right(copies, 0, tmp_path)
    assert (other["kind"], other["reason"], other["parent_id"]) == ("incremental", None, "2001/before")
    assert is_right(copies, 1, tmp_path)
    again = copies.copy()
    assert not again["changed"]
    assert again["disks"] == [{**disk, "changed": False} for disk in (liar, other)]
    full, incremental = copies.night()
    assert (full["kind"], full["audit"]) == ("full", None)
    assert "no change ID" in full["reason"]
    assert incremental["kind"] == "incremental"


@BOTH
def test_missed_zeros(copies: Copies, tmp_path: Path):
    """What was discarded is a change like any other."""
    copies.lab.tracking(forget=True)
    copies.lab.trim(copies.moid, copies.keys[0], MIB, MIB)
    copies.lab.tracking(forget=False)
    liar, _other = copies.night()
    assert liar["kind"] == "full"
    assert is_right(copies, 0, tmp_path)


@BOTH
def test_the_end_of_an_odd_disk(copies: Copies, tmp_path: Path):
    """The last cluster is a part of one, and can be the one that lies."""
    copies.write_unnoticed(ODD - 512, os.urandom(512), disk=1)
    result = copies.night(audit=100)
    assert [disk["kind"] for disk in result] == ["incremental", "full"]
    assert result[1]["audit"]["areas"] == [[ODD // BLOCK * BLOCK, ODD % BLOCK]]
    assert is_right(copies, 1, tmp_path)


@BOTH
def test_all_of_it(copies: Copies):
    """A single cluster cannot hide from an audit of everything; changed areas are not part of it."""
    copies.write(0, os.urandom(100))
    copies.write_unnoticed(4 * MIB - BLOCK, b"x")
    copies.look()
    result = copies.copy(audit=100)["disks"]
    assert [disk["kind"] for disk in result] == ["full", "incremental"]
    assert result[0]["audit"] == {
        "checked_bytes": 4 * MIB - BLOCK,
        "samples": 63,
        "mismatches": 1,
        "areas": [[4 * MIB - BLOCK, BLOCK]],
    }
    assert result[1]["audit"]["checked_bytes"] == ODD


@BOTH
def test_bounds(copies: Copies):
    """What it may cost, and that it can be left out."""
    copies.write_unnoticed(0, os.urandom(4 * MIB))
    copies.look()
    off = copies.copy(audit=0)["disks"][0]
    assert (off["kind"], off["audit"]) == ("incremental", None)
    for number, options in enumerate(({"audit": 100, "audit_max": 3 * BLOCK}, {"audit_max": BLOCK - 1})):
        directory = copies.directory / f"bound-{number}"
        directory.mkdir()
        copies.last[0] = copies.copy(image_dir=str(directory), **options)["disks"][0]
        if number == 0:
            assert (copies.last[0]["kind"], copies.last[0]["audit"]["checked_bytes"]) == ("full", 3 * BLOCK)
        else:
            assert (copies.last[0]["kind"], copies.last[0]["audit"]) == ("incremental", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"audit": 101}, "The option audit is 101"), ({"audit": -1}, "audit is -1"), ({"audit_max": -1}, "audit_max is")],
)
def test_numbers_that_mean_nothing(copies: Copies, options, message):
    copies.look()
    assert message in copies.copy(fail=True, **options)["msg"]


@BOTH
def test_nothing_unchanged(copies: Copies):
    copies.write(0, os.urandom(4 * MIB))
    whole, _idle = copies.night()
    assert (whole["kind"], whole["audit"]) == ("incremental", None)


@BOTH
def test_check_mode(copies: Copies):
    """It reads nothing, and tells the same keys."""
    copies.write(MIB, b"x")
    copies.look()
    opens = copies.opens()
    told = copies.copy(check=True)["disks"]
    assert copies.opens() == opens
    assert [disk["audit"] for disk in told] == [None, None]
    assert [set(disk) for disk in told] == [set(disk) for disk in copies.copy()["disks"]]


@BOTH
def test_image_below_that_cannot_be_read(copies: Copies, tmp_path: Path):
    """That is not the tracking's fault, but no image may stand on it."""
    copies.write(2 * MIB, b"text " * (MIB // 5))
    image = copies.night()[0]["image"]
    with open(image, "r+b") as damaged:
        damaged.seek(5 * BLOCK)  # behind the tables
        damaged.write(os.urandom(os.path.getsize(image) - 5 * BLOCK))
    disk, other = copies.night(audit=100)
    assert (disk["kind"], other["kind"]) == ("full", "incremental")
    assert image in disk["reason"]
    assert disk["change_id"]
    assert is_right(copies, 0, tmp_path)


@BOTH
def test_interrupted_after_it(copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The full copy that a failed audit leads to is gone on with; the verdict stays."""
    monkeypatch.setattr(audit, "sample", lambda *args: [(0, BLOCK)])
    copies.write_unnoticed(0, os.urandom(4 * MIB))
    copies.look()
    fault = {"op": "read", "start": 3 * MIB, "length": 65536, "code": 4000, "count": 1000}
    copies.lab.vddk(faults=[fault])
    copies.lab.nfc(faults=[{**fault, "action": "error"}])
    failed = copies.copy(fail=True, request_depth=1)
    assert failed["failed_disks"][0]["code"] == 4000
    copies.lab.vddk(faults=[])
    copies.lab.nfc(faults=[])
    liar = copies.copy()["disks"][0]
    assert (liar["kind"], liar["change_id"], liar["resumed"]) == ("full", None, True)
    assert is_right(copies, 0, tmp_path)


@pytest.mark.parametrize(
    ("copies", "victim"),
    [("native", "module"), ("vddk", "nbdcopy"), ("native", "nbdkit"), ("vddk", "nbdkit"), ("vddk", "qemu-nbd")],
    indirect=["copies"],
)
def test_killed_in_its_middle(copies: Copies, tmp_path: Path, victim: str):
    """Whoever dies first, the others follow at once, and the next run does it all again."""
    copies.look()
    copies.slow(400)
    image = copies.last[0]["image"]
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            copies.copy(disks=copies.changed[:1], audit=100, request_depth=1)
        os._exit(0)
    try:
        wait_for(lambda: copies.service()["open"])
        time.sleep(0.5)  # some requests into it
        wait_for(lambda: {program(pid) for pid in processes(image)} == {"nbdcopy", "nbdkit", "qemu-nbd"})
        chosen = [pid for pid in processes(image) if program(pid) == victim] or [child]
        os.kill(chosen[0], signal.SIGKILL)
        wait_for(lambda: not processes(image), 10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    copies.slow(0)
    assert copies.copy(audit=100)["disks"][0]["audit"]["mismatches"] == 0
    assert is_right(copies, 0, tmp_path)
