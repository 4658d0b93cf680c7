# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""repository_verification through its main(): what it takes first, where it stops, what it finds and tells."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._repository import batches, documents, examining, files
from ansible_collections.holdfast.backup.tests.unit.repositories import FCD, VM, Backup, disk

OTHER = {"name": "db01", "moid": "vm-43", "instance_uuid": "5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b12"}


@pytest.fixture
def backup(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> Backup:
    """A repository with three points on each other, and a full one of two disks."""
    path = tmp_path / "repository"
    path.mkdir()
    backup = Backup(run_module, path)
    backup.points = [backup.backup() for _turn in range(3)]
    backup.points.append(backup.backup([disk(), disk(2001)], mode="full"))
    return backup


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, named from their objects' directories."""
    found: list[str] = []
    digest = files.digest

    def reading(path: str, check: Callable[[int], None]) -> tuple[int, str]:
        found.append("/".join(path.split("/")[-2:]))
        return digest(path, check)

    monkeypatch.setattr(files, "digest", reading)
    monkeypatch.setattr(examining, "AT_A_TIME", 1)
    return found


def verify(backup: Backup, **options: Any) -> dict[str, Any]:
    how = {name: options.pop(name) for name in ("check", "diff", "fail") if name in options}
    result = backup.run_module("repository_verification", {"repository": str(backup.path), **options}, **how)
    result.pop("invocation", None)
    return result


def image(backup: Backup, number: int, key: int = 2000) -> Path:
    return backup.point_directory(backup.points[number]) / f"disk-{key}.qcow2"


def name(backup: Backup, number: int, key: int = 2000) -> str:
    return f"{backup.points[number]['id'].split('/')[1]}/disk-{key}.qcow2"


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def age(backup: Backup, number: int, time_of: str) -> None:
    """Let the records of a point be of another time."""
    path = backup.point_directory(backup.points[number]) / "verified.json"
    body = json.loads(path.read_text())
    for each in body["files"] + body["disks"]:
        each["time"] = time_of
    rest = {key: body[key] for key in ("files", "disks")}
    path.write_bytes(documents.render("holdfast.verification", 1, rest))


# --- what it does ----------------------------------------------------------------------------------------------------


def test_everything_is_verified_once_and_remembered(backup: Backup, read: list[str]) -> None:
    sizes = sum(path.stat().st_size for path in backup.path.rglob("*.qcow2"))
    result = verify(backup, diff=True)
    assert result == {
        "changed": True,
        "repository": {**result["repository"], "path": str(backup.path)},
        "level": "content",
        "due": {"files": 5, "disks": 0, "bytes": sizes},
        "examined": {"files": 5, "disks": 0, "bytes": sizes},
        "remaining": {"files": 0, "disks": 0, "bytes": 0},
        "oldest": result["oldest"],
        "seconds": result["seconds"],
        "rate": result["rate"],
        "problems": [],
        "damage": [],
        "diff": {"before": {"damaged": []}, "after": {"damaged": []}},
    }
    assert result["oldest"]
    assert sorted(read) == sorted([*(name(backup, number) for number in range(4)), name(backup, 3, 2001)])
    assert [one["verification"]["level"] for one in backup.info()] == ["content"] * 4
    again = verify(backup)
    assert (again["changed"], again["examined"]["files"]) == (False, 5)
    recent = verify(backup, min_age="1h")
    assert recent["due"] == recent["examined"] == {"files": 0, "disks": 0, "bytes": 0}
    assert recent.keys() == result.keys()


def test_structure_reads_no_content_and_leads_to_no_higher_level(backup: Backup, read: list[str]) -> None:
    result = verify(backup, level="structure")
    assert (result["examined"], read) == ({"files": 5, "disks": 0, "bytes": 0}, [])
    assert verify(backup, level="structure", min_age="1d")["due"]["files"] == 0
    assert verify(backup, level="content", min_age="1d")["examined"]["files"] == 5
    assert verify(backup, level="structure", min_age="1d")["due"]["files"] == 0
    assert [one["verification"]["level"] for one in backup.info()] == ["content"] * 4


def test_restore_reads_every_disk_back(backup: Backup) -> None:
    result = verify(backup, level="restore")
    assert (result["examined"]["files"], result["examined"]["disks"]) == (5, 5)
    assert result["examined"]["bytes"] >= 5 << 20
    assert [one["verification"]["level"] for one in backup.info()] == ["restore"] * 4
    assert verify(backup, level="restore", min_age="1d")["due"] == {"files": 0, "disks": 0, "bytes": 0}


def test_what_was_not_verified_for_longest_comes_first(backup: Backup, read: list[str]) -> None:
    verify(backup)
    for number, moment in ((0, "2026-03-01T00:00:00Z"), (1, "2026-01-01T00:00:00Z"), (2, "2026-02-01T00:00:00Z")):
        age(backup, number, moment)
    shutil.rmtree(backup.path / "nothing", ignore_errors=True)
    (backup.point_directory(backup.points[3]) / "verified.json").unlink()
    read.clear()
    assert verify(backup, max_bytes="1")["remaining"]["files"] == 4
    assert read == [name(backup, 3)]
    assert verify(backup)["oldest"]
    read.clear()
    for number, moment in ((0, "2026-03-01T00:00:00Z"), (1, "2026-01-01T00:00:00Z"), (2, "2026-02-01T00:00:00Z")):
        age(backup, number, moment)
    assert verify(backup, max_bytes="1")["oldest"] == "2026-02-01T00:00:00Z"
    verify(backup)
    assert read[:3] == [name(backup, 1), name(backup, 2), name(backup, 0)]


def test_nightly_portions_come_to_all_of_it(backup: Backup) -> None:
    left = []
    for _night in range(5):
        left.append(verify(backup, max_bytes="300K", min_age="1d")["remaining"]["files"])
    assert left == [4, 3, 2, 1, 0]
    assert verify(backup, min_age="1d")["oldest"]


def test_an_object_is_chosen_like_in_restore_point_info(backup: Backup) -> None:
    other = Backup(backup.run_module, backup.path, OTHER)
    held = other.backup([disk(), disk(2001, fcd_id=FCD["id"])])
    fcd = Backup(backup.run_module, backup.path, fcd=FCD)
    fcd.backup()
    for selection, count in (
        ({"name": "db01"}, 2),
        ({"moid": "vm-43"}, 2),
        ({"instance_uuid": OTHER["instance_uuid"]}, 2),
        ({"vm": OTHER}, 2),
        ({"fcd_id": FCD["id"]}, 3),
        ({"fcd_name": "pvc-1"}, 3),
        ({"fcd": FCD}, 3),
        ({"name": "web01"}, 5),
        ({}, 8),
    ):
        assert verify(backup, check=True, **selection)["due"]["files"] == count
    assert held["id"]
    assert verify(backup, name="nobody", fail=True)["error_type"] == "NotFound"
    assert "mutually exclusive" in verify(backup, name="db01", moid="vm-43", fail=True)["msg"]
    assert verify(backup, min_age="soon", fail=True)["error_type"] == "InvalidInput"


def test_an_empty_repository_has_nothing_to_verify(backup: Backup) -> None:
    shutil.rmtree(backup.directory)
    result = verify(backup)
    assert (result["changed"], result["due"]["files"], result["oldest"]) == (False, 0, None)


def test_check_mode_reads_nothing(backup: Backup, read: list[str]) -> None:
    plan = verify(backup, check=True, diff=True)
    assert (plan["changed"], plan["due"]["files"], plan["examined"]["files"]) == (False, 5, 0)
    assert plan["due"] == plan["remaining"]
    assert read == []
    assert not list(backup.path.rglob("verified.json*"))
    assert plan.keys() == verify(backup, diff=True).keys()


# --- what is damaged -------------------------------------------------------------------------------------------------


def test_damage_fails_at_the_end_and_is_remembered(backup: Backup, read: list[str]) -> None:
    damaged = image(backup, 1)
    flip(damaged)
    result = verify(backup, fail=True, diff=True)
    what = f"The content of {damaged} is not what was written."
    assert result["error_type"] == "Damaged"
    assert result["msg"].startswith(
        f"1 files are damaged, 2 restore points are lost in part or as a whole. The first is {damaged}: {what}"
    )
    assert result["examined"]["files"] == 5
    ids = [one["id"] for one in backup.points]
    step = "Restore it from a copy of the repository, or back up again: the next run makes a full copy of the disk."
    place = {"restore_point": ids[1], "file": "disk-2000.qcow2", "path": str(damaged), "what": what, "next_step": step}
    assert result["problems"] == [place]
    assert result["damage"] == [
        {
            **place,
            "vm": VM,
            "fcd": None,
            "lost": [{"restore_point": one, "disks": ["Hard disk 1"], "files": []} for one in ids[1:3]],
            "restorable": {"newest": ids[3], "points": [ids[0], ids[3]], "partly": []},
        }
    ]
    assert result["diff"] == {"before": {"damaged": []}, "after": {"damaged": [str(damaged)]}}
    read.clear()
    for options in ({"min_age": "1d"}, {"check": True}):
        known = verify(backup, fail=True, **options)
        assert (known["damage"], known["problems"]) == (result["damage"], [])
    assert read == []
    told = verify(backup, fail_on_damage=False)
    assert (told["changed"], told["damage"]) == (False, result["damage"])
    assert told.keys() == result.keys() - {"failed", "msg", "error_type", "next_step", "exception"}
    flip(damaged)
    healed = verify(backup, diff=True)
    assert healed["diff"] == {"before": {"damaged": [str(damaged)]}, "after": {"damaged": []}}
    assert healed["changed"]


def test_a_damaged_image_makes_the_next_backup_of_that_disk_full(backup: Backup) -> None:
    flip(image(backup, 3, 2001))
    verify(backup, fail=True)
    first, second = backup.start([disk(), disk(2001)])["since"]
    assert first["parent"]
    assert second["parent"] is None
    assert f"found {name(backup, 3, 2001)} damaged" in second["reason"]


def test_manifests_that_are_damaged_or_missing_are_damage(backup: Backup) -> None:
    os.truncate(backup.point_directory(backup.points[1]) / "point.json", 20)
    (one,) = verify(backup, fail=True)["damage"]
    assert (one["file"], len(one["lost"])) == ("point.json", 2)
    shutil.rmtree(backup.point_directory(backup.points[1]))
    (one,) = verify(backup, fail=True)["damage"]
    assert [lost["restore_point"] for lost in one["lost"]] == [backup.points[1]["id"], backup.points[2]["id"]]
    assert one["restorable"]["points"] == [backup.points[0]["id"], backup.points[3]["id"]]


def test_what_may_not_be_read_is_a_problem_and_no_damage(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, path = files.digest, str(image(backup, 1))

    def failing(file: str, check: Callable[[int], None]) -> tuple[int, str]:
        if file == path:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), file)
        return digest(file, check)

    monkeypatch.setattr(files, "digest", failing)
    result = verify(backup, fail=True)
    assert (result["error_type"], result["damage"]) == ("RepositoryError", [])
    assert [one["path"] for one in result["problems"]] == [path]
    assert "access" in result["next_step"]
    assert result["oldest"] is None
    assert backup.start([disk()])["since"][0]["parent"]


# --- where it stops --------------------------------------------------------------------------------------------------


@dataclass
class Endless:
    """Some more files can be read. What is read after them has no end, though it looks at the clock meanwhile.

    :param begun: called when as many are being read as are at a time
    """

    left: int = 2
    begun: Callable[[], None] = lambda: None


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Endless:
    state, digest = Endless(), files.digest

    def reading(path: str, check: Callable[[int], None]) -> tuple[int, str]:
        state.left -= 1
        if state.left >= 0:
            return digest(path, check)
        if state.left == -examining.AT_A_TIME:
            state.begun()
        while True:
            time.sleep(0.01)
            check(1)

    monkeypatch.setattr(files, "digest", reading)
    return state


def test_it_stops_in_time_and_stores_nothing_of_what_is_not_finished(backup: Backup, endless: Endless) -> None:
    result = verify(backup, max_seconds=2)
    assert (result["examined"]["files"], result["remaining"]["files"]) == (2, 3)
    stored = list(backup.path.rglob("verified.json"))
    assert len(stored) == 2
    assert "warnings" not in result
    endless.left = 2
    assert verify(backup, min_age="1d", max_seconds=2)["remaining"]["files"] == 1


def test_a_file_too_large_for_the_time_is_named(backup: Backup, endless: Endless) -> None:
    endless.left = 0
    result = verify(backup, max_seconds=1)
    assert (result["examined"]["files"], result["changed"]) == (0, False)
    assert any(name(backup, 0) in str(warning) for warning in result["warnings"])


def test_asked_to_stop_it_stops_and_keeps_what_it_has(
    backup: Backup, endless: Endless, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_STORE_EVERY", 1000.0)
    endless.begun = lambda: os.kill(os.getpid(), signal.SIGTERM)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        result = verify(backup, fail=True)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert "SIGTERM" in result["msg"]
    assert len(list(backup.path.rglob("verified.json"))) == 2


def test_a_watcher_that_is_gone_ends_it(backup: Backup, tmp_path: Path, read: list[str]) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    result = verify(backup, progress_dir=str(watched), fail=True)
    assert "is gone" in result["msg"]
    assert backup.info()[0]["verification"] is None
    (watched / "watched").touch()
    assert verify(backup, progress_dir=str(watched))["examined"]["files"] == 5
    told = [json.loads(line) for line in (watched / "progress").read_text().splitlines()]
    assert told[-1]["stage"] == "content"
    assert 0 < told[-1]["done"] == told[-1]["total"] == told[-1]["passed"]


# --- others at the same time -----------------------------------------------------------------------------------------


def test_points_deleted_meanwhile_are_no_damage(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, gone = files.digest, backup.point_directory(backup.points[3])

    def deleting(path: str, check: Callable[[int], None]) -> tuple[int, str]:
        shutil.rmtree(gone, ignore_errors=True)
        return digest(path, check)

    monkeypatch.setattr(files, "digest", deleting)
    result = verify(backup)
    assert (result["problems"], result["damage"]) == ([], [])
    assert not gone.exists()
    assert result["oldest"]


def test_a_share_that_goes_away_ends_it(backup: Backup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unmounting(path: str, check: Callable[[int], None]) -> tuple[int, str]:
        if backup.path.exists():
            backup.path.rename(tmp_path / "elsewhere")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    monkeypatch.setattr(files, "digest", unmounting)
    result = verify(backup, fail=True)
    assert "went away" in result["msg"]
    assert not list((tmp_path / "elsewhere").rglob("verified.json"))


def test_two_at_once_do_each_other_no_harm(backup: Backup) -> None:
    children = []
    for _turn in range(4):
        child = os.fork()
        if child == 0:
            failed = 1
            try:
                verify(backup)
                failed = 0
            finally:
                os._exit(failed)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert [one["verification"]["ok"] for one in backup.info()] == [True] * 4
    assert not list(backup.path.rglob("*.new"))


def test_a_repository_that_is_read_only_is_said(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, data: bytes, temporary: str | None = None) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(files, "write", refuse)
    result = verify(backup, fail=True)
    assert "Read-only file system" in result["msg"]
    assert "read-write" in result["next_step"]


def test_what_it_needs_is_said(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    for level in ("structure", "content", "restore"):
        assert verify(backup, level=level, fail=True)["error_type"] == "MissingRequirement"
    assert verify(backup, check=True)["due"]["files"] == 5
