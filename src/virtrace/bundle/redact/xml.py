"""Redact the XML of a domain, or of a part of one."""

from __future__ import annotations

from xml.etree import ElementTree

from virtrace import markup
from virtrace.bundle import words
from virtrace.bundle.redact.context import Context, Names, TextRedactor
from virtrace.bundle.redact.kinds import ELEMENTS

ElementTree.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")


def redact_domain(redactor: TextRedactor, text: str, context: Context) -> str:
    """The XML of a domain; any other text becomes a pseudonym."""
    redacted = redact_xml(redactor, text, context)
    return redactor.names.add("text", text) if redacted is None else redacted


def redact_xml(redactor: TextRedactor, text: str, context: Context) -> str | None:
    """None if the text is not XML, or not such as libvirt makes."""
    try:
        top = markup.parse_xml(text)
    except ValueError:
        return None
    _redact_element(redactor, top, "", context.keys(of_c=False))
    return ElementTree.tostring(top, encoding="unicode")


def _redact_element(
    redactor: TextRedactor, element: ElementTree.Element, above: str, context: Context
) -> None:
    """above: the tag of the enclosing element."""
    space, _, tag = element.tag.rpartition("}")
    if not words.is_name(tag) or not (space + "/").startswith(("/", "{http://libvirt.org/")):
        element.tag = redactor.key(tag, context)
    if tag in ("metadata", "description", "title"):
        _hide(redactor.names, element)
        return
    for full, value in list(element.attrib.items()):
        name = full.rpartition("}")[2]
        del element.attrib[full]
        kind = ELEMENTS.get(f"{tag}/{name}")
        key = redactor.key(name, context)
        element.set(key, _redact_value(redactor, value, kind, name, context))
    if element.text and element.text.strip():
        kind = ELEMENTS.get(f"{above}/{tag}") or ELEMENTS.get(tag)
        element.text = _redact_value(redactor, element.text, kind, tag, context)
    for child in element:
        if child.tail and child.tail.strip():
            child.tail = redactor.names.add("text", child.tail)
        _redact_element(redactor, child, tag, context)


def _redact_value(
    redactor: TextRedactor, text: str, kind: str | None, key: str, context: Context
) -> str:
    return redactor.typed(text, kind, context) if kind else redactor.text(text, key, context)


def _hide(names: Names, element: ElementTree.Element) -> None:
    """Everything inside becomes one text; each part of it is private by itself, too."""
    inner = [text for text in element.itertext() if text.strip()]
    values = [value for below in element.iter() for value in below.attrib.values()]
    for text in (*inner, *values):
        names.add("text", text.strip())
    whole = ElementTree.tostring(element, encoding="unicode").strip() if len(element) else ""
    content = whole or "".join(inner).strip()
    tail = element.tail
    element.clear()
    element.tail = tail
    if content:
        element.text = names.add("text", content)
