# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: VMs whose restore is not finished, and how it ends.

A VM that a restore made carries a mark, a setting of its own, until the restore is finished. The
mark is what makes a repeated run find its VM, and the only licence to delete one. It goes through
two stages: ``created`` (the VM exists) and ``prepared`` (NVRAM, boot order and custom attributes
are there too). What a killed run left in the first stage, the next one deletes and makes anew.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import extra_config, inventory, tasks, vm_config
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

STATE = ("name", "config.instanceUuid", "config.extraConfig", "config.template", "runtime.powerState")
CREATED = "created"
PREPARED = "prepared"
_REMOVAL_TIMEOUT = 600  # seconds


@dataclass(frozen=True)
class Mark:
    """Whose unfinished restore a VM is. A clone of it has the setting too, but another instance UUID."""

    restore_id: str
    stage: str
    template: bool = False
    instance_uuid: str | None = None

    def setting(self) -> dict[str, str]:
        """As a setting of the VM."""
        return {extra_config.MARK: json.dumps(asdict(self))}

    @staticmethod
    def of(props: Mapping[str, Any]) -> Mark | None:
        """The mark of the VM with these properties (of STATE), or None."""
        value = extra_config.value(props.get("config.extraConfig") or (), extra_config.MARK)
        try:
            mark = Mark(**json.loads(value))
        except (ValueError, TypeError):
            return None
        return mark if mark.instance_uuid in (None, props.get("config.instanceUuid")) else None


def check_removable(props: Mapping[str, Any], restore_id: str | None) -> None:
    """Refuse everything but a switched-off VM with the mark (of ``restore_id``, if given).

    :param props: the VM's name and STATE
    :raises NotSupported: it must not be deleted
    """
    mark, name = Mark.of(props), inventory.unescape(props["name"])
    if mark is None:
        raise NotSupported(
            f"The VM {name} is not an unfinished restore, so it is not deleted.", "Delete it by hand if you must."
        )
    if restore_id not in (None, mark.restore_id):
        raise NotSupported(
            f"The VM {name} is the unfinished restore {mark.restore_id}, not {restore_id}.",
            "Check name and restore_id.",
        )
    if props.get("runtime.powerState") != "poweredOff":
        raise NotSupported(
            f"The VM {name} is an unfinished restore, but it is switched on.",
            "Switch it off if it is not in use, or keep it by state=finished.",
        )


def remove(c: Connection, vm: Any) -> None:
    """Delete a VM with its disks; :func:`check_removable` says whether it may be."""
    tasks.wait(c, c.call(vm.Destroy_Task), timeout=_REMOVAL_TIMEOUT)


def pending(props: Mapping[str, Any], power_state: str | None) -> list[str]:
    """What ``finish`` has to do: some of ``unmark``, ``template`` and ``power_on``."""
    mark = Mark.of(props)
    template = bool(props.get("config.template"))
    if mark is not None and mark.stage != PREPARED:
        raise NotSupported(
            f"The VM {inventory.unescape(props['name'])} is not completely made yet.", "Run state=present again first."
        )
    steps = [] if mark is None else ["unmark"]
    wants_power = power_state == "poweredOn" and props.get("runtime.powerState") != "poweredOn"
    if wants_power and (template or (mark is not None and mark.template)):
        raise InvalidInput("A template cannot be switched on.", "Leave power_state out.")
    if mark is not None and mark.template and not template:
        steps.append("template")
    return [*steps, "power_on"] if wants_power else steps


def finish(c: Connection, vm: Any, steps: list[str], timeout: float) -> None:
    """Take the mark off, and make the VM a template or switch it on where ``steps`` say so.

    Change tracking stays off: what was written below it would be missing from its answers. A backup
    switches it on and begins a new chain.
    """
    if "unmark" in steps:
        unmarked = vim.vm.ConfigSpec(extraConfig=vm_config.options({extra_config.MARK: ""}))
        tasks.wait(c, c.call(vm.ReconfigVM_Task, unmarked), timeout=timeout)
    if "template" in steps:
        c.call(vm.MarkAsTemplate)
    if "power_on" in steps:
        tasks.wait(c, c.call(vm.PowerOnVM_Task), timeout=timeout)
