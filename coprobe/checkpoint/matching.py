"""Which candidate of a file is meant, and which architecture its weights match."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from coprobe.checkpoint.candidates import Candidate, Weight, find_candidates, outline, place
from coprobe.checkpoint.key_remap import KeyRemap, key_remaps, renamed
from coprobe.checkpoint.misfit import ROOM, MisfitError, differs, fits_none, listed
from coprobe.checkpoint.reader import UnreadableTensor
from coprobe.errors import InputError, unknown
from coprobe.models import ARCHITECTURES, Difference, build, defaults, mismatches, proposals, shape_of
from coprobe.models.foreign import quiet
from coprobe.models.public import SOURCES, public_network, public_proposals

#: How many candidates of one file are looked at.
_CANDIDATES = 16

#: An architecture: its name, its arguments, and a network, on the meta device or built.
Proposal = tuple[str, dict[str, Any], nn.Module]
#: From weights to the architectures that they may belong to.
Proposer = Callable[[Mapping[str, Weight]], Iterable[Proposal]]


@dataclass(frozen=True)
class AllowedMismatch:
    """fnmatch patterns of the weights that a file may lack (`missing`), and of those to leave out (`unexpected`)."""

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Match:
    """The weights of a candidate beside an architecture.

    Attributes:
        candidate: where in the file the weights are.
        remap: their keys, unwrapped.
        arch: name of the architecture.
        arch_args: its arguments.
        network: on the meta device, or built for real.
        differences: why the weights do not fit; empty if they do.
        missing: keys of the weights that the file lacks and that may be missing.
    """

    candidate: Candidate
    remap: KeyRemap
    arch: str
    arch_args: dict[str, Any]
    network: nn.Module
    differences: list[Difference]
    missing: list[str]

    @property
    def is_ours(self) -> bool:
        """Whether the architecture is one of `ARCHITECTURES`."""
        return self.arch in ARCHITECTURES

    @property
    def assumed(self) -> dict[str, Any]:
        """The arguments of an architecture of ours that have their default values, since nothing says others."""
        known = defaults(self.arch) if self.is_ours else {}
        return {name: value for name, value in known.items() if name not in self.arch_args}

    @property
    def undecided(self) -> dict[str, list[Any]]:
        """Of those that are assumed, the ones that names and shapes can't tell, with the values they may have."""
        undecided = ARCHITECTURES[self.arch].undecided if self.is_ours else {}
        return {name: list(values) for name, values in undecided.items() if name in self.assumed}

    @property
    def allowed_mismatch(self) -> dict[str, list[str]]:
        """The keys that were allowed to be `missing` or `unexpected`."""
        found = {"missing": self.missing, "unexpected": list(self.remap.allowed)}
        return {kind: keys for kind, keys in found.items() if keys}

    def check_all_used(self, allowed: AllowedMismatch) -> None:
        """Raise `InputError` for a pattern that has matched nothing, since it may be misspelt."""
        for kind, patterns in (("missing", allowed.missing), ("unexpected", allowed.unexpected)):
            keys = self.allowed_mismatch.get(kind, [])
            for pattern in patterns:
                # Patterns may be written for the plain keys, where the file has them behind prefixes.
                if not any(fnmatchcase(key, pattern) or fnmatchcase(key, f"*{pattern}") for key in keys):
                    raise InputError(f"--allow-{kind} '{pattern[:60]}' matches no {kind} weight; leave it out")


def compare(candidate: Candidate, remap: KeyRemap, proposal: Proposal, allowed: AllowedMismatch) -> Match:
    """The weights of a candidate beside one architecture."""
    differences = [Difference("unexpected", key, shape_of(weight)) for key, weight in remap.unexpected.items()]
    missing: list[str] = []
    for difference in mismatches(proposal[2], remap.weights):
        if difference.kind == "missing" and any(fnmatchcase(difference.name, p) for p in allowed.missing):
            missing.append(difference.name)
        else:
            differences.append(difference)
    return Match(candidate, remap, *proposal, differences, missing)


def nearest(candidate: Candidate, propose: Proposer, allowed: AllowedMismatch) -> Match | None:
    """The first remap and architecture that match, else those that differ least; None if nothing was proposed."""
    best = None
    for remap in key_remaps(candidate.weights, allowed.unexpected):
        for proposal in propose(remap.weights):
            match = compare(candidate, remap, proposal, allowed)
            if not match.differences:
                return match
            if best is None or len(match.differences) < len(best.differences):
                best = match
    return (_as_it_renames(best, allowed) or _under_prefix(best, allowed) or best) if best else None


def _under_prefix(match: Match, allowed: AllowedMismatch) -> Match | None:
    """The match with a prefix before all names, if the network has each of them behind it; None if it has not."""
    own = set(match.network.state_dict())
    name = next(iter(match.remap.weights))
    for prefix in dict.fromkeys(known.removesuffix(name) for known in own if known.endswith(f".{name}")):
        if all(prefix + key in own for key in match.remap.weights):
            names = {key: prefix + key for key in match.remap.weights}
            remap = renamed(match.remap, names, f"prefix '{prefix[:40]}' added")
            changed = compare(match.candidate, remap, (match.arch, match.arch_args, match.network), allowed)
            return changed if len(changed.differences) < len(match.differences) else None
    return None


def _as_it_renames(match: Match, allowed: AllowedMismatch) -> Match | None:
    """The match under the names that the network's own `load_state_dict` gives to weights; None if it doesn't fit.

    So torchvision's and timm's networks take the official weights of their older versions. The network is shown tensors
    without numbers, by which its renaming is read off; a network that computes with them is not followed.
    """
    if {difference.kind for difference in match.differences} != {"missing", "unexpected"}:
        return None
    shown = {
        key: nn.Parameter(torch.empty(weight.shape, device="meta"), requires_grad=False)
        for key, weight in match.remap.weights.items()
    }
    try:
        with quiet():
            network = copy.deepcopy(match.network).to("meta")
            network.load_state_dict(dict(shown), strict=False, assign=True)
            held = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    except Exception:  # whatever a network says to weights that it wasn't made for
        return None
    names = {key: held[id(tensor)] for key, tensor in shown.items() if held.get(id(tensor), key) != key}
    if not names:
        return None
    remap = renamed(match.remap, names, "old names in those that the network gives them when it loads")
    changed = compare(match.candidate, remap, (match.arch, match.arch_args, match.network), allowed)
    return None if changed.differences else changed


def choose(payload: Any, propose: Proposer, allowed: AllowedMismatch, *, pick: str | None) -> tuple[Match, list[str]]:
    """The network of a file that is meant, and the labels of the others that `pick` could name.

    Without `pick`, networks under the usual keys come before others, and those before running averages.

    Args:
        payload: of the file.
        propose: from weights to the architectures that they may belong to.
        allowed: which weights may be missing or left out.
        pick: its key, or the way to it with dots; None decides.

    Raises:
        InputError: there is no network, none matches, several match equally well, or `pick` names none.
    """
    candidates = find_candidates(payload)
    if not candidates:
        raise InputError(f"holds no network ({outline(payload)}); save model.state_dict()")
    candidates = (_picked(candidates, pick) if pick is not None else candidates)[:_CANDIDATES]
    best: Match | None = None
    refused: InputError | None = None
    for tier in sorted({candidate.tier for candidate in candidates}):
        matches: list[Match] = []
        for candidate in candidates:
            try:
                match = nearest(candidate, propose, allowed) if candidate.tier == tier else None
            except InputError as error:  # another one may match
                refused = refused or error
                continue
            matches += [match] if match else []
        if good := _fitting(matches):
            return _only(good), [other.label for other in candidates if _is_another(other, good[0].candidate)]
        best = min([*matches, *([best] if best else [])], key=lambda match: len(match.differences), default=None)
    if refused is not None:
        raise refused
    largest = max(candidates, key=lambda candidate: candidate.size)
    if several := _networks_in(largest, propose, allowed):
        chosen = _only([match for match in several if match.candidate.tier == several[0].candidate.tier])
        return chosen, [match.candidate.label for match in several if match is not chosen]
    for key, weight in largest.weights.items():
        if isinstance(weight, UnreadableTensor):
            raise InputError(f"weight '{key[:60]}' is no plain tensor: it {weight.reason}; save a dense state_dict")
    said = fits_none(candidates, best) if propose is any_known or best is None else differs(best)
    raise MisfitError(said, best.candidate if best else largest, best)


def _fitting(matches: list[Match]) -> list[Match]:
    """Those without differences, each network once."""
    good: list[Match] = []
    for match in matches:
        if not match.differences and not any(match.candidate.is_same(other.candidate) for other in good):
            good.append(match)
    return good


def _only(good: list[Match]) -> Match:
    if len(good) > 1:
        labels = [match.candidate.label[:40] for match in good]
        raise InputError(f"holds {len(good)} networks ({', '.join(labels)}); choose one, as in --pick {labels[0]}")
    return good[0]


def _networks_in(candidate: Candidate, propose: Proposer, allowed: AllowedMismatch) -> list[Match]:
    """The networks that one state dict consists of (`student.`, `teacher.`), the likeliest first.

    Empty if it holds fewer than two.

    Raises:
        InputError: it holds two and more, which belong to none.
    """
    matches = []
    for part in candidate.parts()[:_CANDIDATES]:
        with suppress(InputError):  # another one may match
            matches.append(nearest(part, propose, allowed))
    good = _fitting([match for match in matches if match])
    if len(good) < 2:
        return []
    used = {place(weight) for match in good for weight in match.candidate.weights.values()}
    rest = [key for key, weight in candidate.weights.items() if place(weight) not in used]
    if any(not any(fnmatchcase(key, pattern) for pattern in allowed.unexpected) for key in rest):
        labels = ", ".join(match.candidate.label[:40] for match in good)
        raise InputError(
            f"holds {len(good)} networks ({labels}) and {len(rest)} other weights ({listed(rest, ROOM - 50)}); "
            f"choose one network, as in --pick {good[0].candidate.label[:40]}"
        )
    good = [replace(match, remap=replace(match.remap, allowed=(*match.remap.allowed, *rest))) for match in good]
    return sorted(good, key=lambda match: match.candidate.tier)


def _is_another(candidate: Candidate, chosen: Candidate) -> bool:
    """Whether it is a network about as large as the chosen one, and not the same."""
    if candidate is chosen or 2 * candidate.size <= chosen.size or 2 * len(candidate.weights) <= len(chosen.weights):
        return False
    return not candidate.is_same(chosen)


def _picked(candidates: list[Candidate], pick: str) -> list[Candidate]:
    picked = [c for c in candidates if c.label == pick] or [c for c in candidates if pick in c.keys]
    for candidate in [] if picked else candidates:
        own = f"{candidate.label}." if candidate.keys else ""
        part = candidate.part(pick.removeprefix(own))
        picked += [part] if part else [p for p in candidate.parts() if p.keys[-1] == pick]
    if not picked:
        raise unknown("network in the file", pick[:60], [candidate.label[:60] for candidate in candidates])
    return picked


# Proposers.


def any_known(weights: Mapping[str, Weight]) -> Iterator[Proposal]:
    """Every architecture of ours that finds its first and last layer, then torchvision's with about as many weights."""
    yield from proposals(weights)
    yield from public_proposals(weights)


def one_of_ours(arch: str, arch_args: dict[str, Any]) -> Proposer:
    """One architecture of ours; the arguments that are not given are read off the weights."""

    def propose(weights: Mapping[str, Weight]) -> list[Proposal]:
        try:
            whole = {**ARCHITECTURES[arch].read_args(weights), **arch_args}
        except LookupError:  # its first or last layer is not there; the comparison says so
            whole = arch_args
        return [(arch, whole, _on_meta(arch, whole))]

    return propose


@contextmanager
def seeded() -> Iterator[None]:
    """A block in which initial weights are the same each time; the caller's random numbers stay as they are."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def library_network(arch: str, arch_args: dict[str, Any], *, on_meta: bool = False) -> nn.Module:
    """A network of a library, the same each time; on the meta device if that is asked for and possible."""
    if on_meta:
        with suppress(InputError), torch.device("meta"):  # some builders read numbers off their own tensors
            return public_network(arch, **arch_args)
    with seeded():
        return public_network(arch, **arch_args)


def with_arguments(match: Match, given: dict[str, Any], allowed: AllowedMismatch) -> Match:
    """A match with arguments of its architecture that the person adds or changes.

    Raises:
        InputError: with these arguments the weights don't fit.
    """
    arch_args = {**match.arch_args, **given}
    make = _on_meta if match.is_ours else library_network
    changed = compare(match.candidate, match.remap, (match.arch, arch_args, make(match.arch, arch_args)), allowed)
    if changed.differences:
        raise MisfitError(differs(changed), changed.candidate, changed)
    return changed


def materialised(match: Match, *, as_stored: bool = False) -> Match:
    """With a real network where the file does not give all weights or buffers, so that the others have values.

    With `as_stored` a library's network may stay on the meta device, if the file gives all that it has.
    """
    network = match.network
    if as_stored and not match.missing and network.state_dict().keys() >= dict(network.named_buffers()).keys():
        return match
    # libraries' networks may have buffers that no file holds
    needed = match.missing if match.is_ours else match.arch.partition(":")[0] in SOURCES
    if not needed or not any(parameter.is_meta for parameter in network.parameters()):
        return match
    if not match.is_ours:
        return replace(match, network=library_network(match.arch, match.arch_args))
    with seeded():
        return replace(match, network=build(match.arch, **match.arch_args))


def _on_meta(arch: str, arch_args: dict[str, Any]) -> nn.Module:
    """A network that takes no memory, whatever size a file or --arch-arg asks for."""
    try:
        with torch.device("meta"):
            return build(arch, **arch_args)
    except (RuntimeError, TypeError, OverflowError):
        raise InputError(f"no {arch} can have the arguments {str(arch_args)[:100]}; give others") from None
