# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of the tests of the roles. A run of a playbook costs seconds, so the tests of a file share a few runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible_collections.holdfast.backup.tests.integration.roles.support import Site
from ansible_collections.holdfast.backup.tests.lab.client import Lab


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lab and a repository for all tests of a file."""
    with Lab.start(datastores=2) as lab:
        yield Site(lab, tmp_path_factory.mktemp("site"))
