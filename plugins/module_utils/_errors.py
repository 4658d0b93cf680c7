# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the errors that the collection raises on purpose.

Every error names the object and the cause in its message, and the next step in
``next_step``. ``details`` are JSON-serialisable facts that the failed module returns.
"""

from __future__ import annotations

from typing import Any


class BackupError(Exception):
    """Root of all errors raised by this collection.

    :param message: the object and the cause, one sentence without secrets
    :param next_step: what the user can do about it, one sentence
    :param details: extra keys of the failed module's result
    """

    def __init__(self, message: str, next_step: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".strip()


class InvalidInput(BackupError):
    """What the caller gave cannot be right, whatever the state of the world."""


class MissingRequirement(BackupError):
    """A program or library that must be on the proxy is missing or too old."""


class ConnectionFailed(BackupError):
    """A server cannot be reached, or the connection broke and could not be made again."""


class AuthenticationFailed(BackupError):
    """The server refused the credentials."""


class CertificateRejected(BackupError):
    """The server's certificate or thumbprint is not the expected one."""


class NotFound(BackupError):
    """A named object does not exist."""


class Ambiguous(BackupError):
    """A name fits several objects; ``details["candidates"]`` lists them."""


class NotSupported(BackupError):
    """The object exists but cannot do what was asked."""


class VsphereFault(BackupError):
    """vSphere refused a call; ``details["fault"]`` is the fault's type name."""


class TaskFailed(VsphereFault):
    """A vSphere task ended in error."""


class SetFailed(BackupError):
    """Something went wrong with some of several VMs; ``details["members"]`` says what became of each."""


class TimedOut(BackupError):
    """Something took longer than the caller allowed."""


class CopyFailed(BackupError):
    """Disk content could not be read or written."""


class NoSpace(CopyFailed):
    """A file system is full."""


class RepositoryError(BackupError):
    """The repository cannot be used as asked."""


class Damaged(RepositoryError):
    """An image or a manifest is missing or not what was written."""


class Locked(RepositoryError):
    """Another run is writing restore points of the same VM or first class disk."""
