"""Parse XML that a stranger may have written."""

from __future__ import annotations

from xml.etree import ElementTree


def parse_xml(text: str | bytes) -> ElementTree.Element:
    """The document's root element.

    Raises: ValueError: not XML, or with a document type: libvirt's documents have none, and its
    entities can make a short text endless.
    """
    if (b"<!DOCTYPE" if isinstance(text, bytes) else "<!DOCTYPE") in text:  # type: ignore[operator]
        raise ValueError("it has a document type, and XML of libvirt has none")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
