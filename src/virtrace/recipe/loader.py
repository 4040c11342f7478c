"""Read a recipe. Every error names file, line and column, what is wrong and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path as FilePath
from typing import Any, NoReturn, TypeVar

import yaml

from virtrace import documents, resources
from virtrace.errors import RecipeError, UsageError
from virtrace.files import NotRegularError, TooLargeError, read_regular
from virtrace.recipe import path, prototype, selection
from virtrace.recipe.folder import fragments, fragments_folder, shipped_folder
from virtrace.recipe.model import (
    OF,
    OF_LIBVIRT,
    STANDING,
    Answer,
    CalledBy,
    Changes,
    DriverMethod,
    Fails,
    Inside,
    Over,
    Point,
    Recipe,
    Rises,
    Span,
)
from virtrace.recipe.selection import Selection
from virtrace.trace import roles

VERSION = 1
MAX_BYTES = 1 << 16
# Declarations go through regular expressions, which long text could keep busy for hours.
MAX_TEXT = 2000
# Of spans, and of points: each is a breakpoint or more.
MAX_PROBES = 100
# Of one probe, and of an answer's `by`.
MAX_VALUES = 50
# The arguments of the function of `contents:`, and of the point at the end of the write.
WRITE_BEGINS = ("child", "offset", "bytes", "data", "start", "flags")
WRITE_ENDS = ("bs", "offset", "bytes")
# Of one probe; one of them is a breakpoint, but each is looked for.
MAX_ALTERNATIVES = 10

# The time of a condition, such as 10ms; its units, ns.
_DURATION = re.compile(r"([1-9]\d{,3})(us|ms|s)", re.A)
_UNITS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}

# What reaches GDB, or names a file, is no more than a name.
_C_NAME = re.compile(r"[A-Za-z_]\w{,199}", re.A)
_FILE_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{,199}", re.A)
_PROBE_NAME = re.compile(r"[A-Za-z_]\w{,99}:[A-Za-z_]\w{,99}", re.A)
_IN_WORDS = {
    _C_NAME: "a name as C has them, such as qemuDomainGetBlockInfo",
    _FILE_NAME: "a name of letters, digits and . _ + -, such as libvirt.so.0",
    _PROBE_NAME: "`provider:name`, such as libvirt:qemu_monitor_send_msg",
}

_NULL = "tag:yaml.org,2002:null"
_STRING = "tag:yaml.org,2002:str"
_MAPPING = "tag:yaml.org,2002:map"
_BOOLEAN = "tag:yaml.org,2002:bool"
_INTEGER = "tag:yaml.org,2002:int"
_BOOLEANS = {"true": True, "false": False}

T = TypeVar("T")


def load_recipe(file: FilePath) -> Recipe:
    """Read a recipe file. Raises RecipeError: it cannot be read, or is not a valid recipe."""
    if file.parent != shipped_folder():
        return loads(read(file), str(file))
    return _recipe(_Node(_composed(read(file), str(file), documents.LOADER), str(file)))


def read(file: FilePath) -> bytes:
    """Return the YAML of a recipe. Raises: RecipeError."""
    try:
        if file.parent == shipped_folder():
            return resources.text(file).encode()
        # Recipes come with bug reports and are read as root.
        return read_regular(file, MAX_BYTES)
    except NotRegularError as error:
        raise RecipeError(f"{file} is not a regular file", "name a recipe's YAML file") from error
    except TooLargeError as error:
        raise _too_large(str(file)) from error
    except OSError as error:
        raise RecipeError(
            f"cannot read the recipe {file}: {error.strerror}", "check its name and permissions"
        ) from error


def loads(data: bytes, file: str) -> Recipe:
    """Read a recipe.

    data: YAML, in UTF-8
    file: what to call it in errors

    Raises: RecipeError
    """
    if len(data) > MAX_BYTES:
        raise _too_large(file)
    return _recipe(_Node(_composed(data, file, _Loader), file))


def from_document(document: Mapping[str, Any], file: str) -> Recipe:
    """Read a recipe from plain data, without YAML.

    document: ``Recipe.raw``, or what a trace's header has instead: anything that JSON can hold
    file: what to call it in errors, which name no line

    Raises: RecipeError
    """
    representer = yaml.representer.SafeRepresenter(sort_keys=False)
    try:
        return _recipe(_Node(representer.represent_data(document), file))
    except RecursionError as error:
        raise RecipeError(
            f"{file}: the recipe is nested too deep", "name a recipe's YAML file"
        ) from error


def _composed(data: bytes, file: str, loader: type[yaml.SafeLoader]) -> yaml.Node:
    try:
        root = yaml.compose(data.decode("utf-8"), loader)
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{file}: not UTF-8 from byte {error.start} on", "name a recipe's YAML file"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise RecipeError(
            f"{file}{where}: not YAML: {error.problem or error.context}", "fix this line"
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{file}: not YAML: {error}", "name a recipe's YAML file") from error
    if root is None:
        raise RecipeError(f"{file}: the recipe is empty", "start from `virtrace: 1`")
    return root


def _too_large(file: str) -> RecipeError:
    return RecipeError(f"{file} is larger than {MAX_BYTES >> 10} KiB", "name a recipe's YAML file")


def dumps(raw: Mapping[str, Any]) -> bytes:
    """Write a recipe, or a part of one, as YAML. raw: as in ``Recipe.raw``."""
    return yaml.dump(raw, Dumper=_Dumper, sort_keys=False).encode()


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write in full what occurs twice: the loader takes no aliases."""
        return True


class _Loader(yaml.SafeLoader):
    """Reads strangers' recipes: in Python alone, and without aliases.

    A few lines with aliases can expand to millions.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="a recipe has no aliases", problem_mark=mark)
        return super().compose_node(parent, index)


class _Node:
    """A YAML node with its position."""

    def __init__(self, node: yaml.Node, file: str) -> None:
        self._node = node
        self._file = file

    def fail(self, what: str, remedy: str) -> NoReturn:
        mark = self._node.start_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise RecipeError(f"{self._file}{where}: {what}", remedy)

    def items(self) -> Iterator[tuple[str, _Node, _Node]]:
        if not isinstance(self._node, yaml.MappingNode):
            self.fail(f"found {self._kind}", "write `key: value` lines here")
        seen = set()
        for key_node, value_node in self._node.value:
            key = _Node(key_node, self._file)
            name = key.text()
            if name in seen:
                key.fail(f"{path.shortened(name)} is given twice", "remove one of them")
            seen.add(name)
            yield name, key, _Node(value_node, self._file)

    def mapping(
        self, required: Collection[str], optional: Collection[str] = ()
    ) -> dict[str, _Node]:
        allowed = sorted({*required, *optional})
        values = {}
        for name, key, value in self.items():
            if name not in allowed:
                close = difflib.get_close_matches(name, allowed, 1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                key.fail(
                    f"unknown key {path.shortened(name)}",
                    f"{hint}allowed here: {', '.join(allowed)}",
                )
            values[name] = value
        self.require(required, values)
        return values

    def has(self, name: str) -> bool:
        return isinstance(self._node, yaml.MappingNode) and any(
            key.value == name for key, _ in self._node.value
        )

    def with_flag(self, name: str) -> _Node:
        """A copy of the mapping with `name: true`."""
        key = yaml.ScalarNode(_STRING, name, self._node.start_mark)
        value = yaml.ScalarNode(_BOOLEAN, "true", self._node.start_mark)
        pairs = [*self._node.value, (key, value)]
        return _Node(yaml.MappingNode(_MAPPING, pairs, self._node.start_mark), self._file)

    def require(self, names: Collection[str], found: Collection[str]) -> None:
        for name in sorted(set(names) - set(found)):
            self.fail(f"the key {name!r} is missing", f"add `{name}: ...`")

    def sequence(self, most: int) -> list[_Node]:
        if not isinstance(self._node, yaml.SequenceNode):
            self.fail(f"found {self._kind}", "write a list here (lines that begin with `- `)")
        if len(self._node.value) > most:
            self.fail(f"found {len(self._node.value)} elements", f"write at most {most}")
        return [_Node(child, self._file) for child in self._node.value]

    def text(self) -> str:
        if not isinstance(self._node, yaml.ScalarNode) or self._node.tag == _NULL:
            self.fail(f"found {self._kind}", "write text here")
        text = str(self._node.value)
        if len(text) > MAX_TEXT:
            self.fail(f"found {len(text)} characters", f"write at most {MAX_TEXT}")
        return text

    def name(self, pattern: re.Pattern[str]) -> str:
        text = self.text()
        if not pattern.fullmatch(text):
            self.fail(f"found {path.shortened(text)}", f"write {_IN_WORDS[pattern]}")
        return text

    def flag(self) -> bool:
        text = self.text()
        if text not in _BOOLEANS:
            self.fail(f"found {path.shortened(text)}", "write true or false")
        return _BOOLEANS[text]

    def parsed(self, parse: Callable[[str], T], remedy: str) -> T:
        try:
            return parse(self.text())
        except ValueError as error:
            self.fail(str(error), remedy)

    def plain(self) -> Any:
        """The node as JSON has it: the version an integer, true and false booleans, else text."""
        if isinstance(self._node, yaml.MappingNode):
            return {name: value.plain() for name, _, value in self.items()}
        if isinstance(self._node, yaml.SequenceNode):
            return [_Node(child, self._file).plain() for child in self._node.value]
        text = self.text()
        if self._node.tag == _BOOLEAN and text in _BOOLEANS:
            return _BOOLEANS[text]
        return VERSION if self._node.tag == _INTEGER and text == str(VERSION) else text

    @property
    def _kind(self) -> str:
        if isinstance(self._node, yaml.MappingNode):
            return "a mapping"
        if isinstance(self._node, yaml.SequenceNode):
            return "a list"
        return "nothing" if self._node.tag == _NULL else path.shortened(self._node.value)


def _require_a_beginning(
    root: _Node, keys: Mapping[str, _Node], spans: Sequence[Span], points: Sequence[Point]
) -> None:
    if not any(span.root for span in spans):
        if spans:
            keys["spans"].fail(
                "no span is a root", "mark the API function that starts a call with `root: true`"
            )
        if not any(point.anywhere for point in points):
            root.fail(
                "nothing would be recorded: there is no span, and no point is recorded anywhere",
                "add `spans:` with a root, `use_anywhere:`, or `anywhere: true` to a point",
            )


def _recipe(root: _Node) -> Recipe:
    keys = root.mapping(
        {"virtrace", "name", "about", "try"},
        {"spans", "points", *_USE, "where", "calls", "seconds", "waits"},
    )
    version = keys["virtrace"]
    if version.text() != str(VERSION):
        version.fail(
            f"this is a recipe of version {version.text()}",
            f"this virtrace reads version {VERSION}: use a newer virtrace",
        )
    nodes = {
        key: keys[key].sequence(MAX_PROBES) if key in keys else [] for key in ("spans", "points")
    }
    used = [*_used(keys)]
    nodes["points"] = [*used, *nodes["points"]]
    raw = {key: node.plain() for key, node in keys.items() if key not in _USE}
    if used:
        raw["points"] = [node.plain() for node in nodes["points"]]
    # Each with its alternatives.
    all_spans = [(node, [*_spans(node)]) for node in nodes["spans"]]
    all_points = [(node, [*_points(node)]) for node in nodes["points"]]
    asked = {point.answers.point for _, some in all_points for point in some if point.answers}
    all_points = [(node, [_with_role(point, asked) for point in some]) for node, some in all_points]
    spans = [span for _, some in all_spans for span in some]
    points = [point for _, some in all_points for point in some]
    _require_a_beginning(root, keys, spans, points)
    recipe = Recipe(
        name=keys["name"].name(_FILE_NAME),
        about=keys["about"].text().strip(),
        try_=keys["try"].text(),
        spans=tuple(spans),
        points=tuple(points),
        raw=raw,
        used=len(used),
        waits="waits" in keys and keys["waits"].flag(),
    )
    names = set()
    named = [*((node, some[0].name) for node, some in all_spans)]
    named += [(node, some[0].name) for node, some in all_points]
    for node, name in named:
        if name in names:
            node.fail(f"a second probe is named {name!r}", "give each its own name")
        names.add(name)
    for node, point in [(node, point) for node, some in all_points for point in some]:
        if point.answers:
            _check_answers(node, point, point.answers, points)
    _check_all_inside([*all_spans, *all_points], recipe)
    return _selecting(recipe, keys)


# Keys that name fragments, and whether their points are also recorded outside of calls.
_USE = {"use": False, "use_anywhere": True}


def _used(keys: Mapping[str, _Node]) -> Iterator[_Node]:
    """The points of the fragments that a recipe uses."""
    for key in _USE:
        for name in keys[key].sequence(MAX_PROBES) if key in keys else ():
            if name.text() not in fragments():
                name.fail(
                    f"there is no fragment {path.shortened(name.text())}",
                    f"use one of: {', '.join(fragments())}",
                )
            yield from _fragment(name.text(), anywhere=_USE[key])


def fragment(name: str) -> list[dict[str, Any]]:
    """Return the points of a fragment as plain data."""
    return [node.plain() for node in _fragment(name, anywhere=False)]


def _fragment(name: str, *, anywhere: bool) -> Iterator[_Node]:
    for point in _fragment_root(name).mapping({"about", "points"})["points"].sequence(MAX_PROBES):
        # A reply is recorded with its request, wherever that was.
        yield point.with_flag("anywhere") if anywhere and not point.has("answers") else point


@cache
def _fragment_root(name: str) -> _Node:
    # Many recipes use the same few.
    file = fragments_folder() / f"{name}.yaml"
    data = resources.text(file).encode()
    return _Node(_composed(data, str(file), documents.LOADER), str(file))


def _selecting(recipe: Recipe, keys: Mapping[str, _Node]) -> Recipe:
    """The recipe with its filters and limits, by the rules of those that the user gives."""

    def chosen(node: _Node, **given: Any) -> Selection:
        try:
            return selection.parse_selection(
                recipe, **{"where": [], "calls": None, "seconds": None, **given}
            )
        except UsageError as error:
            node.fail(error.what, error.remedy)

    limits = {}
    for what in [one for one in ("calls", "seconds") if one in keys]:
        # Nothing is no limit where the user gives it, and no number here.
        limit = chosen(keys[what], **{what: keys[what].text() or "nothing"})
        limits[what] = getattr(limit, what)
    where: dict[str, str] = {}
    for name, key, value in keys["where"].items() if "where" in keys else ():
        key.name(_C_NAME)
        if len(where) == MAX_VALUES:
            key.fail(f"found more than {MAX_VALUES} values", "use fewer filters")
        where.update(chosen(key, where=[f"{name}={value.text()}"]).where)
    return replace(recipe, raw={**recipe.raw, **limits}, where=where, **limits)


def _with_role(point: Point, asked: Collection[str]) -> Point:
    """Give a point the role that it has without `role:`. asked: names that others answer."""
    implied = roles.of_point(
        point.name, is_answered=point.name in asked, answers=point.answers is not None
    )
    return replace(point, role=point.role or implied)


def _check_answers(node: _Node, point: Point, answers: Answer, points: list[Point]) -> None:
    asked = [other for other in points if other.name == answers.point]
    if not asked:
        node.fail(
            f"{point.name!r} answers {answers.point!r}, which is not a point of this recipe",
            f"name one of: {', '.join(dict.fromkeys(other.name for other in points))}",
        )
    for one in (point, *asked):
        known = {*one.capture, *(["json"] if one.json else ())}
        for name in answers.by:
            # What neither has would agree always.
            if name.split(".")[0] not in known:
                node.fail(
                    f"{name!r}, by which it answers, is not a value of {one.name!r}",
                    f"name one of: {', '.join(sorted(known)) or 'none, capture one'}",
                )


def _check_all_inside(
    probes: Sequence[tuple[_Node, Sequence[Span | Point]]], recipe: Recipe
) -> None:
    for node, alternatives in probes:
        for probe in alternatives:
            if probe.inside:
                _check_inside(node, probe, probe.inside, recipe)


def _check_inside(node: _Node, probe: Span | Point, inside: Inside, recipe: Recipe) -> None:
    others = recipe.points if inside.of_point else recipe.spans
    found = [other for other in others if other.name == inside.name and other is not probe]
    if not found or (inside.of_point and isinstance(probe, Point)):
        node.fail(
            f"{probe.name!r} is inside {inside.name!r}, which is no such probe of this recipe",
            "name a span, or, of a span, the point that asked for it",
        )
    for other in found:
        for own, its in inside.by.items():
            here = probe.enter if isinstance(probe, Span) else probe.capture
            there = other.enter if isinstance(other, Span) else other.capture
            known = {*there, *(["json"] if isinstance(other, Point) and other.json else ())}
            if own not in here or its.split(".")[0] not in known:
                node.fail(
                    f"{own!r} and {its!r}, by which it is inside, are not both captured",
                    "capture them at the entry, such as `by: {node: node}`",
                )


_DECLARATION = "write it as C declares it, such as `int virDomainGetState(virDomainPtr domain)`"


def _captures(node: _Node | None, known: set[str] | None) -> dict[str, path.Path]:
    """known: the names of the arguments, where the recipe declares them."""
    captures: dict[str, path.Path] = {}
    for name, key, value in node.items() if node else ():
        key.name(_C_NAME)
        if len(captures) == MAX_VALUES:
            key.fail(f"found more than {MAX_VALUES} values", "split it into two recipes")
        captures[name] = parsed = value.parsed(path.parse_path, "such as: disk")
        for argument in parsed.arguments:
            if known is not None and argument not in known:
                value.fail(
                    f"{argument!r} is not an argument", f"use one of: {', '.join(sorted(known))}"
                )
    return captures


def _alternatives(
    node: _Node, own: Collection[str], shared: Collection[str]
) -> Iterator[tuple[_Node, dict[str, _Node]]]:
    """The keys of a probe; of one with `any_of`, those of each alternative and what they share.

    own: the keys that an alternative may have, instead of those of the probe.
    """
    keys = node.mapping((), {*own, *shared, "any_of"})
    if "any_of" not in keys:
        yield node, keys
        return
    node.require({"name"}, keys)
    any_of = keys.pop("any_of")
    alternatives = any_of.sequence(MAX_ALTERNATIVES)
    if not alternatives:
        any_of.fail("found no alternative", "write where it may be, such as `- function: f`")
    for alternative in alternatives:
        yield alternative, {**keys, **alternative.mapping((), own)}


def _spans(node: _Node) -> Iterator[Span]:
    own = {"function", "prototype", "module", "find", "enter", "exit", "lines"}
    for where, keys in _alternatives(
        node, own, {"name", "root", "optional", "role", "of", "inside"}
    ):
        where.require({"module"}, keys)
        yield _span(where, keys)


def _span(node: _Node, keys: Mapping[str, _Node]) -> Span:
    if ("function" in keys) == ("prototype" in keys):
        node.fail(
            "a span names its function once",
            "write `prototype:` for an exported function, `function:` for any other",
        )
    if "prototype" in keys:
        declared = keys["prototype"].parsed(prototype.parse_prototype, _DECLARATION)
        known = {parameter.name for parameter in declared.parameters} | {path.CALLER}
        function = declared.name
    elif "find" in keys:
        keys["find"].fail(
            "`find:` needs the declaration of the function",
            "write `prototype:` instead of `function:`",
        )
    else:
        declared, known, function = None, None, keys["function"].name(_C_NAME)
    enter = _captures(keys.get("enter"), known)
    exit_ = _captures(keys.get("exit"), known and known | {path.RETURN})
    return Span(
        name=keys["name"].name(_C_NAME) if "name" in keys else function,
        function=function,
        module=keys["module"].name(_FILE_NAME),
        root="root" in keys and keys["root"].flag(),
        optional="optional" in keys and keys["optional"].flag(),
        role=_role(keys["role"], roles.OF_SPANS) if "role" in keys else roles.of_span(enter, exit_),
        prototype=declared,
        find=_find(keys["find"]) if "find" in keys else None,
        enter=enter,
        exit=exit_,
        # Debug info has the local variables; nothing else that is known here does.
        lines=_watched(keys["lines"]) if "lines" in keys else None,
        of=_of(keys),
        inside=_inside(keys["inside"]) if "inside" in keys else None,
    )


def _of(keys: Mapping[str, _Node]) -> str:
    of = keys["of"].text() if "of" in keys else OF_LIBVIRT
    if of not in OF:
        keys["of"].fail(f"found {path.shortened(of)}", f"use one of: {', '.join(OF)}")
    return of


def _role(node: _Node, known: Sequence[str]) -> str:
    role = node.text()
    if role not in known:
        node.fail(f"{path.shortened(role)} is not a role", f"use one of: {', '.join(known)}")
    return role


def _watched(node: _Node) -> dict[str, path.Path]:
    watched = _captures(node, None)
    for name, _, value in node.items():
        if isinstance(watched[name].form, path.Backtrace):
            value.fail(
                "a backtrace is not a value that a line can change",
                "move it to `enter:` or `exit:`",
            )
    return watched


def _find(node: _Node) -> DriverMethod | CalledBy:
    keys = node.mapping((), {"driver_method", "called_by", "calls"})
    names = {key: value.name(_C_NAME) for key, value in keys.items()}
    if set(names) == {"driver_method"}:
        return DriverMethod(names["driver_method"])
    if set(names) == {"called_by", "calls"}:
        return CalledBy(names["called_by"], names["calls"])
    node.fail(
        "a function is found by `driver_method:`, or by `called_by:` and `calls:`",
        "such as `find: {driver_method: virDomainGetBlockInfo}`",
    )


def _points(node: _Node) -> Iterator[Point]:
    own = {"module", "prototype", "usdt", "arguments", "at", "capture"}
    shared = {"name", "json", "answers", "anywhere", "optional", "role", "of"}
    shared |= {"inside", "when", "standing", "every", "contents", "variables"}
    for where, keys in _alternatives(node, own, shared):
        where.require({"name", "module"}, keys)
        yield _point(where, keys)


def _when(node: _Node, known: Collection[str]) -> Rises | Changes | Fails | Over:
    keys = node.mapping((), {"rises", "changes", "per", "fails", "over", "thread"})
    if "over" in keys:
        if not keys.keys() <= {"over", "thread"} or path.RETURN not in known:
            node.fail(
                "how long a function took is known at its return",
                "write `at: return` and `when: {over: 10ms}`",
            )
        on_main = "thread" in keys
        if on_main and keys["thread"].text() != "main":
            keys["thread"].fail("found another thread", "write `thread: main`, or remove it")
        return Over(keys["over"].parsed(_duration, "such as: 10ms"), on_main)
    if "fails" in keys:
        if keys["fails"].text() != path.RETURN or len(keys) > 1 or path.RETURN not in known:
            node.fail(
                "what fails is the function of a point at its return",
                "write `at: return` and `when: {fails: return}`",
            )
        return Fails()
    changes = "changes" in keys
    keys = node.mapping({"changes"}, {"per"}) if changes else node.mapping({"rises", "per"})
    paths = {
        name: value.parsed(path.parse_path, "such as: bs->node_name")
        for name, value in keys.items()
    }
    forms = (path.Member, path.Argument) if changes else path.Member
    for name, parsed in paths.items():
        if not isinstance(parsed.form, forms) or not {*parsed.arguments} <= {*known}:
            or_itself = "an argument, or " if changes else ""
            keys[name].fail(
                f"{path.shortened(parsed.text)} is not {or_itself}a member of what an argument "
                "leads to",
                "such as: bs->node_name",
            )
    if changes:
        return Changes(paths["changes"], paths.get("per"))
    return Rises(paths["rises"], paths["per"])


def _duration(text: str) -> int:
    """Return the ns that a text such as 10ms says. Raises: ValueError."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{path.shortened(text)} is no time in us, ms or s of up to 4 digits")
    return int(found[1]) * _UNITS[found[2]]


def _contents(node: _Node, ends: prototype.Prototype) -> prototype.Prototype:
    """ends: the function at the end of the write."""
    begins = node.parsed(prototype.parse_prototype, _DECLARATION)
    for declared, wanted in ((begins, WRITE_BEGINS), (ends, WRITE_ENDS)):
        if tuple(parameter.name for parameter in declared.parameters) != wanted:
            node.fail(
                f"{path.shortened(declared.name)} has not the arguments {', '.join(wanted)}",
                "a write begins in bdrv_co_pwritev_part of QEMU, and ends in bdrv_set_dirty",
            )
    return begins


def _inside(node: _Node) -> Inside:
    keys = node.mapping((), {"point", "span", "by"})
    if ("point" in keys) == ("span" in keys):
        node.fail("it is inside one point or one span", "such as `inside: {span: qmp_dispatch}`")
    by = {own: its.text() for own, _, its in keys["by"].items()} if "by" in keys else {}
    if "point" in keys and not by:
        node.fail("found nothing that it shares with the point", "such as `by: {id: json.id}`")
    name = keys["point" if "point" in keys else "span"].text()
    return Inside(name, by, of_point="point" in keys)


def _answer(node: _Node) -> Answer:
    keys = node.mapping({"point", "by"})
    by = tuple(value.text() for value in keys["by"].sequence(MAX_VALUES))
    if not by:
        keys["by"].fail("found nothing to answer by", "name values, such as [mon, json.id]")
    return Answer(keys["point"].text(), by)


def _place(node: _Node, keys: Mapping[str, _Node]) -> tuple[prototype.Prototype, dict[str, Any]]:
    """Where a point is: its declaration, and the fields of Point that say how it is found."""
    if "usdt" in keys:
        if "arguments" not in keys or "prototype" in keys or "at" in keys:
            node.fail(
                "a static probe declares `arguments:`, and nothing else of a function",
                "such as `arguments: void *mon, char *text`",
            )
        usdt = keys["usdt"].name(_PROBE_NAME)
        parameters = keys["arguments"].parsed(prototype.parse_parameters, _DECLARATION)
        return prototype.Prototype(usdt, "void", parameters), {"usdt": usdt}
    if "prototype" in keys:
        if "arguments" in keys:
            keys["arguments"].fail("a function's arguments are in its `prototype:`", "remove this")
        declared = keys["prototype"].parsed(prototype.parse_prototype, _DECLARATION)
        at = keys["at"].text() if "at" in keys else "entry"
        if at not in ("entry", "return"):
            keys["at"].fail(f"found {at!r}", "write entry or return")
        return declared, {"at_return": at == "return"}
    if "standing" in keys:
        standing = keys["standing"].text()
        if standing not in STANDING or "capture" in keys:
            keys["standing"].fail(
                f"found {path.shortened(standing)}, or a capture",
                f"write {' or '.join(STANDING)}, which have values of their own",
            )
        every = keys["every"].parsed(_duration, "such as: 1s") if "every" in keys else None
        return prototype.Prototype(standing, "void", ()), {"standing": standing, "every": every}
    node.fail("a point is a static probe or a function", "write `usdt:` or `prototype:`")


def _point(node: _Node, keys: Mapping[str, _Node]) -> Point:
    declared, place = _place(node, keys)
    known = {parameter.name for parameter in declared.parameters}
    if "usdt" not in place:
        known |= {path.CALLER, path.RETURN} if place.get("at_return") else {path.CALLER}
    when = _when(keys["when"], known) if "when" in keys else None
    if "every" in keys and "standing" not in place:
        keys["every"].fail("a point is met when its code runs", "remove it, or use `standing:`")
    if isinstance(when, (Rises, Changes)) and place != {"at_return": False}:
        keys["when"].fail("a value rises or changes at the entry of a function", "remove it")
    if "contents" in keys and not isinstance(when, Rises):
        keys["contents"].fail("what is written is compared where a value rises", "add `when:`")
    variables: tuple[prototype.Parameter, ...] = ()
    if "variables" in keys:
        variables = keys["variables"].parsed(prototype.parse_parameters, _DECLARATION)
        if place != {"at_return": False} or known & {variable.name for variable in variables}:
            keys["variables"].fail(
                "variables are read at the entry of a function, under names of their own",
                "such as `variables: RAMState *ram_state`",
            )
    known |= {variable.name for variable in variables}
    captures = _captures(keys.get("capture"), known)
    answers = _answer(keys["answers"]) if "answers" in keys else None
    json = keys["json"].text() if "json" in keys else None
    if json is not None and (json not in captures or "json" in captures):
        keys["json"].fail(
            f"{path.shortened(json)} is not captured, or `json` is",
            "name a value of `capture:`, which must leave the name json free",
        )
    return Point(
        name=keys["name"].name(_FILE_NAME),
        module=keys["module"].name(_FILE_NAME),
        prototype=declared,
        anywhere="anywhere" in keys and keys["anywhere"].flag(),
        optional="optional" in keys and keys["optional"].flag(),
        role=_role(keys["role"], roles.OF_POINTS) if "role" in keys else None,
        capture=captures,
        json=json,
        answers=answers,
        of=_of(keys),
        inside=_inside(keys["inside"]) if "inside" in keys else None,
        when=when,
        variables=variables,
        contents=_contents(keys["contents"], declared) if "contents" in keys else None,
        **place,
    )
