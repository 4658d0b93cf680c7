# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: a session by the VI JSON API, the VIM API over HTTP and JSON.

vCenter has it since 8.0 Update 1. The session is its own: whether a server takes the ID of a SOAP
session is not documented. Protocol: VMware's "Virtual Infrastructure JSON API" (getting started,
security schema) and, for the release negotiation of 8.0.2 and later, "Vcenter System" of the vSphere
Automation API.
"""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    ConnectionFailed,
    InvalidInput,
    NotSupported,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Endpoint, refusal
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.json_http import SESSION, JsonSession, decoded

RELEASES = ("9.0.0.0", "8.0.3.0", "8.0.2.0", "8.0.1.0")  # most wanted first
OLDEST = RELEASES[-1]  # has no negotiation

_NO_VI_JSON = "VI JSON needs vCenter 8.0 Update 1 or later; use api: soap."


class ViJson(JsonSession):
    """A logged-in session; use it in a ``with`` block. ``release`` is the API release in use."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Nothing is connected yet.

        :raises InvalidInput: there is no password
        """
        if not endpoint.can_log_in:
            raise InvalidInput(
                "VI JSON has sessions of its own: the one that was given is none of them.",
                "Give username and password too, or use api: soap.",
            )
        super().__init__(endpoint)
        self.release = ""
        self._session_manager = ""

    def _begin(self) -> None:
        self.release = self._negotiate()
        content = self._answer(self._http.send("GET", self._path("ServiceInstance", "ServiceInstance", "content")))
        self._session_manager = content["sessionManager"]["value"]
        self._login()

    def _end(self) -> None:
        self._http.send_again("POST", self._path("SessionManager", self._session_manager, "Logout"), {})

    def read(self, kind: str, moid: str, method: str, **parameters: Any) -> Any:
        """Call a method that has no side effects; it is repeated once when the connection drops or the session expired.

        :param kind: type of the managed object, e.g. ``VirtualMachine``
        :param parameters: as the API reference names them; unset ones are left out
        :returns: the decoded answer; None of a void method
        :raises VsphereFault: the server refused; ``details["fault"]`` is the fault's type name
        :raises NotFound: the managed object is gone
        """
        path = self._path(kind, moid, method)
        response = self._http.send_again("POST", path, parameters)
        if _session_is_over(response):
            self._login()
            response = self._http.send_again("POST", path, parameters)
        return self._answer(response)

    def _negotiate(self) -> str:
        response = self._http.send("POST", "/api/vcenter/system?action=hello", {"api_releases": list(RELEASES)})
        if response.status_code == 404:
            return OLDEST
        release = self._answer(response).get("api_release")
        if not release:
            raise NotSupported(
                f"{self.endpoint.address} speaks none of the VI JSON releases {', '.join(RELEASES)}.", _NO_VI_JSON
            )
        return release

    def _login(self) -> None:
        self._http.headers.pop(SESSION, None)
        credentials = {"userName": self.endpoint.username, "password": self.endpoint.password}
        response = self._http.send("POST", self._path("SessionManager", self._session_manager, "Login"), credentials)
        self._answer(response)
        self._http.headers[SESSION] = response.headers[SESSION]

    def _path(self, kind: str, moid: str, member: str) -> str:
        return f"/sdk/vim25/{self.release}/{kind}/{moid}/{member}"

    def _answer(self, response: Any) -> Any:
        """The decoded body of a good response; everything else is raised."""
        if response.status_code == 204:
            return None
        if response.status_code == 404:
            raise NotSupported(
                f"{self.endpoint.address} does not serve {response.request.method} {response.request.path_url}.",
                _NO_VI_JSON,
            )
        body = decoded(response)
        if response.status_code == 200 and body is not None:
            return body
        if response.status_code == 500 and _fault_name(body):
            raise _from_fault(body, self.endpoint)
        raise ConnectionFailed(
            f"{self.endpoint.address} answered {response.status_code} to {response.request.path_url}.",
            "Check that hostname and port are those of a vCenter, then run the task again.",
        )


def reference(kind: str, moid: str) -> dict[str, str]:
    """A managed object as a parameter."""
    return {"_typeName": "ManagedObjectReference", "type": kind, "value": moid}


def identifier(text: str) -> dict[str, str]:
    """The ID of a first class disk, or of its snapshot, as a parameter."""
    return {"_typeName": "ID", "id": text}


def _fault_name(body: Any) -> str | None:
    return body.get("_typeName") if isinstance(body, dict) else None


def _from_fault(body: Mapping[str, Any], endpoint: Endpoint) -> BackupError:
    name = body["_typeName"]
    words = [message.get("message") for message in body.get("faultMessage") or ()]
    text = "; ".join(dict.fromkeys(word.strip().rstrip(".") for word in words if word)) or name
    subject = body.get("obj") or body.get("object") or {}
    return refusal(endpoint, name, text, subject.get("value"), body.get("privilegeId"))


def _session_is_over(response: Any) -> bool:
    refused = response.status_code == 500 and _fault_name(decoded(response)) == "NotAuthenticated"
    return response.status_code == 401 or refused
