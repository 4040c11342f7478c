"""The schema of recipes takes what the loader takes, and refuses what has another structure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.support.paths import DOCS, REPOSITORY
from tests.unit.test_recipe import BROKEN, BROKEN_ALTERNATIVES, GOOD, JOB, ROOTLESS, changed
from virtrace.errors import RecipeError
from virtrace.recipe import catalogue, loader
from virtrace.recipe.folder import fragments
from virtrace.recipe.loader import loads
from virtrace.trace import roles

SCHEMA = json.loads((Path(loader.__file__).parent / "schema.json").read_text())
VALIDATOR = jsonschema_rs.Draft202012Validator(SCHEMA)
DOCUMENTATION = (DOCS / "recipes.md").read_text()
FIRST = (DOCS / "first-recipe.md").read_text()
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", DOCUMENTATION + FIRST, re.M | re.S)
SHIPPED = {name: catalogue.file_of(name).read_text() for name in catalogue.shipped()}
# What only the loader can know: it takes the parts of a recipe together, or reads the C in them.
BEYOND_A_SCHEMA = (
    "'name' is given twice",
    "is not an arg",
    "not a point of this recipe",
    "a second probe",
    "declaration",
    "not YAML",
    "needs the declaration",
    "not a value of",
    "by which it answers",
    "is not a filter",
    "is inside 'other'",
    "'domain' and 'jsn.id', by which",
    "'a->a' is not a member",
    "a value rises or changes at the entry",
    "'other' is not an argument, or",
    "what fails is the function",
    "how long a function took",
    "found 'yes'",  # which YAML itself takes for true
)
TOGETHER = ("'module' is missing", "is not captured", "names its function once")


HEAD = "virtrace: 1\nname: example\nabout: a\ntry: t\n"


def whole(example: str) -> str:
    """An example of the documentation shows a part: the rest is taken from a sound recipe."""
    if "virtrace: 1" in example:
        return example
    head = HEAD
    if example.startswith("points:") and "anywhere: true" not in example:
        head += "spans: [{function: f, module: m, root: true}]\n"
    return head + example


def refused(text: str) -> bool:
    return not VALIDATOR.is_valid(yaml.safe_load(text))


def test_is_a_valid_schema() -> None:
    jsonschema_rs.meta.validate(SCHEMA)


def test_lists_roles_and_fragments() -> None:
    defs = SCHEMA["$defs"]
    assert tuple(defs["span"]["properties"]["role"]["enum"]) == roles.OF_SPANS
    assert tuple(defs["point"]["properties"]["role"]["enum"]) == roles.OF_POINTS
    assert tuple(defs["fragments"]["items"]["enum"]) == fragments()


@pytest.mark.parametrize(
    "text",
    [*SHIPPED.values(), GOOD, ROOTLESS, JOB, *map(whole, EXAMPLES)],
    ids=[
        *SHIPPED,
        "good",
        "rootless",
        "alternatives",
        *(f"example {n}" for n in range(len(EXAMPLES))),
    ],
)
def test_takes_what_the_loader_takes(text: str) -> None:
    VALIDATOR.validate(yaml.safe_load(text))
    VALIDATOR.validate(loads(text.encode(), "r.yaml").raw)


@pytest.mark.parametrize(("old", "new", "where", "what", "remedy"), BROKEN)
def test_refuses_another_structure(old: str, new: str, where: str, what: str, remedy: str) -> None:
    if any(known in what for known in BEYOND_A_SCHEMA):
        return
    assert refused(changed(old, new))


@pytest.mark.parametrize(("old", "new", "where", "what", "remedy"), BROKEN_ALTERNATIVES)
def test_refuses_other_alternatives(old: str, new: str, where: str, what: str, remedy: str) -> None:
    # What a probe and its alternatives have together takes the loader.
    if not any(known in what for known in (*BEYOND_A_SCHEMA, *TOGETHER)):
        assert refused(JOB.replace(old, new))


def probes(of: str, number: int) -> str:
    spans = "".join(f"- {{function: f{i}, module: m, root: true}}\n" for i in range(number))
    points = "".join(
        f"- {{name: p{i}, module: m, prototype: int f(int a), anywhere: true}}\n"
        for i in range(number)
    )
    return f"virtrace: 1\nname: n\nabout: a\ntry: t\n{of}:\n{spans if of == 'spans' else points}"


def alternatives(number: int) -> str:
    listed = ", ".join(f"{{function: f{n}}}" for n in range(number))
    return f"{HEAD}spans: [{{name: a, module: m, root: true, any_of: [{listed}]}}]\n"


def captures(number: int, path: str = "return") -> str:
    exit_ = ", ".join(f"k{i}: {path}" for i in range(number))
    return changed("exit: {result: return, state: '*state'}", f"exit: {{{exit_}}}")


@pytest.mark.parametrize(
    ("most", "more"),
    [
        (probes("spans", 100), probes("spans", 101)),
        (probes("points", 100), probes("points", 101)),
        (alternatives(10), alternatives(11)),
        (captures(50), captures(51)),
        (captures(1, "domain" + "->a" * 15), captures(1, "domain" + "->a" * 16)),
        (captures(1, "'***state'"), captures(1, "'****state'")),
        (captures(1, "domain->" + "a" * 192), captures(1, "domain->" + "a" * 193)),
        (
            changed("name: states", f"name: {'a' * 200}"),
            changed("name: states", "name: " + "a" * 201),
        ),
        (changed("try: virsh", "try: " + "a" * 1983), changed("try: virsh", "try: " + "a" * 1985)),
    ],
)
def test_bounds_are_the_loaders(most: str, more: str) -> None:
    assert loads(most.encode(), "r.yaml")
    assert not refused(most)
    assert refused(more)
    with pytest.raises(RecipeError):
        loads(more.encode(), "r.yaml")


def test_the_documentation_describes_every_key() -> None:
    definitions = SCHEMA["$defs"]
    parts: list[Any] = [SCHEMA, definitions["span"], definitions["point"]]
    parts += definitions["span"]["properties"]["find"]["oneOf"]
    parts.append(definitions["point"]["properties"]["answers"])
    parts += [definitions["spanAlternative"], definitions["pointAlternative"]]
    rows = set(re.findall(r"^\| `([\w.]+)` ", DOCUMENTATION, re.M))
    for part in parts:
        assert set(part["properties"]) <= {row.split(".")[-1] for row in rows}


@pytest.mark.parametrize("name", catalogue.shipped())
def test_shipped_recipes_name_their_schema(name: str) -> None:
    first = SHIPPED[name].splitlines()[0]
    match = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", first)
    assert match
    assert (catalogue.file_of(name).parent / match[1]).resolve() == (
        REPOSITORY / "src/virtrace/recipe/schema.json"
    )
