"""Fold batch norm into the convolution before it, and let ReLUs work in place: fewer passes over memory.

torch's own fuser (`torch.fx.experimental.optimization.fuse`) needs a network that can be followed as a whole, and makes
another module of it; here every module keeps its path, so that nodes and masks stay where they are.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace as changed

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from coprobe.fast.replacing import replace, replaceable
from coprobe.nodes import Node

#: What stands for a sum of two tensors, which is no module, in `_links`.
_SUM = None


def fold(network: nn.Module, watched: Sequence[Node] = ()) -> None:
    """Fold every batch norm that can be, in place, and leave an `Identity` where it was.

    A ReLU works in place where nobody else has need of its input. Where the code of the network can't be followed by
    torch.fx, that of its parts is.

    Args:
        network: in evaluation mode; a copy that nobody else has.
        watched: nodes that will be recorded or masked; the pairs that they lie between stay as they are.
    """
    links = list(_links(copy.deepcopy(network)))  # a copy, since what follows its code may leave traces
    paths = {module: path for path, module in network.named_modules()}
    watched = [changed(node, path=paths[network.get_submodule(node.path)]) for node in watched]
    allowed = {*replaceable(network), _SUM}
    links = [(first, second) for first, second in links if first in allowed and second in allowed]
    for first, second in links:
        relu, maker = network.get_submodule(second), None if first is _SUM else network.get_submodule(first)
        if type(relu) is nn.ReLU and (maker is None or type(maker) in (nn.Conv2d, nn.BatchNorm2d)):
            relu.inplace = True
    for first, second in links:
        if first is _SUM or any(_is_between(node, first, second) for node in watched):
            continue
        convolution, norm = network.get_submodule(first), network.get_submodule(second)
        if type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.running_mean is not None:
            _fold(convolution, norm)
            replace(network, second, nn.Identity())


def _links(module: nn.Module, prefix: str = "") -> Iterator[tuple[str | None, str]]:
    """Paths of two modules of which the second takes the output of the first, which goes nowhere else.

    Both are called once, and no other code uses their weights. The first can also be a `_SUM`.
    """
    try:
        nodes = fx.Tracer().trace(module).nodes
    except Exception:  # code that depends on values, say
        for name, child in module.named_children():
            yield from _links(child, f"{prefix}{name}.")
        return
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}

    def is_called_once(node: fx.Node) -> bool:
        return node.op == "call_module" and calls[node.target] == 1 and str(node.target) not in read

    for node in nodes:
        before = node.args[0] if node.args else None
        if not (is_called_once(node) and isinstance(before, fx.Node) and len(before.users) == 1):
            continue
        if before.op == "call_function" and before.target in (operator.add, torch.add):
            yield _SUM, f"{prefix}{node.target}"
        elif is_called_once(before):
            yield f"{prefix}{before.target}", f"{prefix}{node.target}"


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    tensors = (convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    exact = [None if tensor is None else tensor.detach().double() for tensor in tensors]
    folded = fuse_conv_bn_weights(*exact[:4], norm.eps, *exact[4:])  # type: ignore[arg-type, call-arg]
    dtype = convolution.weight.dtype
    convolution.weight, convolution.bias = (nn.Parameter(tensor.to(dtype)) for tensor in folded)


def _is_between(node: Node, convolution: str, norm: str) -> bool:
    """Whether a node is where batch norm has not been computed yet: the end of a module around the convolution alone,
    or the beginning of one around the batch norm alone.
    """
    if node.call is not None:
        return False
    inside, outside = (norm, convolution) if node.at_input else (convolution, norm)
    return _holds(node.path, inside) and not _holds(node.path, outside)


def _holds(path: str, module: str) -> bool:
    return not path or module == path or module.startswith(f"{path}.")
