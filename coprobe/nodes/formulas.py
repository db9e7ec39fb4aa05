"""Activation functions that are written out: x·σ(x), x·relu6(x + 3)/6, where(x > 0, x, …), x·tanh(softplus(x)).

What is combined in them are functions of the same tensor, element by element, so tensors are followed through
operations that work so, back to the tensor that they are all functions of: their root.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple
from weakref import ref

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# Functions of torch, without the underscores around their names: that scale and shift, that make an activation function
# out of several functions of the same tensor, and all that work element by element.
_SCALE = re.compile(r"i?mul|multiply|rmul|i?div|divide|true_divide")
_SUM = re.compile(r"[ir]?add|[ir]?sub|subtract|rsub")
_COMBINE = re.compile(rf"{_SCALE.pattern}|where|masked_fill|max(imum)?|min(imum)?|fmax|fmin")
_LINEAR = re.compile(rf"{_SCALE.pattern}|{_SUM.pattern}|neg(ative)?|to|float|type|type_as|clone|contiguous")
_ELEMENTWISE = re.compile(
    rf"{_LINEAR.pattern}|{_COMBINE.pattern}|rdiv|pow|square|abs|sign|exp|expm1|log|log1p|r?sqrt|reciprocal|sin|cos|erf|"
    r"logical_not|l[te]|g[te]|less|greater|heaviside|clamp(_min|_max)?|clip|(hard|log_?)?sigmoid|tanh|soft(plus|sign|shrink)|"
    r"tanhshrink|hard(shrink|swish|tanh)|relu6?|(leaky_|p)relu|[cs]?elu|[gs]elu|silu|mish|threshold"
)


class _Origin(NamedTuple):
    """What a tensor is a function of, by which calls, whether not only by scaling and shifting, and by a formula."""

    tensor: ref[Tensor]
    root: int
    calls: frozenset[Any] = frozenset()
    bent: bool = False
    formula: bool = False


class Formulas:
    """Follows tensors through the operations of a pass, and says which of these complete an activation function."""

    def __init__(self) -> None:
        self._origins: dict[int, _Origin] = {}
        self._roots = count()

    def clear(self) -> None:
        """Begin another pass."""
        self._origins.clear()

    def completes(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[bool, frozenset[Any]]:
        """Whether this operation completes a formula, and which calls (see `made`) are but parts of it."""
        name = name.strip("_")
        if not (_COMBINE.fullmatch(name) or _SUM.fullmatch(name)):
            return False, frozenset()
        given = self._operands(args, kwargs)
        if _SCALE.fullmatch(name) and len(given) == 1:
            (origin,) = given
            return origin.formula, origin.calls if origin.formula else frozenset()
        if len({id(origin.tensor()) for origin in given}) < 2:
            return False, frozenset()
        same = [one for one in given if sum(one.root == other.root for other in given) > 1]
        bent = [origin.bent for origin in same]
        if not (
            all(bent) and bent if _SUM.fullmatch(name) else any(bent)
        ):  # x·(x + 1) may be a variance, x + σ(x) a residual
            return False, frozenset()
        calls = [origin.calls for origin in same]
        return True, frozenset[Any]().union(*calls) - frozenset.intersection(*calls)

    def made(
        self, result: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], call: Any = None,
        formula: bool = False,
    ) -> None:  # fmt: skip
        """Remember what an operation has made; `call` stands for it if it is itself a place."""
        name = name.strip("_")
        if not isinstance(result, Tensor) or not _ELEMENTWISE.fullmatch(name):
            return
        given = self._operands(args, kwargs)
        roots = {origin.root for origin in given}
        root = roots.pop() if len(roots) == 1 else next(self._roots)
        own = frozenset() if call is None else frozenset([call])
        calls = own.union(*(origin.calls for origin in given))
        bent = not _LINEAR.fullmatch(name) or formula or any(origin.bent for origin in given)
        self._origins[id(result)] = _Origin(ref(result), root, calls, bent, formula)

    def _operands(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[_Origin]:
        """The origins of the tensors that an operation works on, without those that only scale or shift them."""
        tensors = [one for one in tree_leaves((args, dict(kwargs))) if isinstance(one, Tensor)]
        largest = max((tensor.numel() for tensor in tensors), default=0)
        return [
            self._origin(tensor)
            for tensor in tensors
            if tensor.numel() == largest and tensor.dim() and not isinstance(tensor, nn.Parameter)
        ]

    def _origin(self, tensor: Tensor) -> _Origin:
        known = self._origins.get(id(tensor))
        if known is None or known.tensor() is not tensor:
            known = self._origins[id(tensor)] = _Origin(ref(tensor), next(self._roots))
        return known
