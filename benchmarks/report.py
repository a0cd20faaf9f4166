"""What a benchmark gives: the table of what was measured, and the aims with what came of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Aim:
    """What a figure should be, and what it was."""

    what: str
    wanted: str
    got: str
    is_met: bool


@dataclass(frozen=True)
class Report:
    """`setup` says in a sentence or two what was done, so that somebody else can judge it."""

    claim: str
    setup: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    aims: Sequence[Aim]

    @property
    def missed(self) -> list[Aim]:
        return [aim for aim in self.aims if not aim.is_met]

    def as_markdown(self) -> str:
        aims = [(aim.what, aim.wanted, aim.got, "met" if aim.is_met else "**missed**") for aim in self.aims]
        return "\n\n".join(
            [
                self.claim,
                self.setup,
                _table(self.columns, self.rows),
                _table(("aim", "wanted", "measured", ""), aims),
            ]
        )


def at_least(what: str, figure: float, wanted: float, unit: str = "×") -> Aim:
    """An aim for a figure that should be large."""
    return Aim(what, f"≥ {_spelled(wanted, unit)}", _spelled(figure, unit), figure >= wanted)


def at_most(what: str, figure: float, wanted: float, unit: str) -> Aim:
    """An aim for a figure that should be small."""
    return Aim(what, f"≤ {_spelled(wanted, unit)}", _spelled(figure, unit), figure <= wanted)


def _spelled(figure: float, unit: str) -> str:
    digits = f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"
    return f"{digits}{'' if unit == '×' else ' '}{unit}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
