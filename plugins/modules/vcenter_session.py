#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Log in to vCenter once for many tasks."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vcenter_session
short_description: Log in to vCenter once for many tasks
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Opens a session that any number of tasks on any number of hosts use by their option O(session), and ends it.
  - The session is a secret. The result of this module is shown by no callback, at no verbosity; a registered variable
    has it. Give it on by C(module_defaults) or task options. A fact may be stored in a cache.
options:
  state:
    description:
      - V(present) opens a session. If O(session) is given and has not ended, that one is kept.
      - V(absent) ends O(session).
    type: str
    choices: [present, absent]
    default: present
  token:
    description:
      - A SAML token to log in with instead of user name and password, as text or as the path of a file.
      - A token that is made out to the holder of a key needs O(private_key).
    type: str
  sso:
    description:
      - Get a SAML token from the Single Sign-On of this vCenter and log in with that.
      - It is a bearer token for O(username) and O(password); with O(certificate), one for the holder of its key.
      - It needs further Python libraries, lxml and cryptography; C(python -m pip install 'pyvmomi[sso]') gets them.
    type: bool
    default: false
  certificate:
    description: PEM file with the certificate of a solution user, with O(sso=true).
    type: path
  private_key:
    description: PEM file with the private key of O(certificate), or of the key that O(token) is made out to.
    type: path
  automation:
    description:
      - Open a session of the Automation API too. Tasks that choose virtual machines by tags need one.
    type: bool
    default: false
extends_documentation_fragment:
  - holdfast.backup.vcenter
  - holdfast.backup.attributes
  - holdfast.backup.attributes.reads
  - holdfast.backup.attributes.login
attributes:
  async:
    support: none
    details: The session would stand in the file of the job.
  check_mode:
    details: The session is opened, kept or ended in check mode too. The other tasks need it, and nothing in vSphere's
      inventory changes.
notes:
  - The result is never C(changed), as a session is no state that a play describes. RV(outcome) tells what happened.
  - vCenter ends a session that was idle for 30 minutes, if its settings do not say otherwise.
seealso:
  - module: holdfast.backup.vm_snapshot
"""

EXAMPLES = r"""
- name: Work in one session
  module_defaults:
    group/holdfast.backup.vcenter:
      hostname: vcenter.example.com
      session: "{{ login.session | default(omit) }}"
  delegate_to: localhost
  block:
    - name: Log in, once for all hosts of the play
      holdfast.backup.vcenter_session:
        username: backup@vsphere.local
        password: "{{ vcenter_password }}"
      register: login
      run_once: true

    - name: Take a snapshot of each host
      holdfast.backup.vm_snapshot:
        name: "{{ inventory_hostname }}"
        snapshot_name: before-update
  always:
    - name: Log out
      holdfast.backup.vcenter_session:
        state: absent
      when: login.session is defined
      run_once: true

- name: Log in with a token of Single Sign-On
  holdfast.backup.vcenter_session:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    sso: true
  register: login
"""

RETURN = r"""
outcome:
  description: V(opened), V(kept), V(ended), or V(none) if there was no session left to end.
  returned: success
  type: str
  sample: opened
session:
  description: The session, for the option O(session) of other tasks. It is null with O(state=absent).
  returned: success
  type: str
  sample: holdfast-session-1:eyJzYWx0Ijoi
user:
  description: Who is logged in, as the server names them. It is null if that is not known any more.
  returned: success
  type: str
  sample: VSPHERE.LOCAL\backup
vcenter:
  description: The server.
  returned: success
  type: dict
  sample:
    hostname: vcenter.example.com
    port: 443
    name: VMware vCenter Server
    version: 8.0.3
    api_version: 8.0.3.0
    instance_uuid: 0d0ebf5e-2d4d-4f1c-9d0a-6b1e8a0f2f3c
  contains:
    hostname:
      description: Its name or address, as O(hostname) said.
      type: str
    port:
      description: Its port.
      type: int
    name:
      description: The name of the product.
      type: str
    version:
      description: The version of the product.
      type: str
    api_version:
      description: The version of the vSphere API.
      type: str
    instance_uuid:
      description: The UUID of the vCenter. It is null for a host on its own.
      type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils import _options
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import session_life


def run(module: AnsibleModule) -> dict[str, Any]:
    """Open, keep or end a session."""
    params = module.params
    by_key = params["token"] or params["private_key"]
    endpoint = _options.endpoint(params, with_user=params["state"] == "present" and not by_key)
    if params["state"] == "absent":
        found = session_life.end(endpoint)
    else:
        found = session_life.present(
            endpoint,
            token=params["token"],
            sso=params["sso"],
            certificate=params["certificate"],
            key=params["private_key"],
            automation=params["automation"],
        )
    about = found.about
    return {
        "changed": False,
        "outcome": found.outcome,
        "session": found.session.encode() if found.session else None,
        "user": found.user,
        "vcenter": {
            "hostname": endpoint.hostname,
            "port": endpoint.port,
            "name": about.name,
            "version": about.version,
            "api_version": about.apiVersion,
            "instance_uuid": about.instanceUuid,
        },
    }


def main() -> None:
    """Take the options and run."""
    run_module(
        run,
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "token": {"type": "str", "no_log": True},
            "sso": {"type": "bool", "default": False},
            "certificate": {"type": "path"},
            "private_key": {"type": "path", "no_log": False},
            "automation": {"type": "bool", "default": False},
        },
        groups=(_options.VCENTER,),
        mutually_exclusive=[("token", "certificate")],
        required_by={"certificate": ["private_key"]},
        required_if=[("state", "absent", ["session"])],
    )


if __name__ == "__main__":
    main()
