"""What people do with a checkpoint: probe its channels, mask them, evaluate it, say whether it is CO-affected."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import pandas as pd
import torch

from coprobe._version import __version__
from coprobe.attacks import AdversarialExamples, Attack, parse
from coprobe.attacks.autoattack import AutoAttack, stages_of
from coprobe.attacks.examples import CLEAN, clean_images
from coprobe.checkpoint import Checkpoint
from coprobe.core.cache import Cache
from coprobe.core.defaults import ALPHA, ATTACKS, COMPARED, EPS, PROBING_ATTACK, SALIENT
from coprobe.core.engine import FULL, Progress, silent
from coprobe.core.processes import ALONE, Processes
from coprobe.core.provenance import provenance
from coprobe.core.text import storable
from coprobe.data import Dataset, title
from coprobe.errors import InputError
from coprobe.fast.classifier import fast, plain
from coprobe.masking import SELECTORS, Selection, compared_masks, thresholds
from coprobe.metrics import ChannelStatistics, Increments, questions, survey
from coprobe.metrics.accuracy import NO_NOISE, Evaluation, Noise
from coprobe.metrics.questions import Question
from coprobe.models import Classifier
from coprobe.nodes import CHECKED, NO_MASK, ChannelMask, check_neutral, node_table, resolve
from coprobe.verdict.rule import verdict_of

R = TypeVar("R")


@dataclass(frozen=True)
class Masking:
    """Accuracies with and without masked channels, the masks, and the statistics that chose them."""

    evaluation: Evaluation
    masks: tuple[ChannelMask, ...]
    statistics: ChannelStatistics


@dataclass(frozen=True)
class Diagnosis:
    """Whether a checkpoint is CO-affected.

    Attributes:
        verdict: `CO-affected`, `stable`, `not robust` or `did not converge`.
        sentence: the verdict and its evidence in a sentence.
        evaluation: accuracy on clean, FGSM and PGD images.
        statistics: channels at every node of the table.
        salient: by node, the channels with T_act above `SALIENT`.
    """

    verdict: str
    sentence: str
    evaluation: Evaluation
    statistics: ChannelStatistics
    salient: dict[str, list[int]]


@dataclass
class Probe:
    """A checkpoint together with the images it is probed on.

    Args:
        checkpoint: what is probed; its model moves to `device`, and else stays as it is.
        dataset: clean images.
        epsilon: radius of the attacks, a fraction.
        device: where to work.
        batch_size: images at once; None finds one that fits.
        precision: `32` (float32), `tf32` or `bf16` (faster where the hardware has it; results differ slightly).
        seed: of attacks, noise and random masks.
        cache: directory in which results are kept and looked up; None keeps nothing. A result is found again
            only for the same weights, images and settings.
        plain: use the model as it is instead of its fast form, and take all images through all steps of an attack.
        compiled: run the model through torch.compile; not together with `plain`.
        processes: those that share the images; each gets all results.
        progress: shows how far the attacks are.
        say: told in a sentence where the fast form of the model can't be used.

    Raises:
        InputError: the images don't fit the model (classes, channels, size), or a precision that is not there.
    """

    checkpoint: Checkpoint
    dataset: Dataset
    epsilon: float = EPS / 255
    device: torch.device | str = "cpu"
    batch_size: int | None = None
    precision: str = "32"
    seed: int = 0
    cache: Path | None = None
    plain: bool = False
    compiled: bool = False
    processes: Processes = ALONE
    progress: Progress = field(default=silent, repr=False)
    say: Callable[[str], object] = field(default=warnings.warn, repr=False)

    def __post_init__(self) -> None:
        images = f"{self.dataset.name} ({self.dataset.split})"
        self.checkpoint.check_fit(images, self.dataset.num_classes, self.dataset.image_shape)
        if self.plain and self.compiled:
            raise InputError("--plain switches --compile off; leave one of them out")
        self._plain = plain(self.checkpoint.model.to(self.device), self.precision)
        self._ready: tuple[tuple[str, ...], Classifier] | None = None
        self._kept: list[AdversarialExamples] | None = None

    @property
    def model(self) -> Classifier:
        """What is attacked: the fast form of the checkpoint's model, or with `plain` the model itself."""
        return self._looking_at(())

    def _looking_at(self, nodes: Sequence[str]) -> Classifier:
        """The model in the form in which these nodes can be recorded and masked; the one that was used last is kept."""
        nodes = tuple(dict.fromkeys(nodes))
        if self.plain:
            return self._plain
        if self._ready is None or not set(nodes) <= set(self._ready[0]):
            model = fast(
                self._plain,
                images=clean_images(self.dataset, 0, min(len(self.dataset), CHECKED), self.device)[0],
                nodes=nodes,
                precision=self.precision,
                compiled=self.compiled,
                processes=self.processes,
                say=self.say if self.processes.leads else lambda text: None,
            )
            self._ready = nodes, model
        return self._ready[1]

    @property
    def _about_model(self) -> dict[str, Any]:
        return {
            **self.checkpoint.facts(),
            "arch": self.checkpoint.arch,
            "arch_args": self.checkpoint.arch_args,
            "mean": self._plain.mean,
            "std": self._plain.std,
            **({} if self._plain.channel_axes is None else {"channel_axis": self._plain.channel_axes}),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies the inputs of a result: model, images, budget, seed; waits for all images."""
        return {
            **self._about_model,
            "data": self.dataset.name,
            "split": self.dataset.split,
            "images": len(self.dataset),
            **({"skipped": len(self.dataset.skipped)} if self.dataset.skipped else {}),
            "data_digest": self.dataset.digest(),
            "epsilon": round(self.epsilon * 255, 6),
            "seed": self.seed,
            "device": str(self.device),
            "precision": self.precision,
            "plain": self.plain,
            "compiled": self.compiled,
        }

    @property
    def caption(self) -> str:
        """What results are from, in a few words for tables and figures: data, n, budget, seed."""
        budget = f"ε = {self.epsilon * 255:g}/255"
        stage = f", {self.checkpoint.stage}" if self.checkpoint.stage else ""
        return f"{title(self.dataset.name)}, n = {len(self.dataset)}, {budget}, seed {self.seed}{stage}"

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """A block in which images that were crafted for one thing serve all others that need the same.

        They are put aside in temporary files that nobody sees: 12 KB for each image of 32×32 pixels and each attack.
        What comes out is what comes out without; settings of the probe must stay as they are in the block.

        Example:
            >>> with probe.keeping():
            ...     diagnosis = probe.diagnose()
            ...     masking = probe.mask("A")  # attacks nothing again
        """
        before, self._kept = self._kept, [] if self._kept is None else self._kept
        try:
            yield
        finally:
            self._kept = before

    def ask(self, *asked: Question[Any]) -> list[Any]:
        """The answers to several questions, from one pass over the images: nothing is attacked twice.

        Args:
            asked: see `coprobe.metrics.questions`.

        Raises:
            InputError: an unknown node or attack, before the work; and what the question's measurement raises.
        """
        nodes = [node for question in asked for node in question.nodes]
        self._find(nodes)
        attacks = self._parse([spec for question in asked for spec in question.attacks])
        anew = any(question.steps for question in asked)
        with self._examples(attacks, nodes=nodes, anew=anew) as examples:
            return self._answers(examples, asked)

    def activations(self, nodes: Sequence[str] = (), attack: str = PROBING_ATTACK) -> ChannelStatistics:
        """Per-channel differences between clean and adversarial activations (Eqs. 5 and 6).

        Args:
            nodes: where; empty means A…E.
            attack: the spec of one attack on this model.
        """
        return self._asked(questions.activations(tuple(nodes) or self._table(), attack))

    def increments(self, nodes: Sequence[str] = ("A",), attack: str = PROBING_ATTACK) -> Increments:
        """How far each channel is from its clean activation at every step of an attack (Fig. 10).

        Args:
            nodes: where.
            attack: the spec of an attack that hands out its steps.
        """
        return self._asked(questions.increments(nodes, attack))

    def overlap(self, node: str = "A", attack: str = PROBING_ATTACK, top: int = 5) -> pd.DataFrame:
        """Whether single images have the same salient channels as all of them (C07), see `statistics.Overlap`."""
        return self._asked(questions.overlap(node, attack, top))

    def evaluate(
        self,
        attacks: Sequence[str] = ATTACKS,
        noises: Sequence[Noise] = (NO_NOISE,),
        noise_draws: int = 1,
        masks: Sequence[ChannelMask] = (NO_MASK,),
    ) -> Evaluation:
        """Accuracy on clean images and under each attack, with each noise added and each mask applied after it.

        Args:
            attacks: under which accuracy is measured.
            noises: each one added to the crafted images.
            noise_draws: how often each noise is drawn anew.
            masks: each one applied to the model that sees them.
        """
        return self._asked(questions.accuracies(attacks, noises, noise_draws, masks))

    def _asked(self, question: Question[R]) -> R:
        (answer,) = self.ask(question)
        return cast(R, answer)

    def transfer(
        self,
        targets: Sequence[Checkpoint],
        attacks: Sequence[str] = ATTACKS,
        noises: Sequence[Noise] = (NO_NOISE,),
        noise_draws: int = 1,
    ) -> Evaluation:
        """Accuracy of other models on images that are crafted on this one (Fig. 12), and of this one itself.

        Args:
            targets: other checkpoints for the same kind of images; their models move to the device.
            attacks: on this model, the source.
            noises: each one added to the crafted images.
            noise_draws: how often each noise is drawn anew.

        Returns:
            An `Evaluation` with a column `target`: the path of the model that is measured (its digest if it has
            none); first this one, whose rows are white-box accuracies.

        Raises:
            InputError: a target that the images don't fit, or a model named twice.
        """
        probes = [self, *(replace(self, checkpoint=target) for target in targets)]
        named = {storable(str(probe.checkpoint.path or probe.checkpoint.digest)): probe for probe in probes}
        if len(named) < len(probes):
            raise InputError(f"a model is named twice beside {', '.join(named)}; name each once")
        question = questions.accuracies(attacks, noises, noise_draws)
        with self._examples(self._parse(attacks)) as examples:
            answers = self._answers(examples, [question] * len(named), list(named.values()))
        frames = [answer.frame for answer in answers]
        frame = pd.concat(
            [frame.assign(target=name) for name, frame in zip(named, frames, strict=True)], ignore_index=True
        )
        digests = {name: probe.checkpoint.digest for name, probe in named.items()}
        frame.attrs = {**frames[0].attrs, "targets": digests}
        return Evaluation(frame)

    def mask(
        self,
        node: str = "A",
        alpha2: Sequence[float] | None = None,
        *,
        percent: float | None = None,
        compare: Sequence[str] = COMPARED,
        attacks: Sequence[str] = ATTACKS,
        attack: str = PROBING_ATTACK,
        alpha: float = ALPHA,
        reading: str = "mean",
    ) -> Masking:
        """Accuracy with the salient channels of a node masked (Eq. 7), beside other masks of the same size.

        Args:
            node: where to mask; with a channel, as in `A:12`, that channel is masked and no other is looked for.
            alpha2: thresholds; one mask of the channels with T_act above it for each; None means `SALIENT`.
            percent: mask this share of the channels, by rank, instead of using thresholds.
            compare: selectors of other masks of the same size, see `compared_masks`.
            attacks: under which accuracy is measured; the images are crafted once, on the unmasked model.
            attack: the one whose differences choose the channels.
            alpha: the factor inside tanh.
            reading: of Eq. 6, see `ChannelStatistics.t_act`.
        """
        self._find([node])
        place = resolve(self.model, node)
        alpha2 = thresholds(place, alpha2, percent)
        for selector in compare:
            SELECTORS.entry(selector)
        choosing = parse(attack, self.epsilon)
        settings: dict[str, Any] = {
            "node": node,
            "alpha2": list(alpha2),
            "percent": percent,
            "compare": list(compare),
            "attacks": [measured.spec for measured in self._parse(attacks)],
            "attack": choosing.spec,
            "alpha": alpha,
            "reading": reading,
        }
        with self._examples(self._parse([*attacks, choosing.spec]), keep=True, nodes=[place.whole]) as examples:
            (statistics,) = self._answers(examples, [questions.activations([place.whole], choosing.spec)], narrow=False)
            frame = self._recalled("masking", settings)
            if frame is None:
                selection = Selection(
                    statistics, place.whole, alpha=alpha, reading=reading, model=self._looking_at([place.whole]),
                    batches=examples, attack=choosing.spec, seed=self.seed, processes=self.processes,
                )  # fmt: skip
                masks = [NO_MASK, *compared_masks(selection, alpha2, percent, compare, place.channel)]
                question = questions.accuracies(settings["attacks"], masks=masks)
                (evaluation,) = self._survey(examples, [question], [self])
                frame = evaluation.frame
                frame.attrs["masks"] = [asdict(mask) for mask in masks]
                self._keep("masking", settings, frame)
        return Masking(Evaluation(frame), tuple(map(ChannelMask.from_plain, frame.attrs["masks"])), statistics)

    def diagnose(self, attack: str = PROBING_ATTACK) -> Diagnosis:
        """Compare FGSM with PGD-10 accuracy, look for salient channels, and say what kind of model this is.

        Args:
            attack: the one whose differences tell which channels are salient.
        """
        nodes = self._table()
        evaluation, statistics = self.ask(questions.accuracies(ATTACKS), questions.activations(nodes, attack))
        salient = {node: (statistics.t_act(node) > SALIENT).nonzero()[0].tolist() for node in nodes}
        clean, fgsm, pgd = map(evaluation.accuracy, (CLEAN, *ATTACKS))
        verdict = verdict_of(clean, fgsm, pgd, self.dataset.num_classes)
        where = ", ".join(
            f"{len(channels)} of {len(statistics.node(node))} at {node}" for node, channels in salient.items()
        )
        sentence = (
            f"{verdict}: at {self.epsilon * 255:g}/255 accuracy is {clean:.1%} clean, {fgsm:.1%} under FGSM and "
            f"{pgd:.1%} under PGD-10 (n = {len(self.dataset)}); channels with T_act > {SALIENT}: {where}"
        )
        return Diagnosis(verdict, sentence, evaluation, statistics, salient)

    def _find(self, nodes: Sequence[str]) -> None:
        """Look on one image whether there are such nodes, before the work."""
        check_neutral(self._plain, clean_images(self.dataset, 0, 1, self.device)[0], list(dict.fromkeys(nodes)))

    def _table(self) -> tuple[str, ...]:
        nodes = tuple(node_table(self._plain))
        if not nodes:
            raise InputError(
                "this network calls no activation function, so it has no nodes A…E; "
                "'coprobe activations --node' takes module paths"
            )
        return nodes

    def _parse(self, attacks: Sequence[str]) -> list[Attack]:
        parsed = {attack.spec: attack for attack in (parse(spec, self.epsilon) for spec in attacks if spec != CLEAN)}
        return list(parsed.values())

    @contextmanager
    def _examples(
        self, attacks: Sequence[Attack], *, keep: bool = False, nodes: Sequence[str] = (), anew: bool = False
    ) -> Iterator[AdversarialExamples]:
        """This process's part of the adversarial images, crafted when they are first looked at.

        Args:
            attacks: which.
            keep: they will be looked at more than once.
            nodes: where the model that is attacked will be looked at.
            anew: even if `keeping` has them.
        """
        label = ", ".join(attack.label for attack in attacks) or "clean images"
        for kept in self._kept or ():
            if not anew and kept.put_aside and set(attacks) <= set(kept.attacks):
                yield kept
                return
        examples = AdversarialExamples(
            self._looking_at(nodes),
            self.dataset,
            attacks,
            batch_size=self.batch_size,
            device=self.device,
            seed=self.seed,
            keep=keep or self._kept is not None,
            plain=self.plain,
        )
        # A process's share is not so small that it would be computed otherwise, and cuts no unit of AutoAttack in two.
        unit = math.lcm(FULL, *(attack.unit(examples.size.now) for attack in attacks))
        examples.stretch = self.processes.shard(len(self.dataset), unit, FULL)
        first, stop = examples.stretch
        if self._kept is not None:
            self._kept.append(examples)
        with self.progress(label, stop - first) as examples.progress:
            yield examples

    def _answers(
        self,
        examples: AdversarialExamples,
        asked: Sequence[Question[Any]],
        of: Sequence[Probe] = (),
        *,
        narrow: bool = True,
    ) -> list[Any]:
        """The answers about this model, or about those `of` other probes, on images that are crafted on this one.

        What is kept in the cache is not measured again, and if all is, no image is attacked. With `narrow`, the attacks
        that no open question needs are left out; without, others will look at these images, too.
        """
        of = of or [self] * len(asked)
        all_settings = [self._settings(question, probe) for question, probe in zip(asked, of, strict=True)]
        frames = [self._recalled(question.kind, s) for question, s in zip(asked, all_settings, strict=True)]
        open_ones = [number for number, frame in enumerate(frames) if frame is None]
        if open_ones:
            if narrow and not examples.put_aside:
                examples.attacks = self._parse([spec for number in open_ones for spec in asked[number].attacks])
            results = self._survey(examples, [asked[number] for number in open_ones], [of[n] for n in open_ones])
            stages = self._stages(examples.attacks)
            for number, result in zip(open_ones, results, strict=True):
                frame = result if isinstance(result, pd.DataFrame) else result.frame
                if asked[number].kind == "evaluation":
                    mine = all_settings[number]["attacks"]
                    frame.attrs["stages"] = [stage for stage in stages if stage["attack"] in mine]
                self._keep(asked[number].kind, all_settings[number], frame)
                frames[number] = frame
        return [question.answer(cast(pd.DataFrame, frame)) for question, frame in zip(asked, frames, strict=True)]

    def _survey(self, examples: AdversarialExamples, asked: Sequence[Question[Any]], of: Sequence[Probe]) -> list[Any]:
        measurements = [
            question.measurement(probe._looking_at(question.nodes), self._parse(question.attacks), self.seed)
            for question, probe in zip(asked, of, strict=True)
        ]
        return survey(examples, measurements, self.processes)

    def _stages(self, attacks: Sequence[Attack]) -> list[dict[str, Any]]:
        """What the members of AutoAttack did, in all processes."""
        for attack in attacks:
            if isinstance(attack, AutoAttack) and attack.stages.processes < self.processes.world_size:
                for rank, state in enumerate(self.processes.gather(attack.stages.state)):
                    if rank != self.processes.rank:
                        attack.stages.absorb(state)
        return stages_of(attacks)

    def _settings(self, question: Question[Any], probe: Probe) -> dict[str, Any]:
        settings = {**question.settings, "attacks": [attack.spec for attack in self._parse(question.attacks)]}
        return settings if probe is self else {**settings, "target": _that_matter(probe._about_model)}

    def _recalled(self, kind: str, settings: dict[str, Any]) -> pd.DataFrame | None:
        """What was measured before."""
        cache, found = Cache(self.cache), None
        if self.processes.leads and cache.holds(kind):
            found = cache.find(kind, self._identity(settings))
        return self.processes.broadcast(found)

    def _keep(self, kind: str, settings: dict[str, Any], frame: pd.DataFrame) -> None:
        """Write the provenance into `attrs`, and keep the table for the next time."""
        frame.attrs = json.loads(json.dumps({**frame.attrs, **provenance(**self.facts), **settings}))
        if self.processes.leads:
            Cache(self.cache).keep(kind, self._identity(settings), frame)

    def _identity(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What a result depends on, by which it is found again."""
        return {"coprobe": __version__, **_that_matter(self.facts), **settings}


def _that_matter(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that change a result: a moved file, its label or another device is the same experiment."""
    return {name: value for name, value in facts.items() if name not in ("checkpoint", "stage", "device")}
