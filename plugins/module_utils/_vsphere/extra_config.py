# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: which of a VM's advanced settings (extraConfig) a new VM may take over.

Left out is what vSphere derives from the devices, what belongs to one host, one moment or one
identity, what may be a secret, and the marks of this collection. Only names of those are kept.
"""

from __future__ import annotations

import re
from typing import Any, Iterable

MARK = "holdfast.backup.restoring"  # on a VM that a restore made and has not finished

_LEFT_OUT = re.compile(
    "|".join(
        (
            # Slots of devices: the device list says the same, and slots may change.
            r"(scsi|sata|nvme|ide|ethernet|usb|usb_xhci|floppy|serial|parallel|sound|pcipassthru|vtpm|nvdimm)\d*[.:].*",
            r".*\.ctkenabled|ctkenabled",
            # Files, identity and state of the old VM.
            r"nvram|extendedconfigfile|vmxstats\.filename|sched\.swap\..*|workingdir|migrate\..*|vmotion\..*",
            r"uuid\.(bios|location|action)|vc\.uuid|viv\..*|vmci0\.id|checkpoint\..*|cleanshutdown|softpoweroff",
            r"replay\..*|snapshot\.(?!maxsnapshots$).*|toolsinstallmanager\..*|tools\.remindinstall|vmware\.tools\..*",
            r"faulttolerance\..*|ft\..*|hbr_filter\..*|iofilter.*",
            # What one host's processor made of it.
            r"(host|guest|user)cpuid\..*|monitor\.phys_bits_used|numa\.autosize.*|evccompatibilitymode|cpuid\.corespersocket",
            r"sched\.cpu\.affinity|sched\.mem\.affinity|numa\.nodeaffinity",
            # Secrets: the guest's own variables carry cloud-init data and passwords.
            r"guestinfo\..*|encryption\..*|datafilekey|.*(password|passwd|secret|token|credential|private_?key|keysafe).*",
            r"remotedisplay\.vnc\.key",
            r"holdfast\.backup\..*|govcsim",
        )
    ),
    re.IGNORECASE,
)


def is_kept(key: str) -> bool:
    """Whether a new VM may take this setting over."""
    return not _LEFT_OUT.fullmatch(key)


def split(options: Iterable[Any]) -> tuple[dict[str, str], list[str]]:
    """Divide option values (objects with ``key`` and ``value``) into settings to keep and names left out."""
    kept, left_out = {}, []
    for option in options:
        if option.value in (None, ""):
            continue  # vSphere removes a setting by making it empty
        if is_kept(option.key):
            kept[option.key] = str(option.value)
        else:
            left_out.append(option.key)
    return dict(sorted(kept.items())), sorted(left_out)


def value(options: Iterable[Any], key: str) -> str:
    """The value of one setting; empty when it is not there."""
    for option in options:
        if option.key.lower() == key.lower():
            return str(option.value or "")
    return ""
