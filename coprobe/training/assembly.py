"""Build everything that a run needs from its recipe; one that can't be followed is refused here, before any work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from coprobe.checkpoint import Checkpoint
from coprobe.checkpoint import load as load_checkpoint
from coprobe.core.processes import Processes
from coprobe.core.provenance import provenance
from coprobe.data import Dataset, Loader, hold_out, load
from coprobe.errors import InputError
from coprobe.fast.layout import layout_of
from coprobe.models import Classifier, build, defaults
from coprobe.nodes import resolve
from coprobe.training.loop import TrainingLoop
from coprobe.training.methods import Method, make_method
from coprobe.training.monitor import Monitor
from coprobe.training.parallel import synchronise_batchnorm
from coprobe.training.recipe import Recipe
from coprobe.training.regularizers import ChannelDivergence, FeatureStability, LogitStability, Regularizer
from coprobe.training.update import TrainingContext


@dataclass(frozen=True)
class Assembly:
    """The parts of a run: its loop, its monitor, the checkpoint that it will save, and the facts about it."""

    loop: TrainingLoop
    monitor: Monitor
    checkpoint: Checkpoint
    facts: dict[str, Any]


def assemble(
    recipe: Recipe,
    device: torch.device,
    processes: Processes,
    *,
    data: Dataset | None,
    skip_bad: bool,
    compiled: bool,
) -> Assembly:
    """Everything that the recipe describes; arguments and errors are those of `train`."""
    whole = data or load(recipe.data, "train", skip_bad=skip_bad)
    training, held_out = hold_out(whole, recipe.limit_train, recipe.images_held_out(len(whole)))
    watched = held_out
    if recipe.watch == "test":
        watched = load(recipe.data, "test", limit=len(held_out), skip_bad=skip_bad)
        watched = watched.with_channels(whole.image_shape[0])
    torch.manual_seed(recipe.seed)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # batches have few shapes
    checkpoint = _untrained(recipe, training, device)
    loader = _loader(recipe, training, device, processes, layout_of(checkpoint.model))
    context = TrainingContext(
        dataset=training,
        device=device,
        batch_size=recipe.batch_size,
        padding=loader.padding if loader.augment else 0,
        epochs=recipe.epochs,
        phases=recipe.phases,
        processes=processes,
    )
    method = _method(recipe)
    terms = _regularizers(recipe, method, checkpoint.model)
    if recipe.sync_batchnorm and processes.world_size > 1:
        synchronise_batchnorm(checkpoint.model)
    if compiled and not method.compiles:
        raise InputError(f"method {recipe.method} needs second derivatives, which --compile can't give; leave it out")
    if compiled and (processes.world_size > 1 or recipe.co_node):
        raise InputError("--compile works in one process and without --co-node only; leave it out")
    loop = TrainingLoop(recipe, checkpoint.model, method, terms, loader, context, compiled=compiled)
    facts = provenance(
        seed=recipe.seed,
        device=str(device),
        processes=processes.world_size,
        threads=torch.get_num_threads(),
        data_digest=training.digest(),
        images=len(training),
        held_out=len(held_out),
        **({"skipped": len(whole.skipped)} if whole.skipped else {}),
        watched=f"{len(watched)} {'held-out training' if watched is held_out else 'test'} images",
    )
    monitor = Monitor(watched, recipe.evaluation_epsilon, recipe.eps_also / 255, device, recipe.seed)
    return Assembly(loop, monitor, replace(checkpoint, model=cast(Classifier, loop.evaluated)), facts)


def _untrained(recipe: Recipe, training: Dataset, device: torch.device) -> Checkpoint:
    """The initial model and its description."""
    arch_args = {**defaults(recipe.arch), "num_classes": training.num_classes, "in_channels": training.image_shape[0]}
    if recipe.width is not None:
        arch_args["width"] = recipe.width
    model = Classifier(build(recipe.arch, **arch_args))
    if recipe.init is not None:
        model.network.load_state_dict(_initial_weights(recipe.init, recipe.arch, arch_args))
    model.precision = recipe.precision
    model.to(device).to(memory_format=layout_of(model))
    shape, classes = training.image_shape, training.classes
    return Checkpoint(model, recipe.arch, arch_args, recipe.to_dict(), image_shape=shape, classes=classes)


def _initial_weights(path: str, arch: str, arch_args: dict[str, Any]) -> dict[str, torch.Tensor]:
    initial = load_checkpoint(path)
    if (initial.arch, initial.whole_arch_args) != (arch, arch_args):
        raise InputError(f"--init {path}: is a {initial.arch} {initial.whole_arch_args}, not a {arch} {arch_args}")
    return initial.model.network.state_dict()


def _method(recipe: Recipe) -> Method:
    return make_method(
        recipe.method,
        recipe.options,
        epsilon=recipe.eps_train / 255,
        step_size=None if recipe.step_size is None else recipe.step_size / 255,
    )


def _regularizers(recipe: Recipe, method: Method, model: Classifier) -> list[Regularizer]:
    terms: list[Regularizer] = []
    if recipe.stable_node:
        resolve(model, recipe.stable_node)
        terms.append(FeatureStability(recipe.stable_node, recipe.stable_weight, recipe.stable_detach))
    logit_weight = method.default_logit_weight if recipe.logit_weight is None else recipe.logit_weight
    if logit_weight:
        terms.append(LogitStability(logit_weight))
    if recipe.co_node and recipe.co_top is not None:
        resolve(model, recipe.co_node)
        terms.append(
            ChannelDivergence(
                recipe.co_node,
                recipe.co_weight,
                recipe.co_top,
                recipe.co_by,
                recipe.co_select == "each-epoch",
                recipe.co_images,
                recipe.eps_train / 255,
                recipe.seed,
            )
        )
    if terms and not method.attacks:
        raise InputError(
            f"method {recipe.method} has no attack, so --stable-node, --logit-weight and --co-node can't be used"
        )
    return terms


def _loader(
    recipe: Recipe, training: Dataset, device: torch.device, processes: Processes, layout: torch.memory_format
) -> Loader:
    if processes.world_size > recipe.batch_size:
        raise InputError(
            f"--batch-size {recipe.batch_size}: too small to be shared by {processes.world_size} processes"
        )
    return Loader(
        training,
        recipe.batch_size,
        device=device,
        shuffle=True,
        augment=recipe.augment != "none",
        flip=recipe.augment == "crop-flip",
        padding_mode=recipe.padding,
        seed=recipe.seed,
        channels_last=layout == torch.channels_last,
        part=(processes.rank, processes.world_size),
    )
