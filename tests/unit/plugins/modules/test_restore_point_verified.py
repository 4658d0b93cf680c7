# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""restore_point with state=verified through its main(): what it finds, stores and tells."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import CopyFailed
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import content
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    examining,
    files,
    layout,
    manifest,
    points,
    records,
)
from ansible_collections.holdfast.backup.tests.unit.repositories import VM, Backup, disk, qemu_img

LEVELS = ("structure", "content", "restore")


@pytest.fixture
def backup(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> Backup:
    """A backup into a new, empty directory."""
    path = tmp_path / "repository"
    path.mkdir()
    return Backup(run_module, path)


@pytest.fixture
def chain(backup: Backup) -> list[dict[str, Any]]:
    """Three points on each other, the first with a configuration; and a full one of two disks."""
    started = backup.start()
    Path(started["restore_point"]["path"], "config.json").write_text('{"a": 1}')
    made = [backup.complete(started, backup.copy(started))["restore_point"], backup.backup(), backup.backup()]
    return [*made, backup.backup([disk(), disk(2001)], mode="full")]


def verify(backup: Backup, point: dict[str, Any], level: str = "content", **options: Any) -> dict[str, Any]:
    return backup.module("verified", id=point["id"], level=level, **options)


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def image(backup: Backup, point: dict[str, Any], key: int = 2000) -> Path:
    return backup.point_directory(point) / f"disk-{key}.qcow2"


def stored(backup: Backup) -> list[Any]:
    """For each point what restore_point_info says of stored verifications, without times."""
    found = []
    for one in backup.info():
        if one["verification"] is not None:
            assert one["verification"].pop("time")
        found.append(one["verification"])
    return found


def sound(level: str) -> dict[str, Any]:
    return {"level": level, "ok": True, "problems": []}


# --- what is sound ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_sound_point_is_verified_with_all_that_it_stands_on(
    backup: Backup, chain: list[dict[str, Any]], level: str
) -> None:
    assert stored(backup) == [None] * 4
    result = verify(backup, chain[2], level, diff=True)
    point = result["restore_point"]
    numbers = point["verified"]
    assert numbers["rate"] >= 0
    assert numbers["seconds"] > 0
    sizes = sum(image(backup, one).stat().st_size for one in chain[:3])
    expected = {"structure": 0, "content": sizes, "restore": sizes + (1 << 20)}
    assert result == {
        "changed": True,
        "vm": VM,
        "fcd": None,
        "restore_point": {
            **chain[2],
            "state": "verified",
            "verification": {**sound(level), "time": point["verification"]["time"]},
            "verified": {
                **sound(level),
                "files": 3,
                "bytes": expected[level],
                "seconds": numbers["seconds"],
                "rate": numbers["rate"],
            },
        },
        "damage": [],
        "since": [],
        "swept": [],
        "diff": {
            "before": {"id": chain[2]["id"], "verification": None},
            "after": {"id": chain[2]["id"], "verification": point["verification"]},
        },
        "invocation": result["invocation"],
    }
    # Its images are known to be sound, of all that is below only the first's configuration is not yet known.
    least = "content" if level == "restore" else level
    assert stored(backup) == [None, sound(least), sound(level), None]
    verify(backup, chain[0], level)
    assert stored(backup)[0] == sound(level)


def test_again_is_no_change_a_higher_level_is_and_a_lower_one_takes_nothing_away(
    backup: Backup, chain: list[dict[str, Any]]
) -> None:
    changes = [verify(backup, chain[2], level)["changed"] for level in ("structure", "structure", "content", "content")]
    assert changes == [True, False, True, False]
    assert verify(backup, chain[2], "structure")["restore_point"]["verification"]["level"] != "structure"
    assert stored(backup)[2] == sound("content")
    assert verify(backup, chain[2], "restore")["changed"]
    assert not verify(backup, chain[2], "restore")["changed"]
    assert stored(backup)[2] == sound("restore")


def test_the_content_hash_is_recorded_once_and_is_that_of_the_disk(
    backup: Backup, chain: list[dict[str, Any]], tmp_path: Path
) -> None:
    verify(backup, chain[2], "restore")
    body = json.loads((backup.point_directory(chain[2]) / "verified.json").read_text())
    qemu_img("convert", "-O", "raw", image(backup, chain[2]), tmp_path / "raw")
    command = "split -b 4M --filter='sha256sum | xxd -r -p' \"$1\" | sha256sum"
    by_hand = subprocess.run(["sh", "-c", command, "sh", tmp_path / "raw"], check=True, capture_output=True, text=True)
    assert [one["content_hash"] for one in body["disks"]] == [by_hand.stdout.split()[0]]
    assert (backup.point_directory(chain[2]) / "verified.json").stat().st_mode & 0o777 == 0o600


def test_check_mode_examines_and_stores_nothing(backup: Backup, chain: list[dict[str, Any]]) -> None:
    for level in LEVELS:
        plan = verify(backup, chain[2], level, check=True, diff=True)
        assert not list(backup.path.rglob("verified.json*"))
        assert plan["changed"]
        assert plan["restore_point"]["verification"]["level"] == level
    flip(image(backup, chain[1]))
    assert verify(backup, chain[2], check=True, fail=True)["damage"]
    assert not list(backup.path.rglob("verified.json*"))


def test_a_backup_that_runs_does_not_hinder_it(backup: Backup, chain: list[dict[str, Any]]) -> None:
    backup.start()
    assert verify(backup, chain[2])["changed"]


# --- what is damaged -------------------------------------------------------------------------------------------------


def test_damage_is_told_with_what_is_lost_and_what_is_left(backup: Backup, chain: list[dict[str, Any]]) -> None:
    damaged = image(backup, chain[1])
    flip(damaged)
    result = verify(backup, chain[2], fail=True)
    what = f"The content of {damaged} is not what was written."
    assert result["error_type"] == "Damaged"
    assert result["msg"].startswith(f"Restore point {chain[2]['id']} is damaged: {what}")
    assert result["changed"]
    assert [one["image"] for one in result["restore_point"]["verified"]["problems"]] == [str(damaged)]
    step = "Restore it from a copy of the repository, or back up again: the next run makes a full copy of the disk."
    assert result["damage"] == [
        {
            "path": str(damaged),
            "restore_point": chain[1]["id"],
            "file": "disk-2000.qcow2",
            "vm": VM,
            "fcd": None,
            "what": what,
            "next_step": step,
            "lost": [
                {"restore_point": chain[1]["id"], "disks": ["Hard disk 1"], "files": []},
                {"restore_point": chain[2]["id"], "disks": ["Hard disk 1"], "files": []},
            ],
            "restorable": {"newest": chain[3]["id"], "points": [chain[0]["id"], chain[3]["id"]], "partly": []},
        }
    ]
    problem = {"restore_point": chain[1]["id"], "file": "disk-2000.qcow2", "what": what}
    found = stored(backup)
    assert found[1:] == [
        {"level": "content", "ok": False, "problems": [problem]},
        {"level": "content", "ok": False, "problems": [problem]},
        None,
    ]
    assert verify(backup, chain[3])["damage"] == []
    # A lower level does not take it back, the same one does once it is repaired.
    assert verify(backup, chain[2], "structure")["restore_point"]["verification"]["ok"] is False
    flip(damaged)
    assert verify(backup, chain[2])["restore_point"]["verification"]["ok"]
    assert stored(backup)[2] == sound("content")


def test_one_disk_of_two_and_a_configuration(backup: Backup, chain: list[dict[str, Any]]) -> None:
    flip(image(backup, chain[3], 2001))
    result = verify(backup, chain[3], fail=True)
    (one,) = result["damage"]
    assert one["lost"] == [{"restore_point": chain[3]["id"], "disks": ["Hard disk 2"], "files": []}]
    partly = [{"restore_point": chain[3]["id"], "disks": ["Hard disk 1"]}]
    assert one["restorable"]["partly"] == partly
    flip(backup.point_directory(chain[0]) / "config.json")
    config = verify(backup, chain[0], fail=True)["damage"][0]
    assert config["lost"] == [{"restore_point": chain[0]["id"], "disks": [], "files": ["config.json"]}]
    newest = chain[2]["id"]
    assert config["restorable"] == {
        "newest": newest,
        "points": [chain[1]["id"], newest],
        "partly": [{"restore_point": chain[0]["id"], "disks": ["Hard disk 1"]}, *partly],
    }


@pytest.mark.parametrize("level", ["content", "restore"])
def test_the_next_backup_of_a_damaged_disk_is_full_and_says_why(
    backup: Backup, chain: list[dict[str, Any]], level: str
) -> None:
    started = backup.start([disk(), disk(2001)])
    assert [since["reason"] for since in started["since"]] == [None, None]
    backup.abort(started)
    flip(image(backup, chain[3], 2001))
    verify(backup, chain[3], level, fail=True)
    first, second = backup.start([disk(), disk(2001)])["since"]
    assert first["parent_id"] == chain[3]["id"]
    assert second["parent"] is None
    time = backup.info()[-1]["verification"]["time"]
    point = chain[3]["id"].split("/")[1]
    assert second["reason"] == f"verification of {time} found {point}/disk-2001.qcow2 damaged"


def test_content_that_is_not_what_it_was_is_damage_of_that_disk(
    backup: Backup, chain: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    verify(backup, chain[2], "restore")
    verify(backup, chain[1], "restore")
    with monkeypatch.context() as patch:
        patch.setattr(content, "content_hash", lambda chain, capacity, check: ("0" * 64, 5))
        result = verify(backup, chain[2], "restore", fail=True)
    assert "read through its chain, is not what it was before" in result["msg"]
    (one,) = result["damage"]
    assert (one["file"], one["lost"]) == (
        "disk-2000.qcow2",
        [{"restore_point": chain[2]["id"], "disks": ["Hard disk 1"], "files": []}],
    )
    assert stored(backup)[1:3] == [
        sound("restore"),
        {
            "level": "restore",
            "ok": False,
            "problems": [{"restore_point": chain[2]["id"], "file": "disk-2000.qcow2", "what": one["what"]}],
        },
    ]
    assert verify(backup, chain[2], "restore")["restore_point"]["verification"]["ok"]


def test_content_that_cannot_be_read_is_damage(
    backup: Backup, chain: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(chain: list[str], capacity: int, check: object) -> tuple[str, int]:
        raise CopyFailed("The copy failed: Input/output error.")

    monkeypatch.setattr(content, "content_hash", fail)
    result = verify(backup, chain[1], "restore", fail=True)
    assert "cannot be read through its chain: The copy failed" in result["msg"]
    assert stored(backup)[1]["ok"] is False


def test_a_damaged_manifest_loses_what_stands_on_it(backup: Backup, chain: list[dict[str, Any]]) -> None:
    os.truncate(backup.point_directory(chain[1]) / "point.json", 20)
    for point in chain[1:3]:
        result = verify(backup, point, fail=True)
        assert result["error_type"] == "Damaged"
        assert not result["changed"] or point is chain[2]
        (one,) = result["damage"]
        assert one["file"] == "point.json"
        assert one["lost"] == [
            {"restore_point": chain[1]["id"], "disks": [], "files": ["point.json"]},
            {"restore_point": chain[2]["id"], "disks": ["Hard disk 1"], "files": []},
        ]
        assert one["restorable"]["points"] == [chain[0]["id"], chain[3]["id"]]


def test_a_missing_point_loses_what_stands_on_it(backup: Backup, chain: list[dict[str, Any]]) -> None:
    shutil.rmtree(backup.point_directory(chain[0]))
    (one,) = verify(backup, chain[2], fail=True)["damage"]
    assert (one["restore_point"], one["file"]) == (chain[0]["id"], "point.json")
    assert [each["restore_point"] for each in one["lost"]] == [each["id"] for each in chain[:3]]


# --- files that cannot be read ---------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere").name)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def missing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [fifo, link, directory, missing])
@pytest.mark.parametrize("name", ["disk-2000.qcow2", "config.json"])
def test_what_is_no_plain_file_is_damage(
    backup: Backup, chain: list[dict[str, Any]], spoil: Callable[[Path], None], name: str
) -> None:
    spoil(backup.point_directory(chain[0]) / name)
    for level in ("structure", "content"):
        result = verify(backup, chain[0], level, fail=True)
        assert [one["file"] for one in result["damage"]] == [name]
        assert stored(backup)[0]["ok"] is False


class Failing:
    """A file that the system opens, and fails to read at some place."""

    def __init__(self, file: Any, number: int, at: int) -> None:
        self.file, self.number, self.at = file, number, at

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()

    def read(self, size: int = -1) -> bytes:
        """The header can be read."""
        return self.file.read(size)

    def readinto(self, buffer: memoryview) -> int:
        if self.file.tell() >= self.at:
            raise OSError(self.number, os.strerror(self.number))
        return self.file.readinto(buffer[: 1 << 16])


@pytest.mark.parametrize(("number", "is_damage"), [(errno.EIO, True), (errno.EACCES, False), (errno.ESTALE, False)])
@pytest.mark.parametrize("at", [None, 0, 200_000])
def test_what_the_storage_cannot_read_is_damage_what_we_may_not_read_is_not(
    backup: Backup,
    chain: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    is_damage: bool,
    at: int | None,
) -> None:
    path, opened, wrapped = str(image(backup, chain[1])), os.open, os.fdopen

    def opening(file: Any, *args: Any, **options: Any) -> int:
        if at is None and file == path:
            raise OSError(number, os.strerror(number), file)
        return opened(file, *args, **options)

    def wrapping(descriptor: int, *args: Any, **options: Any) -> Any:
        file = wrapped(descriptor, *args, **options)
        failing = at is not None and os.readlink(f"/proc/self/fd/{descriptor}") == path
        return Failing(file, number, at or 0) if failing else file

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "fdopen", wrapping)
    result = verify(backup, chain[2], fail=True)
    assert os.strerror(number) in result["msg"]
    assert (result["error_type"] == "Damaged") == is_damage
    assert [one["file"] for one in result["damage"]] == ["disk-2000.qcow2"] * is_damage
    assert (stored(backup)[2] is not None) == is_damage
    monkeypatch.undo()
    assert verify(backup, chain[2])["restore_point"]["verification"]["ok"]


@pytest.mark.parametrize("content_of", [b"", b"{", b"[]", b"\xff" * 100])
def test_a_torn_record_counts_for_none(backup: Backup, chain: list[dict[str, Any]], content_of: bytes) -> None:
    verify(backup, chain[0])
    record = backup.point_directory(chain[0]) / "verified.json"
    record.write_bytes(content_of)
    assert stored(backup)[0] is None
    assert verify(backup, chain[0])["changed"]
    for spoil in (fifo, link, missing):
        spoil(record)
        assert stored(backup)[0] is None or spoil is not fifo
        verify(backup, chain[0])
        assert stored(backup)[0] == sound("content")
        assert record.is_file()
        assert not record.is_symlink()


def test_every_torn_length_and_flipped_bit_of_a_record_is_noticed(backup: Backup, chain: list[dict[str, Any]]) -> None:
    verify(backup, chain[0], "restore")
    directory_of = backup.point_directory(chain[0])
    record = directory_of / "verified.json"
    whole = record.read_bytes()
    assert records.read(str(directory_of)) != records.Records()
    for length in range(len(whole)):
        record.write_bytes(whole[:length])
        assert records.read(str(directory_of)) == records.Records()
    for at in range(len(whole)):
        record.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert records.read(str(directory_of)) == records.Records()


def test_a_record_is_of_the_image_that_it_names(backup: Backup, chain: list[dict[str, Any]]) -> None:
    """As after a merge: the image is another one then, and the content of the disk the same."""
    verify(backup, chain[1], "restore")
    verify(backup, chain[0])
    directory_of = str(backup.point_directory(chain[1]))
    (old,) = records.read(directory_of).files
    found = records.FileRecord(old.name, "0" * 64, "structure", old.time, True, None)
    assert records.store(directory_of, [found])[0]
    after = records.read(directory_of)
    assert after.files == (found,)
    assert [one.ok for one in after.disks] == [True]
    assert stored(backup)[1] is None


def test_leftovers_of_killed_verifications_are_swept(backup: Backup, chain: list[dict[str, Any]]) -> None:
    directory_of = backup.point_directory(chain[0])
    for name, age in (("verified.json.old.new", 5000), ("verified.json.young.new", 5)):
        (directory_of / name).write_text("")
        os.utime(directory_of / name, (os.path.getmtime(directory_of) - age,) * 2)
    verify(backup, chain[0])
    assert not (directory_of / "verified.json.old.new").exists()
    assert (directory_of / "verified.json.young.new").exists()


# --- merged or deleted meanwhile -------------------------------------------------------------------------------------


class Meanwhile:
    """Does something once, just before a file is looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[], None]) -> None:
        self.name, self.work, self.done = name, work, False
        self.check = examining.images.check
        monkeypatch.setattr(examining.images, "check", self._check)

    def _check(self, path: str, disk: manifest.Disk) -> None:
        if not self.done and path.endswith(self.name):
            self.done = True
            self.work()
        self.check(path, disk)


def merge_into(backup: Backup, point: dict[str, Any], gone: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The manifest, and the new image (in the merging directory), of a point that takes in its parent, the full one."""
    directory_of = backup.point_directory(point)
    merging = Path(f"{directory_of}.merging")
    merging.mkdir()
    new = merging / "disk-2000.qcow2"
    qemu_img("convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd", directory_of / new.name, new)
    body = json.loads((directory_of / "point.json").read_text())
    for name in ("format", "version", "sha256"):
        del body[name]
    size, sha256 = files.digest(str(new))
    body["disks"][0].update(kind="full", parent=None, reason="merged", size=size, sha256=sha256)
    return body


def test_a_point_that_is_merged_and_its_parent_deleted_meanwhile_is_sound(
    backup: Backup, chain: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (backup.point_directory(one) for one in chain[:2])
    merging = Path(f"{second}.merging")
    body = merge_into(backup, chain[1], chain[0], tmp_path)

    def merge() -> None:
        (merging / "merge.json").write_bytes(manifest.documents.render(manifest.FORMAT, 1, body))
        (merging / "disk-2000.qcow2").rename(second / "disk-2000.qcow2")
        (merging / "merge.json").rename(second / "point.json")
        merging.rmdir()
        shutil.rmtree(first)

    Meanwhile(monkeypatch, f"{second.name}/disk-2000.qcow2", merge)
    result = verify(backup, chain[2], "restore")
    assert result["restore_point"]["verified"]["ok"]
    assert [one["id"] for one in backup.info(verify="content")] == [one["id"] for one in chain[1:]]
    assert list(stored(backup)) == [sound("content"), sound("restore"), None]


@pytest.mark.parametrize("steps", range(4))
def test_a_merge_that_stopped_at_any_step_leaves_all_points_sound(
    backup: Backup, chain: list[dict[str, Any]], tmp_path: Path, steps: int
) -> None:
    second = backup.point_directory(chain[1])
    merging = Path(f"{second}.merging")
    body = merge_into(backup, chain[1], chain[0], tmp_path)
    for step, work in enumerate(
        (
            lambda: (merging / "merge.json").write_bytes(manifest.documents.render(manifest.FORMAT, 1, body)),
            lambda: (merging / "disk-2000.qcow2").rename(second / "disk-2000.qcow2"),
            lambda: (merging / "merge.json").rename(second / "point.json"),
        )
    ):
        if step < steps:
            work()
    assert [one["verified"]["problems"] for one in backup.info(verify="content")] == [[]] * 4
    for point in chain[:3]:
        assert verify(backup, point, "restore")["restore_point"]["verified"]["ok"]
    flip(second / "disk-2000.qcow2")
    assert verify(backup, chain[2], fail=True)["error_type"] == "Damaged"


def test_a_torn_or_foreign_merge_json_makes_nothing_sound(backup: Backup, chain: list[dict[str, Any]]) -> None:
    second = backup.point_directory(chain[1])
    flip(second / "disk-2000.qcow2")
    merging = Path(f"{second}.merging")
    merging.mkdir()
    for data in (b"", b"{", (backup.point_directory(chain[2]) / "point.json").read_bytes()):
        (merging / "merge.json").write_bytes(data)
        assert verify(backup, chain[1], fail=True)["error_type"] == "Damaged"


def test_a_point_that_is_deleted_meanwhile_is_not_there(
    backup: Backup, chain: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory_of = backup.point_directory(chain[3])
    Meanwhile(monkeypatch, f"{directory_of.name}/disk-2000.qcow2", lambda: shutil.rmtree(directory_of))
    assert verify(backup, chain[3], fail=True)["error_type"] == "NotFound"
    assert not directory_of.exists()


def test_a_point_that_is_deleted_while_it_is_listed_is_left_out(
    backup: Backup, chain: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory_of = backup.point_directory(chain[3])
    Meanwhile(monkeypatch, f"{directory_of.name}/disk-2000.qcow2", lambda: shutil.rmtree(directory_of))
    assert [one["id"] for one in backup.info(verify="content")] == [one["id"] for one in chain[:3]]


def test_a_share_that_goes_away_is_said_and_no_damage(
    backup: Backup, chain: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unmount() -> None:
        backup.path.rename(tmp_path / "elsewhere")
        backup.path.mkdir()

    Meanwhile(monkeypatch, "disk-2000.qcow2", unmount)
    result = verify(backup, chain[2], fail=True)
    assert result["error_type"] == "RepositoryError"
    assert "went away" in result["msg"]
    assert list(backup.path.iterdir()) == []


def test_the_progress_is_told_and_a_watcher_that_is_gone_ends_it(
    backup: Backup, chain: list[dict[str, Any]], tmp_path: Path
) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    assert "is gone" in verify(backup, chain[2], progress_dir=str(watched), fail=True)["msg"]
    assert stored(backup) == [None] * 4
    (watched / "watched").touch()
    size = verify(backup, chain[2], progress_dir=str(watched))["restore_point"]["verified"]["bytes"]
    last = json.loads((watched / "progress").read_text().splitlines()[-1])
    del last["time"]
    assert last == {"disk": chain[2]["id"], "stage": "content", "done": size, "total": size, "passed": size}


# --- what it needs ---------------------------------------------------------------------------------------------------


def test_what_is_missing_is_said(backup: Backup, chain: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        backup.module("verified", id=f"{VM['instance_uuid']}/20200101T000000Z", fail=True)["error_type"] == "NotFound"
    )
    assert "id" in backup.module("verified", fail=True)["msg"]
    monkeypatch.setenv("PATH", "/nonexistent")
    for level in LEVELS:
        assert verify(backup, chain[0], level, fail=True)["error_type"] == "MissingRequirement"


def test_the_manifest_of_a_merge_is_read_before_the_one_in_place(
    backup: Backup, chain: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two the former may take the place of the latter."""
    order: list[str] = []
    merging, read_entry = points.merging, points.read_entry
    monkeypatch.setattr(points, "merging", lambda *args: order.append("merging") or merging(*args))
    monkeypatch.setattr(points, "read_entry", lambda *args: order.append("in place") or read_entry(*args))
    repository = layout.open_repository(str(backup.path))
    flip(image(backup, chain[3]))
    link_ = points.Link(
        points.readable(points.read_entries(repository, VM["instance_uuid"]))[chain[3]["id"].split("/")[1]],
        manifest.parse(
            (backup.point_directory(chain[3]) / "point.json").read_bytes(), manifest.PointId.parse(chain[3]["id"])
        ).disks[0],
    )
    order.clear()
    examiner = examining.Examiner(repository, "content", lambda path: None)
    assert examiner.examine(examining.Part.of_link(link_)).error is not None
    assert order[:2] == ["merging", "in place"]
