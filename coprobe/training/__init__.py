"""Training: one loop, its recipe, the methods and the regularizers."""

from coprobe.training.methods import METHODS, Method, make_method
from coprobe.training.recipe import Recipe
from coprobe.training.trainer import Run, train

__all__ = ["METHODS", "Method", "Recipe", "Run", "make_method", "train"]
