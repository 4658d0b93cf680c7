# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_config, state captured: what is written, and what is not."""

from __future__ import annotations

import json
import os
import stat

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests.integration.vm_config.support import (
    MIB,
    NVRAM,
    add,
    dev,
    disk,
    nvram,
    warned,
)


def test_captured_writes_private_files_once(config, original, name, tmp_path):
    assert config("captured", name=name, check=True)["changed"]
    assert not list(tmp_path.iterdir())
    result = config("captured", name=name)
    assert result["changed"]
    assert result["files"] == [str(tmp_path / "config.json"), str(tmp_path / "vm.nvram")]
    for path in result["files"]:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert json.loads((tmp_path / "config.json").read_text()) == result["config"]
    assert (tmp_path / "vm.nvram").read_bytes() == NVRAM
    assert result["vm"]["moid"] == original._GetMoId()
    assert [disk["mode"] for disk in result["unprotected"]] == ["independent_persistent"]
    assert "not protected" in warned(result)
    assert not config("captured", name=name)["changed"]


def test_no_secret_is_written(config, original, name, tmp_path, lab):
    config("captured", name=name)
    text = (tmp_path / "config.json").read_text()
    assert "guestinfo.userdata" in text
    assert "password: x" not in text
    assert lab.password not in text


def test_a_change_is_captured_and_a_stale_nvram_removed(config, original, name, vcenter, lab, tmp_path):
    config("captured", name=name)
    vcenter.reconfigure(original, annotation="other")
    nvram(lab, name).unlink()
    result = config("captured", name=name)
    assert result["config"]["settings"]["other"]["annotation"] == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_nvram_is_the_file_that_the_vm_names(config, original, name, vcenter, lab):
    other = nvram(lab, name).with_name("firmware.nvram")
    other.write_bytes(b"the right one")
    vcenter.reconfigure(original, extraConfig=[vim.option.OptionValue(key="nvram", value="firmware.nvram")])
    assert config("captured", name=name)["config"]["nvram"]["size"] == len(b"the right one")


def test_captured_costs_few_requests(config, original, name, lab):
    lab.requests(reset=True)
    config("captured", moid=original._GetMoId())
    assert lab.requests()["total"] <= 8


def test_a_snapshots_frozen_configuration_is_captured(config, vcenter, name):
    vm = vcenter.make(name, add(dev.VirtualAHCIController(key=-3, busNumber=0)), disk(-10, -3, 0, 8 * MIB))
    snapshot = vcenter.wait(vm.CreateSnapshot_Task("s", "", False, False))
    vcenter.reconfigure(vm, numCPUs=8)
    frozen = config("captured", name=name, snapshot=snapshot._GetMoId())
    assert frozen["config"]["settings"]["hardware"]["cpus"] == 4
    assert frozen["config"]["source"]["snapshot"] == snapshot._GetMoId()
    assert config("captured", name=name)["config"]["settings"]["hardware"]["cpus"] == 8


def test_a_snapshot_of_another_vm_is_refused(config, vcenter, original, name):
    other = vcenter.make(f"{name}-other")
    snapshot = vcenter.wait(other.CreateSnapshot_Task("s", "", False, False))
    assert "is not one of" in config("captured", name=name, snapshot=snapshot._GetMoId(), fail=True)["msg"]


def test_a_directory_that_is_not_there_is_named(config, original, name):
    assert "/nowhere/at/all" in config("captured", name=name, path="/nowhere/at/all", fail=True)["msg"]
