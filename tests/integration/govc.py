# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMware's own command govc, a judge of what our modules leave."""

from __future__ import annotations

import os
import subprocess

from ansible_collections.holdfast.backup.tests.lab.client import BUILD, Lab


def govc(lab: Lab, command: str, *words: str) -> str:
    """What a command of govc prints: ``govc(lab, "snapshot.tree", "-vm", "web01")``."""
    environment = {
        **os.environ,
        "GOVC_URL": lab.url,
        "GOVC_USERNAME": lab.username,
        "GOVC_PASSWORD": lab.password,
        "GOVC_TLS_CA_CERTS": lab.ca_file,
        "GOVC_PERSIST_SESSION": "false",
    }
    call = [str(BUILD / "govc"), command, *words]
    return subprocess.run(call, env=environment, capture_output=True, text=True, check=True).stdout
