"""What people do with a checkpoint: probe its channels, mask them, evaluate it, say whether it is CO-affected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from coprobe._version import __version__
from coprobe.attacks import AdversarialExamples, Attack, parse
from coprobe.attacks.examples import CLEAN, clean_images
from coprobe.cache import cached
from coprobe.checkpoint import Checkpoint
from coprobe.collapse import verdict_of
from coprobe.data import Dataset, title
from coprobe.engine import Progress, silent
from coprobe.errors import InputError, unknown
from coprobe.evaluation import NO_NOISE, Evaluation, Noise, evaluate
from coprobe.masking import NO_MASK, SELECTORS, ChannelMask, Selection, compared_masks, thresholds
from coprobe.nodes import check_neutral, node_table, resolve
from coprobe.provenance import provenance
from coprobe.statistics import ALPHA, ChannelStatistics, Increments, collect, collect_increments, collect_overlap
from coprobe.text import storable

#: The attack behind V_act and T_act: every image takes every step, so that channels are compared at the same effort.
#: The rule of the official evaluation leaves an image of a weak model just behind the decision border, where its
#: channels have hardly moved.
PROBING_ATTACK = "pgd:10:rule=always"

#: The attack whose accuracy is held against that of FGSM.
JUDGING_ATTACK = "pgd:10"

PRECISIONS = ("32", "bf16")

#: T_act above which a channel counts as salient where no threshold is asked for.
SALIENT = 0.5


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
        images = f"{self.dataset.name} ({self.dataset.split})"
        self.checkpoint.check_fit(images, self.dataset.num_classes, self.dataset.image_shape)
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
            **({"skipped": len(self.dataset.skipped)} if self.dataset.skipped else {}),
            "data_digest": self.dataset.digest(),
            "epsilon": round(self.epsilon * 255, 6),
            "seed": self.seed,
            "device": str(self.device),
            "precision": self.precision,
        }

    @property
    def _identity(self) -> dict[str, Any]:
        """The facts that change a result: a moved file, its label or another device is the same experiment."""
        same = ("checkpoint", "stage", "device")
        return {name: value for name, value in self.facts.items() if name not in same}

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
        self._find(nodes)
        with self._examples([crafted], keep=False) as examples:
            return self._statistics(examples, nodes, crafted)

    def increments(self, nodes: Sequence[str] = ("A",), attack: str = PROBING_ATTACK) -> Increments:
        """How far each channel is from its clean activation at every step of an attack (Fig. 10).

        Args:
            nodes: where.
            attack: the spec of an attack that hands out its steps.
        """
        followed = parse(attack, self.epsilon)
        self._find(nodes)

        def follow() -> pd.DataFrame:
            with self.progress(f"steps of {followed.label}", len(self.dataset)) as advance:
                return collect_increments(
                    self.model,
                    self.dataset,
                    followed,
                    nodes,
                    batch_size=self.batch_size,
                    device=self.device,
                    seed=self.seed,
                    progress=advance,
                ).frame

        return Increments(self._cached("increments", {"nodes": list(nodes), "attack": followed.spec}, follow))

    def overlap(self, node: str = "A", attack: str = PROBING_ATTACK, top: int = 5) -> pd.DataFrame:
        """Whether single images have the same salient channels as all of them (C07), see `collect_overlap`."""
        self._find([node])
        crafted = parse(attack, self.epsilon)
        settings = {"node": node, "attack": crafted.spec, "top": top}
        with self._examples([crafted], keep=False) as examples:
            return self._cached(
                "overlap", settings, lambda: collect_overlap(self.model, examples, node, crafted.spec, top=top)
            )

    def evaluate(
        self,
        attacks: Sequence[str] = ("fgsm", "pgd:10"),
        noises: Sequence[Noise] = (NO_NOISE,),
        noise_draws: int = 1,
    ) -> Evaluation:
        """Accuracy on clean images and under each attack, with each noise added after the attack.

        Args:
            attacks: under which accuracy is measured.
            noises: each one added to the crafted images.
            noise_draws: how often each noise is drawn anew.
        """
        parsed = self._parse(attacks)
        with self._examples(parsed, keep=False) as examples:
            return self._evaluation(examples, noises, noise_draws)

    def transfer(
        self,
        targets: Sequence[Checkpoint],
        attacks: Sequence[str] = ("fgsm", "pgd:10"),
        noises: Sequence[Noise] = (NO_NOISE,),
        noise_draws: int = 1,
    ) -> Evaluation:
        """Accuracy of other models on images that are crafted on this one (Fig. 12), and of this one itself.

        Args:
            targets: other checkpoints for the same kind of images; their models move to the device.
            attacks: on this model, the source.
            noises: each one added to the crafted images.
            noise_draws: how often each noise is drawn anew.

        Returns:
            An `Evaluation` with a column `target`: the path of the model that is measured (its digest if it has
            none); first this one, whose rows are white-box accuracies.

        Raises:
            InputError: a target that the images don't fit, or a model named twice.
        """
        models = [self, *(replace(self, checkpoint=target) for target in targets)]
        named = {storable(str(probe.checkpoint.path or probe.checkpoint.digest)): probe for probe in models}
        if len(named) < len(models):
            raise InputError(f"a model is named twice beside {', '.join(named)}; name each once")
        with self._examples(self._parse(attacks), keep=True) as examples:
            frames = {n: self._evaluation(examples, noises, noise_draws, p).frame for n, p in named.items()}
        frame = pd.concat([frame.assign(target=name) for name, frame in frames.items()], ignore_index=True)
        digests = {name: probe.checkpoint.digest for name, probe in named.items()}
        frame.attrs = {**frames[next(iter(named))].attrs, "targets": digests}
        return Evaluation(frame)

    def mask(
        self,
        node: str = "A",
        alpha2: Sequence[float] | None = None,
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
            node: where to mask; with a channel, as in `A:12`, that channel is masked and no other is looked for.
            alpha2: thresholds; one mask of the channels with T_act above it for each; None means 0.5.
            percent: mask this share of the channels, by rank, instead of using thresholds.
            compare: selectors of other masks of the same size, see `compared_masks`.
            attacks: under which accuracy is measured; the images are crafted once, on the unmasked model.
            attack: the one whose differences choose the channels.
            alpha: the factor inside tanh.
            reading: of Eq. 6, see `ChannelStatistics.t_act`.
        """
        self._find([node])
        place = resolve(self.model, node)
        alpha2 = thresholds(place, alpha2, percent)
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
            statistics = self._statistics(examples, (place.whole,), choosing)
            selection = Selection(
                statistics,
                place.whole,
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
                lambda: self._masked(
                    examples, settings["attacks"], compared_masks(selection, alpha2, percent, compare, place.channel)
                ),
            )
        return Masking(Evaluation(frame), tuple(map(ChannelMask.from_plain, frame.attrs["masks"])), statistics)

    def diagnose(self, attack: str = PROBING_ATTACK) -> Diagnosis:
        """Compare FGSM with PGD-10 accuracy, look for salient channels, and say what kind of model this is.

        Args:
            attack: the one whose differences tell which channels are salient.
        """
        probing, judging = (parse(spec, self.epsilon) for spec in (attack, JUDGING_ATTACK))
        nodes = self._table()
        with self._examples(self._parse(["fgsm", JUDGING_ATTACK, probing.spec]), keep=True) as examples:
            evaluation = self._evaluation(examples)
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

    def _find(self, nodes: Sequence[str]) -> None:
        """Look on one image whether there are such nodes, before the work."""
        check_neutral(self.model, clean_images(self.dataset, 0, 1, self.device)[0], nodes)

    def _table(self) -> tuple[str, ...]:
        nodes = tuple(node_table(self.model))
        if not nodes:
            raise InputError(
                "this network calls no activation function, so it has no nodes A…E; "
                "'coprobe activations --node' takes module paths"
            )
        return nodes

    def _statistics(self, examples: AdversarialExamples, nodes: Sequence[str], attack: Attack) -> ChannelStatistics:
        settings = {"nodes": list(nodes), "attack": attack.spec}
        return ChannelStatistics(
            self._cached("activations", settings, lambda: collect(self.model, examples, nodes, attack.spec).frame)
        )

    def _evaluation(
        self,
        examples: AdversarialExamples,
        noises: Sequence[Noise] = (NO_NOISE,),
        noise_draws: int = 1,
        target: Probe | None = None,
    ) -> Evaluation:
        """Accuracy on the examples, which are crafted on this model, of the target's model; None means this one."""
        settings: dict[str, Any] = {
            "attacks": [attack.spec for attack in examples.attacks],
            "noises": [noise.spec for noise in noises],
            "noise_draws": noise_draws,
        }
        model = (target or self).model
        if target is not None and target is not self:
            settings["target"] = target._identity

        def measure() -> pd.DataFrame:
            return evaluate(model, examples, noises=noises, noise_draws=noise_draws, seed=self.seed).frame

        return Evaluation(self._cached("evaluation", settings, measure))

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

        def documented() -> pd.DataFrame:
            frame = make()
            frame.attrs = json.loads(json.dumps({**frame.attrs, **provenance(**self.facts), **settings}))
            return frame

        return cached(self.cache, kind, {"coprobe": __version__, **self._identity, **settings}, documented)
