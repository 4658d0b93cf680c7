# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: lengths of time, as options take them."""

from __future__ import annotations

import re
from datetime import timedelta

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
