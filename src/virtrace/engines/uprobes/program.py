"""The programs of a plan: at each probe, one that records what a capture could ask for.

What a program records is no value yet: captures run later, over the record, by the code that runs
them under GDB. A program only has to read every byte that a capture could read.

How large all that is that a program reads is known before it runs, but for texts and arrays. So
each program has one record of a constant size, in which each block has its place, and the kernel's
verifier sees constants alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from virtrace.binary.pack import AtEntry, Constant, InRegister, OnStack, Place
from virtrace.binary.reader import Binary
from virtrace.binary.x86_64 import ABI
from virtrace.engines.uprobes import layout as record
from virtrace.engines.uprobes.assembler import R1, R2, R7, Code
from virtrace.engines.uprobes.captures import CaptureReads
from virtrace.engines.uprobes.conditions import Changes, Fails, Over, Rises
from virtrace.engines.uprobes.contents import Contents
from virtrace.engines.uprobes.envelope import Envelope
from virtrace.engines.uprobes.kept import FOR_CALLED, FOR_LINES, FOR_RETURN, Kept
from virtrace.engines.uprobes.layout import MOST_KEPT, WORD, Layout
from virtrace.engines.uprobes.proofs import Proofs, asked_of, called_by, is_known, places
from virtrace.engines.uprobes.reads import InContext, Loaded, Now, Number, Plus, Reads, Value
from virtrace.plan.arguments import ByOperands, WithVariables
from virtrace.plan.capture import Capture
from virtrace.plan.model import (
    AnySite,
    Captures,
    Changing,
    ContentSite,
    LineSite,
    Plan,
    PointSite,
    ReturnPointSite,
    Rising,
    SpanSite,
    StaticProbeSite,
    all_captures,
    possible,
    starts,
)
from virtrace.recipe.path import CALLER, RETURN, Backtrace, Stack

_RESULT = "rax"
# A constant as an argument of a static probe, in the assembler's words.
_CONSTANT = re.compile(r"-?[1248]@\$(-?\d+)")


@dataclass(frozen=True)
class Program:
    """What is to be loaded and attached for one place.

    site: its index in the plan. address: as the file counts. at_return: it runs as a function
    returns. is_return_probe: the kernel is to find the return; else the address is that of a `ret`
    instruction, or of anything but a return. semaphore: address of the static probe's counter, or
    None.
    """

    site: int
    address: int
    at_return: bool
    is_return_probe: bool
    semaphore: int | None
    layout: Layout
    code: Code

    def offsets(self, elf: Binary) -> tuple[int, int]:
        """Return where it goes in the file, and where its semaphore is: 0 if it has none."""
        offset = elf.file_offset(self.address)
        assert offset is not None
        semaphore = None if self.semaphore is None else elf.file_offset(self.semaphore)
        return offset, semaphore or 0


@dataclass(frozen=True)
class Options:
    """What differs between kernels.

    sleepable: programs may wait for a page of the process (Linux 6.0 and later). rounds: how much
    of an array of records is read: parts of 32 parameters. of_next: the process is named later.
    """

    sleepable: bool
    rounds: int
    of_next: bool = False


# The more rounds, the more the verifier has to follow: that of Linux 6.12 follows the most.
ROUNDS = (400, 100, 25)
# What every kernel takes.
PLAIN = Options(sleepable=False, rounds=ROUNDS[-1])


def programs(plan: Plan, options: Options) -> Sequence[Program]:
    """Make the programs of a plan; the number in a record is the index here."""
    made: list[Program] = []
    for number, site in enumerate(plan.sites):
        for address in site.addresses:
            maker = _Maker(plan, number, address, options, at_return=False)
            made.append(maker.make(len(made)))
        if isinstance(site, (SpanSite, ReturnPointSite)):
            for address in (site.address,) if site.returns is None else site.returns:
                maker = _Maker(plan, number, address, options, at_return=True)
                made.append(maker.make(len(made)))
    return made


def fingerprint(made: Sequence[Program]) -> str:
    """Return what tells whether records were written by these very programs."""
    digest = hashlib.sha256()
    for program in made:
        digest.update(program.code.instructions)
    return digest.hexdigest()


def probe_operand(source: ByOperands, address: int, index: int) -> str:
    """Return the assembler's text of an argument of a static probe; empty if it has fewer."""
    return next(iter(source.operands[address][index:]), "")


class _Maker:
    """Makes the program of one place."""

    def __init__(
        self, plan: Plan, number: int, address: int, options: Options, *, at_return: bool
    ) -> None:
        self._sites = plan.sites
        self._number = number
        self._site = self._sites[number]
        self._address = address
        self._at_return = at_return
        # At its `ret`, the stack pointer is what it was at the entry of the function.
        self._at_ret = (
            at_return
            and isinstance(self._site, (SpanSite, ReturnPointSite))
            and self._site.returns is not None
        )
        self._layout = Layout(record.VALUES)
        self._of_next = options.of_next
        self._reads = Reads(self._layout, sleepable=options.sleepable)
        self._captures = CaptureReads(self._reads, options.rounds)
        self._kept = Kept(self._reads, at_ret=self._at_ret)
        self._proofs = Proofs(self._reads, self._captures, self._kept, self._sites, number)
        self._plan_has_backtraces = any(
            _has_backtrace([*possible(all_captures(site))]) for site in self._sites
        )

    def make(self, program: int) -> Program:
        site, whole = self._site, self._reads.code
        if isinstance(site, ContentSite):
            return self._content(site)
        if _is_conditional(site) and not self._at_return:
            return self._entry_without_record()
        # The body comes first: what it reads settles the size of the record.
        self._reads.code = whole.fragment()
        if isinstance(site, StaticProbeSite):
            self._static(site)
        elif isinstance(site, LineSite):
            self._line(site)
        elif self._at_return:
            assert isinstance(site, (SpanSite, ReturnPointSite))
            self._return(site)
        else:
            assert isinstance(site, (SpanSite, PointSite, ReturnPointSite))
            self._entry(site)
        body, self._reads.code = self._reads.code, whole.fragment()
        self._decide()
        condition, self._reads.code = self._reads.code, whole
        envelope = Envelope(self._reads, of_next=self._of_next)
        envelope.begin(program, condition)
        whole.insert(body)
        envelope.end()
        semaphore = None
        if isinstance(site, StaticProbeSite) and site.semaphores:
            semaphore = site.semaphores[0]
        return Program(
            self._number,
            self._address,
            self._at_return,
            self._at_return and not self._at_ret,
            semaphore,
            self._layout,
            whole.code(),
        )

    def _decide(self) -> None:
        """Write what decides whether an event is recorded."""
        site = self._site
        if isinstance(site, PointSite) and isinstance(site.when, Rising):
            Rises(self._reads).decide(self._number, site.when, _registers(site))
        elif isinstance(site, PointSite) and isinstance(site.when, Changing):
            Changes(self._reads).decide(self._number, site.when, _registers(site))
        elif isinstance(site, ReturnPointSite) and site.fails is not None:
            Fails(self._reads, self._kept).decide(self._number, site.fails)
        elif isinstance(site, ReturnPointSite) and site.over is not None:
            Over(self._reads, self._kept).decide(self._number, site.over)
        elif self._at_ret:
            self._kept.require_entered(self._number)

    def _values(self, names: Sequence[str | None]) -> list[Loaded]:
        """Make room for registers or arguments, which are known unless a program says so."""
        self._layout.values = [*names]
        return [Loaded(self._layout.room(WORD)) for _ in names]

    def _registers(self, names: Sequence[str]) -> Mapping[str, Value]:
        """Record registers, and the addresses of the variables of a point; return these."""
        source = self._site.arguments
        variables = source.variables if isinstance(source, WithVariables) else {}
        # Each is as far from this instruction as in the file.
        addresses = {
            name: Plus(InContext("rip"), variable.address - self._address)
            for name, variable in variables.items()
        }
        recorded = [*names, *(variable.name for variable in variables.values())]
        values: list[Value] = [*map(InContext, names), *addresses.values()]
        for value, place in zip(values, self._values(recorded)):
            self._reads.into(R1, value)
            self._reads.code.store(R7, place.offset, R1)
        return addresses

    def _content(self, site: ContentSite) -> Program:
        envelope = Envelope(self._reads, of_next=self._of_next)
        envelope.require_process()
        Contents(self._reads).compare(site, _registers(site))
        envelope.out()
        return Program(
            *(self._number, self._address, False, False, None),
            self._layout,
            self._reads.code.code(),
        )

    def _entry_without_record(self) -> Program:
        """It keeps the arguments, and the time if the return asks for it."""
        site = self._site
        assert isinstance(site, ReturnPointSite)
        envelope = Envelope(self._reads, of_next=self._of_next)
        envelope.require_process()
        if site.on_main:
            envelope.require_main_thread()
        registers = _registers(site)
        kept: list[Value] = [Now()] if site.over is not None else []
        kept += [InContext(registers[name]) for name in _kept(site) if name in registers]
        # That it was entered has to be known also where no argument is asked for.
        self._kept.keep(kept or [Number(0)], self._number, FOR_RETURN)
        envelope.out()
        return Program(
            *(self._number, self._address, False, False, None),
            self._layout,
            self._reads.code.code(),
        )

    # --- Bodies

    def _entry(self, site: SpanSite | PointSite | ReturnPointSite) -> None:
        captures = [*possible(_at_entry(site))]
        wants_all = _has_backtrace(captures) or _has_stack(captures)
        variables = self._registers(ABI.user_registers if wants_all else ABI.argument_registers)
        if isinstance(site, PointSite) and isinstance(site.when, Rising):
            Rises(self._reads).note(site.when, _registers(site))
            if site.contents:
                Contents(self._reads).note(_registers(site))
        if CALLER in starts(all_captures(site)) or self._plan_has_backtraces:
            block = self._reads.block(InContext("rsp"), WORD)
            self._layout.return_address = block.offset - 2 * WORD
        if isinstance(site, (SpanSite, ReturnPointSite)) and site.returns is not None:
            self._kept.enter(self._number)
        proof = called_by(site)
        if proof is not None and isinstance(site, SpanSite):
            self._proofs.candidates(proof)
            self._proofs.given_by_caller(site, proof)
            return
        arguments = self._arguments(places(site), Plus(InContext("rsp"), WORD))
        arguments |= variables
        for capture in captures:
            self._captures.read(capture, arguments)
        if _has_stack(captures):
            self._captures.stack()
        self._kept.keep(
            [arguments.get(name, Number(0)) for name in _kept(site)], self._number, FOR_RETURN
        )
        self._kept.keep(
            [arguments.get(name, Number(0)) for name in asked_of(site, self._sites)],
            self._number,
            FOR_CALLED,
        )
        if isinstance(site, SpanSite) and site.keeps_registers:
            registers = [InContext(name) for name in ABI.argument_registers]
            self._kept.keep([Plus(InContext("rsp"), WORD), *registers], self._number, FOR_LINES)

    def _return(self, site: SpanSite | ReturnPointSite) -> None:
        captures = [*possible(_at_return(site))]
        if isinstance(site, ReturnPointSite) and site.is_conditional:
            self._return_alone(site, captures)
            return
        registers = [name for name in ABI.user_registers if name != _RESULT]
        self._registers([_RESULT, *(registers if _has_backtrace(captures) else ())])
        known: dict[str, Value] = {RETURN: InContext(_RESULT)}
        if isinstance(site, SpanSite) and site.moved:
            # The instructions that look at the result.
            returns_to: Value = InContext("rip")
            if self._at_ret:
                returns_to = self._reads.number(InContext("rsp"), WORD)
            self._reads.block(returns_to, WORD)
        proof = called_by(site)
        if proof is None:
            kept = _kept(site)
            known.update(zip(kept, self._kept.given_back(len(kept), self._number, FOR_RETURN)))
        else:
            self._proofs.filled_in(proof, captures)
            captures = [capture for capture in captures if {*capture.arguments} <= {RETURN}]
        for capture in captures:
            self._captures.read(capture, known)

    def _return_alone(self, site: ReturnPointSite, captures: Sequence[Capture]) -> None:
        """A return without a record of its entry: its registers are those of the entry, if kept."""
        wants_all = _has_stack(captures)
        names = ABI.user_registers if wants_all else (_RESULT, *ABI.argument_registers)
        self._registers(names)
        known: dict[str, Value] = {RETURN: InContext(_RESULT)}
        registers = _registers(site)
        kept = [name for name in _kept(site) if name in registers]
        first = 0 if site.over is None else 1
        given = self._kept.given_back(max(first + len(kept), 1), self._number, FOR_RETURN)
        if first:
            self._layout.began = given[0].offset
        for name, value in zip(kept, given[first:]):
            at = record.VALUES + WORD * names.index(registers[name])
            self._reads.into(R1, value)
            self._reads.code.store(R7, at, R1)
            known[name] = Loaded(at)
        for capture in captures:
            if {*capture.arguments} <= known.keys():
                self._captures.read(capture, known)
        if wants_all:
            self._captures.stack()

    def _line(self, site: LineSite) -> None:
        self._registers([name for name in ABI.user_registers if name in ABI.dwarf_registers])
        span = next(
            number
            for number, other in enumerate(self._sites)
            if isinstance(other, SpanSite) and other.probe == site.probe
        )
        opened = self._sites[span]
        assert isinstance(opened, SpanSite)
        at_entry: Sequence[Value]
        if site.address == opened.entry:
            # The program of the entry may run after this one.
            frame_end: Value = Plus(InContext("rsp"), WORD)
            at_entry = [InContext(name) for name in ABI.argument_registers]
        else:
            frame_end, *at_entry = self._kept.given_back(
                1 + len(ABI.argument_registers), span, FOR_LINES
            )
        entered = dict(zip(ABI.argument_registers, at_entry))
        arguments = self._arguments(places(site), frame_end, entered)
        for capture in possible(site.watch):
            self._captures.read(capture, arguments)

    def _static(self, site: StaticProbeSite) -> None:
        names = site.arguments.names
        values = self._values([None] * len(names))
        for index, value in enumerate(values):
            self._operand(probe_operand(site.arguments, self._address, index), index, value)
        for capture in possible(site.capture):
            self._captures.read(capture, dict(zip(names, values)))

    def _operand(self, text: str, index: int, value: Loaded) -> None:
        """Record an argument of a static probe, or that it is not known."""
        code, known = self._reads.code, self._reads.code.new_label("known")
        operand, constant = ABI.operand(text), _CONSTANT.fullmatch(text)
        if constant:
            code.do(R1, "=", int(constant[1]))
            code.store(R7, value.offset, R1)
            return
        if operand is not None:
            unread = self._reads.operand(operand.register, operand.offset, operand.size)
            shift = 8 * (WORD - operand.size)
            if shift:
                code.do(R1, "<<=", shift)
                code.do(R1, "s>>=" if operand.signed else ">>=", shift)
            code.store(R7, value.offset, R1)
            if unread is None:
                return
            code.jump(known)
            code.label(unread)
        code.load(R2, R7, record.KNOWN)
        code.do(R2, "&=", ~(1 << index))
        code.store(R7, record.KNOWN, R2)
        code.store(R7, value.offset, 0)
        code.label(known)

    def _arguments(
        self,
        places: Mapping[str, Place],
        frame_end: Value,
        entered: Mapping[str, Value] | None = None,
    ) -> dict[str, Value]:
        """Return the values that can be known here.

        frame_end: behind the return address. entered: registers when the function was entered.
        """
        found: dict[str, Value] = {}
        wanted = starts(all_captures(self._site)) | set(asked_of(self._site, self._sites))
        for name, place in places.items():
            if name not in wanted:
                continue
            if isinstance(place, InRegister):
                found[name] = InContext(place.name)
            elif isinstance(place, Constant):
                found[name] = Number(place.value)
            elif isinstance(place, OnStack):
                found[name] = self._reads.block(Plus(frame_end, place.offset), WORD)
            elif isinstance(place, AtEntry) and entered and place.name in entered:
                found[name] = entered[place.name]
        return found


def _is_conditional(site: AnySite) -> bool:
    return isinstance(site, ReturnPointSite) and site.is_conditional


def _registers(site: PointSite | ContentSite | ReturnPointSite) -> Mapping[str, str]:
    """The registers of the arguments, by their names."""
    known = places(site).items()
    return {name: place.name for name, place in known if isinstance(place, InRegister)}


def _has_backtrace(captures: Sequence[Capture]) -> bool:
    return any(isinstance(capture.path.form, Backtrace) for capture in captures)


def _has_stack(captures: Sequence[Capture]) -> bool:
    return any(isinstance(capture.path.form, Stack) for capture in captures)


def _at_entry(site: SpanSite | PointSite | ReturnPointSite) -> Captures:
    if isinstance(site, SpanSite):
        return site.enter
    return site.capture if isinstance(site, PointSite) else {}


def _at_return(site: SpanSite | ReturnPointSite) -> Captures:
    return site.exit if isinstance(site, SpanSite) else site.capture


def _kept(site: SpanSite | PointSite | ReturnPointSite) -> list[str]:
    """The arguments that are asked for when it returns."""
    needed = set() if isinstance(site, PointSite) else site.needed - {CALLER}
    names = [name for name in places(site) if name in needed and is_known(site, name)]
    # No function of libvirt has more; what finds no room is unavailable.
    return names[:MOST_KEPT]
