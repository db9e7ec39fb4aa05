"""What people do with a checkpoint: probe its channels, mask them, evaluate it, say whether it is CO-affected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from coprobe._version import __version__
from coprobe.attacks import AdversarialExamples, Attack, parse
from coprobe.attacks.examples import CLEAN
from coprobe.checkpoint import Checkpoint
from coprobe.data import Dataset, title
from coprobe.errors import InputError, unknown
from coprobe.evaluation import NO_NOISE, Evaluation, Noise, evaluate
from coprobe.files import write_table
from coprobe.masking import NO_MASK, SELECTORS, ChannelMask, Selection, count_of_percent, select
from coprobe.nodes import node_table, resolve
from coprobe.provenance import provenance
from coprobe.statistics import ALPHA, ChannelStatistics, collect

#: Opens a progress display for (what is done, number of images) and yields a function that advances it.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

#: The attack behind V_act and T_act: every image takes every step, so that channels are compared at the same effort.
#: The rule of the official evaluation leaves an image of a weak model just behind the decision border, where its
#: channels have hardly moved.
PROBING_ATTACK = "pgd:10:rule=always"

#: The attack whose accuracy is held against that of FGSM.
JUDGING_ATTACK = "pgd:10"

PRECISIONS = ("32", "bf16")

#: T_act above which a channel counts as salient where no threshold is asked for.
SALIENT = 0.5


@contextmanager
def silent(what: str, images: int) -> Iterator[Callable[[int], None]]:
    """A progress display that shows nothing."""
    yield lambda done: None


@dataclass(frozen=True)
class Masking:
    """Accuracies with and without masked channels, the masks, and the statistics that chose them."""

    evaluation: Evaluation
    masks: tuple[ChannelMask, ...]
    statistics: ChannelStatistics


@dataclass(frozen=True)
class Diagnosis:
    """Whether a checkpoint is CO-affected.

    Attributes:
        verdict: `CO-affected`, `stable`, `not robust` or `did not converge`.
        sentence: the verdict and its evidence in a sentence.
        evaluation: accuracy on clean, FGSM and PGD images.
        statistics: channels at every node of the table.
        salient: by node, the channels with T_act > 0.5.
    """

    verdict: str
    sentence: str
    evaluation: Evaluation
    statistics: ChannelStatistics
    salient: dict[str, list[int]]


@dataclass
class Probe:
    """A checkpoint together with the images it is probed on.

    Args:
        checkpoint: what is probed; its model moves to `device`.
        dataset: clean images.
        epsilon: radius of the attacks, a fraction.
        device: where to work.
        batch_size: images at once; None finds one that fits.
        precision: `32` (exact) or `bf16` (faster where the hardware has it; results differ slightly).
        seed: of attacks, noise and random masks.
        cache: directory in which results are kept and looked up; None keeps nothing. A result is found again
            only for the same weights, images and settings.
        progress: shows how far the attacks are.

    Raises:
        InputError: the images don't fit the model (classes, channels, size).
    """

    checkpoint: Checkpoint
    dataset: Dataset
    epsilon: float = 16 / 255
    device: torch.device | str = "cpu"
    batch_size: int | None = None
    precision: str = "32"
    seed: int = 0
    cache: Path | None = None
    progress: Progress = field(default=silent, repr=False)

    def __post_init__(self) -> None:
        _check_fit(self.checkpoint, self.dataset)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        self.model = self.checkpoint.model.to(self.device)
        self.model.precision = self.precision

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies the inputs of a result: model, images, budget, seed."""
        return {
            **self.checkpoint.facts(),
            "arch": self.checkpoint.arch,
            "arch_args": self.checkpoint.arch_args,
            "mean": self.model.mean,
            "std": self.model.std,
            "data": self.dataset.name,
            "split": self.dataset.split,
            "images": len(self.dataset),
            "data_digest": self.dataset.digest(),
            "epsilon": round(self.epsilon * 255, 6),
            "seed": self.seed,
            "device": str(self.device),
            "precision": self.precision,
        }

    @property
    def caption(self) -> str:
        """What results are from, in a few words for tables and figures: data, n, budget, seed."""
        budget = f"ε = {self.epsilon * 255:g}/255"
        stage = f", {self.checkpoint.stage}" if self.checkpoint.stage else ""
        return f"{title(self.dataset.name)}, n = {len(self.dataset)}, {budget}, seed {self.seed}{stage}"

    def activations(self, nodes: Sequence[str] = (), attack: str = PROBING_ATTACK) -> ChannelStatistics:
        """Per-channel differences between clean and adversarial activations (Eqs. 5 and 6).

        Args:
            nodes: where; empty means A…E.
            attack: the spec of one attack on this model.
        """
        crafted = parse(attack, self.epsilon)
        nodes = tuple(nodes) or self._table()
        for node in nodes:
            resolve(self.model, node)
        with self._examples([crafted], keep=False) as examples:
            return self._statistics(examples, nodes, crafted)

    def evaluate(
        self, attacks: Sequence[str] = ("fgsm", "pgd:10"), noises: Sequence[Noise] = (NO_NOISE,)
    ) -> Evaluation:
        """Accuracy on clean images and under each attack, with each noise added after the attack."""
        parsed = self._parse(attacks)
        with self._examples(parsed, keep=False) as examples:
            return self._evaluation(examples, noises)

    def mask(
        self,
        node: str = "A",
        alpha2: Sequence[float] = (0.5,),
        *,
        percent: float | None = None,
        compare: Sequence[str] = ("variance", "random", "attribution"),
        attacks: Sequence[str] = ("fgsm", "pgd:10"),
        attack: str = PROBING_ATTACK,
        alpha: float = ALPHA,
        reading: str = "mean",
    ) -> Masking:
        """Accuracy with the salient channels of a node masked (Eq. 7), beside other masks of the same size.

        Args:
            node: where to mask.
            alpha2: thresholds; one mask of the channels with T_act above it for each.
            percent: mask this share of the channels, by rank, instead of using thresholds.
            compare: selectors of masks with as many channels as alpha2 = 0.5 gives (or, if 0.5 is not among
                the thresholds, the first one; or as `percent` gives).
            attacks: under which accuracy is measured; the images are crafted once, on the unmasked model.
            attack: the one whose differences choose the channels.
            alpha: the factor inside tanh.
            reading: of Eq. 6, see `ChannelStatistics.t_act`.
        """
        resolve(self.model, node)
        for selector in compare:
            SELECTORS.entry(selector)
        choosing = parse(attack, self.epsilon)
        settings: dict[str, Any] = {
            "node": node,
            "alpha2": list(alpha2),
            "percent": percent,
            "compare": list(compare),
            "attacks": [a.spec for a in self._parse(attacks)],
            "attack": choosing.spec,
            "alpha": alpha,
            "reading": reading,
        }
        with self._examples(self._parse([*attacks, choosing.spec]), keep=True) as examples:
            statistics = self._statistics(examples, (node,), choosing)
            selection = Selection(
                statistics,
                node,
                alpha=alpha,
                reading=reading,
                model=self.model,
                batches=examples,
                attack=choosing.spec,
                seed=self.seed,
            )
            frame = self._cached(
                "masking",
                settings,
                lambda: self._masked(examples, settings["attacks"], _masks(selection, alpha2, percent, compare)),
            )
        return Masking(Evaluation(frame), tuple(map(_mask_of, frame.attrs["masks"])), statistics)

    def diagnose(self, attack: str = PROBING_ATTACK) -> Diagnosis:
        """Compare FGSM with PGD-10 accuracy, look for salient channels, and say what kind of model this is.

        Args:
            attack: the one whose differences tell which channels are salient.
        """
        probing, judging = (parse(spec, self.epsilon) for spec in (attack, JUDGING_ATTACK))
        nodes = self._table()
        with self._examples(self._parse(["fgsm", JUDGING_ATTACK, probing.spec]), keep=True) as examples:
            evaluation = self._evaluation(examples, [NO_NOISE])
            statistics = self._statistics(examples, nodes, probing)
        salient = {node: (statistics.t_act(node) > SALIENT).nonzero()[0].tolist() for node in nodes}
        clean, fgsm, pgd = (evaluation.accuracy(spec) for spec in (CLEAN, "fgsm", judging.spec))
        verdict = verdict_of(clean, fgsm, pgd, self.dataset.num_classes)
        where = ", ".join(
            f"{len(channels)} of {len(statistics.node(node))} at {node}" for node, channels in salient.items()
        )
        sentence = (
            f"{verdict}: at {self.epsilon * 255:g}/255 accuracy is {clean:.1%} clean, {fgsm:.1%} under FGSM and "
            f"{pgd:.1%} under {judging.label} (n = {len(self.dataset)}); channels with T_act > {SALIENT}: {where}"
        )
        return Diagnosis(verdict, sentence, evaluation, statistics, salient)

    def _masked(self, examples: AdversarialExamples, attacks: Sequence[str], masks: list[ChannelMask]) -> pd.DataFrame:
        """Accuracies without and with each mask; the masks stand in `attrs`, so that the cache keeps them."""
        masks = [NO_MASK, *masks]
        frame = evaluate(self.model, examples, [CLEAN, *attacks], masks=masks, seed=self.seed).frame
        frame.attrs["masks"] = [asdict(mask) for mask in masks]
        return frame

    def _table(self) -> tuple[str, ...]:
        nodes = tuple(node_table(self.model))
        if not nodes:
            raise InputError("this architecture has no node table; name module paths with --node")
        return nodes

    def _statistics(self, examples: AdversarialExamples, nodes: Sequence[str], attack: Attack) -> ChannelStatistics:
        settings = {"nodes": list(nodes), "attack": attack.spec}
        return ChannelStatistics(
            self._cached("activations", settings, lambda: collect(self.model, examples, nodes, attack.spec).frame)
        )

    def _evaluation(self, examples: AdversarialExamples, noises: Sequence[Noise]) -> Evaluation:
        settings = {"attacks": [a.spec for a in examples.attacks], "noises": [noise.spec for noise in noises]}
        return Evaluation(
            self._cached(
                "evaluation", settings, lambda: evaluate(self.model, examples, noises=noises, seed=self.seed).frame
            )
        )

    def _parse(self, attacks: Sequence[str]) -> list[Attack]:
        parsed = {attack.spec: attack for attack in (parse(spec, self.epsilon) for spec in attacks if spec != CLEAN)}
        return list(parsed.values())

    @contextmanager
    def _examples(self, attacks: Sequence[Attack], *, keep: bool) -> Iterator[AdversarialExamples]:
        label = ", ".join(attack.label for attack in attacks) or "clean images"
        with self.progress(label, len(self.dataset)) as advance:
            yield AdversarialExamples(
                self.model,
                self.dataset,
                attacks,
                batch_size=self.batch_size,
                device=self.device,
                seed=self.seed,
                keep=keep,
                progress=advance,
            )

    def _cached(self, kind: str, settings: dict[str, Any], make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """What `make` returns, with its provenance in `attrs`; from the cache if it was made before.

        Adversarial examples are crafted when they are first looked at, so a result that is found crafts none.
        """
        # A moved file or another device is the same experiment; another version may compute it differently.
        identity = {"coprobe": __version__, **self.facts, **settings}
        key = json.dumps({k: v for k, v in identity.items() if k not in ("checkpoint", "device")}, sort_keys=True)
        path = self.cache / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.parquet" if self.cache else None
        if path and path.exists():
            try:
                return pd.read_parquet(path)
            except (OSError, ValueError) as error:  # pyarrow's errors are both
                raise InputError(f"{path}: can't be read; delete it, and it is made again") from error
        frame = make()
        frame.attrs = json.loads(json.dumps({**frame.attrs, **provenance(**self.facts), **settings}))
        if path:
            write_table(frame, path)
        return frame


def verdict_of(clean: float, fgsm: float, pgd: float, classes: int) -> str:
    """What kind of model has these accuracies (fractions); the first rule that holds decides.

    `did not converge`: clean ≤ 1.5 / classes. `CO-affected`: PGD accuracy is less than half
    of FGSM accuracy and at least 10 points below it: the one-step attack is no longer a good attack. `stable`:
    PGD accuracy is at least a quarter of clean accuracy. `not robust`: none of these, as after clean training.
    """
    if clean <= 1.5 / classes:
        return "did not converge"
    if pgd < fgsm / 2 and fgsm - pgd >= 0.1:
        return "CO-affected"
    return "stable" if pgd >= clean / 4 else "not robust"


def _masks(
    settings: Selection, alpha2: Sequence[float], percent: float | None, compare: Sequence[str]
) -> list[ChannelMask]:
    if percent is not None:
        count = count_of_percent(percent, len(settings.t_act))
        masks = select("top", replace(settings, count=count), reason=f"top {percent:g} %")
    else:
        if not alpha2:
            raise InputError("no threshold; pass --alpha2 or --percent")
        by_threshold = {a: select("t-act", replace(settings, alpha2=a), reason=f"T_act > {a:g}")[0] for a in alpha2}
        masks = list(by_threshold.values())
        count = by_threshold[0.5 if 0.5 in by_threshold else alpha2[0]].count
    for name in dict.fromkeys(compare):
        masks += select(name, replace(settings, count=count))
    return masks


def _mask_of(kept: dict[str, Any]) -> ChannelMask:
    """A mask from its plain form in a table's `attrs`."""
    channels = {node: tuple(indices) for node, indices in kept["channels"].items()}
    return replace(ChannelMask(**kept), channels=channels)


def _check_fit(checkpoint: Checkpoint, dataset: Dataset) -> None:
    channels, height, width = dataset.image_shape
    where = f"{dataset.name} ({dataset.split})"
    if dataset.num_classes != checkpoint.num_classes:
        raise InputError(
            f"{where} has {dataset.num_classes} classes and the model {checkpoint.num_classes} logits; "
            "choose the --data it was trained on"
        )
    if channels != checkpoint.in_channels:
        raise InputError(f"{where} has images of {channels} channels and the model takes {checkpoint.in_channels}")
    smallest = getattr(checkpoint.model.network, "min_image_size", 1)
    if min(height, width) < smallest:
        raise InputError(f"{where} has images of {height}×{width} pixels; {checkpoint.arch} needs at least {smallest}")
    trained = checkpoint.image_shape
    if trained and trained[1:] != (height, width):
        raise InputError(
            f"{where} has images of {height}×{width} pixels, but the model was trained on {trained[1]}×{trained[2]}"
        )
