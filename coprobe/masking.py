"""Which channels to mask, and why: selectors, and the mask of Eq. 7."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from coprobe.core.defaults import ALPHA, RANDOM_MASKS, SALIENT
from coprobe.core.randomness import generator_for
from coprobe.core.registry import Registry
from coprobe.errors import InputError
from coprobe.metrics import ChannelStatistics, Evaluation
from coprobe.metrics.attribution import gradient_reaches
from coprobe.nodes import ChannelMask, Node


@dataclass(frozen=True)
class Selection:
    """What a selector may look at.

    Args:
        statistics: per-channel statistics that hold `node`.
        node: where to mask.
        alpha2: threshold of Eq. 7 in [0, 1]; used by `t-act`.
        count: number of channels; used by every other selector.
        alpha, reading: how T_act is computed, see `ChannelStatistics.t_act`.
        attributions: by method, what selectors by attribution need: the table of `Attribution` at the node.
        seed, draws: of the random selector.
    """

    statistics: ChannelStatistics
    node: str
    alpha2: float = SALIENT
    count: int = 0
    alpha: float = ALPHA
    reading: str = "mean"
    attributions: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    seed: int = 0
    draws: int = RANDOM_MASKS

    def __post_init__(self) -> None:
        if not 0 <= self.alpha2 <= 1:
            raise InputError(f"alpha2 {self.alpha2:g}: must lie between 0 and 1")
        rows = self.statistics.node(self.node)
        channels = len(rows)
        if channels < rows["channels"].iloc[0]:
            raise InputError(f"node '{self.node}' is a single channel; there are no others to choose from")
        if not 0 <= self.count <= channels:
            raise InputError(f"can't mask {self.count} channels of node {self.node}, which has {channels}")

    @property
    def t_act(self) -> np.ndarray:
        """T_act at the node, float64 (channels,)."""
        return self.statistics.t_act(self.node, alpha=self.alpha, reading=self.reading)


@dataclass(frozen=True)
class Masking:
    """Accuracies with and without masked channels, the masks, and the statistics that chose them."""

    evaluation: Evaluation
    masks: tuple[ChannelMask, ...]
    statistics: ChannelStatistics


#: A selector returns the channels of one mask, or of several draws.
Selector = Callable[[Selection], list[tuple[int, ...]]]
SELECTORS: Registry[Selector] = Registry("selector")


def select(name: str, selection: Selection, *, reason: str = "") -> list[ChannelMask]:
    """The masks that the selector `name` chooses, one or several draws; `InputError` for an unknown name.

    Their `reason` is the given one, else the selector's name.
    """
    drawn = SELECTORS[name](selection)
    return [ChannelMask({selection.node: channels}, reason or name, draw) for draw, channels in enumerate(drawn)]


def thresholds(node: Node, alpha2: Sequence[float] | None, percent: float | None) -> tuple[float, ...]:
    """The values of alpha2 to mask a node with: those given, else `SALIENT`, or none at a node like `A:12`.

    Raises:
        InputError: the node is a channel, and there are thresholds or a share as well.
    """
    if node.channel is None:
        return (SALIENT,) if alpha2 is None else tuple(alpha2)
    if alpha2 or percent is not None:
        raise InputError(f"node '{node.name}' is the channel to mask; leave out --alpha2 and --percent")
    return ()


def compared_masks(
    settings: Selection,
    alpha2: Sequence[float],
    percent: float | None,
    compare: Sequence[str],
    channel: int | None = None,
) -> list[ChannelMask]:
    """Masks of the salient channels, or of a given one, and masks of as many channels by other selectors.

    Args:
        settings: what the selectors look at; its `alpha2` and `count` are not used.
        alpha2: thresholds; one mask of the channels with T_act above it for each.
        percent: instead of thresholds, one mask of this share of the channels, by rank.
        compare: selectors of masks with as many channels as alpha2 = 0.5 gives (or, if 0.5 is not among the
            thresholds, the first one; or as `percent` gives).
        channel: instead of thresholds, one mask of this channel.

    Raises:
        InputError: neither thresholds nor a share nor a channel; an unknown selector.
    """
    if channel is not None:
        count = 1
        masks = [ChannelMask({settings.node: (channel,)}, f"channel {channel}")]
    elif percent is not None:
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


def count_of_percent(percent: float, channels: int) -> int:
    """How many of `channels` are the top `percent` %: at least 1, else rounded to nearest."""
    if not 0 < percent <= 100:
        raise InputError(f"{percent:g} %: must be above 0 and at most 100")
    return max(1, round(percent * channels / 100))


def _largest(scores: np.ndarray, count: int) -> tuple[int, ...]:
    return tuple(sorted(int(k) for k in np.argsort(-scores, kind="stable")[:count]))


@SELECTORS.register("t-act", summary="channels with T_act strictly above alpha2", source="Eq. 7", sized=False)
def by_threshold(selection: Selection) -> list[tuple[int, ...]]:
    """Channels with T_act > alpha2; alpha2 = 1 masks nothing."""
    return [tuple(int(k) for k in np.flatnonzero(selection.t_act > selection.alpha2))]


@SELECTORS.register("top", summary="the channels with the largest T_act", source="Eq. 9 (C_p%)", sized=True)
def by_rank(selection: Selection) -> list[tuple[int, ...]]:
    """The `count` channels with the largest un-squashed S_k, which orders channels also where tanh saturates."""
    return [_largest(selection.statistics.s(selection.node), selection.count)]


@SELECTORS.register(
    "variance", summary="the channels with the largest variance on adversarial images", source="Fig. 4", sized=True
)
def by_adversarial_variance(selection: Selection) -> list[tuple[int, ...]]:
    """The `count` channels of largest variance over adversarial images and positions."""
    return [_largest(selection.statistics.variance(selection.node, "adversarial"), selection.count)]


@SELECTORS.register(
    "variance-clean", summary="the channels with the largest variance on clean images", source="control", sized=True
)
def by_clean_variance(selection: Selection) -> list[tuple[int, ...]]:
    """The `count` channels of largest variance over clean images and positions."""
    return [_largest(selection.statistics.variance(selection.node, "clean"), selection.count)]


@SELECTORS.register(
    "random", summary=f"channels drawn at random, averaged over {RANDOM_MASKS} draws", source="control", sized=True
)
def by_chance(selection: Selection) -> list[tuple[int, ...]]:
    """`draws` draws of `count` channels each, without replacement within a draw."""
    channels = len(selection.statistics.node(selection.node))
    drawn = []
    for draw in range(selection.draws):
        order = torch.randperm(channels, generator=generator_for(selection.seed, "mask", draw))
        drawn.append(tuple(sorted(order[: selection.count].tolist())))
    return drawn


def _by_attribution(method: str) -> Selector:
    def by_attribution(selection: Selection) -> list[tuple[int, ...]]:
        if method not in selection.attributions:
            raise InputError(f"this selector needs the attribution by {method} at node {selection.node}")
        scores = selection.attributions[method]["attribution"].to_numpy()
        return [_largest(scores, selection.count)]

    return by_attribution


SELECTORS.add(
    "attribution",
    _by_attribution("gradient-x-activation"),
    summary="the channels with the largest gradient × activation for the predicted class (captum)",
    source="Shrikumar et al. 2016; captum LayerGradientXActivation",
    sized=True,
    attribution="gradient-x-activation",
)
SELECTORS.add(
    "conductance",
    _by_attribution("conductance"),
    summary="the channels with the largest layer conductance for the predicted class (captum)",
    source="Dhamdhere et al. 2018; captum LayerConductance",
    sized=True,
    attribution="conductance",
)


def computable(
    selectors: Iterable[str], model: nn.Module, node: str, images: Tensor, say: Callable[[str], object]
) -> tuple[str, ...]:
    """Those of the selectors that can be computed at a node; which are left out, and why, is told in a sentence.

    Args:
        selectors: names.
        model: the one that is masked.
        node: where; a whole node.
        images: some that the model takes; one is enough.
        say: told.

    Raises:
        InputError: an unknown selector.
    """
    selectors = tuple(selectors)
    left_out = [name for name in dict.fromkeys(selectors) if attributions_for([name])]
    if not left_out or gradient_reaches(model, node, images):
        return selectors
    say(
        f"masks by {' and '.join(left_out)} are left out: the logits have no gradient at node '{node}', which lies in "
        "a torch.autograd.Function or before a detach(); name the module around it"
    )
    return tuple(name for name in selectors if name not in left_out)


def attributions_for(selectors: Iterable[str]) -> list[str]:
    """The methods of `Attribution` that these selectors need; `InputError` for an unknown selector."""
    needed = (SELECTORS.entry(name).facts.get("attribution") for name in selectors)
    return list(dict.fromkeys(method for method in needed if method))
