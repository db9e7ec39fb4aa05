"""Places in a network: name one, record what passes there, mask channels there.

A node is named

- `A` … `E`, the five places of the paper: from the network's own node table, or a guess for an unknown network;
- `layer1.0`, the output of that module, or `layer1.0:in`, its input;
- `layer1.0#relu2`, the second ReLU that module `layer1.0` computes in a pass, whether it calls a function or an
  activation module that it uses more than once, in place or not; `#relu1` alone is the network's own;
- any of these with `:12` at the end: channel 12 only.

Activations have the shape (batch, channels, height, width), or (batch, channels) behind a linear layer. What linear
layers compute for every token or pixel, as in transformers, has its features last; it is handed out with the features,
which are the channels, at axis 1.
"""

from coprobe.nodes.address import (
    NO_NODES,
    Node,
    describe_shape,
    is_guessed,
    network_of,
    node_table,
    resolve,
    set_channel_axis,
)
from coprobe.nodes.channels import VERSION
from coprobe.nodes.mask import NO_MASK, ChannelMask, mask
from coprobe.nodes.places import Place, guess_table, places
from coprobe.nodes.recording import CHECKED, Recording, check_neutral, masked, record, tapped

__all__ = [
    "CHECKED",
    "NO_MASK",
    "NO_NODES",
    "VERSION",
    "ChannelMask",
    "Node",
    "Place",
    "Recording",
    "check_neutral",
    "describe_shape",
    "guess_table",
    "is_guessed",
    "mask",
    "masked",
    "network_of",
    "node_table",
    "places",
    "record",
    "resolve",
    "set_channel_axis",
    "tapped",
]
