# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: lengths of time and sizes, as options take them."""

from __future__ import annotations

import re
from datetime import timedelta

from ansible.module_utils.common.text.formatters import human_to_bytes
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(text: str) -> timedelta:
    """A length of time from ``3600`` (seconds), ``90m``, ``36h``, ``7d`` or ``1d12h``; raises InvalidInput."""
    given = text.strip().lower()
    if re.fullmatch(r"[0-9]+", given):
        given += "s"
    parts = re.findall(r"([0-9]+)([smhdw])", given)
    if not parts or "".join(number + unit for number, unit in parts) != given:
        raise InvalidInput(f"{text!r} is not a length of time.", "Write seconds, or a form like 90m, 36h, 7d or 1d12h.")
    try:
        return sum((timedelta(**{_UNITS[unit]: int(number)}) for number, unit in parts), timedelta())
    except OverflowError as error:
        raise InvalidInput(f"{text!r} is too long a time.", "Write something below some thousand years.") from error


def in_bytes(text: str, option: str) -> int:
    """Bytes from ``1048576``, ``500M`` or ``20GB``; raises InvalidInput, which names the option."""
    try:
        return human_to_bytes(text)
    except ValueError as error:
        raise InvalidInput(f"{option} is no size: {text}.", "Write bytes, or a form like 500M or 20GB.") from error
