# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the one guarded import of pyVmomi.

Everything in ``_vsphere`` takes ``vim`` and ``vmodl`` from here, so that the collection can be
imported (documentation, sanity tests) without the library. :func:`require` is called when a
connection is opened; nothing else has to check.
"""

from __future__ import annotations

import sys

from ansible_collections.holdfast.backup.plugins.module_utils._errors import MissingRequirement

try:
    from pyVmomi import SoapStubAdapter, VmomiSupport, vim, vmodl

    _MISSING = None
except Exception as error:  # noqa: BLE001 - a Python that it does not support makes pyVmomi raise just that
    SoapStubAdapter = VmomiSupport = vim = vmodl = None  # type: ignore[assignment, misc]
    _MISSING = str(error)

try:
    from pyVmomi import pbm, vslm
except Exception:  # noqa: BLE001 - pyVmomi is missing, or an old one without these services
    pbm = vslm = None  # type: ignore[assignment]

__all__ = ["SoapStubAdapter", "VmomiSupport", "pbm", "require", "vim", "vmodl", "vslm"]


def require() -> None:
    """Raise MissingRequirement when pyVmomi cannot be imported."""
    if _MISSING is not None:
        raise MissingRequirement(
            f"The Python library pyVmomi cannot be imported by {sys.executable}: {_MISSING}.",
            "Install a release of it there that supports this Python: python -m pip install pyvmomi.",
        )
