"""At which axis an activation has its channels, found out by following them through a forward pass.

A convolution puts its channels at axis 1, a linear layer at the last axis, and what comes after (permutations, windows,
residual connections, attention) may move them. So every tensor gets a twin of its shape that holds, at each position,
the number of its channel, from 1. What moves numbers moves the twin's; where numbers are combined, the twins have to
agree. The channels are at the one axis along which a twin varies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from coprobe.core.engine import frozen

# What operators of ATen do to the channels, by name. Those that torch itself calls pointwise leave them where they are.
_FIRST = re.compile(r".*(convolution|batch_norm|group_norm)|pixel_shuffle")
_LAST = re.compile(r".*(linear|layer_norm)")
_NORM = re.compile(r".*(batch|group|layer|rms)_norm")
_PRODUCT = re.compile(r"(add|b|addb|baddb)?mm")
_ATTENTION = re.compile(r"_scaled_dot_product_")
_RESHAPE = re.compile(r"(_unsafe_)?view|_reshape_alias")
_RESIZE = re.compile(r".*pool[123]d|upsample_|grid_sampler")
_ALONG = re.compile(r"(cumsum|cumprod|sort|topk|_fft_(r2c|c2r|c2c))$")
_STAY = re.compile(
    r"_to_copy|copy_|hardswish_?|_prelu_kernel|rrelu_with_noise|_(log_)?softmax|native_dropout|log_sigmoid_forward|"
    r"_?index_put(_impl)?_?"
)
_MOVE = re.compile(
    r"(cat|stack|roll|flip|repeat|index|index_select|gather|im2col|glu|(native_)?channel_shuffle|pixel_(un)?shuffle|"
    r"(constant|reflection|replication)_pad_?\dd|constant_pad_nd|mean|sum|a?max|a?min|norm|linalg_vector_norm)$"
)


class Twin(NamedTuple):
    """The channel of every position, as float64 from 1 (0 or less: none), and the axes along which it varies."""

    channels: Tensor
    axes: frozenset[int]
    flat: bool = False  # a map (images, …, …, …) that was flattened to two axes, as linear layers do

    @property
    def is_map(self) -> bool:
        return self.flat or self.channels.dim() > 3


class ChannelTracker(TorchDispatchMode):
    """Follows channels from the layers that make them, through the pass made in `following`.

    Twins are as large as activations, and all are held in memory, so one image should do.
    """

    def __init__(self) -> None:
        super().__init__()
        #: By identity: every tensor that depends on the images, held so that no other takes its place, and its twin.
        self._seen: dict[int, tuple[Tensor, Twin | None]] = {}

    def declare(self, tensor: Tensor, axis: int | None) -> None:
        """Let a tensor depend on the images and have its channels at this axis, whatever made it."""
        self._seen[id(tensor)] = tensor, None if axis is None else _numbered(tensor.shape, axis)

    def depends_on_images(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed from images in the pass that is followed."""
        return id(tensor) in self._seen

    def axis(self, tensor: Tensor) -> int | None:
        """The axis at which a tensor has its channels; None where that is unknown, or they are spread over several."""
        twin = self._twin(tensor)
        if twin is None or len(twin.axes) > 1 or 0 in twin.axes:
            return None
        if twin.axes:
            return min(twin.axes)
        single = [axis for axis, size in enumerate(tensor.shape) if axis and size == 1]  # a layer with one channel
        return single[0] if len(single) in (1, tensor.dim() - 1) else None

    @contextmanager
    def following(self, network: nn.Module) -> Iterator[None]:
        """Follow a pass in evaluation mode inside the block; torch's generators are as before afterwards.

        A module with an integer attribute `channel_axis` says itself where its output has its channels.
        """

        def declared(axis: int) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda module, inputs, made: self.declare(made, axis)

        with ExitStack() as block:
            for module in network.modules():
                if isinstance(axis := getattr(module, "channel_axis", None), int):
                    block.callback(module.register_forward_hook(declared(axis), prepend=True).remove)
            block.enter_context(aside(network))
            with self:
                yield

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute as asked for, and find the twins of what came out."""
        kwargs = kwargs or {}
        out = operator(*args, **kwargs)
        if any(id(leaf) in self._seen for leaf in tree_leaves((args, kwargs))):
            made = _tensors(out)
            try:
                twins = self._twins(operator, args, kwargs, made[0].shape) if made else []
            except (RuntimeError, IndexError):  # a form of the operator that the rule doesn't know
                twins = []
            for tensor, twin in zip_longest(made, twins[: len(made)]):
                self._seen[id(tensor)] = tensor, twin
        return out

    def _twin(self, tensor: Tensor) -> Twin | None:
        return self._seen.get(id(tensor), (None, None))[1]

    def _twins(self, operator: Any, args: Any, kwargs: Any, shape: Sequence[int]) -> Sequence[Twin | None]:
        """The twins of what an operator has made, the first of which has this shape, as far as its rule says."""
        name = operator._schema.name.partition("::")[2]
        given = _tensors((args, kwargs))
        known = [twin for twin in map(self._twin, given) if twin]
        if _FIRST.match(name) or (_LAST.match(name) and not (_NORM.match(name) and len(args[1]) > 1)):
            made = _numbered(shape, 1 if _FIRST.match(name) else -1)
            if made and known and len(known[0].axes) == 1 and (_NORM.match(name) or name == "linear"):
                return [_agreed([made, known[0]] if _NORM.match(name) else _tied(made, known[0], -1, shape), shape)]
            return [made]
        if _PRODUCT.fullmatch(name):
            return [self._product(given[-2], given[-1], shape)]
        if torch.Tag.pointwise in operator.tags or _STAY.fullmatch(name) or _NORM.match(name):
            return [_agreed([twin for twin in map(self._twin, given[name == "copy_" :]) if twin], shape)]
        if not known:
            return []
        if _ATTENTION.match(name):
            return [_spread(known[-1], (-2,), shape)]
        if _RESIZE.match(name):
            return [_spread(known[0], range(2, len(shape)), shape)]
        if _ALONG.match(name):
            along = kwargs.get("dim", args[2 if name == "topk" else 1] if len(args) > (name == "topk") + 1 else -1)
            return [_spread(known[0], along if isinstance(along, list) else (along,), shape)]
        if _RESHAPE.fullmatch(name):
            twin = _measured(known[0].channels.reshape(shape))
            return [twin._replace(flat=known[0].is_map and len(shape) == 2)]
        if name.startswith("as_strided"):
            return [known[0] if known[0].channels.shape == shape else None]
        if operator.is_view or _MOVE.match(name):
            moved = operator(*tree_map(self._stand_in, args), **tree_map(self._stand_in, kwargs))
            return [_measured(tensor) for tensor in _tensors(moved)]
        return []

    def _product(self, left: Tensor, right: Tensor, shape: Sequence[int]) -> Twin | None:
        """Of a matrix product: with weights, their output features; of two activations, what is not summed over."""
        for weights, images, axis in ((right, left, -1), (left, right, -2)):
            if id(weights) not in self._seen:
                made, twin = _numbered(shape, axis), self._twin(images)
                return _agreed(_tied(made, twin, axis, shape), shape) if made and twin else made
        rows, columns = self._twin(left), self._twin(right)
        kept = [rows and _spread(rows, (-1,), shape), columns and _spread(columns, (-2,), shape)]
        return _agreed([twin for twin in kept if twin], shape)

    def _stand_in(self, argument: Any) -> Any:
        """What moves in the place of an argument: the twin; for numbers of no channel zeros; indices as they are."""
        if not isinstance(argument, Tensor):
            return argument
        if twin := self._twin(argument):
            return twin.channels
        return torch.zeros(argument.shape, dtype=torch.float64) if argument.is_floating_point() else argument.cpu()


@contextmanager
def aside(network: nn.Module) -> Iterator[None]:
    """For passes that nobody should notice: in evaluation mode, without gradients, torch's generators as before."""
    devices = {tensor.device for tensor in network.parameters() if tensor.device.type == "cuda"}
    with frozen(network), torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        yield


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def _numbered(shape: Sequence[int], axis: int) -> Twin | None:
    """The twin of a tensor that has its channels at this axis."""
    if not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    numbers = torch.arange(1, shape[axis] + 1, dtype=torch.float64)
    channels = numbers.view(-1, *[1] * (len(shape) - 1 - axis)).expand(tuple(shape))
    return Twin(channels, frozenset([axis] if shape[axis] > 1 else []))


def _measured(channels: Tensor) -> Twin:
    """A twin whose axes are looked for."""
    if not channels.numel():
        return Twin(channels, frozenset())
    lows = channels.where(channels > 0, torch.inf)
    axes = (axis for axis in range(channels.dim()) if (channels.amax(axis) - lows.amin(axis) > 0.5).any())
    return Twin(channels, frozenset(axes))


def _tied(made: Twin, given: Twin, axis: int, shape: Sequence[int]) -> list[Twin]:
    """The features that a layer makes along an axis, and the channels of a map of images that it leaves elsewhere.

    Of tokens (batch, …, …) only the features count: there it is the layer's way to mix positions.
    """
    kept = _spread(given, (axis,), shape) if given.is_map and given.axes else None
    return [made, kept] if kept else [made]


def _spread(twin: Twin, axes: Iterable[int], shape: Sequence[int]) -> Twin | None:
    """The twin with the size of these axes changed; None where the channels are there."""
    dim = twin.channels.dim()
    resized = tuple(axis % dim for axis in axes)
    if twin.axes & {*resized}:
        return None
    return Twin(twin.channels.amax(resized, keepdim=True).expand(tuple(shape)), twin.axes)


def _agreed(twins: Sequence[Twin], shape: Sequence[int]) -> Twin | None:
    """The twin of numbers that were combined, at all axes at which any of them has its channels."""
    wide = [
        Twin(channels.expand(tuple(shape)), frozenset(axis + len(shape) - channels.dim() for axis in axes))
        for channels, axes, _ in twins
    ]
    axes = frozenset[int]().union(*(twin.axes for twin in wide))
    whole = next((twin for twin in wide if twin.axes == axes), None)
    return whole or (Twin(sum((twin.channels for twin in wide[1:]), wide[0].channels), axes) if wide else None)
