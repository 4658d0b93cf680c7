# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A repository, and the choice of one virtual machine or first class disk in it."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of the option group REPOSITORY_OBJECT."""

    DOCUMENTATION = r"""
options:
  repository:
    description: The directory of the repository.
    type: path
    required: true
  name:
    description:
      - The virtual machine of this name, as recorded in its newest restore point
        or, when no newest one has the name, in any.
      - All virtual machines and first class disks are meant if none of O(name), O(moid), O(instance_uuid), O(vm),
        O(fcd_id), O(fcd_name) and O(fcd) is set. Not more than one of them may be.
    type: str
  moid:
    description: The virtual machine of this managed object ID, found like O(name).
    type: str
  instance_uuid:
    description: The virtual machine of this instance UUID.
    type: str
  vm:
    description: The virtual machine as other modules return it; its C(instance_uuid) counts.
    type: dict
  fcd_id:
    description: The first class disk of this ID.
    type: str
  fcd_name:
    description:
      - The first class disk of this name, as recorded in its newest restore point or, when no newest one has the name,
        in any.
    type: str
  fcd:
    description: The first class disk as other modules return it; its C(id) counts.
    type: dict
"""
