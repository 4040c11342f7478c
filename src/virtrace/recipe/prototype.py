"""C declarations of exported functions and static probes, as a recipe writes them.

An exported function keeps its arguments where the ABI says, whatever the compiler did to
its body: the declaration is all that is needed to read them without debug info.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from virtrace.recipe.path import shortened

_FUNCTION = re.compile(
    r"(?P<returns>[\w\s*]+[\s*])(?P<name>[A-Za-z_]\w*)\s*\((?P<parameters>.*)\)", re.A | re.S
)
_PARAMETER = re.compile(r"(?P<type>[\w\s*]+[\s*])(?P<name>[A-Za-z_]\w*)", re.A | re.S)
_QUALIFIERS = re.compile(r"\b(?:const|struct|enum)\b")


@dataclass(frozen=True)
class Parameter:
    """name, and type as C spells it without qualifiers: ``char *``, ``unsigned int``."""

    name: str
    type: str


@dataclass(frozen=True)
class Prototype:
    """The declaration of a function, with its types as C writes them."""

    name: str
    returns: str
    parameters: tuple[Parameter, ...]

    def __str__(self) -> str:
        parameters = ", ".join(_declared(one.type, one.name) for one in self.parameters)
        return f"{_declared(self.returns, self.name)}({parameters or 'void'})"


def _declared(type_: str, name: str) -> str:
    return f"{type_}{name}" if type_.endswith("*") else f"{type_} {name}"


def normal_type(text: str) -> str:
    """``const char*`` -> ``char *``; libvirt's ``virDomainPtr`` -> ``virDomain *``."""
    words = _QUALIFIERS.sub(" ", text).replace("*", " * ").split()
    name = " ".join(word for word in words if word != "*")
    stars = words.count("*")
    if name.startswith("vir") and name.endswith("Ptr"):
        name, stars = name[: -len("Ptr")], stars + 1
    return f"{name} {'*' * stars}".strip()


def parse_parameters(text: str) -> tuple[Parameter, ...]:
    """``int a, char *b, ...`` -> the named parameters; an ellipsis adds none."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if parts and parts[-1] == "...":
        parts.pop()
    parameters: list[Parameter] = []
    for part in [] if parts == ["void"] else parts:
        match = _PARAMETER.fullmatch(part)
        if not match:
            raise ValueError(f"{shortened(part)} is not a parameter: write its type and its name")
        if any(match["name"] == earlier.name for earlier in parameters):
            raise ValueError(f"{shortened(match['name'])} is given twice")
        parameters.append(Parameter(match["name"], normal_type(match["type"])))
    return tuple(parameters)


def parse_prototype(text: str) -> Prototype:
    match = _FUNCTION.fullmatch(text.strip().rstrip(";"))
    if not match:
        raise ValueError(f"{shortened(text)} is not the declaration of a C function")
    parameters = parse_parameters(match["parameters"])
    return Prototype(match["name"], normal_type(match["returns"]), parameters)
