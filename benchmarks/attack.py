"""How fast attacks are: beside other libraries, beside the straightforward loop, and beside the bare passes.

    python -m benchmarks.attack --checkpoint CKPT --data parquet:DIR [--images 128] [--batch-size 128]

First it checks that all do the same: one step from the clean images moves the same pixels (at least 99.9 % of them in
float32, on the same network), nothing leaves the ball, and what ten such steps leave of the accuracy is printed, which
is judged only if it is neither nothing nor everything. Then it times, interleaved in one process,

- PGD-10 with every image taking every step, of coprobe and of each library that is installed, beside the ten passes
  forward and backward that none can do without, on coprobe's kernels;
- PGD-50 that stops at the first misclassification, of coprobe and of the straightforward loop (`benchmarks.naive`),
  from the same random starts, which must give the same images, bit for bit, on the same kernels;
- PGD in every form that the network's fast form is chosen from (`coprobe.fast.form`), beside torchattacks;
- PGD-10 over as many images as `--many` says, compiled and in bfloat16, beside torchattacks.

It also profiles the bare passes: where the time goes that no attack can do without.

"Of the ceiling" is the FLOPs of the passes with direct convolutions over what a square matrix product reaches in the
same precision. Libraries that go back to the weights as well do more, coprobe's kernels in float32 on a CPU do less
(`coprobe.fast.winograd`), which may take them beyond the ceiling.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks import peers
from benchmarks.naive import pgd_until_misclassified
from benchmarks.subject import Subject, images_of, options
from benchmarks.timing import (
    Bar,
    Candidate,
    absent,
    bars,
    ceiling,
    count,
    measure,
    products,
    profiled,
    publish,
    table,
    torchs,
)
from coprobe.attacks import AdversarialExamples, parse
from coprobe.core.engine import frozen, products_in
from coprobe.fast.classifier import fast
from coprobe.fast.form import forms
from coprobe.models import Classifier

EPSILON, STEP = 16 / 255, 2 / 255
PRECISIONS = {"coprobe": "32", "coprobe, tf32": "tf32", "coprobe, bf16": "bf16"}
PLAIN = "coprobe --plain"
LOOP = "the loop, network as stored"
UNTIL = parse("pgd:50", EPSILON)
#: How often as fast coprobe shall be.
SPEEDUPS = {"torchattacks": 1.45, "foolbox": 2.0, "adversarial-robustness-toolbox": 2.0}
#: Points of accuracy that it may be off.
OFF = {"32": 0.2, "tf32": 0.2, "bf16": 0.5}
PARTS = ("accuracy", "times", "profile", "loop", "forms", "many")


def crafted(subject: Subject, model: Classifier, spec: str, *, plain: bool = False, epsilon: float = EPSILON) -> Tensor:
    """coprobe's adversarial images."""
    attack = parse(spec, epsilon)
    examples = AdversarialExamples(
        model, subject.dataset, [attack], batch_size=subject.own_batch_size, device=subject.device, plain=plain
    )
    return torch.cat([batch.images[attack.spec] for batch in examples])


def crafted_by(craft: peers.Craft, subject: Subject) -> Tensor:
    """A library's adversarial images."""
    return torch.cat([craft(x, y).detach() for x, y in subject.batches])


def bare(subject: Subject, model: Classifier, steps: int) -> None:
    """So many passes forward and backward to the images, and nothing else."""
    with products_in(model.precision):
        for x, y in subject.own_batches:
            points = x.contiguous(memory_format=torch.channels_last).requires_grad_()
            for _ in range(steps):
                torch.autograd.grad(cross_entropy(model(points), y, reduction="sum"), points)


def passes(subject: Subject, steps: int) -> float:
    """FLOPs of these passes, counted on the network as it is stored."""
    with frozen(subject.model):
        return steps * count(lambda: bare(subject, subject.model, 1))


def accuracy(subject: Subject, x_adv: Tensor) -> float:
    """Of the network as it is stored, in %."""
    labels = torch.cat([y for _, y in subject.batches])
    with torch.no_grad():
        logits = torch.cat([subject.model(part) for part in x_adv.split(subject.batch_size)])
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def agreement(
    subject: Subject, many: Subject, kernels: dict[str, Classifier], epsilon: float
) -> tuple[list[str], dict[str, float]]:
    """A table, and the accuracies in it by name; stops if a library does something else.

    Starting at the clean images, since every library draws its random start in its own way, and without TF32. Where
    the attack breaks every image or none, accuracies agree whatever was computed, and there are none to return.
    """

    def all_of(subject: Subject, iterations: int) -> dict[str, Tensor]:
        spec = f"pgd:{iterations}:start=zero:rule=always"
        made = {PLAIN: crafted(subject, subject.model, spec, plain=True, epsilon=epsilon)}
        made |= {name: crafted(subject, model, spec, epsilon=epsilon) for name, model in kernels.items()}
        for package, attack in peers.ATTACKS.items():
            if not absent(package) and (iterations == 1 or package in SPEEDUPS):
                steps = iterations + (iterations == 1 and package in peers.LATE)
                schedule = peers.Schedule(epsilon, STEP, steps, random_start=False)
                with products_in("32"):
                    made[package] = crafted_by(attack(subject, schedule), subject)
        return made

    clean = torch.cat([x for x, _ in subject.batches])
    alike = {}
    for name, x_adv in (stepped := all_of(subject, 1)).items():
        moved = (x_adv != clean).flatten(1).any(1)  # adv-lib leaves images where they are that it can't break
        alike[name] = ((x_adv - stepped[PLAIN]).abs() < 1e-6)[moved].double().mean().item()
        if name in peers.ATTACKS and moved.any() and alike[name] < 0.999:
            raise SystemExit(f"{name} moves other pixels: only {alike[name]:.2%} are alike")
    clean = torch.cat([x for x, _ in many.batches])
    accuracies = {}
    for name, x_adv in all_of(many, 10).items():
        if (x_adv - clean).abs().max() > epsilon + 1e-6 or x_adv.min() < 0 or x_adv.max() > 1:
            raise SystemExit(f"{name} leaves the ball")
        accuracies[name] = accuracy(many, x_adv)
    unharmed = accuracy(many, clean)
    heading = f"accuracy in %, {len(clean):,} images ({unharmed:.1f} of them clean)"
    rows = [
        f"| PGD-10 from the clean images, {epsilon * 255:g}/255 | pixels alike after one step | {heading} |",
        "|---|---|---|",
        *(f"| {name} | {alike[name]:.3%} | {accuracies[name]:.1f} |" for name in alike if name in accuracies),
    ]
    return rows, accuracies if 0 < accuracies[PLAIN] < unharmed else {}


def every_step(subject: Subject, kernels: dict[str, Classifier], chosen: Sequence[str]) -> dict[str, Candidate]:
    """PGD-10 without stopping, also of the chosen libraries."""
    spec, flops = "pgd:10:rule=always", passes(subject, 10)
    made = {}
    for package, attack in peers.ATTACKS.items():
        if missing := absent(package) if package in chosen else "left out":
            made[package] = Candidate(lambda: None, missing=missing)
        else:
            craft = attack(subject, peers.Schedule(EPSILON, STEP, 10))
            made[package] = Candidate(lambda craft=craft: crafted_by(craft, subject), flops)
    made[PLAIN] = Candidate(lambda: crafted(subject, subject.model, spec, plain=True), flops)
    for name, model in kernels.items():
        made[name] = Candidate(lambda model=model: crafted(subject, model, spec), flops)
        made[passes_of(name)] = Candidate(lambda model=model: bare(subject, model, 10), flops)
    return made


def passes_of(name: str) -> str:
    """What the row is called that has the bare passes on the same kernels."""
    return name.replace("coprobe", "bare passes")


def until_misclassified(subject: Subject, model: Classifier) -> tuple[dict[str, Candidate], float]:
    """PGD-50 that stops, with the share of images that the loop on the same kernels makes as coprobe does."""

    def loop(model: Classifier) -> Tensor:
        made, first = [], 0
        for x, y in subject.batches:
            indices = torch.arange(first, first + len(x), device=x.device)
            start = next(UNTIL.steps(model, x, y, seed=0, indices=indices))
            made.append(pgd_until_misclassified(model, x, y, start, EPSILON, STEP, 50))
            first += len(x)
        return torch.cat(made)

    def loop_on_kernels() -> Tensor:
        with products_in(model.precision):
            return loop(model)

    def ours() -> Tensor:
        return crafted(subject, model, UNTIL.spec)

    alike = (loop_on_kernels() == ours()).flatten(1).all(1).double().mean().item()
    return {LOOP: Candidate(lambda: loop(subject.model)), "coprobe": Candidate(ours)}, alike


def timed(subject: Subject, kernels: dict[str, Classifier], chosen: Sequence[str], repeats: int) -> list[str]:
    """PGD-10 without stopping."""
    attacks = every_step(subject, kernels, chosen)
    computes = {name: PRECISIONS.get(name.replace("bare passes", "coprobe"), "") for name in attacks}
    computes |= {PLAIN: "32"} | dict.fromkeys(peers.ATTACKS, torchs("32", subject.device))
    squares = {precision: products(subject.device, precision) for precision in set(computes.values())}
    measure([*chain(*squares.values()), *attacks.values()], repeats, subject.device)
    ceilings = {name: ceiling(squares[precision]) for name, precision in computes.items()}
    rows = table(attacks, beside=list(SPEEDUPS), images=len(subject.dataset), ceilings=ceilings)
    what = "PGD-10 at 16/255 with steps of 2/255, every image every step"
    asked = bars(speed(attacks, subject.device)) if set(chosen) >= set(SPEEDUPS) else []
    return [*subject.about(*chosen), what, "", *rows, "", *asked]


def spent(subject: Subject, kernels: dict[str, Classifier]) -> list[str]:
    """What the bare passes spend their time on."""
    lines = []
    for name, model in kernels.items():
        flops = passes(subject, 1)
        square = products(subject.device, PRECISIONS[name])
        measure(square, 5, subject.device)
        shares, seconds = profiled(lambda model=model: bare(subject, model, 1), subject.device)
        reached = flops / seconds / ceiling(square)
        lines += [f"{passes_of(name)}: {seconds:.3g} s a step, {reached:.0%} of the ceiling", "", *shares, ""]
    return [*subject.about(), *lines[:-1]]


def stopped(subject: Subject, repeats: int) -> list[str]:
    """PGD-50 until misclassified."""
    loops, alike = until_misclassified(subject, fast(subject.model, images=subject.batches[0][0]))
    measure(loops.values(), repeats, subject.device)
    ratio = loops[LOOP].relative_to(loops["coprobe"])
    asked = [
        Bar("PGD-50 until misclassified, times as fast as the loop", ratio, least=8),
        Bar("share of its images that are the loop's, bit for bit", alike, least=1),
    ]
    rows = table(loops, beside=[LOOP], images=len(subject.dataset))
    return [*subject.about(), "PGD-50 until misclassified", "", *rows, "", *bars(asked)]


def by_form(subject: Subject, precision: str, steps: int, repeats: int) -> list[str]:
    """PGD without stopping in every form, the chosen one marked, beside torchattacks."""
    spec, images = f"pgd:{steps}:rule=always", subject.batches[0][0]
    craft = peers.torchattacks(subject, peers.Schedule(EPSILON, STEP, steps))
    works = {
        "torchattacks": Candidate(lambda: crafted_by(craft, subject)),
        PLAIN: Candidate(lambda: crafted(subject, subject.model, spec, plain=True)),
    }
    chosen = fast(subject.model, images=images, precision=precision)
    for form in forms(precision, subject.device):
        model = fast(subject.model, images=images, precision=precision, form=form)
        name = f"{form} (chosen)" if form == getattr(chosen, "form", None) else str(form)
        works[name] = Candidate(lambda model=model: crafted(subject, model, spec))
    measure(works.values(), repeats, subject.device)
    rows = table(works, beside=["torchattacks"], images=len(subject.dataset))
    what = f"PGD-{steps} in every form, every image every step, precision {precision}, torchattacks in float32"
    return [*subject.about("torchattacks"), what, "", *rows, ""]


def throughput(subject: Subject, repeats: int) -> list[str]:
    """PGD-10 over many images, compiled and in bfloat16."""
    squares = products(subject.device, "bf16")
    model = fast(subject.model, images=subject.batches[0][0], precision="bf16", compiled=True)
    attack = Candidate(lambda: crafted(subject, model, "pgd:10:rule=always"), passes(subject, 10))
    craft = peers.torchattacks(subject, peers.Schedule(EPSILON, STEP, 10))
    other = Candidate(lambda: crafted_by(craft, subject))
    measure([*squares, attack, other], repeats, subject.device)
    name = "coprobe, compiled, bf16"
    works = {name: attack, "torchattacks": other}
    asked = [
        Bar(f"PGD-10 over {len(subject.dataset):,} images, compiled, bf16, seconds", attack.seconds, most=3),
        Bar("the same, times as fast as torchattacks", other.relative_to(attack), least=4),
    ]
    rows = table(works, beside=["torchattacks"], images=len(subject.dataset), ceilings={name: ceiling(squares)})
    return [*subject.about("torchattacks"), *rows, "", *bars(asked)]


def arguments_of() -> argparse.Namespace:
    """What the command line says."""
    parser = options(__doc__ or "")
    parser.add_argument(
        "--parts", help=f"of {', '.join(PARTS)}, with commas between; many is by default with CUDA only"
    )
    parser.add_argument("--accuracy-images", type=int, default=1000, help="on which accuracies are compared")
    parser.add_argument(
        "--accuracy-eps", type=float, default=16, help="n of n/255 at which they are; some must survive"
    )
    parser.add_argument(
        "--peers", default=",".join(peers.ATTACKS), help="libraries that are timed, with commas between"
    )
    parser.add_argument("--form-steps", type=int, default=10, help="of PGD in every form")
    parser.add_argument("--form-precision", default="32", choices=PRECISIONS.values(), help="of PGD in every form")
    parser.add_argument("--loop-images", type=int, default=256, help="of PGD-50 until misclassified")
    parser.add_argument("--loop-checkpoint", help="the one that it attacks; --checkpoint if unset")
    parser.add_argument("--many", type=int, default=10_000, help="images of that part")
    parser.add_argument("--many-batch-size", type=int, default=512)
    arguments = parser.parse_args()
    if arguments.parts is None:
        arguments.parts = ",".join(PARTS if torch.device(arguments.device).type == "cuda" else PARTS[:-1])
    if unknown := set(arguments.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: there is no {', '.join(sorted(unknown))}")
    return arguments


def speed(attacks: dict[str, Candidate], device: torch.device) -> list[Bar]:
    """What PGD-10 shall show when it is timed."""
    precisions = {name: precision for name, precision in PRECISIONS.items() if name in attacks}
    alike = next(name for name, precision in precisions.items() if precision == torchs("32", device))
    speedups = {name: attacks[name].relative_to(attacks[alike]) for name in SPEEDUPS}
    made = [Bar(f"{alike}, times as fast as {peer}", speedups[peer], least=least) for peer, least in SPEEDUPS.items()]
    fastest = attacks["torchattacks"].relative_to(attacks["coprobe, bf16"])
    made.append(Bar("coprobe, bf16, times as fast as torchattacks", fastest, least=3))
    for name in precisions:
        overhead = attacks[name].relative_to(attacks[passes_of(name)])
        made.append(Bar(f"{name}: time over that of its bare passes", overhead, most=1.05))
    return made


def likeness(accuracies: dict[str, float], names: Iterable[str]) -> list[Bar]:
    """What its accuracies shall be."""
    made = []
    for name in names:
        for peer in SPEEDUPS:
            off = round(abs(accuracies.get(name, math.nan) - accuracies.get(peer, math.nan)), 6)
            made.append(Bar(f"{name}: points of accuracy off {peer}", off, most=OFF[PRECISIONS[name]]))
    return made


def main() -> None:
    """Check, measure and print, one after the other."""
    arguments = arguments_of()
    subject = Subject.of(arguments)
    title = "How fast attacks are"
    kernels = {
        name: fast(subject.model, images=subject.batches[0][0], precision=precision)
        for name, precision in PRECISIONS.items()
        if precision != "tf32" or subject.device.type == "cuda"
    }
    parts = arguments.parts.split(",")
    if "accuracy" in parts:
        accurate = replace(subject, dataset=images_of(arguments, arguments.accuracy_images))
        agreed, accuracies = agreement(subject, accurate, kernels, arguments.accuracy_eps / 255)
        found = [*accurate.about(*peers.ATTACKS), *agreed, "", *bars(likeness(accuracies, kernels))]
        publish(title, found, arguments.out)
    if "times" in parts:
        publish(title, timed(subject, kernels, arguments.peers.split(","), arguments.repeats), arguments.out)
    if "profile" in parts:
        publish(title, spent(subject, kernels), arguments.out)
    if "loop" in parts:
        weak = argparse.Namespace(**vars(arguments))
        weak.images, weak.checkpoint = arguments.loop_images, arguments.loop_checkpoint or arguments.checkpoint
        publish(title, stopped(Subject.of(weak), arguments.repeats), arguments.out)
    if "forms" in parts:
        found = by_form(subject, arguments.form_precision, arguments.form_steps, arguments.repeats)
        publish(title, found, arguments.out)
    if "many" in parts:
        size = arguments.many_batch_size
        many = images_of(arguments, arguments.many)
        larger = replace(subject, dataset=many, batch_size=size, own_batch_size=size)
        publish(title, throughput(larger, arguments.repeats), arguments.out)


if __name__ == "__main__":
    main()
