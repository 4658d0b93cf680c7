# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: command lines of the NBD servers between which a copy runs.

A disk is served by nbdkit through a plugin, an image by qemu-nbd. All are started by nbdcopy through
systemd's socket activation, so none of them has an address that anybody else could connect to.

Each program dies with the one that started it. The kernel sees to that from the moment on in which it is asked to; a
parent that was gone by then is noticed by comparing its process ID.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CLUSTER = 64 * 1024
"""The cluster size of our images, in bytes.

A compressed cluster must be written whole and once: QEMU refuses to write over one that did not
compress. 64 KiB is the largest block that an NBD server can make its client keep to, and also the
grain of changed block tracking.
"""

# $0 is the parent's process ID; where it is empty, the parent's own guard has told it, unless that has none. The user's
# password at vCenter, which the module may have from its environment, is none of the programs' business.
_GUARD = """test "$PPID" = "${0:-${HOLDFAST_PARENT:-$PPID}}" || exit
unset VMWARE_PASSWORD
export HOLDFAST_PARENT=$$
exec "$@\""""

# The copy goes through a disk from its start to its end, so a small table cache does: it covers 16 GiB, more than the
# requests in flight of scattered changes. By default QEMU would keep, and write, slices of 4 KiB instead of whole
# tables, with which scattered changes take half as long again.
_TABLES = {"l2-cache-size": 2 << 20, "l2-cache-entry-size": CLUSTER}


@dataclass(frozen=True)
class Disk:
    """What an nbdkit plugin serves.

    :param plugin: name or path of the plugin, with its plain parameters
    :param descriptor: an open file that the plugin reads secrets from (``parameters=-<number>``)
    :param environment: variables for nbdkit's process only
    :param hints: what it says of zeros was told by others; comparisons read them all the same
    """

    plugin: tuple[str, ...]
    descriptor: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    hints: bool = False


def disk_server(
    disk: Disk,
    filters: Sequence[tuple[str, str]] = (),
    read_only: bool = True,
    threads: int = 16,
    log: str | None = None,
) -> list[str]:
    """The nbdkit command that serves a disk.

    :param filters: (name, parameter) of nbdkit filters, the one nearest to the client first
    :param threads: requests that the plugin works on at a time
    :param log: file for a line per request of what the plugin is asked
    """
    if disk.hints and any(name == "checkwrite" for name, parameter in filters):
        filters = [*filters, ("noextents", "")]
    if log:
        filters = [*filters, ("log", f"logfile={log}")]
    command = ["nbdkit", "--foreground", "--exit-with-parent", f"--threads={threads}"]
    command += ["--readonly"] if read_only else []
    command += [f"--filter={name}" for name, parameter in filters]
    command += disk.plugin
    command += [f"parameters=-{disk.descriptor}"] if disk.descriptor is not None else []
    command += [parameter for name, parameter in filters if parameter]
    variables = [f"{name}={value}" for name, value in disk.environment.items()]
    return _bound("TERM", ["env", *variables, *command] if variables else command)


def image_writer(chain: Sequence[str], compress: bool = True) -> list[str]:
    """The qemu-nbd command that writes clusters, compressed ones, into the first image of a chain.

    It does not wait for the storage (``cache=unsafe``): an image counts only after its fsync at the end, and
    is not continued after a crash of the machine.
    """
    # Over a parent zeros are written, as they hide what it has; QEMU notes them without storing them. Elsewhere
    # nbdcopy has left them out already.
    image = {**_qcow2(chain), "detect-zeroes": "on" if chain[1:] else "off"}
    node = {"driver": "compress", "file": image} if compress else image
    return _bound("TERM", ["qemu-nbd", "--cache=unsafe", _name(node)])


def image_reader(chain: Sequence[str], size: int | None = None) -> list[str]:
    """The qemu-nbd command that reads a chain of images, the topmost first.

    :param size: serve this many bytes instead of all, a multiple of 512
    """
    node = _qcow2(chain)
    if size is not None:
        node = {"driver": "raw", "size": size, "file": node}
    return _bound("TERM", ["qemu-nbd", "--read-only", _name(node)])


def filtered(server: Sequence[str], filters: Sequence[tuple[str, str]], read_only: bool = True) -> list[str]:
    """The nbdkit command that shows another read-only server through filters.

    :param read_only: a filter that only compares takes what is written
    """
    command, *arguments = server
    proxy = ("nbd", f"command={command}", *(f"arg={argument}" for argument in arguments))
    return disk_server(Disk(proxy), filters, read_only)


def chain_name(chain: Sequence[str]) -> str:
    """The name under which QEMU's tools open a chain of images, the topmost first, with nothing left to guess."""
    return _name(_qcow2(chain))


def discarding_name(image: str) -> str:
    """The name under which QEMU opens one image alone, so that its file gives back the space of freed clusters."""
    node = {**_qcow2([image]), "discard": "unmap"}
    node["file"]["discard"] = "unmap"
    return _name(node)


def nbdcopy(source: Sequence[str], destination: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """The command that copies from one server to another and dies with the process that starts it."""
    target = ["[", *destination, "]"] if destination else ["null:"]
    return bound_to_us(["nbdcopy", *options, "--", "[", *source, "]", *target])


def bound_to_us(command: Sequence[str]) -> list[str]:
    """A command that this process starts, killed when this process is gone."""
    return _bound("KILL", command, str(os.getpid()))


def _bound(signal: str, command: Sequence[str], parent: str = "") -> list[str]:
    """A command that gets a signal when its parent is gone, and does nothing if it was before."""
    return ["setpriv", f"--pdeathsig={signal}", "sh", "-c", _GUARD, parent, *command]


def _qcow2(chain: Sequence[str]) -> dict[str, Any]:
    """Options of a chain with every driver named, so that no content is ever taken for a format."""
    path, *rest = chain
    return {
        "driver": "qcow2",
        **_TABLES,
        "file": {"driver": "file", "filename": path},
        "backing": _qcow2(rest) if rest else None,
    }


def _name(node: Mapping[str, Any]) -> str:
    return "json:" + json.dumps(node)
