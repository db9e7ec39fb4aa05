"""Checks of what a pass gives, of what it depends on, and of what it leaves behind."""

from __future__ import annotations

from torch import Tensor

from coprobe.checks.base import CHECKS, Finding
from coprobe.checks.subject import Subject, same
from coprobe.models.foreign import some

_PROBABLE = 1e-3


@CHECKS.register("state", summary="a pass leaves the network's weights and buffers as they are", quick=True)
def state(subject: Subject) -> Finding | None:
    """Running statistics that are kept up to date while probing, memories; counters and the like if logits follow."""
    _, changed, drew = subject.first_pass
    if not changed and not drew and not subject.repeats:
        changed = subject.moved
    if not changed:
        return None
    return Finding(
        f"every pass changes the network ({some(changed)}), so results depend on the passes before them; it is probed "
        "as a copy, with images kept in their batches: let its eval() stop that",
        together=True,
        writes=True,
    )


@CHECKS.register("input", summary="the network leaves the images it is given as they are", quick=True)
def unchanged_input(subject: Subject) -> Finding | None:
    """Networks get copies, so this is no fault of a result, but of what else the network is used for."""
    seen: list[tuple[Tensor, Tensor]] = []

    def before(module: object, inputs: tuple[Tensor, ...]) -> None:
        seen.append((inputs[0], inputs[0].clone()))

    hook = subject.model.network.register_forward_pre_hook(before)
    try:
        subject.logits(subject.images[:2])
    finally:
        hook.remove()
    if all(same(given, copy, 0.0) for given, copy in seen):
        return None
    return Finding(
        "the network writes into the images it is given (x.sub_(…) and the like); coprobe hands it copies, elsewhere "
        "let it compute on a copy of its own"
    )


@CHECKS.register("repeated", summary="two passes over the same images give the same", quick=True)
def repeated(subject: Subject) -> Finding | None:
    """A network that draws random numbers; a coin that is tossed once a batch is seen by the generators' states."""
    _, _, drew = subject.first_pass
    if state(subject) is not None or (subject.repeats and not drew):
        return None
    how = (
        "--seed fixes its draws, batch by batch"
        if subject.reseeded
        else "they come from a generator of its own, which --seed does not reach, and results can't be repeated"
    )
    return Finding(
        f"the logits differ from pass to pass, so the model draws random numbers ({how}), and what its channels do "
        "under an attack is mixed with that; switch its noise off, or attack with pgd-eot"
        if not subject.repeats
        else f"the model draws random numbers ({how}), though its logits were the same in all passes here",
        together=True,
        draws=True,
    )


@CHECKS.register("alone", summary="an image has the same logits alone and in a batch", quick=True)
def alone(subject: Subject) -> Finding | None:
    """Batch statistics, views or crops that are compared, anything that is computed over axis 0."""
    _, changed, drew = subject.first_pass
    if changed or drew or not subject.repeats or len(subject.full_batch) < 2:
        return None
    images = subject.full_batch
    logits = subject.logits(images)
    for row in sorted({0, len(images) // 2, len(images) - 1}):
        single = subject.logits(images[row : row + 1])
        if single.shape[1:] != logits.shape[1:] or not same(single, logits[row : row + 1]):
            off = float((single - logits[row : row + 1]).abs().max()) if single.shape[1:] == logits.shape[1:] else 0.0
            return Finding(
                f"an image's logits depend on the other images of its batch (they differ by {off:.2g} alone), as with "
                "BatchNorm2d(track_running_stats=False); so do all numbers here, and images stay in their batches: say "
                "--batch-size with every result",
                together=True,
            )
    return None


@CHECKS.register("logits", summary="the outputs are logits, and differ between images", quick=True)
def are_logits(subject: Subject) -> Finding | None:
    """Attacks need logits: after a softmax the loss has hardly any gradient, and constant outputs have none."""
    outputs, _, _ = subject.first_pass
    if _alike(outputs) and not _alike(subject.images):
        return Finding(
            "the logits are the same for all images, so no attack finds a direction; check the weights and --mean/--std"
        )
    if outputs.min() >= 0 and (outputs.sum(1) - 1).abs().max() < _PROBABLE:
        return Finding(
            "the outputs are probabilities, and attacks on them see hardly any gradient; "
            "leave out the softmax at the end"
        )
    return None


def _alike(rows: Tensor) -> bool:
    return bool((rows == rows[:1]).all())
