"""Where a result comes from: what every result file says about how it was made."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coprobe._version import __version__

if TYPE_CHECKING:
    from torch import Tensor, dtype

#: The name and password in a URL; a password may hold any sign but the slash and blanks.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+(?=@)")
#: Elements that are converted together.
_CHUNK = 1 << 20


@functools.cache
def commit() -> str | None:
    """The commit of the coprobe source tree (with `+` when it has changes), or None for an installed one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def provenance(**facts: Any) -> dict[str, Any]:
    """The record that goes with every result: version, commit, command line, time, and the given facts.

    Nothing of the environment is in it, no credentials of a URL on the command line, and `~` stands for the home
    directory, which would name who ran it.
    """
    import torch

    return {
        "coprobe": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "command": " ".join([_program(Path(sys.argv[0])), *map(_publishable, sys.argv[1:])]),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **facts,
    }


def _publishable(word: str) -> str:
    """A word of the command line as a shell takes it, without what is nobody's business."""
    quoted = shlex.quote(_CREDENTIALS.sub("***", word))
    home = os.path.expanduser("~").rstrip("/~")  # noqa: PTH111 (pathlib raises where there is no home)
    return re.sub(rf"(?<![\w/]){re.escape(home)}(?![\w-])", "~", quoted) if home else quoted


def _program(path: Path) -> str:
    """What was run, without the way to it; of `python -m coprobe` Python tells the file."""
    return path.parent.name if path.name == "__main__.py" else path.name


def digest_tensors(tensors: Mapping[str, Tensor], floats: dtype | None = None) -> str:
    """The first 16 hex digits of a SHA-256 over names, types, shapes and bytes, in the order of the names.

    Two files that hold the same weights have the same digest, whatever their container.

    Args:
        tensors: names to tensors.
        floats: the type as which floating-point numbers are taken; None takes them as they are.
    """
    import torch

    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        kind = floats if floats and tensor.is_floating_point() else tensor.dtype
        sha.update(f"{name} {kind} {tuple(tensor.shape)};".encode("utf-8", "backslashreplace"))
        for part in tensor.flatten().split(_CHUNK):  # the memory itself: a copy would double the peak
            sha.update(part.to(kind).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
