# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a section found: a table, targets, and all numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Section:
    """One section of the report.

    :param facts: what the numbers depend on: sizes, runs, versions
    :param rows: the table; all rows have the same keys
    :param targets: ``{"what", "is", "limit", "met"}``
    :param raw: every single measurement
    """

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def at_most(self, what: str, value: float, limit: float) -> None:
        """A target: no more than this."""
        self._target(what, value, f"at most {limit:g}", value <= limit)

    def at_least(self, what: str, value: float, limit: float) -> None:
        """A target: no less than this."""
        self._target(what, value, f"at least {limit:g}", value >= limit)

    def _target(self, what: str, value: float, limit: str, met: bool) -> None:
        self.targets.append({"what": what, "is": float(f"{value:.4g}"), "limit": limit, "met": met})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))

    def __str__(self) -> str:
        lines = [f"== {self.title}", *(f"   {key}: {value}" for key, value in self.facts.items()), table(self.rows)]
        for target in self.targets:
            verdict = "met   " if target["met"] else "MISSED"
            lines.append(f"   {verdict} {target['what']}: {target['is']:g} ({target['limit']})")
        return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text, numbers to the right."""
    if not rows:
        return ""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    numeric = [all(isinstance(row[name], (int, float, type(None))) for row in rows) for name in rows[0]]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, numeric)
        ).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}" if value < 10 else f"{value:.1f}"
    return str(value)
