# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""NFC's messages: every field at the place where the notes say it is, and nothing taken that cannot be right."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import nfc_interface as nfc
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import plugins
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugin_interface import MANY
from hypothesis import given
from hypothesis import strategies as st

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


def at(message: bytes, place: int, kind: str = "I") -> int:
    return struct.unpack_from(f"<{kind}", message, place)[0]


def test_classic_messages_have_their_size_and_their_fields():
    assert nfc.classic(nfc.CLASSIC_VERSION, 11) == bytes([51, 0, 0, 0, 11]) + bytes(259)
    assert nfc.classic(43, text=b"PlainText") == b"+\0\0\0PlainText" + bytes(251)
    data = nfc.connection_data()
    assert (at(data, 0), at(data, 4), at(data, 8), data[264:]) == (54, 4, 7, b"vddknbdmode")


@given(U32, U32, st.binary(max_size=100))
def test_a_header_counts_the_payload(kind, number, payload):
    message = nfc.message(kind, number, payload)
    assert [at(message, place) for place in (0, 4, 8, 12)] == [0xA100DA7A, kind, len(payload), number]
    assert message[16:] == payload


@given(st.integers(1, 2**31))
def test_the_session_asks_for_buffers_in_bytes(size):
    payload = nfc.open_session(size)
    assert (len(payload), at(payload, 4), at(payload, 0), at(payload, 12)) == (16, size, 0, 0)


@given(st.text(min_size=1), st.booleans())
def test_a_path_is_counted_in_bytes(path, read_only):
    payload = nfc.open_file(path.encode(), read_only)
    assert (len(payload), at(payload, 0), at(payload, 16)) == (60, len(path.encode()), 2)
    assert at(payload, 20) == (0x1E if read_only else 0x1A)
    assert payload[4:16] + payload[24:] == bytes(48)


@given(U64, st.integers(1, 2**40))
def test_an_opened_disk(handle, sectors):
    reply = bytearray(os.urandom(60))
    struct.pack_into("<Q", reply, 8, handle)
    struct.pack_into("<QI", reply, 28, sectors * 512, 512)
    assert nfc.OpenFile.parse(bytes(reply)) == nfc.OpenFile(handle, sectors * 512, 512)
    struct.pack_into("<I", reply, 36, 4096)
    with pytest.raises(nfc.NfcError):
        nfc.OpenFile.parse(bytes(reply))
    with pytest.raises(nfc.NfcError):
        nfc.OpenFile.parse(bytes(reply)[:-1])


@given(U64, U64, U32)
def test_a_read_request_repeats_its_length(handle, offset, length):
    payload = nfc.read_request(handle, offset, length)
    assert len(payload) == 44
    assert [at(payload, place, "Q") for place in (0, 8, 16, 24)] == [handle, 1, offset, length]
    assert [at(payload, place) for place in (32, 36, 40)] == [length, length, 0]


@given(U64, U64, U32, U32, U32)
def test_a_fragment_of_a_write(handle, offset, total, start, length):
    payload = nfc.write_fragment(handle, offset, total, start, length)
    assert [at(payload, place, "Q") for place in (0, 8, 16)] == [handle, 0, offset]
    assert [at(payload, place) for place in (24, 28, 32, 36, 40)] == [total, start, length, length, 0]
    assert nfc.Fragment.parse(payload) == nfc.Fragment(0, offset, total, start, length, length)


@given(st.binary(max_size=100).filter(lambda payload: len(payload) != 44))
def test_an_answer_of_another_size_is_not_taken(payload):
    with pytest.raises(nfc.NfcError):
        nfc.Fragment.parse(payload)


def test_what_is_worth_a_new_connection():
    assert nfc.NfcError("read", "x", code=5).repeats == MANY
    assert nfc.NfcError("read", "x", code=5).out_of_memory
    assert nfc.NfcError("write", "x", code=nfc.READ_ONLY).repeats == 0
    assert nfc.lost("read", "x").repeats == MANY


def test_thumbprints_by_either_method_and_however_written():
    sha1, sha256 = hashlib.sha1(b"der").hexdigest(), hashlib.sha256(b"der").hexdigest()
    for known in (sha1, sha256, sha1.upper(), ":".join(sha256[i : i + 2] for i in range(0, 64, 2))):
        assert nfc.same_thumbprint(nfc.thumbprint(b"der", like=known), known)
        assert not nfc.same_thumbprint(nfc.thumbprint(b"other", like=known), known)


@pytest.mark.parametrize(
    "change",
    [
        {"session": "52ab\r\nPROXY x"},
        {"session": ""},
        {"host": "a b"},
        {"service": "vpxa-nfc\n"},
        {"thumbprint": ""},
        {"x": 1},
    ],
)
def test_a_ticket_cannot_smuggle_lines(change):
    good = {"host": "esx1", "session": "52ab-3", "thumbprint": "AA:BB"}
    assert nfc.Ticket.parse(good).port == 902
    with pytest.raises(nfc.NfcError) as caught:
        nfc.Ticket.parse({**good, **change})
    assert "52ab" not in str(caught.value)


def test_parameters_that_are_wrong_are_named():
    good = {"path": "[ds] a/b.vmdk", "owner": "vm-1"}
    assert nfc.Parameters.parse(json.dumps(good)).transport == "nbdssl"
    for bad in ({**good, "password": "x"}, {**good, "transport": "san"}, {"owner": "vm-1"}):
        with pytest.raises(nfc.NfcError):
            nfc.Parameters.parse(json.dumps(bad))


def test_areas_in_use():
    assert nfc.read_areas("65536 512\n0 1024\n\n") == [(0, 1024), (65536, 512)]


def test_the_shipped_plugin_stands_alone(tmp_path):
    script = plugins.ship_nfc(str(tmp_path))
    environment = {**plugins.environment(str(tmp_path)), "PATH": os.environ["PATH"]}
    code = f"import runpy, sys; runpy.run_path({script!r}); sys.exit('ansible.module_utils' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
