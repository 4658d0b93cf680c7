# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A quarter of the random lives of a repository; several files, so that several workers share them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.tests.integration import repository_life


@pytest.mark.timeout(60 + 10 * repository_life.STEPS)
@pytest.mark.parametrize("seed", repository_life.seeds(2))
def test_whatever_happens_restore_points_are_what_was(seed: int, tmp_path: Path) -> None:
    repository_life.live(seed, tmp_path)
