#!/usr/bin/env python3
"""Print libvirt's public API for src/virtrace/targets/libvirt/public-api.txt, a declaration a line.

tools/public-api.py /usr/share/libvirt/api/libvirt-api.xml, of the newest libvirt-dev there is.
"""

from __future__ import annotations

import sys
from xml.etree import ElementTree


def attribute(element: ElementTree.Element, name: str) -> str:
    value = element.get(name)
    if value is None:
        sys.exit(f"<{element.tag}> has no {name}")
    return value


root = ElementTree.parse(sys.argv[1]).getroot()
# How a call hands them over is all that counts: callbacks are pointers, enums are int.
AS_C = {attribute(callback, "name"): "void *" for callback in root.iter("functype")}
AS_C |= {attribute(member, "type"): "int" for member in root.iter("enum")}


def declared(type_: str, name: str) -> str:
    type_ = AS_C.get(type_, type_)
    return f"{type_}{name}" if type_.endswith("*") else f"{type_} {name}"


for function in sorted(root.iter("function"), key=lambda function: attribute(function, "name")):
    arguments = [(attribute(arg, "type"), attribute(arg, "name")) for arg in function.iter("arg")]
    # In a register that is not looked at.
    if any(type_ == "double" for type_, _ in arguments):
        continue
    listed = ", ".join(declared(type_, name) for type_, name in arguments) or "void"
    [returned] = function.iter("return")
    print(f"{declared(attribute(returned, 'type'), attribute(function, 'name'))}({listed})")
