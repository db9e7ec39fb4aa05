"""From a file to a checkpoint: find the network, match its architecture, read its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coprobe.checkpoint.candidates import place
from coprobe.checkpoint.checkpoint import Checkpoint
from coprobe.checkpoint.class_names import read_class_names
from coprobe.checkpoint.description import Description, read_description, read_training_facts
from coprobe.checkpoint.hub import NAME as CONFIG
from coprobe.checkpoint.hub import HubConfig, read_config
from coprobe.checkpoint.matching import (
    AllowedMismatch,
    Match,
    Proposer,
    any_known,
    choose,
    library_network,
    materialised,
    one_of_ours,
    seeded,
    with_arguments,
)
from coprobe.checkpoint.normalisation import (
    GIVEN,
    OUR_FILE,
    Normalisation,
    Numbers,
    normalises_itself,
    pairs_in,
    read_beside,
    read_normalisation,
    without_file,
)
from coprobe.checkpoint.reader import Contents, TensorSpec, open_checkpoint
from coprobe.checkpoint.reader.file import check_file
from coprobe.checkpoint.weights import fill_network, is_finite, read_weight
from coprobe.checkpoint.wrapping import classifier, live_checkpoint
from coprobe.core.files import about_file
from coprobe.core.switches import usual_torch
from coprobe.errors import InputError, unknown
from coprobe.models import ARCHITECTURES
from coprobe.models.shapes import Trial, trial
from coprobe.models.wrappers import unwrapped
from coprobe.nodes import set_channel_axis

_SILENT_PART = (
    "something stands before the network, of which the file says nothing; if it normalises, say --mean, --std",
)
#: What stands for a folder: ours of a run, then Hugging Face's.
_IN_FOLDERS = ("checkpoint.pt", "model.safetensors", "pytorch_model.bin")


@usual_torch()
def load(
    path: str | Path,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    pick: str | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    channel_axis: int | Mapping[str, int] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    as_stored: bool = False,
) -> Checkpoint:
    """Read a checkpoint of any common layout; nothing that stands in it is ever run.

    Read without a flag: state dicts under whatever key, modules that were pickled whole, wrappers' prefixes,
    normalisers before or around the network, half precision, safetensors, Lightning's and Hugging Face's files.

    Args:
        path: the file, or a folder with one (`find_file`), of which timm's `config.json` is read, too; `-` for the
            weights that `model` comes with.
        arch: architecture, ours or `torchvision:…`, `timm:…`, `robustbench:…`; None takes what the file says, else
            what the names and shapes of its weights say.
        arch_args: overrides of single arguments of the architecture.
        mean: subtracted per channel; None takes what the file says, else nothing.
        std: divided by per channel; None takes what the file says, else nothing.
        model: `pkg.module:factory` or `path/to/file.py:factory`, the person's own code, which is imported and run.
        model_args: arguments of the factory.
        pick: which network, where the file holds several: its key, or the way to it with dots.
        allow_missing: fnmatch patterns of weights that the file may lack; they keep their seeded initial values.
        allow_unexpected: fnmatch patterns of weights that are left out.
        channel_axis: at which axis (batch, …) activations have their channels, at all nodes or by node; None finds out.
        image_shape: (channels, height, width) of the images that it will be shown, for a network that takes no usual
            size; see `models.shapes.trial`.
        as_stored: keep the file's floating-point types in networks of ours, for looking and not for probing: it takes
            no more memory than the file, and the digest is the same.

    Raises:
        InputError: no such file, no checkpoint, several networks, an architecture that can't be told or doesn't
            fit, weights that are not finite, a pattern that matches nothing. The message says what to do.
    """
    arch_args, model_args = dict(arch_args or {}), dict(model_args or {})
    is_file = str(path) != "-"
    hub = read_config(path) if is_file else HubConfig()
    if arch or model:
        hub = HubConfig(said=hub.said)
    if hub.arch:
        arch, arch_args = hub.arch, {**hub.arch_args, **arch_args}
    if is_file:
        path = find_file(path)
    elif pick or allow_missing or allow_unexpected:
        raise InputError("'-' is no file; leave out --pick, --allow-missing and --allow-unexpected")
    network = named_network(arch, arch_args, model, model_args, on_meta=as_stored)
    if not is_file:
        if model is None or network is None:
            raise InputError(
                "'-' stands for the weights that --model comes with; pass --model, or name a checkpoint file"
            )
        checkpoint = _of_factory(network, model, model_args, mean, std, image_shape)
        set_channel_axis(checkpoint.model, channel_axis)
        return checkpoint
    allowed = AllowedMismatch(tuple(allow_missing), tuple(allow_unexpected))
    with open_checkpoint(path) as contents:
        description = read_description(contents.payload, contents.metadata, contents.sealed)
        propose = proposer(network, model or arch, model_args or arch_args, description)
        match, others = choose(contents.payload, propose, allowed, pick=pick)
        if propose is any_known and arch_args:
            match = with_arguments(match, arch_args, allowed)
        match.check_all_used(allowed)
        _check_copies(match, contents)
        match, size = _filled(materialised(match, as_stored=as_stored), description, contents, as_stored, image_shape)
        channels = size.image_shape[0] if size else int(match.network.in_channels)  # type: ignore[arg-type]
        classes = size.num_classes if size else int(match.network.num_classes)  # type: ignore[arg-type]
        normalisation = _normalisation(match, description, contents, channels, mean, std)
        if hub.normalisation and not normalisation.name and len(hub.normalisation.mean or ()) == channels:
            normalisation = hub.normalisation
        names, remark = description.classes, ""
        if not description.format:
            names, remark = read_class_names(contents.payload, contents.metadata, classes, hub.said)
            names = names or (hub.classes if len(hub.classes) == classes else ())
        doubts = (*_choice(match, others), *normalisation.notes)
        option = CONFIG if hub.arch else "--model" if model else "--arch" if arch else ""
        weights = f"names and shapes of {len(match.remap.weights)} weights"
        checkpoint = Checkpoint(
            classifier(match.network, normalisation, size.image_shape if size else None).eval(),
            match.arch,
            {**match.arch_args, "num_classes": classes, "in_channels": channels},
            recipe=description.recipe,
            metrics=description.metrics,
            image_shape=size.image_shape if size else description.image_shape,
            classes=names,
            tried_shape=size is not None and description.image_shape is None,
            path=Path(path),
            container=contents.container,
            layout=_layout(match, description),
            evidence=option or ("named in the file" if description.arch else weights),
            normalised_by=normalisation.name,
            notes=tuple(filter(None, (*contents.notes, *match.remap.notes, *doubts, remark))),
            training_facts=(
                {} if description.format else read_training_facts(contents.payload, contents.metadata, contents.numbers)
            ),
            undecided={} if description.arch else match.undecided,
            allowed_mismatch=match.allowed_mismatch,
            doubts=doubts,
            images_may_decide=not (normalisation.name and normalisation.sure),
        )
    set_channel_axis(checkpoint.model, channel_axis)
    return checkpoint


def named_network(
    arch: str | None, arch_args: dict[str, Any], model: str | None, model_args: dict[str, Any], *, on_meta: bool
) -> nn.Module | None:
    """The network of a factory or a library that the person names; None for ours, or if they name none."""
    if model is not None:
        if arch is not None or arch_args:
            raise InputError(f"--model {model} makes the network; leave out --arch, and use --model-arg for arguments")
        from coprobe.models.factory import factory_network

        with seeded():
            return unwrapped(factory_network(model, **model_args))
    if model_args:
        raise InputError("--model-arg without --model; name the factory that takes it")
    if arch is None or arch in ARCHITECTURES:
        return None
    if ":" not in arch:
        raise unknown("architecture", arch, ARCHITECTURES)
    return library_network(arch, arch_args, on_meta=on_meta)


def _of_factory(
    network: nn.Module,
    model: str,
    model_args: dict[str, Any],
    mean: Numbers | None,
    std: Numbers | None,
    image_shape: tuple[int, int, int] | None,
) -> Checkpoint:
    """The checkpoint of a factory that gives its network weights itself."""
    size = trial(network, at_hand=image_shape)
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, torch.Tensor) and not is_finite(tensor):
            raise InputError(f"{model}: weight '{name[:80]}' is not finite (NaN or infinite); mend the factory")
    normalisation = without_file(mean, std, network)
    layout = "the factory's own weights"
    checkpoint = live_checkpoint(network, normalisation, size, model, model_args, layout, "--model")
    checkpoint.model.eval()
    return replace(checkpoint, images_may_decide=not normalisation.name)


def proposer(network: nn.Module | None, name: str | None, args: dict[str, Any], description: Description) -> Proposer:
    """What the weights may belong to: what the person names, else what the file names, else any known architecture."""
    if network is not None:
        return lambda weights: [(str(name), args, network)]
    if name is not None and name != description.arch:
        return one_of_ours(name, args)
    arch = description.arch
    if arch is None:
        return any_known
    # Nothing that stands in a file names code to be imported: a person has to say it.
    if ":" in arch:
        raise InputError(f"is said to be a '{arch[:60]}'; name it yourself with --arch or --model")
    if arch not in ARCHITECTURES:
        raise unknown("architecture", arch[:60], ARCHITECTURES)
    return one_of_ours(arch, {**description.arch_args, **args})


def _check_copies(match: Match, contents: Contents) -> None:
    """Raise `InputError` where what looks like the second name of a weight has another value."""
    for name, copy, weight in match.remap.copies:
        if place(copy) == place(weight):
            continue
        if not torch.equal(read_weight(name, copy, contents), read_weight(name, weight, contents)):
            raise InputError(f"holds two networks, told apart by '{name[:60]}'; save the state_dict of one")


def _filled(
    match: Match,
    description: Description,
    contents: Contents,
    as_stored: bool,
    at_hand: tuple[int, int, int] | None,
) -> tuple[Match, Trial | None]:
    """The match with its weights in its network; what that takes and gives, if it is none of ours."""
    size = None
    if as_stored and not match.is_ours and any(parameter.is_meta for parameter in match.network.parameters()):
        # Before, since the weights of what is only looked at may be of any type afterwards.
        try:
            size = trial(match.network, description.image_shape, at_hand=at_hand, without_numbers=True)
        except InputError:  # not everything can be computed without numbers
            match = materialised(match)
    fill_network(match.network, match.remap.weights, contents, as_stored=as_stored)
    return match, size if match.is_ours or size else trial(match.network, description.image_shape, at_hand=at_hand)


def _normalisation(
    match: Match,
    description: Description,
    contents: Contents,
    channels: int,
    mean: Numbers | None,
    std: Numbers | None,
) -> Normalisation:
    """What the person says, else the file, else nothing."""
    prefixes, pairs = match.remap.prefixes, match.remap.pairs
    held: Normalisation | None = None
    if description.format:
        preprocess = description.preprocess
        held = Normalisation(OUR_FILE, preprocess.get("mean"), preprocess.get("std"))
    elif mean is None or std is None:  # else numbers that can't be used would do harm to a person who says better ones
        inside = "".join(prefixes)
        outside = {n: v for n, v in match.candidate.numbers.items() if inside and not n.startswith(inside)}
        held = read_normalisation((*pairs, *pairs_in(outside)), contents.numbers, channels)
        if held is None and not normalises_itself(match.network):
            held = read_beside(pairs_in(match.candidate.beside), contents.numbers, channels)
    if mean is None and std is None:
        if held and held.name:
            return held
        # A number as prefix: a part of an nn.Sequential that something stands before.
        silent = any(prefix[:-1].isdecimal() and prefix != "0." for prefix in prefixes)
        notes = (*(held.notes if held else ()), *(_SILENT_PART if silent else ()))
        return replace(without_file(None, None, match.network), notes=notes)
    unused = tuple(f"the file's own '{pair[0][:40]}' and '{pair[2][:40]}' are not used" for pair in pairs)
    held = held or Normalisation("")
    return Normalisation(GIVEN, mean or held.mean, std or held.std, unused)


def _layout(match: Match, description: Description) -> str:
    removed = [f"prefix '{prefix[:40]}' removed" for prefix in match.remap.prefixes]
    weights = match.remap.weights.values()
    dtypes = {w.dtype for w in weights if isinstance(w, TensorSpec) and w.is_floating_point}
    others = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes - {torch.float32})
    parts = [description.format or match.candidate.layout, *removed, *match.remap.steps]
    parts += [f"{name} made float32" for name in others]
    assumed = [] if description.arch else [f"{name}={value!r}" for name, value in match.assumed.items()]
    return ", ".join(parts + ["assumed " + ", ".join(assumed)] * bool(assumed))


def _choice(match: Match, others: list[str]) -> tuple[str, ...]:
    """That the file has other networks; nothing if it has none."""
    if not others:
        return ()
    shown = ", ".join(f"--pick {label[:40]}" for label in others)
    return (f"took the network under '{match.candidate.label[:40]}'; the file has others: {shown}",)


def find_file(path: str | Path) -> Path:
    """The checkpoint file that `path` means: itself, or the one in a run directory or a folder of Hugging Face.

    Raises:
        InputError: there is no such regular, readable, non-empty file, or the folder holds one in parts.
    """
    path = Path(path)
    with about_file(path):
        try:
            held = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), None)
            index = None if held else next(path.glob("*.index.json"), None)
        except (OSError, ValueError):  # a name that no file can have
            held = index = None
        if index:
            raise InputError(f"is a folder of shards ({index.name[:60]}); merge them into one file")
        path = held or path
        check_file(path)
    return path
