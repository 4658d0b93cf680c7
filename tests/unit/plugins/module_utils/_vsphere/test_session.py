# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sessions as text."""

from __future__ import annotations

import base64
import json
import traceback

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.session import Session
from hypothesis import given
from hypothesis import strategies as st

COOKIE = 'vmware_soap_session="cafe0123456789"'


def text_of(**values):
    return "holdfast-session-1:" + base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


@pytest.mark.parametrize("cookie", [COOKIE, "vmware_soap_session=6f1a-22"])
@pytest.mark.parametrize("rest", [None, "b00c0ffee"])
@pytest.mark.parametrize("server", [None, "42a8c1de-0000-4000-8000-000000000001"])
def test_a_session_as_text_and_back(cookie, rest, server):
    session = Session(cookie, rest, server)
    assert Session.parse(session.encode()) == session
    assert cookie not in session.encode()


def test_a_session_shows_no_secret():
    assert "cafe" not in repr(Session(COOKIE, "cafe"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        COOKIE,
        "holdfast-session-1:",
        "holdfast-session-1:****",
        "holdfast-session-2:" + text_of(soap=COOKIE).split(":")[1],
        text_of(),
        text_of(soap=1),
        text_of(soap=COOKIE, rest=["a"]),
        text_of(soap=COOKIE, other="x"),
        text_of(soap=COOKIE + "\r\nHost: elsewhere"),
        text_of(soap=COOKIE + "; other=1"),
        text_of(soap="cafe"),
        text_of(soap=COOKIE, rest="a\nb"),
    ],
)
def test_nonsense(text):
    with pytest.raises(InvalidInput, match="holds no session") as caught:
        Session.parse(text)
    assert not text or text not in "".join(traceback.format_exception(caught.value))


@given(st.one_of(st.text(), st.binary().map(lambda data: "holdfast-session-1:" + base64.b64encode(data).decode())))
def test_any_text_is_a_session_or_refused(text):
    try:
        session = Session.parse(text)
    except InvalidInput:
        return
    assert Session.parse(session.encode()) == session
