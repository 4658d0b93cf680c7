# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the one wrapper around AnsibleModule.

A module of this collection is a function ``run(module) -> dict`` and a call of
:func:`run_module`. Nothing else in the collection calls ``exit_json`` or ``fail_json``.
"""

from __future__ import annotations

import signal
import traceback
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError


@dataclass(frozen=True)
class OptionGroup:
    """Options that several modules share, with the rules between them.

    ``argument_spec`` and the rule lists have the shapes that AnsibleModule takes. Each group
    has a documentation fragment of the same name (a unit test compares the two).
    """

    argument_spec: dict[str, dict[str, Any]]
    mutually_exclusive: list[Any] = field(default_factory=list)
    required_together: list[Any] = field(default_factory=list)
    required_one_of: list[Any] = field(default_factory=list)
    required_if: list[Any] = field(default_factory=list)
    required_by: dict[str, Any] = field(default_factory=dict)


def run_module(
    run: Callable[[AnsibleModule], dict[str, Any]],
    argument_spec: dict[str, dict[str, Any]] | None = None,
    groups: Iterable[OptionGroup] = (),
    **kwargs: Any,
) -> None:
    """Build the AnsibleModule, call ``run`` and turn its outcome into the module's answer.

    :param run: does the work; returns the module's result (with ``changed``); its ``warnings`` are shown and,
        if there are any, returned under that name
    :param argument_spec: the module's own options
    :param groups: the shared option groups that the module takes
    :param kwargs: further arguments of AnsibleModule; check mode is supported unless said otherwise
    """
    spec: dict[str, Any] = {}
    rules: dict[str, Any] = {
        "mutually_exclusive": list(kwargs.pop("mutually_exclusive", [])),
        "required_together": list(kwargs.pop("required_together", [])),
        "required_one_of": list(kwargs.pop("required_one_of", [])),
        "required_if": list(kwargs.pop("required_if", [])),
        "required_by": dict(kwargs.pop("required_by", {})),
    }
    for group in groups:
        spec.update(group.argument_spec)
        for name, value in rules.items():
            if isinstance(value, dict):
                value.update(getattr(group, name))
            else:
                value.extend(getattr(group, name))
    spec.update(argument_spec or {})
    kwargs.setdefault("supports_check_mode", True)
    module = AnsibleModule(argument_spec=spec, **rules, **kwargs)
    # A cancelled job sends SIGTERM: unwind, so that `finally` and `with` blocks clean up.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        result = run(module)
    except BackupError as error:
        module.fail_json(
            msg=str(error),
            error_type=type(error).__name__,
            next_step=error.next_step,
            exception=traceback.format_exc(),
            **error.details,
        )
    for warning in result.pop("warnings", ()):
        module.warn(warning)
    module.exit_json(**result)


def _terminate(signum: int, frame: Any) -> None:
    signal.signal(signum, signal.SIG_IGN)  # a second one does not cut the cleaning up short
    raise BackupError("The module was asked to stop (SIGTERM).", "Run it again; what it had begun was cleaned up.")
