# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: which of many snapshots are meant, and their sums.

Pure over the records of snapshots that ``vm_snapshot_info`` returns.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Iterable, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput

OWNERS = ("any", "ours", "foreign")
FIELDS = ("creation_time", "description", "folder", "id", "name", "quiesced", "state", "vm_name")


@dataclass(frozen=True)
class Filter:
    """What a snapshot must be to be chosen; what is not set asks for nothing.

    ``larger_than`` is in bytes; a size that is not known is not larger. ``fields`` compares values as text without
    regard to case, ``exact`` or as a part (``includes``), as the filters of community.vmware do.
    """

    older_than: timedelta | None = None
    larger_than: int | None = None
    deeper_than: int | None = None
    owner: str = "any"
    expired: bool | None = None
    name_pattern: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    match_type: str = "exact"

    def __post_init__(self) -> None:
        for name in self.fields:
            if name not in FIELDS:
                raise InvalidInput(f"There is no filter {name}.", f"There are {', '.join(FIELDS)}.")

    def matches(self, record: Mapping[str, Any], vm: Mapping[str, Any]) -> bool:
        """Whether a snapshot is meant.

        :param record: of the snapshot; without ``size_bytes`` its size is taken to fit
        :param vm: ``vm_name`` and ``folder``, the name of the folder
        """
        checks = (
            self.older_than is None or record["age_seconds"] > self.older_than.total_seconds(),
            self.larger_than is None or "size_bytes" not in record or (record["size_bytes"] or 0) > self.larger_than,
            self.deeper_than is None or record["depth"] > self.deeper_than,
            self.owner in ("any", record["owner"]),
            self.expired in (None, record["expired"]),
            self.name_pattern is None or fnmatch.fnmatchcase(record["name"], self.name_pattern),
            all(self._fits(name, value, {**record, **vm}[name]) for name, value in self.fields.items()),
        )
        return all(checks)

    def _fits(self, name: str, wanted: Any, there: Any) -> bool:
        given, found = str(wanted).lower(), str(there).lower()
        if name == "creation_time":  # also as community.vmware tells it, and as it compares it
            given = re.sub(r"\.[0-9]+", "", given).replace("+00:00", "z").replace(" ", "t")
        return given == found if self.match_type == "exact" else given in found


def totals(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over snapshots' records."""
    records = list(records)
    owners = Counter(record["owner"] for record in records)
    oldest = max(records, key=lambda record: record["age_seconds"], default=None)
    return {
        "snapshots": len(records),
        "ours": owners["ours"],
        "foreign": owners["foreign"],
        "expired": sum(record["expired"] for record in records),
        "size_bytes": sum(record.get("size_bytes") or 0 for record in records),
        "size_unknown": sum(record.get("size_bytes") is None for record in records),
        "deepest": max((record["depth"] for record in records), default=0),
        "oldest": oldest["creation_time"] if oldest else None,
    }
