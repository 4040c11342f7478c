"""Whatever a stranger writes into a recipe: it is read, or refused with a RecipeError, soon.

VIRTRACE_FUZZ=N tries N inputs of each kind instead of a few.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.command import VIRTRACE
from tests.support.paths import REPOSITORY
from virtrace.errors import RecipeError
from virtrace.recipe import catalogue, path, prototype
from virtrace.recipe.loader import (
    MAX_ALTERNATIVES,
    MAX_BYTES,
    MAX_PROBES,
    MAX_TEXT,
    MAX_VALUES,
    loads,
)
from virtrace.recipe.model import Recipe

T = TypeVar("T")
EXAMPLES = int(os.environ.get("VIRTRACE_FUZZ", "200"))
# Of processor time, for one input.
SECONDS = 5.0
MEGABYTES = 200

many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

SHIPPED = [catalogue.file_of(name).read_text() for name in catalogue.shipped()]
WORDS = sorted({word for text in SHIPPED for word in text.split()})
KEYS = (
    *(
        "virtrace",
        "name",
        "about",
        "try",
        "spans",
        "points",
        "where",
        "seconds",
        "prototype",
        "function",
        "module",
    ),
    *("root", "optional", "find", "driver_method", "called_by", "calls", "enter", "exit", "lines"),
    *("any_of", "usdt", "arguments", "at", "anywhere", "capture", "json", "answers", "point", "by"),
)
C_TEXT = st.text(st.sampled_from("ab_ \t\n*&()[]{},;.->/%$'\"0189éint") | st.characters())


def joined(*tokens: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(tokens), max_size=12).map("".join)


PATHS = joined(
    *("a", "b", "text", "->", ".", "*", " ", "return", "caller()", ", ", ")", "é"),
    *("format(", "typed(", "records(", "array(", "backtrace("),
)
PARAMETERS = joined(*("int a", "char *b", "vir", "Ptr ", "const ", "*", " ", ", ", "...", "void"))
DECLARATIONS = st.builds("{} f({})".format, joined("int", " ", "*", "const "), PARAMETERS)
SCALARS = st.one_of(
    st.sampled_from([1, True, False, None, "f", "m", "a", "return", "caller()", "int f(int a)"]),
    st.sampled_from(
        ["*a", "a->b", "format(a, a)", "typed(a, a->b)", "backtrace(a)", "libvirt:probe", "json.id"]
    ),
    C_TEXT | PATHS | DECLARATIONS,
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | C_TEXT, inner, max_size=8)
    ),
    max_leaves=30,
)


def mostly(
    *good: object, else_: st.SearchStrategy[object] = DOCUMENTS
) -> st.SearchStrategy[object]:
    """One of these; now and then another."""
    return st.integers(0, 29).flatmap(lambda n: st.sampled_from(good) if n else else_)


def captures(*good: str) -> st.SearchStrategy[object]:
    return st.dictionaries(mostly("a", "b", "text", else_=C_TEXT), mostly(*good), max_size=3)


FUNCTION = "int f(int a, char *text)"
SPANS = st.fixed_dictionaries(
    {"module": mostly("m"), "prototype": mostly(FUNCTION), "root": mostly(True)},
    optional={
        "optional": mostly(True),
        "find": mostly({"driver_method": "a"}, {"called_by": "a", "calls": "b"}),
        "enter": captures("a", "text->a", "*text", "caller()", "backtrace(a)"),
        "exit": captures("return", "typed(text, a)", "records(text, return)"),
        "lines": captures("a", "local", "backtrace(a)"),
        "name": mostly("s"),
        "any_of": st.lists(mostly({"function": "g"}, {"prototype": FUNCTION}, {"module": "n"})),
    },
)
POINTS = st.fixed_dictionaries(
    {"name": mostly("p", "q", "r"), "module": mostly("m"), "capture": captures("a", "text")},
    optional={
        "anywhere": mostly(True),
        "optional": mostly(True),
        "json": mostly("text"),
        "answers": mostly({"point": "p", "by": ["a"]}),
    },
)
PROBES = st.sampled_from(
    [{"prototype": FUNCTION}, {"prototype": FUNCTION, "at": "return"},
     {"usdt": "a:b", "arguments": "int a, char *text"}]
)  # fmt: skip


@st.composite
def recipes(draw: st.DrawFn) -> str:
    """A recipe in the right shape, with now and then anything in its places."""
    points = st.builds(lambda probe, point: {**probe, **point}, PROBES, POINTS)
    document = {
        "virtrace": draw(mostly(1)),
        "name": draw(mostly("n")),
        "about": draw(mostly("a")),
        "try": draw(mostly("t")),
        "spans": draw(st.lists(SPANS, min_size=1, max_size=2)),
        "points": draw(st.lists(points, max_size=3)),
        "where": draw(captures("vm1")),
        "calls": draw(mostly(1)),
        "seconds": draw(mostly(0.5)),
    }
    return yaml.safe_dump(document, allow_unicode=True)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A shipped recipe with some of its words gone, doubled or others."""
    words = draw(st.sampled_from(SHIPPED)).split(" ")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(words) - 1))
        word = draw(st.sampled_from(["", words[at] * 2, "\n", "&a", "*a", "!!x", "{", "[", "- "])
                    | st.sampled_from(WORDS) | C_TEXT)  # fmt: skip
        words[at] = word
    return " ".join(words)


def tried(read: Callable[[], T], refusal: type[Exception]) -> T | Exception:
    """What was read or why not, after a bounded time."""
    began = time.process_time()
    try:
        return read()
    except refusal as error:
        return error
    finally:
        assert time.process_time() - began < SECONDS


class Members:
    """The members on a chain (path.Visitor)."""

    def start(self, name: str) -> list[str]:
        return []

    def member(self, base: list[str], name: str) -> list[str]:
        return [*base, name]

    def target(self, base: list[str]) -> list[str]:
        return base


class Stars:
    """The number of dereferences on a chain (path.Visitor)."""

    def start(self, name: str) -> int:
        return 0

    def member(self, base: int, name: str) -> int:
        return base

    def target(self, base: int) -> int:
        return base + 1


def load(data: bytes) -> None:
    recipe = tried(lambda: loads(data, "r.yaml"), RecipeError)
    if isinstance(recipe, RecipeError):
        assert recipe.what.startswith("r.yaml")
        # What it shows of the text is no longer than a person reads.
        assert len(recipe.what) < MAX_TEXT
        assert recipe.remedy
        return
    assert isinstance(recipe, Recipe)
    assert len(recipe.spans) <= MAX_PROBES * MAX_ALTERNATIVES
    assert len(recipe.points) <= MAX_PROBES * MAX_ALTERNATIVES
    for probe in recipe.probes:
        assert len(probe.captures) <= 2 * MAX_VALUES
        for capture in probe.captures.values():
            for chain in capture.chains:
                assert len(path.follow(chain, Members())) <= 15
                assert path.follow(chain, Stars()) <= 3
    assert json.loads(json.dumps(recipe.raw)) == recipe.raw
    assert recipe.roots or any(point.anywhere for point in recipe.points)


@many
@given(st.binary(max_size=400))
def test_bytes(data: bytes) -> None:
    load(data)


@many
@given(st.text(max_size=400))
def test_text(text: str) -> None:
    load(text.encode("utf-8", "surrogatepass"))


@many
@given(DOCUMENTS.map(lambda document: yaml.safe_dump(document, allow_unicode=True)))
def test_documents(text: str) -> None:
    load(text.encode())


@many
@given(recipes())
def test_recipes(text: str) -> None:
    load(text.encode())


@many
@given(mutated())
def test_mutations(text: str) -> None:
    load(text.encode("utf-8", "surrogatepass"))


@many
@given(C_TEXT | PATHS)
def test_captures(text: str) -> None:
    parsed = tried(lambda: path.parse_path(text), ValueError)
    if isinstance(parsed, Exception):
        assert len(str(parsed)) < MAX_TEXT
        return
    members = [name for chain in parsed.chains for name in path.follow(chain, Members())]
    names = [name for name in (*members, *parsed.arguments) if name != path.CALLER]
    assert all(name.isidentifier() and name.isascii() for name in names)


@many
@given(C_TEXT | DECLARATIONS)
def test_declarations(text: str) -> None:
    parsed = tried(lambda: prototype.parse_prototype(text), ValueError)
    if isinstance(parsed, Exception):
        assert len(str(parsed)) < MAX_TEXT
        return
    names = [parsed.name, *(parameter.name for parameter in parsed.parameters)]
    assert all(name.isidentifier() and name.isascii() for name in names)


TARGET = REPOSITORY / "tests" / "support" / "fuzz_recipe.py"


def test_guided_by_coverage(tmp_path: Path) -> None:
    """What libFuzzer finds new ways through, from the shipped recipes on."""
    pytest.importorskip("atheris", reason="no atheris for this Python on this processor")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, text in enumerate(SHIPPED):
        (corpus / str(number)).write_text(text)
    words = tmp_path / "words"
    words.write_text("".join(f'"{word}: "\n' for word in KEYS))
    # The target itself limits the processor time.
    bounds = ("-timeout=120", f"-rss_limit_mb={MEGABYTES}", f"-max_len={MAX_BYTES}")
    fuzzer = [sys.executable, str(TARGET), str(corpus), f"-dict={words}", f"-runs={EXAMPLES}"]
    fuzzed = subprocess.run(
        # The limit goes by the high-water mark, too.
        [sys.executable, "-c", MEASURE, *fuzzer, "-seed=1", *bounds],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert fuzzed.returncode == 0, fuzzed.stderr[-4000:]
    assert f"Done {EXAMPLES} runs" in fuzzed.stderr


# A process's high-water mark begins with that of the one it was forked from: a small one.
MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime, used.ru_maxrss)
sys.exit(status)
"""
HOSTILE = {
    "deep lists": "[",
    "deep mappings": "{",
    "lists": "[],",
    "lists in lists": "[[],",
    "lines": "- \n",
    "keys": "a:\n ",
    "tags": "!!map {",
    "anchors": "&a ",
    "quotes": "'",
    "spaces": " ",
    "tabs": "\t",
    "merges": "<<: ",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=list(HOSTILE))
@pytest.mark.parametrize("start", ["", "["], ids=["alone", "in a list"])
def test_the_largest_file_is_read_soon_in_little_memory(
    tmp_path: Path, start: str, unit: str
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text((start + unit * MAX_BYTES)[:MAX_BYTES])
    reader = [*VIRTRACE, "recipe", "check", str(file)]
    reading = subprocess.run(
        [sys.executable, "-c", MEASURE, *reader], capture_output=True, text=True
    )
    assert (reading.returncode, reading.stderr[: len(f"virtrace: {file}")]) == (
        2,
        f"virtrace: {file}",
    )
    seconds, kilobytes = reading.stdout.split()
    assert float(seconds) < SECONDS
    assert int(kilobytes) < MEGABYTES << 10


@pytest.mark.parametrize("unit", ["a", " ", "*", "a ", "* ", "a*", "(", "a,", "int a,"])
def test_the_longest_declarations_are_read_soon(unit: str) -> None:
    text = (unit * MAX_TEXT)[: MAX_TEXT - 20]
    for declaration in (text, f"{text}(", f"{text[:900]}({text[:900]})", f"int f({text})"):
        began = time.process_time()
        # As many as fit into a recipe.
        for _ in range(MAX_BYTES // MAX_TEXT):
            with contextlib.suppress(ValueError):
                prototype.parse_prototype(declaration)
        assert time.process_time() - began < SECONDS
