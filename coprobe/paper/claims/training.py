"""C35–C39, C41, C42, C44, C45: training on noise, transferred examples, absolute accuracies, how often CO comes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from coprobe.attacks.examples import CLEAN
from coprobe.masking import count_of_percent
from coprobe.paper.claims.reading import COLLAPSED, LABELS, accuracies, cells, marks, require_collapse
from coprobe.paper.claims.record import (
    UNDECIDED,
    Check,
    Finding,
    at_least,
    at_most,
    claim,
    conclude,
)
from coprobe.paper.needs import ATTACKS, NOISE, Need
from coprobe.paper.results import Results
from coprobe.paper.runs import FIG12_SOURCES, FIG12_XI

CO, CO_16 = "mep-12", "mep-16"
#: Trained on x + δ0 (Eq. 11), on x + δ + δ0 (Eq. 12), and on both.
ON_NOISE, ON_ADDED, ON_BOTH = "noise-16", "mep-noise-16", "mep-noise-both-16"
_FIG11 = {
    run: Need(run, "accuracy", attacks=("pgd50",), noises=("none", NOISE))
    for run in (ON_NOISE, ON_ADDED, ON_BOTH, CO_16)
}
_FIG10 = {run: Need(run, "increments") for run in (CO_16, ON_NOISE, ON_ADDED, ON_BOTH)}
#: S_k above which Fig. 10 counts a channel, and the number of images that it is a sum over.
_LARGE, _OVER = 1000, 10_000
_FD_16, _ORIGIN, _SMOOTH_16 = "fd-b200-16", Need("origin", "accuracy"), Need("cs-16", "accuracy", "best")


@claim(
    "C35",
    "To generalise to noise alone gives no robustness (Eq. 11).",
    "Fig. 11: model trained on U(±16/255) noise: accuracy under PGD-50, and clean accuracy lost to U(16).",
    paper="says so (Fig. 11)",
    needs=[_FIG11[ON_NOISE]],
)
def c35(results: Results) -> Finding:
    """PGD-50 at most 5 %; clean images lose at most 2 points by noise."""
    found = accuracies(results, _FIG11[ON_NOISE])
    return conclude(
        [at_most("PGD-50", found("pgd50"), 0.05, "%"), at_least("clean, by noise", found.gain(CLEAN), -0.02)]
    )


@claim(
    "C36",
    "Training on adversarial images with noise (Eq. 12) helps, but far less than CO with noise at inference.",
    "Fig. 11: PGD-50 of Eq. 12 minus that of Eq. 11, and of the collapsed baseline with U(16) minus that of Eq. 12.",
    paper="says so (Fig. 11)",
    needs=[_FIG11[run] for run in (ON_NOISE, ON_ADDED, CO_16)],
)
def c36(results: Results) -> Finding:
    """Above Eq. 11, and at least 10 points below CO + noise."""
    require_collapse(results, CO_16)
    noise, added = (accuracies(results, _FIG11[run])("pgd50") for run in (ON_NOISE, ON_ADDED))
    with_co = accuracies(results, _FIG11[CO_16])("pgd50", NOISE)
    return conclude(
        [at_least("Eq. 12 minus Eq. 11", added - noise, 0), at_least("CO + noise minus Eq. 12", with_co - added, 0.10)]
    )


@claim(
    "C37",
    "Training on both kinds of noisy images does not help further.",
    "Fig. 11: PGD-50 of the model trained on x + δ0 and x + δ + δ0 minus that on x + δ + δ0 alone.",
    paper="says so (Fig. 11)",
    needs=[_FIG11[ON_ADDED], _FIG11[ON_BOTH]],
)
def c37(results: Results) -> Finding:
    """At most 1 point."""
    added, both = (accuracies(results, _FIG11[run])("pgd50") for run in (ON_ADDED, ON_BOTH))
    return conclude([at_most("both minus added alone", both - added, 0.01)])


def _increments(results: Results, run: str) -> pd.DataFrame:
    """S_k of Fig. 10 at node A with columns seed, step, s, images."""
    frame = results.get(_FIG10[run])
    frame = frame[frame["node"] == "A"]
    return frame.assign(s=frame["difference_squared"] / (frame["channels"] * frame["positions"]))


def _share_of_top(s: np.ndarray) -> float:
    """The share of the sum that the 10 % largest hold."""
    return float(np.sort(s)[-count_of_percent(10, len(s)) :].sum() / s.sum())


def _gini(s: np.ndarray) -> float:
    """0 where all are the same, towards 1 where one has it all."""
    ranks = 2 * np.arange(1, len(s) + 1) - len(s) - 1
    return float((ranks * np.sort(s)).sum() / (len(s) * s.sum()))


@claim(
    "C38",
    "In CO-affected models an attack moves few channels, in models trained on noise it moves them evenly.",
    "Fig. 10: share of Σ S_k in the 10 % most moved channels of node A after PGD-10 at 16/255, and the Gini index.",
    paper="says so (Fig. 10)",
    needs=tuple(_FIG10.values()),
)
def c38(results: Results) -> Finding:
    """CO: at least half, and at least twice the share of every model trained on noise (mean over seeds)."""
    require_collapse(results, CO_16)
    shares, values = {}, []
    for run in _FIG10:
        frame = _increments(results, run)
        last = [rows["s"].to_numpy() for _, rows in frame[frame["step"] == frame["step"].max()].groupby("seed")]
        shares[run] = float(np.mean([_share_of_top(s) for s in last]))
        values.append(f"{run} {shares[run]:.2f} (Gini {np.mean([_gini(s) for s in last]):.2f})")
    checks = [at_least("share in the CO-affected model", shares[CO_16], 0.5, "")]
    for run in (ON_NOISE, ON_ADDED, ON_BOTH):
        checks.append(at_least(f"CO over {run}", shares[CO_16] / shares[run], 2, "×"))
    return conclude(checks, "; ".join(values))


@claim(
    "C39",
    "In models trained on noise many S_k exceed 1000, in CO-affected models fewer do.",
    "Fig. 10: channels of node A with S_k > 1000 (of 10,000 images; in proportion for fewer) after steps 5 to 10.",
    paper="says so (Fig. 10)",
    needs=tuple(_FIG10.values()),
)
def c39(results: Results) -> Finding:
    """More than in the CO-affected model after each of these steps, in every model trained on noise."""
    require_collapse(results, CO_16)
    counts = {}
    for run in _FIG10:
        frame = _increments(results, run).query("5 <= step <= 10")
        large = frame["s"] > _LARGE * frame["images"] / _OVER
        counts[run] = large.groupby(frame["step"]).sum() / results.seeds_of(run)
    values = [f"{run} {count.min():g} to {count.max():g} channels" for run, count in counts.items()]
    checks = [
        Check(bool((counts[run] > counts[CO_16]).all()), value, f"more than in {CO_16} after every step")
        for run, value in zip(counts, values, strict=True)
        if run != CO_16
    ]
    return conclude(checks, "; ".join(values))


def _fig12(run: str, sources: tuple[str, ...]) -> dict[int, tuple[Need, Need]]:
    """Of every ξ_E the white-box accuracies and those on transferred images."""
    return {
        xi: (
            Need(run, "accuracy", xi=xi, attacks=ATTACKS),
            Need(run, "transfer", xi=xi, attacks=ATTACKS, noises=("none", NOISE), sources=sources),
        )
        for xi in FIG12_XI
    }


_FIG12 = _fig12(CO, FIG12_SOURCES)
#: The plan has no baseline on CIFAR-100, so far.
_FIG12_C100 = _fig12("mep-12-c100", ("cs-12-c100", "cs-16-c100"))


def _transfers(results: Results, needs: dict[int, tuple[Need, Need]]) -> Finding:
    checks, values = [], []
    for xi, (white_box, transfer) in needs.items():
        require_collapse(results, transfer.run)
        own, others = accuracies(results, white_box), accuracies(results, transfer)
        for source in transfer.sources:
            for attack in own.attacks:
                name = f"{LABELS[attack]} from {source} at {xi}/255"
                found = others(attack, source=source)
                checks.append(at_least(f"{name} over white-box", found - own(attack), 0.30))
                checks.append(at_least(f"{name} over clean", found - own(CLEAN), -0.15))
                values.append(found.value)
    value = f"accuracy on transferred images {100 * min(values):.1f} to {100 * max(values):.1f} %"
    return conclude(checks, value)


@claim(
    "C41",
    "Examples made against stable models hardly hurt a CO-affected one.",
    "Fig. 12: collapsed baseline at 12/255, images from C.Smooth at 8, 12, 16/255, three ξ_E, four attacks, no noise.",
    paper="says so (Fig. 12)",
    needs=[need for pair in _FIG12.values() for need in pair],
)
def c41(results: Results) -> Finding:
    """Everywhere at least 30 points above white-box accuracy and at most 15 below clean accuracy."""
    return _transfers(results, _FIG12)


@claim(
    "C42",
    "Examples made against stable models hardly hurt a CO-affected one on CIFAR-100 either.",
    "C41 with CIFAR-100.",
    paper="says so (supplement)",
    needs=[need for pair in _FIG12_C100.values() for need in pair],
)
def c42(results: Results) -> Finding:
    """As C41."""
    return _transfers(results, _FIG12_C100)


@claim(
    "C44",
    "A ResNet-18 trained on clean images reaches about 94 %, adversarially at 16/255 only about 64 % clean accuracy.",
    "Clean accuracy of clean training and of C.Smooth at 16/255 on CIFAR-10.",
    paper=lambda: (
        f"Tables 6 and 2: {cells(6, (CLEAN,), dataset='CIFAR-10', noise='none')} and "
        + cells(2, (CLEAN,), dataset="CIFAR-10", method="C.Smooth", xi_train=16)
    ),
    needs=[_ORIGIN, _SMOOTH_16],
)
def c44(results: Results) -> Finding:
    """94 ± 1 % and 64 ± 2 %; only the paper's own scale can tell."""
    origin, smooth = accuracies(results, _ORIGIN)(CLEAN), accuracies(results, _SMOOTH_16)(CLEAN)
    checks = [
        at_least("clean training", origin, 0.93, "%"),
        at_most("clean training", origin, 0.95, "%"),
        at_least("C.Smooth", smooth, 0.62, "%"),
        at_most("C.Smooth", smooth, 0.66, "%"),
    ]
    finding = conclude(checks, f"{checks[0].found}; {checks[2].found}")
    if results.scale.name != "paper":
        why = f"the numbers are of ResNet-18 at full size, and this scale is: {results.scale.about}"
        return Finding(UNDECIDED, finding.value, why)
    return finding


@claim(
    "C45",
    "CO comes more often the larger ξ_T is.",
    "Share of seeds in which the baseline without Eq. 10 collapses at 8, 10, 12, 14, 16/255.",
    paper="stable at 8/255, CO from 12/255 on",
)
def c45(results: Results) -> Finding:
    """The rate never falls; it is 0 at 8/255 and 1 from 12/255 on. Fewer than three seeds make no rate."""
    ended = {xi: marks(results, f"mep-{xi}") for xi in (8, 10, 12, 14, 16)}
    rates = {xi: marks.count(COLLAPSED) / len(marks) for xi, marks in ended.items()}
    value = "CO rate " + ", ".join(f"{rate:.2g} at {xi}/255" for xi, rate in rates.items())
    if (fewest := min(map(len, ended.values()))) < 3:
        return Finding(UNDECIDED, value, f"{fewest} of at least 3 seeds were trained, too few for a rate")
    ordered = list(rates.values())
    return conclude(
        [
            Check(ordered == sorted(ordered), value, "non-decreasing"),
            Check(rates[8] == 0, f"{rates[8]:.2g} at 8/255", "0"),
            *(Check(rates[xi] == 1, f"{rates[xi]:.2g} at {xi}/255", "1") for xi in (12, 14, 16)),
        ],
        value,
    )


CLAIMS = (c35, c36, c37, c38, c39, c41, c42, c44, c45)
