"""What the commands of `remote` and `remote_webhooks` share: their client, and how a sentence, a table and a time look.

What a program may want to read goes to stdout, what is for a person beside it to stderr.
"""

import sys
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.client import Client
from jobs.errors import TrainingError
from jobs.settings import Settings
from service import watching

_NARROWEST_TABLE = 160  # where nobody says how wide the output is


def client_of(settings: Settings) -> Client:
    return Client(settings.url or settings.address, settings.token, on_retry=_say_retry)


def say(sentence: str) -> None:
    print(watching.clean(sentence), file=sys.stderr)


def table(*columns: str) -> Table:
    """An empty one, whose first column is never broken, and of whose others nothing is left out."""
    made = Table(*columns, box=None, pad_edge=False)
    for column in made.columns:
        column.overflow = "fold"
    made.columns[0].no_wrap = True
    return made


def add_row(table: Table, *cells: object) -> None:
    table.add_row(*(Text(watching.clean(str(cell))) for cell in cells))


def show(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_NARROWEST_TABLE)
    console.print(table)


def ago(time_text: str) -> str:
    age = datetime.now(UTC) - datetime.fromisoformat(time_text)
    for unit, length in (("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("min", timedelta(minutes=1))):
        if age >= length:
            return f"{age // length} {unit} ago"
    return "just now"


def _say_retry(error: TrainingError, pause_s: float) -> None:
    say(f"{error.message} Trying again in {pause_s:.1f} s.")
