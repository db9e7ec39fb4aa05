"""From a file to a checkpoint: find the weights, know the architecture, fill the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coprobe.checkpoint.facts import Description, described, told
from coprobe.checkpoint.filling import elements, fill, is_finite, read_one
from coprobe.checkpoint.fitting import (
    Fit,
    Proposer,
    Waivers,
    any_known,
    choose,
    given_network,
    materialised,
    one_architecture,
    with_arguments,
    zoo,
)
from coprobe.checkpoint.live import GIVEN, classifier, said_by, says_itself
from coprobe.checkpoint.normaliser import Normalisation, pairs_among, read_pairs
from coprobe.checkpoint.payloads import Found, find, outline, place
from coprobe.checkpoint.reader import Contents, TensorSpec, open_checkpoint
from coprobe.checkpoint.reader.file import check_file
from coprobe.checkpoint.record import Checkpoint
from coprobe.core.files import about_file
from coprobe.errors import InputError, unknown
from coprobe.models import ARCHITECTURES, defaults
from coprobe.models.shapes import Trial, trial
from coprobe.models.wrappers import unwrapped

#: What stands for a folder: ours of a run, then Hugging Face's.
_IN_FOLDERS = ("checkpoint.pt", "model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class _Wanted:
    """What the person says of the network: nothing, an architecture of ours, or a network that is built already."""

    arch: str | None = None
    arch_args: dict[str, Any] = field(default_factory=dict)
    network: nn.Module | None = None
    option: str = ""


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
    as_stored: bool = False,
) -> Checkpoint:
    """Read a checkpoint of any common layout; nothing that stands in it is ever run.

    Read without a flag: state dicts under whatever key, modules that were pickled whole, wrappers' prefixes,
    normalisers before or around the network, half precision, safetensors, Lightning's and Hugging Face's files.

    Args:
        path: the file, or a folder with one (`find_file`); `-` for the weights that `model` comes with.
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
        as_stored: keep the file's floating-point types in networks of ours, for looking and not for probing: it takes
            no more memory than the file, and the digest is the same.

    Raises:
        InputError: no such file, no checkpoint, several networks, an architecture that can't be told or doesn't
            fit, weights that are not finite, a pattern that matches nothing. The message says what to do.
    """
    if str(path) == "-":
        if pick or allow_missing or allow_unexpected:
            raise InputError("'-' is no file; leave out --pick, --allow-missing and --allow-unexpected")
        return _of_factory(_wanted(arch, dict(arch_args or {}), model, dict(model_args or {})), mean, std)
    path = find_file(path)
    wanted = _wanted(arch, dict(arch_args or {}), model, dict(model_args or {}), as_stored)
    waivers = Waivers(tuple(allow_missing), tuple(allow_unexpected))
    with about_file(path), open_checkpoint(path) as contents:
        return _assembled(path, contents, wanted, waivers, pick, (mean, std), as_stored)


def _wanted(
    arch: str | None,
    arch_args: dict[str, Any],
    model: str | None,
    model_args: dict[str, Any],
    as_stored: bool = False,
) -> _Wanted:
    if model is not None:
        if arch is not None or arch_args:
            raise InputError(f"--model {model} makes the network; leave out --arch, and use --model-arg for arguments")
        from coprobe.models.factory import factory_network

        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return _Wanted(model, model_args, unwrapped(factory_network(model, **model_args)), "--model")
    if model_args:
        raise InputError("--model-arg without --model; name the factory that takes it")
    if arch is not None and ":" in arch:
        return _Wanted(arch, arch_args, zoo(arch, arch_args, on_meta=as_stored), "--arch")
    if arch is not None and arch not in ARCHITECTURES:
        raise unknown("architecture", arch, ARCHITECTURES)
    return _Wanted(arch, arch_args, None, "--arch" if arch else "")


def _of_factory(wanted: _Wanted, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Checkpoint:
    if wanted.network is None or wanted.option != "--model":
        raise InputError("'-' stands for the weights that --model comes with; pass --model, or name a checkpoint file")
    size = trial(wanted.network)
    for name, tensor in wanted.network.state_dict().items():
        if isinstance(tensor, torch.Tensor) and not is_finite(tensor):
            raise InputError(f"{wanted.arch}: weight '{name[:80]}' is not finite (NaN or infinite); mend the factory")
    return Checkpoint(
        classifier(wanted.network, mean, std, size.image_shape).eval(),
        str(wanted.arch),
        {**wanted.arch_args, "num_classes": size.num_classes, "in_channels": size.image_shape[0]},
        image_shape=size.image_shape,
        tried_shape=True,
        container="none",
        layout="the factory's own weights",
        evidence=wanted.option,
        normalised_by=said_by(mean, std, wanted.network),
    )


def _assembled(
    path: Path,
    contents: Contents,
    wanted: _Wanted,
    waivers: Waivers,
    pick: str | None,
    given: tuple[tuple[float, ...] | None, tuple[float, ...] | None],
    as_stored: bool,
) -> Checkpoint:
    about = described(contents.payload, contents.metadata, contents.sealed)
    candidates = find(contents.payload)
    if not candidates:
        raise InputError(f"holds no network ({outline(contents.payload)}); save model.state_dict()")
    fit, others = _fit(candidates, about, wanted, waivers, pick)
    _check_copies(fit, contents)
    fit, size = _filled(materialised(fit, as_stored=as_stored), about, contents, as_stored)
    channels = size.image_shape[0] if size else int(fit.network.in_channels)  # type: ignore[arg-type]
    classes = size.num_classes if size else int(fit.network.num_classes)  # type: ignore[arg-type]
    normalisation = _normalisation(fit, about, contents, channels, given)
    model = classifier(fit.network, normalisation.mean, normalisation.std, size.image_shape if size else None)
    assumed, undecided = ("", {}) if size else _untold(fit, about)
    waived = {"missing": fit.missing, "unexpected": list(fit.variant.waived)}
    return Checkpoint(
        model.eval(),
        fit.arch,
        {**fit.arch_args, "num_classes": classes, "in_channels": channels},
        recipe=about.recipe,
        metrics=about.metrics,
        image_shape=size.image_shape if size else about.image_shape,
        classes=about.classes,
        tried_shape=size is not None and about.image_shape is None,
        path=path,
        container=contents.container,
        layout=_layout(fit, about) + assumed,
        evidence=_evidence(fit, about, wanted),
        normalised_by=normalisation.source,
        notes=(*contents.notes, *_notes(fit, others), *normalisation.notes),
        told={} if about.format else told(contents.payload, contents.metadata, lambda s: elements(s, contents)),
        undecided=undecided,
        waived={kind: names for kind, names in waived.items() if names},
    )


def _filled(fit: Fit, about: Description, contents: Contents, as_stored: bool) -> tuple[Fit, Trial | None]:
    """The network with its weights; what it takes and gives, if it is none of ours."""
    is_ours = fit.arch in ARCHITECTURES
    size = None
    if as_stored and not is_ours and any(parameter.is_meta for parameter in fit.network.parameters()):
        # Before, since the weights of what is only looked at may be of any type afterwards.
        try:
            size = trial(fit.network, about.image_shape, without_numbers=True)
        except InputError:  # not everything can be computed without numbers
            fit = materialised(fit)
    fill(fit.network, fit.variant.weights, contents, as_stored=as_stored)
    return fit, size if is_ours or size else trial(fit.network, about.image_shape)


def _fit(
    candidates: list[Found], about: Description, wanted: _Wanted, waivers: Waivers, pick: str | None
) -> tuple[Fit, list[str]]:
    """The network that is meant with its architecture, and the labels of the other networks in the file."""
    if wanted.network is not None:
        propose = given_network(str(wanted.arch), wanted.arch_args, wanted.network)
    elif wanted.arch is not None and wanted.arch != about.arch:
        propose = one_architecture(wanted.arch, wanted.arch_args, read=True)
    elif about.arch is not None:
        propose = _as_the_file_says(about, wanted.arch_args)
    else:
        propose = any_known
    named = propose is not any_known
    fit, others = choose(candidates, propose, waivers, pick=pick, named=named)
    if not named:
        fit = with_arguments(fit, wanted.arch_args, waivers)
    waivers.check_used(fit)
    return fit, others


def _as_the_file_says(about: Description, given: dict[str, Any]) -> Proposer:
    # Nothing that stands in a file names code to be imported: a person has to say it.
    if ":" in str(about.arch):
        raise InputError(f"is said to be a '{str(about.arch)[:60]}'; name it yourself with --arch or --model")
    if about.arch not in ARCHITECTURES:
        raise unknown("architecture", str(about.arch)[:60], ARCHITECTURES)
    return one_architecture(str(about.arch), {**about.arch_args, **given}, read=False)


def _check_copies(fit: Fit, contents: Contents) -> None:
    """Raise `InputError` where what looks like the second name of a weight has another value."""
    for name, copy, weight in fit.variant.copies:
        if place(copy) == place(weight):
            continue
        if not torch.equal(read_one(name, copy, contents), read_one(name, weight, contents)):
            raise InputError(f"holds two networks, told apart by '{name[:60]}'; save the state_dict of one")


def _normalisation(
    fit: Fit,
    about: Description,
    contents: Contents,
    channels: int,
    given: tuple[tuple[float, ...] | None, tuple[float, ...] | None],
) -> Normalisation:
    """What the person says, else the file, else nothing."""
    mean, std = given
    if about.format:
        held: Normalisation | None = Normalisation(
            about.preprocess.get("mean"), about.preprocess.get("std"), "the file"
        )
    elif mean is not None and std is not None:
        held = None  # so that numbers that can't be used do no harm to the person who says better ones
    else:
        inside = "".join(fit.variant.removed)
        outside = {n: v for n, v in fit.found.numbers.items() if inside and not n.startswith(inside)}
        pairs = (*fit.variant.pairs, *pairs_among(outside))
        if not pairs and not says_itself(fit.network):
            pairs = pairs_among(fit.found.beside)
        held = read_pairs(pairs, lambda stored: elements(stored, contents), channels)
    if mean is None and std is None:
        return held or Normalisation(None, None, said_by(mean, std, fit.network), _silent_part(fit))
    held = held or Normalisation(None, None, "")
    unused = tuple(f"the file's own '{pair[0][:40]}' and '{pair[2][:40]}' are not used" for pair in fit.variant.pairs)
    return Normalisation(mean or held.mean, std or held.std, GIVEN, unused)


def _silent_part(fit: Fit) -> tuple[str, ...]:
    """A note on a part before the network that the file says nothing of."""
    if not any(prefix[:-1].isdecimal() and prefix != "0." for prefix in fit.variant.removed):
        return ()
    return ("something stands before the network, of which the file says nothing; if it normalises, say --mean, --std",)


def _untold(fit: Fit, about: Description) -> tuple[str, dict[str, list[Any]]]:
    """The arguments that are assumed, in words, and among them those whose value nothing in the file tells."""
    assumed = {name: value for name, value in defaults(fit.arch).items() if name not in fit.arch_args}
    words = f", assumed {', '.join(f'{name}={value!r}' for name, value in assumed.items())}" if assumed else ""
    untold = {} if about.arch else ARCHITECTURES[fit.arch].untold
    return words, {name: list(values) for name, values in untold.items() if name in assumed}


def _layout(fit: Fit, about: Description) -> str:
    removed = [f"prefix '{prefix[:40]}' removed" for prefix in fit.variant.removed]
    dtypes = {w.dtype for w in fit.variant.weights.values() if isinstance(w, TensorSpec) and w.is_floating_point}
    others = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes - {torch.float32})
    parts = [about.format or fit.found.says(), *removed, *fit.variant.said]
    return ", ".join(parts + [f"{name} made float32" for name in others])


def _evidence(fit: Fit, about: Description, wanted: _Wanted) -> str:
    if wanted.option or about.arch:
        return wanted.option or "named in the file"
    return f"names and shapes of {len(fit.variant.weights)} weights"


def _notes(fit: Fit, others: list[str]) -> tuple[str, ...]:
    if not others:
        return fit.variant.notes
    shown = ", ".join(f"--pick {label[:40]}" for label in others[:3]) + (", …" if len(others) > 3 else "")
    return (*fit.variant.notes, f"took the network under '{fit.found.label[:40]}'; the file has others: {shown}")


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
