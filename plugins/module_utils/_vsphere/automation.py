# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: vCenter's Automation API (REST under ``/api``), which alone has tags.

Its sessions are not those of the VIM API. A session that was given may hold one of either kind; without one of this
kind the user is logged in here, and out at the end. Protocol: "vSphere Automation API Reference" (CIS session, errors);
``/api`` is there since vCenter 7.0 Update 2.
"""

from __future__ import annotations

from typing import Any, Callable
from urllib.parse import urlencode

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    AuthenticationFailed,
    ConnectionFailed,
    NotFound,
    NotSupported,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, refusal
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.json_http import SESSION, JsonSession, decoded

_LOGIN = "/api/session"


class Automation(JsonSession):
    """A session of the Automation API of the vCenter that ``c`` is connected to; use it in a ``with`` block.

    Paths are those of the reference without ``/api``, with an action's name:
    ``/cis/tagging/tag-association?action=attach``. All methods return the decoded answer, None if it is empty.

    :raises NotFound: the path names an object that does not exist
    :raises VsphereFault: the server refused; ``details["fault"]`` is the error's type (``ALREADY_EXISTS``)
    :raises ConnectionFailed: the reply was lost: a post may have been carried out or not
    """

    def __init__(self, c: Connection, authorization: Callable[[], str] | None = None) -> None:
        """Nothing is connected yet.

        :param authorization: makes the header to log in with; by default user name and password
        :raises NotSupported: it is a host on its own
        """
        if not c.is_vcenter:
            raise NotSupported(
                f"{c.endpoint.address} is a host on its own, which has no Automation API.",
                "Connect to its vCenter for what needs tags.",
            )
        super().__init__(c.endpoint)
        self._c = c
        self._authorization = authorization
        self._own = False

    def _begin(self) -> None:
        if self._c.given is not None and self._c.given.rest:
            self._http.headers[SESSION] = self._c.given.rest
        else:
            self._log_in()

    def _end(self) -> None:
        if self._own:
            self.log_out()

    def get(self, path: str, **query: Any) -> Any:
        """Read; repeated once when the connection drops. ``query`` are parameters; a list repeats its name."""
        return self._call("GET", f"{path}?{urlencode(query, doseq=True)}" if query else path, None, again=True)

    def query(self, path: str, **body: Any) -> Any:
        """Post what only reads (``action=list-attached-objects-on-tags``); repeated once when the connection drops."""
        return self._call("POST", path, body, again=True)

    def post(self, path: str, **body: Any) -> Any:
        """Post, once."""
        return self._call("POST", path, body, again=False)

    def _log_in(self) -> None:
        endpoint = self.endpoint
        if self._authorization is None and not endpoint.can_log_in:
            raise AuthenticationFailed(
                f"The session with {endpoint.address} holds none of the Automation API, or that one has ended.",
                "Run holdfast.backup.vcenter_session with automation: true, or give username and password too.",
                fault="UNAUTHENTICATED",
            )
        self._http.headers.pop(SESSION, None)
        how: dict[str, Any] = {"auth": (endpoint.username, endpoint.password)}
        if self._authorization is not None:
            how = {"headers": {"Authorization": self._authorization()}}
        response = self._http.send("POST", _LOGIN, **how)
        if response.status_code == 401:
            raise refusal(endpoint, "InvalidLogin", "")
        self._http.headers[SESSION] = self._answer(response)
        self._own = True

    def leave_open(self) -> str:
        """Leave the session open at the end, for others, and return its ID."""
        self._own = False
        session: str = self._http.headers[SESSION]
        return session

    def log_out(self) -> bool:
        """End the session; tells whether it had not ended before."""
        return bool(self._http.send_again("DELETE", _LOGIN).ok)

    def _call(self, method: str, path: str, body: Any, again: bool) -> Any:
        send = self._http.send_again if again else self._http.send
        response = send(method, f"/api{path}", body)
        if response.status_code == 401:
            # The server did nothing, so any call may be repeated.
            self._log_in()
            response = send(method, f"/api{path}", body)
        return self._answer(response)

    def _answer(self, response: Any) -> Any:
        """The decoded body of a good response; everything else is raised."""
        body = decoded(response)
        if response.ok:
            return body
        endpoint, request = self.endpoint, response.request
        what = f"{request.method} {request.path_url.split('?')[0]}"
        kind = body.get("error_type") if isinstance(body, dict) else None
        words = [message.get("default_message", "") for message in body.get("messages") or ()] if kind else []
        text = "; ".join(dict.fromkeys(word.strip().rstrip(".") for word in words if word.strip())) or kind
        if response.status_code == 404:
            if kind == "NOT_FOUND":
                raise NotFound(f"{endpoint.address}: {text}.", "It may have been removed.", fault=kind)
            raise NotSupported(
                f"{endpoint.address} does not serve {what}.", "This needs vCenter 7.0 Update 2 or later."
            )
        if kind == "UNAUTHORIZED":
            step = "Grant the privilege that the server names by a role on that object or above it."
            raise VsphereFault(f"{endpoint.user} may not {what}: {text}.", step, fault=kind)
        if kind:
            step = "Look at the tasks and events of the server for the cause."
            raise VsphereFault(f"{endpoint.address} refused {what}: {text} ({kind}).", step, fault=kind)
        raise ConnectionFailed(
            f"{endpoint.address} answered {response.status_code} to {what}.",
            "Check that hostname and port are those of a vCenter, then run the task again.",
        )
