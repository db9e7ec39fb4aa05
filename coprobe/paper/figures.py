"""Figures 1 to 12 of the paper: which runs and measurements feed each, what is drawn, and who draws it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from coprobe.data import title
from coprobe.figures import fig01, fig02, fig03, fig04, fig05, fig06, fig07, fig08, fig09, fig10, fig11, fig12
from coprobe.metrics.accuracy import wilson
from coprobe.paper.needs import ATTACKS, COLUMNS, NOISE, XI, Need
from coprobe.paper.results import Results
from coprobe.paper.runs import FIG12_SOURCES, FIG12_XI, RUNS, Scale

#: A model in a figure: its run, its checkpoint, and what it is called.
Model = tuple[str, str, str]


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper.

    Attributes:
        number: its number.
        title: what it shows, in a line.
        content: the numbers that are drawn, from results; raises `MissingResultError` while any is missing.
        draw: draws them; what they are of goes as `about` small into a corner.
        runs: the runs whose histories it needs.
        needs: the measurements that it needs.
    """

    number: int
    title: str
    content: Callable[[Results], pd.DataFrame]
    draw: Callable[..., Figure]
    runs: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()

    @property
    def name(self) -> str:
        """Of its files: fig01."""
        return f"fig{self.number:02d}"

    @property
    def is_schematic(self) -> bool:
        """Whether it is drawn without any result."""
        return not (self.runs or self.needs)


def baseline(scale: Scale) -> str:
    """What the baseline is called: the paper's, or the method in its place."""
    return "FGSM-MEP without Eq. 10" if scale.baseline == "fgsm-mep" else scale.baseline.upper()


def caption(results: Results, figure: PaperFigure) -> str:
    """The scale, the images and the seeds of a figure, for its corner."""
    scale = results.scale
    if figure.is_schematic:
        return f"scale {scale.name}"
    names = dict.fromkeys([*figure.runs, *(need.run for need in figure.needs)])
    shown = ", ".join(dict.fromkeys(title(results.recipe(name).data) for name in names))
    images = f", n = {scale.images or 'all test images'}" if figure.needs else ""
    recipe = results.recipe(next(iter(names)))
    held_out = f", {recipe.held_out} held-out images" if figure.runs and not figure.needs else ""
    trained = f"{recipe.limit_train or 'all'} training images, {recipe.epochs} epochs"
    return f"scale {scale.name}: {shown}, {trained}{images}{held_out}, {results.seeds_shown(names)}"


def _histories(results: Results) -> pd.DataFrame:
    """Fig. 1: the history of the baseline and of its stable twin at ξ_T = 12/255."""
    parts = []
    for name, label in (("mep-12", baseline(results.scale)), ("fd-b200-12", "with L_stable at B")):
        history = results.history(name)
        many = results.seeds_of(name) > 1
        labels = [f"{label} (seed {seed})" if many else label for seed in history["seed"]]
        parts.append(history.assign(run=labels))
    frame = pd.concat(parts, ignore_index=True)
    columns = ["run", "seed", "epoch", "clean", "fgsm", "pgd10", *(f"v_act_{node}" for node in "ABCDE")]
    return frame[columns]


def _places(results: Results) -> pd.DataFrame:
    """Fig. 2: every place after a ReLU of the network that this scale trains."""
    from coprobe.models import Classifier, build
    from coprobe.nodes import places

    recipe = results.recipe("mep-12")
    network = build(recipe.arch, num_classes=10, in_channels=3, **({"width": recipe.width} if recipe.width else {}))
    rows = []
    for place in places(Classifier(network), (3, 32, 32)):
        stage = place.path.split(".")[0].removeprefix("layer")
        channels, height, width = place.shape
        about = {"node": place.letter, "path": place.path, "stage": int(stage) if stage.isdecimal() else 0}
        rows.append({**about, "channels": channels, "height": height, "width": width})
    return pd.DataFrame(rows)


def _salient(results: Results) -> pd.DataFrame:
    """Fig. 3: T_act of every channel at A, of the baseline at its best and in the end, and of its stable twin."""
    name = baseline(results.scale)
    models: list[Model] = [
        ("mep-12", "last", f"{name}, last epoch"),
        ("fd-b200-12", "last", "with L_stable at B, last epoch"),
    ]
    outcome = results.outcome("mep-12")
    if results.which("mep-12", "best") == "best":
        models.insert(0, ("mep-12", "best", f"{name}, epoch {outcome['best_epoch']} (best PGD-10)"))
    parts = []
    for run, which, label in models:
        table = results.channels(run, which).table()
        rows = table[table["node"] == "A"].sort_values("channel")
        rows = rows.assign(run=label, kind=results.kind(run, which))
        parts.append(rows[["run", "kind", "node", "channel", "t_act", "v_act", "images"]])
    return pd.concat(parts, ignore_index=True)


def _masked(results: Results) -> pd.DataFrame:
    """Fig. 4: accuracy of the baseline with channels of A masked."""
    frame = results.get(_MASKING)
    keys = ["attack", "mask", "masked", "n"]
    rows = frame.groupby(keys, sort=False)["correct"].mean().reset_index()
    rows["accuracy"] = rows["correct"] / rows["n"]
    rows[["low", "high"]] = [wilson(correct, n) for correct, n in zip(rows["correct"], rows["n"], strict=True)]
    rows["attack"] = rows["attack"].map(results.label)
    return rows


def _curves(results: Results, runs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Figs. 5 and 6: accuracy over the epochs of runs (name, label) with L_co."""
    xi = results.scale.budget(XI)
    parts = []
    for name, label in runs:
        history = results.history(name)
        outcomes = {}
        for seed in range(results.seeds_of(name)):
            outcome = results.outcome(name, seed)
            collapsed = outcome["collapse_epoch"] is not None
            outcomes[seed] = "CO-affected" if collapsed else results.kind(name)
            if not outcome["converged"]:
                outcomes[seed] = "did not converge"
        part = history[["seed", "epoch", "clean"]].assign(series=label, xi_eval=xi)
        parts.append(part.assign(adversarial=history[f"pgd10_{xi:g}"], outcome=history["seed"].map(outcomes)))
    return pd.concat(parts, ignore_index=True)[
        ["series", "seed", "epoch", "clean", "adversarial", "outcome", "xi_eval"]
    ]


def _shares(results: Results) -> pd.DataFrame:
    return _curves(
        results, [("mep-8", "no L_co"), *((f"co-{p}-8", f"C_{p}% ({_count(results, p)})") for p in (1, 3, 10, 20))]
    )


def _selections(results: Results) -> pd.DataFrame:
    count = _count(results, 10)
    return _curves(results, [("co-10-8", f"by T_act ({count})"), ("co-var10-8", f"by variance ({count})")])


def _count(results: Results, percent: int) -> str:
    """How many channels p % of node B are, in words."""
    from coprobe.masking import count_of_percent

    channels = count_of_percent(percent, results.recipe("co-10-8").width or 64)
    return f"{channels} channel" + ("s" if channels > 1 else "")


def _bars(
    results: Results, models: Sequence[Model], noises: tuple[str, ...], attacks: tuple[str, ...], xi: float = XI
) -> pd.DataFrame:
    """Accuracy of models under attacks and noises, with the columns model and kind."""
    parts = []
    for run, which, label in models:
        rows = results.accuracies(run, which, attacks=attacks, noises=noises, xi=xi)
        parts.append(rows.assign(model=label, kind=results.kind(run, which), epsilon=results.scale.budget(xi)))
    frame = pd.concat(parts, ignore_index=True).drop(columns="attack").rename(columns={"label": "attack"})
    columns = ["model", "kind", "epsilon", "noise", "attack", "n", "accuracy", "low", "high", "spread"]
    return frame[columns]


def _with_change(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows without noise, and beside each by how much the accuracy changes with it (95 %, as if unpaired)."""
    keys = ["model", "epsilon", "attack"]
    plain, noisy = frame[frame["noise"] == "none"], frame[frame["noise"] == NOISE]
    both = plain.merge(noisy[[*keys, "accuracy"]], on=keys, suffixes=("", "_noisy"))
    both["change"] = both["accuracy_noisy"] - both["accuracy"]
    error = sum(both[key] * (1 - both[key]) / both["n"] for key in ("accuracy", "accuracy_noisy")) ** 0.5
    both["change_low"], both["change_high"] = both["change"] - 1.96 * error, both["change"] + 1.96 * error
    return both.drop(columns=["noise", "spread"])


def _logit_term(results: Results) -> pd.DataFrame:
    models = [("mep-12", "last", "without Eq. 10"), ("mep-eq10-12", "best", "with Eq. 10")]
    parts = [_bars(results, models, ("none", NOISE), COLUMNS, xi) for xi in (12, 16)]
    return _with_change(pd.concat(parts, ignore_index=True)).assign(noise=_noise(results.scale))


def _robustness(results: Results) -> pd.DataFrame:
    frame = _bars(results, _FIG9, ("none", NOISE), COLUMNS)
    return frame.assign(noise=_here(results.scale, frame["noise"]))


def _noise(scale: Scale) -> str:
    """The noise of the figures as it is at a scale, for labels."""
    return f"U(±{scale.budget(16):g}/255)"


def _here(scale: Scale, noises: pd.Series) -> pd.Series:
    """Noises as the paper writes them, with the amount that they have at a scale."""
    return noises.replace(NOISE, f"U({scale.budget(16):g})")


def _augmented(results: Results) -> pd.DataFrame:
    models = [(run, "last", label) for run, label in _fig10(results)]
    return _with_change(_bars(results, models, ("none", NOISE), COLUMNS)).assign(noise=_noise(results.scale))


def _fig10(results: Results) -> list[tuple[str, str]]:
    return [("mep-16", baseline(results.scale)), *_NOISE_TRAINED]


def _increments(results: Results) -> pd.DataFrame:
    parts = []
    for run, label in _fig10(results):
        frame = results.get(Need(run, "increments"))
        frame = frame[(frame["seed"] == 0) & (frame["step"] > 0)]
        values = frame["channels"] * frame["positions"]
        part = frame[["node", "channel", "step", "images"]].assign(model=label, kind=results.kind(run))
        parts.append(
            part.assign(s=frame["difference_squared"] / values, s_step=frame["step_squared"] / values)[
                ["model", "kind", "node", "channel", "step", "s", "s_step", "images"]
            ]
        )
    return pd.concat(parts, ignore_index=True)


def _transferred(results: Results) -> pd.DataFrame:
    parts = []
    for xi in FIG12_XI:
        rows = results.accuracies("mep-12", attacks=ATTACKS, noises=("none", NOISE), xi=xi, sources=FIG12_SOURCES)
        own = results.accuracies("mep-12", attacks=ATTACKS, noises=("none", NOISE), xi=xi)
        own = own.set_index(["attack", "noise"])["accuracy"]
        rows = rows[rows["attack"] != "clean"]
        white = [own[attack, noise] for attack, noise in zip(rows["attack"], rows["noise"], strict=True)]
        clean = [own["clean", noise] for noise in rows["noise"]]
        source_xi = [results.scale.budget(float(RUNS[run].xi or 0)) for run in rows["source"]]
        labels = [f"ConvergeSmooth, {budget:g}/255" for budget in source_xi]
        parts.append(
            rows.assign(source=labels, source_xi=source_xi, white_box=white, clean=clean).assign(
                epsilon=results.scale.budget(xi)
            )
        )
    frame = pd.concat(parts, ignore_index=True).drop(columns="attack").rename(columns={"label": "attack"})
    frame["noise"] = _here(results.scale, frame["noise"])
    return frame[
        ["source", "source_xi", "epsilon", "noise", "attack", "n", "accuracy", "low", "high", "white_box", "clean"]
    ]


_MASKING = Need("mep-12", "masking", attacks=ATTACKS)
_FIG9: list[Model] = [
    ("fd-b200-12", "best", "with L_stable"),
    ("mep-12", "last", "baseline"),
    ("origin", "last", "clean-trained"),
]
_NOISE_TRAINED = [
    ("noise-16", "trained on x + δ₀"),
    ("mep-noise-16", "on x + δ + δ₀"),
    ("mep-noise-both-16", "on both"),
]


def _accuracy_needs(models: Sequence[tuple[str, str]], xi: float, attacks: tuple[str, ...]) -> list[Need]:
    return [Need(run, "accuracy", which, xi, attacks, ("none", NOISE)) for run, which in models]


FIGURES: dict[int, PaperFigure] = {
    figure.number: figure
    for figure in (
        PaperFigure(1, "V_act jumps when a run falls into CO", _histories, fig01.draw, runs=("mep-12", "fd-b200-12")),
        PaperFigure(2, "The nodes A to E of ResNet-18", _places, fig02.draw),
        PaperFigure(
            3, "T_act of every channel at node A", _salient, fig03.draw,
            needs=(Need("mep-12", "channels", "best"), Need("mep-12", "channels"), Need("fd-b200-12", "channels")),
        ),
        PaperFigure(4, "Accuracy with channels masked", _masked, fig04.draw, needs=(_MASKING,)),
        PaperFigure(
            5, "L_co and the share of channels that it drives", _shares, fig05.draw,
            runs=("mep-8", "co-1-8", "co-3-8", "co-10-8", "co-20-8"),
        ),
        PaperFigure(
            6, "L_co on channels by T_act and by variance", _selections, fig06.draw, runs=("co-10-8", "co-var10-8")
        ),
        PaperFigure(7, "Data branch and adversarial branch", lambda results: fig07.arrows(), fig07.draw),
        PaperFigure(
            8, "The logit term of Eq. 10, and noise", _logit_term, fig08.draw,
            needs=tuple(need for xi in (12, 16)
                        for need in _accuracy_needs([("mep-12", "last"), ("mep-eq10-12", "best")], xi, COLUMNS)),
        ),
        PaperFigure(
            9, "Accuracy with and without noise", _robustness, fig09.draw,
            needs=tuple(_accuracy_needs([(run, which) for run, which, _ in _FIG9], XI, COLUMNS)),
        ),
        PaperFigure(
            10, "Activation increments of every PGD step", _increments, fig10.draw,
            needs=tuple(Need(run, "increments") for run in ("mep-16", *(run for run, _ in _NOISE_TRAINED))),
        ),
        PaperFigure(
            11, "Models trained on noise", _augmented, fig11.draw,
            needs=tuple(_accuracy_needs(
                [("mep-16", "last"), *((run, "last") for run, _ in _NOISE_TRAINED)], XI, COLUMNS)),
        ),
        PaperFigure(
            12, "Adversarial examples transferred to the baseline", _transferred, fig12.draw,
            needs=tuple(
                need for xi in FIG12_XI for need in (
                    *_accuracy_needs([("mep-12", "last")], xi, ATTACKS),
                    Need("mep-12", "transfer", "last", xi, ATTACKS, ("none", NOISE), FIG12_SOURCES),
                )
            ),
        ),
    )
}  # fmt: skip
