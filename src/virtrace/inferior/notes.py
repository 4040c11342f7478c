"""Notes of what the user inspects by hand in GDB, saved as a recipe.

GDB itself knows the breakpoints and displays. What was printed it shows only once, so each
command that prints is noted, with the function in which it was typed. Nothing here runs during a
trace.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent

import gdb

from virtrace.binary.ctype import Array, CType, Integer, Opaque, Pointer, Struct
from virtrace.errors import TargetError, Unavailable, UsageError
from virtrace.files import write_new
from virtrace.image.process import Process, inspect
from virtrace.inferior import facts, handmade, target
from virtrace.inferior.handmade import Made
from virtrace.plan.capture import Capture
from virtrace.recipe import draft, prototype
from virtrace.recipe import path as c_path
from virtrace.recipe.draft import Draft
from virtrace.recipe.prototype import Prototype
from virtrace.targets import LIBVIRT
from virtrace.targets.libvirt import public_api
from virtrace.wording import count

_NUMBERED = re.compile(r" *(\d+)  (.*)", re.S)


@dataclass
class _InspectedFunction:
    """A function in debug info; one without debug info has only name and module.

    entry: address of its first instruction.
    declaration: in C, if all of it is known.
    variables: locals and arguments.
    walked: whether it was stepped through.
    printed: expressions printed in it; the flag says whether at its entry.
    displayed: expressions that GDB displays only in it.
    """

    name: str
    module: str
    entry: int | None = None
    declaration: str | None = None
    returns: bool = False
    arguments: Mapping[str, CType] = field(default_factory=dict)
    variables: dict[str, CType] = field(default_factory=dict)
    walked: bool = False
    printed: dict[tuple[str, bool], None] = field(default_factory=dict)
    displayed: set[str] = field(default_factory=set)


class Notebook:
    """Notes what the user inspects in this GDB, from construction on."""

    def __init__(self) -> None:
        self._functions: dict[tuple[str, str], _InspectedFunction] = {}
        self._deleted: list[Made] = []
        self._unplaced: list[str] = []
        self._last = _last_command()
        gdb.events.before_prompt.connect(self._on_prompt)
        gdb.events.breakpoint_deleted.connect(self._on_deleted)

    def _on_prompt(self, _: object = None) -> None:
        before, self._last = self._last, _last_command()
        # Commands typed at once are lines of one command, such as `commands`. The number does not
        # change if GDB removes a repeated command from its history.
        is_one = self._last != before and self._last[0] - before[0] in (0, 1)
        typed = self._last[1] if is_one else ""
        shown, displayed = handmade.printed(typed), handmade.displayed(typed)
        try:
            frame = gdb.selected_frame()
            pc = frame.pc()
        except gdb.error:
            # No thread is stopped.
            return
        try:
            function = self._function(facts.enclosing(frame.block()), _module_of(pc))
        except RuntimeError:
            function = None
        if function is None:
            self._unplaced += shown or ()
            return
        at_entry = pc == function.entry
        function.walked |= not at_entry
        for expression in shown or ():
            function.printed[expression, at_entry] = None
        if displayed is not None and _base(displayed) in function.variables:
            function.displayed.add(displayed)

    def _on_deleted(self, breakpoint_: gdb.Breakpoint) -> None:
        if breakpoint_.number < 0 or not breakpoint_.location or not breakpoint_.hit_count:
            return
        lines = [f"break {breakpoint_.location}"]
        if breakpoint_.condition:
            lines.append(f"  condition $bpnum {breakpoint_.condition}")
        if breakpoint_.commands:
            lines += ["  commands", indent(breakpoint_.commands, "    "), "  end"]
        [made] = handmade.breakpoints("\n".join(lines))
        made.made += ", deleted again"
        self._deleted.append(made)

    def _function(self, blocks: list[gdb.Block], module: str) -> _InspectedFunction | None:
        """Return the function of these blocks; note the variables in scope there."""
        symbol = blocks[-1].function if blocks else None
        if symbol is None:
            return None
        function = self._functions.get((module, symbol.name))
        if function is None:
            function = _described(module, symbol, blocks[-1])
            self._functions[module, symbol.name] = function
        # Variables of functions inlined there are not its own.
        inlined = [i for i, block in enumerate(blocks[:-1]) if block.function is not None]
        for block in blocks[inlined[-1] + 1 if inlined else 0 :]:
            for variable in block:
                is_new = variable.is_variable and variable.name not in function.variables
                if is_new and variable.type is not None:
                    function.variables[variable.name] = facts.c_type(variable.type)
        return function

    def save(self, file: Path) -> str:
        """Write a recipe, and say what is in it."""
        pid = target.attached_pid()
        if not pid:
            raise TargetError(
                "GDB is attached to no process, so no breakpoint has an address",
                "attach to the daemon, and save before `detach`",
            )
        recipe = _RecipeDraft(inspect(pid))
        for made in (*self._deleted, *handmade.breakpoints(_saved_breakpoints())):
            self._keep(recipe, made)
        for function in self._functions.values():
            for expression, at_entry in function.printed:
                recipe.look(function, expression, at_entry)
        shown = handmade.displays(gdb.execute("info display", to_string=True))
        for expression, on in shown.items():
            if on:
                self._keep_display(recipe, expression)
            else:
                recipe.comments.append(f"display {expression}: it is disabled")
        for expression in self._unplaced:
            recipe.comments.append(f"print {expression}: GDB has no debug info there")
        text = recipe.text(file.stem)
        write_new(file, "the recipe", [text])
        return recipe.summary()

    def _keep_display(self, recipe: _RecipeDraft, expression: str) -> None:
        """Keep it in the function where it was displayed; if unknown, wherever the name exists."""
        met = [one for one in self._functions.values() if one.walked or recipe.has(one)]
        having = [one for one in met if expression in one.displayed] or [
            one for one in met if _base(expression) in one.variables
        ]
        for function in having:
            recipe.look(function, expression, not function.walked)
        if not having:
            recipe.comments.append(f"display {expression}: no function here has such a variable")

    def _keep(self, recipe: _RecipeDraft, made: Made) -> None:
        if made.location is None or not made.enabled:
            why = "a recipe cannot express it" if made.enabled else "it is disabled"
            recipe.comments.append(f"{made.made}: {why}")
            return
        places = facts.location_addresses(made.location)
        for pc in places:
            module = _module_of(pc)
            function = self._function(facts.outward(pc), module)
            if function is None and made.function is not None:
                function = _InspectedFunction(made.function, module)
            if function is None:
                recipe.comments.append(f"{made.made}: GDB has no debug info there")
            else:
                recipe.stop(function, made, pc)
        if not places:
            recipe.comments.append(f"{made.made}: GDB no longer finds this location")


class _RecipeDraft:
    """The spans collected so far, and comments on what could not be kept."""

    def __init__(self, process: Process) -> None:
        self.comments: list[str] = []
        self._process = process
        self._drafts: dict[tuple[str, str], Draft] = {}
        self._stops = 0
        self._conditions: list[tuple[Draft, str, dict[str, str] | None]] = []

    def has(self, function: _InspectedFunction) -> bool:
        return (function.module, function.name) in self._drafts

    def _cannot_have(self, function: _InspectedFunction) -> str | None:
        """Why a recipe cannot have a span of this function; None if it can."""
        if not re.fullmatch(r"[A-Za-z_]\w*", function.name, re.A):
            return f"{function.name} is not a C function"
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", function.module, re.A):
            return f"{function.module!r} is not a valid module name"
        others = [one for one in self._drafts.values() if one.function == function.name]
        if any(one.module != function.module for one in others):
            return f"the recipe already has the {function.name} of {others[0].module}"
        return None

    def _draft(self, function: _InspectedFunction) -> Draft:
        key = (function.module, function.name)
        if key not in self._drafts:
            declaration, returns = function.declaration, function.returns
            exported = self._is_exported(function)
            if exported and function.entry is None:
                # Any declaration is enough to find it.
                unknown = Prototype(function.name, "void", ())
                public = public_api.functions().get(function.name, unknown)
                declaration, returns = str(public), public.returns != "void"
            self._drafts[key] = Draft(
                function.name,
                function.module,
                declaration if exported else None,
                exit={"result": c_path.RETURN} if returns else {},
            )
        return self._drafts[key]

    def _is_exported(self, function: _InspectedFunction) -> bool:
        module = self._process.module(function.module)
        return module is not None and module.elf.exported_function(function.name) is not None

    def stop(self, function: _InspectedFunction, made: Made, pc: int) -> None:
        """Add the function of a breakpoint."""
        why = self._cannot_have(function)
        if why:
            self.comments.append(f"not kept: {made.made}: {why}")
            return
        at_entry = function.name == made.function or pc == function.entry
        span = self._draft(function)
        span.root = True
        span.comments.append(made.made)
        if not at_entry and span.lines is None:
            span.lines = {}
        for expression in made.shown:
            self.look(function, expression, at_entry)
        span.comments += [f"not kept: {command}" for command in made.others]
        if made.ignored:
            span.comments.append(f"not kept: it ignores {count(made.ignored, 'hit')}")
        if made.condition:
            wanted = self._filters(function, made.condition) if at_entry else None
            self._conditions.append((span, made.condition, wanted))
        self._stops += 1

    @staticmethod
    def _filters(function: _InspectedFunction, condition: str) -> dict[str, str] | None:
        """Return the condition as filters, by capture; None if filters cannot express it."""
        wanted = handmade.filters_of(condition)
        if wanted is None:
            return None
        for text, value in wanted.items():
            try:
                ctype = Capture(c_path.parse_path(text), function.arguments).ctype
            except (Unavailable, ValueError):
                return None
            is_text = isinstance(ctype, Pointer) and ctype.string
            if not (is_text if isinstance(value, str) else isinstance(ctype, Integer)):
                return None
        return {text: str(value) for text, value in wanted.items()}

    def look(self, function: _InspectedFunction, expression: str, at_entry: bool) -> None:
        """Add a capture for a value that was inspected at the entry or later."""
        why = self._cannot_have(function) or _why_not(function, expression)
        if why and not self.has(function):
            # This is no reason to trace the function.
            self.comments.append(f"not kept: {expression} in {function.name}: {why}")
            return
        span = self._draft(function)
        if not why:
            path = c_path.parse_path(expression)
            if at_entry and path.arguments[0] in function.arguments:
                captures = span.enter
            else:
                captures = span.lines = {} if span.lines is None else span.lines
            try:
                draft.add(captures, path)
            except ValueError as full:
                why = str(full)
        if why:
            span.comments.append(f"not kept: {expression}: {why}")

    def text(self, name: str) -> str:
        spans = [*self._drafts.values()]
        if not spans:
            raise UsageError(
                "no function was inspected in this session",
                "set a breakpoint at a function, or step into one and print a value",
            )
        if not any(span.root for span in spans):
            for span in spans:
                span.root = True
        where: dict[str, str] = {}
        for span, condition, wanted in self._conditions:
            # A filter applies to all calls: it is equal to the condition only for one breakpoint.
            if wanted is not None and self._stops == 1:
                with suppress(ValueError):
                    where = {
                        draft.add(span.enter, c_path.parse_path(path)): value
                        for path, value in wanted.items()
                    }
            if not where:
                span.comments.append(f"not kept: if {condition}")
        roots = ", ".join(span.function for span in spans if span.root)
        return draft.recipe_text(
            re.sub(r"[^A-Za-z0-9.+-]", "-", name).lstrip(".+-")[:100] or "saved",
            "What was inspected by hand in a GDB session, saved by `virtrace save`.",
            f"what calls {roots}"[:1000],
            [span.item() for span in spans],
            where=where,
            left_out=self.comments,
        )

    def summary(self) -> str:
        spans = self._drafts.values()
        values = sum(len(span.enter) + len(span.lines or ()) for span in spans)
        return f"{count(len(spans), 'function')}, {count(values, 'value')}"


def _why_not(function: _InspectedFunction, expression: str) -> str | None:
    """Why a recipe cannot capture the expression there; None if it can."""
    try:
        path = c_path.parse_path(expression)
        start = path.arguments[0]
        if start not in function.variables:
            return f"{start} is not a variable of {function.name}"
        Capture(path, function.variables)
    except ValueError:
        return "it is not a path such as a->b or *a"
    except Unavailable as why:
        return str(why)
    return None


def _described(module: str, symbol: gdb.Symbol, block: gdb.Block) -> _InspectedFunction:
    assert symbol.type is not None
    arguments = [one for one in block if one.is_argument]
    types = {one.name: facts.c_type(one.type) for one in arguments if one.type is not None}
    returned = symbol.type.target().strip_typedefs()
    return _InspectedFunction(
        symbol.name,
        module,
        int(symbol.value().address),  # type: ignore[arg-type]
        _declaration(symbol, arguments),
        returned.code != gdb.TYPE_CODE_VOID,
        types,
        dict(types),
    )


def _declaration(symbol: gdb.Symbol, arguments: list[gdb.Symbol]) -> str | None:
    """The declaration as a recipe writes it; None if it leaves open how arguments are passed."""
    assert symbol.type is not None
    if len(arguments) != len(symbol.type.fields()):
        return None
    declared = ", ".join(f"{argument.type} {argument.name}" for argument in arguments)
    text = f"{symbol.type.target()} {symbol.name}({declared or 'void'})"
    # Spelled as in libvirt's source.
    text = text.replace("* ", "*").replace("_Bool ", "bool ")
    try:
        parsed = prototype.parse_prototype(text)
    except ValueError:
        return None
    for name in (parsed.returns, *(parameter.type for parameter in parsed.parameters)):
        ctype = LIBVIRT.type_named(name)
        if isinstance(ctype, (Opaque, Struct, Array)) and ctype != Opaque("void"):
            return None
    return text


def _module_of(pc: int) -> str:
    """Return the file name of the module that an address is in."""
    name = gdb.solib_name(pc) or gdb.current_progspace().filename or ""  # type: ignore[union-attr]
    return os.path.basename(name)


def _base(expression: str) -> str:
    try:
        return c_path.parse_path(expression).arguments[0]
    except ValueError:
        return ""


def _last_command() -> tuple[int, str]:
    """Return the last typed command, and before it its number in GDB's history."""
    lines = gdb.execute("show commands", to_string=True).splitlines()
    match = _NUMBERED.fullmatch(lines[-1]) if lines else None
    return (int(match[1]), match[2]) if match else (0, "")


def _saved_breakpoints() -> str:
    """Read the output of GDB's `save breakpoints`, which includes dprintf."""
    descriptor = os.memfd_create("breakpoints")
    try:
        gdb.execute(f"save breakpoints /proc/self/fd/{descriptor}", to_string=True)
        with open(descriptor, encoding="utf-8", errors="replace", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)
