"""Accuracy of a model under attacks, noise and masks, with confidence intervals."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from coprobe.attacks import Ball, as_attack
from coprobe.attacks.examples import CLEAN, AdversarialBatch
from coprobe.attacks.labels import label_of
from coprobe.core.defaults import ATTACKS
from coprobe.core.engine import frozen
from coprobe.core.randomness import ImageRandomness
from coprobe.errors import InputError, NotFiniteError, unknown
from coprobe.metrics.metric import METRICS, Metric
from coprobe.models.classifier import usable
from coprobe.nodes import NO_MASK, ChannelMask

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(correct: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion, as fractions; raises `InputError` for n < 1."""
    if n < 1:
        raise InputError("an interval needs at least one image")
    p = correct / n
    centre = (p + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * (p * (1 - p) / n + _Z95**2 / (4 * n**2)) ** 0.5
    # At 0 and n of n the bound is exactly 0 and 1; rounding would put it a hair inside the proportion.
    return (centre - half if correct > 0 else 0.0), (centre + half if correct < n else 1.0)


@dataclass(frozen=True)
class Noise:
    """Noise on the model's input, drawn once after the attack (the attack does not see it).

    Args:
        kind: `none`, `uniform` on [−amount, amount], or `gauss` with standard deviation `amount`.
        amount: a fraction (16/255, not 16).
    """

    kind: str = "none"
    amount: float = 0.0

    @property
    def spec(self) -> str:
        """As people write it: `none`, `uniform:16`, `gauss:8`."""
        return self.kind if self.kind == "none" else f"{self.kind}:{self.amount * 255:g}"

    def add(self, x: Tensor, randomness: ImageRandomness, draw: int = 0) -> Tensor:
        """`x` plus one number per pixel and channel, not clamped to [0, 1] again; `draw` numbers fresh ones."""
        if self.kind == "none":
            return x
        if self.kind == "gauss":
            return x + self.amount * randomness.normal(x.shape[1:], draw).to(x.dtype)
        return x + self.amount * (2 * randomness.uniform(x.shape[1:], draw).to(x.dtype) - 1)

    @staticmethod
    def parse(spec: str) -> Noise:
        """`none`, `uniform:A` or `gauss:S`, in 255ths; `InputError` for anything else."""
        kind, _, text = spec.partition(":")
        if kind not in ("none", "uniform", "gauss"):
            raise unknown("noise", kind, ["none", "uniform", "gauss"])
        if kind == "none" and not text:
            return Noise()
        try:
            amount = float(text) / 255
        except ValueError:
            amount = -1.0
        if kind == "none" or not 0 < amount <= 1:
            raise InputError(f"noise '{spec}': write none, uniform:A or gauss:S with a number in (0, 255]")
        return Noise(kind, amount)


NO_NOISE = Noise()


@dataclass(frozen=True)
class Evaluation:
    """A tidy table: attack, noise, noise_draw, mask, masked, draw, n, correct, accuracy, low, high.

    Accuracies are fractions with 95 % Wilson intervals. `mask` says how the channels were chosen, `masked` how many
    there are; `draw` numbers random masks, and `noise_draw` the draws of the noise. After a transfer there is a column
    `target`: the model that was measured.
    """

    frame: pd.DataFrame

    def accuracy(self, attack: str, *, noise: str = "none", mask: str = "none", target: str = "") -> float:
        """One accuracy as a fraction, averaged over draws; `InputError` if it was not measured."""
        rows = self.frame.query("attack == @attack and noise == @noise and mask == @mask")
        if "target" in rows:
            rows = rows[rows["target"] == target]
        if rows.empty:
            of = f" of {target}" if target else ""
            raise InputError(f"accuracy{of} under {attack}, noise {noise}, mask {mask} was not measured")
        return float(rows["accuracy"].mean())

    def over_draws(self) -> pd.DataFrame:
        """The table with draws of noise and of random masks averaged; the interval is that of one draw of `n` images.

        `spread` is the standard deviation of the accuracy over the draws (n − 1 in its divisor; NaN for a single one).
        """
        keys = [*{"target"}.intersection(self.frame), "attack", "noise", "mask", "masked", "n"]
        draws = self.frame.groupby(keys, sort=False)["correct"]
        frame = draws.mean().reset_index()
        frame["accuracy"] = frame["correct"] / frame["n"]
        bounds = [wilson(correct, n) for correct, n in zip(frame["correct"], frame["n"], strict=True)]
        frame[["low", "high"]] = bounds
        frame["spread"] = draws.std().to_numpy() / frame["n"]
        frame.attrs = self.frame.attrs
        return frame

    def table(self) -> pd.DataFrame:
        """`over_draws` with attacks as people read them ("PGD-50"), in the rows and in `attrs["stages"]`."""
        frame = self.over_draws()
        frame["attack"] = frame["attack"].map(label_of)
        stages = [{**stage, "attack": label_of(stage["attack"])} for stage in frame.attrs.get("stages", [])]
        frame.attrs = {**frame.attrs, "stages": stages}
        return frame


@METRICS.register(
    "accuracy",
    summary="accuracy on clean and adversarial images, with noise added and channels masked afterwards",
    source="Tables 1 to 7",
)
@dataclass(kw_only=True)
class Accuracy(Metric[Evaluation]):
    """Accuracy on every attack's images × noise × mask.

    The images are those of the batches, so they are crafted once, against the unmasked and noise-free model.

    Args:
        attacks: which images to measure, beside clean ones; in `at` they become the specs of the batches.
        noises: added after the attack; each draws from `seed`, the index of the image and the number of the draw.
        noise_draws: how often each noise is drawn anew.
        masks: applied to clean and adversarial images alike (Eq. 7).
        clean: whether clean images are measured, too.
        seed: of the noise.

    Raises:
        InputError: no draws, or two masks that are called the same; in `compute`, no images.
        NotFiniteError: in `compute`, logits that can't be judged (NaN, +∞ or nothing but −∞).
    """

    attacks: tuple[Any, ...] = ATTACKS
    noises: tuple[Noise, ...] = (NO_NOISE,)
    noise_draws: int = 1
    masks: tuple[ChannelMask, ...] = (NO_MASK,)
    clean: bool = True
    name: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        if len({(mask.reason, mask.draw) for mask in self.masks}) < len(self.masks):
            raise InputError("two masks have the same name and draw, and their counts would be mixed; name each once")
        _draws(self.noises, self.noise_draws)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Where channels are masked."""
        return tuple(dict.fromkeys(chain.from_iterable(mask.channels for mask in self.masks)))

    @property
    def settings(self) -> dict[str, Any]:
        """As plain values."""
        settings = {**super().settings, "noises": [noise.spec for noise in self.noises]}
        del settings["masks"]
        if self.clean:
            del settings["clean"]
        return settings if self.masks == (NO_MASK,) else {**settings, "masks": [asdict(mask) for mask in self.masks]}

    def at(self, ball: Ball, seed: int) -> Accuracy:
        """The same, with the specs as batches have them; raises `InputError` for an unknown attack or option."""
        specs = [as_attack(attack, ball).spec for attack in self.attacks if attack != CLEAN]
        return replace(self, epsilon=ball.epsilon, norm=ball.norm, seed=seed, attacks=tuple(dict.fromkeys(specs)))

    def parts(self) -> list[Metric[Evaluation]]:
        """One for each attack, the first with the clean images."""
        singles: list[tuple[Any, ...]] = [(spec,) for spec in self.attacks] or [()]
        return [replace(self, attacks=one, clean=self.clean and not place) for place, one in enumerate(singles)]

    def prepare(self, model: nn.Module) -> None:
        """Begin without images."""
        self._model = model
        self._images = 0
        # By attack, noise, its draw, mask, masked channels and its draw; on the device, so that nothing waits for it.
        self._correct: dict[tuple[str, str, int, str, int, int], Tensor] = {}
        self._finite: Tensor | bool = True
        self._device = torch.device("cpu")

    def update(self, batch: AdversarialBatch) -> None:
        """Count the correct predictions of every combination; masks of the same channels share their pass."""
        correct = {}
        self._device = batch.labels.device
        finite = torch.ones((), dtype=torch.bool, device=self._device)
        randomness = ImageRandomness(self.seed, "noise", batch.indices)
        for spec, images in batch.images.items():
            if spec not in self.attacks if spec != CLEAN else not self.clean:
                continue
            for noise, draw in _draws(self.noises, self.noise_draws):
                noisy = noise.add(images, randomness, draw)
                counts: dict[Hashable, Tensor] = {}
                for mask in self.masks:
                    if (channels := mask.masked) not in counts:
                        drawing = batch.drawing(f"{spec}, draw {draw}")  # whatever else is measured, and by all masks
                        with frozen(self._model), torch.no_grad(), mask.applied(self._model), drawing:
                            logits = self._model(noisy)
                        counts[channels] = (logits.argmax(1) == batch.labels).sum()
                        finite &= usable(logits).all()
                    correct[spec, noise.spec, draw, mask.reason, mask.count, mask.draw] = counts[channels]
        self._add(len(batch.labels), correct, finite)
        if self._images == len(batch.labels):
            self._check()  # of the first batch, before the others are attacked for nothing

    def _add(self, images: int, correct: Mapping[Any, Tensor], finite: Tensor | bool) -> None:
        self._images += images
        self._finite = finite & self._finite
        for key, count in correct.items():
            self._correct[key] = count + self._correct.get(key, 0)

    def _check(self) -> None:
        if not self._finite:
            raise NotFiniteError(
                "the model's logits are not finite (NaN or infinite), so its accuracy is undefined; "
                "check its weights and --mean/--std"
            )

    @property
    def state(self) -> Any:
        """Images, counts by combination, and whether all logits could be judged."""
        return self._images, {key: count.cpu() for key, count in self._correct.items()}, bool(self._finite)

    def merge_state(self, state: Any) -> None:
        """Add the counts."""
        images, correct, finite = state
        self._add(images, {key: count.to(self._device) for key, count in correct.items()}, finite)

    def compute(self) -> Evaluation:
        """The table."""
        if self._images == 0:
            raise InputError("no images to evaluate; raise --limit")
        self._check()
        columns = ["attack", "noise", "noise_draw", "mask", "masked", "draw"]
        frame = pd.DataFrame(self._correct.keys(), columns=columns)
        frame["n"], frame["correct"] = self._images, [int(count) for count in self._correct.values()]
        frame["accuracy"] = frame["correct"] / self._images
        frame[["low", "high"]] = [wilson(count, self._images) for count in frame["correct"]]
        return Evaluation(frame)

    @staticmethod
    def restored(frame: pd.DataFrame) -> Evaluation:
        """The evaluation around its table."""
        return Evaluation(frame)


def _draws(noises: Sequence[Noise], count: int) -> list[tuple[Noise, int]]:
    """Every noise with the numbers of its draws; `none` is the same every time."""
    if count < 1:
        raise InputError(f"--noise-draws {count}: must be at least 1")
    return [(noise, draw) for noise in dict.fromkeys(noises) for draw in range(1 if noise.kind == "none" else count)]
