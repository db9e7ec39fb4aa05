"""What has to be measured of which run, and the file that holds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

#: The columns of the paper's tables that are attacks; of them those of Fig. 4 and most tables, and of these the ones of
#: several steps.
COLUMNS = ("fgsm", "pgd10", "pgd20", "pgd50", "cw", "apgd_t", "aa")
ATTACKS = ("fgsm", "pgd50", "cw", "aa")
STRONG = ("pgd50", "cw", "aa")
#: The noise of most tables, as the paper writes it, and its usual ξ_E, n of n/255.
NOISE = "U(16)"
XI = 16.0
#: What can be measured of a trained run; its history comes with the training.
KINDS = ("accuracy", "channels", "overlap", "masking", "increments", "transfer")


@dataclass(frozen=True)
class Need:
    """One measurement of one checkpoint, in the paper's own numbers.

    Attributes:
        run: name of the run.
        kind: `history`, or one of `KINDS`.
        which: `last` or `best` checkpoint.
        xi: ξ_E, n of n/255.
        attacks: columns of the paper (fgsm, pgd10, …), or specs of attacks; clean images are always measured.
        noises: "none", "U(16)", "Gauss(10)" as the paper writes them.
        sources: runs whose best checkpoints the images are crafted on, for `transfer`.
    """

    run: str
    kind: str
    which: str = "last"
    xi: float = XI
    attacks: tuple[str, ...] = ()
    noises: tuple[str, ...] = ("none",)
    sources: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, str, str, float]:
        """Needs at the same place are one measurement."""
        return self.run, self.kind, self.which, self.xi

    @property
    def file(self) -> str:
        """Name of the result in the run's stats directory."""
        return f"{self.kind}-{self.which}-{self.xi:g}.csv"

    def on(self, which: str) -> Need:
        """The same of another checkpoint."""
        return replace(self, which=which)


def merged(needs: Iterable[Need]) -> list[Need]:
    """One need per place, with every attack, noise and source that any of them asks for."""
    found: dict[tuple[str, str, str, float], Need] = {}
    for need in needs:
        before = found.get(need.place, need)
        found[need.place] = replace(
            need,
            attacks=_union(before.attacks, need.attacks),
            noises=_union(before.noises, need.noises),
            sources=_union(before.sources, need.sources),
        )
    return list(found.values())


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))
