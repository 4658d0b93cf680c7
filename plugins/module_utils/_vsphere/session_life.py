# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: opening a session for others, keeping it, and ending it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import AuthenticationFailed, InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import sso as tokens
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.automation import Automation
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.session import Session


@dataclass(frozen=True)
class Outcome:
    """What became of a session. ``outcome`` is ``opened``, ``kept``, ``ended`` or ``none`` (it had ended before)."""

    outcome: str
    about: Any  # the AboutInfo of the server
    user: str | None
    session: Session | None


class _Token:
    """The token to log in with; it is got, or read, when it is first needed."""

    def __init__(self, endpoint: Endpoint, given: str | None, certificate: str | None, key: str | None) -> None:
        self._endpoint, self._given, self._certificate, self._key = endpoint, given, certificate, key

    @functools.cached_property
    def _text(self) -> str:
        if self._given:
            return tokens.given_token(self._given)
        if self._certificate and self._key:
            return tokens.holder_token(self._endpoint, self._certificate, self._key)
        return tokens.bearer_token(self._endpoint)

    def log_in(self, c: Connection) -> Any:
        return tokens.log_in(c, self._text, self._key)

    def authorization(self) -> str:
        return tokens.authorization(self._text)


def present(
    endpoint: Endpoint,
    *,
    token: str | None = None,
    sso: bool = False,
    certificate: str | None = None,
    key: str | None = None,
    automation: bool = False,
) -> Outcome:
    """Keep the session of ``endpoint`` if it has not ended, else open one.

    :param token: SAML token to log in with, or its file
    :param sso: get a token from the vCenter's Single Sign-On, with ``certificate`` one for the holder of its key
    :param key: PEM file of the private key of ``certificate``, or that ``token`` is made out to
    :param automation: open a session of the Automation API too
    :raises AuthenticationFailed: the server refused
    """
    if sso and token:
        raise InvalidInput("There is a token, and sso asks for one.", "Leave one of them out.")
    if certificate and not sso:
        raise InvalidInput("The option certificate is of use with sso only.", "Add sso: true, or leave it out.")
    if key and automation:
        raise InvalidInput(
            "The Automation API cannot be logged in to by the holder of a key.", "Use a bearer token or a password."
        )

    saml = _Token(endpoint, token, certificate, key) if sso or token else None
    with Connection(endpoint, saml.log_in if saml else None) as c:
        user = _user(c)
        if user is None:
            c.log_in()
            user = _user(c)
        old = rest = c.given.rest if c.given else None
        if automation:
            with Automation(c, saml.authorization if saml else None) as api:
                api.get("/session")  # logs in if the session of before has ended
                rest = api.leave_open()
        return Outcome("kept" if c.shared and rest == old else "opened", c.about, user, c.leave_open(rest))


def end(endpoint: Endpoint) -> Outcome:
    """End the session of ``endpoint``, with that of the Automation API in it."""
    # With nothing to log in with, should it have ended.
    with Connection(replace(endpoint, username=None, password=None)) as c:
        try:
            user = _user(c)
        except AuthenticationFailed:
            user = None
        ended = user is not None
        if c.given is not None and c.given.rest:
            with Automation(c) as api:
                ended = api.log_out() or ended
        if user is not None:
            c.close_at_end()
        return Outcome("ended" if ended else "none", c.about, user, None)


def _user(c: Connection) -> str | None:
    """Who is logged in; None if nobody is."""
    manager = c.content.sessionManager
    found = c.retrieve([manager], {type(manager): ["currentSession"]}).get(manager, {})
    # A vCenter tells this property to anybody; it is unset for who is not logged in.
    return found["currentSession"].userName if "currentSession" in found else None
