# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What FastLZ's own library packs, and what it never would."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_fastlz import FastLZ
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_interface import NfcError
from ansible_collections.holdfast.backup.tests.lab.client import BUILD
from hypothesis import given
from hypothesis import strategies as st

LIBRARY = str(BUILD / "fastlz" / "libfastlz.so")


def pack(data: bytes) -> bytearray:
    packed = ctypes.create_string_buffer(len(data) * 2 + 66)
    size = ctypes.CDLL(LIBRARY).fastlz_compress(data, len(data), packed)
    return bytearray(packed.raw[:size])


@given(st.binary(min_size=16, max_size=99), st.integers(1, 2000))
def test_what_was_packed(piece, times):
    data = piece * times
    into = bytearray(len(data))
    FastLZ(LIBRARY).unpack(pack(data), memoryview(into))
    assert into == data


@pytest.mark.parametrize("size", [4096 - 512, 4096 + 512])
def test_another_size_is_refused(size):
    with pytest.raises(NfcError, match=f"cannot make {size}"):
        FastLZ(LIBRARY).unpack(pack(bytes(4096)), memoryview(bytearray(size)))


@pytest.mark.parametrize("library", ["libno-such-library.so", str(Path(__file__)), "libc.so.6"])
def test_what_is_no_such_library(library):
    with pytest.raises(NfcError, match="cannot be used") as caught:
        FastLZ(library)
    assert (caught.value.stage, caught.value.repeats) == ("fastlz", 0)
