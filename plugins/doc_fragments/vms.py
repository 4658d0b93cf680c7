# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The choice of many virtual machines."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of the option group VMS."""

    DOCUMENTATION = r"""
options:
  vms:
    description:
      - Which virtual machines. Each is a name, a UUID or a managed object ID, or a dictionary of some of C(name),
        C(uuid) (BIOS or instance), C(instance_uuid), C(moid) and C(folder), which must all fit.
    type: list
    elements: raw
  folder:
    description:
      - Path of a folder, absolute like V(/dc1/vm/production) or below the virtual machine folder of a datacenter. Only
        virtual machines in it and below are meant.
    type: str
  cluster:
    description:
      - Name or path of a cluster, or of a host that is in none. Only virtual machines on it are meant.
    type: str
  datacenter:
    description:
      - Name or path of a datacenter. Only virtual machines in it are meant.
    type: str
  tags:
    description:
      - Tags as C(category:name), or their IDs. Only virtual machines that have them are meant.
      - Needs the Automation API of vCenter 7.0 Update 2 or later.
    type: list
    elements: str
"""
