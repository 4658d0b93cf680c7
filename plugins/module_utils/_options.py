# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the options that several modules share, and what the services need of them.

Each group has a documentation fragment of the same name (``VCENTER`` - ``holdfast.backup.vcenter``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping

from ansible.module_utils.basic import env_fallback
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._module import OptionGroup
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Endpoint

VCENTER = OptionGroup(
    argument_spec={
        "hostname": {"type": "str", "fallback": (env_fallback, ["VMWARE_HOST"])},
        "username": {"type": "str", "aliases": ["user", "admin"], "fallback": (env_fallback, ["VMWARE_USER"])},
        "password": {
            "type": "str",
            "aliases": ["pass", "pwd"],
            "no_log": True,
            "fallback": (env_fallback, ["VMWARE_PASSWORD"]),
        },
        "port": {"type": "int", "default": 443, "fallback": (env_fallback, ["VMWARE_PORT"])},
        "validate_certs": {"type": "bool", "default": True, "fallback": (env_fallback, ["VMWARE_VALIDATE_CERTS"])},
        "ca_path": {"type": "path", "fallback": (env_fallback, ["VMWARE_CA_PATH"])},
        "proxy_host": {"type": "str", "fallback": (env_fallback, ["VMWARE_PROXY_HOST"])},
        "proxy_port": {"type": "int", "fallback": (env_fallback, ["VMWARE_PROXY_PORT"])},
        "session": {"type": "str", "no_log": True},  # never from the environment: other processes can read that
    },
)

VM_KEYS = ("name", "uuid", "moid", "inventory_path")  # each says which VM is meant

VM = OptionGroup(
    argument_spec={
        "name": {"type": "str"},
        "name_match": {"type": "str", "choices": ["first", "last"]},
        "folder": {"type": "str"},
        "folder_paths_are_absolute": {"type": "bool", "default": False},
        "datacenter": {"type": "str"},
        "inventory_path": {"type": "str"},
        "uuid": {"type": "str"},
        "use_instance_uuid": {"type": "bool", "default": False},
        "moid": {"type": "str"},
    },
    mutually_exclusive=[VM_KEYS],
    required_one_of=[VM_KEYS],
)

# Many VMs. What they mean is fleet.Choice.from_options.
VMS = OptionGroup(
    argument_spec={
        "vms": {"type": "list", "elements": "raw"},
        "folder": {"type": "str"},
        "cluster": {"type": "str"},
        "datacenter": {"type": "str"},
        "tags": {"type": "list", "elements": "str"},
    },
)

_APIS = ["auto", "vim", "vslm"]

# One first class disk.
FCD = OptionGroup(
    argument_spec={
        "id": {"type": "str"},
        "name": {"type": "str"},
        "datastore": {"type": "str"},
        "api": {"type": "str", "choices": _APIS, "default": "auto"},
    },
    mutually_exclusive=[("id", "name")],
    required_one_of=[("id", "name")],
)

_VM_OR_FCD = (*VM_KEYS, "fcd_id", "fcd_name")

# One first class disk where it may stand instead of a virtual machine; goes with optional(VM).
FCD_DISK = OptionGroup(
    argument_spec={
        "fcd_id": {"type": "str"},
        "fcd_name": {"type": "str"},
        "fcd_datastore": {"type": "str"},
        "fcd_api": {"type": "str", "choices": _APIS, "default": "auto"},
    },
    mutually_exclusive=[_VM_OR_FCD],
    required_one_of=[_VM_OR_FCD],
)

_NEEDED = {"hostname": "VMWARE_HOST", "username": "VMWARE_USER", "password": "VMWARE_PASSWORD"}


def endpoint(params: Mapping[str, Any], with_user: bool = True) -> Endpoint:
    """The endpoint that the options of :data:`VCENTER` describe; raises InvalidInput when one is missing.

    :param with_user: whether user name and password are needed; with a session they are not
    """
    for option, variable in _NEEDED.items():
        if not params[option] and (option == "hostname" or (with_user and not params["session"])):
            raise InvalidInput(
                f"The option {option} is not set.", f"Give it to the task, or set the environment variable {variable}."
            )
    return Endpoint(**{option: params[option] for option in VCENTER.argument_spec})


def vm_selection(params: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``inventory.find_vm`` from the options of :data:`VM`."""
    return {option: params[option] for option in VM.argument_spec}


def fcd_selection(params: Mapping[str, Any], prefix: str = "") -> dict[str, str | None]:
    """Arguments of ``Store.find`` from the options of :data:`FCD`, or of :data:`FCD_DISK` (prefix ``fcd_``)."""
    return {option: params[prefix + option] for option in ("id", "name", "datastore")}


def optional(group: OptionGroup) -> OptionGroup:
    """The options of a group without the rule that one of them is needed."""
    return replace(group, mutually_exclusive=[], required_one_of=[])
