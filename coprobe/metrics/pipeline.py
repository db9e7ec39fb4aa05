"""From questions to results: images read once, attacked, shown to every metric, and the results kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pandas as pd
from torch import nn

from coprobe.attacks import Attack
from coprobe.attacks.autoattack import stages_of
from coprobe.attacks.examples import AdversarialExamples, Spool
from coprobe.attacks.gradient import GradientAttack
from coprobe.attacks.own import OwnAttack
from coprobe.checkpoint.class_order import Reordered, match_classes
from coprobe.checkpoint.unusable import naming_images
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
    metrics = [metric.at(setup.ball, setup.seed) for metric in metrics]
    setup.check_nodes([node for metric in metrics for node in metric.nodes])
    store = ResultStore(setup.cache)
    depends = [_depends(setup, *one) for one in zip(metrics, attacks, targets, strict=True)]
    kept = [all(attack.identified for attack in several) for several in attacks]
    frames = [
        _found(setup, store, metric, about) if keep else None
        for metric, about, keep in zip(metrics, depends, kept, strict=True)
    ]
    open_ones = [number for number, frame in enumerate(frames) if frame is None]
    if open_ones:
        asked = [metrics[number] for number in open_ones]
        examples = _examples(setup, asked, every, spool)
        models = [_model(setup, metrics[number], targets[number]) for number in open_ones]
        with naming_images(setup.stored_model, setup.dataset, setup.device, setup.batch_size):
            measured = measure(examples, asked, models, setup.processes)
        _merge_tallies(setup, examples.attacks)
        form = str(getattr(setup.model, "form", PLAIN))
        for number, result in zip(open_ones, measured, strict=True):
            frame = frames[number] = table_of(result)
            about: dict[Any, Any] = {**frame.attrs, **provenance(**setup.facts, form=form), **depends[number]}
            used = [attack for attack in examples.attacks if attack.spec in metrics[number].attacks]
            about |= {"stages": stages_of(used)} if isinstance(result, Evaluation) else {}
            about |= _noticed(used)
            frame.attrs = json.loads(json.dumps(about))  # in plain values, as they come back from a file
            if setup.processes.leads and kept[number]:
                store.keep(metrics[number].name, frame, **_relevant(setup.facts), **depends[number])
        for attack in examples.attacks if setup.processes.leads else ():
            if attack.warning:
                setup.say(attack.warning)
    return [metric.restored(cast(pd.DataFrame, frame)) for metric, frame in zip(metrics, frames, strict=True)]


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


def _found(setup: Setup, store: ResultStore, metric: Metric[Any], depends: Mapping[str, Any]) -> pd.DataFrame | None:
    """What the first process finds, for all of them; without any such result, no image has to be looked at."""
    found = None
    if setup.processes.leads and store.holds(metric.name):
        found = store.find(metric.name, **_relevant(setup.facts), **depends)
    return setup.processes.broadcast(found)


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
        processes=setup.processes,
    )


def _merge_tallies(setup: Setup, attacks: Sequence[Attack]) -> None:
    """Add up what the attacks counted in all processes."""
    for tally in (tally for attack in attacks for tally in attack.tallies):
        if tally.processes < setup.processes.world_size:
            for rank, state in enumerate(setup.processes.gather(tally.state)):
                if rank != setup.processes.rank:
                    tally.merge_state(state)


def _noticed(attacks: Sequence[Attack]) -> dict[str, Any]:
    """What makes accuracies under some attacks mean less: `blind`, shares without a gradient; `outside` the ball."""
    blind = {attack.spec: attack.blindness.share for attack in attacks if isinstance(attack, GradientAttack)}
    outside = {attack.spec: attack.escape.state for attack in attacks if isinstance(attack, OwnAttack)}
    noticed = {
        "blind": {spec: share for spec, share in blind.items() if share},
        "outside": {spec: state for spec, state in outside.items() if state[1]},
    }
    return {name: found for name, found in noticed.items() if found}
