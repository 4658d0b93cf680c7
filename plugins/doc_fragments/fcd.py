# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The choice of one first class disk."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of the option group FCD."""

    DOCUMENTATION = r"""
options:
  id:
    description:
      - ID (UUID) of the first class disk. With O(datastore) this is the fastest way to find it.
    type: str
  name:
    description:
      - Name of the first class disk. vSphere does not keep names unique; if several have this name, the task fails and
        lists them, and O(id) or O(datastore) tells them apart.
    type: str
  datastore:
    description:
      - Name of the datastore that the disk is on; where several datastores have one name, its managed object ID.
    type: str
  api:
    description:
      - Which of the two APIs of vSphere for first class disks is used.
      - V(vim) is the virtual storage object manager, which ESXi has too. It has no way to search, so a disk whose
        datastore is not given costs a request for each datastore, and a name one for each disk.
      - V(vslm) is the storage lifecycle service of vCenter 6.7 Update 2 and later, which has a catalog of all disks.
      - V(auto) looks disks up in the catalog where that saves requests and where the server has it, and uses V(vim)
        for everything else.
    type: str
    choices: [auto, vim, vslm]
    default: auto
"""
