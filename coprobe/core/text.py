"""Names that come from files, made fit to be shown or stored: a label can be any text, and some texts are commands."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""`text` with everything that is not seen as a sign of its own as a visible escape (`\x1b`, `\n`, `\u202e`).

    So no name moves the cursor, ends a line, turns the direction of what follows or can't be encoded: these are
    control characters, separators other than the blank, bidirectional marks, lone surrogates and unassigned codes.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def storable(text: str) -> str:
    r"""`text` as it is, but for lone surrogates, which no file or table of text can hold: they become `\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def cut(text: str, longest: int) -> str:
    """The beginning of `text` in at most `longest` characters; the last one is … if there was more."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
