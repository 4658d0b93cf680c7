# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tables at the end of the demo."""

from __future__ import annotations

from typing import Any

MIB = 1 << 20


def tables(proofs: list[dict[str, Any]], points: list[dict[str, Any]]) -> str:
    """The restore points, and what was proven of each restored disk."""
    rows = [["restore point", "disk", "kind", "read", "stored", "of"]]
    for point in points:
        for disk in point["disks"]:
            sizes = [f"{disk[key] / MIB:.1f} MiB" for key in ("bytes_read", "bytes_stored", "capacity")]
            rows.append([point["id"].rpartition("/")[2], disk["label"], disk["kind"], *sizes])
    proven = [["restored as", "disk", "bytes", "e2fsck", "files"]]
    for proof in proofs:
        proven.append(
            [
                proof["as"],
                proof["disk"],
                "identical" if proof["identical"] else "DIFFERENT",
                "clean" if proof["fsck"] else "FAILED",
                f"{proof['files']} of {proof['expected']} equal",
            ]
        )
    return _aligned(rows) + "\n\n" + _aligned(proven)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
