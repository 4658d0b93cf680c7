# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs modules of the collection in this process, by their real ``main()``."""

from __future__ import annotations

import importlib
import io
import json
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any
from unittest import mock

from ansible.module_utils import _internal
from ansible.module_utils.common import warnings as module_warnings
from ansible.module_utils.testing import patch_module_args

COLLECTION = "ansible_collections.holdfast.backup"


class ModuleFailed(Exception):
    """A module answered with fail_json; ``result`` is its answer."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg"))
        self.result = result


def load(name: str) -> ModuleType:
    """Import a module of the collection."""
    return importlib.import_module(f"{COLLECTION}.plugins.modules.{name}")


def run(name: str, args: dict[str, Any], check: bool = False, diff: bool = False, fail: bool = False) -> dict[str, Any]:
    """Run one module: ``run("vm_snapshot", args, check=True, diff=True)``; returns its result.

    :param fail: the module must fail, and its answer is returned
    :raises ModuleFailed: the module failed
    """
    module = load(name)
    given = {**args, "_ansible_check_mode": check, "_ansible_diff": diff, "_ansible_verbosity": 0}
    output = io.StringIO()
    module_warnings._global_warnings.clear()  # they would gather from module to module in one process
    # Another test may have imported what belongs to the controller, where warnings go to the display.
    target = mock.patch.object(_internal, "is_controller", False)
    with target, patch_module_args(given), redirect_stdout(output):
        try:
            module.main()
        except SystemExit:
            pass
        else:
            raise AssertionError(f"{name} returned without an answer")
    result: dict[str, Any] = json.loads(output.getvalue().strip().splitlines()[-1])
    failed = bool(result.get("failed"))
    if failed != fail:
        raise ModuleFailed(result) if failed else AssertionError(f"{name} did not fail: {result}")
    return result
