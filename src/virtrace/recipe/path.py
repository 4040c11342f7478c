"""Capture paths: the part of C's expressions that a recipe may use.

    domain->name          members, through pointers and inside structs
    *info  **stats        what a pointer points to
    return                the value that the function returned
    format(return, info)  a C format string with one %s, and the string that fills it in
    typed(params, nparams)  an array of virTypedParameter, and its length
    records(retStats, return)  an array of pointers to virDomainStatsRecord, and its length
    array(info, return)   an array of structs, and its length
    stack()               the frames of the thread that is here
    caller()              the name of the exported function that called this one
    backtrace(job->owner)  the frames of the thread with this id

A path is parsed here, once, into a tree of data. Nothing of a recipe reaches GDB's evaluator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol, TypeVar, Union

RETURN = "return"
CALLER = "caller()"
STACK = "stack()"

_MEMBERS = r"(?:(?:->|\.)[A-Za-z_]\w*){,15}"
_CHAIN = re.compile(
    rf"(?P<stars>\*{{,3}})\s{{,9}}(?P<name>[A-Za-z_]\w*)(?P<members>{_MEMBERS})", re.A
)
_OF_TWO = re.compile(
    r"(?P<form>format|typed|records|array)\(\s*"
    rf"(?P<name>[A-Za-z_]\w*)(?P<members>{_MEMBERS})\s*,\s*"
    rf"(?P<other>[A-Za-z_]\w*)(?P<others>{_MEMBERS})\s*\)",
    re.A,
)
_BACKTRACE = re.compile(rf"backtrace\(\s*(?P<name>[A-Za-z_]\w*)(?P<members>{_MEMBERS})\s*\)", re.A)
_MEMBER = re.compile(r"(->|\.)(\w+)")


# A longer text would keep regular expressions, and every stop of a daemon, busy.
_LONGEST = 200


def shortened(text: str) -> str:
    """The text as Python writes it, cut to one line."""
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


@dataclass(frozen=True)
class Argument:
    """An argument of the function, or a local variable where lines are traced."""

    name: str


@dataclass(frozen=True)
class Returned:
    """The value that the function returned."""

    name = RETURN


@dataclass(frozen=True)
class Member:
    """``base->name`` or ``base.name``: the types know which of the two it is."""

    base: Chain
    name: str


@dataclass(frozen=True)
class Deref:
    """``*base``."""

    base: Chain


# A walk from one value of the function through memory, as C binds members and stars.
Chain = Union[Argument, Returned, Member, Deref]


@dataclass(frozen=True)
class Caller:
    """The exported function that called this one."""


@dataclass(frozen=True)
class Stack:
    """`stack()`: the frames of the thread that is here, on whatever stack it is."""


@dataclass(frozen=True)
class Format:
    """`format(template, filler)`: a message whose one `%s` is filled in."""

    template: Chain
    filler: Chain


@dataclass(frozen=True)
class TypedParams:
    """`typed(array, count)`: an array of typed parameters, by their names."""

    array: Chain
    count: Chain


@dataclass(frozen=True)
class Records:
    """`records(array, count)`: an array of statistics records, one a domain."""

    array: Chain
    count: Chain


@dataclass(frozen=True)
class Elements:
    """`array(first, count)`: an array of structs. array: its first element."""

    array: Chain
    count: Chain


# The forms of an array whose length only the process knows.
COUNTED = (TypedParams, Records, Elements)


@dataclass(frozen=True)
class Backtrace:
    """`backtrace(thread)`: the frames of a thread. thread: its id in the kernel."""

    thread: Chain


Form = Union[Chain, Caller, Stack, Format, TypedParams, Records, Elements, Backtrace]

T = TypeVar("T")


class Visitor(Protocol[T]):
    """Follows a chain: to a value, a type, or an instruction."""

    def start(self, name: str) -> T:
        """name: an argument, or RETURN."""

    def member(self, base: T, name: str) -> T: ...

    def target(self, base: T) -> T: ...


def follow(chain: Chain, visitor: Visitor[T]) -> T:
    """Walk a chain from its start to its end."""
    if isinstance(chain, Member):
        return visitor.member(follow(chain.base, visitor), chain.name)
    if isinstance(chain, Deref):
        return visitor.target(follow(chain.base, visitor))
    return visitor.start(chain.name)


@dataclass(frozen=True)
class Path:
    """A capture's path. text: as the recipe has it."""

    text: str
    form: Form

    @property
    def chains(self) -> tuple[Chain, ...]:
        """All walks of the form, its main one first."""
        form = self.form
        if isinstance(form, (Caller, Stack)):
            return ()
        if isinstance(form, Format):
            return form.template, form.filler
        if isinstance(form, COUNTED):
            return form.array, form.count
        return (form.thread,) if isinstance(form, Backtrace) else (form,)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The values of the function that it starts from: arguments, RETURN, CALLER."""
        if isinstance(self.form, Stack):
            return ()
        return tuple(start(chain).name for chain in self.chains) or (CALLER,)


def start(chain: Chain) -> Argument | Returned:
    while isinstance(chain, (Member, Deref)):
        chain = chain.base
    return chain


def parse_path(text: str) -> Path:
    """Parse a capture path. Raises ValueError, with the allowed forms, for any other text.

    >>> parse_path("domain->name").form
    Member(base=Argument(name='domain'), name='name')
    >>> parse_path("*info").arguments
    ('info',)
    """
    text = text.strip()
    if len(text) > _LONGEST:
        raise ValueError(f"{shortened(text)} is not a capture: it is longer than {_LONGEST}")
    form = _parsed(text)
    if form is None:
        raise ValueError(
            f"{shortened(text)} is not a capture: write a C path such as disk, domain->name, "
            "*info, return, format(return, info), typed(params, nparams), "
            "records(retStats, return), array(info, return), caller(), stack() or "
            "backtrace(job->owner)"
        )
    return Path(text, form)


def _parsed(text: str) -> Form | None:
    if text == CALLER:
        return Caller()
    if text == STACK:
        return Stack()
    if match := _OF_TWO.fullmatch(text):
        first = _chain(match["name"], match["members"])
        second = _chain(match["other"], match["others"])
        if match["form"] == "typed":
            return TypedParams(first, second)
        if match["form"] == "records":
            return Records(first, second)
        if match["form"] == "array":
            return Elements(Deref(first), second)
        return None if match["members"] or match["others"] else Format(first, second)
    if match := _BACKTRACE.fullmatch(text):
        return Backtrace(_chain(match["name"], match["members"]))
    if match := _CHAIN.fullmatch(text):
        return _chain(match["name"], match["members"], len(match["stars"]))
    return None


def _chain(name: str, members: str, stars: int = 0) -> Chain:
    chain: Chain = Returned() if name == RETURN else Argument(name)
    for _, member in _MEMBER.findall(members):
        chain = Member(chain, member)
    for _ in range(stars):
        chain = Deref(chain)
    return chain
