"""The program for bpftrace: at each probe it prints registers, and memory as words.

What it prints is no value yet: captures run later, over these words, by the code that runs them
under GDB. So the program only has to read every word that a capture could ask for. Each read of a
word stands on a line of its own, because bpftrace tells a failed read by its line, and fills in
zeros.

Nothing of a recipe or of a traced file goes into the program's text but numbers, a path of harmless
characters, and the provider and name of a static probe, of letters, digits and underscores.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from virtrace.binary import x86_64
from virtrace.binary.ctype import Boolean, Code, CType, Integer, Pointer, Struct
from virtrace.binary.pack import Constant, InRegister, Nowhere, OnStack
from virtrace.engine.capture import REGISTER, largest
from virtrace.errors import TargetError
from virtrace.plan.file import (
    CALLED_BY,
    POINT,
    SPAN,
    Captures,
    InProbe,
    Plan,
    Site,
    Wanted,
    write,
)
from virtrace.recipe.path import CALLER, RETURN

# bpftrace's names of the registers of 64 bits.
_NAMES = {name: re.sub(r"^r(?=[a-z])", "", name) for name in x86_64.ABI.dwarf_registers}
# Of those that arguments come in, in order.
REGISTERS = {name: _NAMES[name] for name in x86_64.ABI.argument_registers}
# Arguments of a static probe that bpftrace finds by itself.
OWN_ARGUMENTS = 6
_RESULT = "ax"
# More words in a printf would not fit on the stack of a program of the kernel.
WORDS = 16


@dataclass(frozen=True)
class _Pieces:
    """How much of a text is read at most; each of its pieces takes a printf."""

    count: int
    words: int


# Of all the texts of a probe, as the kernel does not follow more branches in a program. A printf
# wakes bpftrace up, which takes longer than to read its words: as few as the stack allows.
_LONG = _Pieces(256, 24)
# Of a name, or a text in an array of typed parameters.
_SHORT = _Pieces(4, WORDS)
_MAX_PARAMETERS = 64
_MAX_BLOCK = 64 * WORDS * REGISTER
# Where a pointer into the caller's frame can point, from the stack pointer on.
_FRAME = 1 << 16
HEARTBEAT_MS = 100
# Of the C library's mathematics: it takes nothing, and changes nothing.
HANDSHAKE = "fegetround"
_PLAN_PIECE = 30_000

_PATH = re.compile(r"/[A-Za-z0-9_./+-]*", re.A)
_WORD = re.compile(r"\w+", re.A)

# Of the buffers of all processors together; each has a number of pages that is a power of two.
_BUFFERS_PAGES = 1 << 15
_MOST_PAGES = 1 << 13

ENVIRONMENT = {
    "BPFTRACE_PERF_RB_PAGES": "1024",
    "BPFTRACE_MAP_KEYS_MAX": "16384",
    # The plan is printed in the text of the program.
    "BPFTRACE_STRLEN": "64",
}
OPTIONS = ("--unsafe", "-kk", "-f", "json")


def environment(processors: int) -> dict[str, str]:
    """As ENVIRONMENT, with buffers as large as this host has processors for."""
    each = 1 << (_BUFFERS_PAGES // processors).bit_length() - 1
    return {**ENVIRONMENT, "BPFTRACE_PERF_RB_PAGES": str(max(min(each, _MOST_PAGES), 64))}


@dataclass(frozen=True)
class Where:
    """What the program is attached to.

    pid: of the process, or bpftrace's ``$1``; None where the kernel counts processes in another
    way than we do, and the address tells the process. files: to open a module by its path in the
    process, where that is not the path itself. bases: of the modules, by their names.
    handshake: a library of ours; a call of its HANDSHAKE tells that all probes are there, and
    that all which was printed on that processor before has come.
    """

    pid: str | None
    files: Mapping[str, str]
    bases: Mapping[str, int]
    handshake: str | None = None


def text(plan: Plan, where: Where) -> str:
    """TargetError where bpftrace could not take a path."""
    return "\n".join(_Program(plan, where).lines) + "\n"


def script(plan: Plan, name: str, digests: Mapping[str, str]) -> str:
    """A shell script that runs the program with nothing but bpftrace.

    digests: of each file, by its path, the SHA-256 in hexadecimal. A probe in any other file could
    stand in the middle of an instruction.
    """
    checks = [f"check {_path(path)} {digest}" for path, digest in sorted(digests.items())]
    environment = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    return _SCRIPT.format(
        name=name,
        checks="\n".join(checks),
        command=f"{environment} bpftrace {' '.join(OPTIONS)}",
        program=text(plan, Where("$1", {}, {})),
    )


_SCRIPT = """\
#!/bin/sh
# The recipe {name} for bpftrace, made by virtrace. As root:
#   sh THIS PID > OUTPUT        until Ctrl-C
#   virtrace import OUTPUT -o TRACE
set -eu
case ${{1-}} in
    '' | *[!0-9]*) echo "usage: sh $0 PID > OUTPUT" >&2; exit 2 ;;
esac
check() {{
    [ "$(sha256sum <"$1")" = "$2  -" ] && return
    echo "virtrace: $1 is not the file that this was made for" >&2
    echo "try: virtrace recipe compile, against the file of this host" >&2
    exit 3
}}
{checks}
{command} -p "$1" /dev/stdin "$1" <<'PROGRAM'
{program}PROGRAM
"""


def pieces_of_plan(plan: Plan) -> Iterator[str]:
    data = base64.b64encode(zlib.compress(write(plan))).decode()
    for start in range(0, len(data), _PLAN_PIECE):
        yield data[start : start + _PLAN_PIECE]


class _Program:
    def __init__(self, plan: Plan, where: Where) -> None:
        self._where = where
        self._plan = plan
        self._maps: set[str] = {"@n"}
        self._variables = 0
        self._pieces = _LONG
        self.lines: list[str] = []
        self._handshake(1)
        self._add("BEGIN {")
        began = f'nsecs, strftime("%s", nsecs), {where.pid or 0}'
        self._add(f'printf("virtrace 1 %lld %s %d", {began});')
        for piece in pieces_of_plan(plan):
            self._add(f'printf("plan {piece}");')
        self._add('printf("planned"); }')
        self._add(f'profile:ms:{HEARTBEAT_MS} {{ printf("h %d %lld", cpu, nsecs); }}')
        for number, site in enumerate(plan.sites):
            self._site(number, site)
        cleared = " ".join(f"clear({name});" for name in sorted(self._maps))
        self._add(f'END {{ printf("end %lld", nsecs); {cleared} }}')
        self._handshake(2)

    def _handshake(self, number: int) -> None:
        if self._where.handshake is not None:
            path = _path(self._where.handshake)
            beat = ' printf("h %d %lld", cpu, nsecs);' if number == 1 else ""
            self._add(f'uprobe:{path}:{HANDSHAKE} {{ printf("ready {number}");{beat} }}')

    def _add(self, line: str) -> None:
        assert "\n" not in line
        self.lines.append(line)

    @property
    def _next_line(self) -> int:
        return len(self.lines) + 1

    def _variable(self) -> str:
        self._variables += 1
        return f"$v{self._variables}"

    @contextmanager
    def _if(self, condition: str) -> Iterator[None]:
        self._add(f"if ({condition}) {{")
        yield
        self._add("}")

    # --- Sites

    def _site(self, number: int, site: Site) -> None:
        file = _path(self._where.files.get(site.file, site.file))
        if site.usdt is not None:
            if not all(_WORD.fullmatch(word) for word in site.usdt):
                raise TargetError(
                    f"bpftrace cannot be given the static probe {':'.join(site.usdt)}",
                    "leave it out of the recipe",
                )
            self._begin(f"usdt:{file}:{':'.join(site.usdt)}", self._is_there(site), site.enter)
            self._static(number, site)
            return
        place = f"{file}:{site.address:#x}"
        self._begin(f"uprobe:{place}", self._is_there(site), site.enter)
        self._entry(number, site)
        if site.kind != POINT:
            # Only a thread that was met before: in whatever process that is.
            mine = "@n[tid] != 0" if self._where.pid is None else self._is_there(site)
            self._begin(f"uretprobe:{place}", mine, site.exit)
            self._return(number, site)

    def _is_there(self, site: Site) -> str:
        if self._where.pid is not None:
            return f"pid == {self._where.pid}"
        base = self._where.bases[site.module]
        addresses = (base + address for address in (site.address, *site.further))
        return " || ".join(f'reg("ip") == {address:#x}' for address in addresses)

    def _begin(self, probe: str, condition: str, captures: Captures) -> None:
        texts = [len(wanted.path.arguments) for wanted in _wanted(captures)]
        self._pieces = replace(_LONG, count=_LONG.count // max(sum(texts), 1))
        self._add(f"{probe} / {condition} / {{ $t = nsecs; $c = 0;")

    def _end(self, kind: str, number: int, values: Iterable[str]) -> None:
        self._add("$n = @n[tid] + 1; @n[tid] = $n;")
        values = [*values]
        form = " ".join(["%llx"] * len(values))
        self._add(
            f'printf("{kind} {number} %d %d %d %lld %lld %d %llx %llx {form}", '
            f'pid, tid, cpu, $n, $t, $c, reg("sp"), reg("ip"), {", ".join(values)}); }}'
        )

    def _entry(self, number: int, site: Site) -> None:
        if any(CALLER in wanted.path.arguments for wanted in site.captures):
            self._block('reg("sp")', REGISTER)
        if site.find == CALLED_BY:
            self._candidates(number, site)
            self._given_by_caller(site)
        else:
            arguments = self._arguments(site)
            for wanted in _wanted(site.enter):
                self._capture(wanted, arguments)
            for name in filter(arguments.get, _kept(site)):
                self._add(
                    f'{self._map("a", number, name, site)}[reg("sp") + 8] = {arguments[name]};'
                )
            for name in filter(arguments.get, self._asked_of(site)):
                self._add(f"{self._map('g', number, name, site)}[tid] = {arguments[name]};")
        kind = "p" if site.kind == POINT else "e"
        self._end(kind, number, [f'reg("{name}")' for name in REGISTERS.values()])

    def _arguments(self, site: Site) -> dict[str, str]:
        """At the entry, as expressions; those that can be known."""
        found = {}
        for name, place in site.arguments.items():
            if isinstance(place, InRegister) and place.name in REGISTERS:
                found[name] = f'reg("{REGISTERS[place.name]}")'
            elif isinstance(place, Constant):
                found[name] = f"{place.value & (1 << 63) - 1}"
            elif isinstance(place, InProbe):
                found[name] = f"$arg{place.index}"
            elif isinstance(place, OnStack):
                self._block(f'(reg("sp") + {REGISTER + place.offset})', REGISTER)
                found[name] = self._variable()
                self._add(f"{found[name]} = $w0;")
        return found

    def _map(self, kind: str, number: int, name: str, site: Site) -> str:
        found = f"@{kind}{number}_{[*site.arguments].index(name)}"
        self._maps.add(found)
        return found

    def _static(self, number: int, site: Site) -> None:
        places = {one.index: one for one in site.arguments.values() if isinstance(one, InProbe)}
        count = max(places, default=-1) + 1
        first = self._next_line
        for index in range(count):
            register = places[index].register if index in places else None
            own = f"arg{index}" if index < OWN_ARGUMENTS else "0"
            value = f'reg("{_NAMES[register]}")' if register in _NAMES else own
            self._add(f"$arg{index} = (uint64){value};")
        arguments = self._arguments(site)
        for wanted in _wanted(site.enter):
            self._capture(wanted, arguments)
        self._end("u", number, [f"(uint64){first}", *(f"$arg{index}" for index in range(count))])

    def _return(self, number: int, site: Site) -> None:
        known = {RETURN: f'reg("{_RESULT}")'}
        captures = [*_wanted(site.exit)]
        if site.moved:
            # The instructions that look at the result.
            self._block('reg("ip")', 2 * REGISTER)
        if site.find == CALLED_BY:
            for index, _ in enumerate(site.parameters[: len(REGISTERS)]):
                self._returned_candidate(number, index, site, captures)
            captures = [wanted for wanted in captures if {*wanted.path.arguments} <= {RETURN}]
        else:
            for name in _kept(site):
                if _is_known(site, name):
                    variable = self._variable()
                    where = f'{self._map("a", number, name, site)}[reg("sp")]'
                    self._add(f"{variable} = {where};")
                    self._add(f"delete({where});")
                    known[name] = variable
            for name in self._asked_of(site):
                if _is_known(site, name):
                    self._add(f"delete({self._map('g', number, name, site)}[tid]);")
        for wanted in captures:
            self._capture(wanted, known)
        self._end("r", number, [f'reg("{_RESULT}")'])

    # --- Arguments that are to be proven

    def _candidates(self, number: int, site: Site) -> None:
        """Registers that may point to a NULL in the caller's frame, which is to be filled in."""
        if not any(parameter.type.endswith("**") for parameter in site.parameters):
            return
        for index, name in zip(range(len(site.parameters)), REGISTERS.values()):
            found = self._variable()
            kept = f'@b{number}_{index}[reg("sp") + 8]'
            self._maps.add(f"@b{number}_{index}")
            # When it returns, to find nothing there would be an error that bpftrace tells, and to
            # tell one takes far longer than to keep a zero.
            self._add(f'{found} = reg("{name}"); {kept} = (uint64)0;')
            with self._if(
                f'{found} > reg("sp") && {found} < reg("sp") + {_FRAME} && ({found} & 7) == 0'
            ):
                self._block(found, REGISTER)
                with self._if("$w0 == 0"):
                    self._add(f"{kept} = {found};")

    def _returned_candidate(
        self, number: int, index: int, site: Site, captures: Iterable[Wanted]
    ) -> None:
        filled = {parameter.name for parameter in site.parameters if parameter.type.endswith("**")}
        captures = [wanted for wanted in captures if {*wanted.path.arguments} & filled]
        if not captures:
            return
        found = self._variable()
        kept = f'@b{number}_{index}[reg("sp")]'
        self._add(f"{found} = {kept}; delete({kept});")
        with self._if(f"{found} != 0"):
            for wanted in captures:
                if {*wanted.path.arguments} <= filled:
                    self._capture(wanted, dict.fromkeys(wanted.path.arguments, found))

    def _asked_of(self, site: Site) -> list[str]:
        """The parameters that may be those of a function which it calls, too."""
        types = {
            parameter.type
            for other in self._plan.sites
            if other.caller == site.probe and other.find == CALLED_BY
            for name, parameter in {each.name: each for each in other.parameters}.items()
            if parameter.type.endswith("*") and name in _starts(other.enter)
        }
        return [parameter.name for parameter in site.parameters if parameter.type in types]

    def _given_by_caller(self, site: Site) -> None:
        types = {parameter.name: parameter.type for parameter in site.parameters}
        registers = [*REGISTERS.values()][: len(site.parameters)]
        for number, caller in enumerate(self._plan.sites):
            if caller.probe != site.caller or caller.kind != SPAN:
                continue
            for parameter in caller.parameters:
                name = parameter.name
                if name not in self._asked_of(caller) or not _is_known(caller, name):
                    continue
                found = self._variable()
                self._add(f"{found} = {self._map('g', number, name, caller)}[tid];")
                here = " || ".join(f'reg("{one}") == {found}' for one in registers)
                with self._if(f"{found} != 0 && ({here})"):
                    for wanted in _wanted(site.enter):
                        if all(types.get(one) == parameter.type for one in wanted.path.arguments):
                            known = dict.fromkeys(wanted.path.arguments, found)
                            self._capture(wanted, known)

    # --- Captures

    def _capture(self, wanted: Wanted, arguments: Mapping[str, str]) -> None:
        """Print all that it could read."""
        path, types = wanted.path, wanted.types
        if path.name == CALLER or path.backtrace or path.records:
            return
        if any(name not in arguments for name in path.arguments):
            return
        start, ctype = arguments[path.name], types[path.name]

        # A name that may be elsewhere can be no name at all: no long text is read there.
        pieces = _SHORT if path.members else self._pieces

        def finish(value: str, ctype: CType, in_memory: bool) -> None:
            self._value(value, ctype, in_memory, pieces)
            if path.filler is not None:
                self._string(arguments[path.filler], pieces)

        if path.count is None:
            self._walk(start, ctype, False, path.members, path.stars, finish)
            return
        counted = types[path.count.name]
        stars = int(isinstance(counted, Pointer) and not path.count.members)

        def array(number: str, ctype: CType, in_memory: bool) -> None:
            count = self._variable()
            number = self._number(number, ctype) if in_memory else number
            self._add(f"{count} = {number} & 0xffffffff;")
            self._walk(
                start,
                types[path.name],
                False,
                path.members,
                path.stars,
                lambda value, ctype, in_memory: self._typed(
                    self._number(value, ctype) if in_memory else value, count
                ),
            )

        self._walk(arguments[path.count.name], counted, False, path.count.members, stars, array)

    def _walk(
        self,
        value: str,
        ctype: CType,
        in_memory: bool,
        members: tuple[str, ...],
        stars: int,
        finish: Callable[[str, CType, bool], None],
    ) -> None:
        """As Capture walks. in_memory: the value is the address of one of the type."""
        if members and in_memory and isinstance(ctype, Struct):
            if ctype.checks:
                self._block(value, largest(ctype))
            layouts = (ctype, *ctype.alternatives) if ctype.checks else (ctype,)
            fields = [field for one in layouts if (field := one.member(members[0]))]
            for offset in dict.fromkeys(field.offset for field in fields):
                inner = f"({value} + {offset})"
                self._walk(inner, fields[0].type, True, members[1:], stars, finish)
        elif members or stars:
            if not isinstance(ctype, Pointer) or ctype.target is None:
                return
            target, left = ctype.target(), stars if members else stars - 1
            pointer = self._variable()
            self._add(f"{pointer} = {self._number(value, ctype) if in_memory else value};")
            with self._if(f"{pointer} != 0"):
                self._walk(pointer, target, True, members, left, finish)
        else:
            finish(value, ctype, in_memory)

    def _value(self, value: str, ctype: CType, in_memory: bool, pieces: _Pieces) -> None:
        if isinstance(ctype, Code):
            return
        if isinstance(ctype, Pointer) and ctype.string:
            self._string(self._number(value, ctype) if in_memory else value, pieces)
        elif in_memory:
            self._block(value, largest(ctype) if isinstance(ctype, Struct) else ctype.size)

    def _number(self, address: str, ctype: CType) -> str:
        """Print it, and give it."""
        assert isinstance(ctype, (Pointer, Integer, Boolean))
        self._block(address, REGISTER)
        if ctype.size == REGISTER:
            return "$w0"
        mask = (1 << 8 * ctype.size) - 1
        return f"(($w0 >> (({address} & 7) * 8)) & {mask:#x})"

    def _block(self, address: str, size: int) -> None:
        """Print what lies at an address that is aligned as its type."""
        if size > _MAX_BLOCK:
            return
        self._add(f"$a = ({address} >> 3) << 3;")
        count = (size + REGISTER - 1) // REGISTER
        for start in range(0, count, WORDS):
            self._words(min(WORDS, count - start))

    def _words(self, count: int) -> None:
        """Print words from $a on, and move it."""
        first = self._next_line
        for word in range(count):
            self._add(f"$w{word} = *(uint64*)($a + {word * REGISTER});")
        form = " ".join(["%llx"] * count)
        words = ", ".join(f"$w{word}" for word in range(count))
        self._add(f'printf("w {first} %d %d %llx {form}", tid, cpu, $a, {words}); $c++;')
        self._add(f"$a = $a + {count * REGISTER};")

    def _string(self, address: str, pieces: _Pieces) -> None:
        start = self._variable()
        self._add(f"{start} = {address};")
        with self._if(f"{start} != 0"):
            self._add(f"$a = ({start} >> 3) << 3;")
            # What lies before it in its first word has no say in where it ends.
            self._add(f"$m = (1 << (({start} & 7) * 8)) - 1; $z = 0; $i = 0;")
            self._add(f"while ($i < {pieces.count} && $z == 0) {{")
            self._words(pieces.words)
            for word in range(pieces.words):
                self._add(f"$x = $w{word}{' | $m' if word == 0 else ''};")
                self._add("$z = $z | ((($x - 0x0101010101010101) & ~$x) >> 7);")
            self._add("$z = $z & 0x0101010101010101; $m = 0; $i++; }")

    def _typed(self, address: str, count: str) -> None:
        array = self._variable()
        self._add(f"{array} = {address}; $j = 0;")
        self._add(f"while ($j < {_MAX_PARAMETERS} && $j < {count} && {array} != 0) {{")
        self._add(f"$a = {array};")
        self._words(12)
        # VIR_TYPED_PARAM_STRING
        with self._if("($w10 & 0xffffffff) == 7"):
            self._string("$w11", _SHORT)
        self._add(f"{array} = {array} + 96; $j++; }}")


def _wanted(captures: Captures) -> Iterator[Wanted]:
    for wanted in captures.values():
        if isinstance(wanted, Wanted):
            yield wanted


def _starts(captures: Captures) -> set[str]:
    return {name for wanted in _wanted(captures) for name in wanted.path.arguments}


def _is_known(site: Site, name: str) -> bool:
    return not isinstance(site.arguments.get(name, Nowhere("")), Nowhere)


def _kept(site: Site) -> list[str]:
    """The arguments that are asked for when it returns."""
    return [name for name in site.arguments if name in _starts(site.exit) - {RETURN, CALLER}]


def _path(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise TargetError(
            f"bpftrace cannot be given the path {path!r}",
            "it takes letters, digits and _ . / + - only: give the file another name",
        )
    return path
