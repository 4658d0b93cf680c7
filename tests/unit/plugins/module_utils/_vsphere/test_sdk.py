# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A machine without pyVmomi, or with one that its Python cannot import."""

from __future__ import annotations

import importlib
import sys

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import sdk


@pytest.fixture
def reloaded(monkeypatch):
    """Imports the module again, and for the other tests once more after all is as it was."""
    yield lambda: importlib.reload(sdk)
    monkeypatch.undo()
    importlib.reload(sdk).require()


def test_a_missing_library_is_named_when_it_is_needed(monkeypatch, reloaded):
    monkeypatch.setitem(sys.modules, "pyVmomi", None)
    without = reloaded()
    assert without.vim is None
    with pytest.raises(Exception, match="pyVmomi cannot be imported") as caught:
        without.require()
    assert "pip install pyvmomi" in caught.value.next_step


def test_a_library_that_refuses_this_python(monkeypatch, reloaded, tmp_path):
    (tmp_path / "pyVmomi.py").write_text("raise Exception('Python 3.10 or newer is required')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pyVmomi")
    with pytest.raises(Exception, match=r"Python 3\.10 or newer is required"):
        reloaded().require()
