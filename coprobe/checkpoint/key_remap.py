"""From the keys of a state dict in a file to those of a network, by taking off wrappers step by step."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from coprobe.checkpoint.candidates import Weight
from coprobe.checkpoint.normalisation import Pair, pairs_in
from coprobe.checkpoint.reparametrised import Reparametrised, find_parts
from coprobe.errors import InputError

#: More than any file seen needs, and an end for keys of a thousand dots.
_MOST_STEPS = 24
#: What wrappers of torch put anywhere into a key.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_UNUSED = "sub_block1."
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)")
_MOST_DOTS = 3
#: How layers of torch call what may be a single number.
_SINGLE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, eq=False)
class KeyRemap:
    """The weights of a candidate under keys that have been unwrapped so far.

    Attributes:
        weights: the present keys to weights.
        originals: the present keys to those in the file.
        prefixes: what was taken off the front of all keys, outermost first.
        steps: what else was done, in words.
        pairs: the numbers of normalisations, set aside.
        copies: second copies of `weights`, set aside: (key in the file, the copy, the weight).
        allowed: keys in the file of weights that a pattern allowed to leave out.
        unexpected: weights without the prefix of most others, under their keys in the file.
        notes: what a person should know, a sentence each.
    """

    weights: dict[str, Weight]
    originals: dict[str, str]
    prefixes: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    copies: tuple[tuple[str, Weight, Weight], ...] = ()
    allowed: tuple[str, ...] = ()
    unexpected: dict[str, Weight] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def key_remaps(weights: Mapping[str, Weight], allowed: Sequence[str] = ()) -> Iterator[KeyRemap]:
    """`weights` as they are, then ever more unwrapped: wrappers, normalisers and copies taken off one by one.

    A network that has a part of such a name itself thus gets it: its keys fit before the part is taken off.

    Args:
        weights: keys to weights, as in the file.
        allowed: fnmatch patterns of keys that may be left out.

    Raises:
        InputError: two keys become equal.
    """
    steps: tuple[Callable[[KeyRemap], KeyRemap | None], ...] = (
        _without_prefix,
        _without_average_count,
        _without_normaliser,
        _without_copies,
        lambda remap: _without_allowed(remap, allowed),
        _without_inner_wrappers,
        _folded,
        _without_unused_block,
        _in_our_names,
        _in_present_names,
        _without_counters,
        _without_unexpected,
    )
    remap: KeyRemap | None = KeyRemap(dict(weights), {key: key for key in weights})
    for _ in range(_MOST_STEPS):
        if remap is None or not remap.weights:
            return
        yield remap
        remap = next((unwrapped for step in steps if (unwrapped := step(remap))), None)


def renamed(remap: KeyRemap, names: Mapping[str, str], step: str) -> KeyRemap:
    """With other keys for some weights, and `step` said about it; raises `InputError` if two become equal."""
    return replace(_renamed(remap, lambda key: names.get(key, key)), steps=(*remap.steps, step))


def _renamed(remap: KeyRemap, new_key: Callable[[str], str]) -> KeyRemap:
    originals: dict[str, str] = {}
    for key, original in remap.originals.items():
        new = new_key(key)
        if new in originals:
            raise InputError(
                f"'{originals[new][:60]}' and '{original[:60]}' are the same weight once wrappers' prefixes are off; "
                "save the state_dict of one network"
            )
        originals[new] = original
    return replace(remap, weights={new_key(key): w for key, w in remap.weights.items()}, originals=originals)


def _without(remap: KeyRemap, keys: set[str]) -> KeyRemap:
    return replace(
        remap,
        weights={key: weight for key, weight in remap.weights.items() if key not in keys},
        originals={key: original for key, original in remap.originals.items() if key not in keys},
    )


def _without_prefix(remap: KeyRemap) -> KeyRemap | None:
    """Without the first component, if it is that of all keys."""
    first, dot, _ = next(iter(remap.weights)).partition(".")
    prefix = first + dot
    if not dot or not all(key.startswith(prefix) and key != prefix for key in remap.weights):
        return None
    return replace(_renamed(remap, lambda key: key.removeprefix(prefix)), prefixes=(*remap.prefixes, prefix))


def _without_average_count(remap: KeyRemap) -> KeyRemap | None:
    """Without the counter that torch's `AveragedModel` keeps beside the network that it averages."""
    averaged = [key for key in remap.weights if key != "n_averaged"]
    if len(averaged) == len(remap.weights) or not all(key.startswith("module.") for key in averaged):
        return None
    return replace(_without(remap, {"n_averaged"}), steps=(*remap.steps, "running average of a network"))


def _without_normaliser(remap: KeyRemap) -> KeyRemap | None:
    """With means and standard deviations of images set aside; a network's own would have fitted before."""
    pairs = [pair for pair in pairs_in(remap.weights) if pair[0].count(".") <= _MOST_DOTS]
    if not pairs or len(remap.weights) == 2 * len(pairs):
        return None
    aside = {key for mean, _, std, _ in pairs for key in (mean, std)}
    return replace(_without(remap, aside), pairs=(*remap.pairs, *pairs))


def _without_copies(remap: KeyRemap) -> KeyRemap | None:
    """Without the second keys of weights, as in `attacker.model.conv1.weight` beside `model.conv1.weight`."""
    copies = {}
    for key, weight in remap.weights.items():
        short = key.partition(".")[2]
        if short in remap.weights and remap.weights[short].shape == weight.shape:
            copies[key] = short
    if not copies:
        return None
    pairs = ((remap.originals[key], remap.weights[key], remap.weights[short]) for key, short in copies.items())
    shown = next(iter(copies))
    prefix = shown.removesuffix(copies[shown])
    return replace(
        _without(remap, set(copies)),
        copies=(*remap.copies, *pairs),
        steps=(*remap.steps, f"copies under '{prefix[:60]}' left out"),
    )


def _without_allowed(remap: KeyRemap, patterns: Sequence[str]) -> KeyRemap | None:
    """Without the keys that a pattern of the person matches, as they are now or as in the file."""
    matched = {
        key
        for key, original in remap.originals.items()
        if any(fnmatchcase(key, pattern) or fnmatchcase(original, pattern) for pattern in patterns)
    }
    if not matched:
        return None
    originals = tuple(remap.originals[key] for key in sorted(matched))
    return replace(_without(remap, matched), allowed=(*remap.allowed, *originals))


def _without_inner_wrappers(remap: KeyRemap) -> KeyRemap | None:
    """`features.module.0.weight` is `features.0.weight` where a part of the network was wrapped."""

    def unwrapped(key: str) -> str:
        return ".".join(part for part in key.split(".") if part not in _WRAPPERS)

    if all(unwrapped(key) == key for key in remap.weights):
        return None
    return replace(_renamed(remap, unwrapped), steps=(*remap.steps, "wrappers inside of names removed"))


def _folded(remap: KeyRemap) -> KeyRemap | None:
    """With weight norm, spectral norm and pruning masks folded into weights; a network that has them fitted before."""
    found = find_parts(remap.weights)
    if not found:
        return None
    place = {names[0]: (whole, weight) for whole, (weight, names) in found.items()}
    parts = {name for _, names in found.values() for name in names}
    weights: dict[str, Weight] = {}
    for name, weight in remap.weights.items():
        if name in place:
            weights[place[name][0]] = place[name][1]
        elif name not in parts:
            weights[name] = weight
    originals = {name: remap.originals.get(name, name) for name in weights}
    kinds = Counter(weight.kind for weight, _ in found.values() if isinstance(weight, Reparametrised))
    steps = tuple(f"{kind} of {count} weights folded" for kind, count in kinds.items())
    return replace(remap, weights=weights, originals=originals, steps=(*remap.steps, *steps))


def _without_unused_block(remap: KeyRemap) -> KeyRemap | None:
    """Without the second first block of TRADES' Wide ResNet, which its code makes and never uses."""
    unused = {key for key in remap.weights if key.startswith(_UNUSED)}
    for key in unused:
        used = remap.weights.get(key.removeprefix("sub_"))
        if used is None or used.shape != remap.weights[key].shape:
            return None
    if not unused:
        return None
    note = f"left out {len(unused)} weights of '{_UNUSED}*', which TRADES' code creates and never uses"
    return replace(_without(remap, unused), notes=(*remap.notes, note))


def _without_counters(remap: KeyRemap) -> KeyRemap | None:
    """Without single numbers that no layer of torch has, as counters of operations; they have to be allowed."""
    counters = {
        key: weight
        for key, weight in remap.weights.items()
        if weight.shape.numel() == 1 and key.rpartition(".")[2] not in _SINGLE
    }
    if not counters or len(counters) == len(remap.weights):
        return None
    named = {remap.originals[key]: weight for key, weight in counters.items()}
    return replace(_without(remap, set(counters)), unexpected={**remap.unexpected, **named})


def _without_unexpected(remap: KeyRemap) -> KeyRemap | None:
    """Only the weights under the commonest prefix; the others are unexpected, and have to be allowed."""
    counts = Counter(key.partition(".")[0] for key in remap.weights)
    (first, count), *others = counts.most_common()
    if not others or 2 * count < len(remap.weights):
        return None
    unexpected = {key: weight for key, weight in remap.weights.items() if key.partition(".")[0] != first}
    named = {remap.originals[key]: weight for key, weight in unexpected.items()}
    return replace(_without(remap, set(unexpected)), unexpected={**remap.unexpected, **named})


def _in_our_names(remap: KeyRemap) -> KeyRemap | None:
    """Torchvision's names of a residual network for small images, in those of the public CIFAR repositories."""
    stem = remap.weights.get("conv1.weight")
    if stem is None or tuple(stem.shape[2:]) != (3, 3) or "layer3.0.conv1.weight" not in remap.weights:
        return None

    def ours(key: str) -> str:
        head, dot, rest = key.partition(".")
        return f"linear{dot}{rest}" if head == "fc" else key.replace(".downsample.", ".shortcut.")

    if all(ours(key) == key for key in remap.weights):
        return None
    step = "torchvision's names ('fc', 'downsample') over a 3×3 stem"
    return replace(_renamed(remap, ours), steps=(*remap.steps, step))


def _in_present_names(remap: KeyRemap) -> KeyRemap | None:
    """DenseNet's names of today, where the file has those of torchvision before 0.4, as its official weights do."""
    names = {key: f"{match[1]}{match[2]}" for key in remap.weights if (match := _OLD_DENSENET.fullmatch(key))}
    return renamed(remap, names, "DenseNet's old names ('norm.1') in those of today") if names else None
