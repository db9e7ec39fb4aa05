"""C27–C34, C40, C43: noise on the input of a collapsed model undoes the attack."""

from __future__ import annotations

from itertools import pairwise

from coprobe.attacks.examples import CLEAN
from coprobe.paper.claims.reading import (
    COLLAPSED,
    LABELS,
    Accuracies,
    accuracies,
    all_are,
    at_hand,
    cells,
    require_collapse,
    require_stable,
)
from coprobe.paper.claims.record import Check, Finding, UnmetError, at_least, at_most, claim, conclude, shown
from coprobe.paper.needs import ATTACKS, COLUMNS, NOISE, STRONG, Need
from coprobe.paper.published import published
from coprobe.paper.results import Results
from coprobe.paper.runs import TABLE5_XI

CO, CO_16, FD, WITH_EQ10, ORIGIN = "mep-12", "mep-16", "fd-b200-12", "mep-eq10-12", "origin"
_BOTH = ("none", NOISE)
#: Without an attack (Table 3).
_CO_CLEAN = Need(CO, "accuracy", noises=_BOTH)
_FD_CLEAN = Need(FD, "accuracy", "best", noises=_BOTH)
_ORIGIN_CLEAN = Need(ORIGIN, "accuracy", noises=_BOTH)
_FIG9 = Need(CO, "accuracy", attacks=("pgd50", "cw"), noises=_BOTH)
#: Figs. 8a and 8b at ξ_E = 12 and 16.
_FIG8 = {
    xi: (
        Need(WITH_EQ10, "accuracy", "best", xi, attacks=COLUMNS, noises=_BOTH),
        Need(CO, "accuracy", "last", xi, attacks=COLUMNS, noises=_BOTH),
    )
    for xi in (12, 16)
}
_TABLE5_CO = {xi: Need(f"mep-{xi}", "accuracy", attacks=COLUMNS, noises=(NOISE,)) for xi in TABLE5_XI}
_TABLE5_OTHERS = {
    xi: tuple(
        Need(f"{short}-{xi}", "accuracy", "best", attacks=COLUMNS, noises=(NOISE,))
        for short in ("atas", "zerograd", "cs", "fd-b200")
    )
    for xi in TABLE5_XI
}
_UNIFORM = ("U(10)", "U(12)", "U(14)", "U(16)")
_GAUSS = ("Gauss(10)", "Gauss(12)", "Gauss(14)", "Gauss(16)")
_TABLE4 = Need(CO_16, "accuracy", attacks=STRONG, noises=(*_UNIFORM, *_GAUSS))
_TABLE6 = tuple(Need(run, "accuracy", attacks=ATTACKS, noises=_BOTH) for run in (ORIGIN, "origin-c100"))
_TABLE7 = {xi: Need(f"rs-{xi}", "accuracy", attacks=("pgd50",), noises=_BOTH) for xi in TABLE5_XI}


def _without_and_with(table: int, metric: str, **keys: str | float | None) -> str:
    """What the paper prints without noise → with U(16)."""
    return " → ".join(cells(table, (metric,), noise=noise, **keys) for noise in _BOTH)


@claim(
    "C27",
    "CO-affected and stable models bear noise on clean images; models trained on clean images do not.",
    "Table 3: clean accuracy lost to U(16), of the baseline and of L_stable at 12/255 and of clean training.",
    paper=lambda: (
        "Table 3, without → with noise: "
        + "; ".join(f"{name} {_without_and_with(3, CLEAN, method=name)}" for name in ("CO", "Stable", "Origin"))
    ),
    needs=[_CO_CLEAN, _FD_CLEAN, _ORIGIN_CLEAN],
)
def c27(results: Results) -> Finding:
    """At most 1 and 2 points, and at least 10."""
    require_collapse(results, CO)
    require_stable(results, FD)
    co, stable, origin = (accuracies(results, need).gain(CLEAN) for need in (_CO_CLEAN, _FD_CLEAN, _ORIGIN_CLEAN))
    return conclude(
        [
            at_least("CO", co, -0.01),
            at_least("stable", stable, -0.02),
            at_most("trained on clean images", origin, -0.10),
        ]
    )


@claim(
    "C28",
    "CO-affected models keep a higher clean accuracy than stable ones.",
    "Table 3: clean accuracy of the collapsed baseline minus that of L_stable, both at 12/255.",
    paper=lambda: (
        f"Table 3: CO {cells(3, (CLEAN,), method='CO', noise='none')}, "
        f"stable {cells(3, (CLEAN,), method='Stable', noise='none')}"
    ),
    needs=[_CO_CLEAN, _FD_CLEAN],
)
def c28(results: Results) -> Finding:
    """At least 10 points higher."""
    require_collapse(results, CO)
    require_stable(results, FD)
    gap = accuracies(results, _CO_CLEAN)(CLEAN) - accuracies(results, _FD_CLEAN)(CLEAN)
    return conclude([at_least("clean, CO minus stable", gap, 0.10)])


@claim(
    "C29",
    "Perturbations made against a CO-affected model lose their force when noise is added.",
    "Fig. 9: accuracy under PGD-50 and C&W at 16/255 with U(16) minus without, collapsed baseline at 12/255.",
    paper="says so (Fig. 9)",
    needs=[_FIG9],
)
def c29(results: Results) -> Finding:
    """At least 30 points under both."""
    require_collapse(results, CO)
    found = accuracies(results, _FIG9)
    return conclude([at_least(LABELS[attack], found.gain(attack), 0.30) for attack in found.attacks])


@claim(
    "C30",
    "The logit term of Eq. 10 greatly improves robustness.",
    "Fig. 8a: accuracy under PGD-50 at 12 and 16/255, trained with Eq. 10 minus without, at 12/255.",
    paper="says so (Fig. 8a)",
    needs=[need for pair in _FIG8.values() for need in pair],
)
def c30(results: Results) -> Finding:
    """At least 10 points at both budgets."""
    require_collapse(results, CO)
    checks = []
    for xi, pair in _FIG8.items():
        ours, without = (accuracies(results, need)("pgd50") for need in pair)
        checks.append(at_least(f"PGD-50 at {xi}/255", ours - without, 0.10))
    return conclude(checks)


@claim(
    "C31",
    "The less robust a model, the weaker are its adversarial examples under noise.",
    "Fig. 8b: change of accuracy by U(16) under every attack, trained with Eq. 10 against without.",
    paper="says so (Fig. 8b)",
    needs=[need for pair in _FIG8.values() for need in pair],
)
def c31(results: Results) -> Finding:
    """With Eq. 10 the change is at most a fifth of that without, under every attack and at both budgets."""
    require_collapse(results, CO)
    checks, changes = [], []
    for xi, pair in _FIG8.items():
        ours, without = (accuracies(results, need) for need in pair)
        for attack in ours.attacks:
            robust, weak = ours.gain(attack), without.gain(attack)
            name = f"{LABELS[attack]} at {xi}/255"
            checks.append(
                at_least(f"{name}: a fifth of the change without minus that with", abs(weak) * 0.2 - abs(robust), 0)
            )
            changes.append((abs(robust.value), abs(weak.value)))
    with_it, without_it = zip(*changes, strict=True)
    value = f"largest change with Eq. 10 {100 * max(with_it):.1f} pp, smallest without {100 * min(without_it):.1f} pp"
    return conclude(checks, value)


def _published_first() -> int:
    """In how many cells (ξ_T, column) of the paper's Table 5 its collapsed model is first."""
    wide = published(5).pivot(index=["xi_train", "metric"], columns="method", values="value")
    return int((wide["Ours-CO"] >= wide.max(axis=1)).sum())


@claim(
    "C32",
    "A CO-affected model with noise is best in clean and in robust accuracy.",
    "Table 5: collapsed baseline against ATAS, ZeroGrad, C.Smooth and L_stable, all with U(16), every column and ξ_T.",
    paper=lambda: f"Table 5: first in {_published_first()} of 32 cells",
    needs=[*_TABLE5_CO.values(), *(need for others in _TABLE5_OTHERS.values() for need in others)],
)
def c32(results: Results) -> Finding:
    """Nowhere below another. Budgets at which the baseline did not collapse are left out, and leave it open."""
    checks, first, count = [], 0, 0
    with_co = _collapsed(results, {xi: need.run for xi, need in _TABLE5_CO.items()})
    for xi in with_co:
        ours = accuracies(results, _TABLE5_CO[xi])
        others = {need.run: accuracies(results, need) for need in _TABLE5_OTHERS[xi]}
        for column in ours.columns:
            mine, theirs = ours(column, NOISE), {run: found(column, NOISE) for run, found in others.items()}
            first += all(mine.value >= other.value for other in theirs.values())
            count += 1
            checks += [
                at_least(f"{LABELS[column]}, mep-{xi} minus {run}:", mine - other, 0) for run, other in theirs.items()
            ]
    return conclude([*checks, *_not_collapsed(with_co)], f"CO + noise first in {first} of {count} cells")


def _collapsed(results: Results, runs: dict[int, str]) -> list[int]:
    """The budgets at which the run collapsed in every seed; `UnmetError` if there are none."""
    found = [xi for xi, run in runs.items() if all_are(results, run, COLLAPSED)]
    if not found:
        raise UnmetError(
            f"none of {', '.join(runs.values())} collapsed at this scale, and the claim is about collapsed models"
        )
    return found


def _not_collapsed(with_co: list[int]) -> list[Check]:
    """An open condition per budget that has no collapsed model."""
    return [Check(None, f"no collapsed model at {xi}/255", "one") for xi in TABLE5_XI if xi not in with_co]


@claim(
    "C33",
    "Of all noises U(16) is the best.",
    "Table 4: collapsed baseline at 16/255 under four uniform and four Gaussian noises, every column.",
    paper=lambda: (
        "Table 4 (clean / PGD-50 / C&W / AA): "
        + "; ".join(f"{noise} {cells(4, (CLEAN, *STRONG), noise=noise)}" for noise in ("U(16)", "U(12)", "Gauss(12)"))
    ),
    needs=[_TABLE4],
)
def c33(results: Results) -> Finding:
    """First in every column."""
    require_collapse(results, CO_16)
    found = accuracies(results, _TABLE4)
    checks = [
        at_least(f"{LABELS[column]}, {NOISE} minus {noise}:", found(column, NOISE) - found(column, noise), 0)
        for column in found.columns
        for noise in _TABLE4.noises
        if noise != NOISE
    ]
    best = {column: max(_TABLE4.noises, key=lambda noise: found(column, noise).value) for column in found.columns}
    lead = shown(found(CLEAN, NOISE) - found(CLEAN, "U(12)"), "pp")
    winners = ", ".join(f"{LABELS[column]} {noise}" for column, noise in best.items())
    return conclude(checks, f"best: {winners}; clean lead over U(12) {lead}")


@claim(
    "C34",
    "More uniform noise helps robustness and leaves clean accuracy as it is; more Gaussian noise costs clean accuracy.",
    "Table 4: PGD-50 over a, range of clean accuracy over a, clean accuracy over σ.",
    paper=lambda: (
        "Table 4, PGD-50 over a: "
        + ", ".join(cells(4, ("pgd50",), noise=noise) for noise in _UNIFORM)
        + "; clean over a: "
        + ", ".join(cells(4, (CLEAN,), noise=noise) for noise in _UNIFORM)
        + "; clean over σ: "
        + ", ".join(cells(4, (CLEAN,), noise=noise) for noise in _GAUSS)
    ),
    needs=[_TABLE4],
)
def c34(results: Results) -> Finding:
    """PGD-50 rises with every a, clean accuracy ranges over at most half a point, and falls with every σ."""
    require_collapse(results, CO_16)
    found = accuracies(results, _TABLE4)
    ordered = sorted((found(CLEAN, noise) for noise in _UNIFORM), key=lambda one: one.value)
    return conclude(
        [
            *_rises(found, "pgd50", _UNIFORM),
            at_most("clean range over a", ordered[-1] - ordered[0], 0.005),
            *_rises(found, CLEAN, _GAUSS[::-1]),
        ]
    )


def _rises(found: Accuracies, column: str, noises: tuple[str, ...]) -> list[Check]:
    return [
        at_least(f"{LABELS[column]} from {one} to {other}", found(column, other) - found(column, one), 0)
        for one, other in pairwise(noises)
    ]


@claim(
    "C40",
    "Noise does not help models trained on clean images.",
    "Table 6: accuracy with U(16) under PGD-50, C&W and AA, and what it adds under FGSM.",
    paper=lambda: (
        "Table 6, FGSM without → with noise: "
        + "; ".join(f"{data} {_without_and_with(6, 'fgsm', dataset=data)}" for data in ("CIFAR-10", "CIFAR-100"))
        + "; 0.00 under the others"
    ),
    needs=_TABLE6,
)
def c40(results: Results) -> Finding:
    """At most 1 % under PGD-50, C&W and AA; at most 3 points more under FGSM."""
    checks = []
    for need in _TABLE6:
        if at_hand(results, [need.run]):
            found = accuracies(results, need)
            checks += [at_most(f"{need.run}, {LABELS[one]}", found(one, NOISE), 0.01, "%") for one in STRONG]
            checks.append(at_most(f"{need.run}, FGSM gain", found.gain("fgsm"), 0.03))
    return conclude(checks)


@claim(
    "C43",
    "The effect of noise is not tied to FGSM-MEP: collapsed FGSM-RS models show it as well.",
    "Table 7: accuracy of FGSM-RS under PGD-50 without and with U(16), four ξ_T.",
    paper=lambda: (
        "Table 7, PGD-50 without → with noise: "
        + "; ".join(f"{xi}/255 {_without_and_with(7, 'pgd50', xi_train=xi)}" for xi in TABLE5_XI)
    ),
    needs=tuple(_TABLE7.values()),
)
def c43(results: Results) -> Finding:
    """At most 5 % without noise and at least 30 % with it. Budgets without collapse are left out, and leave it open."""
    with_co = _collapsed(results, {xi: need.run for xi, need in _TABLE7.items()})
    checks = []
    for xi in with_co:
        found = accuracies(results, _TABLE7[xi])
        checks.append(at_most(f"{xi}/255 without noise", found("pgd50"), 0.05, "%"))
        checks.append(at_least(f"{xi}/255 with noise", found("pgd50", NOISE), 0.30, "%"))
    return conclude([*checks, *_not_collapsed(with_co)])


CLAIMS = (c27, c28, c29, c30, c31, c32, c33, c34, c40, c43)
