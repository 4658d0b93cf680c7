# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What must be true before a snapshot is made."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import snapshot_guards
from ansible_collections.holdfast.backup.tests.unit.plugins.module_utils._vsphere.snapshot_trees import (
    chain,
    info,
    node,
)
from pyVmomi import vim


def test_depth_limit_counts_the_way_to_the_current_snapshot_only():
    snapshot_guards.check_possible("web01", {"snapshot": chain(31)})
    with pytest.raises(NotSupported, match="web01 runs on 32 snapshots in a row; the limit is 32") as caught:
        snapshot_guards.check_possible("web01", {"snapshot": chain(32)})
    assert caught.value.details == {"depth": 32}
    broad = info(*(node(number) for number in range(1, 60)), current=7)
    snapshot_guards.check_possible("web01", {"snapshot": broad})
    with pytest.raises(NotSupported, match="limit is 1"):
        snapshot_guards.check_possible("web01", {"snapshot": broad}, max_depth=1)


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"config.template": True}, "template"),
        ({"config.ftInfo": vim.vm.FaultToleranceConfigInfo(role=1)}, "fault tolerance"),
    ],
)
def test_machines_that_cannot_have_snapshots(properties, message):
    with pytest.raises(NotSupported, match=message):
        snapshot_guards.check_possible("web01", properties)


def test_an_ordinary_machine_can():
    snapshot_guards.check_possible("web01", {})
