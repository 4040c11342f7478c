"""Instructions for arguments that the compiler may have moved, and that are to be proven.

Only the caller's own arguments prove them, so a program looks for these in the registers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from virtrace.binary.pack import Nowhere, Place
from virtrace.binary.x86_64 import ABI
from virtrace.engines.uprobes.assembler import R1, R2, R6, R7
from virtrace.engines.uprobes.captures import CaptureReads
from virtrace.engines.uprobes.kept import FOR_CALLED, FOR_RETURN, Kept
from virtrace.engines.uprobes.layout import WORD
from virtrace.engines.uprobes.reads import PT_REGS, InContext, Loaded, Reads
from virtrace.plan.arguments import (
    ArgumentSource,
    ByConvention,
    ByPlaces,
    ByProof,
    Renamed,
    WithVariables,
)
from virtrace.plan.capture import Capture
from virtrace.plan.model import AnySite, FunctionSite, LineSite, SpanSite, possible, starts
from virtrace.recipe.model import CalledBy

# Where a pointer into the caller's frame can point, from the stack pointer on.
_FRAME = 1 << 16


class Proofs:
    """Writes the instructions, into the program of one place.

    sites: of the plan. site: index of the place's own.
    """

    def __init__(
        self, reads: Reads, captures: CaptureReads, kept: Kept, sites: Sequence[AnySite], site: int
    ) -> None:
        self._reads = reads
        self._captures = captures
        self._kept = kept
        self._sites = sites
        self._site = site

    def candidates(self, proof: ByProof) -> None:
        """Keep the registers that may point to a NULL in the caller's frame, to be filled in."""
        if not _to_fill_in(proof):
            return
        code, reads = self._reads.code, self._reads
        kept = [Loaded(self._reads.layout.room(WORD)) for _ in ABI.argument_registers]
        for value in kept:
            code.store(R7, value.offset, 0)
        for name, value, _ in zip(ABI.argument_registers, kept, proof.parameters):
            no = code.new_label("no")
            code.load(R1, R6, PT_REGS[name])
            code.load(R2, R6, PT_REGS["rsp"])
            code.jump_if(R1, "<=", R2, no)
            code.do(R2, "+=", _FRAME)
            code.jump_if(R1, ">=", R2, no)
            code.jump_if(R1, "&", WORD - 1, no)
            reads.into(R1, reads.block(InContext(name), WORD))
            # What could not be read is 0 too; there is nothing to be had then.
            code.jump_if(R1, "!=", 0, no)
            code.load(R1, R6, PT_REGS[name])
            code.store(R7, value.offset, R1)
            code.label(no)
        self._kept.keep(kept, self._site, FOR_RETURN)

    def filled_in(self, proof: ByProof, captures: Sequence[Capture]) -> None:
        """Read what the function may have put where a candidate points to."""
        names = _to_fill_in(proof)
        if not names:
            return
        count = len(ABI.argument_registers)
        for candidate in self._kept.given_back(count, self._site, FOR_RETURN):
            with self._reads.unless_zero(candidate):
                for capture in captures:
                    if {*capture.arguments} <= names:
                        self._captures.read(capture, dict.fromkeys(capture.arguments, candidate))

    def given_by_caller(self, site: SpanSite, proof: ByProof) -> None:
        """Read arguments that the caller has too, where a register holds the same."""
        code, reads = self._reads.code, self._reads
        types = {parameter.name: parameter.type for parameter in proof.parameters}
        registers = ABI.argument_registers[: len(proof.parameters)]
        for number, caller in enumerate(self._sites):
            if caller.probe != proof.caller or not isinstance(caller, SpanSite):
                continue
            declared = {parameter.name: parameter.type for parameter in caller.parameters}
            names = asked_of(caller, self._sites)
            for name, value in zip(names, self._kept.given_back(len(names), number, FOR_CALLED)):
                with reads.unless_zero(value):
                    here, elsewhere = code.new_label("here"), code.new_label("elsewhere")
                    for register in registers:
                        code.load(R2, R6, PT_REGS[register])
                        code.jump_if(R1, "==", R2, here)
                    code.jump(elsewhere)
                    code.label(here)
                    for capture in possible(site.enter):
                        if all(types.get(one) == declared[name] for one in capture.arguments):
                            self._captures.read(capture, dict.fromkeys(capture.arguments, value))
                    code.label(elsewhere)


def asked_of(site: AnySite, sites: Sequence[AnySite]) -> list[str]:
    """The parameters that may be those of a function which it calls, too. sites: of the plan."""
    if not isinstance(site, SpanSite):
        return []
    types = set()
    for other in sites:
        proof = called_by(other)
        if proof is not None and proof.caller == site.probe and isinstance(other, SpanSite):
            asked = starts(other.enter)
            declared = {parameter.name: parameter.type for parameter in proof.parameters}
            types |= {
                type_ for name, type_ in declared.items() if type_.endswith("*") and name in asked
            }
    return [
        parameter.name
        for parameter in site.parameters
        if parameter.type in types and is_known(site, parameter.name)
    ]


def called_by(site: AnySite) -> ByProof | None:
    """The proof of a function whose arguments the compiler may have moved."""
    source = site.arguments
    is_proof = isinstance(source, ByProof) and isinstance(source.find, CalledBy)
    return source if isinstance(source, ByProof) and is_proof else None


def _to_fill_in(proof: ByProof) -> set[str]:
    return {parameter.name for parameter in proof.parameters if parameter.type.endswith("**")}


def is_known(site: FunctionSite, name: str) -> bool:
    return not isinstance(places(site).get(name, Nowhere("")), Nowhere)


def _places_of(source: ArgumentSource) -> Mapping[str, Place]:
    if isinstance(source, Renamed):
        places = _places_of(source.source)
        return {new: places[old] for new, old in source.names.items() if old in places}
    if isinstance(source, WithVariables):
        return _places_of(source.source)
    if isinstance(source, ByProof):
        source = ByConvention([parameter.name for parameter in source.parameters], source.abi)
    assert isinstance(source, (ByConvention, ByPlaces))
    return source.places


def places(site: FunctionSite | LineSite) -> Mapping[str, Place]:
    """Where the arguments are, unless the compiler has moved them."""
    return _places_of(site.arguments)
