"""What can be proven of a static function's arguments, and what must not be believed."""

from __future__ import annotations

from virtrace.plan.proof import TracedCaller, of_driver_method, of_static_function
from virtrace.recipe.prototype import Parameter, parse_parameters

API = parse_parameters(
    "virDomainPtr domain, const char *disk, virDomainBlockInfoPtr info, unsigned int flags"
)
GATHER = parse_parameters(
    "virQEMUDriver *driver, virDomainObj *vm, const char *path, bool capacity, "
    "qemuBlockStats **retstats"
)
DOMAIN, DISK, INFO, FLAGS = 0x7F0000001000, 0x7F0000002000, 0x7F0000003000, 7
SP, CALLER_SP = 0x7FFF00001000, 0x7FFF00001100
OUT = SP + 0x40


def caller(*arguments: int | None, parameters: tuple[Parameter, ...] = API) -> TracedCaller:
    return TracedCaller(parameters, arguments, CALLER_SP)


def gather(*registers: int, memory: dict[int, int] | None = None) -> tuple[int | None, ...]:
    words = {OUT: 0} if memory is None else memory
    called = caller(DOMAIN, DISK, INFO, FLAGS)
    return of_static_function(registers, GATHER, called, SP, words.__getitem__)


def test_a_driver_method_gets_what_the_api_got() -> None:
    registers = (DOMAIN, DISK, INFO, FLAGS, 1, 2)
    assert of_driver_method(registers, API, caller(*registers[:4])) == registers[:4]


def test_only_the_bytes_of_the_type_count() -> None:
    registers = (DOMAIN, DISK, INFO, 0xDEAD00000000 | FLAGS, 0, 0)
    proven = of_driver_method(registers, API, caller(DOMAIN, DISK, INFO, FLAGS))
    assert proven == (DOMAIN, DISK, INFO, FLAGS)


def test_what_differs_from_the_api_is_not_proven() -> None:
    registers = (DISK, DOMAIN, INFO, FLAGS, 0, 0)
    proven = of_driver_method(registers, API, caller(DOMAIN, DISK, INFO, FLAGS))
    assert proven == (None, None, INFO, FLAGS)
    assert of_driver_method(registers, API, caller(None, None, None, None)) == (None,) * 4


def test_a_pointer_is_found_in_whatever_register_it_came() -> None:
    # Debian's 9.0.0: driver was dropped, all moved up by one.
    assert gather(0x55, DISK, 1, OUT, 9, 9) == (None, None, DISK, None, OUT)
    assert gather(0x44, 0x55, DISK, 1, OUT, 9) == (None, None, DISK, None, OUT)


def test_registers_behind_the_declared_ones_are_left_from_before() -> None:
    assert gather(0x44, 0x55, 0x66, 1, 0x77, DISK) == (None, None, None, None, None)


def test_two_that_could_be_meant_are_none() -> None:
    both = {OUT: 0, OUT + 8: 0}
    assert gather(0x55, DISK, OUT, OUT + 8, 0, 0, memory=both)[4] is None
    # One of them is filled in already, so it is not what will be.
    filled = {OUT: 0, OUT + 8: 5}
    assert gather(0x55, DISK, OUT, OUT + 8, 0, 0, memory=filled)[4] == OUT


def test_only_the_callers_frame_counts() -> None:
    outside = {CALLER_SP + 8: 0, SP - 8: 0}
    assert gather(0x55, DISK, CALLER_SP + 8, SP - 8, 0, 0, memory=outside)[4] is None


def test_null_proves_nothing() -> None:
    called = caller(0, 0, 0, 0)
    nothing: dict[int, int] = {}
    proven = of_static_function((0,) * 6, GATHER, called, SP, nothing.__getitem__)
    assert proven == (None,) * 5
