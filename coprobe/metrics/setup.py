"""A model, images and settings: what results depend on, and what says so beside them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import isclose
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coprobe.attacks import AnyAttack, Attack, Ball, as_attack
from coprobe.attacks.examples import CLEAN, Spool
from coprobe.checkpoint import Checkpoint
from coprobe.checks import Findings, Subject, check
from coprobe.core.defaults import ATTACKS, EPS, EPS_L2, PROBING_ATTACK
from coprobe.core.engine import BatchSize, Progress, frozen, silent
from coprobe.core.processes import ALONE, Processes
from coprobe.core.provenance import digest_tensors
from coprobe.core.switches import usual_torch
from coprobe.data import Dataset, title
from coprobe.data.stream import stream
from coprobe.errors import InputError
from coprobe.fast.classifier import fast, plain
from coprobe.models import ARCHITECTURES, Classifier
from coprobe.nodes import CHECKED, NO_NODES, check_neutral, node_table


@dataclass(frozen=True)
class Setup:
    """A checkpoint together with the images it is probed on.

    Args:
        checkpoint: what is probed; its model moves to `device`, and else stays as it is.
        dataset: clean images; they are made to suit the model, see `Checkpoint.suited`.
        epsilon: radius of the attacks: for L∞ a fraction, for L2 a length, see `attacks.Ball`.
        norm: of the attacks, `linf` or `l2`.
        device: where to work.
        batch_size: images at once; None finds one that fits.
        precision: `32` (float32), `tf32` or `bf16` (faster where the hardware has it; results differ slightly).
        seed: of attacks, noise and random masks.
        assumed: whether the radius is `EPS` since neither a person nor the checkpoint named one.
        cache: directory in which results are kept and looked up; None keeps nothing. A result is found again
            only for the same weights, images and settings.
        unfinished: directory in which every finished attack of a measurement is kept until all are, so that the same
            one goes on after an interruption; None takes `cache`.
        plain: use the model as it is instead of its fast form, and take all images through all steps of an attack.
        compiled: run the model through torch.compile; not together with `plain`.
        processes: those that share the images; each gets all results.
        progress: shows how far the attacks are.
        say: told in a sentence where the fast form of the model can't be used, and what is done to suit the model.

    Raises:
        InputError: the images don't fit the model (classes, channels, size), or a precision that is not there.
    """

    checkpoint: Checkpoint
    dataset: Dataset
    epsilon: float = EPS / 255
    norm: str = field(default="linf", kw_only=True)
    device: torch.device | str = "cpu"
    batch_size: int | None = None
    precision: str = "32"
    seed: int = 0
    assumed: bool = False
    cache: Path | None = None
    unfinished: Path | None = field(default=None, kw_only=True)
    plain: bool = False
    compiled: bool = False
    processes: Processes = ALONE
    progress: Progress = field(default=silent, repr=False)
    say: Callable[[str], object] = field(default=warnings.warn, repr=False)
    _forms: list[tuple[frozenset[str], Classifier]] = field(default_factory=list, init=False, repr=False, compare=False)
    _said: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _given: list[Dataset] = field(default_factory=list, init=False, repr=False, compare=False)
    _spools: list[Spool] = field(default_factory=list, init=False, repr=False, compare=False)

    @usual_torch()
    def __post_init__(self) -> None:
        Ball(self.epsilon, self.norm)
        images = f"{self.dataset.name} ({self.dataset.split})"
        self._given.append(self.dataset)
        dataset, changes = self.checkpoint.suited(self.dataset)
        object.__setattr__(self, "dataset", dataset)
        for sentence in changes if self.processes.leads else ():
            self.say(sentence)
        self.checkpoint.check_fit(images, self.dataset.num_classes, self.dataset.image_shape)
        if self.plain and self.compiled:
            raise InputError("--plain switches --compile off; leave one of them out")
        self._forms.append((frozenset(), plain(self.checkpoint.model.to(self.device), self.precision)))

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """A block in which images that were crafted for one thing serve all others that need the same.

        They are put aside in temporary files that nobody sees, see `Spool`; what comes out is what comes out without.
        """
        self._spools.append(self.spool or Spool())
        try:
            yield
        finally:
            self._spools.pop()

    @property
    def spool(self) -> Spool | None:
        """Where crafted images are put aside; None outside of `keeping`."""
        return self._spools[-1] if self._spools else None

    @property
    def ball(self) -> Ball:
        """Where the attacks may move images to."""
        return Ball(self.epsilon, self.norm)

    @cached_property
    def findings(self) -> Findings:
        """What the quick checks find; a network that every pass changes is a copy from then on."""
        findings = check(self.subject(), quick=True)
        if findings.writes:
            self._forms[0] = (frozenset(), copy.deepcopy(self.stored_model))
        self.warn(findings.sentences)
        return findings

    def check(self, attacks: Sequence[AnyAttack] = (*ATTACKS, PROBING_ATTACK), nodes: Sequence[str] = ()) -> Findings:
        """The whole self-check, see `coprobe.checks`; nothing is attacked.

        Args:
            attacks: that are meant.
            nodes: where channels are meant to be recorded; empty means A…E, as far as there are any.
        """
        nodes = tuple(nodes) or tuple(node_table(self.stored_model))
        return check(self.subject(self.attacks(attacks), nodes))

    def subject(self, attacks: Sequence[Attack] = (), nodes: Sequence[str] = ()) -> Subject:
        """What the checks look at, and what is meant to be done with it."""
        return Subject(
            self.checkpoint,
            self.dataset,
            self.ball,
            attacks,
            nodes,
            device=self.device,
            batch_size=self.batch_size,
            seed=self.seed,
            form=None if self.plain else lambda: self.model,
        )

    def warn(self, sentences: Iterable[str]) -> None:
        """Say each sentence, once."""
        for sentence in sentences:
            self._say_once(sentence)

    @property
    def together(self) -> int | None:
        """How many images have to stay together, where results depend on that; None where they don't."""
        return BatchSize(self.batch_size, self.device).now if self.findings.together else None

    @property
    def model(self) -> Classifier:
        """What is attacked: the fast form of the checkpoint's model, or with `plain` the model itself."""
        return self.model_at(())

    @property
    def stored_model(self) -> Classifier:
        """The checkpoint's own network in the precision that was asked for."""
        return self._forms[0][1]

    @usual_torch()
    def model_at(self, nodes: Sequence[str]) -> Classifier:
        """The model in the form in which these nodes can be recorded and masked; the one that was used last is kept."""
        if self.plain:
            return self.stored_model
        for at, model in self._forms[1:]:
            if at >= set(nodes):
                return model
        made = fast(
            self.stored_model,
            images=self.first_images(CHECKED),
            nodes=tuple(dict.fromkeys(nodes)),
            precision=self.precision,
            compiled=self.compiled,
            processes=self.processes,
            say=self._say_once,
        )
        self._forms[1:] = [(frozenset(nodes), made)]
        return made

    def _say_once(self, text: str) -> None:
        """Tell what is the same of the model at all nodes and for everything that is asked of it."""
        if self.processes.leads and text not in self._said:
            self._said.add(text)
            self.say(text)

    def first_images(self, count: int) -> Tensor:
        """As many as there are, at most `count`: float in [0, 1], on the device."""
        (batch,) = stream(self.dataset, [(0, min(len(self.dataset), count))], self.device)
        return batch.images

    @usual_torch()
    def check_nodes(self, nodes: Sequence[str]) -> None:
        """Look on one image whether there are such nodes, before the work."""
        check_neutral(self.stored_model, self.first_images(1), list(dict.fromkeys(nodes)))

    def table(self) -> tuple[str, ...]:
        """The nodes A…E; raises `InputError` for a network without activation functions."""
        if nodes := tuple(node_table(self.stored_model)):
            return nodes
        raise InputError(f"{NO_NODES}; --node takes module paths")

    def attacks(self, given: Sequence[AnyAttack]) -> list[Attack]:
        """The attacks that are meant, in the ball, each once; `clean` is none.

        Raises:
            InputError: as `as_attack`; two that are called the same.
        """
        found: dict[str, Attack] = {}
        for one in given:
            if one == CLEAN:
                continue
            attack = as_attack(one, self.ball)
            if found.setdefault(attack.spec, attack) != attack:
                raise InputError(f"two attacks are called '{attack.spec}'; name one: coprobe.attacks.own(attack, name)")
        return list(found.values())

    @property
    def given_images(self) -> Dataset:
        """The images as they were given, with labels and channels that no model has been asked about."""
        return self._given[0]

    @property
    def model_facts(self) -> dict[str, Any]:
        """What identifies the model and its preprocessing."""
        return {
            **self.checkpoint.facts(),
            "arch": self.checkpoint.arch,
            "arch_args": self.checkpoint.arch_args,
            "mean": self.stored_model.mean,
            "std": self.stored_model.std,
            **({} if self.stored_model.channel_axes is None else {"channel_axis": self.stored_model.channel_axes}),
            **({} if self.checkpoint.arch in ARCHITECTURES else {"outputs": self._outputs}),
        }

    @cached_property
    def _outputs(self) -> str:
        """A digest of logits: it tells a network of somebody's own code from what it was before the code changed."""
        with frozen(self.stored_model), torch.no_grad():
            return digest_tensors({"logits": self.stored_model(self.first_images(CHECKED)).cpu()})

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies the inputs of a result: model, images, budget, seed."""
        return {
            **self.model_facts,
            "data": self.dataset.name,
            "split": self.dataset.split,
            "images": len(self.dataset),
            **({"skipped": len(self.dataset.skipped)} if self.dataset.skipped else {}),
            "data_digest": self.dataset.digest(),
            "epsilon": round(self.epsilon * 255, 6) if self.norm == "linf" else self.epsilon,
            **({} if self.norm == "linf" else {"norm": self.norm}),
            "budget": self.budget,
            "seed": self.seed,
            "device": str(self.device),
            "precision": self.precision,
            "plain": self.plain,
            **({"together": self.together} if self.together else {}),
            "compiled": self.compiled,
        }

    @property
    def budget(self) -> str:
        """Where the radius comes from, in words; empty if a person named it and nothing is known of the training."""
        known, is_assumed = default_radius(self.checkpoint, self.norm)
        if is_assumed:
            return "assumed" if self.assumed and isclose(self.epsilon, known) else ""
        return "the training budget" if isclose(self.epsilon, known) else f"trained at {known * 255:g}/255"

    @property
    def caption(self) -> str:
        """What results are from, in a few words for tables and figures: data, n, budget, seed."""
        budget = ", ".join(filter(None, [f"ε = {self.ball}", self.budget]))
        stage = f", {self.checkpoint.stage}" if self.checkpoint.stage else ""
        return f"{title(self.dataset.name)}, n = {len(self.dataset)}, {budget}, seed {self.seed}{stage}"


def default_radius(checkpoint: Checkpoint, norm: str) -> tuple[float, bool]:
    """The radius where nobody names one, and whether it is only assumed.

    That of the training, since catastrophic overfitting is a matter of it; where the checkpoint does not say any, or
    for L2, in which none of ours is trained, the usual one.
    """
    trained = checkpoint.training_epsilon if norm == "linf" else None
    usual = EPS / 255 if norm == "linf" else EPS_L2
    return (usual, True) if trained is None else (trained, False)


def assumptions(setup: Setup) -> list[str]:
    """What is taken for granted about a network in Python of which a person has said nothing, in a sentence at most."""
    said = []
    if not setup.checkpoint.normalised_by:
        said.append("takes images in [0, 1] as they are (else say preprocess=(mean, std))")
    if setup.assumed:
        said.append(f"was trained at {setup.ball}, at which it is attacked (else say epsilon)")
    return [f"assumed that the network {' and '.join(said)}"] if said else []
