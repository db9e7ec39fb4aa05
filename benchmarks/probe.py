"""What probing costs beyond its attack, and what recording costs, beside other libraries.

    python -m benchmarks.probe --checkpoint CKPT --data parquet:DIR [--images 128]

First it checks that the channel sums of `Probe.activations` are those that captum's LayerActivation gives on the same
adversarial images and the network as it is stored, and that every library records the same activations, bit for bit.
Then it times, interleaved in one process, `Probe.activations` at the nodes A…E under PGD-10, the attack alone with two
forward passes, and torchattacks' PGD with captum and the same sums; and one forward pass with each recorder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.subject import Subject, options
from benchmarks.timing import Bar, Candidate, absent, bars, measure, publish, table
from coprobe.attacks import AdversarialExamples, parse
from coprobe.core.engine import products_in
from coprobe.metrics.accumulator import SUMS, image_sums
from coprobe.nodes import network_of, node_table, record
from coprobe.probe import Probe

EPSILON, STEP = 16 / 255, 2 / 255
ATTACK = parse("pgd:10:rule=always", EPSILON)
#: Largest difference between sums of the two kinds of kernels, relative to the largest sum of a node.
TOLERANCE = 1e-3
ACTIVATIONS, ALONE = "`Probe.activations` at A…E", "PGD-10 and two forward passes"
OTHERS = "torchattacks, captum, the same sums"


def modules_of(model: nn.Module) -> dict[str, str]:
    """The modules at the nodes A…E, by node; for libraries that know modules only."""
    network = network_of(model)
    paths = {module: path for path, module in model.named_modules()}
    return {node: paths[network.get_submodule(path)] for node, path in node_table(model).items()}


def examples(probe: Probe) -> AdversarialExamples:
    """The adversarial images that the probe looks at."""
    return AdversarialExamples(
        probe.model, probe.dataset, [ATTACK], batch_size=probe.batch_size, device=probe.device, seed=probe.seed
    )


def alone(probe: Probe) -> None:
    """The attack, and the two forward passes that probing needs."""
    for batch in examples(probe):
        with torch.no_grad(), products_in(probe.precision):
            for images in batch.images.values():
                probe.model(images)


def summed(look: peers.Look, x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
    """By node, the sums of `SUMS` per channel, float64 (6, channels)."""
    with torch.no_grad():
        clean, adversarial = dict(look(x)), dict(look(x_adv))
    return {node: image_sums(clean[node], adversarial[node]).sum(0) for node in clean}


def check_sums(probe: Probe, look: peers.Look) -> float:
    """The largest difference between the probe's sums and the library's; stops if it is above the tolerance."""
    total: dict[str, Tensor] = {}
    for batch in examples(probe):
        for node, sums in summed(look, batch.images["clean"], batch.images[ATTACK.spec]).items():
            total[node] = total.get(node, torch.zeros(())) + sums.cpu()
    statistics = probe.activations(attack=ATTACK.spec)
    worst = 0.0
    for node, theirs in total.items():
        ours = torch.from_numpy(statistics.node(node)[list(SUMS)].to_numpy(copy=True)).T
        scale = theirs.abs().amax(1, keepdim=True)
        worst = max(worst, ((ours - theirs).abs() / scale).max().item())
    if worst > TOLERANCE:
        raise SystemExit(f"the channel sums of coprobe and captum differ by {worst:.2g}")
    return worst


def recorders(subject: Subject, modules: Mapping[str, str], fast: nn.Module) -> dict[str, Candidate]:
    """One forward pass that records, by every library; stops if one sees something else."""
    x = subject.batches[0][0]

    def coprobe(model: nn.Module) -> peers.Look:
        def look(x: Tensor) -> Mapping[str, Tensor]:
            with record(model, modules) as seen:
                model(x)
            return seen

        return look

    def once(look: Callable[[Tensor], object]) -> Candidate:
        return Candidate(torch.no_grad()(lambda: look(x)))

    expected = torch.no_grad()(coprobe(subject.model))(x)
    made = {"a forward pass alone": once(subject.model), "coprobe's `record`": once(coprobe(subject.model))}
    for package, recorder in peers.RECORDERS.items():
        if missing := absent(package):
            made[package] = Candidate(lambda: None, missing=missing)
            continue
        look = recorder(subject.model, modules)
        seen = torch.no_grad()(look)(x)
        if not all(torch.equal(expected[node], seen[node]) for node in modules):
            raise SystemExit(f"{package} records something else")
        made[package] = once(look)
    made["a forward pass alone, coprobe's kernels"] = once(fast)
    made["coprobe's `record`, its kernels"] = once(coprobe(fast))
    return made


def main() -> None:
    """Check, measure and print."""
    parser = options(__doc__ or "")
    parser.add_argument("--precision", default="32", help="of coprobe; the others compute in float32")
    arguments = parser.parse_args()
    subject = Subject.of(arguments)
    probe = Probe(
        subject.checkpoint,
        subject.dataset,
        epsilon=EPSILON,
        device=subject.device,
        batch_size=subject.own_batch_size,
        precision=arguments.precision,
    )
    modules = modules_of(subject.model)
    look = peers.captum(subject.model, modules)
    worst = check_sums(probe, look)

    work = {
        ACTIVATIONS: Candidate(lambda: probe.activations(attack=ATTACK.spec)),
        ALONE: Candidate(lambda: alone(probe)),
    }
    missing = absent("torchattacks")
    if not missing:
        craft = peers.torchattacks(subject, peers.Schedule(EPSILON, STEP, 10))
    work[OTHERS] = Candidate(lambda: [summed(look, x, craft(x, y)) for x, y in subject.batches], missing=missing)
    measure(work.values(), arguments.repeats, subject.device)
    recording = recorders(subject, modules, probe.model)
    measure(recording.values(), arguments.repeats, subject.device, block=3)

    asked = [
        Bar(
            "probing over the attack alone and two forward passes",
            work[ACTIVATIONS].relative_to(work[ALONE]),
            most=1.05,
        ),
        Bar(
            "probing, times as fast as torchattacks and captum", work[OTHERS].relative_to(work[ACTIVATIONS]), least=1.5
        ),
    ]
    lines = [
        *subject.about("torchattacks", *peers.RECORDERS),
        f"PGD-10, every image every step, coprobe in {arguments.precision}; sums are captum's but for {worst:.1g}",
        "",
        *table(work, beside=list(work)[:2], images=len(subject.dataset)),
        "",
        f"One forward pass of {len(subject.batches[0][0])} images that records at {', '.join(modules)}",
        "",
        *table(recording, beside=list(recording)[:1]),
        "",
        *bars(asked),
    ]
    publish("What probing costs", lines, arguments.out)


if __name__ == "__main__":
    main()
