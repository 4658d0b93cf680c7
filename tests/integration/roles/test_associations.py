# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tags and storage policies, from a VM by a restore point into another VM. govc judges."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.govc import govc
from ansible_collections.holdfast.backup.tests.integration.roles.support import (
    BACKUP,
    MIB,
    RESTORE,
    Hosts,
    Machine,
    Run,
    Site,
)

pytestmark = pytest.mark.timeout(600)

VSAN, VVOL = "vSAN Default Storage Policy", "VVol No Requirements Policy"
TAGS = ["backup:nightly", "tier:gold"]


@dataclass(frozen=True)
class Past:
    """What a run backed up: all of ``web``, and ``bare`` without what vCenter keeps beside it."""

    web: Machine
    bare: Machine
    run: Run


@pytest.fixture(scope="module")
def past(site: Site) -> Past:
    for tag in TAGS:
        site.lab.create_tag(*tag.split(":"))
    made = {}
    for name in ("web", "bare"):
        made[name] = site.machine(name, [{"size": MIB, "policy": VVOL}, MIB], policy=VSAN, nics=[])
        modules.run("vm_tag", {**site.lab.module_args(), "moid": made[name].moid, "tags": TAGS})
    without = {"vm_backup_tags": "ignore", "vm_backup_storage_policies": "ignore"}
    packed = {"vm_backup_access": "native", "vm_backup_native_fastlz_library": "libno-such-library.so"}
    site.machine("packed", [MIB])
    return Past(run=site.run(BACKUP, {"web": {}, "bare": without, "packed": packed}, rc=2), **made)


@pytest.fixture(scope="module")
def restored(site: Site, past: Past) -> Run:
    """The tag nightly is gone, and the policy of the home is to be another one."""
    [nightly, _gold] = _configuration(site, past.web)["tags"]
    govc(site.lab, "tags.rm", "-f", nightly["id"])
    hosts = {
        "keep": {"vm_restore_vm": "web", "vm_restore_storage_policy_map": {VSAN: VVOL}},
        "ignore": {"vm_restore_vm": "web", "vm_restore_tags": "ignore", "vm_restore_storage_policies": "ignore"},
        "bare": {"vm_restore_vm": "bare"},
    }
    return _restore(site, hosts)


def _restore(site: Site, hosts: Hosts) -> Run:
    return site.run(RESTORE, {host: {**given, "vm_restore_name": f"{host}-again"} for host, given in hosts.items()})


def _configuration(site: Site, machine: Machine) -> dict[str, Any]:
    [point] = site.points(machine)
    return json.loads((site.repository / point["id"] / "config.json").read_text())


def _tags(site: Site, host: str) -> list[str]:
    return sorted(govc(site.lab, "tags.attached.ls", "-r", f"/DC0/vm/{host}-again").split())


def _policies(site: Site, host: str) -> list[str]:
    listed = json.loads(govc(site.lab, "vm.policy.ls", "-json", "-vm", f"{host}-again"))
    return [one["policyName"] for one in listed]


def test_a_restore_point_holds_them_unless_told_otherwise(site: Site, past: Past):
    whole, bare = _configuration(site, past.web), _configuration(site, past.bare)
    assert [f"{tag['category']}:{tag['name']}" for tag in whole["tags"]] == TAGS
    assert [one["storage_policy"] and one["storage_policy"]["name"] for one in whole["disks"]] == [VVOL, None]
    assert whole["storage_policy"]["name"] == VSAN
    assert {*whole} - {*bare} == {"tags", "storage_policy"}
    for host in ("web", "bare"):
        assert past.run[host].result["warnings"] == []


def test_they_are_given_back(site: Site, past: Past, restored: Run):
    assert _tags(site, "keep") == ["gold"]
    assert _policies(site, "keep") == [VVOL, VVOL, "None"]
    [warning] = restored["keep"].result["warnings"]
    assert "backup:nightly" in warning
    assert f"  warning: {warning}" in restored["keep"].summary


def test_missing_tags_are_made_if_wished(site: Site, past: Past, restored: Run):
    """After the others, which find none."""
    run = _restore(site, {"create": {"vm_restore_vm": "web", "vm_restore_tags": "create"}})
    assert _tags(site, "create") == ["gold", "nightly"]
    assert _policies(site, "create") == [VSAN, VVOL, "None"]
    assert run["create"].result["warnings"] == []


@pytest.mark.parametrize("host", ["ignore", "bare"])
def test_none_are_given_if_wished_or_not_known(site: Site, past: Past, restored: Run, host: str):
    assert _tags(site, host) == []
    assert _policies(site, host) == ["None", "None", "None"]
    assert restored[host].result["warnings"] == []


def test_the_library_that_unpacks_reaches_the_copy(past: Past):
    assert "libno-such-library.so" in past.run["packed"].message
