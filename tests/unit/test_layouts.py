"""Types from the shipped layouts."""

from __future__ import annotations

import random
import struct

import pytest

from virtrace.binary.ctype import (
    Array,
    Boolean,
    CType,
    Integer,
    Opaque,
    Pointer,
    Struct,
    decode,
    matcher,
)
from virtrace.targets import LIBVIRT

CONN, NAME, KLASS = 0x7F0000001000, 0x7F0000002000, 0x7F0000003000
UUID = bytes(range(16))


def gobject(conn: int = CONN, name: int = NAME, uuid: bytes = UUID) -> bytes:
    """A virDomain as libvirt has it since virObject is a GObject."""
    return struct.pack("<QIxxxxQQQi16sxxxx", KLASS, 2, 0, conn, name, 7, uuid)


def old_object(conn: int = CONN, name: int = NAME, uuid: bytes = UUID, klass: int = KLASS) -> bytes:
    """As it was before."""
    return struct.pack("<IiQQQi16sxxxx", 0xCAFE0001, 2, klass, conn, name, -1, uuid)


def domain() -> Struct:
    found = LIBVIRT.type_named("virDomain")
    assert isinstance(found, Struct)
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bool", Boolean()),
        ("char", Integer(1, True)),
        ("int", Integer(4, True)),
        ("unsigned int", Integer(4)),
        ("unsigned long long", Integer(8)),
        ("size_t", Integer(8)),
        ("unsigned char[16]", Array(Integer(1), 16)),
        ("int [2]", Array(Integer(4, True), 2)),
        ("double", Opaque("double")),
        ("void", Opaque("void")),
        ("virJSONValue", Opaque("virJSONValue")),
        ("", Opaque("")),
    ],
)
def test_names_of_types(name: str, expected: CType) -> None:
    assert LIBVIRT.type_named(name) == expected


def test_pointers() -> None:
    text, texts = LIBVIRT.type_named("char *"), LIBVIRT.type_named("char **")
    assert isinstance(text, Pointer)
    assert isinstance(texts, Pointer)
    assert (text.string, texts.string) == (True, False)
    assert texts.target is not None
    inner = texts.target()
    assert isinstance(inner, Pointer)
    assert inner.string
    info = LIBVIRT.type_named("virDomainBlockInfo *")
    assert isinstance(info, Pointer)
    assert info.target is not None
    assert info.target() is LIBVIRT.type_named("virDomainBlockInfo")


@pytest.mark.parametrize(
    "name", ["../layouts/virDomain", "./virDomain", "virDomain/../virDomain", "/etc/passwd", "a\0b"]
)
def test_a_name_does_not_lead_out_of_the_folder(name: str) -> None:
    assert LIBVIRT.type_named(name) == Opaque(name)


def test_the_public_struct() -> None:
    info = LIBVIRT.type_named("virDomainBlockInfo")
    raw = struct.pack("<QQQ", 1, 2**64 - 1, 3)
    assert decode(info, raw) == {"capacity": 1, "allocation": 2**64 - 1, "physical": 3}


def test_the_public_struct_of_a_domain() -> None:
    raw = struct.pack("<BxxxxxxxQQHxxxxxxQ", 1, 2, 3, 4, 5)
    expected = {"state": 1, "maxMem": 2, "memory": 3, "nrVirtCpu": 4, "cpuTime": 5}
    assert decode(LIBVIRT.type_named("virDomainInfo"), raw) == expected


def test_each_form_of_a_domain_is_told_from_the_other() -> None:
    (new,) = matcher(domain())(gobject())
    (old,) = matcher(domain())(old_object() + bytes(8))
    assert (new.size, old.size) == (64, 56)
    expected = {"conn": hex(CONN), "name": hex(NAME), "uuid": list(UUID)}
    for layout, raw, number in ((new, gobject(), 7), (old, old_object(), -1)):
        values = decode(layout, raw)
        assert {name: values[name] for name in expected} == expected
        assert values["id"] == number


def test_what_is_no_domain_fits_none() -> None:
    for raw in (bytes(64), b"\xff" * 64, b"virDomain" * 8, gobject(conn=1), gobject(name=0)):
        assert matcher(domain())(raw[:64]) == []


def test_a_form_is_never_taken_for_the_other() -> None:
    """Both may fit by chance, which makes a value unavailable; the wrong one alone must not."""
    chance = random.Random(2)
    for _ in range(2000):
        conn, name, klass = (chance.randrange(0x10000, 1 << 47) for _ in range(3))
        uuid = chance.randbytes(16)
        new = matcher(domain())(gobject(conn, name, uuid))
        old = matcher(domain())(old_object(conn, name, uuid, klass) + chance.randbytes(8))
        assert 64 in {layout.size for layout in new}
        assert 56 in {layout.size for layout in old}
