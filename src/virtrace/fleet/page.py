"""Many hosts as one page for a browser: those that differ, the groups, the numbers."""

from __future__ import annotations

from virtrace.fleet.compare import Difference, Fleet, Group, Odd
from virtrace.fleet.facts import SHAPE
from virtrace.fleet.text import beside, difference_pieces, headline, spread_pieces
from virtrace.report.pieces import Piece
from virtrace.report.template import joined, rendered
from virtrace.trace.format import Record
from virtrace.wording import count


def fleet_page(fleet: Fleet) -> str:
    """Return the whole document."""
    return rendered(
        "fleet.html",
        title=headline(fleet),
        searched="groups of files",
        found="groups",
        odd=[_odd(number, each) for number, each in enumerate(fleet.odd, 1)],
        traits=[
            {"name": trait, "groups": [_group(each) for each in reversed(groups)]}
            for trait, groups in fleet.traits.items()
            if not trait.startswith(SHAPE)
        ],
        numbers=[joined(spread_pieces(each)) for each in fleet.spreads],
        lists=[
            (title, files)
            for title, files in (
                ("Answer nothing", fleet.silent),
                ("Incomplete", fleet.incomplete),
                ("Left out", fleet.left_out),
            )
            if files
        ],
    )


def _odd(number: int, odd: Odd) -> Record:
    return {
        "id": f"odd-{number}",
        "count": count(len(odd.files), "file"),
        "files": odd.files,
        "differs": [_difference(each, "") for each in odd.differs],
        "also": [_difference(each, beside(others)) for each, others in odd.also],
    }


def _difference(each: Difference, note: str) -> Record:
    pieces: list[Piece] = difference_pieces(each, note)
    return {"pieces": joined(pieces), "says": each.says}


def _group(group: Group) -> Record:
    return {
        "value": group.value,
        "says": group.says,
        "count": count(len(group.files), "file"),
        "files": group.files,
    }
