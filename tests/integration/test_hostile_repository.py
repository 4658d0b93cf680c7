# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A repository that somebody prepared who knows the format: it is refused, and nothing outside it is ever touched.

Everything that can be done with a repository is done with each of them, while the kernel watches a directory beside it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._repository import documents, locks
from ansible_collections.holdfast.backup.tests.integration.repository_machine import Disk, Machine
from ansible_collections.holdfast.backup.tests.integration.repository_model import Clock, Repository, qemu_img
from ansible_collections.holdfast.backup.tests.integration.watching import untouched
from ansible_collections.holdfast.backup.tests.modules import ModuleFailed

LEVELS = ("structure", "content", "restore")
SEAL = ("format", "version", "sha256")


class Scene:
    """Three restore points of one disk that stand on each other, and a directory beside the repository.

    :param stolen: what an attack would like to have: an image that lies outside
    """

    def __init__(self, machine: Machine, source: Path, directory: Path) -> None:
        self.machine = machine
        self.repository = Repository(directory / "new", directory / "scratch", Clock(), machine.dice)
        shutil.copytree(source, directory / "repository", symlinks=True)
        self.repository.path = directory / "repository"
        self.repository.clock.forward(days=30)
        self.object = self.repository.path / machine.id
        self.points = sorted(self.object.iterdir())
        self.outside = directory / "outside"
        shutil.copytree(self.points[0], self.outside / self.points[0].name)
        self.stolen = self.outside / "disk-2000.qcow2"
        shutil.copy2(self.images(0), self.stolen)
        (self.outside / "1f2e.json").write_text("secret")
        os.utime(self.outside / "1f2e.json", (1, 1))

    def images(self, number: int) -> Path:
        """The image of a restore point."""
        return self.points[number] / "disk-2000.qcow2"

    def replace(self, path: Path, link: Path | None = None) -> None:
        """Put a link, or a pipe, in the place of a file or directory."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if link is None:
            os.mkfifo(path)
        else:
            path.symlink_to(link)

    def manifest(self, number: int) -> dict[str, Any]:
        """What a manifest says."""
        return dict(json.loads((self.points[number] / "point.json").read_text()))

    def seal(self, path: Path, kind: str, body: dict[str, Any]) -> None:
        """Write a document that is sealed as it should be."""
        body = {name: value for name, value in body.items() if name not in SEAL}
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(documents.render(kind, 1, body))

    def rewrite(self, number: int, **changes: Any) -> None:
        """Change the record of the disk, and let size and hash fit the image that lies there."""
        body, image = self.manifest(number), self.images(number)
        found = image.read_bytes()
        body["disks"][0].update(size=len(found), bytes_stored=len(found), sha256=hashlib.sha256(found).hexdigest())
        body["disks"][0].update(changes)
        self.seal(self.points[number] / "point.json", "holdfast.restore_point", body)

    def overlay(self, number: int, backing: str, form: str = "qcow2") -> None:
        """Have an image stand on anything, by its header alone."""
        image = self.images(number)
        qemu_img("rebase", "-u", "-f", "qcow2", "-F", form, "-b", backing, image)
        self.rewrite(number)

    def header(self, number: int, offset: int, form: str, value: int) -> None:
        """Change a field of an image's header."""
        with open(self.images(number), "r+b") as file:
            file.seek(offset)
            file.write(struct.pack(form, value))
        self.rewrite(number)

    def merging(self, number: int = 1) -> Path:
        """A directory for a merge into a restore point, with an image that would do."""
        place = self.object / f"{self.points[number].name}.merging"
        place.mkdir()
        shutil.copy2(self.images(number), place / "disk-2000.qcow2")
        return place

    def merge(self, number: int = 1, name: str = "", **changes: Any) -> Path:
        """The same, committed."""
        place, body = self.merging(number), self.manifest(number)
        body["disks"][0].update(changes)
        self.seal(place / "merge.json", "holdfast.restore_point", {**body, **({"id": name} if name else {})})
        return place


# Each spoils the scene, and returns which of the restore points must be called damaged then.
Attack = Callable[[Scene], set[int]]


def _with(work: Callable[[Scene], object], *damaged: int) -> Attack:
    def attack(scene: Scene) -> set[int]:
        work(scene)
        return set(damaged)

    return attack


def _foreign(form: str) -> Attack:
    def attack(scene: Scene) -> set[int]:
        raw = scene.repository.scratch / "raw"
        raw.write_bytes(bytes(scene.manifest(0)["disks"][0]["capacity"]))
        qemu_img("convert", "-f", "raw", "-O", form, raw, scene.images(0))
        scene.rewrite(0)
        return {0, 1, 2}

    return attack


def _data_file(scene: Scene) -> None:
    size = str(-(-scene.manifest(0)["disks"][0]["capacity"] // 65536) * 65536)
    scene.images(0).unlink()
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={scene.outside / 'data'}", scene.images(0), size)
    scene.rewrite(0)


def _parent(image: str, point: str = "") -> Callable[[Scene], object]:
    def attack(scene: Scene) -> None:
        parent = scene.manifest(1)["disks"][0]["parent"]["id"]
        scene.rewrite(1, parent={"id": point or parent, "image": image})

    return attack


def _huge(scene: Scene) -> None:
    size = 1 << 50
    image = scene.images(2)
    image.unlink()
    qemu_img("create", "-q", "-f", "qcow2", image, str(size))
    scene.rewrite(2, capacity=size, kind="full", parent=None)


def _link_in_merging(scene: Scene) -> None:
    place = scene.merge()
    scene.replace(place / "disk-2000.qcow2", scene.stolen)


def _link_in_uncommitted(scene: Scene) -> None:
    place = scene.merging()
    (place / "more").symlink_to(scene.outside)
    (place / "disk-2001.qcow2").symlink_to(scene.stolen)


def _verified(scene: Scene) -> None:
    scene.replace(scene.points[1] / "verified.json")
    files = [{"name": "disk-2000.qcow2", "sha256": "0" * 64, "level": "x" * 9999, "time": "never", "ok": 1, "what": []}]
    disks = [{"image": "../../../etc/passwd", "content_hash": 7, "time": None, "ok": "yes", "what": {}}] * 5000
    scene.seal(scene.points[0] / "verified.json", "holdfast.verification", {"files": files, "disks": disks})


def _lock(scene: Scene) -> None:
    (scene.object / ".lock").symlink_to(scene.outside)


ATTACKS: dict[str, Attack] = {
    "image is a link": _with(lambda s: s.replace(s.images(0), s.stolen), 0, 1, 2),
    "newest image is a link": _with(lambda s: s.replace(s.images(2), s.stolen), 2),
    "image is a pipe": _with(lambda s: s.replace(s.images(1)), 1, 2),
    "image is a device": _with(lambda s: s.replace(s.images(1), Path("/dev/zero")), 1, 2),
    "manifest is a link": _with(lambda s: s.replace(s.points[1] / "point.json", s.outside / "1f2e.json"), 1, 2),
    "manifest is a pipe": _with(lambda s: s.replace(s.points[1] / "point.json"), 1, 2),
    "restore point is a link": _with(lambda s: s.replace(s.points[0], s.outside / s.points[0].name), 0, 1, 2),
    "configuration is a link": _with(lambda s: s.replace(s.points[1] / "config.json", s.outside / "1f2e.json"), 1),
    "configuration is a pipe": _with(lambda s: s.replace(s.points[1] / "config.json"), 1),
    "pin is a link": _with(lambda s: s.replace(s.points[1] / "pin.json", s.outside / "1f2e.json")),
    "pin is a pipe": _with(lambda s: s.replace(s.points[1] / "pin.json")),
    "pin is a directory": _with(lambda s: (s.points[1] / "pin.json").mkdir()),
    "verification is a link": _with(lambda s: s.replace(s.points[1] / "verified.json", s.outside / "1f2e.json")),
    "verification is nonsense": _with(_verified),
    "parent outside": _with(_parent("../../../outside/disk-2000.qcow2"), 1, 2),
    "parent absolute": _with(_parent("/etc/passwd"), 1, 2),
    "parent of another object": _with(_parent("../20200101T000000Z/disk-2000.qcow2", f"{'0' * 8}/x"), 1, 2),
    "header leads outside": _with(lambda s: s.overlay(1, str(s.stolen)), 1, 2),
    "header leads outside, relative": _with(lambda s: s.overlay(1, f"../../../outside/{s.stolen.name}"), 1, 2),
    "header leads to a server": _with(lambda s: s.overlay(1, "nbd://127.0.0.1:1/x"), 1, 2),
    "header leads to anything": _with(lambda s: s.overlay(1, f'json:{{"file.filename": "{s.stolen}"}}'), 1, 2),
    "header leads to raw": _with(lambda s: s.overlay(1, str(s.stolen), "raw"), 1, 2),
    "header leads back": _with(lambda s: s.overlay(0, f"../{s.points[1].name}/disk-2000.qcow2"), 0, 1, 2),
    "header leads to itself": _with(lambda s: s.overlay(0, "disk-2000.qcow2"), 0, 1, 2),
    "data in another file": _with(_data_file, 0, 1, 2),
    "header claims a huge disk": _with(lambda s: s.header(0, 24, ">Q", 1 << 60), 0, 1, 2),
    "header claims huge clusters": _with(lambda s: s.header(0, 20, ">I", 63), 0, 1, 2),
    "header claims a huge table": _with(lambda s: s.header(0, 36, ">I", 1 << 31), 0, 1, 2),
    "header claims a long name": _with(lambda s: s.header(1, 16, ">I", 1 << 31), 1, 2),
    "header leads its tables astray": _with(lambda s: s.header(0, 40, ">Q", 1 << 62), 0, 1, 2),
    "disk of a pebibyte": _with(_huge),
    "raw instead of qcow2": _with(lambda s: (s.images(0).write_bytes(bytes(65536)), s.rewrite(0)), 0, 1, 2),
    "vmdk instead of qcow2": _foreign("vmdk"),
    "vpc instead of qcow2": _foreign("vpc"),
    "lock is a link": _with(_lock),
    "lock is a pipe": _with(lambda s: s.replace(s.object / ".lock")),
    "unfinished point is a link": _with(lambda s: (s.object / "20260102T000000Z.partial").symlink_to(s.outside)),
    "deleted point is a link": _with(lambda s: (s.object / "20260102T000000Z.deleted").symlink_to(s.outside)),
    "merge is a link": _with(lambda s: (s.object / f"{s.points[1].name}.merging").symlink_to(s.outside)),
    "merge is a pipe": _with(lambda s: s.replace(s.object / f"{s.points[1].name}.merging")),
    "merge record is a link": _with(lambda s: s.replace(s.merging() / "merge.json", s.outside / "1f2e.json")),
    "merge record is a pipe": _with(lambda s: s.replace(s.merging() / "merge.json")),
    "merge of no point": _with(lambda s: s.merge().rename(s.object / "20260101T000000Z.merging")),
    "merge of another point": _with(lambda s: s.merge(1, str(Path(s.machine.id, s.points[2].name)))),
    "merge of another object": _with(lambda s: s.merge(1, f"{'0' * 8}-0000-4000-8000-{'0' * 12}/20260101T000000Z")),
    "merge names an image outside": _with(lambda s: s.merge(image="../../outside/disk-2000.qcow2")),
    "merge stands outside": _with(
        lambda s: s.merge(parent={"id": f"{s.machine.id}/{s.points[0].name}", "image": "../../outside/disk-2000.qcow2"})
    ),
    "merge of a huge disk": _with(lambda s: s.merge(capacity=1 << 50)),
    "merge without its image": _with(lambda s: (s.merge() / "disk-2000.qcow2").unlink()),
    "image of a merge is a link": _with(_link_in_merging),
    "links in a merge": _with(_link_in_uncommitted),
    "endless record of a merge": _with(lambda s: (s.merging() / "merge.json").write_bytes(b" " * (5 << 20))),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, Path]:
    """A machine, and its repository with three restore points that stand on each other."""
    directory = tmp_path_factory.mktemp("template")
    clock, machine = Clock(), Machine(random.Random(1))
    disk = Disk(2000, "6000C295-0000-4000-8000-000000000000", bytearray(machine.dice.randbytes((1 << 20) + 512)))
    machine.disks = {2000: disk}
    repository = Repository(directory / "repository", directory / "scratch", clock, machine.dice)
    for _point in range(3):
        repository.backup(machine)
        clock.forward(days=1)
        disk.put(65536 * machine.dice.randrange(8), machine.dice.randbytes(1000))
    assert [point["chain_length"] for point in repository.points()] == [1, 2, 3]
    return machine, repository.path


def everything(scene: Scene) -> list[Callable[[], Any]]:
    """All that can be done with a repository. Restore points are deleted at last."""
    run, identity = scene.repository.run, f"{scene.machine.id}/"
    names = [point.name for point in scene.points]
    steps: list[Callable[[], Any]] = [
        lambda: run("restore_point_info", verify="content"),
        lambda: run("restore_point", state="pinned", id=identity + names[0], reason="why not"),
        lambda: run("restore_point", state="unpinned", id=identity + names[0]),
    ]
    steps += [lambda level=level: run("repository_verification", level=level) for level in LEVELS]
    steps += [lambda check=check: run("repository_retention", check=check, keep_last=1) for check in (True, False)]
    steps += [
        lambda: run("repository_retention", keep_last=2, max_chain=1),
        lambda: scene.repository.back_up(scene.machine),
        lambda: run("repository_retention", keep_last=1, remove_damaged=True),
    ]
    steps += [
        lambda name=name: run("restore_point", state="absent", id=identity + name, force=True)
        for name in reversed(names)
    ]
    return steps


def outcome(step: Callable[[], Any]) -> str:
    """How a step ends: done, or an error that is told in order."""
    try:
        step()
    except ModuleFailed as failure:
        return str(failure.result["error_type"])  # only a BackupError has one
    return "done"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_what_an_enemy_wrote_leads_nowhere(
    template: tuple[Machine, Path], attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_POLL", 0.01)  # what is no lock is waited for, ten times that long
    machine, source = template
    scene = Scene(copy.deepcopy(machine), source, tmp_path)
    damaged = attack(scene)
    outcomes = []
    with untouched(scene.outside):
        listed = scene.repository.listed(verify="structure")
        assert [not point["verified"]["ok"] for point in listed] == [number in damaged for number in range(3)]
        for step in everything(scene):
            begun = sum(os.times()[:4])
            outcomes.append(outcome(step))
            assert sum(os.times()[:4]) - begun < 20, f"step {len(outcomes)} took too long"  # processor time, in seconds
    print(outcomes)
    assert (scene.outside / "1f2e.json").read_text() == "secret"
