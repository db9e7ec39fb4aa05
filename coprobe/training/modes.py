"""Evaluation mode for a while, in the middle of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.func import functional_call


@contextmanager
def evaluating(model: nn.Module, *, keep_graph: bool) -> Iterator[Callable[[Tensor], Tensor]]:
    """Evaluation mode inside the block; the mode of every module as before afterwards, also after an exception.

    Args:
        model: images to logits.
        keep_graph: whether the graph of a pass is needed after the block.

    Yields:
        The model to call. Unlike in `coprobe.core.engine.frozen`, gradients can go to the parameters.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        if keep_graph:
            # In evaluation mode batch norm reads the running statistics in the backward pass as well. By then the
            # update's pass has changed them, unnoticed by autograd: a graph that is kept needs a copy of its own.
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            yield lambda images: functional_call(model, buffers, (images,))
        else:
            yield model
    finally:
        for module, mode in modes:
            module.training = mode
