# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""repository_retention through its main(), over real images: what goes, what is merged, that nothing else is lost."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import merging
from ansible_collections.holdfast.backup.plugins.module_utils._repository import locks, switching
from ansible_collections.holdfast.backup.tests.unit import documents
from ansible_collections.holdfast.backup.tests.unit.repositories import FCD, VM, Backup, disk, fcd_disk, qemu_img

CLUSTER = 65536
OTHER = {"name": "db01", "moid": "vm-43", "instance_uuid": "5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b12"}
START = datetime(2026, 1, 5, 2, 15, tzinfo=timezone.utc)


class Machine(Backup):
    """A VM (or first class disk) whose disks are lists of a byte per cluster; a backup a day."""

    def __init__(self, *arguments: Any, **owner: Any) -> None:
        super().__init__(*arguments, **owner)
        self.chance = random.Random(1)
        first = self.disk
        self.disks: dict[str, dict[str, Any]] = {first["backing_uuid"]: first}
        self.contents: dict[str, list[int]] = {first["backing_uuid"]: [0] * 16}
        self.changed: dict[str, set[int]] = {first["backing_uuid"]: set()}
        self.compression = "zstd"
        self.day = 0
        self.expected: dict[str, dict[str, bytes]] = {}

    def add(self, key: int, clusters: int = 16) -> str:
        """A further disk."""
        record = disk(key, capacity=clusters * CLUSTER)
        self.disks[record["backing_uuid"]] = record
        self.contents[record["backing_uuid"]] = [0] * clusters
        self.changed[record["backing_uuid"]] = set(range(clusters))
        return record["backing_uuid"]

    def take_away(self, uuid: str) -> None:
        """A disk goes."""
        for place in (self.disks, self.contents, self.changed):
            place.pop(uuid)

    def grow(self, uuid: str, clusters: int) -> None:
        """A disk becomes larger."""
        self.contents[uuid] += [0] * clusters
        self.disks[uuid] = {**self.disks[uuid], "capacity": len(self.contents[uuid]) * CLUSTER}

    def write(self, count: int = 3) -> None:
        """Something is written to each disk, zeros too."""
        for uuid, content in self.contents.items():
            for number in self.chance.sample(range(len(content)), min(count, len(content))):
                content[number] = self.chance.choice([0, *range(1, 256)])
                self.changed[uuid].add(number)

    def daily(self, count: int = 1) -> list[dict[str, Any]]:
        """So many days with writes and a backup at the end of each."""
        return [self._one_day() for _number in range(count)]

    def _one_day(self) -> dict[str, Any]:
        self.write()
        started = self.start(list(self.disks.values()))
        results = [self._copy(Path(started["restore_point"]["path"]), since) for since in started["since"]]
        moment = (START + timedelta(days=self.day)).isoformat()
        self.day += 1
        found = self.complete(started, results, snapshot_time=moment)["restore_point"]
        self.expected[found["id"]] = {
            f"disk-{self.disks[uuid]['key']}.qcow2": _raw(content) for uuid, content in self.contents.items()
        }
        return found

    def _copy(self, partial: Path, since: dict[str, Any]) -> dict[str, Any]:
        uuid = since["backing_uuid"]
        content, path = self.contents[uuid], partial / f"disk-{since['key']}.qcow2"
        grown = since["capacity"] != len(content) * CLUSTER
        parent = None if grown else since["parent"]
        numbers = sorted(self.changed[uuid]) if parent else [each for each, byte in enumerate(content) if byte]
        self.changed[uuid] = set()
        backing = ["-F", "qcow2", "-b", os.path.relpath(parent, partial)] if parent else []
        method = "zlib" if self.compression == "none" else self.compression
        size = len(content) * CLUSTER
        qemu_img("create", "-q", "-f", "qcow2", *backing, "-o", f"compression_type={method}", path, str(size))
        packed = "" if self.compression == "none" else "-c"
        commands = []
        for number in numbers:
            how = f"-P {content[number]} {packed}" if content[number] else "-z"
            commands += ["-c", f"write {how} {number * CLUSTER} {CLUSTER}"]
        if commands:
            subprocess.run(["qemu-io", "-f", "qcow2", *commands, path], check=True, capture_output=True)
        return {
            **{name: since[name] for name in ("key", "label", "backing_uuid")},
            "parent": parent,
            "reason": "capacity changed" if grown else since["reason"],
            "image": str(path),
            "capacity": size,
            "fcd_id": self.disks[uuid].get("fcd_id"),
            "change_id": f"52 aa/{self.day}",
            "kind": "incremental" if parent else "full",
            "transport": "nbdssl",
            "bytes_read": size,
            "bytes_stored": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }

    def retention(self, *, check: bool = False, fail: bool = False, **options: Any) -> dict[str, Any]:
        """One call of repository_retention."""
        return self.run_module(
            "repository_retention", {"repository": str(self.path), **options}, check=check, fail=fail, diff=True
        )

    def check(self, to: Path, but: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
        """Every listed point restores bit for bit by plain qemu-img, and is what its manifest says; their IDs."""
        own = [one for one in self.info(verify="content") if one["path"].startswith(str(self.directory))]
        for one in own:
            if one["id"] in but:
                continue
            assert one["verified"]["ok"], one["verified"]["problems"]
            images = {each["image"]: Path(each["path"]) for each in one["disks"]}
            assert images.keys() == self.expected[one["id"]].keys()
            for image, path in images.items():
                qemu_img("convert", "-f", "qcow2", "-O", "raw", path, to)
                assert to.read_bytes() == self.expected[one["id"]][image], f"{one['id']}/{image}"
                qemu_img("check", "-q", "-f", "qcow2", path)
        assert not list(self.directory.glob(".lock*/*"))
        assert not [path for path in self.directory.iterdir() if path.suffix in (".merging", ".deleted", ".partial")]
        return [one["id"] for one in own]


def _raw(content: list[int]) -> bytes:
    return b"".join(bytes([byte]) * CLUSTER for byte in content)


@pytest.fixture
def machine(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> Machine:
    """A VM with a new, empty repository."""
    path = tmp_path / "repository"
    path.mkdir()
    return Machine(run_module, path)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Where to restore to."""
    return tmp_path / "disk.raw"


def files(directory: Path) -> dict[str, bytes]:
    """All that is in a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def warnings(result: dict[str, Any]) -> str:
    """What a result warns of."""
    return json.dumps(result.get("warnings", []))


def planned(result: dict[str, Any]) -> Any:
    """What a run and its plan must agree in."""
    measured = ("way", "size", "bytes_read", "bytes_written")
    objects = [
        {
            **{key: value for key, value in one.items() if key != "cost"},
            "merges": [{key: value for key, value in each.items() if key not in measured} for each in one["merges"]],
            "synthetic": [
                {key: value for key, value in each.items() if key not in measured} for each in one["synthetic"]
            ],
        }
        for one in result["objects"]
    ]
    return objects, result["removed"], result["diff"], result["changed"]


def act(machine: Machine, **options: Any) -> dict[str, Any]:
    """Plan, see that nothing has changed, act, compare, and see that there is nothing left to do."""
    before = files(machine.path)
    plan = machine.retention(check=True, **options)
    assert files(machine.path) == before
    result = machine.retention(**options)
    assert planned(plan) == planned(result)
    assert plan.keys() == result.keys()
    for one in result["objects"]:
        some_tables = 8 * CLUSTER * len(one["merges"] + one["synthetic"])  # in images as small as these they count
        assert one["cost"]["bytes_read"] <= one["planned"]["bytes_read"] + some_tables
        assert one["cost"]["bytes_written"] <= one["planned"]["bytes_written"] + some_tables
        assert one["cost"]["bytes_freed"] == one["planned"]["bytes_freed"]
    again = machine.retention(**options)
    assert not again["changed"]
    assert again["bytes_read"] == again["bytes_written"] == again["bytes_freed"] == 0
    return result


@pytest.mark.parametrize("compression", ["zstd", "zlib", "none"])
def test_parents_go_and_their_children_stay(machine: Machine, raw: Path, compression: str) -> None:
    machine.compression = compression
    machine.add(2001, clusters=5)
    made = [one["id"] for one in machine.daily(7)]
    result = act(machine, keep_last=2, keep_weekly=1)  # the days are Monday to Sunday
    assert machine.check(raw) == made[-2:]
    assert result["objects"][0]["removed"] == made[4::-1]
    assert [one["from"] for one in result["objects"][0]["merges"]] == [made[:6], made[:6]]
    assert result["removed"] == 5
    stays = {made[5]: "last", made[6]: "last, weekly 2026-W02"}
    goes = dict.fromkeys(made[:5], "no rule keeps it")
    assert result["diff"] == {"before": {VM["instance_uuid"]: {**goes, **stays}}, "after": {VM["instance_uuid"]: stays}}
    # What was merged is as good a parent as any.
    assert {one["kind"] for one in machine.daily()[0]["disks"]} == {"incremental"}
    machine.check(raw)


def test_single_ones_and_several_in_a_row_go(machine: Machine, raw: Path) -> None:
    made = [one["id"] for one in machine.daily(8)]
    for number in (0, 3, 4):  # the full one, one with a child that stays, and one alone
        machine.module("pinned", id=made[number], reason="because")
    result = act(machine, keep_last=1)
    assert machine.check(raw) == [made[number] for number in (0, 3, 4, 7)]
    points = result["objects"][0]["restore_points"]
    assert [one["reasons"] for one in points if one["keep"]] == [["pinned"]] * 3 + [["last"]]
    assert {tuple(one["reasons"]) for one in points if not one["keep"]} == {("no rule keeps it",)}
    merges = result["objects"][0]["merges"]
    assert [(one["id"], one["parent"]) for one in merges] == [(made[3], made[0]), (made[7], made[4])]


def test_full_one_goes_and_copy_of_it_is_what_its_child_becomes(machine: Machine, raw: Path) -> None:
    machine.compression = "none"
    uuid = machine.disk["backing_uuid"]
    machine.grow(uuid, 240)
    machine.contents[uuid] = [1 + number % 250 for number in range(256)]  # so large that a copy is the cheaper way
    machine.daily(4)
    result = act(machine, keep_last=2)
    [merge] = result["objects"][0]["merges"]
    assert merge["way"] in ("copy", "reflink")
    assert merge["parent"] is None
    machine.check(raw)


def test_disks_that_come_go_and_grow(machine: Machine, raw: Path) -> None:
    first = machine.disk["backing_uuid"]
    machine.daily(2)
    second = machine.add(2001, clusters=7)
    machine.daily(2)
    machine.grow(first, 9)
    machine.daily(2)
    machine.take_away(second)
    machine.daily(1)
    machine.add(2002, clusters=1)
    machine.compression = "none"
    machine.daily(2)
    for keep in (6, 4, 2, 1):
        act(machine, keep_last=keep)
        assert len(machine.check(raw)) == keep


@pytest.mark.parametrize("seed", range(int(os.environ.get("HOLDFAST_RETENTION_LIVES", "4"))))
def test_random_lives(run_module: Callable[..., dict[str, Any]], machine: Machine, raw: Path, seed: int) -> None:
    chance = machine.chance = random.Random(seed)
    for _round in range(5):
        for _day in range(chance.randrange(1, 4)):
            what = chance.random()
            if what < 0.3 and len(machine.disks) < 3:
                machine.add(2000 + chance.randrange(1, 1000), clusters=chance.randrange(1, 20))
            elif what < 0.45 and len(machine.disks) > 1:
                machine.take_away(chance.choice(list(machine.disks)))
            elif what < 0.6:
                machine.grow(chance.choice(list(machine.disks)), chance.randrange(1, 4))
            machine.compression = chance.choice(["zstd", "zlib", "none"])
            point = machine.daily()[0]
            if chance.random() < 0.2:
                machine.module("pinned", id=point["id"])
        options = {
            "keep_last": chance.randrange(0, 4),
            "keep_daily": chance.randrange(0, 4),
            "keep_weekly": chance.randrange(1, 3),
            "semantics": chance.choice(["restic", "proxmox"]),
            "max_chain": chance.choice([0, 2, 3, 20]),
            "merge": chance.random() < 0.8,
        }
        act(machine, **options)
        machine.check(raw)


def test_first_class_disk(run_module: Callable[..., dict[str, Any]], machine: Machine, raw: Path) -> None:
    fcd = Machine(run_module, machine.path, fcd=FCD)
    machine.disks = {one["backing_uuid"]: one for one in [fcd_disk()]}
    machine.contents = {FCD["id"]: [0] * 16}
    machine.changed = {FCD["id"]: set()}
    made, held = fcd.daily(3), machine.daily(3)
    result = act(machine, fcd_id=FCD["id"], keep_last=1)
    assert [one["fcd"] for one in result["objects"]] == [FCD]
    assert [one["vm"] for one in result["objects"]] == [None]
    assert fcd.check(raw) == [made[-1]["id"]]
    assert machine.check(raw) == [one["id"] for one in held]
    assert not act(machine, fcd_name=FCD["name"], keep_last=1)["changed"]
    # A machine that only holds the disk is none of its business.
    answer = machine.retention(fcd_id=FCD["id"][:-1] + "2", keep_last=1, fail=True)
    assert answer["error_type"] == "NotFound"


def test_no_rule_keeps_everything(machine: Machine) -> None:
    machine.daily(3)
    result = act(machine)
    assert not result["changed"]
    assert {tuple(one["reasons"]) for one in result["objects"][0]["restore_points"]} == {("no rule is set",)}
    assert "No rule says which restore points to keep, so all of them stay." in warnings(result)


def test_policies(run_module: Callable[..., dict[str, Any]], machine: Machine, raw: Path) -> None:
    other = Machine(run_module, machine.path, OTHER)
    fcd = Machine(run_module, machine.path, fcd=FCD)
    for one in (machine, other, fcd):
        one.daily(4)
    policies = [
        {"name": "db-*", "keep_last": 1},
        {"name": "db*", "keep_last": 3},
        {"fcd_name": "pvc-?"},
        {"instance_uuid": OTHER["instance_uuid"].upper(), "keep_last": 1},
    ]
    result = act(machine, keep_last=2, policies=policies)
    assert [len(one.check(raw)) for one in (machine, other, fcd)] == [2, 3, 4]
    assert "warnings" not in result
    act(machine, keep_last=2, policies=policies[3:])
    assert [len(one.check(raw)) for one in (machine, other, fcd)] == [2, 1, 2]


def test_without_merging_what_others_need_stays(machine: Machine, raw: Path) -> None:
    made = [one["id"] for one in machine.daily(3)]
    result = act(machine, keep_last=1, merge=False, max_chain=2)
    assert not result["changed"]
    reasons = [one["reasons"] for one in result["objects"][0]["restore_points"]]
    assert reasons == [[f"needed by {made[1].split('/')[1]}"], [f"needed by {made[2].split('/')[1]}"], ["last"]]
    machine.check(raw)


def test_long_chains_become_short(machine: Machine, raw: Path) -> None:
    machine.add(2001, clusters=3)
    made = [one["id"] for one in machine.daily(4)]
    assert not act(machine, max_chain=5, keep_last=9)["changed"]
    result = act(machine, max_chain=4, keep_last=9)
    assert result["objects"][0]["merges"] == []
    assert [(one["id"], one["parent"], one["way"], one["from"]) for one in result["objects"][0]["synthetic"]] == [
        (made[3], None, "rewrite", made)
    ] * 2
    info = {one["id"]: one for one in machine.info()}
    assert info[made[3]]["chain_length"] == 1
    assert {each["reason"] for each in info[made[3]]["disks"]} == {"synthetic full"}
    assert info[made[2]]["chain_length"] == 3
    machine.check(raw)
    machine.daily(2)
    assert {one["id"]: one["chain_length"] for one in machine.info()}[made[3]] == 1
    assert act(machine, max_age="2d", max_chain=0, keep_last=9)["objects"][0]["synthetic"]
    machine.check(raw)


def test_pinned_while_it_was_planned(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [one["id"] for one in machine.daily(3)]
    taken = locks.acquire

    def pin_first(*arguments: Any) -> Any:
        (machine.path / made[0] / "pin.json").write_text("torn")  # a damaged pin is a pin
        return taken(*arguments)

    monkeypatch.setattr(locks, "acquire", pin_first)
    machine.retention(keep_last=1)
    assert [one["id"] for one in machine.info()] == [made[0], made[2]]


def test_run_at_work_is_waited_for_or_told(machine: Machine, raw: Path) -> None:
    made = [one["id"] for one in machine.daily(3)]
    started = machine.start(list(machine.disks.values()))
    run = started["restore_point"]["run"]
    answer = machine.retention(keep_last=1, fail=True)
    assert answer["error_type"] == "Locked"
    assert answer["objects"][0]["problem"]["holder"]["run"] == run
    assert answer["changed"] is False
    plan = machine.retention(keep_last=1, check=True)
    assert plan["objects"][0]["problem"]["error_type"] == "Locked"
    assert plan["removed"] == 2
    # Nothing to do: nothing to wait for.
    assert machine.retention(keep_last=3)["changed"] is False
    waiting = threading.Timer(1.5, locks.release, (str(machine.directory), run))
    waiting.start()
    assert machine.retention(keep_last=1, lock_timeout=60)["removed"] == 2
    waiting.join()
    assert machine.check(raw) == made[2:]


def test_others_are_done_before_a_run_is_waited_for(
    run_module: Callable[..., dict[str, Any]], machine: Machine, raw: Path
) -> None:
    other = Machine(run_module, machine.path, OTHER)
    made = [one.daily(3)[-1]["id"] for one in (machine, other)]
    run = machine.start(list(machine.disks.values()))["restore_point"]["run"]
    (machine.path / ("f" + OTHER["instance_uuid"][1:])).mkdir()  # of a first backup that came to nothing

    def release() -> None:
        """The other run ends when only one restore point of the other machine is left."""
        while len([one for one in other.directory.iterdir() if one.name.startswith("2")]) > 1:
            time.sleep(0.05)
        locks.release(str(machine.directory), run)

    waiting = threading.Thread(target=release, daemon=True)
    waiting.start()
    result = machine.retention(keep_last=1, lock_timeout=60)
    waiting.join()
    assert [one["vm"]["name"] for one in result["objects"]] == ["web01", "db01"]
    assert [machine.check(raw), other.check(raw)] == [made[:1], made[1:]]


def test_told_to_stop_it_stops(
    run_module: Callable[..., dict[str, Any]], machine: Machine, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Machine(run_module, machine.path, OTHER)
    made = [[one["id"] for one in each.daily(3)] for each in (machine, other)]
    with monkeypatch.context() as patch:
        stop = mock.Mock(side_effect=BackupError("The module was asked to stop (SIGTERM).", "Run it again."))
        patch.setattr(merging, "make_image", stop)
        answer = machine.retention(keep_last=1, fail=True)
    assert stop.call_count == 1
    assert (answer["error_type"], answer["next_step"]) == ("BackupError", "Run it again.")
    assert "asked to stop" in answer["msg"]
    assert "Not looked at: 1." in answer["msg"]
    assert len(answer["objects"]) == 1
    assert [machine.check(raw), other.check(raw)] == made


def test_too_little_space_leaves_everything(
    run_module: Callable[..., dict[str, Any]], machine: Machine, raw: Path
) -> None:
    other = Machine(run_module, machine.path, OTHER)
    made = [one["id"] for one in machine.daily(3)]
    for _number in range(2):  # chains of one image: nothing to merge
        started = other.start(mode="full")
        results = [other._copy(Path(started["restore_point"]["path"]), since) for since in started["since"]]
        other.complete(started, results)
    before = files(machine.directory)
    options = {"keep_last": 1, "min_free": str(1 << 60)}
    plan = machine.retention(**options, check=True, fail=True)
    answer = machine.retention(**options, fail=True)
    assert answer["error_type"] == plan["error_type"] == "NoSpace"
    assert files(machine.directory) == before
    by_name = {one["vm"]["name"]: one for one in answer["objects"]}
    assert by_name["web01"]["problem"]["needed"] > 0
    assert by_name["web01"]["removed"] == by_name["web01"]["merges"] == []
    assert len(by_name["db01"]["removed"]) == 1  # needs no space
    assert planned(plan)[0][1] == planned(answer)[0][1]
    assert machine.check(raw) == made


def test_damaged_source_is_not_laundered(
    run_module: Callable[..., dict[str, Any]], machine: Machine, raw: Path
) -> None:
    other = Machine(run_module, machine.path, OTHER)
    machine.add(2001)
    made, others = [one["id"] for one in machine.daily(4)], [one["id"] for one in other.daily(3)]
    image = machine.path / made[1] / "disk-2000.qcow2"
    content = bytearray(image.read_bytes())
    content[-1] ^= 1  # QEMU does not see it
    image.write_bytes(content)
    before = files(machine.directory)
    answer = machine.retention(keep_last=1, fail=True)
    assert answer["error_type"] == "Damaged"
    assert "web01" in answer["msg"]
    assert answer["objects"][0]["problem"]["damaged"] == [{"id": made[1], "image": "disk-2000.qcow2"}]
    after = files(machine.directory)
    record = f"{made[1].split('/')[1]}/verified.json"
    assert json.loads(after.pop(record))["files"][0]["ok"] is False
    assert after == before
    assert other.check(raw) == others[2:]  # the other one is done all the same
    # From now on it is known: the points that it spoils stay and count for no rule, and the next backup ends it.
    machine.retention(keep_last=1)
    assert [one["id"] for one in machine.info(instance_uuid=VM["instance_uuid"])] == made
    point = machine.daily()[0]
    kinds = {each["key"]: each["kind"] for each in point["disks"]}
    assert kinds == {2000: "full", 2001: "incremental"}
    result = act(machine, keep_last=1)
    assert result["removed"] == 0
    assert "of web01 are damaged" in warnings(result)
    act(machine, keep_last=1, remove_damaged=True)
    assert machine.check(raw) == [point["id"]]


@pytest.mark.parametrize("how", ["missing", "torn", "shorter"])
def test_image_that_is_not_there(machine: Machine, how: str) -> None:
    made = [one["id"] for one in machine.daily(3)]
    image = machine.path / made[0] / "disk-2000.qcow2"
    if how == "missing":
        image.unlink()
    else:
        image.write_bytes(b"" if how == "torn" else image.read_bytes()[:-512])
    before = files(machine.directory)
    assert machine.retention(keep_last=1, fail=True)["error_type"] == "Damaged"
    after = files(machine.directory)
    assert {name for name in after if name not in before} == {f"{made[0].split('/')[1]}/verified.json"}
    assert all(after[name] == content for name, content in before.items())


def test_unreadable_manifest_keeps_what_its_images_name(machine: Machine, raw: Path) -> None:
    made = [one["id"] for one in machine.daily(5)]
    manifest = machine.path / made[2] / "point.json"
    saved = manifest.read_bytes()
    manifest.write_bytes(saved[:-20])
    newer = [machine.daily()[0]["id"] for _number in range(2)]  # full: an unreadable one ends the chain
    result = act(machine, keep_last=1)
    reasons = {one["id"]: one["reasons"] for one in result["objects"][0]["restore_points"] if one["keep"]}
    assert list(reasons) == [made[1], made[2], made[3], made[4], newer[1]]
    assert reasons[made[1]] == [f"may be needed by damaged {made[2].split('/')[1]}"]
    assert reasons[made[2]][0].startswith("unreadable: ")
    assert reasons[made[3]][0].startswith("broken: ")
    # Mended from a copy, all of them are whole again.
    manifest.write_bytes(saved)
    assert machine.check(raw) == [*made[1:], newer[1]]
    manifest.write_bytes(b"")
    act(machine, keep_last=1, remove_damaged=True)
    assert machine.check(raw) == [newer[1]]


def test_newest_complete_one_stays(machine: Machine) -> None:
    made = [one["id"] for one in machine.daily(3)]
    for one in made:
        (machine.path / one / "point.json").write_text("{}")
    result = machine.retention(keep_last=1, remove_damaged=True)
    assert not result["changed"]
    assert all(one["keep"] for one in result["objects"][0]["restore_points"])


def test_manifest_of_a_newer_release_is_no_damage(machine: Machine, raw: Path) -> None:
    made = [one["id"] for one in machine.daily(2)]
    manifest = machine.path / made[0] / "point.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2', 1))
    machine.daily(2)
    machine.retention(keep_last=1, remove_damaged=True)
    assert made[0] in [one["id"] for one in machine.info()]


def test_leftovers_of_dead_runs_go(machine: Machine, raw: Path) -> None:
    machine.daily(2)
    left = machine.directory / "20250101T000000Z.deleted"
    left.mkdir()
    (left / "disk-2000.qcow2").write_bytes(b"some")
    plan = machine.retention(keep_last=2, check=True)
    assert left.exists()
    result = machine.retention(keep_last=2)
    assert plan["objects"][0]["swept"] == result["objects"][0]["swept"] == [left.name]
    assert result["changed"]
    machine.check(raw)


@pytest.mark.parametrize("manifest_is", ["old", "torn"])
def test_merge_that_was_committed_is_brought_to_its_end(
    machine: Machine, raw: Path, monkeypatch: pytest.MonkeyPatch, manifest_is: str
) -> None:
    made = [one["id"] for one in machine.daily(4)]
    with monkeypatch.context() as patch:
        patch.setattr(switching, "_put_in_place", mock.Mock(side_effect=OSError(5, "I/O error")))
        assert machine.retention(keep_last=2, fail=True)["error_type"] == "RepositoryError"
    if manifest_is == "torn":
        (machine.path / made[2] / "point.json").write_text("")
    plan = machine.retention(keep_last=2, check=True)
    result = machine.retention(keep_last=2)
    assert result["objects"][0]["swept"] == [f"{made[2].split('/')[1]}.merging"]
    assert result["objects"][0]["merges"] == []
    assert planned(plan) == planned(result)
    assert machine.check(raw) == made[2:]


def test_merge_is_limited(machine: Machine, raw: Path) -> None:
    machine.compression = "none"
    machine.daily(3)
    started = time.monotonic()
    result = machine.retention(keep_last=1, rate_limit=str(1 << 20))
    read = result["bytes_read"]
    assert time.monotonic() - started > read / (1 << 20) / 8
    machine.check(raw)


@pytest.mark.parametrize("compression", ["zstd", "zlib", "none"])
def test_compression_of_choice(machine: Machine, raw: Path, compression: str) -> None:
    machine.compression = "none"
    point = machine.daily(3)[-1]
    machine.retention(keep_last=1, compression=compression)
    size = os.path.getsize(machine.path / point["id"] / "disk-2000.qcow2")
    used = sum(1 for byte in machine.contents[machine.disk["backing_uuid"]] if byte)
    assert (size < used * CLUSTER) == (compression != "none")
    machine.check(raw)


@pytest.mark.parametrize(
    "options",
    [
        {"keep_last": -2},
        {"keep_within": "a week"},
        {"timezone": "Europe/Nowhere"},
        {"max_chain": -1},
        {"max_age": "7"},
        {"policies": [{"name": "x", "keep_daily": -5}]},
        {"instance_uuid": "../x"},
    ],
)
def test_senseless_options(machine: Machine, options: dict[str, Any]) -> None:
    machine.daily()
    assert machine.retention(fail=True, **options)["error_type"] == "InvalidInput"


def test_policy_says_for_whom(machine: Machine) -> None:
    machine.daily()
    for policy in ({"keep_last": 1}, {"name": "x", "fcd_name": "y"}):
        assert machine.retention(fail=True, policies=[policy])["failed"]


def returned(entries: dict[str, Any], value: Any, where: str = "") -> Iterator[str]:
    """The keys in a result that are not documented as they are, and the other way round."""
    if not isinstance(value, dict):
        return
    for key in entries.keys() ^ value.keys():
        yield f"{where}{key}"
    for key, entry in entries.items():
        inner = value.get(key)
        for one in inner if isinstance(inner, list) else [inner]:
            if "contains" in entry and isinstance(one, dict):
                yield from returned(entry["contains"], one, f"{where}{key}.")


def test_result_is_the_documented_one_always(machine: Machine) -> None:
    machine.daily(3)
    common = {"changed", "diff", "invocation", "warnings", "failed", "msg", "error_type", "next_step", "exception"}
    entries = documents.document("repository_retention", "RETURN")
    options: dict[str, Any] = {"keep_last": 1}
    for how in (
        {"check": True},
        {"fail": True, "min_free": str(1 << 60)},
        {"check": True, "fail": True, "min_free": str(1 << 60)},
        {},
        {},
    ):
        result = machine.retention(**options, **how)
        assert set(returned(entries, {key: value for key, value in result.items() if key not in common})) == set()
