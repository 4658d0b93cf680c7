# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ansible callback plugin: notes when each task of a playbook begins, and how many requests the lab had until then."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible_collections.holdfast.backup.tests.lab.client import Lab

DOCUMENTATION = """
name: steps
type: aggregate
short_description: Notes time and requests at the start of each task
description: Appends JSON lines to the file in C(BENCH_STEPS); the lab is found by C(BENCH_LAB).
"""


class CallbackModule(CallbackBase):
    """One line at the start of each task and one at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "steps"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """A task begins."""
        self._note(task.get_name().rpartition(" : ")[2], task.action)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The last one has ended."""
        self._note("", "")

    def _note(self, task: str, action: str) -> None:
        requests = Lab.attach(os.environ["BENCH_LAB"]).requests()["total"]
        line = {"task": task, "action": action, "time": time.monotonic(), "requests": requests}
        with open(os.environ["BENCH_STEPS"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
