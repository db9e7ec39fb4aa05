"""From questions to results: images read once, attacked, shown to every metric, and the results kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import pandas as pd
from torch import nn

from coprobe.attacks import Attack
from coprobe.attacks.autoattack import stages_of
from coprobe.attacks.examples import AdversarialExamples, Spool
from coprobe.attacks.gradient import GradientAttack, blind_sentence
from coprobe.attacks.own import OwnAttack
from coprobe.checkpoint.class_order import Reordered, match_classes
from coprobe.checkpoint.unusable import naming_images
from coprobe.checks.settings import budget
from coprobe.core.provenance import provenance
from coprobe.core.results import ResultStore
from coprobe.core.switches import usual_torch
from coprobe.fast.form import PLAIN
from coprobe.metrics.accuracy import Evaluation
from coprobe.metrics.metric import Metric, measure, table_of
from coprobe.metrics.setup import Setup
from coprobe.nodes import VERSION, resolve

#: Facts that change no result: a moved file, its label, another device or why it is this radius is the same experiment.
_IRRELEVANT = ("checkpoint", "stage", "device", "budget")
#: How files of parts of a measurement that is not finished begin.
_PART = "part-"


@usual_torch()
def results_of(
    setup: Setup, metrics: Sequence[Metric[Any]], targets: Sequence[Setup] = (), spool: Spool | None = None
) -> list[Any]:
    """What the metrics compute, from one pass over the images: nothing is attacked twice.

    What the result store has is not measured again, and if it has all, no image is attacked.

    Args:
        setup: the model that is attacked, the images, and the settings.
        metrics: what to measure; `epsilon` and `seed` are those of the setup.
        targets: of each metric the model that is measured; none means the one that is attacked.
        spool: where crafted images are shared with other questions.

    Raises:
        InputError: an unknown node or attack, before the work; and what a metric raises.
    """
    targets = targets or [setup] * len(metrics)
    attacks = [setup.attacks(metric.attacks) for metric in metrics]
    every = setup.attacks([attack for several in attacks for attack in several])  # raises for two of one name
    _findings([setup, *targets])
    metrics = [metric.at(setup.ball, setup.seed) for metric in metrics]
    setup.check_nodes([node for metric in metrics for node in metric.nodes])
    _unfit(setup, every)
    store = ResultStore(setup.cache)
    questions = [_Question(setup, metric, every, target) for metric, target in zip(metrics, targets, strict=True)]
    frames = [question.found(store) for question in questions]
    due = [question for question, frame in zip(questions, frames, strict=True) if frame is None]
    measured = iter(_answered(setup, due, spool) if due else ())
    for place, question in enumerate(questions):
        if frames[place] is None:
            frames[place] = next(measured)
            question.keep(store, cast(pd.DataFrame, frames[place]))
    results = [metric.restored(cast(pd.DataFrame, frame)) for metric, frame in zip(metrics, frames, strict=True)]
    for target, result in zip(targets, results, strict=True):
        if target is setup and isinstance(result, Evaluation):
            setup.warn(_outdone(result, every))
    return results


@dataclass(frozen=True)
class _Question:
    """A metric, of which model, and what its answer depends on.

    Args:
        setup: the model that is attacked, the images, and the settings.
        metric: what is measured, at the radius and with the seed of the setup.
        every: attacks, among them those of the metric.
        target: the model that is measured.
    """

    setup: Setup
    metric: Metric[Any]
    every: Sequence[Attack]
    target: Setup

    @property
    def attacks(self) -> list[Attack]:
        """Those of the metric."""
        return [attack for attack in self.every if attack.spec in self.metric.attacks]

    @cached_property
    def depends(self) -> dict[str, Any]:
        """What a result depends on beside the facts of the setup, as plain values."""
        return _depends(self.setup, self.metric, self.attacks, self.target)

    def parts(self) -> list[_Question]:
        """Questions of one attack at most, with the tables of all one below the other as the answer to this one."""
        return [replace(self, metric=part) for part in self.metric.parts()]

    def found(self, store: ResultStore, kind: str = "") -> pd.DataFrame | None:
        """What the first process finds, for all of them; without any such result, no image has to be looked at."""
        name, found = kind + self.metric.name, None
        if not self._can_be_kept:
            return None
        if self.setup.processes.leads and store.holds(name):
            found = store.find(name, **_relevant(self.setup.facts), **self.depends)
        return self.setup.processes.broadcast(found)

    def keep(self, store: ResultStore, frame: pd.DataFrame, kind: str = "") -> None:
        """Keep the answer, where it says what it is of."""
        if self.setup.processes.leads and self._can_be_kept:
            store.keep(kind + self.metric.name, frame, **_relevant(self.setup.facts), **self.depends)

    def drop(self, store: ResultStore, kind: str = "") -> None:
        """Keep the answer no longer."""
        if self.setup.processes.leads:
            store.drop(kind + self.metric.name, **_relevant(self.setup.facts), **self.depends)

    @property
    def _can_be_kept(self) -> bool:
        return all(attack.identified for attack in self.attacks)


def _answered(setup: Setup, questions: Sequence[_Question], spool: Spool | None) -> list[pd.DataFrame]:
    """The tables: from one pass over the images, or where there is room for what is finished, from one for each attack.

    Then every part is kept as soon as it is known, until the last one is.
    """
    store = ResultStore(setup.unfinished or setup.cache)
    parts = [(place, part) for place, question in enumerate(questions) for part in question.parts()]
    rounds = dict.fromkeys(part.metric.attacks for _, part in parts)
    if store.directory is None or len(rounds) < 2:
        return _measured(setup, questions, spool)
    tables: dict[int, list[pd.DataFrame]] = {place: [] for place in range(len(questions))}
    found = {id(part): frame for _, part in parts if (frame := part.found(store, _PART)) is not None}
    if found and setup.processes.leads:
        setup.say(f"{len(found)} of {len(parts)} parts of this measurement are there from one that was interrupted")
    for attacks in rounds:
        due = [part for _, part in parts if part.metric.attacks == attacks and id(part) not in found]
        for part, frame in zip(due, _measured(setup, due, spool) if due else (), strict=True):
            found[id(part)] = frame
            part.keep(store, frame, _PART)
    for place, part in parts:
        tables[place].append(found[id(part)])
        part.drop(store, _PART)
    return [_joined(tables[place], question) for place, question in enumerate(questions)]


def _joined(frames: Sequence[pd.DataFrame], question: _Question) -> pd.DataFrame:
    """The table of a question from those of its parts."""
    first, *others = frames
    if not others:
        return first
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs = first.attrs | cast(dict[Any, Any], question.depends)
    for name in ("stages", "blind", "outside"):
        values = [one.attrs[name] for one in frames if name in one.attrs]
        if values and isinstance(values[0], list):
            frame.attrs[name] = [row for rows in values for row in rows]
        elif values:
            frame.attrs[name] = {key: value for named in values for key, value in named.items()}
    return frame


def _measured(setup: Setup, questions: Sequence[_Question], spool: Spool | None) -> list[pd.DataFrame]:
    """The tables, with what they are of, from one pass over the images."""
    metrics = [question.metric for question in questions]
    examples = _examples(setup, metrics, questions[0].every, spool)
    models = [_model(setup, question.metric, question.target) for question in questions]
    with naming_images(setup.stored_model, setup.dataset, setup.device, setup.batch_size):
        measured = measure(examples, metrics, models, setup.processes)
    _merge_tallies(setup, examples.attacks)
    form = str(getattr(setup.model, "form", PLAIN))
    checked = [*_findings([setup, *(question.target for question in questions)]), *_unfit(setup, questions[0].every)]
    frames = []
    for question, result in zip(questions, measured, strict=True):
        frame = table_of(result)
        about: dict[Any, Any] = {**frame.attrs, **provenance(**setup.facts, form=form), **question.depends}
        used = [attack for attack in examples.attacks if attack.spec in question.metric.attacks]
        about |= {"stages": stages_of(used)} if isinstance(result, Evaluation) else {}
        about |= {**_noticed(setup, used), **({"check": checked} if checked else {})}
        frame.attrs = json.loads(json.dumps(about))  # in plain values, as they come back from a file
        frames.append(frame)
    setup.warn(_warnings(setup, examples.attacks))
    return frames


def _findings(setups: Sequence[Setup]) -> list[str]:
    """What the self-check says of each model, which it says to people, too."""
    return list(dict.fromkeys(sentence for setup in setups for sentence in setup.findings.sentences))


def _unfit(setup: Setup, attacks: Sequence[Attack]) -> list[str]:
    """What it says of the attacks, which is said to people, too."""
    finding = budget(setup.subject(attacks))
    sentences = [finding.sentence] if finding else []
    setup.warn(sentences)
    return sentences


def _depends(setup: Setup, metric: Metric[Any], attacks: Sequence[Attack], target: Setup) -> dict[str, Any]:
    """What a result depends on beside the facts of the setup, as plain values."""
    versions = {metric.name: metric.version}
    versions |= {attack.name: attack.version for attack in attacks}
    about = {**metric.settings, "nodes": list(metric.nodes), "attacks": list(metric.attacks)}
    if changed := {name: version for name, version in versions.items() if version > 1}:
        about["versions"] = changed
    if identities := {attack.spec: attack.identity for attack in attacks if isinstance(attack, OwnAttack)}:
        about["identities"] = identities
    if not all(resolve(target.stored_model, node).declared for node in metric.nodes):
        about["places"] = VERSION
    if setup.findings.draws:
        about["draws"] = "by attack"
    if target is not setup:
        about["target"] = _relevant(target.model_facts)
        if order := _order(setup, target):
            about["class_order"] = order
    plain: dict[str, Any] = json.loads(json.dumps(about))  # before the work, if it can't be
    return plain


def _model(setup: Setup, metric: Metric[Any], target: Setup) -> nn.Module:
    """What is measured, with its logits in the order of the labels of the images that are attacked."""
    if target is setup:
        return setup.model_at(metric.nodes)
    model = target.model_at(metric.nodes)
    target.checkpoint.check_shape(setup.dataset.name, setup.dataset.image_shape)  # they may have been made to suit it
    order = _order(setup, target)
    return Reordered(model, order) if order else model


def _order(setup: Setup, target: Setup) -> list[int]:
    """Which logit of the target stands for each class of the attacked images, then its others; none if all in order."""
    places = match_classes(target.dataset.classes, setup.dataset.classes).places
    if places is None:
        return []
    return [*places, *sorted({*range(target.dataset.num_classes)}.difference(places))]


def _relevant(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in _IRRELEVANT}


def _examples(
    setup: Setup, metrics: Sequence[Metric[Any]], every: Sequence[Attack], spool: Spool | None
) -> AdversarialExamples:
    needed = {spec for metric in metrics for spec in metric.attacks}
    attacks = [attack for attack in every if attack.spec in needed]
    return AdversarialExamples(
        setup.model_at([node for metric in metrics for node in metric.nodes]),
        setup.dataset,
        [spool.same(attack) for attack in attacks] if spool else attacks,
        batch_size=setup.batch_size,
        device=setup.device,
        seed=setup.seed,
        trajectories={spec for metric in metrics if metric.follows for spec in metric.attacks},
        spool=spool,
        progress=setup.progress,
        plain=setup.plain,
        together=setup.together,
        draws=setup.findings.draws,
        processes=setup.processes,
    )


def _merge_tallies(setup: Setup, attacks: Sequence[Attack]) -> None:
    """Add up what the attacks counted in all processes."""
    for tally in (tally for attack in attacks for tally in attack.tallies):
        if tally.processes < setup.processes.world_size:
            for rank, state in enumerate(setup.processes.gather(tally.state)):
                if rank != setup.processes.rank:
                    tally.merge_state(state)


def _warnings(setup: Setup, attacks: Sequence[Attack]) -> Iterator[str]:
    """What people should know of attacks, when they are done: where they stood still, and where they went too far."""
    if not setup.findings.by_check["logits"]:  # else they had no chance, which has been said
        yield from filter(None, [blind_sentence([one for one in attacks if isinstance(one, GradientAttack)])])
    for attack in attacks:
        if isinstance(attack, OwnAttack) and attack.warning:
            yield attack.warning


def _outdone(evaluation: Evaluation, attacks: Sequence[Attack]) -> Iterator[str]:
    """Where an attack that sees nothing but logits leaves less than all that see the whole model."""
    rows = evaluation.frame.query("noise == 'none' and mask == 'none'").set_index("attack")["accuracy"]
    measured = [attack for attack in attacks if attack.spec in rows and not isinstance(attack, OwnAttack)]
    strongest = min((one for one in measured if not one.black_box), key=lambda one: rows[one.spec], default=None)
    for attack in measured:
        if attack.black_box and strongest and rows[attack.spec] < rows[strongest.spec]:
            yield (
                f"{attack.label} leaves {rows[attack.spec]:.1%}, less than all attacks here that see the whole model "
                f"({strongest.label}: {rows[strongest.spec]:.1%}): these are too weak (take more steps), or the "
                "gradient misleads them, and what they leave is no robustness"
            )


def _noticed(setup: Setup, attacks: Sequence[Attack]) -> dict[str, Any]:
    """What makes accuracies under some attacks mean less.

    `blind`: shares without a gradient; `misleading`: whether it is not the slope; `outside` the ball.
    """
    blind = {attack.spec: attack.blindness.share for attack in attacks if isinstance(attack, GradientAttack)}
    outside = {attack.spec: attack.escape.state for attack in attacks if isinstance(attack, OwnAttack)}
    noticed: dict[str, Any] = {
        "misleading": setup.findings.misleading,
        "blind": {spec: share for spec, share in blind.items() if share},
        "outside": {spec: state for spec, state in outside.items() if state[1]},
    }
    return {name: found for name, found in noticed.items() if found}
