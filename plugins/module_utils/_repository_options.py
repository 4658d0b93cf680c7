# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the options that modules share which work in a repository and need no vCenter.

As in ``_options``, each group has a documentation fragment of the same name. What they mean is
``_repository.listing.Selection.from_options``.
"""

from __future__ import annotations

from ansible_collections.holdfast.backup.plugins.module_utils._module import OptionGroup

# A repository, and one virtual machine or first class disk that it holds restore points of.
REPOSITORY_OBJECT = OptionGroup(
    argument_spec={
        "repository": {"type": "path", "required": True},
        "name": {"type": "str"},
        "moid": {"type": "str"},
        "instance_uuid": {"type": "str"},
        "vm": {"type": "dict"},
        "fcd_id": {"type": "str"},
        "fcd_name": {"type": "str"},
        "fcd": {"type": "dict"},
    },
    mutually_exclusive=[("name", "moid", "instance_uuid", "vm", "fcd_id", "fcd_name", "fcd")],
)
