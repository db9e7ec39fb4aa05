"""What is needed wherever other people's code runs: to keep it quiet, and to quote it in one sentence."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from coprobe.core.switches import TURN

_LONGEST = 80
_SHOWN = 6


@contextmanager
def quiet() -> Iterator[None]:
    """Keep foreign prints out of our results (they go to stderr), and foreign warnings off the screen."""
    with TURN, warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def reason(error: BaseException) -> str:
    """Type and message of a foreign exception, on one line and not too long."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
