# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_config, state present: what is refused or fails, and that nothing stays of it."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import datastore_files
from ansible_collections.holdfast.backup.tests.integration.vm_config.support import (
    NVRAM,
    nvram,
    unchanged,
    warned,
)


def test_an_existing_vm_is_never_overwritten(config, original, name, vcenter):
    config("captured", name=name)
    with unchanged(vcenter):
        assert f"/DC0/vm/{name} exists already" in config("present", name=name, fail=True)["msg"]
    config("present", name=f"{name}-copy")
    with unchanged(vcenter):
        other = config("present", name=f"{name}-copy", restore_id="point 2", fail=True)
    assert "unfinished restore point 1" in other["msg"]


@pytest.mark.parametrize(
    ("options", "missing", "there"),
    [
        ({"networks": {"VM Network": "nirvana"}}, "nirvana", "VM Network"),
        ({"datastore": "full"}, "full", "LocalDS_0, LocalDS_1"),
        ({"folder": "/DC0/vm/nowhere"}, "/DC0/vm/nowhere", "/DC0/vm has the folders"),
        ({"folder": "a/b"}, "/DC0/vm/a/b", "/DC0/vm/a does not exist either"),
        ({"resource_pool": "nopool"}, "nopool", "/DC0/host/"),
        ({"cluster": "nocluster"}, "nocluster", "/DC0/host/"),
        ({"esxi_hostname": "nohost"}, "nohost", "/DC0/host/"),
        ({"disks": [{"disk": "Hard disk 9"}]}, "Hard disk 9", "key"),
        ({"folder": "/DC0/host"}, "/DC0/host", "/datacenter/vm/folder"),
    ],
)
def test_what_is_missing_is_named_with_what_there_is(config, original, name, vcenter, options, missing, there):
    config("captured", name=name)
    with unchanged(vcenter):
        message = config("present", name=f"{name}-copy", fail=True, **options)["msg"]
    assert missing in message
    assert there in message


def test_a_failed_creation_leaves_nothing(config, original, name, vcenter, lab):
    config("captured", name=name)
    for fault in ({"task": "*createVm*"}, {"method": "CreateVM_Task"}, {"method": "ReconfigVM_Task"}):
        lab.fault(fault="InsufficientResourcesFault", **fault)
        with unchanged(vcenter):
            failed = config("present", name=f"{name}-copy", fail=True)
        assert failed["fault"] == "InsufficientResourcesFault", fault
        lab.clear_faults()
    assert config("present", name=f"{name}-copy")["changed"]


def test_a_nvram_that_cannot_be_written_leaves_nothing(config, original, name, vcenter, monkeypatch):
    config("captured", name=name)
    monkeypatch.setattr(datastore_files, "download", lambda *args: b"other")  # what is read back after the upload
    with unchanged(vcenter):
        assert "does not hold what was written" in config("present", name=f"{name}-copy", fail=True)["msg"]


def test_damaged_files_are_refused(config, original, name, vcenter, tmp_path):
    config("captured", name=name)
    (tmp_path / "vm.nvram").write_bytes(NVRAM[:-1])
    with unchanged(vcenter):
        assert "is not what was written" in config("present", name=f"{name}-copy", fail=True)["msg"]
        (tmp_path / "config.json").write_text("{}")
        assert "no VM configuration" in config("present", name=f"{name}-copy", fail=True)["msg"]
        (tmp_path / "config.json").unlink()
        assert "There is no file" in config("present", name=f"{name}-copy", fail=True)["msg"]


def test_content_without_a_path_has_no_nvram(config, original, name, vcenter, lab):
    document = config("captured", name=name)["config"]
    made = config("present", name=f"{name}-copy", config=document)
    assert "NVRAM is not restored" in warned(made)
    assert nvram(lab, f"{name}-copy").read_bytes() != NVRAM
