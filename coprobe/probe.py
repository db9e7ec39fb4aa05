"""What people do with a checkpoint: probe its channels, mask them, evaluate it, say whether it is CO-affected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from coprobe.attacks import AnyAttack
from coprobe.checkpoint import Model, as_checkpoint
from coprobe.checkpoint.fitting import Decision, fit
from coprobe.core.defaults import ALPHA, ATTACKS, COMPARED, PROBING_ATTACK
from coprobe.core.switches import usual_torch
from coprobe.core.text import storable
from coprobe.data import Dataset, Images, as_dataset, numbered
from coprobe.errors import InputError
from coprobe.fast.classifier import device_of
from coprobe.masking import Masking, Selection, attributions_for, compared_masks, computable, thresholds
from coprobe.metrics import (
    NO_NOISE,
    Accuracy,
    ActivationIncrements,
    ChannelActivations,
    ChannelOverlap,
    ChannelStatistics,
    Evaluation,
    Increments,
    Metric,
    Noise,
)
from coprobe.metrics.attribution import Attribution
from coprobe.metrics.pipeline import results_of
from coprobe.metrics.setup import Setup, assumptions, default_radius
from coprobe.nodes import NO_MASK, ChannelMask, node_table, resolve
from coprobe.verdict.diagnosis import Diagnosis, diagnosed
from coprobe.verdict.signs import SignTable, signs_of

R = TypeVar("R")


class Probe(Setup):
    """A model together with the images it is probed on.

    Example:
        >>> coprobe.Probe("runs/co", "cifar10", limit=1000).diagnose().sentence
        >>> coprobe.Probe(network, (x, y), preprocess=(mean, std), epsilon=8 / 255).diagnose().sentence

    Args:
        checkpoint: a path (`fit` to the images), a `Checkpoint`, or a network in Python (see `wrap`), used as it is.
        dataset: images with labels: a name, `(x, y)`, a torch `Dataset`, a `DataLoader` or the like, see `as_dataset`.
        epsilon: radius of the attacks, a fraction; None takes that of the training where the checkpoint says it, else
            8/255, and the caption says which.
        preprocess: of a network in Python, see `wrap`; without it, images in [0, 1] go in as they are, which is said.
        limit: so many of the images, class-balanced where that can be; None takes all.
        device: where to work; None stays where the model is.
        settings: the other ones of `Setup`.

    Raises:
        InputError: as `load`, `wrap`, `as_dataset` and `Setup`.
    """

    def __init__(
        self,
        checkpoint: Model,
        dataset: Images,
        epsilon: float | None = None,
        *,
        preprocess: Sequence[Sequence[float]] | Callable[[Tensor], Tensor] | None = None,
        limit: int | None = None,
        device: torch.device | str | None = None,
        **settings: Any,
    ) -> None:
        images = as_dataset(dataset, limit=limit)
        model = as_checkpoint(checkpoint, preprocess, image_shapes=images.possible_shapes)
        if not isinstance(dataset, Dataset | str):
            images = numbered(images, model.num_classes)
        if epsilon is None:
            epsilon, settings["assumed"] = default_radius(model, settings.get("norm", "linf"))
        where = device or device_of(model.model)
        decision = (
            fit(model, model.suited(images)[0], device=where) if isinstance(checkpoint, str | Path) else Decision()
        )
        super().__init__(decision.of(model), images, epsilon, device=where, **settings)
        assumed = assumptions(self) if isinstance(checkpoint, nn.Module) else decision.sentences
        for sentence in (*assumed, *(() if isinstance(dataset, Dataset) else images.notes)):
            self.say(sentence)

    def measure(self, *metrics: Metric[Any]) -> list[Any]:
        """What several metrics compute, from one pass over the images: nothing is attacked twice.

        Args:
            metrics: see `coprobe.metrics`; their `epsilon` and `seed` are those of the probe.

        Raises:
            InputError: an unknown node or attack, before the work; and what a metric raises.
        """
        return results_of(self, metrics, spool=self.spool)

    def activations(self, nodes: Sequence[str] = (), attack: AnyAttack = PROBING_ATTACK) -> ChannelStatistics:
        """Per-channel differences between clean and adversarial activations (Eqs. 5 and 6).

        Args:
            nodes: where; empty means A…E.
            attack: one attack on this model: a spec, an `Attack`, or any callable (see `attacks.own`).
        """
        return self._one(ChannelActivations(nodes=tuple(nodes) or self.table(), attack=attack))

    def increments(self, nodes: Sequence[str] = ("A",), attack: AnyAttack = PROBING_ATTACK) -> Increments:
        """How far each channel is from its clean activation at every step of an attack (Fig. 10).

        Args:
            nodes: where.
            attack: the spec of an attack that hands out its steps.
        """
        return self._one(ActivationIncrements(nodes=tuple(nodes), attack=attack))

    def overlap(self, node: str = "A", attack: AnyAttack = PROBING_ATTACK, top: int = 5) -> pd.DataFrame:
        """Whether single images have the same salient channels as all of them (C07), see `ChannelOverlap`."""
        return self._one(ChannelOverlap(node=node, attack=attack, top=top))

    def evaluate(
        self,
        attacks: Sequence[AnyAttack] = ATTACKS,
        noises: Sequence[Noise] = (NO_NOISE,),
        noise_draws: int = 1,
        masks: Sequence[ChannelMask] = (NO_MASK,),
    ) -> Evaluation:
        """Accuracy on clean images and under each attack, with each noise added and each mask applied after it.

        Args:
            attacks: under which accuracy is measured.
            noises: each one added to the crafted images.
            noise_draws: how often each noise is drawn anew.
            masks: each one applied to the model that sees them.
        """
        accuracy = Accuracy(attacks=tuple(attacks), noises=tuple(noises), noise_draws=noise_draws, masks=tuple(masks))
        return self._one(accuracy)

    def transfer(
        self,
        targets: Sequence[Model],
        attacks: Sequence[AnyAttack] = ATTACKS,
        noises: Sequence[Noise] = (NO_NOISE,),
        noise_draws: int = 1,
    ) -> Evaluation:
        """Accuracy of other models on images that are crafted on this one (Fig. 12), and of this one itself.

        Args:
            targets: other models for the same kind of images; they move to the device.
            attacks: on this model, the source.
            noises: each one added to the crafted images.
            noise_draws: how often each noise is drawn anew.

        Returns:
            An `Evaluation` with a column `target`: the path of the model that is measured (its digest if it has
            none); first this one, whose rows are white-box accuracies.

        Raises:
            InputError: a target that the images don't fit, or a model named twice.
        """
        others = [as_checkpoint(target, image_shapes=[self.dataset.image_shape]) for target in targets]
        probes = [self, *(replace(self, checkpoint=other, dataset=self.given_images) for other in others)]
        named = {storable(str(probe.checkpoint.path or probe.checkpoint.digest)): probe for probe in probes}
        if len(named) < len(probes):
            raise InputError(f"a model is named twice beside {', '.join(named)}; name each once")
        metrics = [Accuracy(attacks=tuple(attacks), noises=tuple(noises), noise_draws=noise_draws) for _ in named]
        frames = [one.frame for one in results_of(self, metrics, list(named.values()))]
        parts = [frame.assign(target=name) for name, frame in zip(named, frames, strict=True)]
        frame = pd.concat(parts, ignore_index=True)
        digests = {name: probe.checkpoint.digest for name, probe in named.items()}
        frame.attrs = {**frames[0].attrs, "targets": digests}
        return Evaluation(frame)

    @usual_torch()
    def mask(
        self,
        node: str = "A",
        alpha2: Sequence[float] | None = None,
        *,
        percent: float | None = None,
        compare: Sequence[str] = COMPARED,
        attacks: Sequence[AnyAttack] = ATTACKS,
        attack: AnyAttack = PROBING_ATTACK,
        alpha: float = ALPHA,
        reading: str = "mean",
    ) -> Masking:
        """Accuracy with the salient channels of a node masked (Eq. 7), beside other masks of the same size.

        Args:
            node: where to mask; with a channel, as in `A:12`, that channel is masked and no other is looked for.
            alpha2: thresholds; one mask of the channels with T_act above it for each; None means `SALIENT`.
            percent: mask this share of the channels, by rank, instead of using thresholds.
            compare: selectors of other masks of the same size, see `compared_masks`; what can't be computed at the node
                is left out, and said.
            attacks: under which accuracy is measured; the images are crafted once, on the unmasked model.
            attack: the one whose differences choose the channels.
            alpha: the factor inside tanh.
            reading: of Eq. 6, see `ChannelStatistics.t_act`.
        """
        self.check_nodes([node])
        place = resolve(self.stored_model, node)
        alpha2 = thresholds(place, alpha2, percent)
        compare = computable(compare, self.stored_model, place.whole, self.first_images(1), self.say)
        methods = attributions_for(compare)
        self.attacks(attacks)  # raises for an unknown one, before the work
        with self.keeping():
            statistics, *scores = self.measure(
                ChannelActivations(nodes=(place.whole,), attack=attack),
                *(Attribution(node=place.whole, attack=attack, method=method) for method in methods),
            )
            selection = Selection(
                statistics, place.whole, alpha=alpha, reading=reading, seed=self.seed,
                attributions=dict(zip(methods, scores, strict=True)),
            )  # fmt: skip
            masks = (NO_MASK, *compared_masks(selection, alpha2, percent, compare, place.channel))
            evaluation = self.evaluate(attacks, masks=masks)
        return Masking(evaluation, masks, statistics)

    def diagnose(self, attack: AnyAttack = PROBING_ATTACK, nodes: Sequence[str] = ()) -> Diagnosis:
        """Compare FGSM with PGD-10 accuracy, look for salient channels, and say what kind of model this is.

        Args:
            attack: the one whose differences tell which channels are salient.
            nodes: where these are looked for; empty means A…E, as far as there are any.
        """
        nodes = tuple(nodes) or tuple(node_table(self.stored_model))
        channels = [ChannelActivations(nodes=nodes, attack=attack)] if nodes else []
        evaluation, *statistics = self.measure(Accuracy(), *channels)
        return diagnosed(evaluation, *statistics, ball=self.ball, classes=self.dataset.num_classes)

    def signs(self, names: Sequence[str] = (), **settings: Any) -> SignTable:
        """The known signs of catastrophic overfitting, each with its interval and per image.

        Args:
            names: of signs, see `coprobe.verdict.signs`; none means all that can be measured.
            settings: the other arguments of `signs_of`: nodes and attack as of `diagnose`, budgets, reference.
        """
        return signs_of(self, names, **settings)

    def _one(self, metric: Metric[R]) -> R:
        result: R = self.measure(metric)[0]
        return result
