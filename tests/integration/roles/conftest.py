# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of the tests of the roles. A run of a playbook costs seconds, so the tests of a file share a few runs.

Both ways to the disks are taken in every file: hosts in turn by the one and the other, each host by the other one
the next time, so that restore points of one stand on those of the other. The files that name them in ``ACCESS`` run
once for each way instead.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible_collections.holdfast.backup.tests.integration.roles.support import WAYS, Site
from ansible_collections.holdfast.backup.tests.lab.client import Lab


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let a file of tests run once for each of its ``ACCESS``."""
    if "site" in metafunc.fixturenames and not hasattr(metafunc.module, "site"):
        metafunc.parametrize("site", getattr(metafunc.module, "ACCESS", ["in turn"]), indirect=True, scope="module")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A lab and a repository for all tests of a file."""
    with Lab.start(datastores=2) as lab:
        yield Site(lab, tmp_path_factory.mktemp("site"), WAYS if request.param == "in turn" else (request.param,))
        assert lab.nfc()["violations"] == []
