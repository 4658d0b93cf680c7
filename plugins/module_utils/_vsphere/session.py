# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: a session as text, to be given from task to task.

Whoever has the text has the session: it is as secret as a password, until the session ends.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from dataclasses import asdict, dataclass, field

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput

# The start tells it from any other secret, and keeps Ansible from taking it for a number or a list.
_START = "holdfast-session-1:"
# What may stand in an HTTP header: a line break would start another one.
_COOKIE = re.compile(r'[!#$%&\'*+.^_`|~0-9A-Za-z-]+="?[!#-+\--:<-\[\]-~]+"?')
_ID = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Session:
    """A session with one server.

    :param soap: ``name=value`` of the cookie of the VIM API
    :param rest: session ID of the Automation API, if there is one too
    :param server: instance UUID of the vCenter; none of a host on its own
    """

    soap: str = field(repr=False)
    rest: str | None = field(default=None, repr=False)
    server: str | None = None

    def encode(self) -> str:
        """The text of it, another one each time.

        Ansible hides the secrets that a module was given in what it returns, a session that was just kept too.
        """
        values = {"salt": secrets.token_hex(4), **{name: value for name, value in asdict(self).items() if value}}
        return _START + base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Session:
        """The session that :meth:`encode` made this text of; raises InvalidInput, which does not show the text."""
        try:
            if not text.startswith(_START):
                raise ValueError
            coded = text[len(_START) :].strip()
            values = json.loads(base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True))
            values.pop("salt", None)
            session = cls(**values)
            if not all(value is None or isinstance(value, str) for value in asdict(session).values()):
                raise ValueError
            if not _COOKIE.fullmatch(session.soap) or (session.rest is not None and not _ID.fullmatch(session.rest)):
                raise ValueError
        except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error):
            # The cause would quote the secret.
            raise InvalidInput(
                "The option session holds no session.",
                "Give it the session that holdfast.backup.vcenter_session returned, as it is.",
            ) from None
        return session
