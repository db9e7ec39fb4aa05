"""Checkpoints, ours and other people's: read, recognise, check, and write them.

Nothing in a file is ever run: `coprobe.checkpoint.reader` reads it, and there is no other mode.
"""

from __future__ import annotations

from coprobe.checkpoint.checkpoint import Checkpoint, count_parameters
from coprobe.checkpoint.description import FORMAT
from coprobe.checkpoint.given import Model, as_checkpoint
from coprobe.checkpoint.loading import find_file, load
from coprobe.checkpoint.wrapping import wrap

__all__ = ["FORMAT", "Checkpoint", "Model", "as_checkpoint", "count_parameters", "find_file", "load", "wrap"]
