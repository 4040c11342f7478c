"""Parses what GDB says about breakpoints and displays made by hand. Does not need gdb."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# The commands that print values. GDB accepts an unambiguous abbreviation of a name.
_PRINT = re.compile(r"(?:p|pr|pri|prin|print|inspect|output)(?:/\w+)?(?:\s+(?P<of>.*))?")
_TO_DISPLAY = re.compile(r"disp(?:l|la|lay)?(?:/\w+)?\s+(?P<of>.+)")
_PRINTF = re.compile(r"printf\s+(?P<of>.*)")
# Such as `print -pretty on -- stats`.
_OPTIONS = re.compile(r"-.*?\s--\s+")
_DPRINTF = re.compile(r'dprintf (?P<location>.*?),\s*(?P<of>".*)')
_BREAK = re.compile(r"(?:break|tbreak|hbreak|thbreak) (?P<location>.*)")
_RESTRICTED = re.compile(r"(?P<location>.*?)\s+(?P<to>(?:thread|task|inferior) [\d.]+)\s*")
_FUNCTION = re.compile(r"(?:.*:|-function )?(?P<name>[A-Za-z_]\w*)\s*", re.A)
_DISPLAY = re.compile(
    r"\d+:\s+(?P<on>[yn])\s+(?:/\w+ )?(?P<of>.+?)(?: \(cannot be evaluated .*\))?"
)

# What newer GDBs write before the command that makes a breakpoint.
_PENDING = "with breakpoint pending on -- "
# What a trace does anyway.
_IMPLIED = {"silent", "continue", "c", "end"}

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|' r"'(?:\\.|[^'\\])*'|.", re.S)

_COMPARED = re.compile(
    r"(?P<path>[\w.>*-]+)\s*==\s*(?P<number>0x[0-9a-fA-F]+|[1-9]\d*|0)"
    r'|\$_streq\s*\(\s*(?P<text>[\w.>*-]+)\s*,\s*"(?P<is>[^"\\]{,200})"\s*\)'
    r'|strcmp\s*\(\s*(?P<compared>[\w.>*-]+)\s*,\s*"(?P<with>[^"\\]{,200})"\s*\)\s*==\s*0'
    r'|!\s*strcmp\s*\(\s*(?P<negated>[\w.>*-]+)\s*,\s*"(?P<to>[^"\\]{,200})"\s*\)'
)


@dataclass
class Made:
    """A breakpoint.

    made: the command that makes it.
    location: argument of GDB's ``break``; None for another kind of breakpoint.
    shown: expressions that it prints.
    others: its commands that a recipe cannot express.
    """

    made: str
    location: str | None = None
    condition: str | None = None
    ignored: int = 0
    enabled: bool = True
    shown: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def function(self) -> str | None:
        """The function at whose entry it is; None if its location is not a function."""
        match = _FUNCTION.fullmatch(self.location or "")
        return match["name"] if match else None


def breakpoints(saved: str) -> list[Made]:
    """Parse the output of GDB's own `save breakpoints`."""
    found: list[Made] = []
    in_commands = False
    for line in saved.splitlines():
        words = line.strip().removeprefix(_PENDING)
        if in_commands:
            in_commands = line != "  end"
            if in_commands:
                _add_command(found[-1], words)
        elif line == "  commands":
            in_commands = True
        elif words.startswith("condition $bpnum "):
            found[-1].condition = words.split(" ", 2)[2]
        elif words.startswith("ignore $bpnum "):
            found[-1].ignored = int(words.split(" ")[2])
        elif words == "disable $bpnum":
            found[-1].enabled = False
        elif words:
            found.append(_made(words))
    return found


def _made(line: str) -> Made:
    made = Made(line)
    if match := _DPRINTF.fullmatch(line):
        made.shown = _arguments(match["of"])[1:]
    else:
        match = _BREAK.fullmatch(line)
    if match:
        made.location = match["location"].strip()
        if restricted := _RESTRICTED.fullmatch(made.location):
            made.location = restricted["location"]
            made.others.append(f"it is of {restricted['to']} only")
    return made


def _add_command(made: Made, command: str) -> None:
    shown = printed(command)
    if shown is not None:
        made.shown += shown
    elif command not in _IMPLIED:
        made.others.append(command)


def printed(command: str) -> list[str] | None:
    """Return the expressions that a command prints; None if it is not a print command."""
    if match := _PRINT.fullmatch(command.strip()):
        expression = _OPTIONS.sub("", match["of"] or "", count=1).strip()
        return [expression] if expression else []
    if match := _PRINTF.fullmatch(command.strip()):
        return _arguments(match["of"])[1:]
    return None


def displayed(command: str) -> str | None:
    """Return the expression that a command starts to display; None for another command."""
    match = _TO_DISPLAY.fullmatch(command.strip())
    return match["of"] if match else None


def displays(info: str) -> dict[str, bool]:
    """Parse GDB's `info display`: the expressions, and whether they are enabled."""
    found = filter(None, map(_DISPLAY.fullmatch, info.splitlines()))
    return {match["of"]: match["on"] == "y" for match in found}


def filters_of(condition: str) -> dict[str, str | int] | None:
    """Return the values that a condition requires, by C path; None if it says anything else."""
    wanted: dict[str, str | int] = {}
    for part in condition.split("&&"):
        match = _COMPARED.fullmatch(part.strip())
        if match is None:
            return None
        if match["path"]:
            wanted[match["path"]] = int(match["number"], 0)
        else:
            path = match["text"] or match["compared"] or match["negated"]
            wanted[path] = next(
                match[key] for key in ("is", "with", "to") if match[key] is not None
            )
    return wanted


def _arguments(text: str) -> list[str]:
    """Split the arguments of a call at commas."""
    return [argument.strip() for argument in _split(text)]


def _split(text: str) -> Iterator[str]:
    depth, argument = 0, ""
    for token in _TOKEN.findall(text):
        depth += (token in "([{") - (token in ")]}")
        if token == "," and depth == 0:
            yield argument
            argument = ""
        else:
            argument += token
    yield argument
