"""Weights that a file holds in parts: weight norm, spectral norm and pruning masks, old style and new, folded.

In evaluation mode each of these is a function of tensors that the state dict has, so nothing is lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from coprobe.checkpoint.reader.values import TensorSpec, UnreadableTensor

#: By kind, what follows the name of a weight in the names of its parts, as torch.nn.utils writes them.
_OLD = {
    "spectral norm": ("_orig", "_u", "_v"),
    "pruning": ("_orig", "_mask"),
    "weight norm": ("_g", "_v"),
}
#: The same for torch.nn.utils.parametrizations, behind `.parametrizations.weight.`.
_NEW = {"spectral norm": ("original", "0._u", "0._v"), "weight norm": ("original0", "original1")}
_PARAMETRIZED = re.compile(r"(.*\.)?parametrizations\.([^.]+)\.(.+)")
_UNKNOWN = "is made by a parametrization whose code is not in the file (take it off with remove_parametrizations)"


@dataclass(frozen=True, eq=False)
class Reparametrised:
    """A weight in parts.

    Attributes:
        kind: how it is made of them: "weight norm", "spectral norm" or "pruning".
        parts: its parts, in the order of torch's formula.
        shape: of the weight.
    """

    kind: str
    parts: tuple[TensorSpec, ...]
    shape: torch.Size

    def folded(self, read: Callable[[TensorSpec], Tensor]) -> Tensor:
        """The weight as torch computes it in evaluation mode; half precision is computed as float32.

        Args:
            read: the tensor of a part.
        """
        tensors = [read(part) for part in self.parts]
        tensors = [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]
        return _FORMULAS[self.kind](*tensors)


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    dim = next((dim for dim, size in enumerate(g.shape) if size > 1), 0) if g.ndim else -1
    return torch._weight_norm(v, g, dim)


def _spectral_norm(original: Tensor, u: Tensor, v: Tensor) -> Tensor:
    # The first axis, but for transposed convolutions: there the second.
    dim = 0 if len(u) == len(original) else 1
    matrix = original.transpose(0, dim).flatten(1)
    return original / torch.dot(u, torch.mv(matrix, v))


def _pruned(original: Tensor, mask: Tensor) -> Tensor:
    return mask.to(original.dtype) * original


_FORMULAS: dict[str, Callable[..., Tensor]] = {
    "weight norm": _weight_norm,
    "spectral norm": _spectral_norm,
    "pruning": _pruned,
}


#: Weights by name, each with the names of its parts.
Parts = dict[str, tuple[Reparametrised | UnreadableTensor, list[str]]]


def find_parts(weights: Mapping[str, object]) -> Parts:
    """The weights that are held in parts, by name, each with the names of its parts.

    Args:
        weights: names to what is in the file.
    """
    found: Parts = {}
    groups: dict[str, list[str]] = {}
    for name in weights:
        if match := _PARAMETRIZED.fullmatch(name):
            groups.setdefault(name.removesuffix(match[3]), []).append(name)
        else:
            _find_old(name, weights, found)
    for start, names in groups.items():
        kind = next((k for k, ends in _NEW.items() if {start + end for end in ends} == set(names)), "")
        parts = _parts(weights, [start + end for end in _NEW[kind]]) if kind else None
        original = weights.get(f"{start}original", weights.get(f"{start}original1"))
        unknown = UnreadableTensor(_UNKNOWN, getattr(original, "shape", torch.Size()))
        found[_whole(start)] = _made(kind, parts) if parts else unknown, names
    return found


def _whole(start: str) -> str:
    """`conv.parametrizations.weight.` is `conv.weight`."""
    module, _, name = start.rpartition("parametrizations.")
    return module + name.removesuffix(".")


def _find_old(name: str, weights: Mapping[str, object], found: Parts) -> None:
    """Add the weight whose first part `name` is, if it is one in the manner of torch.nn.utils."""
    for kind, ends in _OLD.items():
        whole = name.removesuffix(ends[0])
        names = [whole + end for end in ends]
        if whole == name or whole in weights or whole in found:
            continue
        if parts := _parts(weights, names):
            found[whole] = _made(kind, parts), names
            return


def _parts(weights: Mapping[str, object], names: list[str]) -> tuple[TensorSpec, ...] | None:
    parts = [weights.get(name) for name in names]
    return (
        tuple(p for p in parts if isinstance(p, TensorSpec)) if all(isinstance(p, TensorSpec) for p in parts) else None
    )


def _made(kind: str, parts: tuple[TensorSpec, ...]) -> Reparametrised | UnreadableTensor:
    """The weight of these parts, if their shapes go together."""
    shape = parts[1 if kind == "weight norm" else 0].shape
    first, *others = (part.shape for part in parts)
    fits = {
        "weight norm": lambda: len(first) in (0, len(shape)) and sum(size > 1 for size in first) <= 1,
        "spectral norm": lambda: (
            len(shape) > 1
            and len(others[0]) == 1
            and others[0][0] in shape[:2]
            and others[1] == (shape.numel() // max(1, others[0][0]),)
        ),
        "pruning": lambda: others[0] == shape,
    }[kind]()
    return (
        Reparametrised(kind, parts, shape) if fits else UnreadableTensor(f"has parts of {kind} that don't fit", shape)
    )
