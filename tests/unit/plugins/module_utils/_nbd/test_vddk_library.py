# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The binding's structures, and finding a library in what the user calls his VDDK directory."""

from __future__ import annotations

import ctypes

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import vddk_library as subject
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_interface import VddkError


@pytest.mark.parametrize(
    ("structure", "field", "offset"),
    [
        (subject.ConnectParams, "thumbprint", 16),
        (subject.ConnectParams, "credential_type", 32),
        (subject.ConnectParams, "username", 40),
        (subject.ConnectParams, "password", 48),
        (subject.ConnectParams, "port", 64),
        (subject.ConnectParams, "fcd_id", 96),
        (subject.ConnectParams, "fcd_datastore", 104),
        (subject.ConnectParams, "fcd_snapshot", 112),
        (subject.ConnectParams, "spec_type", 120),
        (subject.Info, "capacity", 24),
        (subject.Info, "uuid", 48),
        (subject.BlockList, "blocks", 8),
    ],
)
def test_fields_lie_where_the_library_has_them(structure, field, offset):
    assert getattr(structure, field).offset == offset


def test_structures_have_the_librarys_size():
    sizes = [ctypes.sizeof(each) for each in (subject.ConnectParams, subject.Info, subject.Block)]
    assert sizes == [128, 56, 16]  # of Info the part that all versions have


def kit(root, *names):
    (root / "lib64").mkdir(parents=True)
    for name in names:
        (root / "lib64" / name).touch()
    return root


def test_the_newest_library_wins(tmp_path):
    root = kit(
        tmp_path / "kit",
        "libvixDiskLib.so.7.0.3",
        "libvixDiskLib.so.10",
        "libvixDiskLib.so.9.0.1",
        "libvixDiskLibVim.so.11",
    )
    assert subject.find_library(str(root)) == (str(root / "lib64" / "libvixDiskLib.so.10"), (10,))


def test_the_version_is_that_of_the_file_behind_the_link(tmp_path):
    root = kit(tmp_path / "kit", "libvixDiskLib.so.8.0.3")
    (root / "lib64" / "libvixDiskLib.so").symlink_to("libvixDiskLib.so.8.0.3")
    (root / "lib64" / "libvixDiskLib.so.8.0.3").rename(root / "libvixDiskLib.so.8.0.3")
    (root / "lib64" / "libvixDiskLib.so").unlink()
    (root / "lib64" / "libvixDiskLib.so").symlink_to(root / "libvixDiskLib.so.8.0.3")
    assert subject.find_library(str(root))[1] == (8, 0, 3)


@pytest.mark.parametrize(
    ("inside", "message", "hint"),
    [
        ("nowhere", "does not exist", "Unpack VDDK"),
        ("kit/lib64", "is not the root of VDDK", "/kit."),
        ("empty", "holds no lib64/libvixDiskLib.so", "was unpacked to"),
    ],
)
def test_a_wrong_directory_is_explained(tmp_path, inside, message, hint):
    kit(tmp_path / "kit", "libvixDiskLib.so.8")
    kit(tmp_path / "empty")
    with pytest.raises(VddkError, match=message) as caught:
        subject.find_library(str(tmp_path / inside))
    assert hint in caught.value.hint


def test_a_broken_library_is_explained(tmp_path):
    root = kit(tmp_path / "kit", "libvixDiskLib.so.8")
    with pytest.raises(VddkError, match=r"libvixDiskLib\.so\.8 cannot be loaded") as caught:
        subject.Library(str(root), lambda text, is_warning: None)
    assert caught.value.stage == "load"


@pytest.mark.parametrize(
    ("version", "asked"),
    [((9, 0), (7, 0)), ((8,), (7, 0)), ((), (7, 0)), ((6, 7, 3), (6, 7)), ((6,), (6, 5)), ((6, 5), (6, 5))],
)
def test_no_library_is_asked_for_a_newer_interface_than_its_own(version, asked):
    assert subject.asked_version(version) == asked
