"""C15–C21: L_stable keeps a model from catastrophic overfitting."""

from __future__ import annotations

from coprobe.attacks.examples import CLEAN
from coprobe.paper.claims.reading import (
    COLLAPSED,
    LABELS,
    NOT_CONVERGED,
    STABLE,
    accuracies,
    all_are,
    at_hand,
    cells,
    ended,
    marks,
    require_collapse,
)
from coprobe.paper.claims.record import (
    Check,
    Estimate,
    Finding,
    UnmetError,
    at_least,
    at_most,
    claim,
    conclude,
    shown,
)
from coprobe.paper.needs import COLUMNS, NOISE, STRONG, Need
from coprobe.paper.published import published, published_value
from coprobe.paper.results import Results
from coprobe.paper.runs import TABLE1_ALPHA3, TABLE2_ALPHA3, TABLE5_XI

BASELINE, FD, SMOOTH = "mep-12", "fd-b200-12", "cs-12"
_GRID = {(node, alpha3): f"fd-{node.lower()}{alpha3}-12" for node in "ABCDE" for alpha3 in TABLE1_ALPHA3}
_WORKING = {alpha3: Need(f"fd-b{alpha3}-12", "accuracy", "best", attacks=STRONG) for alpha3 in TABLE2_ALPHA3[1:]}
_NO_CO = ("fd-b200-10", "fd-b200-12", "fd-b200-14", "fd-b200-16")
_NO_CO_C100 = ("fd-b200-12-c100", "fd-b200-16-c100")


def _table2(run: str) -> Need:
    return Need(run, "accuracy", "best", attacks=STRONG)


def _table5(run: str) -> Need:
    return Need(run, "accuracy", "best", attacks=COLUMNS, noises=(NOISE,))


#: Ours-FD and what it is held against, in Table 2 (no noise) and Table 5 (U(16)).
_RIVALS = (
    *((_table2(f"fd-b200-{xi}"), _table2(f"{other}-{xi}")) for xi in (12, 16) for other in ("cs", "mep-eq10")),
    *((_table5(f"fd-b200-{xi}"), _table5(f"cs-{xi}")) for xi in TABLE5_XI),
    *((_table2(f"fd-b200-{xi}-c100"), _table2(f"cs-{xi}-c100")) for xi in (12, 16)),
)


def _published(mark: int) -> str:
    """The settings with this mark in the paper's Table 1."""
    rows = published(1).query("metric == 'co' and value == @mark")
    return ", ".join(f"{node}/{alpha3:g}" for node, alpha3 in rows[["node", "alpha3"]].itertuples(index=False))


def _published_minutes(method: str, alpha3: float | None = None) -> float:
    """The paper's training time of a method over that of the baseline."""
    keys: dict[str, str | float] = {"dataset": "CIFAR-10", "xi_train": 12, "metric": "minutes"}
    ours, base = (
        published_value(2, **one, **keys) for one in ({"method": method, "alpha3": alpha3}, {"method": "FGSM-MEP"})
    )
    assert ours is not None
    assert base is not None
    return ours / base


@claim(
    "C15",
    "Only at node B does L_stable remove CO.",
    "Table 1: CO marks of five nodes × four α3 at 12/255.",
    paper=lambda: f"Table 1: without CO {_published(STABLE)}",
)
def c15(results: Results) -> Finding:
    """Some setting of B converges without CO and none of another node does."""
    require_collapse(results, BASELINE)
    found = {setting: all_are(results, run, STABLE) for setting, run in _GRID.items()}
    free = [f"{node}/{alpha3}" for (node, alpha3), stable in found.items() if stable]
    at_b = {stable for (node, _), stable in found.items() if node == "B"}
    checks = [Check(True if True in at_b else None if None in at_b else False, "node B", "without CO at some α3")]
    for (node, alpha3), stable in found.items():
        if node != "B":
            affected = None if stable is None else not stable
            checks.append(Check(affected, ended(results, _GRID[node, alpha3]), "CO or no convergence"))
    return conclude(checks, f"without CO: {', '.join(free) or 'none'}")


@claim(
    "C16",
    "At node B α3 = 200 is enough to remove CO and 100 is not.",
    "Table 1: CO marks of node B.",
    paper=lambda: f"Table 1: without CO {_published(STABLE)}",
)
def c16(results: Results) -> Finding:
    """CO, none, none, none."""
    require_collapse(results, BASELINE)
    run = _GRID["B", 100]
    checks = [Check(all_are(results, run, COLLAPSED), ended(results, run), "CO")]
    for run in (_GRID["B", alpha3] for alpha3 in TABLE1_ALPHA3[1:]):
        checks.append(Check(all_are(results, run, STABLE), ended(results, run), "no CO"))
    return conclude(checks)


@claim(
    "C17",
    "Three settings of L_stable do not converge: A/400, A/1000, E/1000.",
    "Table 1: final clean accuracy at most 1.5 times that of guessing.",
    paper=lambda: f"Table 1: not converged {_published(NOT_CONVERGED)}",
)
def c17(results: Results) -> Finding:
    """These three and no other."""
    failing = {("A", 400), ("A", 1000), ("E", 1000)}
    found = {setting: all_are(results, run, NOT_CONVERGED) for setting, run in _GRID.items()}
    names = [f"{node}/{alpha3}" for (node, alpha3), failed in found.items() if failed]
    checks = [
        Check(
            None if failed is None else failed == (setting in failing),
            ended(results, _GRID[setting]),
            "without convergence" if setting in failing else "converged",
        )
        for setting, failed in found.items()
    ]
    return conclude(checks, f"not converged: {', '.join(names) or 'none'}")


@claim(
    "C18",
    "In stable training L_stable goes to 0, and α3 hardly matters.",
    "L_stable / α3 in the last epoch over its maximum; spread of the best checkpoints over α3 = 200 … 1000 at node B.",
    paper=lambda: (
        "L_stable close to 0; Table 2 (clean / PGD-50 / C&W / AA): "
        + "; ".join(
            f"α3 = {alpha3}: "
            + cells(2, (CLEAN, *STRONG), dataset="CIFAR-10", method="Ours-FD", xi_train=12, alpha3=alpha3)
            for alpha3 in _WORKING
        )
    ),
    needs=tuple(_WORKING.values()),
)
def c18(results: Results) -> Finding:
    """Last mean squared change ≤ 10 % of its maximum; spread ≤ 3 points clean and ≤ 1.5 under PGD-50, C&W, AA."""
    runs = [need.run for need in _WORKING.values() if set(marks(results, need.run)) == {STABLE}]
    if not runs:
        raise UnmetError("no training with L_stable at B and α3 ≥ 200 is stable at this scale")
    checks = []
    for run in runs:
        for seed, rows in results.history(run).groupby("seed"):
            stable = rows["stable"]
            name = f"{run}: last L_stable over its maximum" + (f", seed {seed}" if results.seeds_of(run) > 1 else "")
            checks.append(at_most(name, float(stable.iloc[-1] / stable.max()), 0.1, "%"))
    found = [accuracies(results, need) for need in _WORKING.values()]
    for column in found[0].columns:
        ordered = sorted((one(column) for one in found), key=lambda one: one.value)
        limit = 0.03 if column == CLEAN else 0.015
        checks.append(at_most(f"{LABELS[column]}: spread over α3", ordered[-1] - ordered[0], limit))
    return conclude(checks)


@claim(
    "C19",
    "α3 = 200 at node B keeps other budgets, data sets and networks from CO.",
    "CO marks of L_stable at B, α3 = 200: CIFAR-10 at 10, 12, 14, 16/255 and CIFAR-100 at 12, 16/255.",
    paper="says so (Tables 2 and 5, supplement)",
)
def c19(results: Results) -> Finding:
    """No CO in any. One that collapses refutes it, whatever else is not measured."""
    checks = [Check(all_are(results, run, STABLE), ended(results, run), "no CO") for run in _NO_CO]
    if not any(check.passed is False for check in checks):
        require_collapse(results, BASELINE)
        checks += [Check(all_are(results, run, STABLE), ended(results, run), "no CO") for run in _NO_CO_C100]
    return conclude(checks)


@claim(
    "C20",
    "Training with L_stable is at least as good as the state of the art.",
    "Tables 2 and 5: Ours-FD (B, 200) minus C.Smooth and minus FGSM-MEP in every column at the same ξ_T.",
    paper=lambda: (
        "Table 2 at 12/255 (clean / PGD-50 / C&W / AA): "
        + "; ".join(
            f"{method} " + cells(2, (CLEAN, *STRONG), dataset="CIFAR-10", method=method, xi_train=12, alpha3=alpha3)
            for method, alpha3 in (("Ours-FD", 200), ("C.Smooth", None), ("FGSM-MEP", None))
        )
    ),
    needs=[need for pair in _RIVALS for need in pair],
)
def c20(results: Results) -> Finding:
    """Nowhere more than half a point worse."""
    checks = []
    for ours, theirs in _RIVALS:
        if not at_hand(results, [ours.run]):
            continue
        first, second = accuracies(results, ours), accuracies(results, theirs)
        (noise,) = ours.noises
        under = "" if noise == "none" else f" + {noise}"
        checks += [
            at_least(
                f"{LABELS[column]}{under}, {ours.run} against {theirs.run}:",
                first(column, noise) - second(column, noise),
                -0.005,
            )
            for column in first.columns
        ]
    even = sum(check.passed is True for check in checks)
    worse = sum(check.passed is False for check in checks)
    return conclude(checks, f"not worse in {even}, worse in {worse} of {len(checks)} comparisons, the rest open")


@claim(
    "C21",
    "L_stable costs about 1 % more time than the baseline; C.Smooth costs 13 %.",
    "Median seconds per epoch of training, with quartiles over the epochs; runs that shared a machine don't compare.",
    paper=lambda: (
        f"Table 2, ratios of minutes: {_published_minutes('Ours-FD', 200):.3f} and {_published_minutes('C.Smooth'):.3f}"
    ),
)
def c21(results: Results) -> Finding:
    """FD / baseline ≤ 1.03; C.Smooth / baseline between 1.05 and 1.25."""
    ours, smooth = _times(results, FD), _times(results, SMOOTH)
    checks = [
        at_most("FD / baseline", ours, 1.03, "×"),
        at_least("C.Smooth / baseline", smooth, 1.05, "×"),
        at_most("C.Smooth / baseline", smooth, 1.25, "×"),
    ]
    value = f"FD / baseline {shown(ours, '×')}, C.Smooth / baseline {shown(smooth, '×')}, if no run shared the machine"
    return conclude(checks, value)


def _times(results: Results, run: str) -> Estimate:
    """Seconds per epoch over those of the baseline."""
    low, middle, high = results.history(run)["train_seconds"].quantile([0.25, 0.5, 0.75])
    base_low, base, base_high = results.history(BASELINE)["train_seconds"].quantile([0.25, 0.5, 0.75])
    return Estimate(middle / base, low / base_high, high / base_low)


CLAIMS = (c15, c16, c17, c18, c19, c20, c21)
