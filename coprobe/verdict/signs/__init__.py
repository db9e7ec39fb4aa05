"""The signs of catastrophic overfitting: each a file, registered, and measured together in one pass."""

from coprobe.core.registry import discover
from coprobe.verdict.signs.base import NOTATION, SIGNS, ImageSign, ModelSign, Sign, listed
from coprobe.verdict.signs.measuring import ImageSigns, signs_of
from coprobe.verdict.signs.table import SignTable, chosen

discover(__name__)

__all__ = [
    "NOTATION",
    "SIGNS",
    "ImageSign",
    "ImageSigns",
    "ModelSign",
    "Sign",
    "SignTable",
    "chosen",
    "listed",
    "signs_of",
]
