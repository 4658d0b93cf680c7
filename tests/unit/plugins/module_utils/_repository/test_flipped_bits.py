# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every single flipped bit of a restore point is found at the level of content, and nothing else is accused."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._repository import examining, layout, points, records
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.verification import Verifier
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.unit.repositories import VM, Backup
from hypothesis import given, settings
from hypothesis import strategies as st

HEADER = 4096  # more than a header with all its extensions and the name of the backing file
CLUSTER = 65536


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Backup:
    """A point with all kinds of files, one that stands on it, and a full one."""
    path = tmp_path_factory.mktemp("flips") / "repository"
    path.mkdir()
    backup = Backup(modules.run, path)
    started = backup.start()
    directory = Path(started["restore_point"]["path"])
    (directory / "config.json").write_text('{"name": "web01"}\n')
    (directory / "vm.nvram").write_bytes(bytes(range(256)))
    backup.complete(started, backup.copy(started))
    backup.backup()
    backup.backup(mode="full")
    return backup


def damaged(repository: Repository) -> list[int]:
    """The places in the list of the restore points that are found damaged."""
    entries = points.read_entries(repository, VM["instance_uuid"])
    assert len(entries) == 3
    verifier = Verifier(repository, records.CONTENT, lambda path: None)
    reports = [verifier.examine(entries, entry) for entry in entries]
    return [place for place, report in enumerate(reports) if report is None or report.problems]


@contextmanager
def flipped(path: Path, position: int) -> Iterator[None]:
    """Another bit, counted from the start of the file, for a while."""
    at, bit = divmod(position, 8)
    with path.open("r+b", buffering=0) as file:
        for _turn in range(2):
            byte = os.pread(file.fileno(), 1, at)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), at)
            if not _turn:
                try:
                    yield
                except BaseException:
                    os.pwrite(file.fileno(), bytes([byte]), at)
                    raise


def paths(backup: Backup) -> list[list[Path]]:
    """The files of each point, by time."""
    directories = sorted(path for path in backup.directory.iterdir() if path.is_dir())
    return [sorted(path for path in directory.iterdir() if path.is_file()) for directory in directories]


LOST = {0: [0, 1], 1: [1], 2: [2]}  # with a file of this point; a configuration takes only its own point along


def test_nothing_is_found_where_nothing_is_wrong(backup: Backup) -> None:
    assert damaged(layout.open_repository(str(backup.path))) == []
    assert [len(files) for files in paths(backup)] == [4, 2, 2]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_bit_of_a_manifest(backup: Backup, place: int) -> None:
    repository = layout.open_repository(str(backup.path))
    manifest = paths(backup)[place][-1 if place else 2]
    assert manifest.name == "point.json"
    for position in range(8 * manifest.stat().st_size):
        with flipped(manifest, position):
            entry = points.read_entry(repository, points.PointId(VM["instance_uuid"], manifest.parent.name))
            assert entry is not None
            assert entry.point is None, f"bit {position} of {manifest} passed"
    for position in range(0, 8 * manifest.stat().st_size, 1009):
        with flipped(manifest, position):
            assert damaged(repository) == LOST[place]


@pytest.mark.parametrize("name", ["config.json", "vm.nvram"])
def test_every_bit_of_another_file(backup: Backup, name: str) -> None:
    repository = layout.open_repository(str(backup.path))
    path = paths(backup)[0][0].parent / name
    for position in range(8 * path.stat().st_size):
        if name == "config.json" or position % 7 == 0:
            with flipped(path, position):
                assert damaged(repository) == [0], f"bit {position} of {path}"


def flips(repository: Repository, path: Path, positions: Iterable[int]) -> None:
    """Flip these bits of an image, one after the other, and see that each is found when this one file is examined."""
    readable = points.readable(points.read_entries(repository, VM["instance_uuid"]))
    (part,) = (part for part in examining.parts_of(readable[path.parent.name]) if part.name == path.name)
    for position in positions:
        with flipped(path, position):
            examiner = examining.Examiner(repository, records.CONTENT, lambda path: None)
            finding = examiner.examine(part)
            assert finding.error is not None, f"bit {position} of {path} passed"
            assert not finding.vanished


@pytest.mark.parametrize("place", [0, 1])
def test_every_bit_of_an_image_header(backup: Backup, place: int) -> None:
    repository = layout.open_repository(str(backup.path))
    image = paths(backup)[place][0 if place else 1]
    data = image.read_bytes()[:HEADER]
    used = len(data.rstrip(b"\0")) + 8
    assert 104 < used < HEADER
    flips(repository, image, range(8 * used))


def test_bits_of_every_cluster_of_an_image(backup: Backup) -> None:
    """Header, tables of reference counts, tables of the map, data, and what nothing refers to."""
    repository, chance = layout.open_repository(str(backup.path)), random.Random(4)
    image = paths(backup)[2][0]
    size = image.stat().st_size
    positions = []
    for start in range(0, size, CLUSTER):
        end = min(start + CLUSTER, size)
        positions += [8 * start, 8 * end - 1, *(chance.randrange(8 * start, 8 * end) for _turn in range(60))]
    flips(repository, image, positions)


@settings(max_examples=150)
@given(st.data())
def test_any_bit_of_any_file_is_found_and_nothing_else_accused(backup: Backup, data: Any) -> None:
    repository = layout.open_repository(str(backup.path))
    place = data.draw(st.integers(0, 2))
    path = data.draw(st.sampled_from(paths(backup)[place]))
    position = data.draw(st.integers(0, 8 * path.stat().st_size - 1))
    with flipped(path, position):
        own = path.suffix == ".nvram" or path.name == "config.json"
        assert damaged(repository) == ([place] if own else LOST[place])
