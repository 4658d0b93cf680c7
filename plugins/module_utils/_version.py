# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the collection's version, as recorded in what it writes."""

from __future__ import annotations

VERSION = "1.0.0"
"""The same as in galaxy.yml, which modules cannot read."""
