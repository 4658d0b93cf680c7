# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's side of repository_retention: shows how far a merge is, and ends it when the playbook ends."""

from __future__ import annotations

from ansible_collections.holdfast.backup.plugins.plugin_utils._watching import WatchedModule


class ActionModule(WatchedModule):
    """The module, watched."""

    NAME = "repository_retention"
