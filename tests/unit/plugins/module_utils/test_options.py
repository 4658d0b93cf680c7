# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The shared options, beside what their documentation says of them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import yaml
from ansible.module_utils.basic import env_fallback
from ansible_collections.holdfast.backup.plugins.module_utils import _options, _repository_options
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._module import OptionGroup

GROUPS = {
    name: value
    for module in (_options, _repository_options)
    for name, value in vars(module).items()
    if isinstance(value, OptionGroup)
}


def fragment(name):
    module = importlib.import_module(f"ansible_collections.holdfast.backup.plugins.doc_fragments.{name.lower()}")
    return yaml.safe_load(module.ModuleDocFragment.DOCUMENTATION)["options"]


def as_documented(spec):
    keys = ("type", "default", "choices", "aliases", "elements", "required")
    return {key: spec[key] for key in keys if key in spec}


def test_there_are_groups():
    assert set(GROUPS) >= {"VCENTER", "VM", "REPOSITORY_OBJECT"}


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_a_group_is_what_its_fragment_says(name):
    documented = fragment(name)
    assert list(documented) == list(GROUPS[name].argument_spec)
    for option, spec in GROUPS[name].argument_spec.items():
        assert as_documented(documented[option]) == as_documented(spec), option
        assert documented[option]["description"], option


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_an_environment_variable_is_in_the_documentation(name):
    documented = fragment(name)
    for option, spec in GROUPS[name].argument_spec.items():
        kind, variables = spec.get("fallback", (None, []))
        assert kind in (None, env_fallback)
        for variable in variables:
            assert f"E({variable})" in str(documented[option]["description"])


GIVEN = {
    "hostname": "vc",
    "username": "u",
    "password": "p",
    "port": 443,
    "validate_certs": True,
    "ca_path": None,
    "proxy_host": None,
    "proxy_port": None,
    "session": None,
}


def test_endpoint_takes_all_options():
    endpoint = _options.endpoint({**GIVEN, "name": "another option of the module"})
    assert {option: getattr(endpoint, option) for option in GIVEN} == GIVEN


@pytest.mark.parametrize(
    ("option", "variable"), [("hostname", "VMWARE_HOST"), ("username", "VMWARE_USER"), ("password", "VMWARE_PASSWORD")]
)
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_option_is_named_with_its_variable(option, variable, value):
    with pytest.raises(InvalidInput, match=f"option {option} is not set.*{variable}"):
        _options.endpoint({**GIVEN, option: value})


def test_a_session_needs_a_server_and_nobody():
    with_session = {**GIVEN, "session": "s", "username": None, "password": None}
    assert not _options.endpoint(with_session).can_log_in
    with pytest.raises(InvalidInput, match="option hostname is not set"):
        _options.endpoint({**with_session, "hostname": None})


def test_modules_without_a_vcenter_load_nothing_of_vsphere():
    """They run where pyVmomi need not be installed, and start faster."""
    modules = ("repository_retention", "repository_verification", "restore_point", "restore_point_info")
    names = ", ".join(f"ansible_collections.holdfast.backup.plugins.modules.{module}" for module in modules)
    program = f"import sys, {names}; print([name for name in sys.modules if 'pyVmomi' in name or '._vsphere' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
