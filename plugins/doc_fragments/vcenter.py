# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The connection to vCenter or ESXi."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of the option group VCENTER."""

    DOCUMENTATION = r"""
options:
  hostname:
    description:
      - Name or address of the vCenter server or ESXi host.
      - If it is not set, the environment variable E(VMWARE_HOST) is used; one of the two is needed.
    type: str
  username:
    description:
      - User to log in as.
      - If it is not set, the environment variable E(VMWARE_USER) is used; one of the two is needed unless there is
        a O(session).
    type: str
    aliases: [user, admin]
  password:
    description:
      - Password of the user.
      - If it is not set, the environment variable E(VMWARE_PASSWORD) is used; one of the two is needed unless there is
        a O(session).
    type: str
    aliases: [pass, pwd]
  port:
    description:
      - HTTPS port of the server.
      - If it is not set, the environment variable E(VMWARE_PORT) is used.
    type: int
    default: 443
  validate_certs:
    description:
      - Whether the certificate of the server must be valid, trusted and made out to O(hostname).
      - If it is not set, the environment variable E(VMWARE_VALIDATE_CERTS) is used.
    type: bool
    default: true
  ca_path:
    description:
      - A PEM file with the certificates to trust, or a directory of them prepared by C(openssl rehash).
      - If it is not set, the environment variable E(VMWARE_CA_PATH) is used, else the store of the system.
    type: path
  proxy_host:
    description:
      - Name or address of an HTTP proxy on the way to the server.
      - If it is not set, the environment variable E(VMWARE_PROXY_HOST) is used. No other variable is.
    type: str
  proxy_port:
    description:
      - Port of the HTTP proxy; 80 if it is not set.
      - If it is not set, the environment variable E(VMWARE_PROXY_PORT) is used.
    type: int
  session:
    description:
      - A session to use instead of logging in, as M(holdfast.backup.vcenter_session) returns it. It is left open.
      - It is a secret. Give it by C(module_defaults) of the action group C(holdfast.backup.vcenter), never by a fact.
      - If it has ended, the task logs in (and out) itself if it has O(username) and O(password), and else it fails.
    type: str
requirements:
  - Python 3.9 or later
  - pyVmomi 8.0 or later (on Python 3.9 a release before 9.1)
"""
