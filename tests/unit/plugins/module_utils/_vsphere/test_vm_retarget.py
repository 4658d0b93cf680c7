# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""From the document of the old VM to that of the new one."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    Ambiguous,
    InvalidInput,
    NoSpace,
    NotFound,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import vm_config
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vm_placement import Datastore, Site
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vm_retarget import Changes, retarget
from ansible_collections.holdfast.backup.tests.unit.plugins.module_utils._vsphere.vm_documents import sample

GIB = 1 << 30


def standard(name):
    return {"name": name, "moid": f"network-{name}", "kind": "standard"}


def distributed(name, key):
    return {"name": name, "moid": key, "kind": "distributed", "portgroup_key": key, "switch_uuid": "s1"}


def site(*networks, **free):
    there = free or {"ds1": 100 * GIB, "ds2": 100 * GIB}
    datastores = {name: Datastore(name, size, True) for name, size in there.items()}
    return Site(None, None, None, "/DC0", "/pool", datastores, list(networks) or [standard("front"), standard("back")])


def names(target):
    return [nic["network"]["name"] for nic in target["nics"]]


def test_the_result_is_a_document_and_the_old_one_is_untouched():
    before = sample()
    target, _warnings = retarget(before, Changes("copy"), site())
    assert vm_config.parse(target)["vm"]["name"] == "copy"
    assert before == sample()


def test_identity():
    new, _warnings = retarget(sample(), Changes("copy"), site())
    kept, _warnings = retarget(sample(), Changes("copy", identity="keep"), site())
    assert (new["vm"]["instance_uuid"], new["vm"]["bios_uuid"]) == (None, None)
    assert kept["vm"]["instance_uuid"] == sample()["vm"]["instance_uuid"]
    spec = vm_config.config_spec(kept, {})
    uuids = [change.device.backing.uuid for change in spec.deviceChange if change.fileOperation]
    assert uuids == ["6000C29a", "6000C29b"]


def test_networks_are_mapped_per_adapter_by_label_before_name():
    there = site(standard("front"), standard("back"), standard("lab"))
    target, _warnings = retarget(sample(), Changes("copy", networks={"front": "back", "back": "lab"}), there)
    assert names(target) == ["back", "lab"]
    crossed = {"Network adapter 1": "lab", "front": "back"}
    assert names(retarget(sample(), Changes("copy", networks=crossed), there)[0]) == ["lab", "back"]


def test_all_missing_networks_are_named_with_what_there_is():
    with pytest.raises(NotFound, match=r"back, front.*There are: lab\."):
        retarget(sample(), Changes("copy"), site(standard("lab")))


def test_a_mapping_of_nothing_is_refused():
    with pytest.raises(InvalidInput, match="frnt"):
        retarget(sample(), Changes("copy", networks={"frnt": "back"}), site())


def test_of_port_groups_with_one_name_the_adapters_own_is_taken():
    twins = [standard("front"), distributed("back", "dvportgroup-9"), distributed("back", "dvportgroup-7")]
    target, _warnings = retarget(sample(), Changes("copy"), site(*twins))
    assert target["nics"][1]["network"]["portgroup_key"] == "dvportgroup-7"
    with pytest.raises(Ambiguous, match="Network adapter 2"):
        retarget(sample(), Changes("copy"), site(*twins[:2], distributed("back", "dvportgroup-8")))
    by_moid = Changes("copy", networks={"back": "dvportgroup-9"})
    assert retarget(sample(), by_moid, site(*twins))[0]["nics"][1]["network"]["portgroup_key"] == "dvportgroup-9"


def test_mac_addresses():
    kept, _warnings = retarget(sample(), Changes("copy"), site())
    new, _warnings = retarget(sample(), Changes("copy", mac_policy="generate"), site())
    assert (kept["nics"][0]["mac"], kept["nics"][0]["mac_type"]) == ("00:50:56:99:00:01", "assigned")
    assert ["mac" in nic for nic in new["nics"]] == [False, False]


def test_unprotected_disks_are_left_out_with_a_warning_unless_wanted():
    target, warnings = retarget(sample(), Changes("copy"), site())
    assert [disk["key"] for disk in target["disks"]] == [2000, 2016]
    assert warnings == [
        "Hard disk 3 ([ds2] web01/scratch.vmdk) is not made again: it is not protected (independent disk)."
    ]
    wanted = [{"disk": "Hard disk 3", "create": True}, {"disk": "2000", "create": False}]
    target, warnings = retarget(sample(), Changes("copy", disks=wanted), site())
    assert [disk["key"] for disk in target["disks"]] == [2016, 2017]
    assert "empty" in " ".join(warnings)


def test_datastores_and_provisioning():
    wishes = Changes("copy", datastore="ds1", provisioning="thin", disks=[{"disk": "6000C29b", "datastore": "ds2"}])
    target, _warnings = retarget(sample(), wishes, site())
    assert [(disk["datastore"], disk["provisioning"]) for disk in target["disks"]] == [("ds1", "thin"), ("ds2", "thin")]
    assert target["placement"]["datastore"] == "ds1"


def test_missing_datastores_are_named_with_what_there_is():
    with pytest.raises(NotFound, match=r"ds2 there. Give datastore one of: ds1\."):
        retarget(sample(), Changes("copy"), site(ds1=GIB))


def test_unknown_and_repeated_disks_are_refused():
    with pytest.raises(NotFound, match="Hard disk 1"):
        retarget(sample(), Changes("copy", disks=[{"disk": "Hard disk 9"}]), site())
    with pytest.raises(InvalidInput, match="Several"):
        retarget(sample(), Changes("copy", disks=[{"disk": "2000"}, {"disk": "Hard disk 1"}]), site())


def test_space():
    with pytest.raises(NoSpace, match=r"ds2 has 0\.2 GiB free, and the disks need 0\.5 GiB") as caught:
        retarget(sample(), Changes("copy"), site(ds1=GIB, ds2=200 << 20))
    assert caught.value.details == {"datastore": "ds2", "free": 200 << 20, "needed": 512 << 20}
    _target, warnings = retarget(sample(), Changes("copy"), site(ds1=GIB >> 1, ds2=GIB))
    assert any("may grow beyond" in line and "ds1" in line for line in warnings)
