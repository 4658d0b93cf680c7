# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of the integration tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.tests.lab.client import Lab
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


@pytest.fixture
def endpoint(lab: Lab) -> Endpoint:
    return Endpoint(**lab.module_args())


@pytest.fixture
def c(endpoint: Endpoint) -> Iterator[Connection]:
    """A connection; its log-in is in the lab's count."""
    with Connection(endpoint) as c:
        yield c


@pytest.fixture
def vm(lab: Lab) -> Iterator[dict[str, Any]]:
    """A powered-on VM of the test's own."""
    record = lab.create_vm(f"own-{time.monotonic_ns()}", disks=[1 << 20], power="poweredOn")
    yield record
    lab.destroy_vm(record["moid"])
