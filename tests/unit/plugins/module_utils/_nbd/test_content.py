# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The content hash, against the one that a shell makes of the raw disk."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import CopyFailed, TimedOut
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import content, hashing
from ansible_collections.holdfast.backup.tests.unit.documents import ROOT
from hypothesis import given
from hypothesis import strategies as st

KIB, MIB = 1 << 10, 1 << 20


def by_hand(raw: Path) -> str:
    """As docs/repository-format.md says."""
    lines = (ROOT / "docs/repository-format.md").read_text().splitlines()
    (command,) = (line for line in lines if line.startswith("split --bytes=4M "))
    raw.rename(raw.parent / "disk1.raw")
    done = subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True, cwd=raw.parent)
    return done.stdout.split()[0]


def write(image: Path, *commands: str) -> None:
    arguments = [part for command in commands for part in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", *arguments, str(image)], check=True, capture_output=True)


def create(image: Path, size: int, parent: Path | None = None) -> Path:
    backing = ["-F", "qcow2", "-b", parent.name] if parent else []
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", *backing]
    subprocess.run([*command, str(image), str(-(-size // 65536) * 65536)], check=True)
    return image


def raw_of(image: Path, size: int) -> Path:
    raw = image.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(raw)], check=True)
    with raw.open("r+b") as file:
        file.truncate(size)
    return raw


@pytest.fixture(params=[64 * MIB, 37 * MIB + 512 * 3, 4 * MIB, 512, 8 * MIB + 1])
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[Path], int]:
    """Three images with data here and there, zeros over data, and a hole as large as a block; and the capacity."""
    size = request.param
    chance = random.Random(size)
    images: list[Path] = []
    for number in range(3):
        image = create(tmp_path / f"{number}.qcow2", size, images[0] if images else None)
        clusters = -(-size // 65536)
        commands = [f"write -c -P {number + 1} {chance.randrange(clusters) * 65536} 65536" for _turn in range(6)]
        commands = list(dict.fromkeys(commands))
        if number:
            commands.append(f"write -z {chance.randrange(clusters) * 65536} 65536")
        seen: set[str] = set()
        write(image, *(one for one in commands if one.split()[-2] not in seen and not seen.add(one.split()[-2])))
        images.insert(0, image)
    return images, size


def test_it_is_what_the_shell_makes_of_the_raw_disk(chain: tuple[list[Path], int]) -> None:
    images, size = chain
    told: list[tuple[int, int]] = []
    digest, read = content.content_hash([str(one) for one in images], size, tell=lambda *args: told.append(args))
    assert digest == by_hand(raw_of(images[0], size))
    assert read <= size
    assert not told or told[-1][0] <= told[-1][1] == read


def test_an_empty_disk_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = create(tmp_path / "0.qcow2", 9 * MIB)
    expected = by_hand(raw_of(image, 9 * MIB))
    monkeypatch.setattr(content.copy, "run", None)
    assert content.content_hash([str(image)], 9 * MIB) == (expected, 0)


def test_an_image_that_cannot_be_decompressed_is_said(tmp_path: Path) -> None:
    image = create(tmp_path / "0.qcow2", MIB)
    write(image, "write -c -P 7 0 65536")
    data = bytearray(image.read_bytes())
    start = data.index(b"\x28\xb5\x2f\xfd")  # zstd's magic number
    data[start : start + 4] = b"\0\0\0\0"
    image.write_bytes(data)
    with pytest.raises(CopyFailed, match="failed"):
        content.content_hash([str(image)], MIB)


def test_it_stops_when_told_to(tmp_path: Path) -> None:
    image = create(tmp_path / "0.qcow2", 64 * MIB)
    write(image, "write -P 7 0 64M")

    def check() -> None:
        raise TimedOut("It is late.")

    with pytest.raises(TimedOut, match="late"):
        content.content_hash([str(image)], 64 * MIB, check)


AREAS = st.lists(st.tuples(st.integers(0, 40 * MIB), st.integers(0, 10 * MIB)), max_size=20)


@given(AREAS, st.integers(1, 50 * MIB))
def test_blocks_are_whole_and_hold_all_the_data(areas: list[tuple[int, int]], capacity: int) -> None:
    wanted = content.blocks(areas, capacity)
    for start, length in wanted:
        assert start % content.BLOCK == 0
        assert (start + length) % content.BLOCK == 0 or start + length == capacity
    for start, length in areas:
        end = min(start + length, capacity)
        if start < end:
            assert any(one <= start and end <= one + size for one, size in wanted)


@given(st.binary(min_size=1, max_size=50), st.sampled_from([1, 3, 8]), st.randoms(use_true_random=False))
def test_the_plugin_takes_parts_in_any_order(data: bytes, block: int, chance: random.Random) -> None:
    wanted = {
        number: hashing.hashlib.sha256(data[number * block : (number + 1) * block]).digest()
        for number in range(-(-len(data) // block))
    }
    cuts = sorted({0, len(data), *(chance.randrange(len(data) + 1) for _turn in range(6))})
    parts = list(zip(cuts, cuts[1:]))
    chance.shuffle(parts)
    read_end, write_end = hashing.os.pipe()
    try:
        for name, value in (("size", len(data)), ("capacity", len(data)), ("block", block)):
            hashing.config(name, str(value))
        hashing._Plugin.file = write_end
        for start, end in parts:
            hashing.pwrite(1, bytearray(data[start:end]), start, 0)
        found = dict(hashing.RECORD.iter_unpack(hashing.os.read(read_end, 1 << 16)))
    finally:
        hashing.os.close(read_end)
        hashing.os.close(write_end)
    assert found == wanted
    assert not hashing._Plugin.incomplete
