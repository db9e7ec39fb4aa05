"""C01–C14: what happens inside a model when it falls into catastrophic overfitting."""

from __future__ import annotations

import numpy as np

from coprobe.attacks.examples import CLEAN
from coprobe.figures import fig04
from coprobe.paper.claims.reading import LABELS, masked, require_collapse, require_stable
from coprobe.paper.claims.record import (
    Check,
    Estimate,
    Finding,
    UnmetError,
    at_least,
    at_most,
    claim,
    conclude,
    mean,
    shown,
)
from coprobe.paper.needs import ATTACKS, XI, Need
from coprobe.paper.results import Results

CO, FD = "mep-12", "fd-b200-12"
#: The baseline on other data and with another network. The plan has neither run, so far.
ELSEWHERE = ("mep-12-c100", "mep-12-preact")
_CHANNELS, _STABLE = Need(CO, "channels"), Need(FD, "channels", "best")
_OVERLAP = Need(CO, "overlap")
_MASKING = Need(CO, "masking", attacks=ATTACKS)
_SALIENT, _HALF, _MOST = (f"T_act > {alpha2:g}" for alpha2 in fig04.ALPHA2)


def _collapses(results: Results, run: str) -> list[tuple[int, dict[str, np.ndarray]]]:
    """Of every seed the epoch of collapse (from 1) and V_act at 16/255 at A…E after every epoch."""
    require_collapse(results, run)
    history = results.history(run)
    suffix = f"_{results.scale.budget(XI):g}"
    if f"v_act_A{suffix}" not in history:  # not watched at the second radius
        suffix = ""
    return [
        (
            int(results.outcome(run, int(str(seed)))["collapse_epoch"]),
            {node: rows[f"v_act_{node}{suffix}"].to_numpy(dtype=float) for node in "ABCDE"},
        )
        for seed, rows in history.groupby("seed")
    ]


def _require_before(epochs: int, collapse: int) -> None:
    if collapse <= epochs:
        raise UnmetError(f"the collapse came in epoch {collapse}, and the rule needs {epochs} epochs before it")


def _jumps(results: Results, run: str) -> list[Check]:
    checks = []
    for collapse, v_act in _collapses(results, run):
        _require_before(3, collapse)
        for node in "ABC":
            values = v_act[node]
            jump = int((values[1:] / values[:-1]).argmax()) + 2
            ratio = float(values[collapse - 1] / values[collapse - 4])
            checks += [
                at_least(f"V_{node} over three epochs", ratio, 2, "×"),
                Check(
                    abs(jump - collapse) <= 2,
                    f"V_{node} jumps most in epoch {jump} (collapse in {collapse})",
                    "within two epochs",
                ),
            ]
    return checks


@claim(
    "C01",
    "When CO happens, V_act jumps in the same epoch.",
    "Fig. 1: V_act at A, B, C at the collapse over that three epochs earlier, and the epoch of its largest jump.",
    paper="says so (Fig. 1)",
)
def c01(results: Results) -> Finding:
    """At A, B, C V(e)/V(e−3) ≥ 2 at the collapse e, and the largest jump is within two epochs of e."""
    return conclude(_jumps(results, CO))


@claim(
    "C02",
    "Before CO, V_act at nodes A to C settles to a small value.",
    "Fig. 1: relative change of V_act over the ten epochs before the collapse.",
    paper="says so (Fig. 1)",
)
def c02(results: Results) -> Finding:
    """The change from first to last of the ten epochs before the collapse is below 20 % at A, B, C."""
    checks = []
    for collapse, v_act in _collapses(results, CO):
        _require_before(10, collapse)
        for node in "ABC":
            change = abs(float(v_act[node][collapse - 2] / v_act[node][collapse - 11]) - 1)
            checks.append(at_most(f"change of V_{node} over ten epochs", change, 0.2, "%"))
    return conclude(checks)


@claim(
    "C03",
    "Of all nodes, B reacts most to CO.",
    "Fig. 1: mean V_act of up to three epochs from the collapse on over that of up to three before, per node.",
    paper="says so (Fig. 1)",
)
def c03(results: Results) -> Finding:
    """B has the largest ratio in every seed."""
    checks = []
    for collapse, v_act in _collapses(results, CO):
        since = collapse - 1
        ratios = {
            node: float(values[since : since + 3].mean() / values[max(0, since - 3) : since].mean())
            for node, values in v_act.items()
        }
        found = ", ".join(f"{node} {ratio:.3g}" for node, ratio in ratios.items())
        largest = max(ratios, key=lambda node: ratios[node])
        checks.append(Check(largest == "B", f"V_act after / before CO: {found}", "largest at B"))
    return conclude(checks)


@claim(
    "C04",
    "V_act jumps with CO on other data sets and in other networks as well.",
    "C01 with CIFAR-100 and with a second network.",
    paper="says so (supplement)",
)
def c04(results: Results) -> Finding:
    """C01 passes in both runs."""
    return conclude([check for run in ELSEWHERE for check in _jumps(results, run)])


@claim(
    "C05",
    "In a CO-affected model few channels of node A are salient and most hardly move.",
    "Fig. 3: T_act per channel of node A, final checkpoint of the baseline at 12/255, mean over images in Eq. 6.",
    paper="says so (Fig. 3)",
    needs=[_CHANNELS],
)
def c05(results: Results) -> Finding:
    """From one channel to a quarter of them have T_act > 0.99, and the median is below 0.1."""
    require_collapse(results, CO)
    t_act = results.channels(CO).t_act("A")
    count, most = int((t_act > 0.99).sum()), len(t_act) // 4
    found = f"{count} of {len(t_act)} channels with T_act > 0.99"
    few = Check(1 <= count <= most, found, f"from 1 to {most}")
    return conclude([few, at_most("median T_act", float(np.median(t_act)), 0.1, "")])


@claim(
    "C06",
    "In stable training every channel of node A has a T_act near 0.",
    "Fig. 3: largest T_act at node A, best checkpoint trained with L_stable at B (α3 = 200, 12/255).",
    paper="says so (Fig. 3)",
    needs=[_STABLE],
)
def c06(results: Results) -> Finding:
    """No T_act above 0.1."""
    require_stable(results, FD)
    return conclude([at_most("largest T_act", float(results.channels(FD, "best").t_act("A").max()), 0.1, "")])


@claim(
    "C07",
    "The salient channels are the same for different examples.",
    "Jaccard index of each image's five channels of largest V_act at node A with those of all images; of two halves.",
    paper="says so (Fig. 3)",
    needs=[_OVERLAP],
)
def c07(results: Results) -> Finding:
    """Under every attack the mean over images is ≥ 0.6 and that of the halves ≥ 0.9."""
    require_collapse(results, CO)
    checks = []
    means = results.get(_OVERLAP).groupby("attack", sort=False)[["jaccard_images", "jaccard_halves"]].mean()
    for attack, images, halves in means.itertuples(name=None):
        checks.append(at_least(f"{attack}: images", float(images), 0.6, ""))
        checks.append(at_least(f"{attack}: halves", float(halves), 0.9, ""))
    return conclude(checks)


def _fig4(results: Results, *needed: str) -> tuple[dict[tuple[str, str], Estimate], dict[str, int]]:
    """Accuracies by (mask, attack) and channels per mask; `UnmetError` where a needed mask covers none."""
    require_collapse(results, CO)
    values, counts = masked(results, _MASKING)
    for mask in needed:
        if not counts[mask]:
            raise UnmetError(f"no channel of node A has {mask} at this scale, so nothing is masked")
    return values, counts


def _adversarial(values: dict[tuple[str, str], Estimate], mask: str) -> Estimate:
    return mean([found for (name, attack), found in values.items() if name == mask and attack != CLEAN])


@claim(
    "C08",
    "Masking the channels with T_act > 0.99 raises adversarial accuracy at little cost in clean accuracy.",
    "Fig. 4: mean accuracy under FGSM, PGD-50, C&W and AA, and clean accuracy, without and with the mask.",
    paper="says so (Fig. 4)",
    needs=[_MASKING],
)
def c08(results: Results) -> Finding:
    """At least 10 points more adversarial accuracy, at most 5 points less clean accuracy."""
    values, _ = _fig4(results, _SALIENT)
    gain = _adversarial(values, _SALIENT) - _adversarial(values, "none")
    drop = values["none", CLEAN] - values[_SALIENT, CLEAN]
    return conclude([at_least("adversarial gain", gain, 0.10), at_most("clean drop", drop, 0.05)])


@claim(
    "C09",
    "Adversarial accuracy goes on rising when channels down to T_act > 0.5 are masked.",
    "Fig. 4: mean adversarial accuracy with T_act > 0.5 masked against T_act > 0.99.",
    paper="says so (Fig. 4)",
    needs=[_MASKING],
)
def c09(results: Results) -> Finding:
    """Not lower than with T_act > 0.99 masked."""
    values, counts = _fig4(results, _HALF)
    if counts[_HALF] == counts[_SALIENT]:
        raise UnmetError("no channel of node A has a T_act between 0.5 and 0.99 at this scale: both masks are the same")
    return conclude(
        [at_least("gain from 0.99 to 0.5", _adversarial(values, _HALF) - _adversarial(values, _SALIENT), 0)]
    )


@claim(
    "C10",
    "Masking down to T_act > 0.1 costs much clean accuracy.",
    "Fig. 4: clean accuracy with T_act > 0.5 masked minus that with T_act > 0.1 masked.",
    paper="says so (Fig. 4)",
    needs=[_MASKING],
)
def c10(results: Results) -> Finding:
    """At least 10 points."""
    values, counts = _fig4(results, _MOST)
    if counts[_MOST] == counts[_HALF]:
        raise UnmetError("no channel of node A has a T_act between 0.1 and 0.5 at this scale: both masks are the same")
    return conclude([at_least("clean drop from 0.5 to 0.1", values[_HALF, CLEAN] - values[_MOST, CLEAN], 0.10)])


@claim(
    "C11",
    "Masking always costs some clean accuracy, so data and attack can't be separated by channels.",
    "Fig. 4: clean accuracy without a mask minus that with each mask that covers a channel.",
    paper="says so (Fig. 4)",
    needs=[_MASKING],
)
def c11(results: Results) -> Finding:
    """Every mask costs some."""
    values, counts = _fig4(results, _MOST)
    masks = [mask for mask in (_SALIENT, _HALF, _MOST) if counts[mask]]
    return conclude([at_least(f"clean drop, {mask}", values["none", CLEAN] - values[mask, CLEAN], 0) for mask in masks])


@claim(
    "C12",
    "Channels chosen by their activation difference are the better ones to mask than those chosen by variance.",
    "Fig. 4: accuracy with T_act > 0.5 masked minus that with as many channels of highest variance masked.",
    paper="says so (Fig. 4)",
    needs=[_MASKING],
)
def c12(results: Results) -> Finding:
    """Better on clean images and under every attack."""
    values, _ = _fig4(results, _HALF)
    columns = [attack for mask, attack in values if mask == "variance"]
    return conclude([at_least(LABELS[one], values[_HALF, one] - values["variance", one], 0) for one in columns])


@claim(
    "C13",
    "Masking channels of high variance hurts clean accuracy strongly.",
    "Fig. 4: clean drop with channels of highest variance masked against that with T_act > 0.5 masked.",
    paper="says so (Fig. 4)",
    needs=[_MASKING],
)
def c13(results: Results) -> Finding:
    """At least twice the drop of T_act > 0.5."""
    values, _ = _fig4(results, _HALF)
    ours, theirs = (values["none", CLEAN] - values[mask, CLEAN] for mask in (_HALF, "variance"))
    value = f"clean drop by variance {shown(theirs, 'pp')}, by T_act > 0.5 {shown(ours, 'pp')}"
    return conclude([at_least("drop by variance minus twice that by T_act", theirs - ours * 2, 0)], value)


@claim(
    "C14",
    "The perturbation covers the data by raising few channels and leaves the others as they are.",
    "Mean change of the activations at node A over their clean mean, of channels with T_act > 0.99 and of the others.",
    paper="says so",
    needs=[_CHANNELS],
)
def c14(results: Results) -> Finding:
    """Salient channels rise by at least their clean mean, the others change by less than a quarter of theirs."""
    require_collapse(results, CO)
    table = results.channels(CO).table()
    table = table[table["node"] == "A"]
    salient = table["t_act"] > 0.99
    if salient.all() or not salient.any():
        raise UnmetError(f"{salient.sum()} of {len(table)} channels of node A have T_act > 0.99 at this scale")
    sums = table.groupby(salient)[["mean_change", "mean_clean"]].sum()
    change = sums["mean_change"] / sums["mean_clean"]
    return conclude(
        [
            at_least("change of salient channels over their clean mean", float(change[True]), 1, "×"),
            at_most("magnitude of that of the others", abs(float(change[False])), 0.25, "×"),
        ]
    )


CLAIMS = (c01, c02, c03, c04, c05, c06, c07, c08, c09, c10, c11, c12, c13, c14)
