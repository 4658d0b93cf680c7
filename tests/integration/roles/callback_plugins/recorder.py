# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes what a playbook run did, one JSON line per result, to the file in the environment variable RECORD."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: recorder
type: notification
short_description: Writes the results of tasks for the tests to read
description: Writes the results of tasks for the tests to read.
"""


class CallbackModule(CallbackBase):
    """Ansible's entry."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "recorder"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, host: str, task: str, status: str, result: Any) -> None:
        line = {"host": host, "task": task, "status": status, "result": result}
        with open(os.environ["RECORD"], "a", encoding="utf-8") as record:
            record.write(json.dumps(line, default=str) + "\n")

    def v2_runner_on_ok(self, result: Any) -> None:
        self._write(result.host.get_name(), result.task.name, "ok", result.result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._write(result.host.get_name(), result.task.name, "ignored" if ignore_errors else "failed", result.result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        for host in stats.processed:
            self._write(host, "", "stats", stats.summarize(host))
