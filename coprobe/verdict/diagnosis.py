"""Is a checkpoint CO-affected? The verdict from what was measured, with its evidence."""

from __future__ import annotations

from dataclasses import dataclass

from coprobe.attacks.ball import Ball
from coprobe.attacks.examples import CLEAN
from coprobe.attacks.labels import label_of
from coprobe.core.defaults import ATTACKS, SALIENT
from coprobe.metrics import NO_STATISTICS, ChannelStatistics, Evaluation
from coprobe.nodes import NO_NODES
from coprobe.verdict.rule import verdict_of

#: A verdict, and what is said where it rests on images that gave no gradient.
STABLE, UNTOLD = "stable", "can't be told"


@dataclass(frozen=True)
class Diagnosis:
    """Whether a checkpoint is CO-affected.

    Attributes:
        verdict: `CO-affected`, `stable`, `not robust` or `did not converge`; or `can't be told`, if it would be stable
            only by images that withstand PGD-10 since they give it no gradient, or a misleading one.
        sentence: the verdict and its evidence in a sentence.
        evaluation: accuracy on clean, FGSM and PGD images.
        statistics: channels at every node that was looked at; none for a network without nodes.
        salient: by node, the channels with T_act above `SALIENT`.
    """

    verdict: str
    sentence: str
    evaluation: Evaluation
    statistics: ChannelStatistics
    salient: dict[str, list[int]]


def diagnosed(
    evaluation: Evaluation, statistics: ChannelStatistics = NO_STATISTICS, *, ball: Ball, classes: int
) -> Diagnosis:
    """The verdict from accuracies under `ATTACKS` and from the statistics of all nodes.

    Args:
        evaluation: holds both.
        statistics: of the nodes to be named; left out where there are none.
        ball: of the attacks.
        classes: how many there are.
    """
    nodes = list(statistics.frame["node"].unique())
    salient = {node: (statistics.t_act(node) > SALIENT).nonzero()[0].tolist() for node in nodes}
    clean, fgsm, pgd = map(evaluation.accuracy, (CLEAN, *ATTACKS))
    verdict = verdict_of(clean, fgsm, pgd, classes)
    blind = evaluation.frame.attrs.get("blind", {}).get(ATTACKS[1], 0.0)
    misleading = evaluation.frame.attrs.get("misleading", False)
    if verdict == STABLE and (misleading or verdict_of(clean, fgsm, max(0.0, pgd - blind), classes) != STABLE):
        verdict = UNTOLD
    where = ", ".join(f"{len(found)} of {len(statistics.node(node))} at {node}" for node, found in salient.items())
    channels = f"channels with T_act > {SALIENT}: {where}" if where else NO_NODES
    n = int(evaluation.frame["n"].iloc[0])
    sentence = (
        f"{verdict}: at {ball} accuracy is {clean:.1%} clean, {fgsm:.1%} under FGSM and "
        f"{pgd:.1%} under {label_of(ATTACKS[1])} (n = {n}); {channels}"
    )
    if blind:
        sentence += f"; {blind:.1%} of the images gave {label_of(ATTACKS[1])} no gradient, and may not be robust"
    if misleading:
        sentence += "; the gradient is not the slope of the logits, so attacks that follow it are misled"
    return Diagnosis(verdict, sentence, evaluation, statistics, salient)
