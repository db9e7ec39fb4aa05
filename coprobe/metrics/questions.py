"""What can be asked of a checkpoint on some images; questions asked together share their adversarial images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

import pandas as pd
from torch import nn

from coprobe.attacks import Attack
from coprobe.attacks.examples import CLEAN
from coprobe.core.defaults import ATTACKS, PROBING_ATTACK
from coprobe.errors import InputError
from coprobe.metrics import ChannelStatistics, ChannelSums, Increments, IncrementSums, Measurement, Overlap
from coprobe.metrics.accuracy import NO_NOISE, Accuracy, Evaluation, Noise
from coprobe.nodes import NO_MASK, ChannelMask

R = TypeVar("R")


@dataclass(frozen=True)
class Question(Generic[R]):
    """Something to be measured, see `Probe.ask`.

    Attributes:
        kind: in a word, for the name of the file in which the answer is kept.
        nodes: where it looks, or masks.
        attacks: specs of the attacks whose images it needs; clean ones are always there.
        settings: what else the answer depends on, as plain values.
        measurement: from a model, the attacks and a seed to what answers it.
        answer: from what was measured, as a table, to what people want in hand.
        steps: it looks at every step of its attack, so that images which were crafted before are of no use.
    """

    kind: str
    nodes: tuple[str, ...]
    attacks: tuple[str, ...]
    settings: Mapping[str, Any]
    measurement: Callable[[nn.Module, Sequence[Attack], int], Measurement[Any]]
    answer: Callable[[pd.DataFrame], R]
    steps: bool = False


def activations(nodes: Sequence[str], attack: str = PROBING_ATTACK) -> Question[ChannelStatistics]:
    """How much do channels differ between clean and adversarial images (Eqs. 5 and 6)? See `ChannelSums`."""
    if not nodes:
        raise InputError("no nodes to look at; name one at least")

    def measurement(model: nn.Module, attacks: Sequence[Attack], seed: int) -> ChannelSums:
        return ChannelSums(model, nodes, attacks[0].spec)

    return Question("activations", tuple(nodes), (attack,), {"nodes": list(nodes)}, measurement, ChannelStatistics)


def increments(nodes: Sequence[str] = ("A",), attack: str = PROBING_ATTACK) -> Question[Increments]:
    """How far is each channel from its clean activation at every step of an attack (Fig. 10)? See `IncrementSums`."""

    def measurement(model: nn.Module, attacks: Sequence[Attack], seed: int) -> IncrementSums:
        return IncrementSums(model, nodes, attacks[0])

    return Question("increments", tuple(nodes), (attack,), {"nodes": list(nodes)}, measurement, Increments, steps=True)


def overlap(node: str = "A", attack: str = PROBING_ATTACK, top: int = 5) -> Question[pd.DataFrame]:
    """Have single images the same salient channels as all of them (C07)? See `Overlap`."""

    def measurement(model: nn.Module, attacks: Sequence[Attack], seed: int) -> Overlap:
        return Overlap(model, node, attacks[0].spec, top=top)

    return Question("overlap", (node,), (attack,), {"node": node, "top": top}, measurement, lambda frame: frame)


def accuracies(
    attacks: Sequence[str] = ATTACKS,
    noises: Sequence[Noise] = (NO_NOISE,),
    noise_draws: int = 1,
    masks: Sequence[ChannelMask] = (NO_MASK,),
) -> Question[Evaluation]:
    """How accurate is the model on clean images, under attacks, with noise, with channels masked? See `Accuracy`."""

    def measurement(model: nn.Module, attacks: Sequence[Attack], seed: int) -> Accuracy:
        specs = [CLEAN, *(attack.spec for attack in attacks)]
        return Accuracy(model, specs, noises=noises, noise_draws=noise_draws, masks=masks, seed=seed)

    settings: dict[str, Any] = {"noises": [noise.spec for noise in noises], "noise_draws": noise_draws}
    if tuple(masks) != (NO_MASK,):
        settings["masks"] = [asdict(mask) for mask in masks]
    nodes = dict.fromkeys(chain.from_iterable(mask.channels for mask in masks))
    return Question("evaluation", tuple(nodes), tuple(attacks), settings, measurement, Evaluation)
