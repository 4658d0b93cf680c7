#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Try the native access to the disks of a virtual machine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: native_access_info
short_description: Try whether disks can be read without VDDK
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Goes the way that M(holdfast.backup.vddk_copy) goes with O(holdfast.backup.vddk_copy#module:access=native), and
    tells how far it came. It logs in to vCenter, gets a ticket, connects to port 902 of the ESXi host, checks its
    certificate, and reads the beginning of a disk. Nothing is written, and no snapshot is made.
  - A running virtual machine can only be read from a snapshot. If it has none, the check ends after the handshake with
    the host.
  - Run it on the proxy, for one virtual machine on each host or cluster. The playbook
    C(holdfast.backup.connection_check) does so.
options:
  transport:
    description: V(nbdssl) is encrypted, V(nbd) is not.
    type: str
    choices: [nbdssl, nbd]
    default: nbdssl
  read_bytes:
    description: How many bytes of the first disk are read at most, to measure a rate.
    type: int
    default: 67108864
extends_documentation_fragment:
  - holdfast.backup.vcenter
  - holdfast.backup.vm
  - holdfast.backup.attributes
  - holdfast.backup.attributes.reads
  - holdfast.backup.attributes.login
seealso:
  - module: holdfast.backup.vddk_copy
notes:
  - Privileges needed are C(VirtualMachine.Provisioning.GetVmFiles) and C(VirtualMachine.Provisioning.DiskRandomRead).
  - What cannot be reached on the way to the hosts is told in the result. The module fails only if vCenter cannot be
    reached or the virtual machine not be found.
"""

EXAMPLES = r"""
- name: Try the native access
  holdfast.backup.native_access_info:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    name: web01
  register: checked
  delegate_to: proxy01.example.com

- name: Fail if it does not work
  ansible.builtin.assert:
    that: checked.access.works
    fail_msg: "{{ checked.access.problem }} {{ checked.access.next_step }}"
"""

RETURN = r"""
vm:
  description: The virtual machine.
  returned: success
  type: dict
  sample: {name: web01, moid: vm-42, instance_uuid: 5012fc1f-3b5e-4a2a-8a0d-3d6a9a4f0f11}
server:
  description: The server that was logged in to, with C(name), C(version), C(build) and C(type).
  returned: success
  type: dict
  sample: {name: VMware vCenter Server, version: 8.0.3, build: "24022515", type: VirtualCenter}
esxi:
  description:
    - The host that the virtual machine is registered on, with C(name), C(version) and C(build); V(null) if it cannot be
      seen.
  returned: success
  type: dict
  sample: {name: esx01.example.com, version: 8.0.3, build: "24022510"}
access:
  description: How far it came.
  returned: success
  type: dict
  sample:
    works: true
    stage: read
    problem: null
    next_step: null
    transport: nbdssl
    host: esx01.example.com
    port: 902
    nfc_version: 11
    buffer_size: 2097152
    disk: "[ds1] web01/web01.vmdk"
    capacity: 17179869184
    bytes_read: 67108864
    seconds: 0.52
    rate: 129055507
  contains:
    works:
      description: Whether all that was tried worked.
      type: bool
    stage:
      description: The last step that was tried, such as V(ticket), V(connect), V(thumbprint), V(handshake) or V(read).
      type: str
    problem:
      description: What went wrong, or why nothing was read.
      type: str
    next_step:
      description: What to do about it.
      type: str
    transport:
      description: The transport.
      type: str
    host:
      description: The ESXi host that the ticket leads to.
      type: str
    port:
      description: Its port.
      type: int
    nfc_version:
      description: The version of NFC that it speaks.
      type: int
    buffer_size:
      description: The most bytes of data that it sends in a message.
      type: int
    disk:
      description: The file that was read.
      type: str
    capacity:
      description: The size of the disk in bytes, as the host says.
      type: int
    bytes_read:
      description: How many bytes were read to measure the rate.
      type: int
    seconds:
      description: How long that took.
      type: float
    rate:
      description: Bytes per second.
      type: int
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils import _options
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import nfc_check
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import Disk, from_devices
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import find_vm, unescape, vm_dict
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.nfc_tickets import NfcTickets
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

_DEVICES = "config.hardware.device"
_PROPERTIES = (_DEVICES, "runtime.host", "runtime.powerState", "snapshot")
_PRODUCT = "summary.config.product"


def run(module: AnsibleModule) -> dict[str, Any]:
    """Log in, choose a disk that may be read, and try."""
    params = module.params
    if params["read_bytes"] < 512 or params["read_bytes"] % 512:
        raise InvalidInput(f"The option read_bytes is {params['read_bytes']}.", "Give a multiple of 512.")
    with Connection(_options.endpoint(params)) as c:
        vm, found = find_vm(c, **_options.vm_selection(params), properties=_PROPERTIES)
        identity = vm_dict(vm, found)
        disk = _readable(c, found)
        esxi = _host(c, found)
        tickets = NfcTickets(c)
        result = nfc_check.check(
            lambda: tickets.get(identity["moid"]),
            params["transport"],
            disk.path if disk else None,
            disk.capacity if disk else None,
            params["read_bytes"],
        )
        about = c.about
    if result["works"] and disk is None:
        if _is_off(found):
            result["problem"] = f"Nothing was read: {identity['name']} has no disk that could be backed up."
            result["next_step"] = "Check a virtual machine that has one."
        else:
            result["problem"] = f"Nothing was read: {identity['name']} runs without a snapshot that has a disk."
            result["next_step"] = "Take a snapshot and check again, or check a virtual machine that is powered off."
    return {
        "changed": False,
        "vm": identity,
        "server": {"name": about.name, "version": about.version, "build": about.build, "type": about.apiType},
        "esxi": esxi,
        "access": {**result, "transport": params["transport"], "disk": disk.path if disk else None},
    }


def _is_off(found: dict[str, Any]) -> bool:
    off: bool = found["runtime.powerState"] == "poweredOff"
    return off


def _host(c: Connection, found: dict[str, Any]) -> dict[str, Any] | None:
    host = found.get("runtime.host")
    seen = c.retrieve([host], {vim.HostSystem: ["name", _PRODUCT]}).get(host, {}) if host else {}
    if _PRODUCT not in seen:
        return None
    return {"name": unescape(seen["name"]), "version": seen[_PRODUCT].version, "build": seen[_PRODUCT].build}


def _readable(c: Connection, found: dict[str, Any]) -> Disk | None:
    """A disk that no running virtual machine writes to."""
    disks = from_devices(found.get(_DEVICES, ()))
    if not _is_off(found):
        if "snapshot" not in found:
            return None
        live = {disk.path for disk in disks}
        # There is no current one after a revert to a snapshot that was removed then.
        snapshot = found["snapshot"].currentSnapshot or found["snapshot"].rootSnapshotList[0].snapshot
        frozen = c.retrieve([snapshot], {vim.vm.Snapshot: [_DEVICES]}).get(snapshot, {}).get(_DEVICES, ())
        disks = [disk for disk in from_devices(frozen) if disk.path not in live]
    return next((disk for disk in disks if disk.protected), None)


def main() -> None:
    """Take the options and run."""
    run_module(
        run,
        argument_spec={
            "transport": {"type": "str", "choices": ["nbdssl", "nbd"], "default": "nbdssl"},
            "read_bytes": {"type": "int", "default": 64 << 20},
        },
        groups=(_options.VCENTER, _options.VM),
    )


if __name__ == "__main__":
    main()
