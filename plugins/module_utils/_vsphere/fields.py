# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: tables that tie JSON keys to properties of vSphere's data objects.

One table serves three ends: it reads the keys from what vSphere returns, writes them into what
vSphere takes, and says what values are allowed. So the three cannot drift apart.
"""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.shapes import Shape, either, number, one_of

# SharesInfo as JSON: the name of a level, or the number itself when the level is "custom".
SHARES = either(one_of("low", "normal", "high"), number(0, 2**31 - 1), "low, normal, high or a number")


class Field(NamedTuple):
    """One JSON key: dotted property paths in the object read and in the object written, and its shape."""

    info: str
    spec: str
    shape: Shape


def same(path: str, shape: Shape) -> Field:
    """A field with one path for both directions."""
    return Field(path, path, shape)


def shapes(fields: Mapping[str, Field]) -> dict[str, Shape]:
    """The table as optional keys of a record."""
    return {key: field.shape for key, field in fields.items()}


def read_fields(source: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The JSON values that ``source`` has set."""
    values = {key: _plain(_get(source, field.info)) for key, field in fields.items()}
    return {key: value for key, value in values.items() if value not in (None, "")}


def write_fields(target: Any, fields: Mapping[str, Field], values: Mapping[str, Any]) -> None:
    """Set the properties of ``target`` that ``values`` has keys for, making objects in between."""
    for key, value in values.items():
        _set(target, fields[key].spec, value)


def _get(source: Any, path: str) -> Any:
    for name in path.split("."):
        source = getattr(source, name, None)
        if source is None:
            return None
    return source


def _set(target: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        inner = getattr(target, name)
        if inner is None:
            kind = target._GetPropertyInfo(name).type
            inner = _slot() if kind is vim.vm.device.VirtualDevice.BusSlotInfo else kind()
            setattr(target, name, inner)
        target = inner
    if target._GetPropertyInfo(last).type is vim.SharesInfo:
        value = _shares(value)
    setattr(target, last, value)


def _slot() -> Any:
    return vim.vm.device.VirtualDevice.PciBusSlotInfo()


def _plain(value: Any) -> Any:
    """A property as JSON; vSphere's own strings and numbers are subclasses of Python's."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, vim.SharesInfo):
        return int(value.shares) if value.level == "custom" else str(value.level)
    return int(value) if isinstance(value, int) else str(value)


def _shares(value: Any) -> Any:
    if isinstance(value, int):
        return vim.SharesInfo(level="custom", shares=value)
    return vim.SharesInfo(level=value, shares=0)  # the number follows from the level
