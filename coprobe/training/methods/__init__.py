"""The training methods, one file each; a new file registers itself."""

from coprobe.core.registry import discover
from coprobe.training.methods.base import METHODS, Method, SingleStep, make_method

discover(__name__)

__all__ = ["METHODS", "Method", "SingleStep", "make_method"]
