# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Virtual machines of the same instance UUID in two vCenters, by restore_point through its main()."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests.unit.repositories import FCD, VM, Backup, disk

HERE, THERE = "0d9f2d4c-5c0e-4a52-9a5e-6a3f1b7c2e10", "0d9f2d4c-5c0e-4a52-9a5e-6a3f1b7c2e11"


@pytest.fixture(params=[None, FCD], ids=["vm", "fcd"])
def backup(run_module: Callable[..., dict[str, Any]], tmp_path: Path, request: pytest.FixtureRequest) -> Backup:
    """A backup of a virtual machine, or of a first class disk, into a new, empty directory."""
    path = tmp_path / "repository"
    path.mkdir()
    return Backup(run_module, path, fcd=request.param)


def back_up(backup: Backup, vcenter: str | None, **options: Any) -> dict[str, Any]:
    started = backup.start(vcenter=vcenter, **options)
    return backup.complete(started, backup.copy(started), vcenter=vcenter)["restore_point"]


def kinds(point: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(one["kind"], one["reason"]) for one in point["disks"]]


def test_the_vcenter_is_recorded_and_the_same_one_goes_on(backup: Backup) -> None:
    back_up(backup, HERE.upper())
    assert kinds(back_up(backup, HERE)) == [("incremental", None)]
    assert [one["vcenter"] for one in backup.info(verify="content")] == [HERE, HERE]


def test_another_vcenter_is_refused_before_anything_is_changed(backup: Backup) -> None:
    point = back_up(backup, HERE)
    for check in (True, False):
        refused = backup.start(vcenter=THERE, check=check, fail=True)
        assert refused["error_type"] == "Ambiguous"
        assert refused["candidates"] == [{"vcenter": HERE, "restore_point": point["id"]}, {"vcenter": THERE}]
        for word in (HERE, THERE, "moved=true", "repository of its own"):
            assert word in refused["msg"]
        assert [path.name for path in backup.directory.iterdir()] == [point["id"].split("/")[1]]


def test_what_has_moved_is_copied_in_full_once(backup: Backup) -> None:
    back_up(backup, HERE)
    plan = backup.start(vcenter=THERE, moved=True, check=True)
    assert plan["since"][0]["reason"] == f"moved here from vCenter {HERE}"
    assert kinds(back_up(backup, THERE, moved=True)) == [("full", f"moved here from vCenter {HERE}")]
    for moved in (True, False):
        assert kinds(back_up(backup, THERE, moved=moved)) == [("incremental", None)]
    assert backup.start(vcenter=HERE, fail=True)["error_type"] == "Ambiguous"


def test_the_run_that_has_begun_may_ask_again(backup: Backup) -> None:
    back_up(backup, HERE)
    first = backup.start(vcenter=THERE, moved=True, run="run-1")
    again = backup.start(vcenter=THERE, moved=True, run="run-1")
    assert not again["changed"]
    assert again["since"] == first["since"]


def test_where_no_vcenter_is_known_nothing_is_refused(backup: Backup) -> None:
    back_up(backup, None)
    assert kinds(back_up(backup, HERE)) == [("incremental", None)]
    assert kinds(back_up(backup, None)) == [("incremental", None)]
    # The newest that tells of one counts.
    assert backup.start(vcenter=THERE, fail=True)["error_type"] == "Ambiguous"
    assert [one["vcenter"] for one in backup.info()] == [None, HERE, None]


def test_a_vcenter_is_a_uuid(backup: Backup) -> None:
    refused = backup.start(vcenter="vcenter.example.com", fail=True)
    assert refused["msg"].startswith("'vcenter.example.com' is not the instance UUID of a vCenter.")


def test_two_disks_of_one_that_moved(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    backup = Backup(run_module, tmp_path / "repository", VM)
    started = backup.start([disk()], vcenter=HERE)
    backup.complete(started, backup.copy(started), vcenter=HERE)
    since = backup.start([disk(), disk(2001)], vcenter=THERE, moved=True)["since"]
    assert {one["reason"] for one in since} == {f"moved here from vCenter {HERE}"}
    assert {one["parent"] for one in since} == {None}
