# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The choice of a first class disk instead of a virtual machine."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of the option group FCD_DISK."""

    DOCUMENTATION = r"""
options:
  fcd_id:
    description:
      - ID (UUID) of a first class disk, to work on it instead of on the disks of a virtual machine.
      - Exactly one of O(name), O(uuid), O(moid), O(fcd_id) and O(fcd_name) is needed.
    type: str
  fcd_name:
    description:
      - Name of a first class disk, to work on it instead of on the disks of a virtual machine.
      - If several have this name, the task fails and lists them; O(fcd_id) or O(fcd_datastore) tells them apart.
    type: str
  fcd_datastore:
    description:
      - Name of the datastore that the first class disk is on; where several datastores have one name, its managed
        object ID.
    type: str
  fcd_api:
    description:
      - Which of the two APIs of vSphere for first class disks is used.
      - V(vim) is the virtual storage object manager, V(vslm) the storage lifecycle service of vCenter 6.7 Update 2 and
        later. V(auto) looks the disk up by V(vslm) where that saves requests and where the server has it, and uses
        V(vim) for everything else.
    type: str
    choices: [auto, vim, vslm]
    default: auto
"""
