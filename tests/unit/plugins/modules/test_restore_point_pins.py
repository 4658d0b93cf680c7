# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pins, by restore_point and restore_point_info through their main()."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests.unit.repositories import VM, Backup


@pytest.fixture
def backup(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> Backup:
    """A backup into a new, empty directory."""
    path = tmp_path / "repository"
    path.mkdir()
    return Backup(run_module, path)


def test_a_pinned_point_stays_until_it_is_unpinned(backup: Backup) -> None:
    point, newer = backup.backup(), backup.backup(mode="full")
    directory = backup.point_directory(point)

    pinned = backup.module("pinned", id=point["id"], reason="before the upgrade", diff=True)
    pin = pinned["restore_point"]["pinned"]
    assert pin["reason"] == "before the upgrade"
    assert pinned == {
        "changed": True,
        "vm": VM,
        "fcd": None,
        "restore_point": {**point, "state": "pinned", "pinned": pin},
        "damage": [],
        "since": [],
        "swept": [],
        "diff": {
            "before": {"id": point["id"], "state": "unpinned", "pinned": None},
            "after": {"id": point["id"], "state": "pinned", "pinned": pin},
        },
        "invocation": pinned["invocation"],
    }
    written = json.loads((directory / "pin.json").read_text())
    assert (written["format"], written["time"], written["reason"]) == ("holdfast.pin", pin["time"], pin["reason"])
    assert [one["pinned"] for one in backup.info()] == [pin, None]
    assert not list(backup.directory.glob(".lock*"))

    for force in (False, True):
        refused = backup.module("absent", id=point["id"], force=force, fail=True)
        assert "is pinned: before the upgrade" in refused["msg"]
        assert refused["pinned"] == pin
    assert "is pinned" in backup.module("absent", id=point["id"], check=True, fail=True)["msg"]
    assert directory.is_dir()

    unpinned = backup.module("unpinned", id=point["id"])
    assert (unpinned["changed"], unpinned["restore_point"]["pinned"]) == (True, None)
    assert unpinned.keys() == pinned.keys()
    assert backup.module("absent", id=point["id"])["changed"]
    assert [one["id"] for one in backup.info()] == [newer["id"]]


def test_pinning_twice_changes_nothing_and_another_reason_does(backup: Backup) -> None:
    point = backup.backup()
    assert not backup.module("unpinned", id=point["id"])["changed"]
    first = backup.module("pinned", id=point["id"])["restore_point"]["pinned"]
    assert first["reason"] is None
    assert not backup.module("pinned", id=point["id"])["changed"]
    again = backup.module("pinned", id=point["id"], reason="for the auditor", diff=True)
    assert (again["changed"], again["diff"]["before"]["pinned"]) == (True, first)
    kept = backup.module("pinned", id=point["id"])
    assert (kept["changed"], kept["restore_point"]["pinned"]["reason"]) == (False, "for the auditor")


@pytest.mark.parametrize("state", ["pinned", "unpinned"])
def test_check_mode_foretells_and_changes_nothing(backup: Backup, state: str) -> None:
    point = backup.backup()
    if state == "unpinned":
        backup.module("pinned", id=point["id"])
    before = backup.info()[0]["pinned"]
    plan = backup.module(state, id=point["id"], check=True, diff=True)
    assert plan["changed"]
    assert backup.info()[0]["pinned"] == before
    done = backup.module(state, id=point["id"], diff=True)
    for result in (plan, done):  # but for the time, which goes on
        if state == "pinned":
            result["restore_point"]["pinned"].pop("time")
            result["diff"]["after"]["pinned"].pop("time")
        del result["invocation"]
    assert plan == done


def tear(pin: Path) -> None:
    os.truncate(pin, 20)


def link(pin: Path) -> None:
    pin.unlink()
    pin.symlink_to("/nonexistent")


def fifo(pin: Path) -> None:
    pin.unlink()
    os.mkfifo(pin)


def directory(pin: Path) -> None:
    pin.unlink()
    pin.mkdir()


@pytest.mark.parametrize("spoil", [tear, link, fifo, directory])
def test_a_pin_that_cannot_be_read_pins_all_the_same(backup: Backup, spoil: Callable[[Path], None]) -> None:
    point = backup.backup()
    backup.module("pinned", id=point["id"], reason="kept")
    spoil(backup.point_directory(point) / "pin.json")
    pin = backup.info(verify="content")[0]["pinned"]
    assert pin["time"] is None
    assert pin["reason"].startswith("its pin cannot be read: ")
    assert backup.info(verify="content")[0]["verified"]["ok"]
    assert "is pinned" in backup.module("absent", id=point["id"], force=True, fail=True)["msg"]
    if spoil is not directory:
        mended = backup.module("pinned", id=point["id"], reason="kept")
        assert (mended["changed"], mended["restore_point"]["pinned"]["reason"]) == (True, "kept")
    assert backup.module("unpinned", id=point["id"])["changed"]
    assert backup.info()[0]["pinned"] is None


def test_a_point_with_a_damaged_manifest_can_be_pinned(backup: Backup) -> None:
    first, point = backup.backup(), backup.backup()
    os.truncate(backup.point_directory(point) / "point.json", 20)
    pinned = backup.module("pinned", id=point["id"], reason="for the experts")
    assert (pinned["changed"], pinned["restore_point"]["size"]) == (True, None)
    assert pinned["vm"] == {"name": None, "moid": None, "instance_uuid": VM["instance_uuid"]}
    assert [one["pinned"] and one["pinned"]["reason"] for one in backup.info()] == [None, "for the experts"]
    assert first["pinned"] is None


def test_a_pin_waits_for_a_run_that_may_be_deleting(backup: Backup) -> None:
    point = backup.backup()
    started = backup.start()
    for check in (False, True):
        refused = backup.module("pinned", id=point["id"], check=check, fail=True)
        assert refused["error_type"] == "Locked"
        assert refused["holder"]["run"] == started["restore_point"]["run"]
    backup.abort(started)
    assert backup.module("pinned", id=point["id"], lock_timeout=5)["changed"]


def test_only_a_complete_point_can_be_pinned(backup: Backup) -> None:
    backup.backup()
    partial = backup.start()["restore_point"]["id"]
    for bad in (partial, f"{VM['instance_uuid']}/20200101T000000Z"):
        assert backup.module("pinned", id=bad, fail=True)["error_type"] == "NotFound"
    assert "id" in backup.module("pinned", fail=True)["msg"]
    assert not list(backup.path.rglob("pin.json*"))


def test_the_next_backup_and_a_chain_do_not_mind_pins(backup: Backup) -> None:
    point = backup.backup()
    backup.module("pinned", id=point["id"])
    assert backup.backup()["disks"][0]["parent"]["id"] == point["id"]
    assert all(one["verified"]["ok"] for one in backup.info(verify="content"))
