"""Where the images and channels of an activation are: as declared, as a person says, or as seen in passes beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from coprobe.errors import InputError
from coprobe.nodes.address import Node, network_of
from coprobe.nodes.functions import Hook
from coprobe.nodes.hooks import hooks_at, refuse_tracing
from coprobe.nodes.survey import Layout, Survey, images_among

#: Raise it where something else is found at places that no network declares; results that are kept are then made anew.
VERSION = 2

#: By network, and by place and shape of images: how the activations were seen to lie.
_SEEN: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Layout]] = WeakKeyDictionary()


@contextmanager
def channels_first(
    model: nn.Module, hooks: Sequence[tuple[Node, Hook]], *, replaces: bool = False
) -> Iterator[dict[str, int]]:
    """`hooks_at`, for hooks that take and return the activation with images at axis 0 and its channels at axis 1.

    Where the network does not declare how its activations lie, it is found out before the first pass, by some more
    (see `Survey`), and remembered for this network. Several rows of an image come together at axis 2.

    Yields:
        By name of a node, how many rows belong to an image, of those that a pass has come by.

    Raises:
        InputError: as `hooks_at`; in a pass: a node whose axes can't be told, or that has no such axis.
    """
    nodes = {_place(node): node for node, _ in hooks if not node.declared}
    network = network_of(model) if hooks else model
    seen = _SEEN.setdefault(network, {})
    rows: dict[str, int] = {}
    surveys: list[Survey] = []
    images: tuple[int, ...] = ()
    is_inside = False

    def begin(network: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal images, is_inside
        if surveys:
            return
        refuse_tracing()
        is_inside = True
        images = images_among(args, kwargs)
        if all((place, images[1:]) in seen for place in nodes):
            return
        surveys.append(survey := Survey())
        try:
            survey.run(network, *args, **kwargs)
        finally:
            surveys.clear()
        seen.update({(place, images[1:]): survey.layout(place) for place, _ in survey.places()})

    def end(network: nn.Module, args: Any, output: Any) -> None:
        nonlocal is_inside
        is_inside = bool(surveys)

    def moved(node: Node, hook: Hook) -> Hook:
        def run(activation: Tensor) -> Tensor | None:
            if surveys:
                surveys[0].see(_place(node), activation)
                return None
            if activation.dim() < 2:
                return hook(activation)
            layout = seen.get((_place(node), images[1:]), Layout(None))
            if not node.declared:
                if not is_inside and (not images or activation.shape[layout.images or 0] != images[0] * layout.folded):
                    raise InputError(
                        f"node '{node.whole}': '{node.path}' is run by itself, and only a pass of the whole network "
                        "tells where its images and channels are; run the network, or record and mask that part alone"
                    )
                _check_rows(node, layout, activation.shape, images[0])
            axis = axis_at(node, activation.shape, layout)
            if axis is None:
                raise InputError(
                    f"node '{node.whole}': can't tell which axis of its activations ({_words(activation.shape)}) holds "
                    f"the channels; say --channel-axis {node.whole}=AXIS, in Python wrap(…, channel_axis=AXIS)"
                )
            rows[node.name] = layout.folded
            replacement = hook(layout.images_first(activation, axis))
            return None if replacement is None else layout.as_it_lay(replacement, activation, axis)

        return run

    with ExitStack() as block:
        block.enter_context(hooks_at(model, [(node, moved(node, hook)) for node, hook in hooks], replaces=replaces))
        if nodes:
            # First of all, so that the passes beside are over before other blocks mark that theirs begins.
            block.callback(network.register_forward_pre_hook(begin, prepend=True, with_kwargs=True).remove)
            block.callback(network.register_forward_hook(end).remove)
        yield rows


def axis_at(node: Node, shape: Sequence[int], layout: Layout) -> int | None:
    """At which axis an activation of this shape (batch, …) has its channels: as said of the node, else as seen.

    Raises:
        InputError: the axis that was said is none of an activation of this shape, or that of the images.
    """
    if len(shape) <= 2:
        return 0 if layout.images else 1
    if node.axis is None:
        return layout.channels
    axis = node.axis if node.axis >= 0 else node.axis + len(shape)
    if not 0 <= axis < len(shape) or axis == layout.images:
        last = len(shape) - 1
        raise InputError(
            f"node '{node.whole}': axis {node.axis} of its activations ({_words(shape)}) can't hold the channels; "
            f"give 1 to {last}"
        )
    return axis


def _check_rows(node: Node, layout: Layout, shape: Sequence[int], images: int) -> None:
    """Raise unless the activation has as many rows as these images have at this node."""
    if layout.images is not None and shape[layout.images] == images * layout.folded:
        return
    seen = (
        f"{layout.rows[0]} for one image, {layout.rows[1]} for three"
        if layout.images is None
        else f"for {images} images {shape[0]}"
    )
    raise InputError(
        f"node '{node.whole}': the first axis of its activations is not the images (rows: {seen}); name another node"
    )


def _place(node: Node) -> tuple[Any, ...]:
    return node.path, node.at_input, node.call


def _words(shape: Sequence[int]) -> str:
    return "×".join(["batch", *map(str, shape[1:])])
