#!/usr/bin/env python3
"""Print libvirt's public API for src/virtrace/targets/libvirt/public-api.txt, a declaration a line.

tools/public-api.py /usr/share/libvirt/api/libvirt-api.xml, of the newest libvirt-dev there is.
"""

import sys
from xml.etree import ElementTree

root = ElementTree.parse(sys.argv[1]).getroot()
# How a call hands them over is all that counts: callbacks are pointers, enums are int.
AS_C = {one.get("name"): "void *" for one in root.iter("functype")}
AS_C |= {one.get("type"): "int" for one in root.iter("enum")}


def declared(type_: str, name: str) -> str:
    type_ = AS_C.get(type_, type_)
    return f"{type_}{name}" if type_.endswith("*") else f"{type_} {name}"


for function in sorted(root.iter("function"), key=lambda one: one.get("name")):
    arguments = [(one.get("type"), one.get("name")) for one in function.iter("arg")]
    # In a register that is not looked at.
    if any(type_ == "double" for type_, _ in arguments):
        continue
    listed = ", ".join(declared(*one) for one in arguments) or "void"
    print(f"{declared(function.find('return').get('type'), function.get('name'))}({listed})")
