"""What a check finds, and the list of checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from coprobe.checks.subject import Subject
from coprobe.core.registry import Registry


@dataclass(frozen=True)
class Finding:
    """What is wrong, and the remedy, in a sentence.

    Attributes:
        sentence: for people.
        together: results depend on which images are computed together, so that none may leave its batch.
        draws: the network draws random numbers.
        writes: a pass changes the network.
        misleading: its gradient is there, but is not the slope, so that robustness by it can't be told.
    """

    sentence: str
    together: bool = False
    draws: bool = False
    writes: bool = False
    misleading: bool = False


#: From what is looked at to what was found; None if all is well.
Check = Callable[[Subject], Finding | None]

#: Every check by its name. Facts: `quick`, whether it runs at the start of every measurement.
CHECKS: Registry[Check] = Registry("check")


@dataclass(frozen=True)
class Findings:
    """What the checks found, by their names, in their order; those that found nothing with None."""

    by_check: dict[str, Finding | None]

    def __iter__(self) -> Iterator[Finding]:
        return (finding for finding in self.by_check.values() if finding is not None)

    @property
    def together(self) -> bool:
        """Whether images have to stay in their batches."""
        return any(finding.together for finding in self)

    @property
    def draws(self) -> bool:
        """Whether the network draws random numbers."""
        return any(finding.draws for finding in self)

    @property
    def writes(self) -> bool:
        """Whether a pass changes the network."""
        return any(finding.writes for finding in self)

    @property
    def misleading(self) -> bool:
        """Whether attacks that follow the gradient are misled."""
        return any(finding.misleading for finding in self)

    @property
    def sentences(self) -> list[str]:
        """All of them."""
        return [finding.sentence for finding in self]


def check(subject: Subject, *, quick: bool = False) -> Findings:
    """Run all checks, or the quick ones; the network and every generator are as before afterwards."""
    chosen = [entry for entry in CHECKS.entries() if entry.facts["quick"] or not quick]
    with subject.kept():
        return Findings({entry.name: entry.value(subject) for entry in chosen})
