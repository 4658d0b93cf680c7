# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: SAML tokens of vCenter Single Sign-On, and logging in with them.

The security token service (``/sts/STSService``) speaks WS-Trust 1.4. pyVmomi's client writes and signs its messages;
it needs lxml and cryptography. They are sent by our own means: by the proxy, with the certificates that the task names
and with a time limit. A bearer token is good for whoever has it; one for the holder of a key only for who can sign.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import html
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    AuthenticationFailed,
    ConnectionFailed,
    InvalidInput,
    MissingRequirement,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.json_http import JsonHttp
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

PATH = "/sts/STSService"
_HEADERS = {
    "Content-Type": 'text/xml; charset="UTF-8"',
    "SOAPAction": "http://docs.oasis-open.org/ws-sx/ws-trust/200512/RST/Issue",
}
_ASSERTION = re.compile(r"<(?:[\w.-]+:)?Assertion[\s>]")
_END = re.compile(r"""<(?:[\w.-]+:)?Conditions\b[^>]*\bNotOnOrAfter=["']([^"']+)""")
_FAULT = re.compile(r"<(?:[\w.-]+:)?(faultcode|faultstring)\b[^>]*>([^<]*)<")


def bearer_token(endpoint: Endpoint) -> str:
    """A token for user name and password; raises AuthenticationFailed if the service refuses them."""
    # pyVmomi before release 9 puts them into the XML as they are.
    as_xml = str if hasattr(_library(), "escape") else html.escape
    username, password = as_xml(endpoint.username or ""), as_xml(endpoint.password or "")
    token: str = _client(endpoint).get_bearer_saml_assertion(username, password)
    return token


def holder_token(endpoint: Endpoint, certificate: str, key: str) -> str:
    """A token for the holder of a key, who is a solution user of Single Sign-On.

    :param certificate: PEM file, the one registered with Single Sign-On
    :param key: PEM file of its private key, RSA and not encrypted
    """
    for path in (certificate, key):
        _content(path, path)
    try:
        with _signing():
            token: str = _client(endpoint).get_hok_saml_assertion(certificate, key)
    except (ValueError, TypeError, OSError) as error:  # of reading the key
        raise InvalidInput(
            f"{certificate} and {key} cannot be used: {error}.", "Give PEM files of an RSA key that is not encrypted."
        ) from error
    return token


def given_token(text: str) -> str:
    """The token in ``text``, or in the file that it names; raises InvalidInput if it is none."""
    if not _ASSERTION.search(text):
        text = _content(text.strip(), "The file that the option token names")  # which may be a token that was cut off
    found = _ASSERTION.search(text)
    if not found:
        raise InvalidInput("The option token holds no SAML token.", "Give it a SAML 2.0 assertion as XML, or its file.")
    return text[found.start() :].strip()


def log_in(c: Connection, token: str, key: str | None = None) -> Any:
    """Log in with a token and return the UserSession; raises AuthenticationFailed if the server refuses it.

    :param key: PEM file of the private key that the token is made out to, None of a bearer token
    """
    login = c.content.sessionManager.LoginByToken
    c.stub.samlToken = token
    try:
        if key is None:
            return login(None)
        sign = _library().add_saml_context
        with _signing(), c.stub.requestModifier(lambda request: sign(request, token, key)):
            return login(None)
    except vim.fault.InvalidLogin as fault:
        ends = _END.search(token)
        until = f" It is good until {ends.group(1)}." if ends else ""
        raise AuthenticationFailed(
            f"{c.endpoint.address} refused the SAML token.{until}",
            "Get a new one of the Single Sign-On that this vCenter belongs to; clocks that differ look the same.",
            fault="InvalidLogin",
        ) from fault
    finally:
        c.stub.samlToken = None


def authorization(token: str) -> str:
    """The header that logs in to the Automation API with a bearer token."""
    return f'SIGN token="{base64.b64encode(gzip.compress(token.encode())).decode()}"'


@contextlib.contextmanager
def _signing() -> Iterator[None]:
    try:
        yield
    except AttributeError as error:  # pyVmomi before release 9 signs with pyOpenSSL, which cannot any more
        raise MissingRequirement(
            f"This release of pyVmomi cannot sign: {error}.", "Install release 9 or later, or an older pyOpenSSL."
        ) from error


def _library() -> Any:
    try:
        from pyVim import sso  # not needed by those who log in by password
    except ImportError as error:
        raise MissingRequirement(
            f"pyVmomi's client of Single Sign-On cannot be imported by {sys.executable}: {error}.",
            "Install what it needs there: python -m pip install 'pyvmomi[sso]'.",
        ) from error
    return sso


def _client(endpoint: Endpoint) -> Any:
    client = _library().SsoAuthenticator(f"https://{endpoint.address}{PATH}")
    client.perform_request = functools.partial(_send, endpoint)
    return client


def _send(endpoint: Endpoint, message: str, *unused: Any) -> bytes:
    """Send a message to the service; takes the place of ``SsoAuthenticator.perform_request``."""
    with JsonHttp(endpoint) as http:
        response = http.send("POST", PATH, data=message.encode(), headers=_HEADERS)
    if response.ok:
        content: bytes = response.content
        return content
    told = dict(_FAULT.findall(response.text))
    code, text = told.get("faultcode", "").rsplit(":", 1)[-1], told.get("faultstring", "").strip().rstrip(".")
    if code:
        raise AuthenticationFailed(
            f"Single Sign-On on {endpoint.address} gave no token: {text or 'no cause given'} ({code}).",
            "Check user name and password, or certificate and key, and that the clocks agree.",
            fault=code,
        )
    raise ConnectionFailed(
        f"Single Sign-On on {endpoint.address} answered {response.status_code} to {PATH}.",
        "Check that hostname is a vCenter with its own Single Sign-On, or log in by password.",
    )


def _content(path: str, named: str) -> str:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or type(error).__name__
        # Without its cause, which would show the path.
        raise InvalidInput(f"{named} cannot be read: {cause}.", "Give the path of a file that is readable.") from None
