"""Where in a file networks may be: state dicts under whatever keys, and modules that were pickled whole.

Every search is bounded, since what a file holds may be cyclic, very large or very deep.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coprobe.checkpoint.normalisation import STD_OF
from coprobe.checkpoint.reader.values import OpaqueObject, TensorSpec, UnreadableTensor
from coprobe.checkpoint.reparametrised import Reparametrised
from coprobe.errors import InputError
from coprobe.models import shape_of

#: Keys under which public code keeps the network that was trained, in its usual state.
USUAL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
    "model_state",
    "net_state_dict",
    "network_state_dict",
    "classifier",
    "state",
    "parameters",
)
#: Parts of the keys under which running averages of a network stand beside it.
_AVERAGES = ("ema", "swa", "averag", "teacher", "shadow")
#: Words in the keys under which training code keeps what is no network; `optimal` and `sample` are other words.
_NO_NETWORKS = re.compile(
    r"(?<![a-z])(optim|optimi[sz]ers?|sched|schedulers?|scalers?|amp|callbacks?|loops|rng)(?![a-z])", re.IGNORECASE
)
#: Names of values that may be the numbers of a normalisation.
_NUMBERS = (*STD_OF, *STD_OF.values())
_CONTAINERS = dict | list | tuple | OpaqueObject
_CONTAINERS_SEEN, _DEPTH = 50_000, 6
#: A part of a state dict that has fewer weights is no network.
_FEWEST = 4
_MODULES_SEEN, _MODULE_DEPTH = 20_000, 60

Weight = TensorSpec | UnreadableTensor | Reparametrised


@dataclass(frozen=True, eq=False)
class Candidate:
    """What may be the network of a file.

    Attributes:
        keys: the way to it from the top of the file; empty for the top itself.
        weights: its tensors under the names that the file gives them.
        numbers: plain values and hidden buffers inside a pickled module that may be those of a normalisation.
        beside: values beside the weights that may be.
        class_name: of the module, if one was pickled whole.
    """

    keys: tuple[str, ...]
    weights: dict[str, Weight]
    numbers: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    class_name: str = ""

    @property
    def label(self) -> str:
        """How `--pick` names it."""
        return ".".join(self.keys) or "top"

    @property
    def tier(self) -> int:
        """0 under the usual keys, 1 under others, 2 for running averages: the lower, the likelier it is meant."""
        if any(part in key.lower() for key in self.keys for part in _AVERAGES):
            return 2
        return int(not all(key in USUAL_KEYS for key in self.keys))

    @property
    def size(self) -> int:
        """Number of its elements."""
        return sum(weight.shape.numel() for weight in self.weights.values())

    @property
    def layout(self) -> str:
        """Where it is and what it is, in words."""
        what = f"module '{self.class_name[:60]}' pickled whole" if self.class_name else "state dict"
        if self.keys:
            return f"{what} under '{self.label[:60]}'"
        return what if self.class_name else "bare state dict"

    def parts(self) -> list[Candidate]:
        """What its keys divide it into, if there are several networks in one state dict (`student.`, `teacher.`)."""
        names = list(self.weights)
        start = ""
        for _ in range(_DEPTH):
            longer = _component(names[0], start)
            if not (longer.endswith(".") and all(name.startswith(longer) for name in names)):
                break
            start = longer
        firsts = dict.fromkeys(_component(name, start) for name in names if "." in name.removeprefix(start))
        found = (self.part(first.removesuffix(".")) for first in firsts)
        return [part for part in found if part is not None and len(part.weights) >= _FEWEST]

    def part(self, path: str) -> Candidate | None:
        """The weights below a path with dots, under the rest of their keys; None if there are none."""
        weights = {name.removeprefix(f"{path}."): w for name, w in self.weights.items() if name.startswith(f"{path}.")}
        return Candidate((*self.keys, *path.split(".")), weights, beside=self.beside) if weights else None

    def is_same(self, other: Candidate) -> bool:
        """Whether the two are one network that the file names twice."""
        return set(map(place, self.weights.values())) == set(map(place, other.weights.values()))


def place(weight: Weight) -> tuple[Any, ...]:
    """Where in the file a weight is: equal places hold equal weights."""
    if isinstance(weight, TensorSpec):
        return (weight.storage.key, weight.storage.offset, weight.start, tuple(weight.shape))
    return (id(weight),)


def find_candidates(payload: Any) -> list[Candidate]:
    """Everything in `payload` that may be a network, the top first, then by depth."""
    found: list[Candidate] = []
    seen: dict[int, Any] = {}  # with the containers themselves, lest a new one get the number of one that is gone
    waiting: deque[tuple[Any, tuple[str, ...], dict[str, Any]]] = deque([(payload, (), {})])
    while waiting and len(seen) < _CONTAINERS_SEEN:
        value, keys, around = waiting.popleft()
        if id(value) in seen or len(keys) > _DEPTH:
            continue
        seen[id(value)] = value
        if attributes := module_attributes(value):
            weights, numbers = _state_dict(attributes)
            if weights:
                class_name = value.name if isinstance(value, OpaqueObject) else "?"
                found.append(Candidate(keys, weights, numbers, around, class_name))
            continue
        if isinstance(value, dict):
            weights = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Weight)}
            beside = {name: value[name] for name in _NUMBERS if name in value}
            # Plain values between the weights (an epoch, extra state) are no weights; numbers alone are no network.
            if weights.keys() - beside:
                plain = {name: number for name, number in beside.items() if name not in weights}
                found.append(Candidate(keys, weights, beside=around | plain))
            around = around | beside
        waiting.extend((child, (*keys, key) if key else keys, around) for key, child in _children(value))
    return found


def outline(payload: Any) -> str:
    """In a few words, what a payload without a network is."""
    if isinstance(payload, dict):
        return f"it holds {', '.join(repr(key)[:40] for key in list(payload)[:5]) or 'nothing'}"
    if isinstance(payload, Weight):
        return f"it is one tensor, {shape_of(payload)}"
    return f"it is a {payload.name[:60] if isinstance(payload, OpaqueObject) else type(payload).__name__}"


def module_attributes(value: Any) -> dict[str, Any]:
    """The attributes of a module that was pickled whole; empty if `value` is none."""
    attributes = value.attributes if isinstance(value, OpaqueObject) else value
    if not isinstance(attributes, dict) or not isinstance(attributes.get("_modules"), dict):
        return {}
    return attributes if isinstance(attributes.get("_parameters"), dict) else {}


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """The containers inside a container, each with its key; the parts of an object have none of their own."""
    if isinstance(value, dict):
        for key, child in value.items():
            named = key if isinstance(key, str) else str(key) if isinstance(key, int) else "?"
            if isinstance(child, _CONTAINERS) and not _NO_NETWORKS.search(named) and not _is_optimizer(child):
                yield named, child
    elif isinstance(value, list | tuple):
        yield from ((str(number), child) for number, child in enumerate(value) if isinstance(child, _CONTAINERS))
    elif isinstance(value, OpaqueObject):
        yield from (("", part) for part in (value.items, value.attributes, value.args) if part)


def _is_optimizer(value: Any) -> bool:
    """Whether it is the state of an optimizer, whatever it is called."""
    return isinstance(value, dict) and {"state", "param_groups"} <= value.keys()


def _component(name: str, start: str) -> str:
    """`start` and the next component of a name with dots."""
    first, dot, _ = name.removeprefix(start).partition(".")
    return start + first + dot


def _state_dict(attributes: Mapping[str, Any]) -> tuple[dict[str, Weight], dict[str, Any]]:
    """The state dict of a pickled module, in torch's names and order, and the numbers that it holds besides."""
    weights: dict[str, Weight] = {}
    numbers: dict[str, Any] = {}
    waiting = [("", attributes, 0)]
    visited = 0
    while waiting:
        prefix, own, depth = waiting.pop()
        visited += 1
        if visited > _MODULES_SEEN or depth > _MODULE_DEPTH:
            raise InputError("holds a module with too many or too deep submodules; save model.state_dict()")
        hidden = own.get("_non_persistent_buffers_set")
        hidden = set(hidden) if isinstance(hidden, set | frozenset | list | tuple) else set()
        for kind in ("_parameters", "_buffers"):
            entries = own.get(kind)
            for name, weight in entries.items() if isinstance(entries, dict) else ():
                if isinstance(name, str) and isinstance(weight, Weight):
                    into = numbers if kind == "_buffers" and name in hidden else weights
                    into[prefix + name] = weight
        numbers.update({prefix + name: value for name, value in own.items() if name in _NUMBERS})
        children = [
            (f"{prefix}{name}.", module_attributes(child), depth + 1)
            for name, child in own["_modules"].items()
            if isinstance(name, str)
        ]
        waiting.extend(child for child in reversed(children) if child[1])
    return weights, {name: value for name, value in numbers.items() if name.rpartition(".")[2] in _NUMBERS}
