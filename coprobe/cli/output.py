"""What people and programs see: tables and JSON on stdout, messages and progress on stderr, files on request."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from coprobe.core.files import TABLE_SUFFIXES, check_writable, records, write_table
from coprobe.core.text import cut, printable
from coprobe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

F = TypeVar("F", bound=Callable[..., Any])
#: Columns of the terminal that a cell gets beside a path, if it needs them, by whether it is wrapped; and between two.
_WRAPPED, _WHOLE, _BETWEEN = 16, 40, 3
#: A separator within a path of a file, a module or a node.
_PATH = re.compile(r"\w[/\\.#:]\w|^/")
#: Characters of a cell of a table; a name in a file may have a million.
_LONGEST_CELL = 1000


_silent = False


def silence(silent: bool = True) -> None:
    """Say, show and write nothing from now on: another process of the same command does."""
    global _silent  # noqa: PLW0603
    _silent = silent


def message(text: str) -> None:
    """A line for people, on stderr."""
    if _silent:
        return
    click.echo(printable(text), err=True)


@contextmanager
def progress(what: str, images: int) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr while the block runs; shown on terminals only.

    Yields a function that advances it by a number of images and, with a second argument, says something else.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} images/s" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeLeft())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=_silent or not console.is_terminal) as bar:
        task = bar.add_task(escape(printable(what)), total=images)

        def advance(done: int, now: str | None = None) -> None:
            bar.update(task, advance=done, description=None if now is None else escape(printable(now)))

        yield advance


@dataclass(frozen=True)
class Output:
    """Where results go.

    Args:
        as_json: JSON on stdout instead of a table.
        out: table file, or None.
        plot: picture file, or None.
    """

    as_json: bool
    out: Path | None
    plot: Path | None

    def __post_init__(self) -> None:
        """Find a bad target before the work."""
        if self.out:
            _refuse_file_of_run(check_writable(self.out, TABLE_SUFFIXES))
        if self.plot:
            from coprobe.figures.style import PLOT_SUFFIXES

            check_writable(self.plot, PLOT_SUFFIXES)

    @property
    def for_people(self) -> bool:
        """Whether tables are to be printed."""
        return not (self.as_json or _silent)

    def write(self, frame: pd.DataFrame, draw: Callable[[], Figure] | None = None, **extra: Any) -> None:
        """Print a result as JSON and write it into files, as was asked for.

        Args:
            frame: all of it; its attrs are the provenance.
            draw: makes the picture.
            extra: more values for --json.
        """
        if _silent:
            return
        if self.as_json:
            about = {"provenance": frame.attrs, **extra, "rows": records(frame)}
            click.echo(json.dumps(about, indent=2, allow_nan=False, default=str))
        if self.out:
            write_table(frame, self.out)
            message(f"wrote {self.out}")
        if self.plot and draw:
            from coprobe.figures.style import save

            save(draw(), self.plot, frame.attrs)
            message(f"wrote {self.plot}")


def _refuse_file_of_run(path: Path) -> None:
    """Raise `InputError` for what only `coprobe train --overwrite` may replace."""
    if (path.parent / "recipe.json").exists():
        from coprobe.training.run import RUN_FILES

        if path.name in RUN_FILES:
            raise InputError(f"{path}: is a file of the run there; choose another name")


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
plot_option = click.option("--plot", type=click.Path(path_type=Path), help="Write the picture (.png, .pdf, .svg).")
out_option = click.option(
    "--out", type=click.Path(path_type=Path), help="Write the full table (.parquet, .csv, .json)."
)


def output_options(function: F) -> F:
    """`--json`, `--out`, `--plot`: the arguments of `Output`."""
    return json_option(out_option(plot_option(function)))


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = "", *, left: int = 1
) -> None:
    """A table on stdout that fits 80 columns; the first `left` columns are left-aligned, the others right.

    Only a path of a file, a node or a weight may make it wider, so that it can be copied as it is.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def shown(text: str) -> str:
        return escape(cut(printable(text), _LONGEST_CELL))

    console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
    table = Table(show_header=any(header), box=box.SIMPLE_HEAD, pad_edge=False)
    needed, longest = 0, 0
    for place, name in enumerate(header):
        justify: Literal["left", "right"] = "left" if place < left else "right"
        # In a narrow terminal, headings of several words and the last column give way, never a number.
        wraps = place > 0 and (" " in name or place == len(header) - 1)
        texts = [name, *(row[place] for row in rows if place < len(row))]
        paths = _longest_path(texts)
        longest = max(longest, paths)
        needed += max(paths, min(_WRAPPED if wraps else _WHOLE, max(map(len, texts)))) + _BETWEEN
        table.add_column(shown(name), justify=justify, overflow="fold", no_wrap=not wraps, min_width=paths)
    for row in rows:
        table.add_row(*map(shown, row))
    console.print(shown(title), style="bold", soft_wrap=_longest_path([title]) > console.width)
    width = max(console.width, needed if longest > _WRAPPED else 0)
    Console(file=sys.stdout, highlight=False, width=width).print(table)
    if note:
        console.print(shown(note), style="dim", soft_wrap=_longest_path([note]) > console.width)


def _longest_path(texts: Iterable[str]) -> int:
    """Columns that the longest of all words takes that have a separator of paths inside."""
    from rich.cells import cell_len

    words = (word for text in texts for word in cut(printable(text), _LONGEST_CELL).split() if _PATH.search(word))
    return max(map(cell_len, words), default=0)


def print_text(text: str) -> None:
    """A paragraph on stdout, wrapped at the width of the terminal (80 where there is none)."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False)
    console.print(printable(text), soft_wrap=_longest_path([text]) > console.width)


def percent(fraction: float) -> str:
    """`0.1234` as `12.3`."""
    return f"{100 * fraction:.1f}"


def interval(low: float, high: float) -> str:
    """Two fractions as `10.2 – 14.9`."""
    return f"{percent(low)} – {percent(high)}"
