"""Make share/: the man page and the shells' completions of `virtrace`, from its own parser.

.venv/bin/python tools/share.py [FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shtab
from argparse_manpage.manpage import Manpage

from virtrace import __version__
from virtrace.cli.main import build_parser
from virtrace.recipe import catalogue

FOLDER = Path(__file__).resolve().parents[1] / "share"
# Where each shell looks, below any folder named share that it knows.
COMPLETIONS = {
    "bash": "bash-completion/completions/virtrace",
    "zsh": "zsh/site-functions/_virtrace",
    "fish": "fish/vendor_completions.d/virtrace.fish",
}
MAN_PAGE = "man/man1/virtrace.1"

NAMES = " ".join(catalogue.shipped())
TRACES = shtab.glob("*.jsonl", "*.tar.gz")
# shtab takes a function of this name for one that gives files, which get no space behind a folder.
RECIPES = {
    "bash": "_virtrace_recipe_file",
    "zsh": "_virtrace_recipes",
    "fish": "(_virtrace_recipes)",
    "preamble": {
        "bash": f"""
_virtrace_recipe_file() {{
  compgen -W "{NAMES}" -- $1
  compgen -f -X '!*.yaml' -- $1
  compgen -d -- $1
}}
""",
        "zsh": f"""
_virtrace_recipes() {{
  _alternative 'recipes:recipe:({NAMES})' 'files:file:_files -g "*.yaml"'
}}
""",
        "fish": f"""
function _virtrace_recipes
  string split ' ' '{NAMES}'
  __fish_complete_suffix .yaml
end
""",
    },
}
# By what the usage calls an argument.
KINDS: dict[str, Any] = {
    "RECIPE": RECIPES,
    "FILE": TRACES,
    "A": TRACES,
    "B": TRACES,
    "OUT": shtab.FILE,
    "FOLDER": shtab.DIRECTORY,
    "DIR": shtab.DIRECTORY,
    "PID": shtab.cmd("pidof libvirtd virtqemud"),
}


def arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of its subcommands, too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from arguments(command)
        else:
            yield action


def files() -> dict[str, str]:
    """By the path below share/."""
    parser = build_parser()
    for action in arguments(parser):
        kind = KINDS.get(str(action.metavar or action.dest.upper()))
        if kind is not None:
            action.complete = kind  # type: ignore[attr-defined]
    page = Manpage(
        parser,
        format="single-commands-section",
        _data={
            "project_name": "virtrace",
            "prog": "virtrace",
            "description": "trace libvirt from its API down to QEMU's QMP replies",
            "manual_title": "virtrace",
            # Not that of the day, which would make it another page each day.
            "date": __version__,
        },
    )
    made = {path: shtab.complete(parser, shell) for shell, path in COMPLETIONS.items()}
    return {**made, MAN_PAGE: str(page)}


def main(folder: Path) -> None:
    for path, text in files().items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
