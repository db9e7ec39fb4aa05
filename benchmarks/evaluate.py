"""What an evaluation costs beyond its attacks and its forward passes, and AutoAttack beside its authors' code.

    python -m benchmarks.evaluate --checkpoint CKPT --data parquet:DIR [--images 128]

Clean, FGSM, PGD-10 and PGD-50, each with two noises and four masks. First it checks every count of `Probe.evaluate`
against a literal loop over images, noises and masks that keeps nothing, and coprobe's AutoAttack against pyautoattack
called directly on the network as it is stored: the same images, bit for bit. Then it times, interleaved in one
process, `Probe.evaluate` beside the attacks alone and as many bare forward passes, and the AutoAttacks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import pyautoattack
import torch
from torch import Tensor, nn

from benchmarks.subject import Subject, images_of, options
from benchmarks.timing import Bar, Candidate, bars, measure, publish, table
from coprobe.attacks import AdversarialExamples, parse
from coprobe.attacks.autoattack import AutoAttack
from coprobe.attacks.base import PURPOSE
from coprobe.core.engine import products_in
from coprobe.core.randomness import ImageRandomness, key_of
from coprobe.data.stream import stream
from coprobe.fast.classifier import fast
from coprobe.metrics.accuracy import NO_NOISE, Noise
from coprobe.nodes import NO_MASK, ChannelMask, masked
from coprobe.probe import Probe

EPSILON = 16 / 255
SPECS = ("fgsm", "pgd:10", "pgd:50")
NOISES = (NO_NOISE, Noise.parse("uniform:16"))
MASKS = (NO_MASK, *(ChannelMask({node: (0,)}, f"channel 0 of {node}") for node in "ABC"))
WHOLE, PARTS = "`Probe.evaluate`", "its attacks and its forward passes"


def examples(probe: Probe) -> AdversarialExamples:
    """The adversarial images that the evaluation is about."""
    attacks = [parse(spec, EPSILON) for spec in SPECS]
    return AdversarialExamples(
        probe.model, probe.dataset, attacks, batch_size=probe.batch_size, device=probe.device, seed=probe.seed
    )


def parts(probe: Probe) -> None:
    """The attacks, and a forward pass for each noise and mask of each attack's images."""
    for batch in examples(probe):
        with torch.no_grad(), products_in(probe.precision):
            for images in batch.images.values():
                for _ in range(len(NOISES) * len(MASKS)):
                    probe.model(images)


def check_counts(probe: Probe) -> None:
    """Stop unless all counts are those of a literal loop."""
    frame = probe.evaluate(SPECS, NOISES, masks=MASKS).frame
    counted = frame.set_index(["attack", "noise", "mask"])["correct"].to_dict()
    literal: Counter[tuple[str, str, str]] = Counter()
    for batch in examples(probe):
        randomness = ImageRandomness(probe.seed, "noise", batch.indices)
        for (spec, images), noise, mask in product(batch.images.items(), NOISES, MASKS):
            with torch.no_grad(), products_in(probe.precision), masked(probe.model, mask.channels):
                logits = probe.model(noise.add(images, randomness, 0))
            literal[spec, noise.spec, mask.reason] += int((logits.argmax(1) == batch.labels).sum())
    if literal != counted:
        raise SystemExit(f"the counts are not those of a literal loop: {counted} and {dict(literal)}")


def auto_attacks(subject: Subject, spec: str) -> tuple[dict[str, Candidate], float]:
    """An AutoAttack by coprobe and by pyautoattack, and the share of images alike on the network as it is stored."""
    attack = parse(spec, EPSILON)
    assert isinstance(attack, AutoAttack)
    dataset, device = subject.dataset, subject.device
    kernels = fast(subject.model, images=subject.batches[0][0])
    size = subject.own_size

    def ours(model: nn.Module, *, plain: bool) -> Tensor:
        batches = AdversarialExamples(model, dataset, [attack], batch_size=size, device=device, plain=plain)
        return torch.cat([batch.images[attack.spec] for batch in batches])

    def direct() -> Tensor:
        made = []
        for first in range(0, len(dataset), attack.unit(size)):
            (batch,) = stream(dataset, [(first, min(first + attack.unit(size), len(dataset)))], device)
            seed = key_of(0, PURPOSE, first)
            adversary = pyautoattack.AutoAttack(subject.model, norm="Linf", eps=EPSILON, seed=seed, device=device)
            adversary.attacks_to_run = list(attack.sequence)
            with products_in("32"):
                made.append(adversary.run_standard_evaluation(batch.images, batch.labels, batch_size=size)[0])
        return torch.cat(made)

    alike = (direct() == ours(subject.model, plain=True)).flatten(1).all(1).double().mean().item()
    works = {
        f"{spec}, pyautoattack": direct,
        f"{spec}, coprobe --plain": lambda: ours(subject.model, plain=True),
        f"{spec}, coprobe": lambda: ours(kernels, plain=False),
    }
    return {name: Candidate(work) for name, work in works.items()}, alike


def evaluation(subject: Subject, repeats: int) -> list[str]:
    """`Probe.evaluate` beside its parts."""
    probe = Probe(
        subject.checkpoint, subject.dataset, EPSILON, device=subject.device, batch_size=subject.own_batch_size
    )
    check_counts(probe)
    work = {
        WHOLE: Candidate(lambda: probe.evaluate(SPECS, NOISES, masks=MASKS)),
        PARTS: Candidate(lambda: parts(probe)),
    }
    measure(work.values(), repeats, subject.device)
    what = f"clean, FGSM, PGD-10 and PGD-50, {len(NOISES)} noises ({', '.join(noise.spec for noise in NOISES)})"
    return [
        *subject.about(),
        f"{what}, {len(MASKS)} masks (none and channel 0 of A, B, C); the counts are those of a literal loop",
        "",
        *table(work, beside=[PARTS], images=len(subject.dataset)),
        "",
        *bars([Bar(f"{WHOLE} over {PARTS}", work[WHOLE].relative_to(work[PARTS]), most=1.1)]),
    ]


def auto_attack(subject: Subject, spec: str, repeats: int) -> list[str]:
    """An AutoAttack beside pyautoattack's."""
    attacks, alike = auto_attacks(subject, spec)
    measure(attacks.values(), repeats, subject.device)
    return [
        *subject.about("pyautoattack"),
        *table(attacks, beside=list(attacks)[:1]),
        "",
        *bars([Bar(f"{spec} --plain: share of images that are pyautoattack's, bit for bit", alike, least=1)]),
    ]


def main() -> None:
    """Check, measure and print, one after the other."""
    parser = options(__doc__ or "")
    parser.add_argument("--auto-attacks", default="apgd-ce", help="specs separated by commas; aa takes long")
    parser.add_argument("--auto-images", type=int, default=16, help="that AutoAttack attacks")
    parser.add_argument("--auto-repeats", type=int, default=5)
    parser.add_argument("--only-auto", action="store_true", help="leave out the evaluation")
    arguments = parser.parse_args()
    subject = Subject.of(arguments)
    title = "What an evaluation costs"
    if not arguments.only_auto:
        publish(title, evaluation(subject, arguments.repeats), arguments.out)
    few = replace(subject, dataset=images_of(arguments, arguments.auto_images), batch_size=subject.own_size)
    for spec in arguments.auto_attacks.split(","):
        publish(title, auto_attack(few, spec, arguments.auto_repeats), arguments.out)


if __name__ == "__main__":
    main()
