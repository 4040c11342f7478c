"""Pages for a browser from templates: what they load is named by its hash, and all text is escaped.

Jinja2 escapes every string for HTML; characters that could hide or reverse text are replaced by
escapes before.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from virtrace import resources
from virtrace.report.drawing import style_sheet
from virtrace.report.highlight import Style, safe
from virtrace.report.pieces import Piece

_FOLDER = Path(__file__).with_name("page")
_STYLE = Style(unicode=True, full=True)
_SHEETS, _SCRIPT = ("palette.css", "drawing.css", "page.css"), "page.js"
# What every page begins with: a policy that lets it load nothing, its title and its style.
_HEAD = "head.html"
# The search, and what folds everything.
_TOOLS = "tools.html"


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=FunctionLoader(lambda name: resources.text(_FOLDER / name)),
        autoescape=True,
        finalize=_safe,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def prepare(name: str) -> None:
    """Read a template and all that its pages contain besides. name: of its file."""
    for each in (*_SHEETS, _SCRIPT):
        style_sheet(each)
    _template(_HEAD)
    _template(_TOOLS)
    _template(name)


def rendered(name: str, title: str, searched: str, found: str, **fields: Any) -> str:
    """Return a page.

    name: of the template's file. searched: what the search looks through, found: what it counts.
    fields: for the template.
    """
    style = "".join(map(style_sheet, _SHEETS))
    script = style_sheet(_SCRIPT)
    head = _template(_HEAD).render(
        title=title,
        style=Markup(style),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    tools = Markup(_template(_TOOLS).render(searched=searched, found=found))
    return _template(name).render(
        head=Markup(head), title=title, tools=tools, script=Markup(script), **fields
    )


def _safe(value: Any) -> Any:
    return value if isinstance(value, Markup) or not isinstance(value, str) else safe(value, _STYLE)


def _hash(text: str) -> str:
    """Return the hash of a text, as a Content-Security-Policy names what it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def joined(line: list[Piece]) -> list[Piece]:
    """Join the texts of a line with spaces; a function's name is apart from its arguments."""
    parts: list[Piece] = []
    for text, role in line:
        name, paren, rest = text.partition("(") if role == "call" else (text, "", "")
        parts.append((f" {name}" if parts else name, "bold" if paren else role))
        if paren:
            parts.append((paren + rest, "c"))
    runs = groupby(parts, key=lambda piece: piece[1])
    return [("".join(text for text, _ in run), role) for role, run in runs]
