# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import yaml
from ansible_collections.holdfast.backup.tests.unit.documents import MODULES, ROOT, fragments

GROUPS = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["action_groups"]


def members(group: str) -> list[str]:
    names = []
    for entry in GROUPS[group]:
        if isinstance(entry, str):
            names.append(entry)
        else:
            for other in entry["metadata"]["extend_group"]:
                names.extend(members(other))
    return sorted(names)


def test_the_group_all_holds_every_module():
    assert members("all") == sorted(MODULES)


def test_the_group_vcenter_holds_the_modules_that_log_in():
    assert members("vcenter") == [name for name in sorted(MODULES) if "holdfast.backup.vcenter" in fragments(name)]
