# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A repository on a file system that is really full, or on a disk that really fails: nothing is lost, all is told."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import images, merging
from ansible_collections.holdfast.backup.plugins.module_utils._repository import completing, pruning, switching
from ansible_collections.holdfast.backup.tests.integration import faulty
from ansible_collections.holdfast.backup.tests.integration.processes import Child
from ansible_collections.holdfast.backup.tests.integration.repository_machine import MIB, Machine
from ansible_collections.holdfast.backup.tests.integration.repository_model import Clock, Repository
from ansible_collections.holdfast.backup.tests.modules import ModuleFailed

KEEP = {"keep_last": 2}


class Place:
    """A repository with four restore points of a machine, of which the newest two are to be kept."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self.repository = Repository(path, scratch, Clock(), random.Random(1))
        dice = self.repository.dice
        self.machine = Machine(dice)
        for disk in self.machine.disks.values():
            disk.content = bytearray(dice.randbytes(MIB) + bytes(MIB))
        self.points = [self.back_up() for _point in range(4)]

    def write(self) -> None:
        """A little, to each disk."""
        dice = self.repository.dice
        for disk in self.machine.disks.values():
            disk.put(dice.randrange(len(disk.content) // 2), dice.randbytes(10_000))

    def back_up(self) -> str:
        """The next day's restore point."""
        self.write()
        self.repository.clock.forward(days=1)
        return self.repository.backup(self.machine)

    def retain(self, **options: Any) -> dict[str, Any]:
        """Keep the newest two."""
        return self.repository.run("repository_retention", **{**KEEP, **options})

    def prove(self, gone: bool = False) -> None:
        """All that must be there is what it was, bit for bit.

        :param gone: restore points that were to go may have gone
        """
        repository = self.repository
        if gone:
            listed = {point["id"] for point in repository.listed()}
            assert listed >= set(self.points[2:])
            for point in set(repository.moments) - listed:
                del repository.moments[point]
        repository.prove(repository.points(verify="content"), again=True)

    def files(self) -> dict[str, bytes]:
        """Every file in the repository."""
        root = self.repository.path
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def retain_and_prove(self) -> None:
        """What could not be done before is done now, and nothing is left of the attempt."""
        done = self.retain()
        assert all(one["problem"] is None for one in done["objects"])
        for point in set(self.repository.moments) - set(self.points[2:]):
            del self.repository.moments[point]
        assert len(self.repository.moments) == 2
        self.prove()
        self.repository.assert_tidy()


def image(place: Place, number: int) -> Path:
    """An image of a restore point."""
    return sorted((place.repository.path / place.points[number]).glob("*.qcow2"))[0]


# --- full ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Place]:
    """A repository on a file system of 20 MiB."""
    with faulty.small_file_system(tmp_path / "small", 20) as mounted:
        yield Place(mounted / "repository", tmp_path / "scratch")


def test_what_does_not_fit_is_not_begun(small: Place) -> None:
    filler, before = faulty.fill(small.repository.path.parent, left=MIB // 2), small.files()
    for check in (True, False):
        done = small.repository.run("repository_retention", check=check, fail=True, **KEEP)
        assert done["error_type"] == "NoSpace", done
        assert done["objects"][0]["problem"]["needed"] > MIB // 2
        assert not done["changed"]
        assert small.files() == before
    small.prove()
    filler.unlink()
    small.retain_and_prove()


@pytest.mark.parametrize("moment", ["before an image", "in an image", "after an image", "before the switch"])
def test_it_fits_until_somebody_else_fills_it(small: Place, moment: str) -> None:
    """Where the plan was right when it was made."""
    root, real, put = small.repository.path.parent, merging.make_image, switching._put_in_place

    def make_image(*fixed: Any, target: str, **options: Any) -> Any:
        if moment == "before an image":
            faulty.fill(root)
        filler = threading.Thread(target=fill_when_there, args=(target,))
        if moment == "in an image":
            filler.start()
        try:
            made = real(*fixed, target=target, **options)
        finally:
            if filler.ident:
                filler.join()
        if moment == "after an image":
            faulty.fill(root)
        return made

    def fill_when_there(target: str) -> None:
        deadline = time.monotonic() + 20
        while not Path(target).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        faulty.fill(root)

    def put_in_place(*arguments: Any) -> None:
        if moment == "before the switch":
            faulty.fill(root)
        put(*arguments)

    with (
        mock.patch.object(merging, "make_image", make_image),
        mock.patch.object(switching, "_put_in_place", put_in_place),
    ):
        try:
            done = small.retain()
        except ModuleFailed as failure:
            done = failure.result
            assert done["error_type"] == "NoSpace", done
            assert "No space left on device" in done["msg"], done
    assert ("error_type" not in done) == (moment == "before the switch")  # which takes no space
    small.prove(gone=moment == "before the switch")
    (root / "somebody else's").unlink()
    small.retain_and_prove()


def steps_until_done(work: Callable[[int], Child], stride: int) -> Iterator[Child]:
    """Do some work again and again, each time with a later step that is the one, until none is."""
    step, outcome = 0, ""
    while outcome != "done":
        child = work(step)
        outcome = child.end()
        child.gone()
        assert outcome in ("done", "failed")
        yield child
        step += stride


def test_retention_that_finds_it_full_at_any_step(small: Place, tmp_path: Path) -> None:
    root, path = small.repository.path.parent, small.repository.path
    origin, moments = tmp_path / "origin", dict(small.repository.moments)
    shutil.copytree(path, origin)
    kinds = set()

    def work(step: int) -> Child:
        shutil.rmtree(path)
        shutil.copytree(origin, path)
        small.repository.moments = dict(moments)
        return Child(small.retain, faulty.filling_at(step, root))

    for child in steps_until_done(work, 7):
        kinds.add(child.result.get("error_type"))
        small.prove(gone=True)
        (root / "somebody else's").unlink(missing_ok=True)
        small.prove(gone=True)
        if set(small.repository.moments) != set(small.points[2:]) or child.outcome != "done":
            small.retain_and_prove()
    assert kinds == {"NoSpace", None}


def test_a_backup_that_finds_it_full_at_any_step(small: Place, tmp_path: Path) -> None:
    root, path = small.repository.path.parent, small.repository.path
    origin, moments, kinds = shutil.copytree(path, tmp_path / "origin"), dict(small.repository.moments), set()
    next(iter(small.machine.disks.values())).put(0, random.Random(2).randbytes(300_000))

    def work(step: int) -> Child:
        shutil.rmtree(path)
        shutil.copytree(origin, path)
        small.repository.moments = dict(moments)
        return Child(lambda: small.repository.back_up(small.machine)[1], faulty.filling_at(step, root))

    for child in steps_until_done(work, 5):
        kinds.add(child.result.get("error_type"))
        new = {point["id"] for point in small.repository.listed()} - set(moments)
        assert new == ({child.result["id"]} if child.outcome == "done" else set())
        small.repository.moments.update({point: small.machine.moment() for point in new})
        small.prove()
        (root / "somebody else's").unlink(missing_ok=True)
        small.repository.clock.forward(hours=1)
        small.repository.backup(small.machine)
        small.prove()
        small.repository.assert_tidy()
    assert kinds - {"OSError"} == {"NoSpace", None}  # the OSError is the model's own, of config.json


def test_a_copy_that_does_not_fit_leaves_nothing(small: Place) -> None:
    filler = faulty.fill(small.repository.path.parent, left=MIB // 4)
    for disk in small.machine.disks.values():
        disk.put(0, random.Random(3).randbytes(len(disk.content)))
    with pytest.raises(ModuleFailed) as caught:
        small.repository.backup(small.machine)
    assert caught.value.result["error_type"] == "NoSpace", caught.value.result
    small.prove()
    small.repository.assert_tidy()
    filler.unlink()
    small.back_up()
    small.prove()


def test_completing_can_be_done_again_when_there_is_space(small: Place) -> None:
    """The copy has taken the last of it; it need not be made again."""
    root, run, render = small.repository.path.parent, small.repository.run, completing.manifest.render
    small.repository.clock.forward(days=1)
    tried = []

    def full(*arguments: Any) -> bytes:
        faulty.fill(root)
        return render(*arguments)

    def full_once(name: str, **options: Any) -> dict[str, Any]:
        if options.get("state") == "completed" and not tried:
            with mock.patch.object(completing.manifest, "render", full):
                tried.append(run(name, fail=True, **options))
            small.prove()
            (root / "somebody else's").unlink()
        return run(name, **options)

    small.write()
    with mock.patch.object(small.repository, "run", full_once):
        small.repository.backup(small.machine)
    assert tried[0]["error_type"] == "NoSpace", tried
    small.prove()
    small.repository.assert_tidy()


def test_damage_is_told_though_there_is_no_space_to_record_it(small: Place) -> None:
    path = image(small, 1)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    filler = faulty.fill(small.repository.path.parent)
    for name, options in (
        ("restore_point", {"state": "verified", "id": small.points[1]}),
        ("repository_verification", {}),
    ):
        done = small.repository.run(name, fail=True, **options)
        assert done["error_type"] == "Damaged", done
        assert str(path) in done["msg"]
        assert "No space left on device" in done["msg"]
        assert [one["file"] for one in done["damage"]] == [path.name]
    assert not path.with_name("verified.json").exists()
    quiet = small.repository.run("repository_verification", fail=True, fail_on_damage=False)
    assert quiet["error_type"] == "NoSpace", quiet
    filler.unlink()
    small.repository.run("repository_verification", fail=True)
    assert path.with_name("verified.json").exists()


# --- cannot be read --------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A repository."""
    return Place(tmp_path / "repository", tmp_path / "scratch")


WHERE = {"header": 0, "middle": 0.6}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_retention_that_cannot_read_an_image_says_so_and_changes_nothing(
    place: Place, tmp_path: Path, number: int, where: str
) -> None:
    path, before = image(place, number), place.files()
    with faulty.unreadable(path, int(WHERE[where] * path.stat().st_size), tmp_path):
        done = place.repository.run("repository_retention", fail=where == "middle", **KEEP)
        assert done["objects"][0]["merges"] == done["objects"][0]["removed"] == []
        if where == "middle":
            assert done["error_type"] == "Damaged", done
            told = done["msg"]
            (known,) = [one for one in place.repository.listed() if one["id"] == place.points[number]]
            assert known["verification"]["problems"][0]["file"] == path.name
        else:  # which is looked at before anything is planned
            told = str(done["objects"][0]["restore_points"][number]["problem"])
        assert str(path) in told
        assert "Input/output error" in told
        # Now that it is known nothing is made of it, and the next backup does not stand on it.
        again = place.retain()
        assert not again["objects"][0]["removed"]
        place.write()
        place.repository.clock.forward(days=1)
        place.points.append(place.repository.backup(place.machine))
        (new,) = [one for one in place.repository.listed() if one["id"] == place.points[4]]
        assert {disk["image"]: disk["kind"] for disk in new["disks"]}[path.name] == "full"
    after = place.files()
    assert {name: after[name] for name in before} == before
    # It can be read again, and a verification sees that.
    place.repository.run("repository_verification")
    place.points = place.points[1:]
    place.retain_and_prove()


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("level", ["content", "restore"])
def test_a_verification_that_cannot_read_an_image_records_it(
    place: Place, tmp_path: Path, level: str, where: str
) -> None:
    path, before = image(place, 1), place.files()
    with faulty.unreadable(path, int(WHERE[where] * path.stat().st_size), tmp_path):
        one = place.repository.run("restore_point", state="verified", id=place.points[2], level=level, fail=True)
        everything = place.repository.run("repository_verification", level=level, fail=True)
        for done in (one, everything):
            assert done["error_type"] == "Damaged", done
            assert (done["damage"][0]["restore_point"], done["damage"][0]["file"]) == (place.points[1], path.name)
            assert {lost["restore_point"] for lost in done["damage"][0]["lost"]} == set(place.points[1:])
        assert str(path) in one["msg"]
        assert "Input/output error" in one["msg"]
        place.write()
        place.repository.clock.forward(days=1)
        new = place.repository.backup(place.machine)
        assert f"{place.points[1]}/{path.name}" not in place.repository.chain_of(new)
        stays = [point for point in place.repository.listed() if point["id"] in (place.points[0], new)]
        place.repository.prove(stays)
    after = place.files()
    assert {name: after[name] for name in before} == before
    place.repository.run("repository_verification", level=level)
    place.prove()


# --- cannot be written -----------------------------------------------------------------------------------------------

FAILING = {
    "the image": (images, "sync"),
    "the commit": (switching, "_commit"),
    "the switch": (switching, "_put_in_place"),
    "the deletion": (pruning._Object, "_remove"),
}


@pytest.mark.parametrize("what", FAILING)
def test_a_disk_that_cannot_be_written_any_more_loses_nothing(tmp_path: Path, what: str) -> None:
    """Whatever the file system makes of that, and after the machine was started again."""
    with faulty.FailingDisk(tmp_path, tmp_path / "disk").mounted() as disk:
        place = Place(disk.place / "repository", tmp_path / "scratch")
        where, name = FAILING[what]
        real = getattr(where, name)

        def failing(*arguments: Any, **options: Any) -> Any:
            disk.fail()
            return real(*arguments, **options)

        with mock.patch.object(where, name, failing):
            child = Child(place.retain)  # it would be alive, and so would its lock, were it this process
            assert child.end() == "failed"
        done, moments = child.result, dict(place.repository.moments)
        assert "Input/output error" in done["msg"] or "Read-only file system" in done["msg"], done
        assert str(place.repository.path) in done["msg"], done
        place.prove(gone=what == "the deletion")
        disk.replug()
        place.repository.moments = moments  # what was deleted may be there again
        place.prove(gone=what == "the deletion")
        place.retain_and_prove()
        place.back_up()
        place.prove()
