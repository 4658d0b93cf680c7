# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: say what a JSON document must look like, and check it.

A shape is a function ``shape(value, where)`` that raises InvalidInput, naming the place, when the
value does not fit. Mappings are closed: a key that nobody knows is an error, not a silent loss.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Optional

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput

Shape = Callable[[Any, str], None]

NEXT_STEP = "Use a file as vm_config wrote it, or correct it at this place."


def refuse(where: str, wanted: str, value: Any) -> InvalidInput:
    """The error for a value at ``where``; long values are cut."""
    shown = repr(value)
    return InvalidInput(
        f"{where} must be {wanted}, not {shown if len(shown) <= 80 else shown[:77] + '...'}.", NEXT_STEP
    )


def flag(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise refuse(where, "true or false", value)


def number(low: int, high: int, multiple: int = 1) -> Shape:
    """A whole number from ``low`` to ``high``, both allowed."""

    def shape(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise refuse(where, "a whole number", value)
        if not low <= value <= high or value % multiple:
            step = f" in steps of {multiple}" if multiple > 1 else ""
            raise refuse(where, f"from {low} to {high}{step}", value)

    return shape


def text(limit: int = 1024, empty: bool = True, lines: bool = False) -> Shape:
    """A string of at most ``limit`` characters without control characters (but line ends and tabs if ``lines``)."""

    def shape(value: Any, where: str) -> None:
        if not isinstance(value, str):
            raise refuse(where, "a string", value)
        if len(value) > limit or not (value or empty):
            raise refuse(where, f"{0 if empty else 1} to {limit} characters long", value)
        allowed = "\n\r\t" if lines else ""
        if any(ord(character) < 32 and character not in allowed for character in value):
            raise refuse(where, "free of control characters", value)

    return shape


def one_of(*choices: str) -> Shape:
    """One of these strings."""

    def shape(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in choices:
            raise refuse(where, "one of " + ", ".join(choices), value)

    return shape


def either(first: Shape, second: Shape, wanted: str) -> Shape:
    """What fits one of the two."""

    def shape(value: Any, where: str) -> None:
        for candidate in (first, second):
            try:
                return candidate(value, where)
            except InvalidInput:
                continue
        raise refuse(where, wanted, value)

    return shape


def nullable(inner: Shape) -> Shape:
    """Null, or what fits ``inner``."""

    def shape(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return shape


def items(inner: Shape, limit: int = 4096) -> Shape:
    """A list of things that each fit ``inner``."""

    def shape(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) > limit:
            raise refuse(where, f"a list of at most {limit}", value)
        for index, item in enumerate(value):
            inner(item, f"{where}[{index}]")

    return shape


def table(inner: Shape, limit: int = 4096) -> Shape:
    """A mapping with any names whose values fit ``inner``."""
    name = text(1024, empty=False)

    def shape(value: Any, where: str) -> None:
        if not isinstance(value, dict) or len(value) > limit:
            raise refuse(where, f"a mapping of at most {limit}", value)
        for key, item in value.items():
            name(key, f"a name in {where}")
            inner(item, f"{where}[{key!r}]")

    return shape


def record(required: Mapping[str, Shape], optional: Optional[Mapping[str, Shape]] = None) -> Shape:
    """A mapping with the ``required`` keys, perhaps the ``optional`` ones, and no others."""
    known = {**required, **(optional or {})}

    def shape(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise refuse(where, "a mapping", value)
        unknown = sorted(str(key) for key in value if key not in known)
        if unknown:
            raise refuse(where, "without keys that this version does not know", unknown)
        missing = [key for key in required if key not in value]
        if missing:
            raise InvalidInput(f"{where} lacks {', '.join(missing)}.", NEXT_STEP)
        for key, item in value.items():
            known[key](item, f"{where}.{key}")

    return shape


def by_type(kinds: Mapping[str, Mapping[str, Shape]], required: Mapping[str, Shape]) -> Shape:
    """A mapping with the ``required`` keys, a ``type``, and the optional keys that this type has."""
    choice = one_of(*kinds)
    shapes = {kind: record({"type": choice, **required}, optional) for kind, optional in kinds.items()}

    def shape(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise refuse(where, "a mapping", value)
        choice(value.get("type"), f"{where}.type")
        shapes[value["type"]](value, where)

    return shape
