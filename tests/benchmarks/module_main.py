# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One Ansible module's main() in a process of its own: reads ``{"module": its Python name, "args": {}}``."""

from __future__ import annotations

import importlib
import json
import sys

from ansible.module_utils.testing import patch_module_args


def main() -> None:
    """Run the module; it ends the process itself."""
    task = json.load(sys.stdin)
    with patch_module_args(task["args"]):
        importlib.import_module(task["module"]).main()


if __name__ == "__main__":
    main()
