"""Every command, with hostile text wherever a stranger can put some: what comes out of it."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.gdb.harness import NAME, SCRIPTS, Daemon, start
from tests.support import compiled, hostile
from tests.support.command import VIRTRACE, at_a_terminal
from tests.support.hostile import TEXT, is_told
from tests.support.paths import DATA
from tests.support.waiting import PATIENCE
from tests.unit.test_snapshot_document import SAMPLE
from virtrace.binary.elf import ElfFile
from virtrace.cli.main import build_parser, main
from virtrace.image.process import inspect
from virtrace.snapshot.format import encoded

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TRACES = (
    "explain/discarded-with-lines-9.0.0",
    "explain/stopped-device-with-host-facts-9.0.0",
    "explain/error-9.0.0",
    "diff/last-sector-7.0.0",
    "version1/start-failure",
)
# Of at most 15 bytes: the kernel keeps no more of a program's name.
COMM = "FORGED\x1b[2J\u202e"
RECIPE = """
virtrace: 1
name: {name}
about: {text}
try: {text}
spans:
  - prototype: int virDomainGetBlockInfo(virDomainPtr domain, const char *disk)
    module: libvirt.so.0
    root: true
    enter: {{domain: domain->name, disk: disk}}
"""


class Strange(Daemon):
    """The program under a hostile name, with a library of such a name."""

    def __init__(self, folder: Path, library: Path) -> None:
        os.environ["LD_PRELOAD"] = str(library)
        try:
            super().__init__(folder)
        finally:
            del os.environ["LD_PRELOAD"]

    def command(self) -> list[str | Path]:
        return [self.folder / COMM, self.folder / "libvirt_driver_qemu.so"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile.folder(tmp_path_factory.mktemp("strange"))


@pytest.fixture(scope="module")
def program(build: Callable[[str], Path], folder: Path) -> Path:
    copy = shutil.copytree(build("optimized"), folder / "program", symlinks=True)
    (copy / NAME).rename(copy / COMM)
    return copy


@pytest.fixture
def library(tmp_path: Path) -> Path:
    # The linker has names end at spaces and colons.
    file = tmp_path / "\x1b[2J\nFORGED\u202e\xad.so"
    subprocess.run(["gcc", "-shared", "-xc", "/dev/null", "-o", file], check=True)
    return file


@pytest.fixture
def strange(program: Path, library: Path) -> Iterator[Strange]:
    daemon = Strange(program, library)
    yield daemon
    daemon.end()


another = strange


def ended(*words: object, **options: Any) -> bytes:
    """What a command prints, and all that it starts."""
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        [*VIRTRACE, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        **options,
    )
    return done.stdout


def in_process(*words: object) -> bytes:
    """What a command prints on both of its streams."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        # As argparse ends it.
        with contextlib.suppress(SystemExit):
            main([str(word) for word in words])
        out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    return out.buffer.getvalue()


# Files of strangers


def poisoned(value: Any, wanted: Callable[[str], bool], place: str = "") -> Any:
    """With hostile text behind each text at a wanted place, and behind the names of values."""
    if isinstance(value, dict):
        return {
            (f"{key}{TEXT}" if wanted(f"{place}{{}}") else key): poisoned(
                each, wanted, f"{place}.{key}"
            )
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [poisoned(each, wanted, f"{place}[]") for each in value]
    if isinstance(value, str) and wanted(place):
        return value + TEXT
    return value


def places(value: Any, place: str = "") -> Iterator[str]:
    """As poisoned() names them."""
    if isinstance(value, dict):
        if place:
            yield f"{place}{{}}"
        for key, each in value.items():
            yield from places(each, f"{place}.{key}")
    elif isinstance(value, list):
        for each in value:
            yield from places(each, f"{place}[]")
    elif isinstance(value, str):
        yield place


def records(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


def write(path: Path, lines: list[dict[str, Any]], wanted: Callable[[str], bool]) -> Path:
    # What makes it a trace stays as it is.
    kept = [{key: line[key] for key in ("type", "format") if key in line} for line in lines]
    made = ({**poisoned(line, wanted, line["type"]), **own} for line, own in zip(lines, kept))
    path.write_text("".join(json.dumps(line) + "\n" for line in made))
    return path


def commands_of(trace: Path, other: Path, folder: Path) -> Iterator[tuple[object, ...]]:
    """All that only reads a trace; the first ones once more for each field alone."""
    yield ("show", "--full", trace)
    yield ("explain", trace)
    yield ("diff", "--full", trace, other)
    yield ("show", "--html", folder / "page.html", trace)
    for form in ((), ("--summary",), ("--json",)):
        yield ("show", *form, trace)
    yield ("explain", "--json", trace)
    yield ("fleet", trace, other)
    yield ("fleet", "--json", trace)
    for form in ((), ("--json",)):
        yield ("diff", *form, other, trace)
    # Nor have the roots of other releases the package of that name.
    perfetto = ("perfetto",) if importlib.util.find_spec("perfetto") else ()
    for form in (*perfetto, "chrome", "otlp", "csv", "mermaid", "svg"):
        yield ("export", trace, "--to", form, "-o", folder / f"made.{form}")
    yield ("bundle", "make", trace, "--preview")
    yield ("bundle", trace, "-o", folder / "made.tar.gz")
    yield ("bundle", "verify", folder / "made.tar.gz")


def test_what_reads_a_trace(folder: Path) -> None:
    """Each field alone, as where all are hostile much of it cannot be explained; then all."""
    tried: set[str] = set()
    pages = 0
    for name in TRACES:
        lines = records(name)
        fields = {place for line in lines for place in places(line, line["type"])}
        for chosen in [*({field} for field in sorted(fields - tried)), fields]:
            trace = write(folder / "t.jsonl", lines, chosen.__contains__)
            commands = commands_of(trace, DATA / f"{name}.jsonl", folder)
            for words in commands if chosen is fields else islice(commands, 4):
                # Not of a bundle: its files have pseudonyms.
                assert is_told(in_process(*words)) or "--preview" in words, (words, chosen)
            for made in folder.glob("made.*"):
                assert made.suffix not in (".mermaid", ".svg") or is_told(made.read_bytes())
                made.unlink()
            page = folder / "page.html"
            if page.exists():
                pages += is_told(page.read_bytes())
                page.unlink()
        tried |= fields
    assert len(tried) > 100
    assert pages > 40


def test_a_trace_in_colour(folder: Path) -> None:
    lines = records(TRACES[0])
    texts = {place for line in lines for place in places(line, line["type"])}
    # Names of values too, but for those that the header must have.
    texts -= {place for place in texts if place.startswith("header") and place.endswith("{}")}
    for hidden in ("header", "enter.values", "exit.values", "point.values", "line.values"):
        chosen = {place for place in texts if place.startswith(hidden)}
        trace = write(folder / "t.jsonl", lines, chosen.__contains__)
        for words in (("show",), ("show", "--full"), ("diff", trace)):
            assert is_told(at_a_terminal(*words, trace), color=True), (words, hidden)
    # Nothing of ours is in colour here.
    assert is_told(at_a_terminal("show", folder / "none"))
    assert is_told(at_a_terminal("recipe", "check", folder / "none"))


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=str)
def test_no_control_character_where_none_is_wanted(variables: dict[str, str], folder: Path) -> None:
    trace = write(folder / "t.jsonl", records(TRACES[0]), "enter.values.domain".__eq__)
    assert is_told(at_a_terminal("show", trace, **variables))
    # That it takes long is told on a line that changes.
    assert not at_a_terminal("explain", DATA / "sample-blockinfo.jsonl", **variables).count(b"\r")


def test_in_a_locale_that_is_not_utf_8(folder: Path) -> None:
    named = folder / os.fsdecode(b"caf\xe9")
    named.mkdir()
    lines = records(TRACES[0])
    trace = write(named / "t.jsonl", lines, lambda place: ".values.d" in place)
    for words in commands_of(trace, DATA / f"{TRACES[0]}.jsonl", named):
        printed = ended(*words, env={**os.environ, **ASCII})
        assert printed.isascii()
        assert is_told(printed) or "--preview" in words, words


def test_what_reads_a_snapshot(folder: Path) -> None:
    # What makes it a snapshot stays as it is.
    kept = {key: SAMPLE[key] for key in ("type", "format", "version")}
    free = (".threads[].request.arguments{}", ".objects{}")
    fields = {
        place
        for place in places(SAMPLE)
        if place in free or not place.endswith(("{}", ".type", ".format"))
    }
    snapshot = folder / "t.snapshot"
    for chosen in [*({field} for field in sorted(fields)), fields]:
        document = poisoned(SAMPLE, chosen.__contains__)
        snapshot.write_bytes(encoded(document | kept))
        assert is_told(in_process("show", "--json", snapshot)), chosen
        # They show a part of it.
        read = (("show", "--full"), ("explain",), ("diff", snapshot))
        for words in (*read, ("fleet",), ("bundle", "make", "--preview")):
            is_told(in_process(*words, snapshot))
        page = folder / "page.html"
        in_process("show", "--html", page, snapshot)
        # Without a time it is no snapshot.
        if page.exists():
            is_told(page.read_bytes())
            page.unlink()


# Other files, and what a user types


@pytest.fixture
def recipe(folder: Path) -> Path:
    file = folder / "own.yaml"
    file.write_text(RECIPE.format(name="own", text=json.dumps(TEXT)))
    return file


@pytest.fixture
def pack(folder: Path, program: Path) -> Path:
    """One that is sound, but for its texts."""
    made = folder / "made.pack.json"
    in_process("pack", "make", program / "libvirt.so.0.9000.0", "-o", folder / "packs")
    (file,) = (folder / "packs").iterdir()
    document = json.loads(file.read_text())
    document["origin"] += TEXT
    document["functions"] = {
        f"{name}{TEXT}": function for name, function in document["functions"].items()
    }
    made.write_text(json.dumps(document))
    return made


def test_files_and_arguments(folder: Path, recipe: Path, pack: Path, program: Path) -> None:
    said, recorded = compiled.apart(compiled.FILES[0])
    plan = json.loads(said["plan"])
    parts = (".target", ".host")
    plan["header"] = poisoned(
        plan["header"], lambda place: place.startswith(parts) and not place.endswith("{}")
    )
    poisoned_plan, no_plan = folder / "poisoned-plan", folder / "no-plan"
    hostile_plan = compiled.with_plan(said, json.dumps(plan).encode())
    poisoned_plan.write_bytes(compiled.joined(hostile_plan, recorded))
    no_plan.write_bytes(compiled.joined({**said, "format": TEXT}, recorded))
    misnamed = folder / "misnamed.yaml"
    misnamed.write_text(RECIPE.format(name=json.dumps(TEXT), text="a"))
    binary = program / "libvirt.so.0.9000.0"
    stacks = folder / "stacks"
    stacks.write_text(f'Thread 1 (LWP 1) "{TEXT}"\n#0  0x1 in {TEXT} () from {TEXT}\n')
    for words in (
        (TEXT,),
        ("show", folder / "none"),
        ("show", f"--{TEXT}"),
        ("explain", "--call", TEXT, "t"),
        ("import", poisoned_plan, "-o", folder / "imported.jsonl"),
        ("show", folder / "imported.jsonl"),
        ("import", no_plan, "-o", folder / "t.jsonl"),
        ("recipe", "show", recipe),
        ("recipe", "check", folder),
        ("recipe", "check", misnamed),
        ("recipe", "new", TEXT, "--against", binary),
        ("recipe", "new", "virDomainGetBlockInfo", "--against", binary, "-o", recipe),
        ("recipe", "check", "blockinfo", "--against", binary),
        ("recipe", "compile", recipe, "--to", "python", "-o", recipe, "--against", folder),
        ("snapshot", "--core", folder / "none"),
        ("snapshot", "--stacks", recipe),
        ("snapshot", "--stacks", stacks),
        ("pack", "show", pack),
        ("pack", "show", recipe),
        ("pack", "make", binary, "-o", folder / "packs"),
        ("pack", "make", recipe),
        ("bundle", folder / "none", "--preview"),
        ("bundle", "verify", recipe),
        ("record", recipe, "-p", os.getpid(), "--where", TEXT),
        ("record", folder / "none.yaml", "-p", os.getpid()),
        ("record", "blockinfo", "--process", TEXT),
        ("record", "high-water", "-p", os.getpid(), "--domain", TEXT),
        ("record", "blockinfo", "-p", os.getpid(), "--", TEXT),
        ("replay", recipe, "-p", os.getpid(), "--where", TEXT),
        ("replay", folder / "none", "-p", os.getpid()),
        ("lab", "status", "--dir", folder / "lab"),
        ("lab", "down", "--dir", folder / "lab"),
        ("lab", "up", "--dir", folder / "lab"),
        ("lab", "run", TEXT),
    ):
        assert is_told(in_process(*words)), (words, in_process(*words))


# A process


def test_a_process(strange: Strange, recipe: Path, folder: Path) -> None:
    pid = strange.pid
    traces = (folder / f"{number}.jsonl" for number in range(9))
    for words in (
        ("doctor", "-p", pid),
        ("snapshot", "--full", "-p", pid),
        ("recipe", "check", recipe, "-p", pid),
        ("recipe", "new", "virDomainGetBlockInfo", "-p", pid, "-o", folder / "new.yaml"),
        ("recipe", "compile", "blockinfo", "--to", "python", "-o", folder / "p", "-p", pid),
        ("record", recipe, "-p", pid, "-o", next(traces), "--where", f"disk={TEXT}", "--", "true"),
        ("record", recipe, "-p", pid, "-o", next(traces), "--seconds", "0.1"),
        ("replay", recipe, "-p", pid, "-o", next(traces), "--", "true"),
        ("replay", folder / "1.jsonl", "-p", pid, "-o", next(traces), "--", "true"),
    ):
        p = ended(*words)
        print(words[0], p.decode(errors="replace"))
        assert is_told(p), words


@pytest.mark.parametrize("engine", ["gdb", "uprobes"])
def test_a_process_by_each_engine(
    strange: Strange, recipe: Path, folder: Path, engine: str
) -> None:
    words = ("record", recipe, "-p", strange.pid, "-o", folder / f"by-{engine}.jsonl")
    assert is_told(ended(*words, "--engine", engine, "--", "true"))


def test_what_a_call_tells_while_it_is_traced(strange: Strange, folder: Path) -> None:
    tracing = start(strange, folder / "live.jsonl")
    # What scanf() takes for a word.
    strange.do("call FORGED\x1b[2J\u202e\xad vd\x9b2J\u200b")
    assert is_told(tracing.finish()[1].encode())


def test_several_daemons(strange: Strange, another: Strange) -> None:
    printed = ended("record", "blockinfo", "--process", COMM)
    assert is_told(printed)
    assert [
        line for line in printed.split(b"\n") if line.startswith(f"     -p {strange.pid}".encode())
    ]


def test_what_a_killed_debugger_left(strange: Strange, library: Path) -> None:
    module = inspect(strange.pid).module(library.name)
    assert module is not None
    sections = ElfFile(library).loaded_sections().values()
    code = next(section for section in sections if section.executable)
    with open(f"/proc/{strange.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(module.base + code.address)
        memory.write(b"\xcc")
    for agreed in ((), ("--yes",)):
        assert is_told(ended("rescue", strange.pid, *agreed))
    # A module that cannot be read.
    library.write_bytes(b"")
    assert is_told(ended("rescue", strange.pid))


@pytest.mark.parametrize("command", ["status", "check blockinfo", "explain", "snapshot", "start"])
def test_inside_gdb(command: str, strange: Strange, tmp_path: Path) -> None:
    attach = f"python gdb.execute('attach {strange.pid}', to_string=True)"
    trace = tmp_path / "FORGED\x1b[2J\u202e\xad.jsonl"
    write(trace, records(TRACES[0]), "enter.values.domain".__eq__)
    file = f" {trace}" if command in ("explain", "start") else ""
    script = ("-x", SCRIPTS / "virtrace.py", "-ex", attach, "-ex", f"virtrace {command}{file}")
    done = subprocess.run(
        ["gdb", "-nx", "-batch", *script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
    )
    assert is_told(done.stdout), done.stdout


def test_every_command_is_walked() -> None:
    """Of what this file runs: the words that begin a tuple, or a call."""
    ran = set()
    for node in ast.walk(ast.parse(Path(__file__).read_text())):
        words = getattr(node, "elts", getattr(node, "args", None))
        for number in (1, 2):
            if isinstance(words, list):
                ran.add(tuple(getattr(word, "value", None) for word in words[:number]))
    assert {*_commands(build_parser())} <= ran | {("recipe", "list")}  # of what comes along


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, ...]]:
    actions = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not actions:
        yield ()
    for action in actions:
        for name, below in action.choices.items():
            yield from ((name, *more) for more in _commands(below))
