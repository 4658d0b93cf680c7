# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the sealed JSON documents of a repository.

Every document names its format and version, and ends with a line that holds the SHA-256 of
all bytes before that line, so that ``head -n -2 point.json | sha256sum`` proves it by hand.
Nothing read here is trusted: size, nesting, numbers and types are bounded before they are used.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Mapping, NoReturn

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged, RepositoryError

MAX_BYTES = 4 << 20
"""No document of ours comes near; a larger one is refused unread."""

_SEAL = re.compile(rb'  "sha256": "([0-9a-f]{64})"\n}\n\Z')
_MAX_DIGITS = 20


def render(kind: str, version: int, body: Mapping[str, Any]) -> bytes:
    """The bytes of a document.

    :param kind: the value of ``format``, like ``holdfast.restore_point``
    :param body: further keys, JSON values
    """
    document = {"format": kind, "version": version, **body}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    # A lone surrogate, as a broken name from elsewhere may hold, must not fail a backup.
    unsealed = (text[: -len("\n}")] + ",\n").encode("utf-8", "replace")
    seal = hashlib.sha256(unsealed).hexdigest()
    return unsealed + f'  "sha256": "{seal}"\n}}\n'.encode("ascii")


def parse(data: bytes, kind: str, version: int, name: str) -> dict[str, Any]:
    """The document in ``data``, proven to be of this kind, of a known version and unaltered.

    :param version: the newest version that this release reads
    :param name: how messages call the document
    :raises Damaged: torn, altered, or something else
    :raises RepositoryError: a newer release wrote it
    """
    document = _load(data, name)
    found = document.get("version")
    if document.get("format") != kind or not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise Damaged(f"{name} is no document of the format {kind}.", "Restore it from a copy of the repository.")
    if found > version:
        raise RepositoryError(
            f"{name} has the format version {found}; this release reads up to {version}.",
            "Use a newer release of the holdfast.backup collection.",
        )
    seal = _SEAL.search(data)
    if seal is None or hashlib.sha256(data[: seal.start()]).hexdigest() != seal.group(1).decode("ascii"):
        raise Damaged(f"{name} was altered after it was written.", "Restore it from a copy of the repository.")
    return document


def _load(data: bytes, name: str) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise Damaged(f"{name} is larger than {MAX_BYTES} bytes.", "It was not written by this collection.")
    try:
        document = json.loads(
            data.decode("utf-8"),
            parse_int=_integer,
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique,
        )
    except (ValueError, RecursionError) as error:
        raise Damaged(
            f"{name} is not readable as JSON ({error}).", "Restore it from a copy of the repository."
        ) from error
    if not isinstance(document, dict):
        raise Damaged(f"{name} is not a JSON object.", "Restore it from a copy of the repository.")
    return document


def _integer(text: str) -> int:
    # Python before 3.11 converts millions of digits in quadratic time.
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice")
    return document


class Fields:
    """Checked access to the keys of one JSON object; every error names the key's path.

    ``optional=True`` also takes null and a missing key. Keys that nobody asks for are ignored:
    a later release may add some without a new version.
    """

    def __init__(self, document: Any, where: str) -> None:
        self.where = where
        if not isinstance(document, dict):
            self.refuse("", "is not an object")
        self._document: dict[str, Any] = document

    def refuse(self, key: str, problem: str) -> NoReturn:
        """Raise Damaged for this key."""
        path = f"{self.where}: {key}" if key else self.where
        raise Damaged(f"{path} {problem}.", "Its content is not what this collection writes.")

    def text(self, key: str, pattern: str = "", longest: int = 4096) -> str:
        """A string of at most ``longest`` characters that matches ``pattern`` as a whole."""
        value = self._document.get(key)
        if not isinstance(value, str):
            self.refuse(key, "is not a string")
        if len(value) > longest or "\0" in value:
            self.refuse(key, f"is longer than {longest} characters or holds a null character")
        if pattern and not re.fullmatch(pattern, value):
            self.refuse(key, f"has the unexpected form {value[:100]!r}")
        return value

    def optional_text(self, key: str, pattern: str = "", longest: int = 4096) -> str | None:
        """The same, or None."""
        return None if self._document.get(key) is None else self.text(key, pattern, longest)

    def integer(self, key: str, largest: int, smallest: int = 0) -> int:
        """A whole number within the bounds."""
        value = self._document.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(key, "is not a whole number")
        if not smallest <= value <= largest:
            self.refuse(key, f"is {value}, not between {smallest} and {largest}")
        return value

    def optional_integer(self, key: str, largest: int, smallest: int = 0) -> int | None:
        """The same, or None."""
        return None if self._document.get(key) is None else self.integer(key, largest, smallest)

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self._document.get(key)
        if not isinstance(value, bool):
            self.refuse(key, "is neither true nor false")
        return value

    def items(self, key: str, longest: int) -> list[Any]:
        """A list of at most ``longest`` items."""
        value = self._document.get(key)
        if not isinstance(value, list):
            self.refuse(key, "is not a list")
        if len(value) > longest:
            self.refuse(key, f"has more than {longest} items")
        return value

    def strings(self, key: str, longest: int) -> tuple[str, ...]:
        """A list of strings."""
        value = self.items(key, longest)
        if not all(isinstance(item, str) for item in value):
            self.refuse(key, "is not a list of strings")
        return tuple(value)

    def objects(self, key: str, longest: int) -> list[Fields]:
        """A list of objects."""
        return [Fields(item, f"{self.where}: {key}[{index}]") for index, item in enumerate(self.items(key, longest))]

    def object(self, key: str) -> Fields:
        """One object."""
        return Fields(self._document.get(key), f"{self.where}: {key}")

    def optional_object(self, key: str) -> Fields | None:
        """One object, or None."""
        return None if self._document.get(key) is None else self.object(key)
