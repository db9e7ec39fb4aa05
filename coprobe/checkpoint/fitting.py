"""Where a file leaves open how its network works: clean images decide what they clearly can, and it is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from coprobe.checkpoint.checkpoint import Checkpoint
from coprobe.checkpoint.normalisation import Normalisation
from coprobe.checkpoint.normalisation_check import NormalisationCheck, Score, check_normalisation
from coprobe.core.engine import Progress, silent
from coprobe.data import Dataset
from coprobe.models import Classifier

#: From fewer images, it doesn't follow that two readings are alike.
_ENOUGH = 64


@dataclass(frozen=True)
class Decision:
    """What clean images decide of a checkpoint.

    Attributes:
        variant: arguments of the architecture to take instead of those assumed.
        normalisation: to take instead of the checkpoint's; None keeps that.
        sentences: what a person should know.
    """

    variant: Mapping[str, Any] = field(default_factory=dict)
    normalisation: Normalisation | None = None
    sentences: tuple[str, ...] = ()

    def of(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint as decided."""
        decided = dict(self.variant)
        if self.variant:
            checkpoint = checkpoint.variant(self.variant)
        if self.normalisation is not None:
            old, new = checkpoint.model, self.normalisation
            model = Classifier(old.network, new.mean, new.std, node_table=old.node_table, channel_axes=old.channel_axes)
            checkpoint = replace(checkpoint, model=model.train(old.training), normalised_by="clean images")
            decided["normalisation"] = new.name
        return replace(checkpoint, decided=decided) if decided else checkpoint


def fit(
    checkpoint: Checkpoint,
    dataset: Dataset,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Decision:
    """Try known variants of the network and known normalisations on up to 256 clean images.

    What nothing in the file says, and no person either, is taken from the images if one reading is clearly better than
    the checkpoint as it is; else it stays as assumed. A file that coprobe wrote says everything, and is not tried.

    Args:
        checkpoint: any.
        dataset: images with true labels, in the order of the model's classes.
        device: where to work.
        batch_size: images at once; None finds one that fits.
        progress: shows how far it is.

    Raises:
        InputError: the images don't fit the model (classes, channels, size).
    """
    if checkpoint.is_own:
        return Decision()
    check = check_normalisation(checkpoint, dataset, device=device, batch_size=batch_size, progress=progress)
    return decide(checkpoint, check)


def decide(checkpoint: Checkpoint, check: NormalisationCheck) -> Decision:
    """What a check means for a checkpoint: what to take, what to warn about, and what was assumed."""
    loaded, better = check.loaded, check.better
    allowed = [score for score in check.scores if _may_be_taken(score, checkpoint, loaded)]
    taken = replace(check, scores=tuple(allowed)).better
    if taken is None:
        warning = check.warning(checkpoint.normalised_by)
        return Decision(sentences=tuple(filter(None, [warning, "" if better else _assumed(checkpoint, check)])))
    normalisation = taken.normalisation if taken.normalisation is not loaded.normalisation else None
    return Decision(taken.variant, normalisation, (_taken(checkpoint, check, taken, normalisation),))


def _taken(checkpoint: Checkpoint, check: NormalisationCheck, taken: Score, normalisation: Normalisation | None) -> str:
    """A sentence on what is taken, instead of what, and why; then how to say it oneself."""
    loaded, better = check.loaded, check.better
    before = [f"{name}={checkpoint.whole_arch_args[name]}" for name in taken.variant]
    after = [f"{name}={value}" for name, value in taken.variant.items()]
    options = [f"--arch-arg {one}" for one in after]
    if normalisation is not None:
        channels = checkpoint.in_channels
        mean, std = normalisation.mean or (0,) * channels, normalisation.std or (1,) * channels
        before.append(_of(loaded.normalisation, checkpoint.normalised_by))
        after.append(_of(normalisation, ""))
        options += [f"--{name} {','.join(f'{n:g}' for n in row)}" for name, row in (("mean", mean), ("std", std))]
    said = (
        f"took {' and '.join(after)}: so it is right on {taken.accuracy:.1%} of {len(taken.correct)} clean images, and "
        f"with {' and '.join(before)} on {loaded.accuracy:.1%}; to say it yourself, pass {' '.join(options)}"
    )
    if better is None or better is taken or not taken.is_clearly_below(better):
        return said
    return f"{said}; with {better.name} it would be right on {better.accuracy:.1%}"


def _may_be_taken(score: Score, checkpoint: Checkpoint, loaded: Score) -> bool:
    """Whether images may decide for it: what the person or the network itself says is not overruled."""
    if score.normalisation is loaded.normalisation:
        return True
    return checkpoint.images_may_decide and (not checkpoint.normalised_by or score.normalisation.mean is None)


def _assumed(checkpoint: Checkpoint, check: NormalisationCheck) -> str:
    """What was assumed, if others fit about as well, or none at all; empty if the images leave nothing open."""
    loaded = check.loaded
    if len(loaded.correct) < _ENOUGH:
        return ""
    if not check.any_fits:
        return check.sentence
    about = [score for score in (check.best, *check.alike) if score is not loaded]
    variants = [score for score in about if score.variant and score.normalisation is loaded.normalisation]
    assumed = [
        f"{name}={checkpoint.whole_arch_args[name]}" for name in dict.fromkeys(n for s in variants for n in s.variant)
    ]
    others = [f"{name}={value}" for score in variants for name, value in score.variant.items()]
    if not checkpoint.normalised_by and (alike := [s.normalisation.name for s in about if not s.variant]):
        assumed.append(_of(loaded.normalisation, ""))
        others += alike
    if not assumed:
        return ""
    fit_as_well = f"fit{'s' * (len(others) == 1)} about as well on {len(loaded.correct)} clean images"
    return f"assumed {' and '.join(assumed)}, which the file doesn't say: {', '.join(others)} {fit_as_well}"


def _of(normalisation: Normalisation, known_from: str) -> str:
    """A normalisation as part of a sentence."""
    if normalisation.mean is None:
        return "no normalisation"
    return f"normalisation by {known_from}" if known_from else f"the normalisation {normalisation.name}"
