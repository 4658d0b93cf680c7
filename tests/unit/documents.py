# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the modules say of themselves: their names, DOCUMENTATION and RETURN."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MODULES = {path.stem: path for path in sorted((ROOT / "plugins/modules").glob("*.py"))}


def document(module: str, name: str) -> dict[str, Any]:
    """The YAML document that a module assigns to ``name`` (DOCUMENTATION, RETURN), without importing the module."""
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == name for target in node.targets):
            return yaml.safe_load(ast.literal_eval(node.value)) or {}
    return {}


def fragments(module: str) -> list[str]:
    """The documentation fragments that a module extends."""
    extends = document(module, "DOCUMENTATION").get("extends_documentation_fragment", [])
    return [extends] if isinstance(extends, str) else extends


def sample(entry: dict[str, Any]) -> Any:
    """One entry of RETURN as a module would return it: its sample, or built from what it contains and its type."""
    if "sample" in entry:
        return entry["sample"]
    contained = {key: sample(value) for key, value in entry.get("contains", {}).items()}
    plain = {"str": "text", "int": 1, "float": 1.0, "bool": True, "dict": contained, "list": [contained]}
    return plain[entry["type"]]
