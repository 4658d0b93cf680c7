# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""New images made of several of a chain; qemu-img and byte for byte comparison are the judges."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    CopyFailed,
    Damaged,
    NoSpace,
    NotSupported,
    TimedOut,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import (
    areas,
    cloning,
    images,
    jobs,
    merging,
    requirements,
    servers,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.backup import backup
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch

MIB = areas.MIB
CLUSTER = servers.CLUSTER
ODD = 12 * MIB + 3 * 512  # neither a whole number of clusters nor of MiB


@dataclass
class RawDisk:
    """A disk access of the copy over a raw file."""

    path: Path
    transport: str = "file"
    warnings: list[str] = field(default_factory=list)
    error: BackupError | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[servers.Disk]:
        yield servers.Disk(("file", str(self.path)))


class Chain:
    """Restore points of one disk, ``<directory>/<number>/disk-2000.qcow2``, and what the disk held at each."""

    def __init__(self, directory: Path, capacity: int = ODD, seed: int = 1, compression: str = "zstd") -> None:
        self.directory, self.capacity = directory, capacity
        self.dice = random.Random(seed)
        self.content = bytearray(capacity)
        self.moments: list[bytes] = []
        self.compression = compression
        directory.mkdir(exist_ok=True)
        (directory / "work").mkdir()

    def image(self, number: int) -> Path:
        """The image of a point."""
        return self.directory / str(number) / "disk-2000.qcow2"

    def back_up(self, changed: list[areas.Area]) -> None:
        """The next point, of what changed since the last."""
        number = len(self.moments)
        raw = self.directory / "disk.raw"
        raw.write_bytes(self.content)
        self.image(number).parent.mkdir()
        options: dict[str, Any] = {}
        if number:
            options = {"work": areas.normalise(changed, self.capacity), "parent": str(self.image(number - 1))}
        task = jobs.Task("Hard disk 1", RawDisk(raw), str(self.image(number)), self.capacity, **options)
        backup(task, jobs.Settings(str(self.directory / "work"), compression=self.compression), Watch())
        self.moments.append(bytes(self.content))

    def write(self, start: int, data: bytes) -> areas.Area:
        """What a guest does."""
        self.content[start : start + len(data)] = data
        return start, len(data)

    def scatter(self, writes: int, longest: int = 300_000) -> list[areas.Area]:
        """Writes of what compresses, what does not, and zeros."""
        changed = []
        for dummy in range(writes):
            length = self.dice.randrange(1, longest)
            start = self.dice.randrange(0, self.capacity - length)
            data = self.dice.choice((self.dice.randbytes(length), bytes(length), (b"lorem ipsum " * length)[:length]))
            changed.append(self.write(start, data))
        return changed

    def live(self, points: int, first: int = 40, later: int = 6) -> None:
        """So many points, a full one and those on it."""
        self.back_up(self.scatter(first))
        for dummy in range(points - 1):
            self.back_up(self.scatter(later))

    def source(self, number: int) -> tuple[str, int, str]:
        """What a manifest says of an image."""
        path = self.image(number)
        return str(path), path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()

    def merge(self, oldest: int, newest: int, **changes: Any) -> merging.Made:
        """The image that takes the place of those from ``oldest`` to ``newest``, in a directory of its own."""
        target = self.target(newest)
        target.parent.mkdir(exist_ok=True)
        settings = {name: changes.pop(name) for name in ("rate_limit", "compression") if name in changes}
        options: dict[str, Any] = {
            "target": str(target),
            "sources": [self.source(number) for number in range(oldest, newest + 1)],
            "parent": str(self.image(oldest - 1)) if oldest else None,
            "capacity": self.capacity,
            "name": "Hard disk 1",
            "fresh": False,
            "renew": lambda: None,
            **changes,
        }
        watch = options.pop("watch", Watch())
        return merging.make_image(merging.Settings(str(self.directory / "work"), **settings), watch, **options)

    def target(self, newest: int) -> Path:
        """Where a merged image is made."""
        return self.directory / f"{newest}.merging" / "disk-2000.qcow2"

    def switch(self, oldest: int, newest: int) -> None:
        """Put it in place; those that it replaces go."""
        os.replace(self.target(newest), self.image(newest))
        for number in range(oldest, newest):
            self.image(number).unlink()

    def restored(self, number: int) -> bytes:
        """What a point's image holds, by plain qemu-img."""
        return restored(self.image(number))[: self.capacity]


def restored(image: Path) -> bytes:
    raw = image.with_suffix(".check")
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image], check=True)
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    data = raw.read_bytes()
    raw.unlink()
    return data


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path / "chain")


def assert_merged(chain: Chain, oldest: int, newest: int, made: merging.Made) -> None:
    """The new image is as told, and every point that is left is what it was, before and after the switch."""
    target = chain.target(newest)
    assert (made.size, made.sha256) == (target.stat().st_size, hashlib.sha256(target.read_bytes()).hexdigest())
    assert restored(target)[: chain.capacity] == chain.moments[newest]
    backing = f"../{oldest - 1}/disk-2000.qcow2" if oldest else None
    assert images.info(str(target)).get("backing-filename") == backing
    left = [number for number in range(len(chain.moments)) if not oldest <= number < newest]
    chain.switch(oldest, newest)
    for number in filter(lambda number: chain.image(number).exists(), left):
        assert chain.restored(number) == chain.moments[number], number


# --- the ways --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["zstd", "zlib", "none"])
@pytest.mark.parametrize(("oldest", "newest"), [(0, 1), (0, 3), (1, 2), (2, 4)])
def test_a_merged_image_holds_what_the_chain_held(tmp_path: Path, compression: str, oldest: int, newest: int) -> None:
    chain = Chain(tmp_path / "chain", seed=10 * oldest + newest, compression=compression)
    chain.live(6)
    made = chain.merge(oldest, newest)
    assert_merged(chain, oldest, newest, made)


@pytest.mark.parametrize("compression", ["zstd", "zlib", "none"])
def test_few_changes_are_brought_into_a_copy_of_the_full_image(tmp_path: Path, compression: str) -> None:
    chain = Chain(tmp_path / "chain", compression=compression)
    chain.live(4, first=100, later=2)
    full = chain.image(0).stat().st_size
    made = chain.merge(0, 2)
    assert made.way in (merging.COPY, merging.REFLINK)
    assert made.size < 1.3 * full
    kind = merging._compression(str(chain.target(2)))
    assert kind == compression
    assert_merged(chain, 0, 2, made)


@pytest.mark.parametrize("fresh", [True, False])
def test_many_changes_are_written_anew_and_leave_no_gaps(chain: Chain, fresh: bool) -> None:
    chain.live(4, first=20, later=20)
    before = chain.image(3).read_bytes()
    made = chain.merge(0, 2, fresh=fresh)
    assert made.way == merging.REWRITE
    assert_merged(chain, 0, 2, made)
    assert chain.image(3).read_bytes() == before


@pytest.mark.parametrize("compression", ["zstd", "zlib", "none"])
def test_what_is_written_anew_is_compressed_as_asked_for(chain: Chain, compression: str) -> None:
    chain.live(3)
    made = chain.merge(0, 2, fresh=True, compression=compression)
    assert merging._compression(str(chain.target(2))) == compression
    assert_merged(chain, 0, 2, made)


@pytest.mark.parametrize("first", ["zstd", "none"])
def test_what_is_merged_of_compressed_and_plain_images_is_compressed(chain: Chain, first: str) -> None:
    """Written plainly it could take more space than all old images, which a plan counts with."""
    chain.compression = first
    chain.back_up([chain.write(0, b"text " * (8 * MIB // 5))])
    chain.compression = "none" if first == "zstd" else "zstd"
    chain.back_up([chain.write(8 * MIB, b"text " * (MIB // 5))])
    made = chain.merge(0, 1, fresh=True)
    assert merging._compression(str(chain.target(1))) == "zstd"
    assert made.size <= sum(chain.image(number).stat().st_size for number in (0, 1))
    assert_merged(chain, 0, 1, made)


@pytest.mark.parametrize("oldest", [0, 1])
def test_zeros_hide_what_older_images_hold(chain: Chain, oldest: int) -> None:
    """A guest trims: that it is zero now must survive every way of merging."""
    chain.back_up([chain.write(0, chain.dice.randbytes(8 * MIB))])
    chain.back_up([chain.write(MIB, b"x" * MIB)])
    chain.back_up([chain.write(2 * MIB, bytes(2 * MIB)), chain.write(MIB + 65536, bytes(65536))])
    chain.back_up([chain.write(9 * MIB, b"y" * 70_000)])
    made = chain.merge(oldest, 2)
    assert_merged(chain, oldest, 2, made)


def test_empty_increments_and_an_empty_disk(chain: Chain) -> None:
    for changed in ([], [], [chain.write(5, b"z")], []):
        chain.back_up(changed)
    assert_merged(chain, 0, 1, chain.merge(0, 1))
    assert_merged(chain, 2, 3, chain.merge(2, 3))


def test_a_disk_smaller_than_a_cluster(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "chain", capacity=512)
    chain.back_up([chain.write(0, b"a" * 512)])
    chain.back_up([chain.write(10, b"b")])
    assert_merged(chain, 0, 1, chain.merge(0, 1))


def test_merge_upon_merge_stays_small_and_right(chain: Chain) -> None:
    """As a nightly retention does for years: the oldest goes, its child takes its place."""
    chain.live(12, first=60, later=3)
    ways = set()
    for newest in range(1, 12):
        made = chain.merge(newest - 1, newest, parent=None)
        ways.add(made.way)
        os.replace(chain.target(newest), chain.image(newest))
        chain.image(newest - 1).unlink()
        for number in range(newest, 12):
            assert chain.restored(number) == chain.moments[number]
        assert made.size <= 2 * ODD
    assert ways & {merging.COPY, merging.REFLINK}


def test_an_image_with_many_gaps_is_written_anew(chain: Chain) -> None:
    chain.back_up([chain.write(0, chain.dice.randbytes(8 * MIB))])
    chain.back_up([chain.write(0, b"q" * 65536)])
    with open(chain.image(0), "ab") as stream:  # as after many merges: clusters that nothing refers to
        stream.truncate(40 * MIB)
    made = chain.merge(0, 1)
    assert (made.way, made.size < 9 * MIB) == (merging.REWRITE, True)
    assert_merged(chain, 0, 1, made)


@pytest.mark.parametrize("seed", range(12))
def test_random_chains_and_runs(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    compression = dice.choice(("zstd", "zlib", "none"))
    capacity = dice.choice((ODD, 5 * MIB, 3 * MIB + 512, 20 * MIB - 512))
    chain = Chain(tmp_path / "chain", capacity, seed, compression)
    points = dice.randrange(2, 7)
    chain.live(points, first=dice.choice((0, 5, 60)), later=dice.choice((1, 4, 20)))
    newest = dice.randrange(1, points)
    oldest = dice.randrange(newest)
    made = chain.merge(oldest, newest, fresh=dice.random() < 0.3)
    assert_merged(chain, oldest, newest, made)


# --- bad days --------------------------------------------------------------------------------------------------------


def files_below(path: Path) -> dict[str, bytes]:
    return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*.qcow2")}


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_flipped_bit_in_any_source_is_found_before_it_is_used(chain: Chain, which: int, fresh: bool) -> None:
    chain.live(3, first=80, later=2)
    sources = [chain.source(number) for number in range(3)]
    data = bytearray(chain.image(which).read_bytes())
    data[len(data) * 3 // 4] ^= 1
    chain.image(which).write_bytes(data)
    before = files_below(chain.directory)
    with pytest.raises(Damaged) as caught:
        chain.merge(0, 2, sources=sources, fresh=fresh)
    assert caught.value.details["path"] == str(chain.image(which))
    chain.target(2).unlink(missing_ok=True)
    assert files_below(chain.directory) == before


def test_an_image_of_a_foreign_kind_is_refused(chain: Chain) -> None:
    chain.live(2)
    foreign = chain.image(0).with_name("foreign.qcow2")
    options = ["-o", "cluster_size=4096"]
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", *options, chain.image(0), foreign], check=True)
    os.replace(foreign, chain.image(0))
    with pytest.raises(NotSupported, match="not as this collection makes them"):
        chain.merge(0, 1)


def test_a_wrong_cluster_in_the_new_image_is_found(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof does not trust what was written."""
    chain.live(3, first=80, later=2)
    real = merging._Work.apply

    def spoil(self: Any, run: Any, changed: list[areas.Area], zeroed: bool) -> None:
        real(self, run, changed, zeroed)
        start = changed[0][0]
        images.edit(self.target, [f"write -q -z -u {start} 65536", f"write -q -P 7 {start} 65536"], lambda: None)

    monkeypatch.setattr(merging._Work, "apply", spoil)
    with pytest.raises(CopyFailed, match=r"not the same|does not match"):
        chain.merge(0, 2)


def test_a_cluster_too_many_or_too_few_is_found(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.back_up([chain.write(0, chain.dice.randbytes(2 * MIB))])
    chain.back_up([chain.write(0, b"x")])
    real = merging._Work.prove

    def spoil(self: Any, run: Any, changed: list[areas.Area]) -> None:
        real(self, run, changed)
        images.edit(self.target, [f"write -q -P 7 {8 * MIB} 65536"], lambda: None)

    monkeypatch.setattr(merging._Work, "prove", spoil)
    with pytest.raises(CopyFailed, match="does not hold what the old ones held"):
        chain.merge(0, 1)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_full_file_system_is_told(chain: Chain, fresh: bool, tmp_path: Path) -> None:
    chain.live(3, first=80, later=3)
    small = chain.target(2).parent
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    before = [chain.image(number).read_bytes() for number in range(3)]
    try:
        with pytest.raises((NoSpace, OSError)) as caught:
            chain.merge(0, 2, fresh=fresh)
        assert "No space left" in str(caught.value)
    finally:
        subprocess.run(["umount", small], check=True)
    assert [chain.image(number).read_bytes() for number in range(3)] == before


def test_the_work_stops_when_it_is_told_to(chain: Chain) -> None:
    chain.live(3)
    with pytest.raises(TimedOut):
        chain.merge(0, 2, watch=Watch(timeout=1e-9))

    def lost() -> None:
        raise Damaged("The lock is lost.")

    with pytest.raises(Damaged, match="lock is lost"):
        chain.merge(0, 2, renew=lost)


def test_a_rate_limit_is_kept(chain: Chain) -> None:
    chain.back_up([chain.write(0, chain.dice.randbytes(8 * MIB))])
    chain.back_up([chain.write(0, b"x" * MIB)])
    started = time.monotonic()
    made = chain.merge(0, 1, rate_limit=6 * MIB)
    assert time.monotonic() - started > 8 / 6 + 8 / 6  # the copy, then the hash
    assert_merged(chain, 0, 1, made)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_copy_keeps_holes_and_hashes_them(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with open(source, "wb") as stream:
        stream.truncate(40 * MIB)
        for start in (0, 9 * MIB + 5, 30 * MIB):
            stream.seek(start)
            stream.write(b"data" * 50_000)
    shared, sha256 = cloning.clone(str(source), str(target), lambda done: None)
    assert source.read_bytes() == target.read_bytes()
    assert sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert shared or target.stat().st_blocks <= source.stat().st_blocks + 64
    assert cloning.digest(str(source), lambda done: None) == sha256
    with pytest.raises(FileExistsError):
        cloning.clone(str(source), str(target), lambda done: None)


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """A file system whose files can share blocks."""
    disk, mounted = tmp_path / "btrfs.raw", tmp_path / "btrfs"
    mounted.mkdir()
    with open(disk, "wb") as stream:
        stream.truncate(256 * MIB)
    for command in (["mkfs.btrfs", "-q", disk], ["mount", "-o", "loop", disk, mounted]):
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("may not mount btrfs here")
    yield mounted
    subprocess.run(["umount", mounted], check=True)


def test_blocks_are_shared_where_the_file_system_can(btrfs: Path) -> None:
    assert cloning.can_reflink(str(btrfs))
    assert not list(btrfs.iterdir())
    chain = Chain(btrfs / "chain")
    chain.live(4, first=100, later=2)
    made = chain.merge(0, 2)
    assert made.way == merging.REFLINK
    assert made.bytes_written < chain.image(0).stat().st_size / 2
    assert_merged(chain, 0, 2, made)


def test_what_merging_needs_is_there() -> None:
    requirements.check_programs(merging=True)
