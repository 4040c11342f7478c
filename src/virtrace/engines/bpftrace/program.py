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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from virtrace.binary import x86_64
from virtrace.binary.ctype import Pointer, Struct
from virtrace.binary.pack import Constant, InRegister, Nowhere, OnStack, Place
from virtrace.errors import TargetError, Unavailable
from virtrace.image.structs import largest
from virtrace.plan.arguments import ByConvention, ByOperands, ByPlaces, ByProof
from virtrace.plan.capture import REGISTER, Capture
from virtrace.plan.file import StoredPlan, write
from virtrace.plan.model import (
    AnySite,
    Captures,
    FunctionSite,
    PointSite,
    ReturnPointSite,
    SpanSite,
    StaticProbeSite,
    all_captures,
    possible,
    starts,
)
from virtrace.plan.walk import Move, ToMember, ToTarget
from virtrace.recipe.model import CalledBy
from virtrace.recipe.path import CALLER, RETURN, Backtrace, Caller, Format, Records, TypedParams

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


def text(plan: StoredPlan, where: Where) -> str:
    """TargetError where bpftrace could not take a path."""
    return "\n".join(_Program(plan, where).lines) + "\n"


def script(plan: StoredPlan, name: str, digests: Mapping[str, str]) -> str:
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


def pieces_of_plan(plan: StoredPlan) -> Iterator[str]:
    data = base64.b64encode(zlib.compress(write(plan, x86_64.ABI))).decode()
    for start in range(0, len(data), _PLAN_PIECE):
        yield data[start : start + _PLAN_PIECE]


class _Program:
    def __init__(self, plan: StoredPlan, where: Where) -> None:
        self._where = where
        self._sites = [*plan.plan.sites]
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
        for number, site in enumerate(self._sites):
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

    def _site(self, number: int, site: AnySite) -> None:
        file = _path(self._where.files.get(site.file, site.file))
        if isinstance(site, StaticProbeSite):
            if not all(_WORD.fullmatch(word) for word in (site.provider, site.name)):
                raise TargetError(
                    f"bpftrace cannot be given the static probe {site.provider}:{site.name}",
                    "leave it out of the recipe",
                )
            probe = f"usdt:{file}:{site.provider}:{site.name}"
            self._begin(probe, self._is_there(site), site.capture)
            self._static(number, site)
            return
        assert isinstance(site, (SpanSite, PointSite, ReturnPointSite))
        place = f"{file}:{site.entry:#x}"
        self._begin(f"uprobe:{place}", self._is_there(site), _at_entry(site))
        self._entry(number, site)
        if not isinstance(site, PointSite):
            # Only a thread that was met before: in whatever process that is.
            mine = "@n[tid] != 0" if self._where.pid is None else self._is_there(site)
            self._begin(f"uretprobe:{place}", mine, _at_return(site))
            self._return(number, site)

    def _is_there(self, site: AnySite) -> str:
        if self._where.pid is not None:
            return f"pid == {self._where.pid}"
        base = self._where.bases[site.module]
        return " || ".join(f'reg("ip") == {base + address:#x}' for address in site.addresses)

    def _begin(self, probe: str, condition: str, captures: Captures) -> None:
        texts = [len(capture.arguments) for capture in possible(captures)]
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

    def _entry(self, number: int, site: SpanSite | PointSite | ReturnPointSite) -> None:
        if CALLER in starts(all_captures(site)):
            self._block('reg("sp")', REGISTER)
        proof = _called_by(site)
        if proof is not None and isinstance(site, SpanSite):
            self._candidates(number, proof)
            self._given_by_caller(site, proof)
        else:
            arguments = self._arguments(site)
            for capture in possible(_at_entry(site)):
                self._capture(capture, arguments)
            for name in filter(arguments.get, _kept(site)):
                self._add(
                    f'{self._map("a", number, name, site)}[reg("sp") + 8] = {arguments[name]};'
                )
            for name in filter(arguments.get, self._asked_of(site)):
                self._add(f"{self._map('g', number, name, site)}[tid] = {arguments[name]};")
        kind = "p" if isinstance(site, PointSite) else "e"
        self._end(kind, number, [f'reg("{name}")' for name in REGISTERS.values()])

    def _arguments(self, site: FunctionSite) -> dict[str, str]:
        """The arguments that can be known at the entry, as expressions."""
        arguments = {}
        for name, place in _places(site).items():
            if isinstance(place, InRegister) and place.name in REGISTERS:
                arguments[name] = f'reg("{REGISTERS[place.name]}")'
            elif isinstance(place, Constant):
                arguments[name] = f"{place.value & (1 << 63) - 1}"
            elif isinstance(place, OnStack):
                self._block(f'(reg("sp") + {REGISTER + place.offset})', REGISTER)
                arguments[name] = self._variable()
                self._add(f"{arguments[name]} = $w0;")
        return arguments

    def _map(self, kind: str, number: int, name: str, site: FunctionSite) -> str:
        map_ = f"@{kind}{number}_{[*_places(site)].index(name)}"
        self._maps.add(map_)
        return map_

    def _static(self, number: int, site: StaticProbeSite) -> None:
        known = {}
        for index, name in enumerate(site.arguments.names):
            with suppress(Unavailable):
                known[name] = index, probe_argument(site.arguments, index)
        count = max((index for index, _ in known.values()), default=-1) + 1
        expressions = dict(known.values())
        first = self._next_line
        for index in range(count):
            self._add(f"$arg{index} = (uint64){expressions.get(index, '0')};")
        arguments = {name: f"$arg{index}" for name, (index, _) in known.items()}
        for capture in possible(site.capture):
            self._capture(capture, arguments)
        self._end("u", number, [f"(uint64){first}", *(f"$arg{index}" for index in range(count))])

    def _return(self, number: int, site: SpanSite | ReturnPointSite) -> None:
        known = {RETURN: f'reg("{_RESULT}")'}
        captures = [*possible(_at_return(site))]
        if isinstance(site, SpanSite) and site.moved:
            # The instructions that look at the result.
            self._block('reg("ip")', 2 * REGISTER)
        proof = _called_by(site)
        if proof is not None:
            for index, _ in enumerate(proof.parameters[: len(REGISTERS)]):
                self._returned_candidate(number, index, proof, captures)
            captures = [capture for capture in captures if {*capture.arguments} <= {RETURN}]
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
        for capture in captures:
            self._capture(capture, known)
        self._end("r", number, [f'reg("{_RESULT}")'])

    # --- Arguments that are to be proven

    def _candidates(self, number: int, proof: ByProof) -> None:
        """Registers that may point to a NULL in the caller's frame, which is to be filled in."""
        if not _filled_in(proof):
            return
        for index, name in zip(range(len(proof.parameters)), REGISTERS.values()):
            variable = self._variable()
            kept = f'@b{number}_{index}[reg("sp") + 8]'
            self._maps.add(f"@b{number}_{index}")
            # When it returns, to find nothing there would be an error that bpftrace tells, and to
            # tell one takes far longer than to keep a zero.
            self._add(f'{variable} = reg("{name}"); {kept} = (uint64)0;')
            in_frame = f'{variable} > reg("sp") && {variable} < reg("sp") + {_FRAME}'
            with self._if(f"{in_frame} && ({variable} & 7) == 0"):
                self._block(variable, REGISTER)
                with self._if("$w0 == 0"):
                    self._add(f"{kept} = {variable};")

    def _returned_candidate(
        self, number: int, index: int, proof: ByProof, captures: Iterable[Capture]
    ) -> None:
        filled = _filled_in(proof)
        captures = [capture for capture in captures if {*capture.arguments} & filled]
        if not captures:
            return
        variable = self._variable()
        kept = f'@b{number}_{index}[reg("sp")]'
        self._add(f"{variable} = {kept}; delete({kept});")
        with self._if(f"{variable} != 0"):
            for capture in captures:
                if {*capture.arguments} <= filled:
                    self._capture(capture, dict.fromkeys(capture.arguments, variable))

    def _asked_of(self, site: AnySite) -> list[str]:
        """The parameters that may be those of a function which it calls, too."""
        if not isinstance(site, SpanSite):
            return []
        types = set()
        for other in self._sites:
            proof = _called_by(other)
            if proof is not None and proof.caller == site.probe and isinstance(other, SpanSite):
                asked = starts(other.enter)
                declared = {parameter.name: parameter.type for parameter in proof.parameters}
                types |= {
                    type_
                    for name, type_ in declared.items()
                    if type_.endswith("*") and name in asked
                }
        return [parameter.name for parameter in site.parameters if parameter.type in types]

    def _given_by_caller(self, site: SpanSite, proof: ByProof) -> None:
        types = {parameter.name: parameter.type for parameter in proof.parameters}
        registers = [*REGISTERS.values()][: len(proof.parameters)]
        for number, caller in enumerate(self._sites):
            if caller.probe != proof.caller or not isinstance(caller, SpanSite):
                continue
            for parameter in caller.parameters:
                name = parameter.name
                if name not in self._asked_of(caller) or not _is_known(caller, name):
                    continue
                variable = self._variable()
                self._add(f"{variable} = {self._map('g', number, name, caller)}[tid];")
                here = " || ".join(f'reg("{register}") == {variable}' for register in registers)
                with self._if(f"{variable} != 0 && ({here})"):
                    for capture in possible(site.enter):
                        if all(types.get(start) == parameter.type for start in capture.arguments):
                            self._capture(capture, dict.fromkeys(capture.arguments, variable))

    # --- Captures

    def _capture(self, capture: Capture, arguments: Mapping[str, str]) -> None:
        """Print all that it could read."""
        form = capture.path.form
        if isinstance(form, (Caller, Backtrace, Records)):
            return
        if any(name not in arguments for name in capture.arguments):
            return
        way, value = capture.ways[0], arguments[capture.arguments[0]]
        # A name that may be elsewhere can be no name at all: no long text is read there.
        has_members = any(isinstance(move, ToMember) for move in way.moves)
        pieces = _SHORT if has_members else self._pieces
        if isinstance(form, TypedParams):
            self._counted(capture, arguments)
            return

        def finish(value: str) -> None:
            ctype = way.ctype
            if isinstance(ctype, Pointer) and ctype.string:
                self._string(self._number(value, ctype.size) if way.in_memory else value, pieces)
            elif way.in_memory:
                self._block(value, largest(ctype) if isinstance(ctype, Struct) else ctype.size)
            if isinstance(form, Format):
                self._string(arguments[capture.arguments[1]], pieces)

        self._follow(value, way.moves, finish)

    def _counted(self, capture: Capture, arguments: Mapping[str, str]) -> None:
        array, counting = capture.ways

        def counted(value: str) -> None:
            count = self._variable()
            number = self._number(value, counting.ctype.size) if counting.in_memory else value
            self._add(f"{count} = {number} & 0xffffffff;")
            self._follow(
                arguments[array.start],
                array.moves,
                lambda value: self._typed(
                    self._number(value, array.ctype.size) if array.in_memory else value, count
                ),
            )

        self._follow(arguments[counting.start], counting.moves, counted)

    def _follow(self, value: str, moves: Sequence[Move], finish: Callable[[str], None]) -> None:
        """Read all on a way. finish: makes the code at its end, of the value or its address."""
        if not moves:
            finish(value)
            return
        move, rest = moves[0], moves[1:]
        if isinstance(move, ToTarget):
            pointer = self._variable()
            self._add(f"{pointer} = {self._number(value, move.size) if move.size else value};")
            with self._if(f"{pointer} != 0"):
                self._follow(pointer, rest, finish)
            return
        if move.struct.checks:
            self._block(value, largest(move.struct))
        for offset in move.offsets:
            self._follow(f"({value} + {offset})", rest, finish)

    def _number(self, address: str, size: int) -> str:
        """Print a number in memory, and give it."""
        self._block(address, REGISTER)
        if size == REGISTER:
            return "$w0"
        mask = (1 << 8 * size) - 1
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


def probe_argument(source: ByOperands, index: int) -> str:
    """An argument of a static probe, as an expression. Raises Unavailable.

    bpftrace knows the first ones by itself; any other has to be in one register at all places.
    """
    texts = {next(iter(operands[index:]), "") for operands in source.operands.values()}
    if "" in texts:
        raise Unavailable("the static probe has fewer arguments")
    if index < OWN_ARGUMENTS:
        return f"arg{index}"
    operand = x86_64.ABI.operand(texts.pop()) if len(texts) == 1 else None
    if operand is None or operand.offset is not None or operand.size != REGISTER:
        raise Unavailable(f"bpftrace knows the first {OWN_ARGUMENTS} arguments only")
    return f'reg("{_NAMES[operand.register]}")'


def _at_entry(site: SpanSite | PointSite | ReturnPointSite) -> Captures:
    if isinstance(site, SpanSite):
        return site.enter
    return site.capture if isinstance(site, PointSite) else {}


def _at_return(site: SpanSite | ReturnPointSite) -> Captures:
    return site.exit if isinstance(site, SpanSite) else site.capture


def _called_by(site: AnySite) -> ByProof | None:
    """The proof of a function whose arguments the compiler may have moved."""
    source = site.arguments
    is_proof = isinstance(source, ByProof) and isinstance(source.find, CalledBy)
    return source if isinstance(source, ByProof) and is_proof else None


def _filled_in(proof: ByProof) -> set[str]:
    return {parameter.name for parameter in proof.parameters if parameter.type.endswith("**")}


def _places(site: FunctionSite) -> Mapping[str, Place]:
    """Where the arguments are at the entry, unless the compiler has moved them."""
    source = site.arguments
    if isinstance(source, ByProof):
        source = ByConvention([parameter.name for parameter in source.parameters], source.abi)
    assert isinstance(source, (ByConvention, ByPlaces))
    return source.places


def _is_known(site: FunctionSite, name: str) -> bool:
    return not isinstance(_places(site).get(name, Nowhere("")), Nowhere)


def _kept(site: SpanSite | PointSite | ReturnPointSite) -> list[str]:
    """The arguments that are asked for when it returns."""
    needed = set() if isinstance(site, PointSite) else site.needed - {CALLER}
    return [name for name in _places(site) if name in needed]


def _path(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise TargetError(
            f"bpftrace cannot be given the path {path!r}",
            "it takes letters, digits and _ . / + - only: give the file another name",
        )
    return path
