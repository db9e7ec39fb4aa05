"""Which of the networks in a file it is, and which architecture its weights belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from coprobe.checkpoint.names import Variant, variants
from coprobe.checkpoint.payloads import Found, Weight
from coprobe.checkpoint.reader import UnreadableTensor
from coprobe.errors import InputError, unknown
from coprobe.models import ARCHITECTURES, Difference, build, mismatches, proposals, shape_of
from coprobe.models.zoo import SOURCES

#: More possible networks than these in one file are not looked at.
_CANDIDATES = 16
#: Up to so many differences, the architecture is probably the right one.
_FEW = 5
_SHOWN = 5
_ROOM = 110
_PATTERN = 30

Proposal = tuple[str, dict[str, Any], nn.Module]
#: Weights to the architectures that they might belong to: name, arguments, network (on the meta device, or built).
Proposer = Callable[[Mapping[str, Weight]], Iterator[Proposal]]


@dataclass(frozen=True, eq=False)
class Fit:
    """Weights beside an architecture.

    Attributes:
        found: where the weights are.
        variant: their names, unwrapped.
        arch: name of the architecture.
        arch_args: its arguments.
        network: on the meta device, or built for real.
        differences: why the weights do not fit; empty if they do.
        missing: names of the weights that the file lacks and that may be missing.
    """

    found: Found
    variant: Variant
    arch: str
    arch_args: dict[str, Any]
    network: nn.Module
    differences: list[Difference]
    missing: list[str]


@dataclass(frozen=True)
class Waivers:
    """fnmatch patterns of the weights that may be missing from a file, and of those that may be too many."""

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()

    def check_used(self, fit: Fit) -> None:
        """Raise `InputError` for a pattern that has matched nothing, since it may be misspelt."""
        used = {"missing": fit.missing, "unexpected": list(fit.variant.waived)}
        for kind, patterns in (("missing", self.missing), ("unexpected", self.unexpected)):
            for pattern in patterns:
                # Patterns may be written for the plain names, where the file has them behind prefixes.
                if not any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*{pattern}") for name in used[kind]):
                    raise InputError(f"--allow-{kind} '{pattern[:60]}' matches no {kind} weight; leave it out")


def compare(found: Found, variant: Variant, proposal: Proposal, waivers: Waivers) -> Fit:
    """Weights beside one architecture."""
    arch, arch_args, network = proposal
    differences = [Difference("unexpected", name, shape_of(weight)) for name, weight in variant.strangers.items()]
    missing: list[Difference] = []
    for difference in mismatches(network, variant.weights):
        waived = difference.kind == "missing" and any(fnmatchcase(difference.name, p) for p in waivers.missing)
        (missing if waived else differences).append(difference)
    return Fit(found, variant, arch, arch_args, network, differences, [difference.name for difference in missing])


def nearest(found: Found, propose: Proposer, waivers: Waivers) -> Fit | None:
    """The first unwrapping and architecture that fit, else those that differ least; None if nothing was proposed."""
    best = None
    for variant in variants(found.weights, waivers.unexpected):
        for proposal in propose(variant.weights):
            fit = compare(found, variant, proposal, waivers)
            if not fit.differences:
                return fit
            if best is None or len(fit.differences) < len(best.differences):
                best = fit
    return best


def choose(
    candidates: list[Found], propose: Proposer, waivers: Waivers, *, pick: str | None, named: bool
) -> tuple[Fit, list[str]]:
    """The network of a file that is meant, and the labels of the others that `pick` could name.

    Without `pick`, networks under the usual keys come before others, and those before running averages.

    Args:
        candidates: what may be a network.
        propose: weights to the architectures that they might belong to.
        waivers: which weights may be missing or too many.
        pick: its key, or the way to it with dots; None decides.
        named: whether `propose` knows one architecture only, for the error.

    Raises:
        InputError: none fits, several are equally good, or `pick` names none.
    """
    candidates = (_picked(candidates, pick) if pick is not None else candidates)[:_CANDIDATES]
    best: Fit | None = None
    refused: InputError | None = None
    for tier in sorted({found.tier for found in candidates}):
        fits = []
        for found in candidates:
            try:
                fit = nearest(found, propose, waivers) if found.tier == tier else None
            except InputError as error:  # another one may fit
                refused = refused or error
                continue
            fits += [fit] if fit else []
        good = _distinct([fit for fit in fits if not fit.differences])
        if len(good) > 1:
            labels = [fit.found.label for fit in good]
            shown = ", ".join(label[:40] for label in labels[:_SHOWN])
            raise InputError(f"holds {len(good)} networks ({shown}); choose one, as in --pick {labels[0][:40]}")
        if good:
            return good[0], [found.label for found in candidates if _is_another(found, good[0].found)]
        best = min([*fits, *([best] if best else [])], key=lambda fit: len(fit.differences), default=None)
    if refused is not None:
        raise refused
    for name, weight in max(candidates, key=lambda found: found.size).weights.items():
        if isinstance(weight, UnreadableTensor):
            raise InputError(f"weight '{name[:60]}' is no plain tensor: it {weight.reason}; save a dense state_dict")
    raise InputError(_differs(best) if named and best is not None else _unknown(candidates, best))


def _is_another(found: Found, chosen: Found) -> bool:
    """Whether `found` is as large as the chosen network, and not the same."""
    return (
        2 * found.size > chosen.size and 2 * len(found.weights) > len(chosen.weights) and not found.same_weights(chosen)
    )


def _picked(candidates: list[Found], pick: str) -> list[Found]:
    picked = [f for f in candidates if f.label == pick] or [f for f in candidates if pick in f.keys]
    if not picked:
        raise unknown("network in the file", pick[:60], [found.label[:60] for found in candidates])
    return picked


def _distinct(fits: list[Fit]) -> list[Fit]:
    """Without those whose weights are another one's under a second name."""
    distinct: list[Fit] = []
    for fit in fits:
        if not any(fit.found.same_weights(other.found) for other in distinct):
            distinct.append(fit)
    return distinct


def _differs(fit: Fit) -> str:
    count = len(fit.differences)
    option = "--arch" if fit.arch in ARCHITECTURES or fit.arch.partition(":")[0] in SOURCES else "--model"
    remedy = _waiver(fit) + f"name another {option} or its {option}-arg"
    return f"{count} weights don't fit {fit.arch} ({listed(fit.differences)}); {remedy}"


def _waiver(fit: Fit) -> str:
    """The option that would do without a few missing or unexpected weights; empty if it is more than that."""
    kinds = {difference.kind for difference in fit.differences}
    if len(fit.differences) > _FEW or kinds not in ({"missing"}, {"unexpected"}):
        return ""
    name = fit.differences[0].name
    return f"--allow-{kinds.pop()} '{name if len(name) <= _PATTERN else f'{name[: _PATTERN - 1]}*'}' does without, or "


def _unknown(candidates: list[Found], best: Fit | None) -> str:
    """Why the weights belong to no known architecture, and how to say which it is."""
    remedy = "name it with --arch or --model"
    found = max(candidates, key=lambda found: found.size)
    others = [other for other in candidates if other is not found and 2 * other.size > found.size]
    if others:
        remedy += f", or another network in the file with --pick {others[-1].label[:30]}"
    if best is not None:
        count, shown = len(best.differences), listed(best.differences, _ROOM - 50)
        closest = f"nearest is {best.arch}, where {count} differ ({shown})"
        return f"the weights fit no known architecture: {closest}; {_waiver(best)}{remedy}"
    first = [f"{name[:40]} {shape_of(w)}" for name, w in found.weights.items()]
    return f"the {len(first)} weights fit no known architecture ({listed(first, _ROOM - 50)}); {remedy}"


def listed(items: Sequence[object], room: int = _ROOM) -> str:
    """The first few items that have room, and that there are more."""
    shown: list[str] = []
    for item in map(str, items[:_SHOWN]):
        if shown and len(", ".join([*shown, item])) > room:
            break
        shown.append(item)
    return ", ".join(shown) + (", …" if len(shown) < len(items) else "")


# Proposers.


def any_known(weights: Mapping[str, Weight]) -> Iterator[Proposal]:
    """Every architecture of ours that finds its first and last layer, then torchvision's with about as many weights."""
    from coprobe.models.zoo import zoo_proposals

    yield from proposals(weights)
    yield from zoo_proposals(weights)


def one_architecture(arch: str, arch_args: dict[str, Any], *, read: bool) -> Proposer:
    """One of ours; with `read`, the arguments that are not given are read off the weights."""
    read_args = ARCHITECTURES[arch].read_args

    def propose(weights: Mapping[str, Weight]) -> Iterator[Proposal]:
        try:
            whole = {**(read_args(weights) if read else {}), **arch_args}
        except LookupError:  # its first or last layer is not there; the comparison says so
            whole = arch_args
        yield arch, whole, _on_meta(arch, whole)

    return propose


def given_network(arch: str, arch_args: dict[str, Any], network: nn.Module) -> Proposer:
    """A network that the person names, built already."""

    def propose(weights: Mapping[str, Weight]) -> Iterator[Proposal]:
        yield arch, arch_args, network

    return propose


def zoo(arch: str, arch_args: dict[str, Any], *, on_meta: bool = False) -> nn.Module:
    """A network of a library, on the meta device if that is asked for and possible.

    What a file does not give it is the same each time.
    """
    from coprobe.models.zoo import zoo_network

    if on_meta:
        with suppress(InputError), torch.device("meta"):  # some builders read numbers off their own tensors
            return zoo_network(arch, **arch_args)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return zoo_network(arch, **arch_args)


def with_arguments(fit: Fit, given: dict[str, Any], waivers: Waivers) -> Fit:
    """A fit of ours, with arguments that the person adds or changes.

    Raises:
        InputError: with these arguments the weights don't fit.
    """
    if not given:
        return fit
    arch_args = {**fit.arch_args, **given}
    make = _on_meta if fit.arch in ARCHITECTURES else zoo
    changed = compare(fit.found, fit.variant, (fit.arch, arch_args, make(fit.arch, arch_args)), waivers)
    if changed.differences:
        raise InputError(_differs(changed))
    return changed


def materialised(fit: Fit, *, as_stored: bool = False) -> Fit:
    """With a real network where the file does not give all weights or buffers, so that the others have values.

    With `as_stored` a library's network may stay on the meta device, if the file gives all that it has.
    """
    is_ours = fit.arch in ARCHITECTURES
    if as_stored and not fit.missing and fit.network.state_dict().keys() >= dict(fit.network.named_buffers()).keys():
        return fit
    # libraries' networks may have buffers that no file holds
    needed = fit.missing if is_ours else fit.arch.partition(":")[0] in SOURCES
    if not needed or not any(parameter.is_meta for parameter in fit.network.parameters()):
        return fit
    if not is_ours:
        return replace(fit, network=zoo(fit.arch, fit.arch_args))
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return replace(fit, network=build(fit.arch, **fit.arch_args))


def _on_meta(arch: str, arch_args: dict[str, Any]) -> nn.Module:
    """A network that takes no memory, whatever size a file or --arch-arg asks for."""
    try:
        with torch.device("meta"):
            return build(arch, **arch_args)
    except (RuntimeError, TypeError, OverflowError):
        raise InputError(f"no {arch} can have the arguments {str(arch_args)[:100]}; give others") from None
