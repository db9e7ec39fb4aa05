"""The self-check on networks with one fault each, and what probing does about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.checks import CHECKS
from coprobe.errors import CoprobeError
from coprobe.metrics import Noise
from tests.attacks.small import fingerprint, trained
from tests.checks import networks
from tests.checks.networks import EPSILON, Around, probe


class Detached(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x.detach())
        return logits


def straight_through(x: Tensor) -> Tensor:
    """Quantised to 4 bits, with the gradient of what was not."""
    return x + ((x * 15).round() / 15 - x).detach()


#: A network, which checks find something, and a part of what they say.
FAULTS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "none": (Around, "", ""),
    "batch statistics": (networks.batch_statistics, "alone", "depend on the other images of its batch"),
    "minus the batch's mean": (lambda: Around(lambda x: x - x.mean(0)), "alone", "depend on the other images"),
    "divided by the batch's largest": (lambda: Around(lambda x: x / x.max()), "alone", "depend on the other images"),
    "in groups of 64": (lambda: Around(networks.minus_mean_of_groups), "alone", "depend on the other images"),
    "the last image is another": (
        lambda: Around(lambda x: torch.cat([x[:-1], x[-1:] * 0.5])), "alone", "depend on the other images",
    ),
    "training": (networks.KeepsTraining, "state", "every pass changes the network (inner.1.running_mean"),
    "memory": (networks.Remembers, "state", "every pass changes the network (memory)"),
    "a counter": (networks.Counts, "state", "every pass changes the network (passes, level, last)"),
    "noise": (lambda: Around(networks.noise), "repeated", "differ from pass to pass"),
    "a coin a pass": (lambda: Around(networks.toss), "repeated", "--seed fixes its draws"),
    "numpy's coin": (lambda: Around(networks.toss_by_numpy), "repeated", "--seed fixes its draws"),
    "Python's coin": (lambda: Around(networks.toss_by_python), "repeated", "--seed fixes its draws"),
    "a coin of its own": (networks.OwnDraws, "repeated", "a generator of its own, which --seed does not reach"),
    "dropout": (lambda: Around(lambda x: nn.functional.dropout(x, 0.3)), "repeated", "draws random numbers"),
    "in place": (lambda: Around(lambda x: x.sub_(0.1).mul_(1.2)), "input", "writes into the images"),
    "in place, a clamp": (lambda: Around(lambda x: x.clamp_(0.2, 0.8)), "input", "writes into the images"),
    "rounding": (
        lambda: Around(lambda x: (x * 255).round() / 255), "gradients", "exactly zero at 16 of 16 images (rounding",
    ),
    "sign": (lambda: Around(lambda x: (x - 0.5).sign()), "gradients", "exactly zero at 16 of 16 images (rounding"),
    "large logits": (lambda: Around(after=lambda z: z * 1000), "gradients", "at which the softmax saturates: divide"),
    "reversed": (lambda: networks.backwards(torch.neg), "slope", "at 16 of 16 images (they change by -1 times"),
    "noise instead": (lambda: networks.backwards(lambda g: torch.randn(g.shape).to(g) * g.std()), "slope", "misled"),
    "constant slope": (lambda: networks.backwards(torch.ones_like), "slope", "attacks that follow it are misled"),
    "a leak": (lambda: Around(lambda x: (x * 63).round() / 63 + 1e-6 * x), "slope", "no robustness: attack by square"),
    # and what is no fault: gradients that are right at some distance
    "straight through": (lambda: Around(straight_through), "", ""),
    "bent sharply": (lambda: Around(lambda x: (x * 500).sin()), "", ""),
    "half precision": (lambda: Around(after=lambda z: z.bfloat16().float()), "", ""),
    "tiny logits": (lambda: Around(after=lambda z: z * 1e-6), "", ""),
    "logits far from zero": (lambda: Around(after=lambda z: z + 1e4), "", ""),
    "softmax": (lambda: Around(after=lambda z: z.softmax(1)), "logits", "the outputs are probabilities"),
    "constant": (lambda: Around(after=lambda z: z * 0 + 1), "logits", "the logits are the same for all images"),
    # what works with them refuses them
    "not finite": (lambda: Around(after=lambda z: z * torch.nan), "", ""),
    "root": (lambda: Around(after=lambda z: z + (z - z).sqrt()), "", ""),
    "detached": (lambda: Detached(Around()), "", ""),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_check_and_by_no_other(fault: str) -> None:
    make, name, said = FAULTS[fault]
    torch.manual_seed(0)
    network = make()
    one = probe(network)
    network.train()
    before = fingerprint(network)
    findings = one.findings
    assert fingerprint(network) == before
    assert {check for check, finding in findings.by_check.items() if finding} == ({name} if name else set())
    assert said in " ".join(findings.sentences)
    assert findings.together == (name in ("alone", "state", "repeated"))
    assert findings.draws == (name == "repeated") and findings.writes == (name == "state")
    assert findings.misleading == (name == "slope")


@pytest.mark.parametrize("seed", range(20))
def test_a_coin_is_found_in_every_run(seed: int) -> None:
    torch.manual_seed(seed)
    assert probe(Around(networks.toss)).findings.draws
    assert probe(Around(networks.toss), seed=seed).findings.draws


def test_everything_in_the_list_says_what_it_is() -> None:
    assert {"state", "input", "repeated", "alone", "logits", "gradients", "graph", "budget", "nodes", "form"} <= set(
        CHECKS
    )
    assert all(entry.summary and isinstance(entry.facts["quick"], bool) for entry in CHECKS.entries())


def test_what_is_found_is_said_once_and_recorded() -> None:
    said: list[str] = []
    one = probe(networks.batch_statistics(), say=said.append)
    frames = [one.evaluate(["fgsm"]).frame, one.activations(["inner.2"], "fgsm").frame]
    assert len(said) == 1 and "depend on the other images" in said[0]
    assert all(frame.attrs["check"] == said and frame.attrs["together"] == 64 for frame in frames)
    healthy = probe(Around()).evaluate(["fgsm"]).frame
    assert "check" not in healthy.attrs and "together" not in healthy.attrs


def literal_pgd(network: nn.Module, x: Tensor, y: Tensor, steps: int, size: float) -> Tensor:
    """Of whole batches: an image rests while it is misclassified, and stays among the others."""
    x_adv = x.clone()
    for _ in range(steps):
        points = x_adv.clone().requires_grad_()
        logits = network(points)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, y, reduction="sum"), points)
        moved = (x_adv + size * gradient.sign()).clamp(x - EPSILON, x + EPSILON).clamp(0, 1)
        x_adv = torch.where((logits.argmax(1) == y).view(-1, 1, 1, 1), moved, x_adv).detach()
    return x_adv


@pytest.mark.parametrize("make", [networks.batch_statistics, lambda: Around(lambda x: x - x.mean(0))])
@pytest.mark.parametrize("batch_size", [None, 64, 16, 4])
@pytest.mark.parametrize("plain", [False, True])
def test_images_that_depend_on_each_other_stay_in_the_batches_that_were_asked_for(
    make: Callable[[], nn.Module], batch_size: int | None, plain: bool
) -> None:
    network = make().eval()
    one = probe(network, batch_size=batch_size, plain=plain)
    spec = "pgd:5:start=zero:step-size=5.1"
    evaluation = one.evaluate([spec])
    clean = robust = 0
    for x, y in zip((one.dataset.images / 255).split(batch_size or 64), one.dataset.labels.split(batch_size or 64),
                    strict=True):  # fmt: skip
        with torch.no_grad():
            clean += int((network(x).argmax(1) == y).sum())
        x_adv = literal_pgd(network, x, y, 5, 0.02)
        with torch.no_grad():
            robust += int((network(x_adv).argmax(1) == y).sum())
    assert evaluation.accuracy("clean") == clean / 64
    assert evaluation.accuracy(spec) == pytest.approx(robust / 64, abs=1 / 64)
    assert evaluation.frame.attrs["together"] == (batch_size or 64)


def test_memory_that_runs_out_does_not_halve_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from coprobe.errors import RunError

    one = probe(networks.batch_statistics())
    assert one.together == 64

    def full(*arguments: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("coprobe.attacks.gradient.GradientAttack._gradient", full)
    with pytest.raises(RunError, match="out of memory with 64 images at once; lower --batch-size"):
        one.evaluate(["fgsm"])


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("make", [networks.KeepsTraining, networks.Remembers, networks.Counts])
def test_a_network_that_every_pass_changes_stays_as_it_was(make: Callable[[], nn.Module], plain: bool) -> None:
    network = make()
    one = probe(network, plain=plain)
    before, plain_values = fingerprint(network), str(vars(network))
    one.evaluate(["fgsm", "pgd:2"])
    one.activations(["inner.2"])
    assert fingerprint(network) == before and str(vars(network)) == plain_values


@pytest.mark.parametrize("draw", [networks.noise, networks.toss, networks.toss_by_numpy, networks.toss_by_python])
@pytest.mark.parametrize("spec", ["pgd:3:start=zero", "pgd:3:rule=always", "square"])
def test_the_seed_fixes_the_draws_of_the_network(
    draw: Callable[[Tensor], Tensor], spec: str, few_queries: None
) -> None:
    def counts(world: int, **settings: Any) -> list[int]:
        torch.manual_seed(world)
        import random

        import numpy as np

        np.random.seed(world), random.seed(world)  # noqa: NPY002
        frame = probe(Around(draw), batch_size=8, epsilon=0.1, **settings).evaluate([spec]).frame
        counted: list[int] = frame["correct"].tolist()
        return counted

    first = counts(1)
    assert counts(2) == first == counts(3)
    assert any(counts(1, seed=seed) != first for seed in (1, 2, 3))


def test_draws_do_not_depend_on_what_was_measured_before() -> None:
    one, other = (probe(Around(networks.noise), batch_size=16) for _ in range(2))
    other.evaluate(["pgd:2"])
    assert one.evaluate(["fgsm"]).frame.equals(other.evaluate(["fgsm"]).frame)
    assert one.activations(["inner.2"]).frame.equals(other.activations(["inner.2"]).frame)


def test_draws_do_not_depend_on_what_else_is_measured() -> None:
    one = probe(Around(networks.noise), batch_size=16, epsilon=0.1)
    alone, among = one.evaluate(["fgsm"]), one.evaluate(["pgd:2", "fgsm"], [Noise("gauss", 0.05), Noise()])
    assert all(alone.accuracy(spec) == among.accuracy(spec) for spec in ("clean", "fgsm"))


@pytest.mark.parametrize(
    ("make", "truth"),
    [
        (lambda: Around(lambda x: (x * 255).round() / 255), 0.5),
        (lambda: Around(after=lambda z: z * 1000), 0.5),
    ],
)
def test_no_verdict_of_stability_on_gradients_that_vanish(make: Callable[[], nn.Module], truth: float) -> None:
    said: list[str] = []
    one = probe(make(), epsilon=0.2, say=said.append)
    diagnosis = one.diagnose()
    true_accuracy = probe(Around(), epsilon=0.2).evaluate(["pgd:10:step-size=10"]).accuracy("pgd:10:step-size=10")
    assert true_accuracy < 0.2 < truth
    assert diagnosis.evaluation.accuracy("pgd:10") > truth
    assert diagnosis.verdict == "can't be told"
    share = diagnosis.evaluation.frame.attrs["blind"]["pgd:10"]
    assert share > truth and f"{share:.1%} of the images gave PGD-10 no gradient" in diagnosis.sentence
    assert any(f"PGD-10: {share:.1%}" in text and "exactly zero" in text for text in said)


def test_no_verdict_of_stability_on_gradients_that_mislead(few_queries: None) -> None:
    said: list[str] = []
    one = probe(networks.backwards(torch.neg), epsilon=0.2, say=said.append)
    diagnosis = one.diagnose()
    assert diagnosis.evaluation.accuracy("pgd:10") > 0.5
    assert diagnosis.verdict == "can't be told" and diagnosis.evaluation.frame.attrs["misleading"]
    assert "the gradient is not the slope" in diagnosis.sentence
    assert not any(text.startswith("Square") for text in said)
    square, pgd = map(one.evaluate(["square", "pgd:10"]).accuracy, ("square", "pgd:10"))
    assert square < pgd
    assert said[-1].startswith(
        f"Square leaves {square:.1%}, less than all attacks here that see the whole model (PGD-10"
    )


def test_a_budget_that_an_attack_cannot_reach() -> None:
    said: list[str] = []
    one = probe(Around(), epsilon=32 / 255, say=said.append)
    one.evaluate(["pgd:10", "pgd:20", "fgsm", "pgd:4:step-size=8"])
    assert said == ["PGD-10 goes 20/255 at most, and the budget is 32/255; take more steps or a larger step-size"]
    said.clear()
    probe(Around(), epsilon=1.0, norm="l2", say=said.append).evaluate(["pgd:10", "pgd:2:step-size=0.1"])
    assert said == [
        "PGD-2 (step-size=0.1) goes 0.2 at most, and the budget is 1 (L2); take more steps or a larger step-size"
    ]


def test_the_whole_check() -> None:
    found = probe(Around()).check(["fgsm", "pgd:20"], ["inner.2", "inner.5"])
    assert list(found.by_check) == list(CHECKS) and not found.sentences
    found = probe(networks.batch_statistics()).check(["fgsm"], ["inner.2"])
    assert [name for name, finding in found.by_check.items() if finding] == ["alone"]
    found = probe(Around(after=lambda z: z * 1000), epsilon=32 / 255).check(["pgd:10"], ["inner.2"])
    assert {name for name, finding in found.by_check.items() if finding} == {"gradients", "budget"}


def test_a_node_whose_rows_are_no_images() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.inner = nn.ReLU(), Around()

        def forward(self, x: Tensor) -> Tensor:
            views = self.act(torch.cat([x, x[:1]]))
            logits: Tensor = self.inner(views[:-1])
            return logits

    found = probe(Folded()).check(["fgsm"], ["act"])
    assert [name for name, finding in found.by_check.items() if finding] == ["nodes"]


def test_the_fast_form_is_held_against_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    one = probe(Around())

    class Flat(nn.Module):
        """The same logits, and no slope."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).detach() + 0 * x.sum() + (x - x.detach()).flatten(1)[:, :4]

    monkeypatch.setattr(type(one), "model", property(lambda self: Flat(self.stored_model)))
    found = one.check(["fgsm"], ["inner.2"]).by_check["form"]
    assert found is not None and "the fast form has other gradients than the model" in found.sentence


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Detached(trained()[0]), "no gradient reaches the images: the network's own forward cuts the graph"),
        (
            lambda: Around(after=lambda z: z + (z - z).sqrt()),
            "the gradient is not finite (NaN or infinite) at 16 of 16",
        ),
    ],
)
def test_gradients_at_which_attacks_stop(make: Callable[[], nn.Module], said: str) -> None:
    one = probe(make())
    found = one.check(["fgsm"], []).by_check
    assert [name for name, finding in found.items() if finding] == ["graph"]
    assert found["graph"] is not None and found["graph"].sentence.startswith(said)
    with pytest.raises(CoprobeError, match=r"no gradient reaches|not finite"):
        one.evaluate(["fgsm"])
