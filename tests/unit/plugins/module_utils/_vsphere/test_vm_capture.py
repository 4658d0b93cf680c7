# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a captured VM was, and the files that keep its configuration."""

from __future__ import annotations

import os

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import datastore_files
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import vm_capture as subject
from ansible_collections.holdfast.backup.tests.unit.plugins.module_utils._vsphere.vm_documents import sample


def test_place_of_a_vm_in_nested_folders():
    found, notes = subject.place(
        "/corp/DC0/vm/prod/web/web01", "/corp/DC0/host/C0/H0", "/corp/DC0/host/C0/Resources", False
    )
    assert found == {
        "host": "/corp/DC0/host/C0/H0",
        "datacenter": "/corp/DC0",
        "folder": "/corp/DC0/vm/prod/web",
        "resource_pool": "/corp/DC0/host/C0/Resources",
    }
    assert not notes


def test_place_of_a_template_and_of_a_vm_in_a_vapp():
    assert "resource_pool" not in subject.place("/DC0/vm/t", "/DC0/host/H0", None, False)[0]
    pool = "/DC0/host/C0/Resources/app"
    found, notes = subject.place(f"{pool}/web01", "/DC0/host/C0/H0", pool, True)
    assert found == {"host": "/DC0/host/C0/H0", "datacenter": "/DC0"}
    assert "vApp app" in notes[0]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    files = {"config.json": b"new"}
    (tmp_path / "config.json").write_bytes(b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BackupError, match="No space left"):
        subject.save(str(tmp_path), files, ["config.json"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"config.json": b"old"}


def test_a_directory_will_do_for_the_path(tmp_path):
    captured = subject.Captured({}, sample(), None)
    subject.save(str(tmp_path), subject.files(captured), ["config.json"])
    assert subject.load(str(tmp_path)) == subject.load(str(tmp_path / "config.json")) == (sample(), None)


def test_a_huge_file_is_refused(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(InvalidInput, match="larger"):
        subject.load(str(tmp_path))


@pytest.mark.parametrize("path", ["", "ds1/web.vmx", "[ds1]", "[ds1] ", "web] x"])
def test_paths_that_are_not_on_a_datastore(path):
    with pytest.raises(InvalidInput):
        datastore_files.split(path)


def test_files_beside_another():
    assert datastore_files.sibling("[ds 1] web/web.vmx", "web.nvram") == "[ds 1] web/web.nvram"
    assert datastore_files.sibling("[ds1] web.vmx", "web.nvram") == "[ds1] web.nvram"
