"""JSON documents with a published format: their schema, and how a stranger's is read."""

from __future__ import annotations

import json
import os
import re
from typing import Any, BinaryIO, NamedTuple

from virtrace.errors import TraceError
from virtrace.trace.format import Record
from virtrace.trace.schema import ShapeError, check, schema_of

# Of a file, bytes: enough for its first key, also where the document is indented.
_BEGINNING = 64


def begins_as(kind: str, file: BinaryIO) -> bool:
    """Whether a file begins as a document of this `type`, on one line or on several.

    It can be read from its beginning.
    """
    beginning = os.pread(file.fileno(), _BEGINNING, 0)
    return re.match(rb'\s*\{\s*"type"\s*:\s*"%s"' % kind.encode(), beginning) is not None


class DocumentFormat(NamedTuple):
    """One format.

    name: such as ``virtrace-snapshot``. noun: what it is, for messages. record: a TypedDict.
    largest: bytes. most_values: of objects, lists and their members; None: no limit of their own.
    """

    name: str
    noun: str
    version: int
    record: Any
    largest: int
    most_values: int | None = None

    def schema(self, title: str, description: str | None = None) -> Record:
        """Return the JSON Schema (2020-12), which is kept as schema.json beside the types."""
        described = schema_of(self.record)
        described["properties"].update(format={"const": self.name}, version={"const": self.version})
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"urn:{self.name.replace('-', ':', 1)}:{self.version}",
            "title": f"{title}, format version {self.version}",
            **({} if description is None else {"description": description}),
            **described,
        }

    def parse(self, data: bytes, path: str) -> Any:
        """Return the document, which may be a stranger's. path: its name in errors.

        Raises: TraceError if it is damaged, or of another version.
        """
        try:
            if len(data) > self.largest:
                raise ShapeError(f"it is larger than {self.largest >> 20} MiB")
            values = sum(map(data.count, (b",", b"[", b"{")))
            if self.most_values is not None and values > self.most_values:
                raise ShapeError(f"it has more than {self.most_values:,} values")
            document = json.loads(data)
            check(document, self.record)
        except (ShapeError, ValueError, RecursionError) as error:
            raise self.damaged(path, error) from error
        if document["format"] != self.name or document["version"] != self.version:
            raise TraceError(
                f"{path} is a {self.noun} of format version {document['version']}, and this "
                f"virtrace reads version {self.version}",
                "update virtrace",
            )
        return document

    def damaged(self, path: str, why: object) -> TraceError:
        return TraceError(
            f"{path} is not a whole {self.noun}: {why}", "take a fresh copy of the file"
        )
