"""C22–C26: L_co brings catastrophic overfitting about."""

from __future__ import annotations

from coprobe.attacks.examples import CLEAN
from coprobe.paper.claims.reading import COLLAPSED, NOT_CONVERGED, STABLE, accuracies, all_are, ended, marks
from coprobe.paper.claims.record import Check, Finding, UnmetError, at_least, claim, conclude
from coprobe.paper.needs import Need
from coprobe.paper.results import Results

BASELINE, TENTH = "mep-8", "co-10-8"
_BY_T_ACT, _BY_VARIANCE = Need(TENTH, "accuracy"), Need("co-var10-8", "accuracy")


def _require_stable_baseline(results: Results) -> None:
    """Where the baseline collapses by itself, L_co can't be what brought the collapse."""
    if set(marks(results, BASELINE)) != {STABLE}:
        raise UnmetError(f"at this scale the baseline is not stable without L_co ({ended(results, BASELINE)})")


@claim(
    "C22",
    "The baseline at 8/255 is stable.",
    "CO mark of the baseline without Eq. 10 at 8/255.",
    paper="says so",
)
def c22(results: Results) -> Finding:
    """It converges without CO."""
    return conclude([Check(all_are(results, BASELINE, STABLE), ended(results, BASELINE), "no CO")])


@claim(
    "C23",
    "L_co on the 10 % most salient channels induces CO.",
    "Fig. 5: CO mark of L_co with p = 10 at 8/255.",
    paper="says so (Fig. 5)",
)
def c23(results: Results) -> Finding:
    """It collapses, and converges."""
    check = Check(all_are(results, TENTH, COLLAPSED), ended(results, TENTH), "CO")
    if check.passed:
        _require_stable_baseline(results)
    return conclude([check])


@claim(
    "C24",
    "L_co on 1 % of the channels does not induce CO.",
    "Fig. 5: CO mark of L_co with p = 1 at 8/255.",
    paper="says so (Fig. 5)",
)
def c24(results: Results) -> Finding:
    """It does not collapse, and converges."""
    if all_are(results, "co-1-8", NOT_CONVERGED):
        raise UnmetError(f"the claim is about a model that learns, and {ended(results, 'co-1-8')}")
    collapses = all_are(results, "co-1-8", COLLAPSED)
    if collapses:
        _require_stable_baseline(results)
    return conclude([Check(None if collapses is None else not collapses, ended(results, "co-1-8"), "no CO")])


@claim(
    "C25",
    "L_co on 20 % of the channels prevents convergence.",
    "Fig. 5: final clean accuracy of L_co with p = 20 at 8/255.",
    paper="says so (Fig. 5)",
)
def c25(results: Results) -> Finding:
    """Final clean accuracy at most 1.5 times that of guessing."""
    return conclude([Check(all_are(results, "co-20-8", NOT_CONVERGED), ended(results, "co-20-8"), "no convergence")])


@claim(
    "C26",
    "L_co on the 10 % channels of highest variance makes training hard to converge.",
    "Fig. 6: convergence, and final clean accuracy against that of L_co on the 10 % most salient channels.",
    paper="says so (Fig. 6)",
    needs=[_BY_T_ACT, _BY_VARIANCE],
)
def c26(results: Results) -> Finding:
    """It does not converge, or ends at least 20 points of clean accuracy lower."""
    if all_are(results, _BY_VARIANCE.run, NOT_CONVERGED):
        return conclude([Check(True, ended(results, _BY_VARIANCE.run), "no convergence")])
    gap = accuracies(results, _BY_T_ACT)(CLEAN) - accuracies(results, _BY_VARIANCE)(CLEAN)
    return conclude([at_least("clean accuracy lost", gap, 0.20)])


CLAIMS = (c22, c23, c24, c25, c26)
