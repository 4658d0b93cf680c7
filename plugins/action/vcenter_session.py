# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's side of vcenter_session: keeps the session out of all that is shown or stored."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """The module, whose result no callback gets to see; a registered variable has it.

    Not in the background: the job's file and ``async_status`` would show the session.
    """

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module."""
        result = super().run(tmp, task_vars)
        self._play_context.no_log = True  # the SSH connection shows what a module answers, from -vvv on
        result.update(self._execute_module(task_vars=task_vars))
        # A failure holds no session, and what it says is needed.
        result["_ansible_no_log"] = not result.get("failed")
        return result
