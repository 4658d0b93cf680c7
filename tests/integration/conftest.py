# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.tests.lab.vddk.kit import Kit, build


@pytest.fixture(scope="session")
def _built_kit() -> None:
    build()


@pytest.fixture
def kit(tmp_path: Path, _built_kit: None) -> Kit:
    """A stand-in for VDDK of the test's own, over one file."""
    root = tmp_path / "kit"
    root.mkdir()
    return Kit(root)
