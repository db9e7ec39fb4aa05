"""Accuracies against a literal loop, intervals against known numbers, and the static noise protocol."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialBatch, AdversarialExamples, StepAttack, parse
from coprobe.attacks.examples import Spool
from coprobe.core.randomness import ImageRandomness
from coprobe.data import Dataset
from coprobe.errors import InputError, RunError
from coprobe.metrics.accuracy import Accuracy, Evaluation, Noise, wilson
from coprobe.nodes import NO_MASK, ChannelMask

EPSILON = 16 / 255


class Recorder(nn.Module):
    """A small classifier that keeps every image it is shown without gradients."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.relu = nn.ReLU()
        self.conv, self.read = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad and len(x) not in (1, 3):  # those are shown to find out how the node lies
            self.shown.append(x.clone())
        return self.read(10 * self.relu(self.conv(x)).mean((2, 3)))


def dataset(count: int = 10) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 6, 5), generator=generator, dtype=torch.uint8)
    return Dataset(images, torch.arange(count) % 4, tuple("abcd"), "random", "test")


def examples(model: nn.Module, *attacks: str, batch_size: int = 4) -> AdversarialExamples:
    parsed = [parse(attack, EPSILON) for attack in attacks]
    return AdversarialExamples(model, dataset(), parsed, batch_size=batch_size, spool=Spool())


def evaluate(model: nn.Module, batches: Iterable[AdversarialBatch], **settings: Any) -> Evaluation:
    """Under all attacks that are used here."""
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    return Accuracy(attacks=("fgsm", "pgd:2", "pgd:3", "a"), **plain).measure(model, batches)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Brown, Cai, DasGupta 2001 and R's binom.confint(method = "wilson").
    [
        (0, 10, 0, 0.27753),
        (10, 10, 0.72247, 1),
        (5, 10, 0.23659, 0.76341),
        (1, 1, 0.20655, 1),
        (81, 263, 0.25529, 0.36621),
    ],
)
def test_wilson_intervals(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == pytest.approx((low, high), abs=6e-6)


@pytest.mark.parametrize("n", [1, 3, 7, 10, 100, 999, 1000, 10_000])
def test_wilson_contains_the_proportion(n: int) -> None:
    for correct in {0, 1, n // 3, n - 1, n}:
        low, high = wilson(correct, n)
        assert 0 <= low <= correct / n <= high <= 1
    assert wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1


def test_wilson_needs_images() -> None:
    with pytest.raises(InputError, match="at least one image"):
        wilson(0, 0)


def undecided() -> Recorder:
    """Its logits are around 0, so that every class is predicted."""
    model = Recorder()
    with torch.no_grad():
        model.read.bias -= model(dataset().images.float() / 255).mean(0)
    return model


def test_counts_agree_with_a_literal_loop() -> None:
    model = undecided()
    masks = [NO_MASK, ChannelMask({"relu": (0, 3)}, "some"), ChannelMask({"relu": tuple(range(6))}, "all")]
    noises = [Noise(), Noise("uniform", 0.5), Noise("gauss", 0.3)]
    batches = list(examples(model, "fgsm", "pgd:3"))
    frame = evaluate(model, batches, noises=noises, noise_draws=2, masks=masks, seed=5).frame
    assert len(frame) == 3 * (1 + 2 + 2) * 3 and set(frame["n"]) == {10}
    for row in frame.to_dict("records"):
        mask = next(m for m in masks if m.reason == row["mask"])
        noise = next(n for n in noises if n.spec == row["noise"])
        correct = 0
        for batch in batches:
            for place in range(len(batch.labels)):
                one = ImageRandomness(5, "noise", torch.tensor([batch.start + place]))
                noisy = noise.add(batch.images[row["attack"]][place : place + 1], one, row["noise_draw"])
                with torch.no_grad():
                    features = model.relu(model.conv(noisy)).clone()
                    features[:, list(mask.channels.get("relu", ()))] = 0
                    correct += int(model.read(10 * features.mean((2, 3))).argmax() == batch.labels[place])
        assert row["correct"] == correct, row
        assert row["accuracy"] == correct / 10 and (row["low"], row["high"]) == wilson(correct, 10)
        assert row["masked"] == mask.count
    assert frame["correct"].nunique() > 3  # the table can tell conditions apart


def test_images_are_crafted_once_whatever_is_measured(attacks: list[str]) -> None:
    model = Recorder()
    crafted = examples(model, "fgsm", "pgd:2")
    masks = [NO_MASK, ChannelMask({"relu": (0, 1, 2)}, "some")]
    evaluate(model, crafted, noises=[Noise(), Noise("gauss", 0.1)], masks=masks)
    assert attacks == ["fgsm", "pgd:2"] * 3  # three batches
    evaluate(model, crafted)
    assert len(attacks) == 6


def test_masks_of_the_same_channels_share_their_pass() -> None:
    model = undecided()
    (batch,) = examples(model, batch_size=10)
    model.shown.clear()
    masks = [
        NO_MASK,
        ChannelMask({"relu": ()}, "T_act > 0.99"),
        ChannelMask({"relu": (3, 0)}, "T_act > 0.5"),
        ChannelMask({"relu": (0, 3)}, "random"),
        ChannelMask({"relu": (0, 3)}, "random", 1),
        ChannelMask({"relu": (1, 3)}, "random", 2),
    ]
    frame = evaluate(model, [batch], masks=masks).frame
    assert len(model.shown) == 3
    assert list(frame["masked"]) == [0, 0, 2, 2, 2, 2]
    alone = [evaluate(model, [batch], masks=[mask]).frame["correct"].item() for mask in masks]
    assert list(frame["correct"]) == alone and len(set(alone)) > 1


def test_noise_is_added_after_the_attack_and_masks_do_not_change_the_images() -> None:
    model = Recorder()
    batches = list(examples(model, "pgd:3", batch_size=10))
    model.shown.clear()
    masks = [NO_MASK, ChannelMask({"relu": (0,)}, "some")]
    evaluate(model, batches, noises=[Noise(), Noise("uniform", 0.1)], masks=masks)
    clean, clean_masked, noisy, noisy_masked, adversarial, _, adversarial_noisy, _ = model.shown
    assert torch.equal(clean, dataset().images.float() / 255) and torch.equal(clean, clean_masked)
    assert torch.equal(adversarial, batches[0].images["pgd:3"])
    assert torch.equal(noisy, noisy_masked) and not torch.equal(noisy, clean)
    # One draw, for clean and adversarial images alike, at most 0.1, and not clamped to [0, 1] again.
    torch.testing.assert_close(noisy - clean, adversarial_noisy - adversarial, rtol=0, atol=1e-6)
    assert 0.09 < (noisy - clean).abs().max() <= 0.1 + 1e-6
    assert noisy.min() < 0 or noisy.max() > 1


def test_noise_is_not_the_random_start_of_the_attack() -> None:
    # Both were once drawn from the same stream, so that uniform noise was the attack's own start again.
    x = torch.full((4, 3, 16, 16), 0.5)
    attack = parse("pgd", EPSILON)
    assert isinstance(attack, StepAttack)
    start = next(attack.steps(Recorder(), x, torch.zeros(4, dtype=torch.int64)))
    model = Recorder()
    evaluate(
        model, [AdversarialBatch(0, torch.zeros(4, dtype=torch.int64), {"clean": x})], noises=[Noise("uniform", 0.1)]
    )
    both = torch.stack([(start - x).flatten(), (model.shown[0] - x).flatten()])
    assert abs(torch.corrcoef(both)[0, 1]) < 0.08  # 4 standard deviations at 3072 pixels


def test_noise_depends_on_the_seed_alone() -> None:
    def shown(seed: int) -> Tensor:
        model = Recorder()
        torch.rand(seed + 3)  # earlier work
        evaluate(model, [next(iter(examples(model)))], noises=[Noise("gauss", 0.1)], seed=seed)
        return model.shown[-1]

    assert torch.equal(shown(1), shown(1)) and not torch.equal(shown(1), shown(2))


def test_more_draws_leave_the_first_as_it_is() -> None:
    model = Recorder()
    batches, noises = list(examples(model, "pgd:2")), [Noise(), Noise("gauss", 0.4)]
    one, many = (evaluate(model, batches, noises=noises, noise_draws=count).frame for count in (1, 6))
    assert set(one["noise_draw"]) == {0} and len(one) == 2 * 2
    pd.testing.assert_frame_equal(many[many["noise_draw"] == 0].reset_index(drop=True), one)
    noisy = many[many["noise"] != "none"]
    assert noisy.groupby("attack")["noise_draw"].apply(list).tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert (many[many["noise"] == "none"]["noise_draw"] == 0).all()


def test_every_draw_is_another_noise_of_every_batch() -> None:
    model = Recorder()
    batches = list(examples(model, batch_size=5))
    model.shown.clear()
    evaluate(model, batches, noises=[Noise("gauss", 0.1)], noise_draws=3)
    clean = [batch.images["clean"] for batch in batches for _ in range(3)]
    noise = torch.stack(model.shown).flatten(1) - torch.stack(clean).flatten(1)
    correlation = torch.corrcoef(noise) - torch.eye(6)
    assert len(model.shown) == 6 and correlation.abs().max() < 0.2  # 4 standard deviations at 450 pixels


@pytest.mark.parametrize("count", [0, -2])
def test_no_draws(count: int) -> None:
    with pytest.raises(InputError, match=f"--noise-draws {count}: must be at least 1"):
        evaluate(Recorder(), examples(Recorder()), noise_draws=count)


@pytest.mark.parametrize(("kind", "std"), [("uniform", 0.2 / 3**0.5), ("gauss", 0.2)])
def test_size_of_the_noise(kind: str, std: float) -> None:
    drawn = Noise(kind, 0.2).add(torch.zeros(2, 100_000), ImageRandomness(0, "noise", torch.arange(2)))
    assert drawn.mean().abs() < 0.002 and drawn.std() == pytest.approx(std, rel=0.01)
    assert kind == "gauss" or drawn.abs().max() <= 0.2


@pytest.mark.parametrize(("spec", "amount"), [("none", 0), ("uniform:16", 16 / 255), ("gauss:2.5", 2.5 / 255)])
def test_noise_specs(spec: str, amount: float) -> None:
    assert Noise.parse(spec).amount == pytest.approx(amount) and Noise.parse(spec).spec == spec


@pytest.mark.parametrize(
    "spec", ["none:3", "uniform", "uniform:", "gauss:x", "gauss:-1", "uniform:0", "uniform:256", "gauss:nan"]
)
def test_wrong_noise_specs(spec: str) -> None:
    with pytest.raises(InputError, match="write none, uniform:A or gauss:S"):
        Noise.parse(spec)


def test_unknown_noise() -> None:
    with pytest.raises(InputError, match="unknown noise 'gaus'; did you mean gauss"):
        Noise.parse("gaus:3")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    model = Recorder()
    with torch.no_grad():
        model.read.bias[2] = value
    with pytest.raises(RunError, match="not finite"):
        evaluate(model, examples(model))


def test_model_is_left_as_it_was() -> None:
    model = Recorder().train()
    evaluate(model, examples(model, "fgsm"), masks=[NO_MASK, ChannelMask({"relu": (1,)}, "one")])
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_noises_given_twice_count_once_and_masks_of_one_name_are_refused() -> None:
    model = Recorder()
    frame = evaluate(model, examples(model), noises=[Noise("gauss", 0.1), Noise("gauss", 0.1)]).frame
    assert len(frame) == 1 and frame["correct"].item() <= 10
    with pytest.raises(InputError, match="two masks have the same name"):
        evaluate(model, examples(model), masks=[ChannelMask({"relu": (0,)}, "a"), ChannelMask({"relu": (1,)}, "a")])


def test_no_images() -> None:
    with pytest.raises(InputError, match="no images"):
        evaluate(Recorder(), [])


def table() -> Evaluation:
    rows = [("none", 0, 0, 9), ("random", 2, 0, 4), ("random", 2, 1, 7), ("top", 2, 0, 1)]
    frame = pd.DataFrame(rows, columns=["mask", "masked", "draw", "correct"]).assign(attack="fgsm", noise="none", n=10)
    frame["accuracy"] = frame["correct"] / 10
    frame.attrs = {"seed": 1}
    return Evaluation(frame)


def test_draws_are_averaged() -> None:
    frame = table().over_draws()
    assert list(frame["mask"]) == ["none", "random", "top"]
    assert list(frame["accuracy"]) == pytest.approx([0.9, 0.55, 0.1])
    assert tuple(frame.loc[1, ["low", "high"]]) == wilson(5.5, 10)
    assert frame.attrs == {"seed": 1}
    # Sample standard deviation of 0.4 and 0.7; none of a single draw.
    assert frame["spread"][1] == pytest.approx(0.3 / 2**0.5) and frame["spread"].isna().tolist() == [True, False, True]


def test_draws_of_noise_are_averaged() -> None:
    rows = [("none", 0, 9), ("gauss:8", 0, 2), ("gauss:8", 1, 4), ("gauss:8", 2, 9)]
    frame = pd.DataFrame(rows, columns=["noise", "noise_draw", "correct"])
    frame = frame.assign(attack="fgsm", mask="none", masked=0, draw=0, n=10, accuracy=frame["correct"] / 10)
    evaluation = Evaluation(frame)
    assert evaluation.accuracy("fgsm", noise="gauss:8") == pytest.approx(0.5)
    over = evaluation.over_draws()
    assert list(over["noise"]) == ["none", "gauss:8"] and over["accuracy"][1] == pytest.approx(0.5)
    assert over["spread"][1] == pytest.approx(((0.3**2 + 0.1**2 + 0.4**2) / 2) ** 0.5)
    assert tuple(over.loc[1, ["low", "high"]]) == wilson(5, 10) and "noise_draw" not in over


def test_attacks_are_named_for_people() -> None:
    frame = table().frame.assign(attack=["clean", "fgsm", "fgsm", "pgd:7"])
    frame.attrs = {"seed": 1, "stages": [{"attack": "aa", "member": "apgd-ce"}]}
    readable = Evaluation(frame).table()
    assert list(readable["attack"]) == ["clean", "FGSM", "PGD-7"]
    assert readable.attrs == {"seed": 1, "stages": [{"attack": "AA", "member": "apgd-ce"}]}
    assert frame.attrs["stages"][0]["attack"] == "aa"


def test_looking_up_an_accuracy() -> None:
    assert table().accuracy("fgsm") == 0.9
    assert table().accuracy("fgsm", mask="random") == pytest.approx(0.55)
    with pytest.raises(InputError, match="pgd:10, noise none, mask none was not measured"):
        table().accuracy("pgd:10")
