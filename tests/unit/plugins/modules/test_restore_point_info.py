# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""restore_point_info through its main(): choosing, verifying, and reading what an enemy may have written."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    documents,
    files,
    manifest,
    verification,
)
from ansible_collections.holdfast.backup.tests.unit.repositories import FCD, VM, Backup, disk, make_image, qemu_img

OTHER = {"name": "db01", "moid": "vm-43", "instance_uuid": "5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b12"}


@pytest.fixture
def backup(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> Backup:
    """A backup into a new, empty directory."""
    path = tmp_path / "repository"
    path.mkdir()
    return Backup(run_module, path)


@pytest.fixture
def other(run_module: Callable[..., dict[str, Any]], backup: Backup) -> Backup:
    """Another VM in the same repository."""
    return Backup(run_module, backup.path, OTHER)


def rewrite(point: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest as someone would who knows the format."""
    body = json.loads((point / "point.json").read_text())
    for name in ("format", "version", "sha256"):
        del body[name]
    change(body)
    (point / "point.json").write_bytes(documents.render(manifest.FORMAT, 1, body))


def problems(backup: Backup, level: str, **options: Any) -> list[list[str]]:
    """For each point listed, what is wrong."""
    found = []
    for one in backup.info(verify=level, **options):
        assert one["verified"]["level"] == level
        assert one["verified"]["ok"] == (not one["verified"]["problems"])
        found.append([problem["what"] for problem in one["verified"]["problems"]])
    return found


# --- choosing --------------------------------------------------------------------------------------------------------


def test_lists_all_oldest_first_with_chain_and_size(backup: Backup) -> None:
    made = [backup.backup(), backup.backup(), backup.backup([disk(), disk(2001)])]
    (backup.directory / "20200101T000000Z.partial").mkdir()
    backup.start()

    listed = backup.info()
    ids = [one["id"] for one in made]
    assert [one["id"] for one in listed] == ids
    assert [one["chain"] for one in listed] == [ids[:1], ids[:2], ids]
    assert [one["chain_length"] for one in listed] == [1, 2, 3]
    newest = listed[-1]
    directory = backup.point_directory(made[-1])
    assert newest["path"] == str(directory)
    assert [one["path"] for one in newest["disks"]] == [str(directory / f"disk-{key}.qcow2") for key in (2000, 2001)]
    assert newest["size"] == sum(path.stat().st_size for path in directory.glob("disk-*"))
    assert not newest["broken"]
    assert newest["age_seconds"] < 60


def test_chooses_a_vm_by_name_moid_uuid_or_vm(
    run_module: Callable[..., dict[str, Any]], backup: Backup, other: Backup
) -> None:
    mine, its = backup.backup(), other.backup()
    assert {one["id"] for one in backup.info()} == {mine["id"], its["id"]}
    for selection in ({"name": "db01"}, {"moid": "vm-43"}, {"instance_uuid": OTHER["instance_uuid"]}, {"vm": OTHER}):
        result = run_module("restore_point_info", {"repository": str(backup.path), **selection})
        assert [one["id"] for one in result["restore_points"]] == [its["id"]]
        assert result["vm"] == OTHER
        assert not result["changed"]
    for newest in (False, True):  # as a role passes it whatever else is chosen
        assert [one["id"] for one in backup.info(id=mine["id"], newest=newest)] == [mine["id"]]


def test_what_is_not_there_is_said(run_module: Callable[..., dict[str, Any]], backup: Backup) -> None:
    backup.backup()
    for selection in (
        {"name": "nobody"},
        {"instance_uuid": OTHER["instance_uuid"]},
        {"id": f"{VM['instance_uuid']}/20010101T000000Z"},
        {"as_of": "2001-01-01T00:00:00Z"},
    ):
        result = run_module("restore_point_info", {"repository": str(backup.path), **selection}, fail=True)
        assert result["error_type"] == "NotFound"


def test_two_vms_of_one_name_are_listed_as_candidates(
    run_module: Callable[..., dict[str, Any]], backup: Backup
) -> None:
    twin = Backup(run_module, backup.path, {**OTHER, "name": VM["name"]})
    backup.backup()
    twin.backup()
    result = run_module("restore_point_info", {"repository": str(backup.path), "name": VM["name"]}, fail=True)
    assert {one["instance_uuid"] for one in result["candidates"]} == {VM["instance_uuid"], OTHER["instance_uuid"]}


def test_a_renamed_vm_is_found_by_both_names(run_module: Callable[..., dict[str, Any]], backup: Backup) -> None:
    backup.backup()
    Backup(run_module, backup.path, {**VM, "name": "web02"}).backup()
    assert len(backup.info(name="web02")) == len(backup.info(name="web01")) == 2


def test_as_of_goes_by_the_time_of_the_snapshot(backup: Backup) -> None:
    made = []
    for hour in (1, 2, 3):
        started = backup.start()
        done = backup.complete(started, backup.copy(started), snapshot_time=f"2026-11-20T0{hour}:00:00Z")
        made.append(done["restore_point"]["id"])
    for moment, wanted in (("2026-11-20T02:30:00Z", 1), ("2026-11-20T03:00:00+01:00", 1), ("2027-01-01T00:00:00Z", 2)):
        assert [one["id"] for one in backup.info(as_of=moment)] == [made[wanted]]


def test_newest_passes_over_a_damaged_one_and_says_so(
    run_module: Callable[..., dict[str, Any]], backup: Backup
) -> None:
    made = [backup.backup(), backup.backup()]
    os.truncate(backup.point_directory(made[1]) / "point.json", 10)
    result = run_module("restore_point_info", {"repository": str(backup.path), "newest": True})
    assert [one["id"] for one in result["restore_points"]] == [made[0]["id"]]
    assert made[1]["id"] in str(result["warnings"])


# --- first class disks -----------------------------------------------------------------------------------------------


def holding(fcd_id: str = FCD["id"]) -> list[dict[str, Any]]:
    """The disks of a VM that a first class disk is attached to."""
    return [disk(), disk(2001, fcd_id=fcd_id)]


@pytest.fixture
def fcd(run_module: Callable[..., dict[str, Any]], backup: Backup) -> Backup:
    """A first class disk in the same repository."""
    return Backup(run_module, backup.path, fcd=FCD)


def test_a_first_class_disk_is_found_wherever_it_is_held(
    run_module: Callable[..., dict[str, Any]], backup: Backup, other: Backup, fcd: Backup
) -> None:
    detached = fcd.backup()
    before, held, after = backup.backup(), backup.backup(holding()), backup.backup()
    other.backup()
    for selection in ({"fcd_id": FCD["id"].upper()}, {"fcd_name": "pvc-1"}, {"fcd": FCD}):
        result = run_module("restore_point_info", {"repository": str(backup.path), **selection})
        assert {one["id"] for one in result["restore_points"]} == {detached["id"], held["id"]}
        assert (result["vm"], result["fcd"]) == (VM, FCD)
    newest = {one["id"]: one for one in backup.info(fcd_id=FCD["id"], newest=True)}
    assert set(newest) == {detached["id"], held["id"]}
    assert [one["fcd_id"] for one in newest[held["id"]]["disks"]] == [None, FCD["id"]]
    assert newest[held["id"]]["chain"] == [before["id"], held["id"]]
    assert [one["id"] for one in backup.info(name="web01", newest=True)] == [after["id"]]


def test_a_first_class_disk_that_was_only_ever_attached_is_found(backup: Backup, other: Backup) -> None:
    held = backup.backup(holding())
    other.backup(holding("1ec1b4a8-2a5f-4dcd-a3f9-3d1e0c7f5b12"))
    assert [one["id"] for one in backup.info(fcd_id=FCD["id"])] == [held["id"]]


def test_names_of_vms_and_first_class_disks_are_apart(
    run_module: Callable[..., dict[str, Any]], backup: Backup
) -> None:
    namesake = Backup(run_module, backup.path, fcd={**FCD, "name": VM["name"]})
    of_vm, of_fcd = backup.backup(), namesake.backup()
    assert [one["id"] for one in backup.info(name=VM["name"])] == [of_vm["id"]]
    assert [one["id"] for one in backup.info(fcd_name=VM["name"])] == [of_fcd["id"]]


def test_a_first_class_disk_that_is_not_there_is_said(
    run_module: Callable[..., dict[str, Any]], backup: Backup, fcd: Backup
) -> None:
    fcd.backup()
    Backup(run_module, backup.path, fcd={**FCD, "id": OTHER["instance_uuid"]}).backup()
    for selection, error in (
        ({"fcd_name": "nobody"}, "NotFound"),
        ({"fcd_id": VM["instance_uuid"]}, "NotFound"),
        ({"fcd_name": "pvc-1"}, "Ambiguous"),
        ({"fcd": {"name": "pvc-1"}}, "InvalidInput"),
    ):
        result = run_module("restore_point_info", {"repository": str(backup.path), **selection}, fail=True)
        assert result["error_type"] == error
    assert {one["id"] for one in result.get("candidates", [FCD])} >= {FCD["id"]}


def test_a_damaged_point_is_taken_for_one_of_its_neighbours_kind(backup: Backup, fcd: Backup) -> None:
    held, torn = backup.backup(holding()), backup.backup(holding())
    made = [fcd.backup(), fcd.backup()]
    for one, point in ((fcd, made[1]), (backup, torn)):
        os.truncate(one.point_directory(point) / "point.json", 10)
    found = {one["id"]: one for one in backup.info(fcd_id=FCD["id"])}
    assert set(found) == {held["id"], torn["id"], made[0]["id"], made[1]["id"]}
    assert found[made[1]["id"]]["broken"]
    assert found[made[1]["id"]]["fcd"] == {"id": FCD["id"], "name": None, "datastore": None}
    assert found[torn["id"]]["vm"]["instance_uuid"] == VM["instance_uuid"]
    assert {one["id"] for one in backup.info(fcd_id=FCD["id"], newest=True)} == {held["id"], made[0]["id"]}


# --- verifying -------------------------------------------------------------------------------------------------------


def test_what_was_written_is_found_sound(backup: Backup) -> None:
    started = backup.start()
    Path(started["restore_point"]["path"], "config.json").write_text("{}")
    backup.complete(started, backup.copy(started))
    backup.backup()
    for level in ("none", "structure", "content"):
        assert problems(backup, level) == [[], []]


def test_a_missing_image_breaks_every_point_above_it_and_no_other(backup: Backup) -> None:
    made = [backup.backup(), backup.backup(), backup.backup(mode="full")]
    (backup.point_directory(made[0]) / "disk-2000.qcow2").unlink()
    first, second, third = problems(backup, "structure")
    assert "Image missing" in first[0]
    assert second == first
    assert third == []
    assert problems(backup, "none") == [[], [], []]


def test_a_missing_point_breaks_the_ones_above(backup: Backup) -> None:
    made = [backup.backup(), backup.backup()]
    backup.point_directory(made[0]).rename(backup.directory / "gone")
    (one,) = backup.info()
    assert one["broken"]
    assert "missing or unreadable" in one["verified"]["problems"][0]["what"]


def test_a_damaged_manifest_is_listed_as_broken(backup: Backup) -> None:
    made = [backup.backup(), backup.backup()]
    os.truncate(backup.point_directory(made[1]) / "point.json", 200)
    good, bad = backup.info(verify="content")
    assert good["verified"]["ok"]
    assert (bad["id"], bad["broken"], bad["disks"], bad["size"]) == (made[1]["id"], True, [], None)
    assert "not readable as JSON" in bad["verified"]["problems"][0]["what"]
    assert good.keys() == bad.keys()


def test_a_newer_point_is_listed_as_such(backup: Backup) -> None:
    point = backup.backup()
    path = backup.point_directory(point) / "point.json"
    path.write_bytes(documents.render(manifest.FORMAT, 2, {}))
    assert "version 2" in problems(backup, "none")[0][0]


def test_every_flipped_bit_of_a_manifest_is_noticed(backup: Backup) -> None:
    point = backup.backup()
    data = (backup.point_directory(point) / "point.json").read_bytes()
    chosen = manifest.PointId.parse(point["id"])
    assert str(chosen) == manifest.parse(data, chosen).id
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(documents.RepositoryError):
                manifest.parse(bytes(flipped), chosen)


def test_a_flipped_bit_of_an_image_or_file_is_found_by_content(backup: Backup) -> None:
    started = backup.start()
    Path(started["restore_point"]["path"], "config.json").write_text('{"a": 1}')
    point = backup.complete(started, backup.copy(started))["restore_point"]
    directory, chance = backup.point_directory(point), random.Random(1)
    for name in ("disk-2000.qcow2", "config.json"):
        data = (directory / name).read_bytes()
        for _turn in range(10):
            flipped = bytearray(data)
            flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            (directory / name).write_bytes(flipped)
            assert problems(backup, "content")[0]
        (directory / name).write_bytes(data)
    assert problems(backup, "content") == [[]]


def test_broken_metadata_is_found_by_structure(backup: Backup) -> None:
    point = backup.backup()
    with (backup.point_directory(point) / "disk-2000.qcow2").open("r+b") as file:
        file.seek(3 * 65536)
        file.write(b"\xff" * 64)
    assert "qemu-img finds" in problems(backup, "structure")[0][0]


def test_a_shared_image_is_read_once(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    for _turn in range(4):
        backup.backup()
    read: list[str] = []
    digest = files.digest
    monkeypatch.setattr(files, "digest", lambda path, check: read.append(path) or digest(path, check))
    assert problems(backup, "content") == [[]] * 4
    assert len(read) == len(set(read)) == 4


def test_verifying_without_qemu_img_says_what_to_install(
    run_module: Callable[..., dict[str, Any]], backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = backup.start()
    backup.complete(started, backup.copy(started))
    monkeypatch.setenv("PATH", "/nonexistent")
    result = run_module("restore_point_info", {"repository": str(backup.path), "verify": "structure"}, fail=True)
    assert result["error_type"] == "MissingRequirement"
    assert "qemu-utils" in result["next_step"]
    assert len(backup.info()) == 1


# --- a hostile repository --------------------------------------------------------------------------------------------


def first_disk(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["disks"][0].update(changes)


def parent(point_id: str, image: str) -> Callable[[dict[str, Any]], None]:
    return first_disk(kind="incremental", parent={"id": point_id, "image": image})


UUID = VM["instance_uuid"]
HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "absolute image": first_disk(image="/etc/passwd"),
    "image outside": first_disk(image="../../secret.qcow2"),
    "image of another name": first_disk(image="point.json"),
    "file outside": lambda body: body.update(files=[{"name": "../x", "size": 1, "sha256": "0" * 64}]),
    "manifest as file": lambda body: body.update(files=[{"name": "point.json", "size": 1, "sha256": "0" * 64}]),
    "parent outside": parent(f"{UUID}/20200101T000000Z", "../../../etc/disk-1.qcow2"),
    "parent absolute": parent(f"{UUID}/20200101T000000Z", "/20200101T000000Z/disk-1.qcow2"),
    "parent of another VM": parent(f"{OTHER['instance_uuid']}/20200101T000000Z", "../20200101T000000Z/disk-1.qcow2"),
    "parent in the future": parent(f"{UUID}/29990101T000000Z", "../29990101T000000Z/disk-2000.qcow2"),
    "parent at no time": parent(f"{UUID}/20209901T000000Z", "../20209901T000000Z/disk-2000.qcow2"),
    "parent image elsewhere": parent(f"{UUID}/20200101T000000Z", "../20190101T000000Z/disk-2000.qcow2"),
    "incremental without parent": first_disk(kind="incremental"),
    "huge size": first_disk(size=1 << 60),
    "huge capacity": first_disk(capacity=1 << 60),
    "negative size": first_disk(size=-1),
    "no capacity": first_disk(capacity=0),
    "size as text": first_disk(size="1"),
    "size as truth": first_disk(size=True),
    "size with fraction": first_disk(size=1.5),
    "hash as list": first_disk(sha256=[]),
    "hash too short": first_disk(sha256="ab"),
    "null character": first_disk(label="a\0b"),
    "endless label": first_disk(label="x" * 5000),
    "another id": lambda body: body.update(id=f"{UUID}/20200101T000000Z"),
    "another VM": lambda body: body["vm"].update(instance_uuid=OTHER["instance_uuid"]),
    "no VM": lambda body: body.pop("vm"),
    "disks as object": lambda body: body.update(disks={}),
    "disk as text": lambda body: body.update(disks=["x"]),
    "one image twice": lambda body: body["disks"].append(body["disks"][0]),
    "many disks": lambda body: body.update(disks=body["disks"] * 2000),
    "run as path": lambda body: body.update(run="../x"),
    "no time": lambda body: body.update(started="2026-99-99T00:00:00Z"),
    "time that is far": lambda body: body.update(snapshot_time="0001-01-01T00:00:00+23:59"),
    "unknown consistency": lambda body: body.update(consistency="perfect"),
    "warnings as numbers": lambda body: body.update(warnings=[1]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_manifest_is_refused_and_hides_nothing(
    backup: Backup, change: Callable[[dict[str, Any]], None]
) -> None:
    backup.backup()
    evil = backup.backup(mode="full")
    rewrite(backup.point_directory(evil), change)
    good, bad = backup.info(verify="content")
    assert good["verified"]["ok"]
    assert bad["broken"]
    assert bad["disks"] == []  # nothing of it is believed
    assert bad["verified"]["problems"][0]["next_step"]


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "9" * 1_000_000, '{"a": NaN}', '{"a": 1, "a": 2}', "\xff", "null", "[]", "{}", "", " " * (5 << 20)],
    ids=range(10),
)
def test_anything_else_in_place_of_a_manifest_is_refused_quickly(backup: Backup, text: str) -> None:
    point = backup.backup()
    (backup.point_directory(point) / "point.json").write_text(text, encoding="latin-1")
    begun = time.monotonic()
    assert problems(backup, "content")[0]
    assert time.monotonic() - begun < 20


def test_unknown_keys_are_tolerated(backup: Backup) -> None:
    point = backup.backup()
    rewrite(
        backup.point_directory(point), lambda body: body.update(colour="red") or body["disks"][0].update(shape="round")
    )
    assert problems(backup, "content") == [[]]


def test_a_fifo_in_place_of_a_manifest_or_image_blocks_nobody(backup: Backup) -> None:
    made = [backup.backup(), backup.backup()]
    for point, name in zip(made, ("disk-2000.qcow2", "point.json")):
        (backup.point_directory(point) / name).unlink()
        os.mkfifo(backup.point_directory(point) / name)
    assert all(problems(backup, "content"))


def test_an_image_that_points_elsewhere_is_never_opened_by_qemu(
    backup: Backup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(path: str, check_image: object) -> None:
        raise AssertionError(f"{path} was opened")

    secret = tmp_path / "disk-1.qcow2"
    make_image(secret, None, 9)
    point = backup.backup()
    image = backup.point_directory(point) / "disk-2000.qcow2"
    size = image.stat().st_size
    for arguments in (["-F", "qcow2", "-b", str(secret)], ["-o", f"data_file={tmp_path / 'data'}"]):
        image.unlink()
        qemu_img("create", "-q", "-f", "qcow2", *arguments, image, str(1 << 20))
        os.truncate(image, size)
        monkeypatch.setattr(verification.images, "check_structure", opened)
        (what,) = problems(backup, "structure")[0]
        assert "never writes" in what or "backing file" in what
        monkeypatch.undo()


# --- size ------------------------------------------------------------------------------------------------------------


def test_a_thousand_points_are_listed_fast(backup: Backup) -> None:
    first = backup.backup()
    template = manifest.parse(
        (backup.point_directory(first) / "point.json").read_bytes(), manifest.PointId.parse(first["id"])
    )
    previous = template
    for number in range(999):
        point_id = manifest.PointId(UUID, f"21000101T{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}Z")
        directory = backup.directory / point_id.time
        directory.mkdir()
        chained = number % 20 != 0
        parent_time = previous.id.partition("/")[2]
        disks = [
            {
                **template.as_dict()["disks"][0],
                "kind": "incremental" if chained else "full",
                "parent": {"id": previous.id, "image": f"../{parent_time}/disk-2000.qcow2"} if chained else None,
            }
        ]
        body = {**template.as_dict(), "id": str(point_id), "disks": disks}
        data = documents.render(manifest.FORMAT, 1, body)
        (directory / "point.json").write_bytes(data)
        previous = manifest.parse(data, point_id)
    begun = time.process_time()
    listed = backup.info()
    took = time.process_time() - begun
    assert len(listed) == 1000
    assert not any(one["broken"] for one in listed)
    assert took < 5
    print(f"1000 restore points listed in {took:.2f} s")
