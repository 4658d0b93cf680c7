# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: small files on a datastore, by the server's ``/folder`` access over HTTPS.

How the address is built: vSphere Web Services SDK programming guide, "HTTP access to vSphere server
files": ``/folder/<path>?dcPath=<inventory path of the datacenter>&dsName=<datastore>``.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    CertificateRejected,
    ConnectionFailed,
    InvalidInput,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection

_TIMEOUT = 60  # seconds between two bytes


def split(path: str) -> tuple[str, str]:
    """``("ds1", "web/web.vmx")`` for the datastore path ``[ds1] web/web.vmx``."""
    datastore, found, file = path.partition("] ")
    if not found or not datastore.startswith("[") or not file:
        raise InvalidInput(f"{path!r} is no path on a datastore.", "It looks like: [datastore] directory/file.")
    return datastore[1:], file


def sibling(path: str, name: str) -> str:
    """The path of the file ``name`` in the directory of ``path``, on its datastore."""
    datastore, file = split(path)
    directory = file.rpartition("/")[0]
    return f"[{datastore}] {directory}/{name}" if directory else f"[{datastore}] {name}"


def download(c: Connection, datacenter: str, path: str, limit: int) -> bytes | None:
    """The content of a file, or None where there is none.

    :param datacenter: inventory path of the datacenter (``/dc``)
    :param path: like ``[ds1] web/web.nvram``
    :param limit: the most bytes to accept
    :raises VsphereFault: the server refused
    """
    with _request(c, "GET", datacenter, path, stream=True) as response:
        if response.status_code == 404:
            return None
        _check(c, response, path, "read", "Datastore.Browse")
        content = b""
        for chunk in response.iter_content(1 << 16):
            content += chunk
            if len(content) > limit:
                raise VsphereFault(f"{path} is larger than {limit} bytes.", "Look at what the file is.")
    return content


def upload(c: Connection, datacenter: str, path: str, content: bytes) -> None:
    """Write a file and read it back.

    :raises VsphereFault: the server refused, or does not give back what was written
    """
    with _request(c, "PUT", datacenter, path, data=content) as response:
        _check(c, response, path, "write", "Datastore.FileManagement")
    if download(c, datacenter, path, len(content)) != content:
        raise VsphereFault(f"{path} does not hold what was written to it.", "Look at the datastore's health.")


def url(c: Connection, datacenter: str, path: str) -> str:
    """The address of a file; the datacenter and the path are as for :func:`download`."""
    datastore, file = split(path)
    query = f"dcPath={quote(datacenter.strip('/'), safe='')}&dsName={quote(datastore, safe='')}"
    return f"https://{c.endpoint.address}/folder/{quote(file)}?{query}"


def _request(c: Connection, method: str, datacenter: str, path: str, **kwargs: Any) -> Any:
    try:
        return c.http().request(method, url(c, datacenter, path), timeout=_TIMEOUT, **kwargs)
    except OSError as error:  # all errors of requests are
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise CertificateRejected(
                f"The certificate of {c.endpoint.address} is not trusted for {path}.", "Check ca_path."
            ) from error
        raise ConnectionFailed(
            f"{path} cannot be reached on {c.endpoint.address}: {error}.", "Check the network, then run the task again."
        ) from error


def _check(c: Connection, response: Any, path: str, verb: str, privilege: str) -> None:
    if response.ok:
        return
    step = "Look at the server's log."
    if response.status_code in (401, 403):
        step = f"Grant {c.endpoint.username or 'the user of the session'} the privilege {privilege} on the datastore."
    raise VsphereFault(
        f"{c.endpoint.address} refused to {verb} {path}: {response.status_code} {response.reason}.", step
    )
