# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of the tests of the roles. A run of a playbook costs seconds, so the tests of a file share a few runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible_collections.holdfast.backup.tests.integration.roles.support import Site
from ansible_collections.holdfast.backup.tests.lab.client import Lab


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A file of tests runs once for each way to the disks that it names in ``ACCESS``."""
    if "site" in metafunc.fixturenames:
        metafunc.parametrize("site", getattr(metafunc.module, "ACCESS", ["vddk"]), indirect=True, scope="module")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A lab and a repository for all tests of a file."""
    with Lab.start(datastores=2) as lab:
        yield Site(lab, tmp_path_factory.mktemp("site"), lab.vddk_libdir if request.param == "vddk" else None)
        assert lab.nfc()["violations"] == []
