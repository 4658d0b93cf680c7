# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is stored of verifications: what goes before what, whatever the order in which it was found."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ansible_collections.holdfast.backup.plugins.module_utils._repository import records
from ansible_collections.holdfast.backup.plugins.module_utils._repository.records import DiskRecord, FileRecord, Records
from hypothesis import given
from hypothesis import strategies as st

HASHES = ["a" * 64, "b" * 64]


@st.composite
def histories(draw: st.DrawFn) -> list[FileRecord]:
    """What verifications of a point found, one after the other."""
    found = []
    for number in range(draw(st.integers(0, 12))):
        ok = draw(st.booleans())
        found.append(
            FileRecord(
                draw(st.sampled_from(["disk-2000.qcow2", "config.json"])),
                draw(st.sampled_from(HASHES)),
                draw(st.sampled_from(["structure", "content"])),
                f"2026-11-20T00:00:{number:02d}Z",
                ok,
                None if ok else "torn",
            )
        )
    return found


def stored(history: Sequence[FileRecord], at_once: int) -> Records:
    with tempfile.TemporaryDirectory() as directory:
        for start in range(0, len(history), at_once):
            records.store(directory, history[start : start + at_once])
        assert [path.name for path in Path(directory).iterdir()] == ["verified.json"] * bool(history)
        return records.read(directory)


@given(histories(), st.integers(1, 5))
def test_what_is_stored_is_what_the_last_looks_say(history: list[FileRecord], at_once: int) -> None:
    found = stored(history, at_once)
    for name in ("disk-2000.qcow2", "config.json"):
        of_name = [one for one in history if one.name == name]
        newest = of_name[-1] if of_name else None
        assert {one.sha256 for one in found.files if one.name == name} <= {newest.sha256 if newest else ""}
        if newest is None:
            continue
        assert newest in found.files
        # Looks at the same file as it is now.
        since = [place for place, one in enumerate(of_name) if one.sha256 != newest.sha256]
        same = of_name[since[-1] + 1 if since else 0 :]
        contents = [one for one in same if one.level == "content"]
        known = found.of_file(name, newest.sha256)
        damaged = any(not one.ok for one in known)
        if newest.level == "content" or not newest.ok:
            assert damaged == (not newest.ok)
            assert known == [newest]
        elif contents and not any(not one.ok and one.level == "structure" for one in same[same.index(contents[-1]) :]):
            # A lower level neither takes damage back nor the higher level away.
            assert damaged == (not contents[-1].ok)
            assert known == [newest, contents[-1]]
            assert records.latest(known, "content") == contents[-1].time
            assert records.latest(known, "structure") == newest.time
        else:
            assert known == [newest]


@given(histories())
def test_nothing_new_is_said_of_the_same_at_another_time(history: list[FileRecord]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        records.store(directory, history)
        before = records.read(directory)
        later = [replace(one, time="2026-12-01T00:00:00Z") for one in before.files]
        foretold = records.store(directory, later, dry=True)
        assert records.read(directory) == before
        assert records.store(directory, later) == foretold == (False, records.read(directory))


def test_disks_are_told_by_their_image(tmp_path: Path) -> None:
    first = DiskRecord("disk-2000.qcow2", HASHES[0], "2026-11-20T00:00:00Z", True, None)
    second = DiskRecord("disk-2001.qcow2", None, "2026-11-20T00:00:00Z", False, "it cannot be read")
    assert records.store(str(tmp_path), [], [second])[0]
    assert records.store(str(tmp_path), [], [first])[0]
    found = records.read(str(tmp_path))
    assert found.disks == (first, second)
    assert (found.of_disk("disk-2001.qcow2"), found.of_disk("disk-1.qcow2")) == (second, None)


def test_a_point_that_has_gone_is_passed_over(tmp_path: Path) -> None:
    record = FileRecord("config.json", HASHES[0], "content", "2026-11-20T00:00:00Z", True, None)
    assert not records.store(str(tmp_path / "gone"), [record])[0]
    assert not (tmp_path / "gone").exists()
