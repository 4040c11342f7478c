"""What a thread carries: who it is, and for whom it works."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from virtrace.image.unwind import Frame
from virtrace.snapshot.model import NamedFrame
from virtrace.snapshot.objects import Objects
from virtrace.snapshot.peek import WORD, Peek, is_pointer

# glibc (nptl/descr.h): a thread's own block begins with two pointers to itself, words 0 and 2; the
# thread's id lies at one of these offsets, and thread-specific data behind them.
_TID_OFFSETS = (720, 712, 728, 736)
_BLOCK_ALIGNMENT = 64
# The block is at the end of the stack; how far in front of it to look, bytes.
_SEARCHED = 1 << 14
_SPECIFIC, _SPECIFIC_END = 0x2E0, 0x700
_MOST_SEQUENCE = 1000
# libvirt names the call that a thread serves after its dispatcher.
_DISPATCHER = re.compile(r"(?:remote|admin|qemu|lxc)Dispatch([A-Z]\w+)")
_KEPT = ("rbx", "rbp", "r12", "r13", "r14", "r15")
# virTypedParameter: see targets/libvirt/forms.py. virIdentity: see its layout.
_PARAMETER, _FIELD, _KIND, _VALUE = 96, 80, 80, 88
_STRING_KIND = 7
# The types of an identity, of all versions.
IDENTITIES = ("VirIdentity", "virIdentity")
_PARAMETER_COUNT, _PARAMETERS = 24, 32
_MOST_PARAMETERS = 40
# Frames in which the name of a thread is looked for, and how large they may be, bytes.
_OUTERMOST, _LARGEST_FRAME = 4, 400
_THREAD_NAME = re.compile(r"[a-z][a-z-]{2,29}[a-z0-9]")


Identity = dict[str, "int | str"]


class Carried(NamedTuple):
    """What thread-specific data says.

    api: the function of the public API that the thread serves, such as virDomainGetBlockInfo.
    identity: values of the client's identity, by their names.
    """

    api: str | None
    identity: Identity | None


def kept_registers(frame: Frame) -> Iterator[int]:
    """The values of registers that a function keeps for its caller, as far as they are known."""
    for name in _KEPT:
        value = frame.registers.known.get(name)
        if value is not None:
            yield value


def words_of_frame(peek: Peek, frame: Frame, most: int) -> tuple[int, ...]:
    """What a function has on the stack; nothing where its frame is not smaller than ``most``."""
    sp, cfa = frame.registers.known.get("rsp"), frame.cfa
    if sp is None or cfa is None or not 0 < cfa - sp < most:
        return ()
    return peek.words(sp, (cfa - sp) // WORD)


def carried_by(
    peek: Peek, objects: Objects, own_tid: int, stack_end: int | None, frames: Iterable[NamedFrame]
) -> Carried:
    """Return what a thread carries. stack_end: address behind its stack, if known."""
    block = _block(peek, own_tid, stack_end, frames)
    api, identity = None, None
    if block is not None:
        words = peek.words(block + _SPECIFIC, (_SPECIFIC_END - _SPECIFIC) // WORD)
        for sequence, data in zip(words, words[1:]):
            # An even number is free.
            if not (sequence & 1 and sequence < _MOST_SEQUENCE and is_pointer(data, 1)):
                continue
            if objects.type_of(data) in IDENTITIES:
                identity = identity_at(peek, data)
            elif named := _DISPATCHER.fullmatch(peek.text(data, 80) or ""):
                api = f"vir{named[1]}"
    return Carried(api, identity)


def name_on_stack(peek: Peek, frames: Sequence[NamedFrame]) -> str | None:
    """Return the name that libvirt gave a thread, where the kernel's is not known.

    virThreadHelper (src/util/virthread.c) keeps it on the stack, beside the function that it calls.
    """
    for named in frames[-_OUTERMOST:]:
        for word in words_of_frame(peek, named.frame, _LARGEST_FRAME):
            text = peek.text(word, 40) if is_pointer(word, 1) else None
            if text is not None and _THREAD_NAME.fullmatch(text):
                return text
    return None


def pid_of(identity: Identity, here: Callable[[int], int | None]) -> int | None:
    """Return the pid of a client. here: of look.Around."""
    own_pid = identity.get("process-id")
    return here(own_pid) if isinstance(own_pid, int) else None


def _block(
    peek: Peek, own_tid: int, stack_end: int | None, frames: Iterable[NamedFrame]
) -> int | None:
    candidates = [value for named in frames for value in kept_registers(named.frame)]
    if stack_end is not None:
        last = stack_end // _BLOCK_ALIGNMENT * _BLOCK_ALIGNMENT
        # Of a core, the stack is known to end where the block begins.
        candidates += range(last, stack_end - _SEARCHED, -_BLOCK_ALIGNMENT)
    for address in candidates:
        if not is_pointer(address, _BLOCK_ALIGNMENT):
            continue
        words = peek.words(address, 3)
        is_block = len(words) == 3 and words[0] == words[2] == address
        if is_block and any(peek.number(address + at, 4) == own_tid for at in _TID_OFFSETS):
            return address
    return None


def identity_at(peek: Peek, address: int) -> Identity | None:
    """Return the values of a virIdentity by name; None if its content does not prove it."""
    count = peek.number(address + _PARAMETER_COUNT, 4, signed=True)
    parameters = peek.word(address + _PARAMETERS)
    if count is None or not 0 < count <= _MOST_PARAMETERS or not is_pointer(parameters):
        return None
    assert parameters is not None
    found: Identity = {}
    for number in range(count):
        raw = peek.data(parameters + number * _PARAMETER, _PARAMETER)
        if raw is None:
            return None
        name, end, _ = raw[:_FIELD].partition(b"\0")
        if not end or not name.isascii():
            return None
        value = int.from_bytes(raw[_VALUE : _VALUE + WORD], "little", signed=True)
        if int.from_bytes(raw[_KIND : _KIND + 4], "little") == _STRING_KIND:
            text = peek.text(value)
            if text is not None:
                found[name.decode()] = text
        else:
            found[name.decode()] = value
    return found
