"""Symbol packs as files: what is believed of them, and what a stranger can do with one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.toolchain import build
from virtrace.binary import pack, x86_64
from virtrace.binary.ctype import Array, Opaque, Struct
from virtrace.binary.dwarf import CaptureNeeds, functions_and_structs
from virtrace.binary.reader import read_by_child
from virtrace.errors import TargetError
from virtrace.recipe import path

BUILD_ID = "-Wl,--build-id=0x" + "ab" * 20
DECLARATION = (
    "int traced(const outer *first, int a, int b, int c, int d, int e, outer seventh, long eighth)"
)
SOURCE = f"""
struct inner {{ short two; }};
typedef struct _outer {{
    int number; const char *text; struct inner inside[3]; unsigned char bytes[4];
    struct _outer *next; union {{ int a; long b; }} either; int (*call)(int);
    enum {{ MINUS = -1, PLUS }} sign; enum {{ ONE, TWO }} kind; _Bool yes; int bits : 3;
}} outer;
{DECLARATION}
{{
    return first->number + a + b + c + d + e + seventh.number + (int)eighth;
}}
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return build(SOURCE, tmp_path / "library.so", "-shared", "-O2", "-g", BUILD_ID)


@pytest.fixture
def document(library: Path) -> dict[str, Any]:
    walks = [path.parse_path("first->inside"), path.parse_path("*first")]
    wanted = {"traced": CaptureNeeds(walks, [path.parse_path("first->number")])}
    functions, structs = functions_and_structs(library, wanted, x86_64.ABI, lambda _: None)
    made = pack.encode_pack("ab" * 20, "x86_64", "a test", functions, structs)
    parsed: dict[str, Any] = json.loads(made)
    return parsed


def test_an_argument_that_the_recipe_names_differently(library: Path) -> None:
    """Of the layouts that its captures go through none is missing."""
    needs = {"traced": CaptureNeeds([path.parse_path("other->inside")], positions={"other": 0})}
    _, structs = functions_and_structs(library, needs, x86_64.ABI, lambda _: None)
    by_its_name = {"traced": CaptureNeeds([path.parse_path("first->inside")])}
    _, expected = functions_and_structs(library, by_its_name, x86_64.ABI, lambda _: None)
    assert structs
    assert structs == expected


def test_what_a_pack_says(document: dict[str, Any]) -> None:
    parsed = pack.parse_pack(json.dumps(document).encode(), "file")
    [body] = parsed.functions["traced"].bodies
    places = {name: place for name, (_, place) in body.arguments.items()}
    assert places == {
        "first": pack.InRegister("rdi"),
        **{name: pack.InRegister(register) for name, register in zip(
            "abcde", ("rsi", "rdx", "rcx", "r8", "r9")
        )},
        # 72 bytes of the struct lie between.
        "seventh": pack.OnStack(0),
        "eighth": pack.OnStack(72),
    }  # fmt: skip
    assert body.file.endswith("<stdin>")
    assert body.declared == SOURCE.split("\n").index(DECLARATION) + 1
    # The one statement; where the argument is, as long as it is needed.
    assert 2 in {line.number - body.declared for line in body.lines}
    assert body.lines[0].variables["first"][1] == pack.InRegister("rdi")
    first = body.arguments["first"][0]
    outer = first.target()  # type: ignore[union-attr,misc]
    assert isinstance(outer, Struct)
    assert outer.size == 72
    fields = {field.name: (field.offset, field.type.size) for field in outer.fields}
    assert fields == {
        "number": (0, 4), "text": (8, 8), "inside": (16, 6), "bytes": (22, 4), "next": (32, 8),
        "either": (40, 0), "call": (48, 8), "sign": (56, 4), "kind": (60, 4), "yes": (64, 1),
        "bits": (0, 0),
    }  # fmt: skip
    inside = outer.member("inside")
    assert inside is not None
    assert isinstance(inside.type, Array)
    assert isinstance(inside.type.element, Struct)


def change(*keys: Any, to: Any) -> Callable[[Any], None]:
    def spoil(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = to

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (change("format", to="virtrace-trace"), "not a symbol pack"),
        (change("version", to=2), "version 2"),
        (change("origin", to=7), "text belongs"),
        (change("functions", "traced", "bodies", 0, "entry", to=7), "cannot be used"),
        (change("functions", "traced", "bodies", 0, "lines", to=[]), "cannot be used"),
        (change("functions", "traced", "bodies", 0, "lines", "rows", to=[[1]]), "cannot be used"),
        (change("structs", "outer", "size", to=1 << 40), "bytes and fields"),
        (change("structs", "outer", "size", to=20), "bytes and fields"),
        (change("structs", "outer", "fields", "text", "offset", to=1), "overlaps"),
        (change("structs", to={"a": []}), "cannot be used"),
        (change("functions", to=[]), "cannot be used"),
    ],
)
def test_a_broken_pack_says_so(
    document: dict[str, Any], spoil: Callable[[Any], None], said: str
) -> None:
    spoil(document)
    with pytest.raises(TargetError, match=said) as caught:
        pack.parse_pack(json.dumps(document).encode(), "FILE.pack.json")
    assert "FILE.pack.json" in caught.value.what


@pytest.mark.parametrize("text", ["", "7", "[]", "{", "[" * 100_000, '{"format": "virtrace-pack"}'])
def test_what_is_no_pack_at_all(text: str) -> None:
    with pytest.raises(TargetError, match="cannot be used"):
        pack.parse_pack(text.encode(), "file")


@pytest.mark.parametrize(
    "structs",
    [
        {"outer": {"size": 8, "fields": {"self": {"offset": 0, "type": "outer"}}}},
        {"outer": {"size": 8, "fields": {"many": {"offset": 0, "type": "void[999999999]"}}}},
        {"outer": {"size": 8, "fields": {"many": {"offset": 0, "type": "inner[60000]"}}},
         "inner": {"size": 0, "fields": {"many": {"offset": 0, "type": "void[60000]"}}}},
    ],
)  # fmt: skip
def test_layouts_that_would_never_end(document: dict[str, Any], structs: Any) -> None:
    document["structs"] = structs
    parsed = pack.parse_pack(json.dumps(document).encode(), "file")
    target = parsed.functions["traced"].bodies[0].arguments["first"][0].target()  # type: ignore[union-attr,misc]
    assert isinstance(target, Struct)
    assert all(isinstance(field.type, Opaque) for field in target.fields)


def keep(library: Path, document: dict[str, Any]) -> Path:
    file = library.parent / pack.file_name("ab" * 20)
    file.write_text(json.dumps(document))
    file.chmod(0o644)
    return file


def test_found_beside_the_recipe(library: Path, document: dict[str, Any]) -> None:
    elf = read_by_child(library)
    keep(library, document)
    assert pack.find_pack(elf, [library.parent / "nowhere", library.parent]) is not None


def planted(file: Path, kind: str) -> None:
    moved = file.with_name("moved")
    if kind == "link":
        file.rename(moved)
        file.symlink_to(moved)
    elif kind == "writable":
        file.chmod(0o666)
    elif kind == "fifo":
        file.unlink()
        os.mkfifo(file)
    elif kind == "large":
        file.write_bytes(b" " * (pack.MAX_BYTES + 1))
    elif kind == "folder":
        file.unlink()
        file.mkdir()
    else:
        os.chown(file, 12345, 12345)


@pytest.mark.parametrize("kind", ["link", "writable", "fifo", "large", "folder", "foreign"])
def test_one_that_others_can_have_written_is_not_used(
    library: Path, document: dict[str, Any], kind: str
) -> None:
    if kind == "foreign" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    planted(keep(library, document), kind)
    with pytest.raises(TargetError, match="cannot be read"):
        pack.find_pack(read_by_child(library), [library.parent])


def spoil_folder(cache: Path, kind: str) -> None:
    if kind == "link":
        moved = cache.rename(cache.with_name("moved"))
        cache.symlink_to(moved)
    elif kind == "writable":
        cache.chmod(0o777)
    elif kind == "foreign":
        os.chown(cache, 12345, 12345)
    elif kind == "file":
        cache.rename(cache.with_name("moved"))
        cache.write_text("")


@pytest.mark.parametrize("kind", ["nothing", "link", "writable", "foreign", "file"])
def test_a_cache_that_is_not_ours_alone_is_not_believed(
    library: Path,
    document: dict[str, Any],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "foreign" and os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = tmp_path / "cache/virtrace/packs"
    cache.mkdir(parents=True, mode=0o700)
    (cache / keep(library, document).name).write_text(json.dumps(document))
    spoil_folder(cache, kind)
    found = pack.find_pack(read_by_child(library), [])
    assert (found is not None) == (kind == "nothing")


def test_for_this_build_only(library: Path, document: dict[str, Any]) -> None:
    other = library.with_name("other.so")
    subprocess.run(
        ["objcopy", "--remove-section", ".note.gnu.build-id", library, other], check=True
    )
    assert pack.find_pack(read_by_child(other), [library.parent]) is None
    document["build_id"] = "cd" * 20
    keep(library, document)
    with pytest.raises(TargetError, match="it is for build-id cdcd"):
        pack.find_pack(read_by_child(library), [library.parent])


def test_an_entry_must_be_one(library: Path, document: dict[str, Any]) -> None:
    body = document["functions"]["traced"]["bodies"][0]
    body["entry"] = f"{int(body['entry'], 16) + 1:#x}"
    keep(library, document)
    with pytest.raises(TargetError, match=r"library\.so\+0x\w+: no function begins there"):
        pack.find_pack(read_by_child(library), [library.parent])


def test_a_line_must_begin_with_an_instruction(library: Path, document: dict[str, Any]) -> None:
    rows = document["functions"]["traced"]["bodies"][0]["lines"]["rows"]
    rows[-1][0] = f"{int(rows[-1][0], 16) - 1:#x}"
    keep(library, document)
    wrong = r"library\.so\+0x\w+: (no instruction begins there|it is in no function)"
    with pytest.raises(TargetError, match=wrong):
        pack.find_pack(read_by_child(library), [library.parent])


def test_without_debug_info_there_is_no_pack(library: Path) -> None:
    subprocess.run(["strip", library], check=True)
    with pytest.raises(TargetError, match="has no debug info"):
        functions_and_structs(library, {"traced": CaptureNeeds([])}, x86_64.ABI, lambda _: None)
