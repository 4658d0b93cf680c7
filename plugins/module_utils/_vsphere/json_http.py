# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: requests to an endpoint by HTTP, and the sessions of VI JSON and the Automation API.

Both send the ID of their session in the same header.
"""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, ConnectionFailed
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import (
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    Endpoint,
    broken_wire,
)

SESSION = "vmware-api-session-id"
Self = TypeVar("Self", bound="JsonSession")


class JsonHttp:
    """Sends and receives, in a ``with`` block that closes all connections at its end.

    What a status means is the caller's matter. ``headers`` go with each request.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._http = endpoint.http_session()
        self.headers = self._http.headers

    def __enter__(self) -> JsonHttp:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._http.close()

    def send(self, method: str, path: str, body: Any = None, **kwargs: Any) -> Any:
        """One request; the ``requests.Response`` whatever its status.

        :param body: sent as JSON unless it is None
        :param kwargs: further arguments of ``requests.Session.request``
        :raises ConnectionFailed: the reply was lost: the request may have been carried out or not
        """
        url = f"https://{self.endpoint.address}{path}"
        try:
            return self._http.request(method, url, json=body, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT), **kwargs)
        except OSError as error:  # requests' own errors are OSErrors
            raise broken_wire(_cause(error), self.endpoint) from error

    def send_again(self, method: str, path: str, body: Any = None, **kwargs: Any) -> Any:
        """Like :meth:`send`, for what has no side effects: repeated once when the connection drops."""
        try:
            return self.send(method, path, body, **kwargs)
        except ConnectionFailed:
            return self.send(method, path, body, **kwargs)


class JsonSession:
    """A session in which requests are sent; use it in a ``with`` block."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Nothing is connected yet."""
        self.endpoint = endpoint
        self._http: Any = None

    def __enter__(self: Self) -> Self:
        with contextlib.ExitStack() as closing:
            self._http = closing.enter_context(JsonHttp(self.endpoint))
            self._begin()
            closing.pop_all()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        # Nothing that goes wrong here may hide how the work ended.
        with self._http, contextlib.suppress(BackupError):
            self._end()

    def _begin(self) -> None:
        """Log in."""
        raise NotImplementedError

    def _end(self) -> None:
        """Log out."""
        raise NotImplementedError


def decoded(response: Any) -> Any:
    """The body of a response; None if it is no JSON."""
    try:
        return response.json()
    except ValueError:
        return None


def _cause(error: BaseException) -> BaseException:
    """What went wrong below requests, which wraps it several times."""
    inner = error.__cause__ or error.__context__
    return error if inner is None else _cause(inner)
