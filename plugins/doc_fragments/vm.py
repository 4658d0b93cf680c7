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
      - Exactly one of O(name), O(uuid), O(moid) and O(inventory_path) is needed.
    type: str
  name_match:
    description:
      - If several virtual machines have the name, take the V(first) or the V(last) in the order of their managed object
        IDs, which is that in which they were made. If it is not set, the task fails.
    type: str
    choices: [first, last]
  folder:
    description:
      - Folder of the virtual machine, to find it faster or to tell it from others of the same name. If it is not in the
        folder itself, it is looked for in the folders below, and then wherever the path to it has this part.
      - Either absolute, starting with the datacenter, for example V(/dc1/vm/production/web), or relative to the virtual
        machine folder of a datacenter, for example V(production/web) or V(vm/production/web). Slashes at both ends
        change nothing.
      - Only used with O(name).
    type: str
  folder_paths_are_absolute:
    description:
      - Whether O(folder) is never taken for a relative path, even if it looks like one.
    type: bool
    default: false
  datacenter:
    description:
      - Name or path of the datacenter in which to look. All are searched if it is not set.
      - Only used with O(name).
    type: str
  inventory_path:
    description:
      - Path of the virtual machine itself, for example V(/dc1/vm/production/web/web01). A slash in a name is written
        V(%2f), a backslash V(%5c), a percent sign V(%25).
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
