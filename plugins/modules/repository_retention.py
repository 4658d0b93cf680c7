#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: repository_retention
short_description: Delete old restore points by rules, and merge what others need of them
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast-backup)
description:
  - Deletes the restore points that no rule keeps, of all virtual machines and first class disks of a repository or of
    one. Of a first class disk these are its own, not those of virtual machines that hold it.
  - A restore point can go although later ones stand on it. What they need of it is merged into new images, which are
    proven and then put in place at once. No image is ever changed in place, and the virtual machine is not read.
  - The newest restore point of a chain that has grown long, or old, gets full images made from the chain.
  - Pinned restore points stay, and so does the newest complete one, whatever the rules. A damaged one stays with what
    it may stand on, and counts for no rule.
  - In diff mode each restore point is shown with the reason why it stays or goes.
  - What the work will cost is told in check mode, and what it has cost afterwards. When it does not fit into the free
    space, the restore points of that virtual machine or disk are left as they are.
  - Each virtual machine or disk is done on its own. What fails for one hinders no other; the module fails at its end
    then, and its result tells of all.
notes:
  - The module runs where the repository is mounted, and needs QEMU's tools, nbdkit and C(nbdcopy) there for merging.
  - At first, new images lie beside the old ones. On a file system that can share blocks between files (XFS, Btrfs) a
    new image takes little more than what changed.
extends_documentation_fragment:
  - holdfast.backup.attributes
  - holdfast.backup.attributes.changes
  - holdfast.backup.attributes.local
  - holdfast.backup.repository_object
options:
  keep_last:
    description:
      - Keep so many of the newest restore points. Here and in the other rules that count, V(0) is off and V(-1) keeps
        all.
      - Without any rule everything stays.
    type: int
    default: 0
  keep_hourly:
    description: Keep the newest restore point of each of so many hours that have one.
    type: int
    default: 0
  keep_daily:
    description: The same of days.
    type: int
    default: 0
  keep_weekly:
    description: The same of weeks, which begin on Monday (ISO 8601).
    type: int
    default: 0
  keep_monthly:
    description: The same of months.
    type: int
    default: 0
  keep_yearly:
    description: The same of years.
    type: int
    default: 0
  keep_within:
    description:
      - Keep everything that is less than so much older than the newest restore point, in years, months, days and hours,
        like V(7d), V(36h) or V(1y6m).
    type: str
  keep_within_hourly:
    description: Keep the newest restore point of each hour in such a time before the newest.
    type: str
  keep_within_daily:
    description: The same of days.
    type: str
  keep_within_weekly:
    description: The same of weeks.
    type: str
  keep_within_monthly:
    description: The same of months.
    type: str
  keep_within_yearly:
    description: The same of years.
    type: str
  semantics:
    description:
      - How the rules that count work together.
      - V(restic) lets each rule count on its own, as C(restic forget) does. While a rule has found fewer than it may
        keep, it keeps the oldest restore point too. A pinned one counts like any other.
      - V(proxmox) lets the rules work one after another, as Proxmox VE and Proxmox Backup Server do. A period of which
        an earlier rule keeps a restore point is not counted, nor is a pinned one.
    type: str
    choices: [restic, proxmox]
    default: restic
  timezone:
    description: The time zone in which hours, days, weeks, months and years begin, like V(Europe/Berlin).
    type: str
    default: UTC
  policies:
    description:
      - Other rules for some virtual machines or disks. The first that fits is taken in place of all C(keep_*) options
        of the module. One without any rule keeps everything.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Virtual machines whose name fits this pattern, like V(db-*).
        type: str
      instance_uuid:
        description: The virtual machine of this instance UUID.
        type: str
      fcd_name:
        description: First class disks whose name fits this pattern.
        type: str
      fcd_id:
        description: The first class disk of this ID.
        type: str
      keep_last:
        description: As O(keep_last).
        type: int
        default: 0
      keep_hourly:
        description: As O(keep_hourly).
        type: int
        default: 0
      keep_daily:
        description: As O(keep_daily).
        type: int
        default: 0
      keep_weekly:
        description: As O(keep_weekly).
        type: int
        default: 0
      keep_monthly:
        description: As O(keep_monthly).
        type: int
        default: 0
      keep_yearly:
        description: As O(keep_yearly).
        type: int
        default: 0
      keep_within:
        description: As O(keep_within).
        type: str
      keep_within_hourly:
        description: As O(keep_within_hourly).
        type: str
      keep_within_daily:
        description: As O(keep_within_daily).
        type: str
      keep_within_weekly:
        description: As O(keep_within_weekly).
        type: str
      keep_within_monthly:
        description: As O(keep_within_monthly).
        type: str
      keep_within_yearly:
        description: As O(keep_within_yearly).
        type: str
  merge:
    description:
      - Whether to merge images. V(false) keeps what other restore points stand on, and makes nothing full.
    type: bool
    default: true
  max_chain:
    description:
      - Make the images of the newest restore point full when their chains have so many images; V(0) never does.
      - With the same number in the backup (O(holdfast.backup.restore_point#module:max_chain)) and retention after each,
        no backup has to read a whole disk again.
    type: int
    default: 20
  max_age:
    description:
      - Make them full also when the restore point that holds the full image is so much older than the newest, in the
        form of O(keep_within).
    type: str
  rate_limit:
    description: Bytes per second that merging reads at most, like V(100M). V(0) is no limit.
    type: bytes
    default: "0"
  min_free:
    description: Bytes that must stay free in the repository all the time, like V(50G).
    type: bytes
    default: "0"
  compression:
    description:
      - The compression of what is written. By default that of the images that are merged.
      - With V(none) more may be written than was planned, if they are compressed.
    type: str
    choices: [zstd, zlib, none]
  remove_damaged:
    description:
      - Delete also what is known to be damaged or whose manifest cannot be read, unless it is pinned or no complete
        restore point is left.
    type: bool
    default: false
  lock_timeout:
    description:
      - Seconds to wait for a run that is writing restore points of the same virtual machine or disk, when all others
        are done.
    type: int
    default: 0
  lease:
    description: Seconds without a sign of life after which other machines take this run for dead.
    type: int
    default: 1800
  progress_dir:
    description:
      - Directory on the proxy in which the progress is written and a sign of life is looked for.
      - Not to be set in a playbook.
    type: path
seealso:
  - module: holdfast.backup.restore_point
  - module: holdfast.backup.restore_point_info
"""

EXAMPLES = r"""
- name: Keep two weeks of days, two months of weeks and a year of months
  holdfast.backup.repository_retention:
    repository: /backup
    keep_daily: 14
    keep_weekly: 8
    keep_monthly: 12
    timezone: Europe/Berlin

- name: Look what would go, and why the rest stays
  holdfast.backup.repository_retention:
    repository: /backup
    name: web01
    keep_within: 7d
    keep_monthly: -1
  check_mode: true
  register: plan

- name: Keep more of the databases, and everything of one virtual machine
  holdfast.backup.repository_retention:
    repository: /backup
    keep_daily: 7
    policies:
      - name: db-*
        keep_hourly: 48
        keep_daily: 30
      - instance_uuid: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11
    rate_limit: 200M
    min_free: 100G
"""

RETURN = r"""
repository:
  description: The repository. Its C(free) is in bytes, after the work.
  returned: success or failure of some
  type: dict
  sample:
    path: /backup
    id: 0b3c5b8e-5f0b-4f5e-9d5c-0c8a2f1f7f10
    version: 1
    created: "2026-11-01T02:15:00Z"
    free: 1099511627776
objects:
  description: The virtual machines and first class disks that were looked at.
  returned: success or failure of some
  type: list
  elements: dict
  contains:
    vm:
      description: The virtual machine; null for a first class disk.
      type: dict
      sample: {name: web01, moid: vm-42, instance_uuid: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11}
    fcd:
      description: The first class disk; null for a virtual machine.
      type: dict
    restore_points:
      description: Its restore points before the work, oldest first.
      type: list
      elements: dict
      contains:
        id:
          description: The restore point.
          type: str
          sample: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z
        time:
          description: The moment that it shows.
          type: str
          sample: "2026-11-20T02:15:00Z"
        keep:
          description: Whether it stays.
          type: bool
          sample: true
        reasons:
          description: Why it stays, or why it goes.
          type: list
          elements: str
          sample: [last, "daily 2026-11-20"]
        pinned:
          description: Whether it is pinned.
          type: bool
          sample: false
        problem:
          description: What is known to be wrong with it or what it stands on, or null.
          type: str
        size:
          description: Bytes of its own files; null when its manifest cannot be read.
          type: int
          sample: 1073741824
    merges:
      description: The images that were made, or are to be made, so that restore points can go.
      type: list
      elements: dict
      contains:
        id:
          description: The restore point that got a new image.
          type: str
          sample: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261121T021500Z
        label:
          description: The disk.
          type: str
          sample: Hard disk 1
        image:
          description: The name of the image.
          type: str
          sample: disk-2000.qcow2
        from:
          description: The restore points whose images became one, oldest first.
          type: list
          elements: str
        parent:
          description: The restore point whose image the new one stands on; null when it is full.
          type: str
        reason:
          description: What for.
          type: str
          sample: merged with 20261120T021500Z
        synthetic:
          description: Whether it was made full for the length or age of its chain.
          type: bool
          sample: false
        way:
          description:
            - V(copy) or V(reflink) when the content was written into a copy of the oldest image, which V(reflink)
              shares its blocks with; V(rewrite) when all of it was written anew.
          type: str
          sample: reflink
        size_before:
          description: Bytes of the old image.
          type: int
          sample: 10485760
        size:
          description: Bytes of the new image. Null in check mode.
          type: int
          sample: 1084227584
        bytes_read:
          description: Bytes of images that were read. At most so many, in check mode.
          type: int
          sample: 2168455168
        bytes_written:
          description: Bytes of images that were written. At most so many, in check mode.
          type: int
          sample: 10485760
    synthetic:
      description: The same of images that were made full for the length or age of their chains.
      type: list
      elements: dict
    removed:
      description: The restore points that were deleted, or are to be, in this order.
      type: list
      elements: str
      sample: [5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z]
    swept:
      description:
        - What dead runs had left. It was removed, but a merge whose images were complete was brought to its end.
      type: list
      elements: str
    planned:
      description: What the work costs at most, in bytes; what is freed includes images that are replaced.
      type: dict
      sample: {bytes_read: 3221225472, bytes_written: 1084227584, bytes_freed: 1084227584}
    cost:
      description: What it has cost. In check mode the same as RV(objects[].planned).
      type: dict
      sample: {bytes_read: 2168455168, bytes_written: 10485760, bytes_freed: 1084227584}
    problem:
      description:
        - What kept it from being done, or done to its end, or null. C(msg), C(error_type), C(next_step) and what else
          is known, like the C(holder) of a lock.
      type: dict
bytes_read:
  description: The sum of RV(objects[].cost).
  returned: success or failure of some
  type: int
  sample: 2168455168
bytes_written:
  description: The sum of RV(objects[].cost).
  returned: success or failure of some
  type: int
  sample: 10485760
bytes_freed:
  description: The sum of RV(objects[].cost).
  returned: success or failure of some
  type: int
  sample: 1084227584
removed:
  description: How many restore points were deleted, or are to be.
  returned: success or failure of some
  type: int
  sample: 1
"""

import functools
import shutil
import tempfile
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from typing import Any, Mapping

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, InvalidInput, RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import cloning, merging, requirements
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    layout,
    listing,
    pruning,
    retention,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.keeping import Wishes
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.listing import Selection
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Owner, Vm
from ansible_collections.holdfast.backup.plugins.module_utils._repository.pruning import Outcome, Report
from ansible_collections.holdfast.backup.plugins.module_utils._repository.retention import PERIODS, Rules
from ansible_collections.holdfast.backup.plugins.module_utils._repository_options import REPOSITORY_OBJECT

_RULES: dict[str, dict[str, Any]] = {
    **{f"keep_{period}": {"type": "int", "default": 0} for period in PERIODS},
    "keep_within": {"type": "str"},
    **{f"keep_within_{period}": {"type": "str"} for period in PERIODS[1:]},
}
_MATCHES = ("name", "instance_uuid", "fcd_name", "fcd_id")
ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    **_RULES,
    "semantics": {"type": "str", "choices": list(retention.SEMANTICS), "default": retention.RESTIC},
    "timezone": {"type": "str", "default": "UTC"},
    "policies": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {**{name: {"type": "str"} for name in _MATCHES}, **_RULES},
        "mutually_exclusive": [_MATCHES],
        "required_one_of": [_MATCHES],
    },
    "merge": {"type": "bool", "default": True},
    "max_chain": {"type": "int", "default": 20},
    "max_age": {"type": "str"},
    "rate_limit": {"type": "bytes", "default": "0"},
    "min_free": {"type": "bytes", "default": "0"},
    "compression": {"type": "str", "choices": ["zstd", "zlib", "none"]},
    "remove_damaged": {"type": "bool", "default": False},
    "lock_timeout": {"type": "int", "default": 0},
    "lease": {"type": "int", "default": 1800},
    "progress_dir": {"type": "path"},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Prune the objects asked for."""
    params = module.params
    wishes = _Wishes(params)
    if params["merge"] and not module.check_mode:
        requirements.check_programs(merging=True)
    repository = layout.open_repository(params["repository"])
    object_ids = listing.object_ids(repository, Selection.from_options(params))
    directory = tempfile.mkdtemp(dir=module.tmpdir)
    try:
        settings = merging.Settings(directory, params["rate_limit"], params["compression"])
        how = pruning.How(
            make_image=functools.partial(merging.make_image, settings, Watch(params["progress_dir"])),
            now=datetime.now(timezone.utc),
            reflink=params["merge"] and cloning.can_reflink(repository.path),
            min_free=params["min_free"],
            lock_timeout=params["lock_timeout"],
            lease=params["lease"],
            dry=module.check_mode,
        )
        outcome = pruning.prune(repository, object_ids, wishes, how)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    result = {**_result(repository, outcome.reports), "warnings": _warnings(outcome.reports, wishes)}
    _raise_problems(outcome, result, module.check_mode)
    return result


class _Wishes:
    """What the options ask for, for each object."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params
        self._max_age = None if params["max_age"] is None else retention.span(params["max_age"])
        zone = retention.zone(params["timezone"])
        self.rules = _rules(params, params["semantics"], zone)
        self._policies = [(policy, _rules(policy, params["semantics"], zone)) for policy in params["policies"]]
        for name in ("max_chain", "rate_limit", "min_free"):
            if params[name] < 0:
                raise InvalidInput(f"The option {name} is {params[name]}.", "Give 0 or more.")

    def __call__(self, owner: Owner) -> Wishes:
        """The wishes for one object."""
        params = self._params
        rules = next((rules for policy, rules in self._policies if _fits(policy, owner)), self.rules)
        return Wishes(rules, params["merge"], params["max_chain"], self._max_age, params["remove_damaged"])


def _rules(options: Mapping[str, Any], semantics: str, zone: Any) -> Rules:
    counts = {period: options[f"keep_{period}"] for period in PERIODS}
    for period, count in counts.items():
        if count < retention.ALL:
            raise InvalidInput(f"The option keep_{period} is {count}.", "Give a number, or -1 for all.")
    within = {name: options[name] and retention.span(options[name]) for name in options if "keep_within" in name}
    periods = {name[len("keep_within_") :]: span for name, span in within.items() if span and name != "keep_within"}
    return Rules(counts, within["keep_within"] or None, periods, semantics, zone)


def _fits(policy: Mapping[str, Any], owner: Owner) -> bool:
    name, object_id = ("name", "instance_uuid") if isinstance(owner, Vm) else ("fcd_name", "fcd_id")
    if policy[object_id] is not None:
        return policy[object_id].lower() == owner.object_id
    return policy[name] is not None and owner.name is not None and fnmatchcase(owner.name, policy[name])


def _result(repository: Repository, reports: list[Report]) -> dict[str, Any]:
    gone = {point_id for report in reports for point_id in report.removed}
    # What a reader of the diff wants to see: each restore point, and why it stays or goes.
    before = {
        report.object_id: {one["id"]: ", ".join(one["reasons"]) for one in report.restore_points} for report in reports
    }
    after = {
        object_id: {point_id: why for point_id, why in found.items() if point_id not in gone}
        for object_id, found in before.items()
    }
    return {
        "changed": any(report.changed for report in reports),
        "repository": repository.as_dict(),
        "objects": [report.as_dict() for report in reports],
        "bytes_read": sum(report.costs.bytes_read for report in reports),
        "bytes_written": sum(report.costs.bytes_written for report in reports),
        "bytes_freed": sum(report.costs.bytes_freed for report in reports),
        "removed": len(gone),
        "diff": {"before": before, "after": after},
    }


def _warnings(reports: list[Report], wishes: _Wishes) -> list[str]:
    warnings = []
    if wishes.rules.are_none and any(wishes(report.owner).rules is wishes.rules for report in reports):
        warnings.append("No rule says which restore points to keep, so all of them stay.")
    for report in reports:
        damaged = [one for one in report.restore_points if one["problem"] is not None and one["keep"]]
        if damaged:
            warnings.append(
                f"{len(damaged)} restore points of {report.name} are damaged. They stay and count for no rule. "
                f"{damaged[-1]['id']} is {damaged[-1]['problem']}"
            )
    return warnings


def _raise_problems(outcome: Outcome, result: dict[str, Any], dry: bool) -> None:
    """Fail when something was not done; that a run is at work now says nothing about a plan."""
    problems = [(report.name, report.problem) for report in outcome.reports if report.problem is not None]
    if dry:
        problems = [one for one in problems if type(one[1]).__name__ != "Locked"]
    if not problems:
        return
    details = {key: value for key, value in result.items() if key != "warnings"}
    kinds = {type(problem) for _name, problem in problems}
    kind: type[BackupError] = kinds.pop() if len(kinds) == 1 else RepositoryError
    if outcome.stopped is not None:
        kind = type(outcome.stopped)
    raise kind(
        f"Retention failed for {len(problems)} of {len(outcome.reports) + outcome.undone} virtual machines and disks: "
        + " ".join(f"{name}: {problem.message}" for name, problem in problems)
        + (f" Not looked at: {outcome.undone}." if outcome.undone else ""),
        problems[0][1].next_step,
        **details,
    )


def main() -> None:
    """Entry point."""
    run_module(
        run,
        argument_spec=ARGUMENT_SPEC,
        groups=(REPOSITORY_OBJECT,),
    )


if __name__ == "__main__":
    main()
