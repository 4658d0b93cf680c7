# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The choice of one virtual machine."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of the option group VM."""

    DOCUMENTATION = r"""
options:
  name:
    description:
      - Name of the virtual machine or template.
      - If several have this name, the task fails and lists them; O(folder), O(datacenter) or O(moid) tells them apart.
      - Exactly one of O(name), O(uuid) and O(moid) is needed.
    type: str
  folder:
    description:
      - Folder of the virtual machine, to find it faster or to tell it from others of the same name.
      - Either absolute, starting with the datacenter, for example V(/dc1/vm/production/web), or relative to the virtual
        machine folder of a datacenter, for example V(production/web).
      - Only used with O(name).
    type: str
  datacenter:
    description:
      - Name or path of the datacenter in which to look. All are searched if it is not set.
      - Only used with O(name).
    type: str
  uuid:
    description:
      - BIOS UUID of the virtual machine, or its instance UUID with O(use_instance_uuid=true).
    type: str
  use_instance_uuid:
    description:
      - Whether O(uuid) is an instance UUID, which vCenter keeps unique, and not a BIOS UUID.
    type: bool
    default: false
  moid:
    description:
      - Managed object ID of the virtual machine, for example V(vm-42). This is the fastest way to find it.
    type: str
"""
