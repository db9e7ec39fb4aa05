"""Names that are shown or stored."""

import unicodedata

import pytest

from coprobe.core.text import cut, printable, storable
from tests.nasty import NASTY


@pytest.mark.parametrize("name", NASTY, ids=lambda name: ascii(name[:30]))
def test_what_is_shown_can_be_seen_and_encoded(name):
    shown = printable(name)
    assert shown.isprintable()
    assert not {unicodedata.category(sign) for sign in shown} & {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}
    shown.encode("utf-8")
    assert printable(shown) == shown
    if name.isprintable():
        assert shown == name
    else:
        assert "\\" in shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31m", r"\x1b[31m"), ("a\nb", r"a\nb"), ("\u202e", r"\u202e"), ("\ud800", r"\ud800"), ("\x9b", r"\x9b"),
        ("\U000e0041", r"\U000e0041"), ("µ α 中 🦄", "µ α 中 🦄"), ("a\\b", "a\\b"), ("", ""),
    ],
)  # fmt: skip
def test_escapes_are_those_of_python(name, shown):
    assert printable(name) == shown


def test_only_lone_surrogates_can_not_be_stored():
    assert storable("a\udcff\x1b\n中") == "a\\udcff\x1b\n中"


@pytest.mark.parametrize(("text", "short"), [("abcd", "abcd"), ("abcde", "abc…"), ("", "")])
def test_cut(text, short):
    assert cut(text, 4) == short
