# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_config, states finished and absent."""

from __future__ import annotations

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vm_unfinished import CREATED, Mark
from ansible_collections.holdfast.backup.tests.integration.vm_config.support import MARK, unchanged


def test_finished_takes_the_mark_off_for_good(config, original, name, vcenter):
    config("captured", name=name)
    config("present", name=f"{name}-copy")
    vm = vcenter.find(f"{name}-copy")
    with unchanged(vcenter):
        assert config("finished", name=f"{name}-copy", power_state="poweredOn", check=True)["changed"]
    assert config("finished", name=f"{name}-copy", power_state="poweredOn")["changed"]
    assert (vcenter.setting(vm, MARK), vm.runtime.powerState) == (None, "poweredOn")
    assert not config("finished", name=f"{name}-copy", power_state="poweredOn")["changed"]
    vcenter.wait(vm.PowerOffVM_Task())
    with unchanged(vcenter):
        refused = config("absent", name=f"{name}-copy", fail=True)
    assert "is not an unfinished restore" in refused["msg"]


def test_a_template_becomes_one_again(config, original, name, vcenter):
    original.MarkAsTemplate()
    assert config("captured", name=name)["config"]["vm"]["template"]
    pool = "/DC0/host/" + vcenter.pool.parent.name + "/Resources"
    config("present", name=f"{name}-copy", resource_pool=pool)
    vm = vcenter.find(f"{name}-copy")
    assert not vm.config.template
    assert "template" in config("finished", name=f"{name}-copy", power_state="poweredOn", fail=True)["msg"]
    assert config("finished", name=f"{name}-copy")["changed"]
    assert vm.config.template
    assert not config("finished", name=f"{name}-copy")["changed"]


def test_a_half_made_vm_cannot_be_finished(config, original, name, vcenter):
    vcenter.mark(original, Mark("point 1", CREATED))
    assert "state=present" in config("finished", name=name, fail=True)["msg"]


def test_absent_deletes_only_what_is_ours_and_off(config, original, name, vcenter):
    config("captured", name=name)
    config("present", name=f"{name}-copy")
    vm = vcenter.find(f"{name}-copy")
    with unchanged(vcenter):
        assert "unfinished restore" in config("absent", name=name, fail=True)["msg"]
        assert "point 2" in config("absent", name=f"{name}-copy", restore_id="point 2", fail=True)["msg"]
        assert config("absent", name=f"{name}-copy", check=True)["changed"]
    vcenter.wait(vm.PowerOnVM_Task())
    assert "switched on" in config("present", name=f"{name}-copy", fail=True)["msg"]
    assert "switched on" in config("absent", name=f"{name}-copy", fail=True)["msg"]
    vcenter.wait(vm.PowerOffVM_Task())
    assert config("absent", name=f"{name}-copy", restore_id="point 1")["changed"]
    assert vcenter.find(f"{name}-copy") is None
    again = config("absent", name=f"{name}-copy")
    assert (again["changed"], again["diff"]) == (False, {"before": {}, "after": {}})


def test_a_clone_of_an_unfinished_restore_is_not_ours(config, original, name, vcenter):
    config("captured", name=name)
    config("present", name=f"{name}-copy")
    vcenter.mark(original, vcenter.marked(vcenter.find(f"{name}-copy")))
    assert vcenter.setting(original, MARK)
    with unchanged(vcenter):
        assert "is not an unfinished restore" in config("absent", name=name, fail=True)["msg"]
