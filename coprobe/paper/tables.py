"""Tables 1 to 7: which run stands in which row, what is measured for it, and ours beside what the paper prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Any

from coprobe.attacks.examples import CLEAN
from coprobe.data import title as data_title
from coprobe.errors import unknown
from coprobe.paper.measure import DRAWS
from coprobe.paper.needs import COLUMNS, NOISE, XI, Need, merged
from coprobe.paper.published import published_value
from coprobe.paper.results import MissingResultError, Results
from coprobe.paper.runs import RUNS, TABLE1_ALPHA3, TABLE2_ALPHA3, TABLE5_XI

if TYPE_CHECKING:
    import pandas as pd

#: What is compared between the best and the last checkpoint of a run.
_COMPARED = (CLEAN, "pgd50")
#: Columns of a table that are no accuracies, as people read them.
_LABELS = {"co": "CO", "minutes": "minutes"}
_DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_NOTHING = dict.fromkeys(("ours", "low", "high", "n"), nan)


@dataclass(frozen=True)
class Row:
    """A row of the paper and the checkpoint that stands for it.

    Attributes:
        method: as the paper calls it.
        run: name of the run.
        which: `best` for stable methods, `last` for models that have collapsed or were trained on clean images.
        node: as printed; None where the paper prints none.
        alpha3: as printed.
        noise: on the model's input, as the paper writes it.
        xi_eval: ξ_E, n of n/255; the paper prints 16 only.
    """

    method: str
    run: str
    which: str
    node: str | None = None
    alpha3: float | None = None
    noise: str = "none"
    xi_eval: float = XI

    @property
    def keys(self) -> dict[str, Any]:
        """What the paper's row is found by in `published`."""
        run = RUNS[self.run]
        return {
            "dataset": _DATA[run.data],
            "method": self.method,
            "xi_train": run.xi,
            "node": self.node,
            "alpha3": self.alpha3,
        }

    @property
    def other(self) -> str:
        """The checkpoint that the table does not show."""
        return "last" if self.which == "best" else "best"

    def need(self, which: str, attacks: tuple[str, ...]) -> Need:
        """Accuracies of one of its checkpoints."""
        return Need(self.run, "accuracy", which, self.xi_eval, attacks, (self.noise,))


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        title: in own words.
        metrics: its columns.
        rows: in the order of the paper.
        notes: what to know of the printed numbers, a sentence each (section 5 of the specification).
    """

    title: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def attacks(self) -> tuple[str, ...]:
        """The columns that are attacks."""
        return tuple(metric for metric in self.metrics if metric in COLUMNS)

    @property
    def compared(self) -> tuple[str, ...]:
        """The columns that are shown of the other checkpoint too."""
        return tuple(metric for metric in self.metrics if metric in _COMPARED)


def _fd(node: str, alpha3: int, xi: float, suffix: str = "") -> Row:
    return Row("Ours-FD", f"fd-{node.lower()}{alpha3}-{xi:g}{suffix}", "best", node, float(alpha3))


def _by_budget(xi: float) -> tuple[Row, ...]:
    """Table 5 at one ξ_T; it prints neither node nor α3 of Ours-FD, which are B and 200 by the text."""
    return (
        Row("ATAS", f"atas-{xi:g}", "best", noise=NOISE),
        Row("ZeroGrad", f"zerograd-{xi:g}", "best", noise=NOISE),
        Row("C.Smooth", f"cs-{xi:g}", "best", noise=NOISE),
        Row("Ours-FD", f"fd-b200-{xi:g}", "best", noise=NOISE),
        Row("Ours-CO", f"mep-{xi:g}", "last", noise=NOISE),
    )


_QUIET_AND_NOISY = ("none", NOISE)
_COPIED = (
    "The paper prints the same numbers for C.Smooth at ξ_T = 12 without noise (Table 2) and with it (Table 5); one of "
    "the two is probably a copied row, so both are measured."
)

TABLES: dict[int, Table] = {
    1: Table(
        "Ours-FD by node and weight α3",
        (CLEAN, "fgsm", "pgd50", "cw", "aa", "co"),
        tuple(_fd(node, alpha3, 12) for node in "ABCDE" for alpha3 in TABLE1_ALPHA3),
        (
            "CO tells of the whole training, the accuracies of its best checkpoint: so a row can have both CO and "
            "accuracy left.",
            "At node B the printed numbers depend on α3 more than the text says: 100 falls into CO, and from 200 to "
            "1000 clean accuracy drops by 2.8 points.",
        ),
    ),
    2: Table(
        "Accuracy without noise, and minutes of training",
        (CLEAN, "pgd50", "cw", "aa", "minutes"),
        (
            Row("FGSM-MEP", "mep-eq10-12", "best"),
            Row("FGSM-MEP", "mep-eq10-12", "best", xi_eval=12.0),
            Row("C.Smooth", "cs-12", "best"),
            *(_fd("B", alpha3, 12) for alpha3 in TABLE2_ALPHA3),
            Row("FGSM-MEP", "mep-eq10-16", "best"),
            Row("C.Smooth", "cs-16", "best"),
            _fd("B", 200, 16),
            Row("C.Smooth", "cs-12-c100", "best"),
            *(_fd("B", alpha3, 12, "-c100") for alpha3 in TABLE2_ALPHA3),
            Row("C.Smooth", "cs-16-c100", "best"),
            _fd("B", 200, 16, "-c100"),
        ),
        (
            "The printed FGSM-MEP row at ξ_T = 12 is better than every other row and looks like one at ξ_E = 12, which "
            "is measured as well.",
            _COPIED,
            "In print Ours-FD at ξ_T = 16 stays behind C.Smooth in AA on both data sets, and in PGD-50 on CIFAR-100.",
            "Minutes depend on the machine; only their ratios can be compared.",
        ),
    ),
    3: Table(
        "Noise on clean images",
        (CLEAN,),
        tuple(
            Row(method, run, which, noise=noise)
            for method, run, which in (("Origin", "origin", "last"), ("CO", "mep-12", "last"))
            for noise in _QUIET_AND_NOISY
        )
        + tuple(Row("Stable", "fd-b200-12", "best", noise=noise) for noise in _QUIET_AND_NOISY),
        ("The printed CO and Stable models are in no other table: other runs, or other draws of the noise.",),
    ),
    4: Table(
        "A CO-affected model under noise of several kinds and amounts",
        (CLEAN, "pgd50", "cw", "aa"),
        tuple(
            Row("Ours-CO", "mep-16", "last", noise=f"{kind}({amount})")
            for kind in ("U", "Gauss")
            for amount in TABLE5_XI
        ),
        ("The paper has the row U(16) in Table 5 too.",),
    ),
    5: Table(
        "Every method with noise on its input",
        (CLEAN, *COLUMNS),
        tuple(row for xi in TABLE5_XI for row in _by_budget(xi)),
        (
            "At ξ_T = 10 the paper's Ours-CO is below its Ours-FD in AA, the only one of 32 cells in which it is "
            "not the best.",
            "The printed APGD-T of Ours-CO is above its PGD-50 and far above its AA: noise comes after the attack, so "
            "the columns show which perturbations survive it, not which attack is stronger.",
            "In print Ours-CO is worse at ξ_T = 14 than at 12 in seven of eight columns: CO-affected models "
            "differ much from run to run.",
            _COPIED,
        ),
    ),
    6: Table(
        "A clean-trained model with and without noise",
        (CLEAN, "fgsm", "pgd50", "cw", "aa"),
        tuple(Row("Origin", f"origin{c}", "last", noise=noise) for c in ("", "-c100") for noise in _QUIET_AND_NOISY),
    ),
    7: Table(
        "FGSM-RS with and without noise",
        (CLEAN, "pgd50", "cw", "aa"),
        tuple(Row("FGSM-RS", f"rs-{xi}", "last", noise=noise) for xi in TABLE5_XI for noise in _QUIET_AND_NOISY),
        (
            "In print noise raises the clean accuracy of these collapsed models, by 14.8 points at ξ_T = 16, which the "
            "CO model of Table 3 does not show.",
        ),
    ),
}  # fmt: skip


def table_of(number: int) -> Table:
    """A table of the paper; `InputError` for a number that it does not have."""
    if number not in TABLES:
        raise unknown("table", str(number), map(str, TABLES))
    return TABLES[number]


def needs(number: int) -> list[Need]:
    """What is measured for a table: its rows, and a little of the checkpoint of each run that it does not show."""
    table = table_of(number)
    compared = tuple(metric for metric in table.compared if metric != CLEAN)
    shown = [row.need(row.which, table.attacks) for row in table.rows]
    return merged([*shown, *(row.need(row.other, compared) for row in table.rows)])


def content(number: int, results: Results) -> pd.DataFrame:
    """A table in long form, a row per row of the paper, metric and checkpoint; `ours` is missing if not measured yet.

    Columns: dataset, method, xi_train, xi_here (ξ_T at this scale), xi_eval (n of n/255, the paper's but for xi_here),
    node, alpha3 (the paper's), noise, metric, label (the metric as people read it), run, which (checkpoint), main
    (whether the table shows this checkpoint), ours, low, high (accuracies in percent with their interval; minutes;
    co of seed 0: 1, 0, −1 if training did not converge), n, seeds, paper (what it prints), difference (ours − paper).
    Metrics that the scale has no attack for are left out.

    Raises:
        InputError: no such table; a run of another recipe.
        MissingResultError: nothing of the table is measured yet.
        DamagedError: a result was changed since it was written.
    """
    import pandas as pd

    frame = pd.DataFrame(_lines(number, results))
    if frame["ours"].isna().all():
        raise MissingResultError(f"nothing of table {number} is measured yet; {results.remedy}")
    frame["difference"] = frame["ours"] - frame["paper"]
    return frame


def _lines(number: int, results: Results) -> Iterator[dict[str, Any]]:
    table = table_of(number)
    for row in table.rows:
        xi = row.keys["xi_train"]
        here = {"xi_here": nan if xi is None else results.scale.budget(xi), "xi_eval": row.xi_eval, "noise": row.noise}
        for which in _checkpoints(row, results):
            main = which == row.which
            metrics = [metric for metric in (table.metrics if main else table.compared) if _is_known(metric, results)]
            cells = _cells(row, which, metrics, results)
            for metric in metrics:
                yield {
                    **row.keys, **here, "metric": metric, "label": _LABELS.get(metric) or results.label(metric),
                    "run": row.run, "which": which, "main": main, **_NOTHING, **cells.get(metric, {}),
                    "seeds": results.seeds_of(row.run), "paper": _published(number, row, metric) if main else nan,
                }  # fmt: skip


def _is_known(metric: str, results: Results) -> bool:
    return metric not in COLUMNS or results.spec(metric) is not None


def _checkpoints(row: Row, results: Results) -> tuple[str, ...]:
    """The checkpoint that the table shows and, unless it is known to be the same one, the other."""
    try:
        same = all(results.which(row.run, "best", seed) == "last" for seed in range(results.seeds_of(row.run)))
    except MissingResultError:
        same = False
    return (row.which,) if same else (row.which, row.other)


def _published(number: int, row: Row, metric: str) -> float:
    if row.xi_eval != XI:
        return nan
    noise = {} if metric in _LABELS else {"noise": row.noise}
    found = published_value(number, **row.keys, **noise, metric=metric)
    return nan if found is None else found


def _cells(row: Row, which: str, metrics: Sequence[str], results: Results) -> dict[str, dict[str, float]]:
    """ours, low, high and n by metric, without what is not measured yet and what has no meaning."""
    attacks = tuple(metric for metric in metrics if metric in COLUMNS)
    try:
        cells = _accuracies(row, which, attacks, results)
    except MissingResultError:
        cells = {}
        for apart in ((), *((attack,) for attack in attacks)):  # what is missing must not hide what is not
            with suppress(MissingResultError):
                cells |= _accuracies(row, which, apart, results)
    with suppress(MissingResultError):
        if "co" in metrics:
            cells["co"] = {"ours": _co(row.run, results)}
        if "minutes" in metrics:
            seconds = results.history(row.run).groupby("seed")["train_seconds"].sum()
            cells["minutes"] = {"ours": float(seconds.mean() / 60)}
    return cells


def _accuracies(row: Row, which: str, attacks: tuple[str, ...], results: Results) -> dict[str, dict[str, float]]:
    frame = results.accuracies(row.run, which, attacks=attacks, noises=(row.noise,), xi=row.xi_eval)
    percent = 100 * frame[["accuracy", "low", "high"]].rename(columns={"accuracy": "ours"})
    cells = percent.assign(n=frame["n"].astype(float)).to_dict("records")
    return dict(zip(frame["attack"], cells, strict=True))


def _co(run: str, results: Results) -> float:
    """1 for a training with catastrophic overfitting, 0 without, −1 for one that did not converge (seed 0)."""
    outcome = results.outcome(run)
    if not outcome["converged"]:
        return -1.0
    return float(outcome["collapse_epoch"] is not None or results.kind(run) == "CO-affected")


def about(number: int, results: Results) -> list[str]:
    """What to know of a table at this scale, a sentence each: what stands for what, and notes on what is printed."""
    table, scale = table_of(number), results.scale
    images = f"n = {scale.images}" if scale.images else "all test images"
    seeds = results.seeds_shown(row.run for row in table.rows)
    noisy = f"Noise is added after the attack; accuracies under noise are means over {DRAWS} draws."
    return [
        f"Scale {scale.name}: {scale.about}; {images}, {seeds}.",
        *_stand_ins(table, results),
        f"Checkpoints: {_checkpoints_shown(table)}.",
        *([noisy] if any(row.noise != "none" for row in table.rows) else []),
        *table.notes,
    ]


def _stand_ins(table: Table, results: Results) -> list[str]:
    """What is not as in the paper, a sentence each."""
    scale, runs = results.scale, [RUNS[row.run] for row in table.rows]
    data, aa = data_title(results.data["cifar10"]), scale.attacks.get("aa")
    sentences = {
        f"{data} stands for CIFAR-10 here.": data != "cifar10",
        "CIFAR-100 has no counterpart here.": any(run.data not in results.data for run in runs),
        f"ξ and noise are the paper's and stand for {scale.stretch:g} times as much here.": scale.stretch != 1,
        f"α3 is the paper's and stands for {scale.weights:g} times as much here.": (
            scale.weights != 1 and any("stable_weight" in run.knobs for run in runs)
        ),
        f"The method {scale.baseline} stands for FGSM-MEP here.": (
            scale.baseline != "fgsm-mep" and any(run.knobs["method"] == "baseline" for run in runs)
        ),
        f"{results.label('aa')} stands for AA here.": "aa" in table.metrics and aa != "aa",
        "The paper's column APGD-T has no counterpart here.": (
            "apgd_t" in table.metrics and results.spec("apgd_t") is None
        ),
        "ATAS and ZeroGrad train as long as the others here, not 30 epochs on schedules of their own.": (
            any(run.schedule for run in runs) and not scale.own_schedules
        ),
    }
    return [sentence for sentence, holds in sentences.items() if holds]


def _checkpoints_shown(table: Table) -> str:
    """For example "best of ATAS, C.Smooth; last of Ours-CO"."""
    methods: dict[str, dict[str, None]] = {}
    for row in table.rows:
        methods.setdefault(row.which, {})[row.method] = None
    return "; ".join(f"{which} of {', '.join(names)}" for which, names in methods.items())
