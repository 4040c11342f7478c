"""Captures on memory that the test lays out byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import pytest

from virtrace.binary.ctype import (
    Array,
    Boolean,
    Code,
    CType,
    Field,
    Integer,
    Opaque,
    Pointer,
    Struct,
)
from virtrace.errors import Unavailable
from virtrace.image.memory import MAX_STRING, PAGE, read_string
from virtrace.plan.capture import (
    Capture,
    PendingBacktrace,
)
from virtrace.recipe.path import CALLER, parse_path
from virtrace.targets import LIBVIRT

INT = Integer(4, True)
LONG = Integer(8)
TEXT = Pointer(lambda: Integer(1, True), string=True)
NODE: Struct = Struct(
    "node",
    40,
    (
        Field("number", 0, INT),
        Field("flag", 4, Boolean()),
        Field("text", 8, TEXT),
        Field("inner", 16, Struct("inner", 8, (Field("low", 0, INT), Field("high", 4, INT)))),
        Field("next", 24, Pointer(lambda: NODE)),
        Field("odd", 32, Opaque("bit fields")),
    ),
)
TYPES: Mapping[str, CType] = {
    "number": INT,
    "flag": Boolean(),
    "text": TEXT,
    "node": Pointer(lambda: NODE),
    "nodes": Pointer(lambda: Pointer(lambda: NODE)),
    "numbers": Pointer(lambda: Array(INT, 3)),
    "plain": Pointer(lambda: Opaque("void")),
    "value": NODE,
    "domain": LIBVIRT.type_named("virDomain *"),
    "return": INT,
}


class Pages:
    """What is mapped, by address; every read is counted."""

    def __init__(self, mapped: Mapping[int, bytes]) -> None:
        self._mapped = mapped
        self.reads: list[tuple[int, int]] = []

    def read(self, address: int, size: int) -> bytes:
        self.reads.append((address, size))
        for start, contents in self._mapped.items():
            if start <= address and address + size <= start + len(contents):
                return contents[address - start : address - start + size]
        raise Unavailable(f"cannot read memory at {address:#x}")


def node(number: int, text: int = 0, following: int = 0) -> bytes:
    return struct.pack("<iBxxxQiiQQ", number, 1, text, -1, 2, following, 0x55)


MEMORY = {
    0x1000: node(-5, 0x2000, 0x1100).ljust(0x100) + node(6, 0, 0),
    0x2000: b"first\0caf\xe9\0gr\xc3\xbc\xc3\x9fe\0".ljust(PAGE, b"\0"),
    0x3000: struct.pack("<Qiii", 0x1000, 1, -2, 3),
}


def run(path: str, memory: Pages | None = None, **arguments: int) -> Any:
    return Capture(parse_path(path), TYPES).run(memory or Pages(MEMORY), arguments.__getitem__)


def reason(path: str, **arguments: int) -> str:
    with pytest.raises(Unavailable) as caught:
        run(path, None, **arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "arguments", "expected"),
    [
        ("number", {"number": 0xFFFFFFFF}, -1),
        # What stands above the 32 bits of an argument is nobody's.
        ("number", {"number": 0xABCD00000007}, 7),
        ("return", {"return": (1 << 64) - 1}, -1),
        ("flag", {"flag": 0}, False),
        ("flag", {"flag": 0xAB00}, False),
        ("flag", {"flag": 0xAB01}, True),
        ("text", {"text": 0x2000}, "first"),
        ("text", {"text": 0x2006}, {"bytes": "Y2Fm6Q=="}),
        ("text", {"text": 0x200B}, "grüße"),
        ("node", {"node": 0x1000}, "0x1000"),
        ("node", {"node": 0}, "0x0"),
        ("node->number", {"node": 0x1000}, -5),
        ("node.number", {"node": 0x1000}, -5),
        ("node->flag", {"node": 0x1000}, True),
        ("node->text", {"node": 0x1000}, "first"),
        ("node->inner.high", {"node": 0x1000}, 2),
        ("node->inner", {"node": 0x1000}, {"low": -1, "high": 2}),
        ("node->next->number", {"node": 0x1000}, 6),
        ("*numbers", {"numbers": 0x3008}, [1, -2, 3]),
        ("*node->next", {"node": 0x1000}, "node 6"),
        ("**nodes", {"nodes": 0x3000}, "node -5"),
        ("*nodes", {"nodes": 0x3000}, "0x1000"),
    ],
)
def test_values(path: str, arguments: dict[str, int], expected: Any) -> None:
    if expected in ("node 6", "node -5"):
        number = int(expected[5:])
        found = run(path, None, **arguments)
        assert (found["number"], found["inner"]) == (number, {"low": -1, "high": 2})
        assert found["text"] == ("0x2000" if number == -5 else "0x0")
        assert found["odd"] == {"unavailable": "values of bit fields are not decoded"}
    else:
        assert run(path, None, **arguments) == expected


@pytest.mark.parametrize(
    ("path", "arguments", "why"),
    [
        ("text", {"text": 0}, "NULL pointer"),
        ("text", {"text": 0x10}, "cannot read memory at 0x10"),
        ("node->number", {"node": 0}, "NULL pointer"),
        ("node->next->next->number", {"node": 0x1000}, "NULL pointer"),
        ("node->number", {"node": 0x9000}, "cannot read memory at 0x9000"),
        # Not all of the struct is mapped: nothing of it is shown.
        ("*node", {"node": 0x1120}, "cannot read memory at 0x1120"),
        ("**nodes", {"nodes": 0}, "NULL pointer"),
    ],
)
def test_what_cannot_be_read(path: str, arguments: dict[str, int], why: str) -> None:
    assert reason(path, **arguments) == why


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("absent", "there is no argument or variable 'absent' here"),
        ("node->absent", "node->absent: no member 'absent' there"),
        ("number->x", "number->x: goes through something that is not a pointer"),
        ("*number", "*number: goes through something that is not a pointer"),
        ("***nodes", "***nodes: goes through something that is not a pointer"),
        ("*plain", "*plain: the layout of void is not known"),
        ("plain->x", "plain->x: the layout of void is not known"),
        ("node->odd", "node->odd: the layout of bit fields is not known"),
        ("value", "value: passed by value, which is not decoded"),
    ],
)
def test_what_the_types_do_not_allow_is_known_at_once(path: str, why: str) -> None:
    with pytest.raises(Unavailable) as caught:
        Capture(parse_path(path), TYPES)
    assert str(caught.value) == why


def test_a_value_wider_than_its_register_is_not_cut() -> None:
    with pytest.raises(Unavailable):
        Capture(parse_path("return"), {"return": Integer(16)}).run(Pages({}), lambda _: 7)


def test_a_struct_is_one_read() -> None:
    memory = Pages(MEMORY)
    run("*node", memory, node=0x1000)
    assert memory.reads == [(0x1000, 40)]


def test_a_domain_by_whichever_layout_fits() -> None:
    name = 0x20000
    new = struct.pack("<QIxxxxQQQi16sxxxx", 0x30000, 1, 0, 0x40000, name, 3, b"u" * 16)
    old = struct.pack("<IiQQQi16sxxxx", 0xCAFE0001, 1, 0x30000, 0x40000, name, 3, b"u" * 16)
    mapped = {
        0x50000: new,
        0x60000: old.ljust(64, b"\0"),
        0x70000: bytes(64),
        name: b"vm1\0".ljust(PAGE),
    }
    assert run("domain->name", Pages(mapped), domain=0x50000) == "vm1"
    assert run("domain->name", Pages(mapped), domain=0x60000) == "vm1"
    assert run("*domain", Pages(mapped), domain=0x50000)["id"] == 3
    for path in ("domain->name", "*domain"):
        with pytest.raises(Unavailable, match=r"^0 of 2 known layouts of virDomain fit"):
            run(path, Pages(mapped), domain=0x70000)


@pytest.mark.parametrize(
    ("template", "filler", "expected"),
    [
        (b"invalid argument: %s", b"vda", "invalid argument: vda"),
        (b"%1$s", b"vda", "vda"),
        (b"100%% of %s", b"100%", "100% of 100%"),
        (b"nothing to fill in", None, "nothing to fill in"),
        (b"%s", b"\xff", {"bytes": "/w=="}),
    ],
)
def test_a_format_is_filled_in(template: bytes, filler: bytes | None, expected: Any) -> None:
    capture = Capture(parse_path("format(return, info)"), {"return": TEXT, "info": TEXT})
    mapped = {0x1000: (template + b"\0").ljust(PAGE), 0x2000: ((filler or b"") + b"\0").ljust(PAGE)}
    values = {"return": 0x1000, "info": 0x2000 if filler is not None else 0}
    assert capture.run(Pages(mapped), values.__getitem__) == expected


@pytest.mark.parametrize("template", [b"%s and %s", b"%d", b"%2$s", b"%n", b"%.*s", b"%5s"])
def test_a_format_with_more_to_it_is_not_guessed(template: bytes) -> None:
    capture = Capture(parse_path("format(return, info)"), {"return": TEXT, "info": TEXT})
    mapped = {0x1000: (template + b"\0").ljust(PAGE), 0x2000: b"x\0".ljust(PAGE)}
    with pytest.raises(Unavailable, match="more to fill in than one %s"):
        capture.run(Pages(mapped), {"return": 0x1000, "info": 0x2000}.__getitem__)


def typed(*parameters: tuple[str, int, bytes]) -> bytes:
    """An array of virTypedParameter, as include/libvirt/libvirt-common.h lays it out."""
    return b"".join(
        name.encode().ljust(80, b"\0") + struct.pack("<ixxxx", kind) + value.ljust(8, b"\x5a")
        for name, kind, value in parameters
    )


PARAMETERS = typed(
    ("int", 1, struct.pack("<i", -1)),
    ("uint", 2, struct.pack("<I", 0xFFFFFFFF)),
    ("llong", 3, struct.pack("<q", -(1 << 63))),
    ("ullong", 4, struct.pack("<Q", (1 << 64) - 1)),
    ("double", 5, struct.pack("<d", 1.5)),
    ("nan", 5, struct.pack("<d", float("nan"))),
    ("boolean", 6, b"\1"),
    ("string", 7, struct.pack("<Q", 0x2000)),
    ("lost", 7, struct.pack("<Q", 0x9000)),
)
TYPED: dict[str, CType] = {
    "params": Pointer(lambda: Opaque("virTypedParameter")),
    "nparams": Pointer(lambda: INT),
    "count": INT,
}


def run_typed(path: str, contents: bytes = PARAMETERS, count: int = 9) -> Any:
    mapped = {
        0x1000: contents,
        0x2000: b"text\0".ljust(PAGE),
        0x3000: struct.pack("<i", count),
    }
    arguments = {"params": 0x1000 if contents else 0, "nparams": 0x3000, "count": count}
    return Capture(parse_path(path), TYPED).run(Pages(mapped), arguments.__getitem__)


@pytest.mark.parametrize("path", ["typed(params, nparams)", "typed(params, count)"])
def test_typed_parameters(path: str) -> None:
    assert run_typed(path) == {
        "int": -1,
        "uint": 0xFFFFFFFF,
        "llong": -(1 << 63),
        "ullong": (1 << 64) - 1,
        "double": 1.5,
        "nan": {"unavailable": "nan is not a JSON number"},
        "boolean": True,
        "string": "text",
        "lost": {"unavailable": "cannot read memory at 0x9000"},
    }
    assert run_typed(path, count=1) == {"int": -1}
    assert run_typed(path, count=0) == {}


@pytest.mark.parametrize(
    ("contents", "count", "why"),
    [
        (b"", 9, "only for the number"),
        (PARAMETERS, -1, "implausible count of typed parameters: -1"),
        (PARAMETERS, 1 << 20, "implausible count of typed parameters: 1048576"),
        (PARAMETERS, 10, "cannot read memory"),
        (typed(("int", 0, b"")), 1, "has the type 0"),
        (typed(("int", 8, b"")), 1, "has the type 8"),
        (bytes(96), 1, "not an array"),
        (b"\xff" * 96, 1, "not an array"),
        (b"x" * 96, 1, "not an array"),
        (typed(("a\x1b[2J", 1, b"")), 1, "not an array"),
    ],
)
def test_what_is_no_array_of_typed_parameters(contents: bytes, count: int, why: str) -> None:
    with pytest.raises(Unavailable, match=why):
        run_typed("typed(params, count)", contents, count)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("typed(count, count)", "wants a pointer, and how many"),
        ("typed(params, params)", "layout of virTypedParameter is not known"),
        ("typed(params, strings)", "wants a number, or a pointer to one"),
    ],
)
def test_typed_parameters_want_a_pointer_and_a_count(path: str, why: str) -> None:
    with pytest.raises(Unavailable, match=why):
        Capture(parse_path(path), {**TYPED, "strings": Pointer(lambda: TEXT)})


def test_typed_parameters_that_a_struct_has() -> None:
    fields = (Field("nparams", 0, INT), Field("params", 8, TYPED["params"]))
    types: dict[str, CType] = {"return": Pointer(lambda: Struct("identity", 16, fields))}
    mapped = {0x1000: PARAMETERS, 0x4000: struct.pack("<ixxxxQ", 2, 0x1000)}
    capture = Capture(parse_path("typed(return->params, return->nparams)"), types)
    assert capture.run(Pages(mapped), {"return": 0x4000}.__getitem__) == {
        "int": -1,
        "uint": 0xFFFFFFFF,
    }
    with pytest.raises(Unavailable, match="NULL pointer"):
        capture.run(Pages(mapped), {"return": 0}.__getitem__)


def test_what_called_a_function_is_told_by_name() -> None:
    names = {0x1234: "virDomainGetInfo"}
    capture = Capture(parse_path("caller()"), {CALLER: Code(names.__getitem__)})
    assert capture.run(Pages({}), {CALLER: 0x1234}.__getitem__) == "virDomainGetInfo"


def test_a_backtrace_is_of_the_thread_that_a_number_names() -> None:
    fields = (Field("owner", 8, Integer(8)), Field("name", 16, TEXT))
    types = {"job": Pointer(lambda: Struct("job", 24, fields))}
    mapped = {0x1000: struct.pack("<QQQ", 0, 4711, 0)}
    memory = Pages(mapped)
    capture = Capture(parse_path("backtrace(job->owner)"), types)
    wanted = capture.run(memory, {"job": 0x1000}.__getitem__)
    assert isinstance(wanted, PendingBacktrace)
    assert wanted.tid == 4711
    # Whether it still is, once all threads stand.
    mapped[0x1000] = struct.pack("<QQQ", 0, 0, 0)
    assert wanted.reread() == 0
    with pytest.raises(Unavailable, match=r"^no thread holds it \(owner is 0\)$"):
        capture.run(memory, {"job": 0x1000}.__getitem__)
    with pytest.raises(Unavailable, match="NULL pointer"):
        capture.run(memory, {"job": 0}.__getitem__)
    for path in ("backtrace(job->name)", "backtrace(job)"):
        with pytest.raises(Unavailable, match="wants a number, the id of a thread"):
            Capture(parse_path(path), types)


@pytest.mark.parametrize("filler", [b"Cannot access '%s'", b"%s", b"%d of 7"])
def test_a_template_is_not_taken_for_what_fills_one_in(filler: bytes) -> None:
    capture = Capture(parse_path("format(return, info)"), {"return": TEXT, "info": TEXT})
    mapped = {0x1000: b"%s\0".ljust(PAGE), 0x2000: (filler + b"\0").ljust(PAGE)}
    with pytest.raises(Unavailable, match="may be a template itself"):
        capture.run(Pages(mapped), {"return": 0x1000, "info": 0x2000}.__getitem__)


class TestStrings:
    def test_it_ends_at_the_end_of_what_is_mapped(self) -> None:
        memory = Pages({0x10000: bytes(PAGE - 4) + b"end\0"})
        assert read_string(memory, 0x10000 + PAGE - 4) == b"end"
        assert memory.reads == [(0x10000 + PAGE - 4, 4)]

    def test_it_goes_on_in_the_next_page_only(self) -> None:
        """The next read would take two pages, of which only one is there."""
        contents = b"x" * (2 * PAGE - 1) + b"\0"
        assert read_string(Pages({0x10000: contents}), 0x10000) == contents[:-1]
        contents = b"x" * (4 * PAGE - 1) + b"\0"
        assert read_string(Pages({0x10000: contents}), 0x10001) == contents[1:-1]

    def test_without_an_end_it_is_unavailable(self) -> None:
        with pytest.raises(Unavailable, match="cannot read memory at 0x11000"):
            read_string(Pages({0x10000: b"x" * PAGE}), 0x10100)

    def test_10_mib_in_few_reads(self) -> None:
        contents = b"x" * (10 << 20) + b"\0"
        memory = Pages({0x100000: contents.ljust(11 << 20)})
        assert read_string(memory, 0x100000) == contents[:-1]
        assert len(memory.reads) < 30

    def test_it_is_given_up_at_a_limit(self) -> None:
        with pytest.raises(Unavailable, match="no end of the string within 16 MiB"):
            read_string(Pages({0x100000: b"x" * (MAX_STRING + (2 << 20))}), 0x100000)


class TestRecords:
    """An array of pointers to virDomainStatsRecord, as include/libvirt/libvirt-domain.h has it."""

    TYPES: Mapping[str, CType] = {
        "retStats": Pointer(
            lambda: Pointer(lambda: Pointer(lambda: Opaque("virDomainStatsRecord")))
        ),
        "return": INT,
    }

    def run(self, count: int, **changed: bytes) -> Any:
        domain = struct.pack("<QIxxxxQQQi16sxxxx", 0x50000, 1, 0, 0x60000, 0x80000, 3, bytes(16))
        mapped = {
            "ret": (0x1000, struct.pack("<Q", 0x1100)),
            "array": (0x1100, struct.pack("<QQ", 0x1200, 0x1300)),
            "first": (0x1200, struct.pack("<QQixxxx", 0x5000, 0x2000, 1)),
            "second": (0x1300, struct.pack("<QQixxxx", 0x5100, 0, 0)),
            "params": (0x2000, typed(("state.state", 1, struct.pack("<i", 5)))),
            "domain": (0x5000, domain),
            "other": (
                0x5100,
                domain.replace(struct.pack("<Q", 0x80000), struct.pack("<Q", 0x90000)),
            ),
            "name": (0x80000, b"vm1\0".ljust(PAGE)),
            "its": (0x90000, b"vm2\0".ljust(PAGE)),
        }
        memory = {at: changed.get(name, raw) for name, (at, raw) in mapped.items()}
        capture = Capture(parse_path("records(retStats, return)"), self.TYPES)
        values = {"retStats": 0x1000, "return": count & (1 << 32) - 1}
        return capture.run(Pages(memory), values.__getitem__)

    def test_by_the_names_of_the_domains(self) -> None:
        assert self.run(2) == {"vm1": {"state.state": 5}, "vm2": {}}
        assert self.run(1) == {"vm1": {"state.state": 5}}
        assert self.run(0) == {}

    @pytest.mark.parametrize(
        ("count", "changed", "why"),
        [
            (-1, {}, "-1 records"),
            (1001, {}, "1001 records"),
            (3, {}, "cannot read memory"),
            (1, {"ret": bytes(8)}, "NULL pointer"),
            (1, {"array": bytes(16)}, "NULL pointer"),
            (1, {"domain": bytes(64)}, "0 of 2 known layouts of virDomain"),
            (1, {"params": bytes(96)}, "not an array of typed parameters"),
            (1, {"name": b"\xff\0".ljust(PAGE)}, "is not text"),
        ],
    )
    def test_what_is_none(self, count: int, changed: dict[str, bytes], why: str) -> None:
        with pytest.raises(Unavailable, match=why):
            self.run(count, **changed)


class TestArrays:
    """`array(first, count)`: structs one after the other."""

    STATS = LIBVIRT.type_named("virNodeMemoryStats *")

    def run(self, count: int, at: int = 0x1000) -> Any:
        rows = [(b"total", 24), (b"free", 7)]
        raw = b"".join(struct.pack("<80sQ", name, value) for name, value in rows)
        types = {"params": self.STATS, "nparams": Pointer(lambda: INT)}
        memory = Pages({0x1000: raw, 0x2000: struct.pack("<i", count)})
        values = {"params": at, "nparams": 0x2000}
        return Capture(parse_path("array(params, nparams)"), types).run(memory, values.__getitem__)

    def test_each_is_an_object_and_an_array_of_characters_is_a_text(self) -> None:
        both = [{"field": "total", "value": 24}, {"field": "free", "value": 7}]
        assert self.run(2) == both
        assert self.run(1) == both[:1]
        assert self.run(0) == []

    @pytest.mark.parametrize(
        ("count", "at", "why"),
        [
            (-1, 0x1000, "-1 elements are not read, at most 23"),
            (24, 0x1000, "24 elements are not read"),
            (3, 0x1000, "cannot read memory"),
            (2, 0, "NULL pointer"),
        ],
    )
    def test_what_is_none(self, count: int, at: int, why: str) -> None:
        with pytest.raises(Unavailable, match=why):
            self.run(count, at)

    def test_of_what_is_no_struct(self) -> None:
        for ctype in (INT, Pointer(lambda: INT)):
            with pytest.raises(Unavailable):
                Capture(parse_path("array(params, n)"), {"params": ctype, "n": INT})
