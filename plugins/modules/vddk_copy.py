#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy virtual disks into images, and images onto virtual disks."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vddk_copy
short_description: Copy virtual disks into qcow2 images and back
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Copies disks of a snapshot into qcow2 images, in full or only the areas that changed, or writes images back onto
    disks of a virtual machine that is powered off.
  - With O(fcd_id) or O(fcd_name), does the same with a first class disk. It is written to while it is detached or its
    virtual machine is powered off, above all its snapshots.
  - An incremental image lies over the image of the earlier backup. Any QEMU tool opens it with all below it.
  - Does nothing for an image that is there already, and goes on with one that an interrupted run left in good order.
  - While the task runs, the output of the playbook shows at least every ten seconds how far each disk is. The copy
    stops when the playbook is gone.
  - Before an incremental copy it compares some areas that are said to be unchanged with the earlier images, so that a
    change tracking that loses changes is found out.
  - Disks are reached through VMware's Virtual Disk Development Kit (VDDK), which is not part of this collection, or
    without it through the NFC service of the ESXi hosts. See O(access).
options:
  direction:
    description:
      - V(backup) copies disks into images, V(restore) copies images onto disks.
      - V(compare) copies nothing. It reads disks of a snapshot and compares them with images and all below them. The
        task fails when they differ.
    type: str
    choices: [backup, restore, compare]
    default: backup
  snapshot:
    description:
      - Managed object ID of the snapshot whose disks are copied, for example V(snapshot-12), or ID of the first class
        disk's snapshot.
      - Required with O(direction=backup) and O(direction=compare).
    type: str
  disks:
    description:
      - The disks to copy. Items of RV(holdfast.backup.disk_changed_areas#module:disks) can be given as they are; keys
        that are not listed here are ignored.
      - C(disk) is the key, label or backing UUID of the disk. C(backing_uuid) or C(key) is used if it is not set.
      - A first class disk has the key 0, its name as label, and its ID as backing UUID.
      - C(image) is the path of the image. It is V(disk-<key>.qcow2) in O(image_dir) if it is not set. One that
        this module made of another snapshot is replaced, if its note C(<image>.state) is still beside it. Any other
        file, such as an image of a complete restore point, is never overwritten.
      - C(kind) is V(full) or V(incremental). V(full) is used if it is not set.
      - C(parent) is the image that an incremental one lies over. A comparison is with this one if C(image) is not set.
      - C(areas_file) lists the areas to copy, as M(holdfast.backup.disk_changed_areas) writes it. It is needed for an
        incremental copy. In a restore it limits what is written to these areas. In a comparison these areas are left
        out, because they have changed since the image was made.
      - C(change_id) is the change ID of the disk in the snapshot. If it is set and the snapshot has another one, the
        areas are of another snapshot and the disk is not copied.
      - C(capacity) is the size of the disk in bytes. In a restore it is the size of the disk that was backed up.
      - C(reason) and C(parent_id) pass through into the result.
    type: list
    elements: dict
    required: true
  image_dir:
    description: Directory of the images that are not named in O(disks). It must exist.
    type: path
  access:
    description:
      - V(vddk) reaches the disks through VMware's library. V(native) needs no library, and talks to the NFC service of
        the ESXi hosts itself. V(auto) takes VDDK where O(vddk_libdir) is set, and the native access else.
      - The results are the same. M(holdfast.backup.native_access_info) tries whether the native access works.
      - VDDK logs in by itself, so it needs O(username) and O(password) even if there is a O(session).
    type: str
    choices: [auto, vddk, native]
    default: auto
  native_fastlz_library:
    description:
      - A FastLZ library on the proxy, by its path or by a name that the dynamic linker finds, such as V(libfastlz.so).
      - With it the native access asks the hosts to pack what it reads. That costs their processors time, and gains
        where the network is slow and the data are not random. What is written is never packed.
      - No host was seen to pack fragments of more than 64 KiB. One that does it in another way ends the copy with an
        error, and leaving this option out helps.
    type: str
  native_helper_vm:
    description:
      - Name or managed object ID of a virtual machine that is powered off and has a free place for a disk.
      - The native access reaches disks only through virtual machines. A first class disk that is attached nowhere is
        attached to this one meanwhile. If it is only read, a disk is made from its snapshot for that, which needs as
        much room on the datastore as the disk, and is deleted again.
      - Not needed for virtual machines and attached first class disks.
    type: str
  vddk_libdir:
    description:
      - The directory on the proxy that VDDK was unpacked to, the parent of C(lib64).
      - The environment variable E(VDDK_LIBDIR) is used if it is not set.
    type: path
  transports:
    description:
      - The transports that VDDK may use, the best first. RV(disks[].transport) is the one that it used.
      - The native access knows V(nbdssl) and V(nbd), and uses the first one of the list only. So what should be
        encrypted is never sent in plain text because a host cannot encrypt.
      - V(san) only reads. To write through it, VMware asks for a snapshot on the disk, for change tracking to be off
        and for a size in whole blocks of the datastore.
    type: list
    elements: str
    choices: [nbdssl, nbd, hotadd, san]
    default: [nbdssl, nbd]
  parallel:
    description: How many disks are copied at the same time.
    type: int
    default: 2
  compression:
    description: The compression of new images.
    type: str
    choices: [zstd, zlib, none]
    default: zstd
  request_size:
    description:
      - Bytes per read or write request, a power of two from 65536 to 2097152.
      - If it is not set, it is 512 KiB for whole disks. For areas it is the largest size with which less than a tenth
        more is read than has changed.
    type: int
  request_depth:
    description: Requests in flight per disk. If it is not set, as many as make up 8 MiB, and at most 32.
    type: int
  target_is_zero:
    description:
      - Whether the disks to restore are new and hold only zeros, so that zeros need not be written.
      - Other disks keep old data where the image has zeros if this is set for them.
      - Only used with O(direction=restore).
    type: bool
    default: false
  verify:
    description:
      - Whether to read the whole disk once more after the copy and compare it with the image and all below it.
      - This finds what change tracking forgot.
    type: bool
    default: false
  audit:
    description:
      - How many percent of what change tracking says is unchanged are compared before an incremental copy, V(0) for
        none. At least 16 clusters of 64 KiB are, spread over the disk at random, if there are so many.
      - If one of them is not what the images below have, the disk is copied in full by the same task, with a warning,
        with RV(disks[].reason), and without a change ID, so that the next copy is a full one, too.
      - Reset its change tracking then, with O(holdfast.backup.disk_changed_areas#module:tracking=reset).
      - As many percent of what change tracking says was never written are compared with zeros before a full copy by the
        native access. If one of them holds data, all of the disk is read, with a warning.
    type: float
    default: 0.1
  audit_max:
    description: How many bytes per disk are compared at most.
    type: int
    default: 268435456
  timeout:
    description: Seconds that the task may take, V(0) for no limit. What was copied until then can be gone on with.
    type: int
    default: 0
  progress_dir:
    description:
      - Directory on the proxy in which the progress is written and a sign of life is looked for.
      - Set by the action plugin of this module; not for use in playbooks.
    type: path
extends_documentation_fragment:
  - holdfast.backup.vcenter
  - holdfast.backup.vm
  - holdfast.backup.fcd_disk
  - holdfast.backup.attributes
  - holdfast.backup.attributes.changes
  - holdfast.backup.attributes.login
requirements:
  - nbdkit with its Python plugin and basic filters
  - nbdcopy and nbdinfo (libnbd)
  - qemu-img and qemu-nbd, 5.1 or later
  - for O(access=vddk), VMware Virtual Disk Development Kit 6.5 or later, for first class disks 6.7 or later
seealso:
  - module: holdfast.backup.disk_changed_areas
  - module: holdfast.backup.restore_point
  - module: holdfast.backup.native_access_info
notes:
  - Privileges needed are C(VirtualMachine.Provisioning.GetVmFiles), C(VirtualMachine.Provisioning.DiskRandomRead) and,
    for a restore, C(VirtualMachine.Provisioning.DiskRandomAccess), and those of the datastores.
    For first class disks C(Datastore.FileManagement) is needed besides, and with O(native_helper_vm)
    C(VirtualMachine.Config.AddExistingDisk) and C(VirtualMachine.Config.RemoveDisk) on that virtual machine.
  - The proxy needs TCP port 443 of vCenter and port 902 of every ESXi host.
  - After a restore onto disks of a virtual machine that stays, reset its change tracking, with
    O(holdfast.backup.disk_changed_areas#module:tracking=reset), and begin a new chain. Of a first class
    disk, clear the control flag for change tracking before, and set it again afterwards.
"""

EXAMPLES = r"""
- name: Copy all disks of a snapshot in full
  holdfast.backup.vddk_copy:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    moid: vm-42
    snapshot: snapshot-108
    disks:
      - disk: Hard disk 1
      - disk: Hard disk 2
    image_dir: /backup/web01
    vddk_libdir: /opt/vmware-vix-disklib-distrib
  delegate_to: proxy01.example.com

- name: Copy what has changed since the earlier backup
  holdfast.backup.vddk_copy:
    moid: vm-42
    snapshot: "{{ snapshot.snapshot.moid }}"
    disks: "{{ changed_areas.disks }}"
    image_dir: "{{ started.restore_point.path }}"
  delegate_to: proxy01.example.com

- name: Copy what has changed of a first class disk
  holdfast.backup.vddk_copy:
    fcd_id: 1ec1b4a8-2a5f-4dcd-a3f9-3d1e0c7f5b11
    snapshot: "{{ snapshot.snapshot.id }}"
    disks: "{{ changed_areas.disks }}"
    image_dir: "{{ started.restore_point.path }}"
  delegate_to: proxy01.example.com

- name: See whether the newest restore point is what the disk holds
  holdfast.backup.vddk_copy:
    moid: vm-42
    direction: compare
    snapshot: "{{ snapshot.snapshot.moid }}"
    disks: "{{ changed_areas.disks }}"
  delegate_to: proxy01.example.com

- name: Write an image onto a new disk
  holdfast.backup.vddk_copy:
    name: web01-restored
    direction: restore
    disks:
      - disk: 2000
        image: /backup/5005b2a9-4b52-3d41-62f8-1cd9f5c9a0b1/20261120T020000Z/disk-2000.qcow2
        capacity: 17179869184
    target_is_zero: true
  delegate_to: proxy01.example.com
"""

RETURN = r"""
fcd:
  description: The first class disk.
  returned: success, with O(fcd_id) or O(fcd_name)
  type: dict
  sample: {id: 1ec1b4a8-2a5f-4dcd-a3f9-3d1e0c7f5b11, name: pvc-7d1f, datastore: ds1, datastore_moid: datastore-12}
vm:
  description: The virtual machine.
  returned: success, unless it is about a first class disk
  type: dict
  contains:
    name:
      description: Its name.
      type: str
    moid:
      description: Its managed object ID.
      type: str
    instance_uuid:
      description: Its instance UUID.
      type: str
disks:
  description:
    - The disks that were copied, or that would be in check mode. What is not known in check mode is V(null).
    - When the task fails, those that were copied nevertheless.
  returned: always
  type: list
  elements: dict
  contains:
    key:
      description: Device key.
      type: int
    label:
      description: Label, as the user interface shows it.
      type: str
    backing_uuid:
      description: UUID of the backing, the identity of the disk.
      type: str
    fcd_id:
      description: ID of a first class disk, also of one that is attached to the virtual machine; else null.
      type: str
    image:
      description: Path of the image.
      type: str
    kind:
      description: Whether it was a V(full) or an V(incremental) copy.
      type: str
    reason:
      description: Why it was a full copy, from O(disks) or from the audit.
      type: str
    parent:
      description: The image that an incremental one lies over.
      type: str
    parent_id:
      description: The restore point of that image, from O(disks).
      type: str
    capacity:
      description: Size of the disk in bytes. The image is a little larger if that is no multiple of 64 KiB.
      type: int
    change_id:
      description: The change ID that the next incremental copy starts from; V(null) if the audit found it wrong.
      type: str
    access:
      description: Whether the disk was reached by V(vddk) or by V(native) access.
      type: str
    allocation:
      description:
        - How a full copy knew which areas of the disk are in use. V(library) is VDDK, V(change_tracking) the query for
          changed areas, after a look at some of what it leaves out. V(none) means that all of the disk was read.
          V(null) for all other copies.
      type: str
    transport:
      description: The transport that was used; V(null) if nothing had to be read.
      type: str
    bytes_read:
      description: Bytes read from the disk, in a backup or a comparison.
      type: int
    bytes_stored:
      description: Size of the image file in bytes, after a backup.
      type: int
    bytes_written:
      description: Bytes written to the disk, in a restore.
      type: int
    sha256:
      description: The SHA-256 hash of the image file, after a backup.
      type: str
    seconds:
      description: How long the copy took, without the hash and the comparison.
      type: float
    rate:
      description: Bytes per second.
      type: int
    audit:
      description:
        - What the comparison before an incremental copy found; V(null) if nothing was compared. RV(disks[].bytes_read)
          does not hold what it read.
      type: dict
      contains:
        checked_bytes:
          description: Bytes that were compared.
          type: int
        samples:
          description: How many places that were.
          type: int
        mismatches:
          description: How many of them were found to differ. The comparison stops at the first ones.
          type: int
        areas:
          description: Those that differ, as pairs of start and length in bytes.
          type: list
          elements: list
    identical:
      description: Whether disk and image hold the same; V(null) if they were not compared by O(direction=compare).
      type: bool
    differences:
      description: The first places that were found to differ, as pairs of start and length in bytes.
      type: list
      elements: list
    resumed:
      description: Whether an interrupted copy was gone on with.
      type: bool
    changed:
      description: Whether anything was copied.
      type: bool
    warnings:
      description: What went wrong with this disk and was got over.
      type: list
      elements: str
  sample:
    - key: 2000
      label: Hard disk 1
      backing_uuid: 6000C295-3b0e-6b1a-0d3f-93bd6ee1ba1b
      image: /backup/5005b2a9-4b52-3d41-62f8-1cd9f5c9a0b1/20261120T020000Z.partial/disk-2000.qcow2
      kind: full
      reason: no earlier restore point
      parent: null
      parent_id: null
      capacity: 17179869184
      change_id: 52 d1 5e 7a 31 0f 9c 4e-8b 21 07 6d 3a 55 c0 f4/7
      fcd_id: null
      access: vddk
      allocation: library
      transport: nbdssl
      bytes_read: 4294967296
      bytes_stored: 1932735283
      bytes_written: 0
      sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
      seconds: 24.1
      rate: 178214409
      audit: null
      identical: null
      differences: []
      resumed: false
      changed: true
      warnings: []
failed_disks:
  description:
    - The disks that could not be copied, each with C(disk), C(image) and C(msg).
    - Those that are not what their image holds have C(identical) and C(differences), too.
  returned: when disks failed
  type: list
  elements: dict
bytes_read:
  description: Bytes read from all disks.
  returned: success
  type: int
  sample: 4294967296
bytes_stored:
  description: Size of all images that were made, in bytes.
  returned: success
  type: int
  sample: 1932735283
bytes_written:
  description: Bytes written to all disks.
  returned: success
  type: int
  sample: 0
seconds:
  description: How long all copies took, with hashes and comparisons.
  returned: success
  type: float
  sample: 26.3
"""

import os
import shutil
import tempfile
import time
from contextlib import ExitStack, nullcontext
from typing import Any

from ansible.module_utils.basic import AnsibleModule, env_fallback
from ansible_collections.holdfast.backup.plugins.module_utils import _disk_access, _options
from ansible_collections.holdfast.backup.plugins.module_utils._disk_access import Way
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import jobs, plans, requirements
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.backup import backup
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.comparison import compare
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.restore import restore
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disk_owners import Owner, open_owner
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import Disk, pick

_WORK: dict[str, jobs.Job] = {"backup": backup, "restore": restore, "compare": compare}
_COUNTS = ("bytes_read", "bytes_stored", "bytes_written")
_SETTINGS = ("request_size", "request_depth", "compression", "target_is_zero", "verify", "audit", "audit_max")


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    for option in ("parallel", "request_depth"):
        if params[option] is not None and params[option] < 1:
            raise InvalidInput(f"The option {option} is {params[option]}.", "Give 1 or more.")
    if params["direction"] == "restore" and "san" in params["transports"]:
        raise InvalidInput(
            "The transport san is not used to write disks: VMware asks for a snapshot on them first.",
            "Leave san out of transports; nbdssl, nbd and hotadd write.",
        )
    if not 0 <= params["audit"] <= 100:
        raise InvalidInput(f"The option audit is {params['audit']:g}.", "Give percent, from 0 to 100.")
    if params["audit_max"] < 0:
        raise InvalidInput(f"The option audit_max is {params['audit_max']}.", "Give bytes, 0 or more.")
    access = _disk_access.choose(params["access"], params["vddk_libdir"], params["transports"])
    watch = Watch(params["progress_dir"], params["timeout"])
    requirements.check_programs()
    if access == "vddk":
        requirements.check_library(params["vddk_libdir"])
    directory = tempfile.mkdtemp(dir=module.tmpdir)
    try:
        with ExitStack() as session:
            c = session.enter_context(Connection(_options.endpoint(params)))
            vm, fcd = _options.vm_selection(params), _options.fcd_selection(params, "fcd_")
            owner = open_owner(c, vm, fcd, params["fcd_api"])
            snapshot = params["snapshot"] if params["direction"] != "restore" else None
            disks, host = owner.in_snapshot(snapshot) if snapshot else (owner.to_write(), None)
            way = _disk_access.open_way(access, c, owner, snapshot, host, params, directory)
            if access == "vddk":
                # Logged out before the copy: the library has logins of its own, and none of ours can expire meanwhile.
                session.close()
            return _copy(module, watch, owner, disks, way, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _copy(
    module: AnsibleModule, watch: Watch, owner: Owner, disks: list[Disk], way: Way, directory: str
) -> dict[str, Any]:
    """Plan all copies, then run them."""
    params = module.params
    settings = jobs.Settings(directory, **{name: params[name] for name in _SETTINGS})
    tasks = []
    for item in params["disks"]:
        disk = pick(disks, item.get("disk") or item.get("backing_uuid") or item.get("key"))
        tasks.append(_task(params, owner, disk, item, way))
    plans.check_images(tasks, params["direction"])
    plan = results = [plans.foretell(task, params["direction"]) for task in tasks]
    started = time.monotonic()
    work = _WORK[params["direction"]]

    def job(*what: Any) -> dict[str, Any]:
        return {**plans.NOTHING, **work(*what)}

    if not module.check_mode:
        busy = any(result["changed"] or result["bytes_read"] for result in plan)
        with way.guarded(module.warn, watch.check) if busy else nullcontext():
            results = jobs.run_all(job, tasks, settings, watch, params["parallel"])
    written = params["direction"] == "restore" and not module.check_mode
    for task, result in zip(tasks, results):
        for warning in result["warnings"]:
            module.warn(f"{task.name}: {warning}")
        if written and result["changed"] and owner.kind == "vm" and task.facts["change_id"]:
            module.warn(
                f"{task.name}: change tracking may answer wrongly about a disk that was written to in this way. "
                "Start it anew with tracking=reset of disk_changed_areas before the next backup."
            )
    return {
        "changed": any(result["changed"] for result in results),
        owner.kind: owner.identity,
        "disks": results,
        **{count: sum(result[count] or 0 for result in results) for count in _COUNTS},
        "seconds": round(time.monotonic() - started, 3),
        "diff": plans.diff(plan),
    }


def _task(params: dict[str, Any], owner: Owner, disk: Disk, item: dict[str, Any], way: Way) -> jobs.Task:
    """What to do for one item of the option disks."""
    name = owner.called(disk)
    if not disk.protected:
        raise NotSupported(f"{name} cannot be copied: {disk.reason}.", "Leave it out of disks.")
    image = os.path.join(params["image_dir"], f"disk-{disk.key}.qcow2") if params["image_dir"] else None
    wanted = plans.read_item(item, image, name, params["direction"], disk.capacity, disk.change_id)
    source = way.disk(disk, whole=wanted.kind == "full")
    return jobs.Task(
        name=name,
        disk=source,
        image=wanted.image,
        capacity=wanted.capacity,
        work=wanted.work,
        parent=wanted.parent,
        identity={
            owner.kind: owner.uuid,
            "snapshot": params["snapshot"],
            "disk": disk.backing_uuid,
            "change_id": disk.change_id,
        },
        facts={
            "key": disk.key,
            "label": disk.label,
            "backing_uuid": disk.backing_uuid,
            "kind": wanted.kind,
            "reason": item.get("reason"),
            "parent_id": item.get("parent_id"),
            "change_id": disk.change_id,
            "fcd_id": disk.fcd_id,
            "access": way.name,
            "allocation": None,
        },
        allocation=lambda: source.allocation,
        hints=source.hints,
    )


def main() -> None:
    run_module(
        run,
        argument_spec={
            "direction": {"type": "str", "choices": ["backup", "restore", "compare"], "default": "backup"},
            "snapshot": {"type": "str"},
            "disks": {"type": "list", "elements": "dict", "required": True},
            "image_dir": {"type": "path"},
            "access": {"type": "str", "choices": ["auto", "vddk", "native"], "default": "auto"},
            "native_fastlz_library": {"type": "str"},
            "native_helper_vm": {"type": "str"},
            "vddk_libdir": {"type": "path", "fallback": (env_fallback, ["VDDK_LIBDIR"])},
            "transports": {
                "type": "list",
                "elements": "str",
                "choices": ["nbdssl", "nbd", "hotadd", "san"],
                "default": ["nbdssl", "nbd"],
            },
            "parallel": {"type": "int", "default": 2},
            "compression": {"type": "str", "choices": ["zstd", "zlib", "none"], "default": "zstd"},
            "request_size": {"type": "int"},
            "request_depth": {"type": "int"},
            "target_is_zero": {"type": "bool", "default": False},
            "verify": {"type": "bool", "default": False},
            "audit": {"type": "float", "default": 0.1},
            "audit_max": {"type": "int", "default": 256 << 20},
            "timeout": {"type": "int", "default": 0},
            "progress_dir": {"type": "path"},
        },
        groups=(_options.VCENTER, _options.optional(_options.VM), _options.FCD_DISK),
        required_if=[("direction", "backup", ["snapshot"]), ("direction", "compare", ["snapshot"])],
    )


if __name__ == "__main__":
    main()
