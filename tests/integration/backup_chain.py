# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tasks of the roles vm_backup and vm_restore in their order, module by module, without a playbook's cost.

Run as a program it is a small ``ansible-playbook``: it starts a process for each module, as Ansible does, and looks
after a copy as the action plugin of vddk_copy does. So tests can kill what they like of it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Iterator

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import WATCHED
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.modules import ModuleFailed

# A module's name and arguments -> its result; raises ModuleFailed.
Run = Callable[[str, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Chain:
    """How one VM is backed up and restored.

    :param vcenter: the connection options of all modules
    :param libdir: the option vddk_libdir; without it the disks are accessed natively
    :param options: options of single modules on top, by module: ``{"disk_changed_areas": {"api": "vi_json"}}``
    """

    vcenter: dict[str, Any]
    moid: str
    repository: str
    libdir: str | None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def stamp(self) -> dict[str, str]:
        """The stamp that snapshots of this job carry."""
        return {"job": f"vm_backup {self.repository}"}

    def backup(self, run: Run, mode: str = "auto") -> dict[str, Any]:
        """Make a restore point; returns what completing it returned.

        :raises ModuleFailed: there is none, and what was begun is cleaned up if that was possible
        """
        examined = self._on_vm(run, "disk_changed_areas", tracking="enabled")
        disks = [disk for disk in examined["disks"] if disk["protected"]]
        started = self._in_repository(run, "started", vm=examined["vm"], disks=disks, mode=mode)
        point = {name: started["restore_point"][name] for name in ("id", "run")}
        try:
            self._on_vm(run, "vm_snapshot", state="absent", stamp=self.stamp)
            snapshot, copied = self._copy(run, started, disks)
            return self._in_repository(
                run,
                "completed",
                **point,
                vm=examined["vm"],
                disks=copied["disks"],
                consistency=snapshot["consistency"],
                snapshot_time=snapshot["creation_time"],
            )
        except ModuleFailed:
            self._in_repository(run, "aborted", **point)
            raise

    def _copy(
        self, run: Run, started: dict[str, Any], disks: list[dict[str, Any]]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        directory = started["restore_point"]["path"]
        stamp = {**self.stamp, "run": started["restore_point"]["run"], "expires_in": "1d"}
        try:
            name = f"holdfast.backup {started['restore_point']['id'].rpartition('/')[2]}"
            taken = self._on_vm(run, "vm_snapshot", snapshot_name=name, stamp=stamp)["snapshot"]
            self._on_vm(run, "vm_config", state="captured", snapshot=taken["moid"], path=directory)
            changed = self._on_vm(
                run,
                "disk_changed_areas",
                snapshot=taken["moid"],
                since=started["since"],
                disks=[disk["backing_uuid"] for disk in disks],
                areas_dir=directory,
            )
            copy = {"snapshot": taken["moid"], "disks": changed["disks"], "image_dir": directory}
            copied = self._on_vm(run, "vddk_copy", vddk_libdir=self.libdir, **copy)
        finally:
            self._on_vm(run, "vm_snapshot", state="absent", stamp=self.stamp)
        return taken, copied

    def restore(self, run: Run, point: dict[str, Any], name: str) -> dict[str, Any]:
        """Make a new VM of a restore point (of restore_point_info); returns what making it returned."""
        wanted = {"config": f"{point['path']}/config.json", "restore_id": point["id"], "mac_policy": "generate"}
        created = run("vm_config", {**self.vcenter, "state": "present", "name": name, **wanted})
        moid = created["vm"]["moid"]
        images = {disk["backing_uuid"]: disk["path"] for disk in point["disks"]}
        disks = [{"disk": disk["key"], "image": images[disk["source_backing_uuid"]]} for disk in created["disks"]]
        target = {"direction": "restore", "disks": disks, "target_is_zero": True, "vddk_libdir": self.libdir}
        run("vddk_copy", {**self.vcenter, "moid": moid, **target})
        run("vm_config", {**self.vcenter, "moid": moid, "state": "finished"})
        return created

    def _on_vm(self, run: Run, module: str, /, **args: Any) -> dict[str, Any]:
        return run(module, {**self.vcenter, "moid": self.moid, **self.options.get(module, {}), **args})

    def _in_repository(self, run: Run, state: str, /, **args: Any) -> dict[str, Any]:
        shared = {"repository": self.repository, **self.options.get("restore_point", {})}
        return run("restore_point", {**shared, "state": state, **args})


def in_own_process(module: str, args: dict[str, Any]) -> dict[str, Any]:
    """A :data:`Run` that forks a process for the module, and tells of it on stdout before it starts to work."""
    with _watched(module) as (watched, more):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _answer(writer, module, {**args, **more, "_ansible_remote_tmp": tempfile.gettempdir()})
        os.close(writer)
        _tell(module=module, state=args.get("state"), pid=child)
        answer = b""
        with open(reader, "rb", buffering=0) as pipe:
            while True:
                if not select.select([pipe], [], [], 1)[0]:
                    watched()
                    continue
                data = pipe.read(65536)
                if not data:
                    break
                answer += data
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise ModuleFailed({"msg": f"{module} ended with status {status}"})
    result = json.loads(answer)
    if result.get("failed"):
        raise ModuleFailed(result)
    return result


@contextmanager
def _watched(module: str) -> Iterator[tuple[Callable[[], None], dict[str, str]]]:
    """The sign of life for a copy, and the option through which it learns where to look for it."""
    if module != "vddk_copy":
        yield (lambda: None), {}
        return
    with tempfile.TemporaryDirectory() as directory:
        sign = Path(directory, WATCHED)
        sign.touch()
        yield sign.touch, {"progress_dir": directory}


def _answer(writer: int, module: str, args: dict[str, Any]) -> None:
    """What the forked process does: run the module, write its result, end."""
    status = 1
    try:
        try:
            result = modules.run(module, args)
        except ModuleFailed as failure:
            result = failure.result
        with open(writer, "w", encoding="utf-8") as pipe:
            json.dump(result, pipe)
        status = 0
    except Exception:  # noqa: BLE001 - whatever it is, the parent sees the status and a person the cause
        traceback.print_exc()
    finally:
        os._exit(status)


def _tell(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def start(chain: Chain, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Begin a backup in processes of its own, which all inherit the environment; temporary files go to its TMPDIR.

    The first process is named like Ansible's, so the repository's lock knows when it is gone. It prints a JSON line
    for each module that it starts, and a last one with ``done`` or ``failed``.
    """
    play = subprocess.Popen(
        ["ansible-playbook", __file__],
        executable=sys.executable,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    assert play.stdin is not None
    with play.stdin as settings:  # not in its arguments: they hold a password
        json.dump(asdict(chain), settings)
    return play


def main() -> None:
    """Back up once, as stdin says."""
    chain = Chain(**json.load(sys.stdin))
    for name in ("disk_changed_areas", "restore_point", "vm_snapshot", "vm_config", "vddk_copy"):
        modules.load(name)  # once, not in every process
    try:
        done = chain.backup(in_own_process)
    except ModuleFailed as failure:
        _tell(failed=str(failure))
        sys.exit(1)
    _tell(done=done["restore_point"]["id"])


if __name__ == "__main__":
    main()
