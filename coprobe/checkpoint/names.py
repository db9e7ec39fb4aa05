"""The names of weights, unwrapped step by step, until they are those of a network without its wrappers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from coprobe.checkpoint.payloads import PAIRS, Weight
from coprobe.checkpoint.reader import TensorSpec
from coprobe.errors import InputError

#: Enough for every wrapper that was seen, and an end for names of a thousand dots.
_STEPS_TAKEN = 24
#: Names that wrappers of torch put anywhere into a path.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_CHANNELS = 16  # more than any image has
_UNUSED = "sub_block1."


@dataclass(frozen=True, eq=False)
class Variant:
    """Weights under names that have been unwrapped so far.

    Attributes:
        weights: the present names to weights.
        originals: the present names to those in the file.
        removed: the prefixes that were taken off, outermost first.
        said: what else was done, in words.
        pairs: numbers of normalisations that were set aside: (name, mean, name, std).
        copies: further copies of weights that are among `weights`: (name in the file, the copy, the weight).
        waived: names in the file of the weights that a pattern allowed to leave out.
        strangers: weights without the prefix of most others, under their names in the file; they are unexpected.
        notes: sentences for the person.
    """

    weights: dict[str, Weight]
    originals: dict[str, str]
    removed: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    pairs: tuple[tuple[str, Weight, str, Weight], ...] = ()
    copies: tuple[tuple[str, Weight, Weight], ...] = ()
    waived: tuple[str, ...] = ()
    strangers: dict[str, Weight] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def variants(weights: Mapping[str, Weight], allowed: Sequence[str] = ()) -> Iterator[Variant]:
    """`weights` as they are, then ever more unwrapped: wrappers, normalisers and copies taken off one by one.

    A network that has a part of such a name itself thus gets it: its names fit earlier.

    Args:
        weights: names to weights, as in the file.
        allowed: fnmatch patterns of names that may be left out.

    Raises:
        InputError: two names become equal.
    """
    steps: tuple[Callable[[Variant], Variant | None], ...] = (
        _without_prefix,
        _without_average_count,
        _without_normaliser,
        _without_copies,
        lambda variant: _without_allowed(variant, allowed),
        _without_inner_wrappers,
        _without_unused_block,
        _in_our_names,
        _without_strangers,
    )
    variant: Variant | None = Variant(dict(weights), {name: name for name in weights})
    for _ in range(_STEPS_TAKEN):
        if variant is None or not variant.weights:
            return
        yield variant
        variant = next((unwrapped for step in steps if (unwrapped := step(variant))), None)


def _renamed(variant: Variant, new_name: Callable[[str], str]) -> Variant:
    originals: dict[str, str] = {}
    for name, original in variant.originals.items():
        new = new_name(name)
        if new in originals:
            raise InputError(
                f"'{originals[new][:60]}' and '{original[:60]}' are the same weight once wrappers' prefixes are off; "
                "save the state_dict of one network"
            )
        originals[new] = original
    return replace(variant, weights={new_name(n): w for n, w in variant.weights.items()}, originals=originals)


def _without(variant: Variant, names: set[str]) -> Variant:
    return replace(
        variant,
        weights={name: weight for name, weight in variant.weights.items() if name not in names},
        originals={name: original for name, original in variant.originals.items() if name not in names},
    )


def _without_prefix(variant: Variant) -> Variant | None:
    """The first component off, if all names have the same."""
    first, dot, _ = next(iter(variant.weights)).partition(".")
    prefix = first + dot
    if not dot or not all(name.startswith(prefix) and name != prefix for name in variant.weights):
        return None
    return replace(
        _renamed(variant, lambda name: name.removeprefix(prefix)),
        removed=(*variant.removed, prefix),
    )


def _without_average_count(variant: Variant) -> Variant | None:
    """Without the counter that torch's `AveragedModel` keeps beside the network that it averages."""
    averaged = [name for name in variant.weights if name != "n_averaged"]
    if len(averaged) == len(variant.weights) or not all(name.startswith("module.") for name in averaged):
        return None
    return replace(_without(variant, {"n_averaged"}), said=(*variant.said, "running average of a network"))


def _without_normaliser(variant: Variant) -> Variant | None:
    """Means and standard deviations of the image's channels aside; a network's own would have fitted before."""
    pairs = []
    for name, mean in variant.weights.items():
        prefix, dot, leaf = name.rpartition(".")
        partner = next((std for word, std in PAIRS if word == leaf), None)
        std = variant.weights.get(f"{prefix}{dot}{partner}")
        if std is not None and prefix.count(".") <= 2 and _per_channel(mean) and _per_channel(std):
            pairs.append((name, mean, f"{prefix}{dot}{partner}", std))
    if not pairs or len(variant.weights) == 2 * len(pairs):
        return None
    aside = {name for pair in pairs for name in (pair[0], pair[2])}
    return replace(_without(variant, aside), pairs=(*variant.pairs, *pairs))


def _per_channel(weight: Weight) -> bool:
    if not isinstance(weight, TensorSpec) or not weight.is_floating_point:
        return False
    return 1 <= weight.shape.numel() <= _CHANNELS and sum(side > 1 for side in weight.shape) <= 1


def _without_copies(variant: Variant) -> Variant | None:
    """The second names of weights off, as in `attacker.model.conv1.weight` beside `model.conv1.weight`."""
    copies = {}
    for name, weight in variant.weights.items():
        short = name.partition(".")[2]
        if short in variant.weights and variant.weights[short].shape == weight.shape:
            copies[name] = short
    if not copies:
        return None
    pairs = ((variant.originals[n], variant.weights[n], variant.weights[short]) for n, short in copies.items())
    shown = next(iter(copies))
    removed = shown.removesuffix(copies[shown])
    return replace(
        _without(variant, set(copies)),
        copies=(*variant.copies, *pairs),
        said=(*variant.said, f"copies under '{removed[:60]}' left out"),
    )


def _without_allowed(variant: Variant, patterns: Sequence[str]) -> Variant | None:
    """Without the names that a pattern of the person matches, as they are now or as in the file."""
    waived = {
        name
        for name, original in variant.originals.items()
        if any(fnmatchcase(name, pattern) or fnmatchcase(original, pattern) for pattern in patterns)
    }
    if not waived:
        return None
    originals = tuple(variant.originals[name] for name in sorted(waived))
    return replace(_without(variant, waived), waived=(*variant.waived, *originals))


def _without_inner_wrappers(variant: Variant) -> Variant | None:
    """`features.module.0.weight` is `features.0.weight` where a part of the network was wrapped."""

    def unwrapped(name: str) -> str:
        return ".".join(part for part in name.split(".") if part not in _WRAPPERS)

    if all(unwrapped(name) == name for name in variant.weights):
        return None
    return replace(_renamed(variant, unwrapped), said=(*variant.said, "wrappers inside of names removed"))


def _without_unused_block(variant: Variant) -> Variant | None:
    """Without the second first block of TRADES' Wide ResNet, which its code makes and never uses."""
    unused = {name for name in variant.weights if name.startswith(_UNUSED)}
    for name in unused:
        used = variant.weights.get(name.removeprefix("sub_"))
        if used is None or used.shape != variant.weights[name].shape:
            return None
    if not unused:
        return None
    note = f"left out {len(unused)} weights of '{_UNUSED}*', which TRADES' code creates and never uses"
    return replace(_without(variant, unused), notes=(*variant.notes, note))


def _without_strangers(variant: Variant) -> Variant | None:
    """Only the weights under the commonest prefix: a network, with something beside it that has to be named."""
    counts = Counter(name.partition(".")[0] for name in variant.weights)
    (first, count), *others = counts.most_common()
    if not others or 2 * count < len(variant.weights):
        return None
    strangers = {name: weight for name, weight in variant.weights.items() if name.partition(".")[0] != first}
    named = {variant.originals[name]: weight for name, weight in strangers.items()}
    return replace(_without(variant, set(strangers)), strangers={**variant.strangers, **named})


def _in_our_names(variant: Variant) -> Variant | None:
    """Names of torchvision for a residual network for small images, in those of the public CIFAR repositories."""
    stem = variant.weights.get("conv1.weight")
    if stem is None or tuple(stem.shape[2:]) != (3, 3) or "layer4.0.conv1.weight" not in variant.weights:
        return None

    def ours(name: str) -> str:
        head, dot, rest = name.partition(".")
        return f"linear{dot}{rest}" if head == "fc" else name.replace(".downsample.", ".shortcut.")

    if all(ours(name) == name for name in variant.weights):
        return None
    said = "torchvision's names ('fc', 'downsample') over a 3×3 stem: assumed stride 1 and no pooling after it"
    return replace(_renamed(variant, ours), said=(*variant.said, said))
