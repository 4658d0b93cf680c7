# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the modules can do, in the form that ansible-doc shows.

Every module uses three parts: ``holdfast.backup.attributes``; ``holdfast.backup.attributes.changes`` or
``holdfast.backup.attributes.reads``; ``holdfast.backup.attributes.login`` or ``holdfast.backup.attributes.local``.
"""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of attributes."""

    DOCUMENTATION = r"""
options: {}
attributes:
  async:
    description: Supports being run with the C(async) keyword.
    support: full
  check_mode:
    description: Can run in C(check_mode) and return what it would change, without changing anything.
    support: full
  platform:
    description: The kind of system that the module runs on, which is not the virtual machine.
    platforms: posix
    support: full
"""

    # It changes something.
    CHANGES = r"""
options: {}
attributes:
  diff_mode:
    description: Returns what has changed, or would change in C(check_mode), when in diff mode.
    support: full
"""

    # It only reads.
    READS = r"""
options: {}
attributes:
  diff_mode:
    description: Returns what has changed, or would change in C(check_mode), when in diff mode.
    support: N/A
    details: The module changes nothing.
"""

    # It logs in to vCenter. (No part may be named like another fragment, which would be taken instead.)
    LOGIN = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/holdfast.backup.vcenter) in C(module_defaults) for the options of all modules that log in.
    support: full
    membership:
      - holdfast.backup.vcenter
      - holdfast.backup.all
"""

    # It needs no vCenter.
    LOCAL = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/holdfast.backup.all) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - holdfast.backup.all
"""
