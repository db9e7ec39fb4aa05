"""K1–K5: does the effect of noise on a collapsed model survive stronger attacks? Not in the paper."""

from __future__ import annotations

from coprobe.paper.claims.reading import accuracies, require_collapse
from coprobe.paper.claims.record import Check, Estimate, Finding, UnmetError, at_least, claim, conclude
from coprobe.paper.needs import NOISE, Need
from coprobe.paper.results import Results
from coprobe.paper.runs import FIG12_SOURCES

CO = "mep-12"
#: PGD-50 that goes on past the decision border, anticipates the noise, or takes larger steps from ten starts.
ALWAYS, EXPECTED, STRONGER = "pgd:50:rule=always", "pgd-eot:50", "pgd:50:step-size=4:restarts=10"
#: Noise that `EXPECTED` draws, n of n/255.
_ANTICIPATED = 16
#: What C29 asks of noise.
_GAIN = 0.30
_BOTH = ("none", NOISE)
_ALWAYS, _EXPECTED, _STRONGER = (
    Need(CO, "accuracy", attacks=("pgd50", attack), noises=_BOTH) for attack in (ALWAYS, EXPECTED, STRONGER)
)
_DRAWS = Need(CO, "accuracy", attacks=("pgd50",), noises=_BOTH)
_TRANSFER = Need(CO, "transfer", attacks=(ALWAYS,), noises=(NOISE,), sources=FIG12_SOURCES)
_PAPER = "not in the paper"


def _survives(what: str, noisy: Estimate, plain: Estimate) -> Check:
    """Whether a model with noise is as far above one without as C29 asks."""
    return at_least(f"{what} with noise minus PGD-50 without", noisy - plain, _GAIN)


@claim(
    "K1",
    "The effect of noise survives an attack that goes on past the decision border.",
    "Collapsed baseline at 12/255: accuracy under PGD-50 that always updates, with U(16), minus that under PGD-50.",
    paper=_PAPER,
    needs=[_ALWAYS],
)
def k1(results: Results) -> Finding:
    """Still at least 30 points."""
    require_collapse(results, CO)
    found = accuracies(results, _ALWAYS)
    return conclude([_survives("PGD-50 without the stop rule", found(ALWAYS, NOISE), found("pgd50"))])


@claim(
    "K2",
    "The effect of noise survives an attack that anticipates it.",
    "As K1 under PGD-50 on the expectation over draws of the noise.",
    paper=_PAPER,
    needs=[_EXPECTED],
)
def k2(results: Results) -> Finding:
    """Still at least 30 points; the attack has to anticipate the noise that is there."""
    added = results.scale.budget(_ANTICIPATED)
    if added != _ANTICIPATED:
        raise UnmetError(f"the attack anticipates noise of {_ANTICIPATED}/255, and this scale adds {added:g}/255")
    require_collapse(results, CO)
    found = accuracies(results, _EXPECTED)
    return conclude([_survives("EOT-PGD-50", found(EXPECTED, NOISE), found("pgd50"))])


@claim(
    "K3",
    "The effect of noise survives an attack with larger steps and ten restarts.",
    "As K1 under PGD-50 with steps of 4/255 and ten restarts.",
    paper=_PAPER,
    needs=[_STRONGER],
)
def k3(results: Results) -> Finding:
    """Still at least 30 points."""
    require_collapse(results, CO)
    found = accuracies(results, _STRONGER)
    return conclude([_survives("PGD-50 × 10", found(STRONGER, NOISE), found("pgd50"))])


@claim(
    "K4",
    "The effect of noise does not depend on the draw.",
    "As K1 under PGD-50 in the worst of the draws of U(16), which are at least five.",
    paper=_PAPER,
    needs=[_DRAWS],
)
def k4(results: Results) -> Finding:
    """At least 30 points in the worst draw (of all seeds)."""
    require_collapse(results, CO)
    plain, mean = (accuracies(results, _DRAWS)("pgd50", noise) for noise in _BOTH)
    draws = results.get(_DRAWS).query("attack == 'pgd50' and noise == @NOISE")
    worst = float((draws["correct"] / draws["n"]).min())
    shift = worst - mean.value
    in_worst = Estimate(worst, max(0.0, mean.low + shift), mean.high + shift)
    enough = Check(None if draws["draw"].nunique() < 5 else True, f"{draws['draw'].nunique()} draws", "at least 5")
    return conclude([_survives("PGD-50, worst draw,", in_worst, plain), enough])


@claim(
    "K5",
    "The effect of noise survives examples that come from stable models.",
    "As K1 under PGD-50 that updates always, made against C.Smooth at 8, 12, 16/255 (Fig. 12 at ξ_E = 16).",
    paper=_PAPER,
    needs=[_TRANSFER, _DRAWS],
)
def k5(results: Results) -> Finding:
    """Still at least 30 points, from every source."""
    require_collapse(results, CO)
    plain, found = accuracies(results, _DRAWS)("pgd50"), accuracies(results, _TRANSFER)
    return conclude([_survives(f"from {source}:", found(ALWAYS, NOISE, source), plain) for source in _TRANSFER.sources])


CONTROLS = (k1, k2, k3, k4, k5)
