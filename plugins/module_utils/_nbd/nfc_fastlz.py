# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: unpacks what ESXi hosts pack by FastLZ, with a library that the user has."""

from __future__ import annotations

import ctypes

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_interface import NfcError


class FastLZ:
    """The library.

    :param library: its path, or a name that the dynamic linker finds
    :raises NfcError: it cannot be used
    """

    def __init__(self, library: str) -> None:
        try:
            self._decompress = ctypes.CDLL(library).fastlz_decompress
        except (OSError, AttributeError) as error:
            hint = "Name a library that has fastlz_decompress, or leave native_fastlz_library out."
            raise NfcError("fastlz", f"The FastLZ library cannot be used: {error}.", hint=hint) from None
        self._decompress.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
        self._decompress.restype = ctypes.c_int

    def unpack(self, packed: bytearray, view: memoryview) -> None:
        """Fill the view; raises NfcError if what was packed is not of its size."""
        place, size = ctypes.addressof(ctypes.c_char.from_buffer(view)), len(view)
        source = (ctypes.c_char * len(packed)).from_buffer(packed)
        if self._decompress(source, len(packed), place, size) != size:
            message = f"The host sent {len(packed)} bytes that FastLZ cannot make {size} of."
            raise NfcError("read", message, hint="Leave native_fastlz_library out, and please report this.", repeats=1)
