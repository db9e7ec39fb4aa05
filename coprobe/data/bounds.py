"""What honest data sets never exceed, so that a small file can fill neither memory nor disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from coprobe.core.text import cut, printable
from coprobe.errors import InputError

MAX_GROWTH = 20
"""Images come compressed: CIFAR-10's archive grows by a tenth, small JPEGs in zstd Parquet to the threefold."""
FREE_GROWTH = 64 * 2**20
"""Bytes to which anything may grow, since small things may well be repetitive."""


def check_growth(where: str, packed: int, unpacked: int) -> None:
    """Raise `InputError` if `unpacked` bytes are too many to come out of `packed` bytes of honest images."""
    if unpacked > max(FREE_GROWTH, MAX_GROWTH * packed):
        raise InputError(
            f"{where}: {packed} bytes that unpack to {unpacked} or more; "
            "images don't compress like that, so it was not read: get it from its publisher"
        )


def check_memory(where: str, size: int) -> None:
    """Raise `InputError` if `size` bytes are more than this machine's memory, where the system tells how much that is.

    Linux grants any allocation and ends the process later, when the memory is used.
    """
    try:
        present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if size > present:
        raise InputError(
            f"{where}: the decoded images need {size / 1e9:.1f} GB, more than this machine's {present / 1e9:.1f} GB; "
            "lower --limit"
        )


def cause(error: object) -> str:
    """What a library says of a file, fit for a message of one line: the first line of it, or the type if it is mute."""
    return short(next(iter(str(error).splitlines()), ""), 80) or type(error).__name__


def short(name: str, longest: int = 40) -> str:
    """A text out of a file, fit for a message of one line."""
    return cut(printable(name), longest)


def listed(names: Sequence[str]) -> str:
    """The first three names, quoted, with an ellipsis for the others."""
    shown = [f"'{short(name)}'" for name in names[:3]]
    return ", ".join([*shown, "…"] if len(names) > 3 else shown)


def in_its_folder(where: str) -> str:
    """The last two parts of an image's path: every class folder has a `1.jpg`."""
    return "/".join(Path(where).parts[-2:])
