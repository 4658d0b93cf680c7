# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""restore_point through its main(), on real directories and real images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._repository import documents, manifest
from ansible_collections.holdfast.backup.tests.unit.repositories import (
    CAPACITY,
    FCD,
    VM,
    Backup,
    disk,
    expected,
    make_image,
    qemu_img,
    restored,
)


@pytest.fixture
def backup(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> Backup:
    """A backup into a new, empty directory."""
    path = tmp_path / "repository"
    path.mkdir()
    return Backup(run_module, path)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB of its own."""
    path = tmp_path / "small"
    path.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", path], check=False, capture_output=True
    ).returncode:
        pytest.skip("may not mount a file system here")
    yield path
    subprocess.run(["umount", path], check=True)


def tree(path: Path) -> dict[str, bytes | None]:
    """Everything below a directory."""
    return {str(one.relative_to(path)): one.read_bytes() if one.is_file() else None for one in sorted(path.rglob("*"))}


# --- the way of a backup ---------------------------------------------------------------------------------------------


def test_full_then_incremental_make_a_chain_that_qemu_reads_wherever_it_is_moved(
    backup: Backup, tmp_path: Path
) -> None:
    first, second, third = backup.backup(), backup.backup(), backup.backup()

    assert [one["disks"][0]["kind"] for one in (first, second, third)] == ["full", "incremental", "incremental"]
    assert third["disks"][0]["parent"]["id"] == second["id"]
    moved = tmp_path / "elsewhere"
    backup.path.rename(moved)
    image = moved / third["id"] / "disk-2000.qcow2"
    chain = json.loads(qemu_img("info", "--backing-chain", "--output=json", image))
    assert len(chain) == 3
    qemu_img("check", image)
    qemu_img("compare", image, image)
    assert restored(image, tmp_path / "raw") == expected([1, 2, 3])


def test_started_says_what_each_disk_may_stand_on(backup: Backup) -> None:
    first = backup.backup()
    started = backup.start([disk(), disk(2001), disk(2002, protected=False, reason="independent")])

    assert started["changed"]
    assert started["restore_point"]["state"] == "started"
    assert Path(started["restore_point"]["path"]).is_dir()
    known, new = started["since"]
    assert known == {
        "backing_uuid": disk()["backing_uuid"],
        "key": 2000,
        "label": "Hard disk 1",
        "change_id": "52 aa/1",
        "capacity": CAPACITY,
        "snapshot_time": None,
        "parent": str(backup.point_directory(first) / "disk-2000.qcow2"),
        "parent_id": first["id"],
        "reason": None,
    }
    assert (new["key"], new["parent"], new["change_id"]) == (2001, None, None)
    assert new["reason"] == "no earlier restore point of this disk"


def test_the_very_first_one_has_no_parent_and_makes_the_repository(backup: Backup) -> None:
    started = backup.start()

    assert started["since"][0]["reason"] == "no earlier restore point"
    written = json.loads((backup.path / "repository.json").read_text())
    assert (written["format"], written["version"]) == ("holdfast.repository", 1)


def test_the_manifest_tells_it_all_and_is_private(backup: Backup) -> None:
    started = backup.start()
    partial = Path(started["restore_point"]["path"])
    (partial / "config.json").write_text("{}")
    (partial / "vm.nvram").write_bytes(b"nvram")
    (partial / "disk-2000.qcow2.state").write_text("resume")
    (partial / "areas-2000.json").write_text("[]")
    point = backup.complete(
        started,
        backup.copy(started),
        consistency="filesystem",
        snapshot_time="2026-11-20T03:15:04.5+01:00",
        unprotected=[{"label": "Hard disk 2", "key": 2001, "reason": "independent", "capacity": 5}],
        warnings=["slow"],
    )["restore_point"]

    directory = backup.point_directory(point)
    assert sorted(os.listdir(directory)) == ["config.json", "disk-2000.qcow2", "point.json", "vm.nvram"]
    assert (directory / "point.json").stat().st_mode & 0o777 == 0o600
    written = json.loads((directory / "point.json").read_text())
    assert written["vm"] == VM
    assert written["run"] == started["restore_point"]["run"]
    assert [file["name"] for file in written["files"]] == ["config.json", "vm.nvram"]
    assert written["unprotected"] == [
        {"label": "Hard disk 2", "key": 2001, "backing_uuid": None, "reason": "independent"}
    ]
    assert (written["consistency"], written["warnings"]) == ("filesystem", ["slow"])
    assert written["snapshot_time"] == "2026-11-20T02:15:04.500000Z"
    assert not list(backup.directory.glob(".lock*"))


def test_long_messages_of_a_server_do_not_fail_a_backup(backup: Backup) -> None:
    started = backup.start()
    (result,) = backup.copy(started)
    unprotected = [{"label": "Hard disk 9", "reason": "y\0" * 9000}]
    done = backup.complete(
        started, [{**result, "reason": "x" * 9000}], warnings=["w" * 9000] * 900, unprotected=unprotected
    )
    assert done["changed"]
    assert backup.info(verify="content")[0]["verified"]["ok"]


def test_a_repository_behind_a_link_is_the_same_repository(
    run_module: Callable[..., dict[str, Any]], backup: Backup, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(backup.path)
    linked = Backup(run_module, tmp_path / "link")
    assert linked.backup()["path"] == str(backup.path / linked.info()[0]["id"])
    assert backup.start()["since"][0]["parent_id"] == linked.info()[0]["id"]


def test_a_hash_is_taken_where_the_copy_gave_none(backup: Backup) -> None:
    started = backup.start()
    (given,) = backup.copy(started)
    sha256 = given.pop("sha256")
    assert backup.complete(started, [given])["restore_point"]["disks"][0]["sha256"] == sha256


def test_a_disk_under_another_key_is_found_by_its_backing_uuid(backup: Backup) -> None:
    backup.backup([disk(2000), disk(2001)])
    started = backup.start([disk(2016, uuid=disk(2001)["backing_uuid"])])
    assert started["since"][0]["parent"].endswith("/disk-2001.qcow2")
    point = backup.complete(started, backup.copy(started))["restore_point"]
    assert point["disks"][0]["parent"]["image"].endswith("/disk-2001.qcow2")


def test_a_disk_that_the_newest_point_lacks_is_looked_for_further_back(backup: Backup) -> None:
    first = backup.backup([disk(2000), disk(2001)])
    backup.backup([disk(2000)])
    assert backup.start([disk(2001)])["since"][0]["parent_id"] == first["id"]


def test_full_when_asked_for_and_when_the_chain_is_long_enough(backup: Backup) -> None:
    for _turn in range(2):
        backup.backup(max_chain=2)
    started = backup.start(max_chain=2)
    assert started["since"][0]["reason"] == "chain is 2 long"
    backup.abort(started)
    assert backup.start(mode="full")["since"][0]["reason"] == "asked for"


def test_full_when_the_earlier_point_has_no_change_id(backup: Backup) -> None:
    started = backup.start()
    (result,) = backup.copy(started)
    backup.complete(started, [{**result, "change_id": None}])
    assert backup.start()["since"][0]["reason"].startswith("no change ID in ")


def damage_image_missing(point: Path) -> None:
    (point / "disk-2000.qcow2").unlink()


def damage_image_truncated(point: Path) -> None:
    os.truncate(point / "disk-2000.qcow2", 1000)


def damage_image_replaced(point: Path) -> None:
    image = point / "disk-2000.qcow2"
    image.write_bytes(b"x" * image.stat().st_size)


def damage_image_linked(point: Path) -> None:
    (point / "disk-2000.qcow2").rename(point / "elsewhere")
    (point / "disk-2000.qcow2").symlink_to("elsewhere")


def damage_point_missing(point: Path) -> None:
    shutil.rmtree(point)


def damage_point_linked(point: Path) -> None:
    point.rename(point.parent / "elsewhere")
    point.symlink_to("elsewhere")


def damage_manifest_torn(point: Path) -> None:
    os.truncate(point / "point.json", 300)


def damage_manifest_linked(point: Path) -> None:
    (point / "point.json").rename(point / "elsewhere")
    (point / "point.json").symlink_to("elsewhere")


def damage_manifest_missing(point: Path) -> None:
    (point / "point.json").unlink()


def damage_manifest_newer(point: Path) -> None:
    body = json.loads((point / "point.json").read_text())
    (point / "point.json").write_bytes(documents.render(manifest.FORMAT, 2, {key: body[key] for key in ("id", "run")}))


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_chain_makes_the_next_backup_full_and_says_why(
    backup: Backup, damage: Callable[[Path], None], which: int, tmp_path: Path
) -> None:
    made = [backup.backup(), backup.backup()]
    damage(backup.point_directory(made[which]))

    started = backup.start()
    if damage is damage_point_missing and which == 1:
        assert started["since"][0]["parent_id"] == made[0]["id"]  # the older one is as good
        return
    assert started["since"][0]["parent"] is None
    assert started["since"][0]["reason"]
    point = backup.complete(started, backup.copy(started))["restore_point"]
    assert restored(backup.point_directory(point) / "disk-2000.qcow2", tmp_path / "raw") == expected([3])
    # And the one after stands on the new full one.
    assert backup.start()["since"][0]["parent_id"] == point["id"]


def test_a_new_point_sorts_after_all_others_whatever_the_clock_says(backup: Backup) -> None:
    first = backup.backup()
    os.rename(backup.point_directory(first), backup.directory / "21260101T000000Z")
    started = backup.start()
    assert started["restore_point"]["id"].endswith("/21260101T000001Z")


# --- doing it twice, or only looking ---------------------------------------------------------------------------------


def test_completed_twice_changes_nothing_the_second_time(backup: Backup) -> None:
    started = backup.start()
    copied = backup.copy(started)
    first = backup.complete(started, copied)
    before = tree(backup.path)
    again = backup.complete(started, copied)
    assert (first["changed"], again["changed"]) == (True, False)
    assert again["restore_point"] == first["restore_point"]
    assert tree(backup.path) == before


def test_started_again_by_the_same_run_goes_on(backup: Backup) -> None:
    backup.backup()
    first = backup.start(run="run-1")
    again = backup.start(run="run-1")
    assert not again["changed"]
    assert again["restore_point"] == first["restore_point"]
    assert again["since"] == first["since"]


def test_aborted_leaves_nothing_and_nothing_to_abort_is_no_change(backup: Backup) -> None:
    backup.backup()
    before = tree(backup.path)
    started = backup.start()
    backup.copy(started)
    assert backup.abort(started)["changed"]
    assert not backup.abort(started)["changed"]
    assert tree(backup.path) == before


def test_aborted_by_another_run_touches_nothing(backup: Backup) -> None:
    started = backup.start()
    before = tree(backup.path)
    result = backup.module("aborted", id=started["restore_point"]["id"], run="another")
    assert not result["changed"]
    assert tree(backup.path) == before


def test_absent_deletes_newest_first_and_the_last_one_only_by_force(backup: Backup) -> None:
    first, second = backup.backup(), backup.backup()

    refused = backup.module("absent", id=first["id"], fail=True)
    assert refused["dependents"] == [second["id"]]
    assert backup.module("absent", id=second["id"])["changed"]
    assert not backup.module("absent", id=second["id"])["changed"]
    assert "last one" in backup.module("absent", id=first["id"], fail=True)["msg"]
    assert backup.module("absent", id=first["id"], force=True)["changed"]
    assert os.listdir(backup.directory) == []


def test_absent_of_a_damaged_point_and_below_one(backup: Backup) -> None:
    first, second, third = backup.backup(), backup.backup(), backup.backup(mode="full")
    damage_manifest_torn(backup.point_directory(second))
    assert "may be needed by" in backup.module("absent", id=first["id"], fail=True)["msg"]
    assert backup.module("absent", id=second["id"])["changed"]
    assert backup.module("absent", id=first["id"])["changed"]
    assert [one["id"] for one in backup.info()] == [third["id"]]


def test_check_mode_foretells_and_changes_nothing(backup: Backup) -> None:
    def foretold(state: str, **options: Any) -> dict[str, Any]:
        before = tree(backup.path)
        result = backup.module(state, check=True, diff=True, **options)
        assert tree(backup.path) == before
        assert result["changed"]
        assert result["diff"]["before"] != result["diff"]["after"]
        return result

    foretold("started", vm=VM, disks=[disk()])
    backup.backup()
    (backup.directory / "20200101T000000Z.partial").mkdir()
    plan = foretold("started", vm=VM, disks=[disk()], run="run-1")
    started = backup.start(run="run-1")
    assert plan["since"] == started["since"]
    assert plan["swept"] == started["swept"] == ["20200101T000000Z.partial"]
    assert plan.keys() == started.keys()

    copied = backup.copy(started)
    point = started["restore_point"]
    plan = foretold("completed", id=point["id"], run="run-1", vm=VM, disks=copied)
    foretold("aborted", id=point["id"], run="run-1")
    done = backup.complete(started, copied)
    assert plan["restore_point"]["disks"] == done["restore_point"]["disks"]
    assert plan.keys() == done.keys()
    plan = foretold("absent", id=point["id"])
    assert plan.keys() == backup.module("absent", id=point["id"]).keys()


# --- what completed refuses ------------------------------------------------------------------------------------------


def refused(backup: Backup, spoil: Callable[[Path, dict[str, Any]], None]) -> str:
    backup.backup()
    started = backup.start()
    (result,) = backup.copy(started)
    spoil(Path(result["image"]), result)
    message = backup.complete(started, [result], fail=True)["msg"]
    assert len(backup.info()) == 1
    assert backup.abort(started)["changed"]
    return message


def test_completed_refuses_an_image_that_is_missing(backup: Backup) -> None:
    assert "Image missing" in refused(backup, lambda image, result: image.unlink())


def test_completed_refuses_an_image_on_another_parent(backup: Backup) -> None:
    def spoil(image: Path, result: dict[str, Any]) -> None:
        image.unlink()
        make_image(image, None, 7)

    assert "backing file None instead of" in refused(backup, spoil)


def test_completed_refuses_an_absolute_backing_name(backup: Backup) -> None:
    def spoil(image: Path, result: dict[str, Any]) -> None:
        qemu_img("rebase", "-u", "-F", "qcow2", "-b", result["parent"], image)

    assert "backing file" in refused(backup, spoil)


def test_completed_refuses_an_image_of_another_size(backup: Backup) -> None:
    def spoil(image: Path, result: dict[str, Any]) -> None:
        qemu_img("resize", "-q", "-f", "qcow2", image, str(2 * CAPACITY))

    assert "the disk has" in refused(backup, spoil)


def test_completed_refuses_a_broken_qcow2(backup: Backup) -> None:
    def spoil(image: Path, result: dict[str, Any]) -> None:
        with image.open("r+b") as file:
            file.seek(3 * 65536)  # the first L2 table
            file.write(b"\xff" * 4096)

    assert "qemu-img finds" in refused(backup, spoil)


def test_completed_refuses_an_image_that_is_not_the_one_that_was_hashed(backup: Backup) -> None:
    def spoil(image: Path, result: dict[str, Any]) -> None:
        os.truncate(image, image.stat().st_size - 1)

    assert "it was copied with" in refused(backup, spoil)


def test_completed_refuses_an_external_data_file(backup: Backup, tmp_path: Path) -> None:
    def spoil(image: Path, result: dict[str, Any]) -> None:
        image.unlink()
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", image, str(CAPACITY))

    assert "never writes" in refused(backup, spoil)


def test_completed_refuses_a_parent_outside_the_repository(backup: Backup, tmp_path: Path) -> None:
    outside = tmp_path / "disk-2000.qcow2"

    def spoil(image: Path, result: dict[str, Any]) -> None:
        image.unlink()
        make_image(outside, None, 1)
        make_image(image, str(outside), 2)
        result["parent"] = str(outside)

    assert "no image of a complete restore point" in refused(backup, spoil)


def test_completed_refuses_an_image_elsewhere(backup: Backup, tmp_path: Path) -> None:
    def spoil(image: Path, result: dict[str, Any]) -> None:
        result["image"] = str(shutil.copy(image, tmp_path / "disk-2000.qcow2"))

    assert "is not in" in refused(backup, spoil)


def test_completed_refuses_a_parent_of_another_capacity(backup: Backup) -> None:
    def spoil(image: Path, result: dict[str, Any]) -> None:
        image.unlink()
        make_image(image, result["parent"], 2, 2 * CAPACITY)
        result["capacity"] = 2 * CAPACITY

    assert "no image of the same disk" in refused(backup, spoil)


@pytest.mark.parametrize("key", ["key", "capacity", "image", "kind", "backing_uuid"])
def test_completed_says_what_a_result_lacks(backup: Backup, key: str) -> None:
    assert key in refused(backup, lambda image, result: result.pop(key))


# --- the repository itself -------------------------------------------------------------------------------------------


def test_an_absent_repository_is_not_made(backup: Backup) -> None:
    backup.path.rmdir()
    message = backup.start(fail=True)["msg"]
    assert "does not exist" in message
    assert "Mount" in message
    assert not backup.path.exists()


def test_a_directory_with_other_things_is_refused(backup: Backup) -> None:
    (backup.path / "holiday.jpg").write_bytes(b"")
    assert "holiday.jpg" in backup.start(fail=True)["msg"]
    assert os.listdir(backup.path) == ["holiday.jpg"]


def test_an_empty_directory_is_refused_without_create(backup: Backup) -> None:
    (backup.path / "lost+found").mkdir()
    assert "create=true" in backup.start(create=False, fail=True)["msg"]
    assert backup.start()["changed"]


def test_a_newer_repository_is_refused_by_all(backup: Backup) -> None:
    backup.path.joinpath("repository.json").write_bytes(documents.render("holdfast.repository", 2, {}))
    for result in (
        backup.start(fail=True),
        backup.module("absent", id=f"{VM['instance_uuid']}/20261120T021500Z", fail=True),
    ):
        assert "newer release" in result["msg"]


def test_a_torn_repository_json_is_refused(backup: Backup) -> None:
    backup.backup()
    os.truncate(backup.path / "repository.json", 20)
    assert backup.start(fail=True)["error_type"] == "Damaged"


def test_a_vm_directory_that_is_a_link_is_refused(backup: Backup, tmp_path: Path) -> None:
    backup.backup()
    backup.directory.rename(tmp_path / "outside")
    backup.directory.symlink_to(tmp_path / "outside")
    before = tree(tmp_path / "outside")
    assert "not a directory" in backup.start(fail=True)["msg"]
    assert tree(tmp_path / "outside") == before


def test_min_free_refuses_to_start_and_leaves_no_lock(backup: Backup) -> None:
    result = backup.start(min_free="900000T", fail=True)
    assert result["error_type"] == "NoSpace"
    assert os.listdir(backup.directory) == []


def test_a_full_file_system_fails_with_the_reason_and_can_be_tidied_up(
    run_module: Callable[..., dict[str, Any]], small: Path
) -> None:
    backup = Backup(run_module, small)
    backup.backup()
    started = backup.start()
    copied = backup.copy(started)
    with Full(small / "filler"):
        result = backup.complete(started, copied, fail=True)
        assert result["error_type"] == "NoSpace"
        assert "Free space" in result["msg"]
        assert len(backup.info(verify="content")) == 1
        assert backup.abort(started)["changed"]
    assert backup.backup()["disks"][0]["kind"] == "incremental"


class Full:
    """Fills a file system to the last byte while it is entered."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        with self._path.open("wb", buffering=0) as file:
            size = 65536
            while size:
                try:
                    file.write(b"x" * size)
                except OSError:
                    size //= 2

    def __exit__(self, *exc: object) -> None:
        self._path.unlink()


def test_a_read_only_repository_is_named_as_such(run_module: Callable[..., dict[str, Any]], small: Path) -> None:
    backup = Backup(run_module, small)
    backup.backup()
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    result = backup.start(fail=True)
    assert "Read-only file system" in result["msg"]
    assert "read-write" in result["next_step"]
    assert backup.info(verify="content")[0]["verified"]["ok"]


@pytest.mark.parametrize("bad", ["no-slash", "../../etc/20261120T021500Z", f"{VM['instance_uuid']}/../x", ""])
def test_an_id_that_is_none_is_refused(backup: Backup, bad: str) -> None:
    assert backup.module("absent", id=bad, fail=True)["error_type"] == "InvalidInput"


@pytest.mark.parametrize("bad", ["../x", "a/b", "", "x" * 65])
def test_a_run_that_is_no_file_name_is_refused(backup: Backup, bad: str) -> None:
    assert backup.start(run=bad, fail=True)["error_type"] == "InvalidInput"


# --- first class disks -----------------------------------------------------------------------------------------------


@pytest.fixture
def fcd(run_module: Callable[..., dict[str, Any]], backup: Backup) -> Backup:
    """A backup of a first class disk into the same repository."""
    return Backup(run_module, backup.path, fcd=FCD)


def test_a_first_class_disk_has_chains_of_its_own(backup: Backup, fcd: Backup, tmp_path: Path) -> None:
    backup.backup()
    started = fcd.start()
    Path(started["restore_point"]["path"], "fcd.json").write_text("{}")
    first = fcd.complete(started, fcd.copy(started))
    second = fcd.backup()

    assert (first["vm"], first["fcd"]) == (None, FCD)
    assert second["id"].startswith(FCD["id"] + "/")
    assert second["disks"][0]["parent"]["id"] == first["restore_point"]["id"]
    assert second["disks"][0]["fcd_id"] == FCD["id"]
    written = json.loads((fcd.point_directory(first["restore_point"]) / "point.json").read_text())
    assert (written["vm"], written["fcd"]) == (None, FCD)
    assert [file["name"] for file in written["files"]] == ["fcd.json"]
    assert restored(fcd.point_directory(second) / "disk-0.qcow2", tmp_path / "raw") == expected([1, 2])


def test_a_restore_point_is_of_one_object(backup: Backup, fcd: Backup) -> None:
    both = backup.module("started", vm=VM, fcd=FCD, disks=[disk()], fail=True)
    assert "mutually exclusive" in both["msg"]
    neither = backup.module("started", disks=[disk()], fail=True)
    assert "vm, fcd" in neither["msg"]
    wrong = backup.module("started", fcd={"id": "pvc-1"}, disks=[disk()], fail=True)
    assert wrong["msg"].startswith("'pvc-1' is not the ID of a first class disk.")
    started = fcd.start()["restore_point"]
    other = fcd.module("completed", id=started["id"], run=started["run"], vm=VM, disks=[], fail=True)
    assert "is no restore point of web01" in other["msg"]


def test_what_is_given_up_or_deleted_is_called_by_its_kind(backup: Backup, fcd: Backup) -> None:
    unknown = {"id": FCD["id"], "name": None, "datastore": None}
    first = fcd.start()
    assert fcd.abort(first)["vm"] == {"name": None, "moid": None, "instance_uuid": FCD["id"]}  # nothing tells
    assert fcd.abort(fcd.start(), fcd=FCD)["fcd"] == unknown
    made = fcd.backup()
    assert fcd.abort(fcd.start())["fcd"] == unknown
    gone = fcd.module("absent", id=made["id"], force=True)
    assert (gone["changed"], gone["vm"], gone["fcd"]) == (True, None, FCD)
