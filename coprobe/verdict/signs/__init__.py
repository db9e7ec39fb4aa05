"""The signs of catastrophic overfitting: each a file, registered, and measured together in one pass."""

from coprobe.core.registry import discover
from coprobe.verdict.signs.base import SIGNS, ImageSign, ModelSign, Sign, listed
from coprobe.verdict.signs.measuring import ImageSigns, signs_of
from coprobe.verdict.signs.table import SignTable

discover(__name__)

__all__ = ["SIGNS", "ImageSign", "ImageSigns", "ModelSign", "Sign", "SignTable", "listed", "signs_of"]
