"""The errors that coprobe raises on purpose, each one line: what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CoprobeError(Exception):
    """Base of every error that coprobe raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(CoprobeError, ValueError):
    """What the user gave (an option, a name, a file) can't be used. Exit code 2."""

    exit_code = 2


class RunError(CoprobeError, RuntimeError):
    """The input was fine but the work failed (diverged training, logits that are not finite). Exit code 1."""


class NotFiniteError(RunError):
    """Logits, activations or gradients that are NaN or infinite, so that nothing can be measured."""


class DivergedError(RunError):
    """A training whose losses or weights are no longer finite."""


class InterruptedRunError(CoprobeError):
    """The work was asked to stop by a signal, and did so in good order. Exit code 128 + the signal's number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among `known`, with the nearest names offered.

    Args:
        kind: what the name should have named, in words ("attack", "node").
        name: what was given.
        known: every name that would have been right.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        remedy = f"did you mean {' or '.join(near)}?"
    elif len(known) <= 12:
        remedy = f"choose from {', '.join(known)}"
    else:
        remedy = f"the first of {len(known)} known: {', '.join(known[:8])}, …"
    return InputError(f"unknown {kind} '{name}'; {remedy}")
