# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Merges of restore points, whole and killed at every step: readers never see but good data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged, Locked, NoSpace, RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import merging as images
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    documents,
    files,
    layout,
    locks,
    manifest,
    merging,
    points,
    switching,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import PointId
from ansible_collections.holdfast.backup.tests.integration import processes
from ansible_collections.holdfast.backup.tests.integration.processes import Child
from ansible_collections.holdfast.backup.tests.unit.repositories import VM, Backup, disk, expected, restored

OBJECT = VM["instance_uuid"]
DISKS = [disk(), disk(2001)]


@pytest.fixture
def backup(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> Backup:
    """A repository with four restore points of two disks; the content of each is what was written until then."""
    path = tmp_path / "repository"
    path.mkdir()
    backup = Backup(run_module, path)
    for dummy in range(4):
        backup.backup(DISKS)
    return backup


def times(backup: Backup) -> list[str]:
    """Of the complete restore points, oldest first."""
    return layout.complete_times(str(backup.directory))


def merge(
    path: Path, kept: Collection[str], synthetic: Collection[tuple[str, str]] = (), make: Any = images.make_image
) -> list[switching.Carried]:
    """All that a retention does: merge, then delete what is not kept."""
    repository = layout.open_repository(str(path))
    directory, run = repository.object_directory(OBJECT), uuid.uuid4().hex
    locks.acquire(directory, run)
    try:
        switching.recover(directory)
        known = points.readable(points.read_entries(repository, OBJECT))
        with tempfile.TemporaryDirectory() as work:
            making = partial(make, images.Settings(work), Watch())
            merges = merging.plan(known, kept, [one for one in synthetic if known[one[0]]])
            carried = [switching.carry_out(repository, one, run, making) for one in merges]
        for gone in sorted(set(known) - set(kept), reverse=True):
            os.rename(os.path.join(directory, gone), os.path.join(directory, gone + layout.DELETED))
            files.sync_directory(directory)
            switching.recover(directory)
        return carried
    finally:
        locks.release(directory, run)


def assert_all_good(backup: Backup, contents: dict[str, list[int]], scratch: Path, recovered: bool = True) -> None:
    """Every restore point is what it was: by plain qemu-img, and, by their hashes, for restore_point_info."""
    assert set(times(backup)) == set(contents)
    for moment, content in contents.items():
        for key in (2000, 2001):
            image = backup.directory / moment / f"disk-{key}.qcow2"
            assert restored(image, scratch) == expected(content), (moment, key)
    verified = [one["verified"] for one in backup.info(verify="content")]
    assert all(one["ok"] for one in verified), verified
    if recovered:
        names = [name for name in os.listdir(backup.directory) if not name.startswith(".lock-")]
        assert all(map(manifest.is_time, names)), names


def contents_of(backup: Backup) -> dict[str, list[int]]:
    """What each restore point holds."""
    return {moment: list(range(1, number + 2)) for number, moment in enumerate(times(backup))}


def test_a_point_goes_into_its_child_and_the_oldest_too(backup: Backup, tmp_path: Path) -> None:
    contents = contents_of(backup)
    first, second, third, fourth = times(backup)

    (carried,) = merge(backup.path, [first, third, fourth])

    del contents[second]
    assert_all_good(backup, contents, tmp_path / "raw")
    assert carried.point == points.read_entry(layout.open_repository(str(backup.path)), PointId(OBJECT, third)).point
    assert [one.parent.time for one in carried.point.disks] == [first, first]
    assert [one.size for one in carried.made] == [one.size for one in carried.point.disks]

    (carried,) = merge(backup.path, [third, fourth])

    del contents[first]
    assert_all_good(backup, contents, tmp_path / "raw")
    assert [(one.kind, one.parent) for one in carried.point.disks] == [("full", None)] * 2


def test_the_next_backup_stands_on_a_merged_point(backup: Backup, tmp_path: Path) -> None:
    moments = times(backup)
    merge(backup.path, moments[-1:])
    point = backup.backup(DISKS)
    assert [one["parent"]["id"] for one in point["disks"]] == [f"{OBJECT}/{moments[-1]}"] * 2
    assert restored(backup.path / point["id"] / "disk-2000.qcow2", tmp_path / "raw") == expected([1, 2, 3, 4, 5])


def test_a_synthetic_full_stands_on_nothing_and_the_others_stay(backup: Backup, tmp_path: Path) -> None:
    contents, moments = contents_of(backup), times(backup)
    (carried,) = merge(backup.path, moments, [(moments[-1], "disk-2001.qcow2")])
    assert [(one.kind, one.reason) for one in carried.point.disks] == [
        ("incremental", None),
        ("full", "synthetic full"),
    ]
    assert [one.way for one in carried.made] == [images.REWRITE]
    assert_all_good(backup, contents, tmp_path / "raw")


# --- killed ----------------------------------------------------------------------------------------------------------


def live_through_kills(backup: Backup, scratch: Path, work: Callable[[list[str]], Any], stride: int) -> set[str]:
    """Do ``work``, which keeps the last two points, killed at every ``stride``-th step; what was seen in its middle."""
    contents, moments = contents_of(backup), times(backup)
    kept = moments[2:]
    origin = scratch / "origin"
    backup.path.rename(origin)
    step, outcome, seen = 0, "", set()
    while outcome != "done":
        shutil.copytree(origin, backup.path)
        child = Child(lambda: [bool(work(kept))], processes.killed_at(step))
        outcome = child.end()
        child.gone()
        processes.count("merge killed")
        merges = [backup.directory / name for name in os.listdir(backup.directory) if name.endswith(layout.MERGING)]
        seen |= {name.partition(".")[2] for name in os.listdir(backup.directory) if not name.startswith(".")}
        seen |= {"committed" for one in merges if (one / layout.MERGED).exists()}
        seen |= {f"with {len(list(one.glob('*.qcow2')))}" for one in merges if (one / layout.MERGED).exists()}
        left = {moment: content for moment, content in contents.items() if moment in times(backup)}
        assert set(kept) <= set(left)
        assert_all_good(backup, left, scratch / "raw", recovered=False)

        swept = backup.start(DISKS, check=True)["swept"]
        assert {one.name for one in merges} <= set(swept)
        started = backup.start(DISKS)
        assert started["swept"] == swept
        assert [since["reason"] for since in started["since"]] == [None, None], step
        backup.abort(started)
        assert_all_good(backup, left, scratch / "raw")

        work(kept)
        assert_all_good(backup, {moment: contents[moment] for moment in kept}, scratch / "raw")
        shutil.rmtree(backup.path)
        step += stride
    return seen


def test_killed_at_every_step_of_its_file_work_it_loses_nothing(backup: Backup, tmp_path: Path) -> None:
    """Looked at before and after recovery. The image is made once, then copied: its making is another test's."""
    canned: dict[str, Any] = {}

    def make(*fixed: Any, target: str, **options: Any) -> Any:
        image = tmp_path / os.path.basename(target).partition(".qcow2")[0]
        if not image.exists():
            canned[image.name] = images.make_image(*fixed, target=target, **options)
            shutil.copy(target, image)
        else:
            shutil.copy(image, target)
        return canned[image.name]

    origin = shutil.copytree(backup.path, tmp_path / "copy")
    merge(backup.path, times(backup)[2:], make=make)
    shutil.rmtree(backup.path)
    origin.rename(backup.path)
    seen = live_through_kills(backup, tmp_path, lambda kept: merge(backup.path, kept, make=make), stride=1)
    assert {"merging", "deleted", "committed", "with 2", "with 1", "with 0"} <= seen


def test_killed_anywhere_it_loses_nothing(backup: Backup, tmp_path: Path) -> None:
    """The programs that make images among the steps."""
    synthetic = [(times(backup)[3], "disk-2000.qcow2")]
    seen = live_through_kills(backup, tmp_path, lambda kept: merge(backup.path, kept, synthetic), stride=9)
    assert {"merging", "deleted"} <= seen


def test_a_check_sees_a_committed_merge_as_it_will_be(backup: Backup) -> None:
    """Check mode recovers nothing, and yet says what the next backup may stand on."""
    moments = times(backup)
    commit_only(backup, moments[3:])
    os.rename(
        backup.directory / f"{moments[3]}.merging" / "disk-2001.qcow2",
        backup.directory / moments[3] / "disk-2001.qcow2",
    )
    since = backup.start(DISKS, check=True)["since"]
    assert [one["reason"] for one in since] == [None, None]


def commit_only(backup: Backup, kept: Collection[str]) -> Path:
    """A merge that was killed right after it was committed; its directory."""
    real = switching._put_in_place

    class Killed(BaseException):
        pass

    def kill(*args: Any) -> None:
        raise Killed

    switching._put_in_place = kill
    try:
        with pytest.raises(Killed):
            merge(backup.path, kept)
    finally:
        switching._put_in_place = real
    (found,) = backup.directory.glob("*.merging")
    assert (found / layout.MERGED).exists()
    return found


def recover(backup: Backup) -> list[str]:
    return switching.recover(str(backup.directory))


# --- what may lie there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", ["", "{", "half", "flipped"])
def test_a_torn_manifest_of_a_merge_undoes_it(backup: Backup, tmp_path: Path, torn: str) -> None:
    contents, moments = contents_of(backup), times(backup)
    found = commit_only(backup, moments[2:])
    path = found / layout.MERGED
    data = path.read_bytes()
    path.write_bytes(
        {"half": data[: len(data) // 2], "flipped": data.replace(b"web01", b"web02")}.get(torn, torn.encode())
    )
    assert_all_good(backup, contents, tmp_path / "raw", recovered=False)
    assert recover(backup) == [found.name]
    assert_all_good(backup, contents, tmp_path / "raw")


def test_a_manifest_of_a_newer_release_is_left_to_it(backup: Backup) -> None:
    found = commit_only(backup, times(backup)[2:])
    path = found / layout.MERGED
    body = json.loads(path.read_bytes())
    del body["format"], body["version"], body["sha256"]
    path.write_bytes(documents.render(manifest.FORMAT, 2, body))
    with pytest.raises(RepositoryError, match="version 2"):
        recover(backup)
    assert path.exists()


@pytest.mark.parametrize("change", ["id", "disk", "size", "name", "gone", "link", "fifo", "linked directory"])
def test_nothing_foreign_is_put_in_place(backup: Backup, tmp_path: Path, change: str) -> None:
    """What a hostile hand, or a disk, made of a merge: it goes, and the point stays as it was."""
    contents, moments = contents_of(backup), times(backup)
    found = commit_only(backup, moments[2:])
    sentinel = tmp_path / "sentinel"
    sentinel.write_bytes(b"outside")
    path, image = found / layout.MERGED, found / "disk-2000.qcow2"
    body = json.loads(path.read_bytes())
    for key in ("format", "version", "sha256"):
        del body[key]
    if change == "id":
        body["id"] = f"{OBJECT}/{moments[3]}"
    elif change == "disk":
        body["disks"][0]["capacity"] += 512
    elif change == "size":
        body["disks"][0]["size"] += 1
    elif change == "name":
        body["disks"][0]["image"] = "disk-2001.qcow2"
        body["disks"][1]["image"] = "disk-2000.qcow2"
    elif change == "gone":
        image.unlink()
    elif change == "link":
        image.unlink()
        image.symlink_to(sentinel)
    elif change == "fifo":
        image.unlink()
        os.mkfifo(image)
    path.write_bytes(documents.render(manifest.FORMAT, 1, body))
    if change == "linked directory":
        found.rename(tmp_path / "elsewhere")
        found.symlink_to(tmp_path / "elsewhere")
    recover(backup)
    assert sentinel.read_bytes() == b"outside"
    assert (tmp_path / "elsewhere" / layout.MERGED).exists() == (change == "linked directory")
    assert_all_good(backup, contents, tmp_path / "raw")


def test_a_merge_whose_point_is_gone_goes_too(backup: Backup) -> None:
    moments = times(backup)
    found = commit_only(backup, moments[3:])
    shutil.rmtree(backup.directory / moments[3])
    assert recover(backup) == [found.name]
    assert times(backup) == moments[:3]
    assert not found.exists()


def test_a_committed_merge_heals_an_unreadable_manifest(backup: Backup, tmp_path: Path) -> None:
    contents, moments = contents_of(backup), times(backup)
    commit_only(backup, moments[2:])
    (backup.directory / moments[2] / manifest.FILE).write_bytes(b"torn")
    recover(backup)
    assert_all_good(backup, contents, tmp_path / "raw")


def test_deleting_ends_a_merge_first(backup: Backup, tmp_path: Path) -> None:
    """What a merge has committed may be what no longer needs a point."""
    contents, moments = contents_of(backup), times(backup)
    commit_only(backup, [moments[0], *moments[2:]])
    backup.module("absent", id=f"{OBJECT}/{moments[1]}")
    del contents[moments[1]]
    assert_all_good(backup, contents, tmp_path / "raw")


# --- bad days --------------------------------------------------------------------------------------------------------


def tree(path: Path) -> dict[str, bytes | None]:
    """Everything below a directory."""
    return {str(one.relative_to(path)): one.read_bytes() if one.is_file() else None for one in sorted(path.rglob("*"))}


@pytest.mark.parametrize(
    ("which", "how"),
    [*((which, how) for which in range(4) for how in ("flipped", "gone", "shorter")), (2, "other parent")],
)
def test_a_damaged_image_is_named_and_nothing_changes(backup: Backup, which: int, how: str) -> None:
    moments = times(backup)
    path = backup.directory / moments[which] / "disk-2001.qcow2"
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-3] ^= 1
    elif how == "other parent":
        data = data.replace(b"../2", b"../1")
    path.write_bytes(data[:-1] if how == "shorter" else data)
    if how == "gone":
        path.unlink()
    before = tree(backup.path)
    with pytest.raises(Damaged) as caught:
        merge(backup.path, moments[3:])
    assert caught.value.details["damaged"] == [{"id": f"{OBJECT}/{moments[which]}", "image": "disk-2001.qcow2"}]
    assert tree(backup.path) == before


def test_a_full_file_system_leaves_all_as_it_was(backup: Backup, tmp_path: Path) -> None:
    small, moments = tmp_path / "small", times(backup)
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", small], check=False).returncode:
        pytest.skip("may not mount a file system here")
    try:
        moved = shutil.copytree(backup.path, small / "repository")
        (small / "rest").write_bytes(bytes(os.statvfs(small).f_bavail * os.statvfs(small).f_frsize - 500_000))
        before = tree(moved)
        with pytest.raises(NoSpace):
            merge(moved, moments[3:])
        assert tree(moved) == before
    finally:
        subprocess.run(["umount", small], check=True)


def test_changed_plans_and_lost_locks_are_refused(backup: Backup, tmp_path: Path) -> None:
    contents, moments = contents_of(backup), times(backup)
    repository = layout.open_repository(str(backup.path))
    known = points.readable(points.read_entries(repository, OBJECT))
    plan = merging.plan(known, moments[2:])
    with pytest.raises(Locked):
        switching.carry_out(repository, plan[0], "nobody", pytest.fail)
    merge(backup.path, moments[1:])
    run = uuid.uuid4().hex
    locks.acquire(str(backup.directory), run)
    with pytest.raises(RepositoryError, match="no longer those that were to be merged"):
        switching.carry_out(repository, plan[0], run, pytest.fail)
    del contents[moments[0]]
    locks.release(str(backup.directory), run)
    assert_all_good(backup, contents, tmp_path / "raw")


def test_a_run_that_lost_its_lock_leaves_what_is_another_ones(backup: Backup) -> None:
    moments = times(backup)
    repository = layout.open_repository(str(backup.path))
    merging_directory = backup.directory / f"{moments[3]}.merging"

    def rob(*args: Any, **options: Any) -> None:
        """The run is taken for dead, and the other one merges the same point."""
        (record,) = (backup.directory / locks.NAME).iterdir()
        locks.release(str(backup.directory), record.stem)
        switching.recover(str(backup.directory))
        locks.acquire(str(backup.directory), "other")
        merging_directory.mkdir()
        raise Locked("lost")

    with pytest.raises(Locked):
        merge(backup.path, moments[3:], make=rob)
    assert merging_directory.is_dir()
    locks.release(str(backup.directory), "other")
    assert repository.free()


def test_a_merge_is_a_sign_of_life(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """From elsewhere a run that merges is seen alive by what it writes."""
    directory = backup.directory
    found = commit_only(backup, times(backup)[3:])
    monkeypatch.setattr(locks.owners, "running_play", lambda: None)
    locks.acquire(str(directory), "merger", lease=100)
    old = time.time() - 500
    for path in (directory / ".lock" / "merger.json", found, *found.iterdir()):
        os.utime(path, (old, old))
    locks.check_free(str(directory), "other")
    os.utime(found / "disk-2000.qcow2")
    with pytest.raises(Locked):
        locks.check_free(str(directory), "other")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No program outlives a merge."""
    yield
    assert not [pid for pid in processes_of_ours() if pid]


def processes_of_ours() -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = Path(f"/proc/{name}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(status[1]) == os.getpid() and status[0] != "Z":
            found.append(int(name))
    return found
