"""Record the activations at nodes, mask channels there, and check that recording changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from coprobe.core.engine import frozen
from coprobe.core.randomness import seeded
from coprobe.errors import InputError, RunError
from coprobe.nodes.address import Node, resolve
from coprobe.nodes.channels import channels_first
from coprobe.nodes.functions import Hook

#: Images on which it is checked that recording changes nothing.
CHECKED = 16


class Recording(dict[str, Tensor]):
    """What was last seen at each node, by the name it was asked for, channels first.

    Attributes:
        shapes: of one image's activation at the whole node, channels first, also where one channel was asked for.
        rows: how many rows of the first axis belong to an image, by node: crops, views or windows that the network
            folds into the batch, which are recorded together, at axis 2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.rows: dict[str, int] = {}

    def __missing__(self, name: str) -> Tensor:
        raise RunError(f"node '{name}' saw nothing: it was not asked for, or no forward pass of the network was made")


@contextmanager
def record(model: nn.Module, names: Iterable[str]) -> Iterator[Recording]:
    """Record the activations at several nodes in one forward pass.

    What is recorded is a copy (an in-place operation afterwards changes nothing) that keeps the graph, so a
    loss can be taken at it. Recording leaves the values that flow through the network as they are. All
    hooks are gone after the block, also after an exception. Modules that run again outside a pass of the network
    (activation checkpointing) are not recorded again.

    Yields:
        A `Recording` with tensors (batch, channels, …), of a node like `A:12` (batch, 1, …); activations (batch,
        tokens, features) become (batch, features, tokens), those of Swin and ConvNeXt (batch, features, height,
        width). A later pass replaces them.

    Raises:
        InputError: a wrapped model or an unknown node; during a forward pass, a node that passes no tensor, lacks
            the channel, is not passed exactly once, or has its channels where that can't be told (`channels_first`).
    """
    found = [resolve(model, name) for name in dict.fromkeys(names)]
    seen = Recording()

    def keep_as(node: Node) -> Hook:
        def keep(activation: Tensor) -> None:
            seen.shapes[node.name] = tuple(activation.shape[1:])
            if node.channel is not None:
                _check_channels(node, activation, [node.channel])
                activation = activation[:, node.channel : node.channel + 1]
            seen[node.name] = activation.clone()

        return keep

    with channels_first(model, [(node, keep_as(node)) for node in found]) as seen.rows:
        yield seen


@contextmanager
def masked(model: nn.Module, channels: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Set whole channels to zero at the given nodes, in every forward pass inside the block (Eq. 7).

    Args:
        model: any module; it is left untouched afterwards, also after an exception.
        channels: node name to channel indices (an empty sequence masks nothing). Where linear layers compute
            the activations, their features are the channels. A node like `A:12` has channel 12 only.

    Raises:
        InputError: as `record`, or a channel that the node does not have.
    """
    found = [(resolve(model, name), tuple(indices)) for name, indices in channels.items()]

    def zero(node: Node, indices: tuple[int, ...]) -> Hook:
        def apply(activation: Tensor) -> Tensor | None:
            _check_channels(node, activation, indices)
            if not indices:
                return None
            hidden = torch.zeros(activation.shape[1], dtype=torch.bool, device=activation.device)
            hidden[list(indices)] = True
            return activation.masked_fill(hidden.view(-1, *[1] * (activation.dim() - 2)), 0)

        return apply

    with channels_first(model, [(node, zero(node, indices)) for node, indices in found], replaces=True):
        yield


@contextmanager
def tapped(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """A module through which the activation at a node flows inside the block, for tools that only know modules.

    Yields:
        An `nn.Identity` whose input and output are the activation, channels first.

    Raises:
        InputError: as `record`; a node like `A:12` is refused, since the rest would have to flow too.
    """
    node = resolve(model, name)
    if node.channel is not None:
        raise InputError(f"node '{name}' is a single channel; write {node.whole}")
    tap = nn.Identity()

    def through(activation: Tensor) -> Tensor:
        flowing: Tensor = tap(activation.clone())  # a copy, since the network may go on in place
        return flowing

    with channels_first(model, [(node, through)], replaces=True):
        yield tap


def _check_channels(node: Node, activation: Tensor, indices: Sequence[int]) -> None:
    """Raise unless the activation, channels first, has all these channels of the node."""
    if activation.dim() < 2:
        raise InputError(f"node '{node.name}' has no channels: its shape is {tuple(activation.shape)}")
    count = activation.shape[1]
    for k in indices:
        if not 0 <= k < count:
            raise InputError(f"node '{node.whole}' has channels 0 to {count - 1}, not {k}")
        if node.channel not in (None, k):
            raise InputError(f"node '{node.name}' is channel {node.channel} alone, not {k}; write {node.whole}")


def check_neutral(model: nn.Module, images: Tensor, names: Sequence[str]) -> None:
    """Make sure that recording at these nodes leaves the model's logits on `images` as they are, bit by bit.

    Both passes draw the same random numbers; the state of all generators is as before afterwards. Where two
    passes of the same kind differ already, nothing can be said, and nothing is raised.

    Raises:
        RunError: the logits differ.
        InputError: as `record`.
    """

    def logits(nodes: Sequence[str]) -> Tensor:
        with seeded(0, images.device), frozen(model), torch.no_grad(), record(model, nodes):
            result: Tensor = model(images)
            return result

    plain, recorded = logits(()), logits(names)
    if torch.equal(plain, recorded):
        return
    if torch.equal(plain, logits(())) and torch.equal(recorded, logits(names)):
        raise RunError(
            f"recording at {', '.join(names)} changes the logits of this model, so nothing seen there can be "
            "trusted; name other nodes"
        )
