"""Calls of activation functions, which no hook on a module sees: functional, in place, or of a reused module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coprobe.nodes.formulas import Formulas

#: Receives an activation; what it returns, if anything, may replace it.
Hook = Callable[[Tensor], Tensor | None]

#: An activation function that is written out, see `formulas`.
FORMULA = "formula"

#: The names of functions that often make gates and weights instead of features.
GATES = ("sigmoid", "hardsigmoid", "logsigmoid", "tanh", "hardtanh", "softsign", "glu")

#: The names under which activation functions are addressed. ReLU6 and a clamp at 0 are called `relu` as well.
FUNCTIONS = (
    "relu", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "softplus",
    "threshold", "softshrink", "hardshrink", "tanhshrink", "maximum", FORMULA, *GATES,
)  # fmt: skip

_ALIASES = {"relu6": "relu", "log_sigmoid": "logsigmoid", "max": "maximum", "fmax": "maximum"}


class Call(NamedTuple):
    """One call of an activation function in a pass.

    Attributes:
        owner: path of the module that computes it; empty for the network itself.
        function: its name, one of `FUNCTIONS`.
        number: which call of this function by this owner, from 1.
        through: path of the activation module through which the owner calls it; empty if it calls the function.
        parts: calls before it that are but a part of this formula.
    """

    owner: str
    function: str
    number: int
    through: str
    parts: frozenset[Any] = frozenset()


def belongs_to_its_caller(module: nn.Module) -> bool:
    """Whether a module is like a function, without children and weights (`nn.ReLU`): what it calls, its caller does."""
    return not any(True for _ in module.children()) and not module._parameters and not module._buffers


def activation_function(called: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> str | None:
    """Which of `FUNCTIONS` this call alone is; None for every other function of torch."""
    name: str = getattr(called, "__name__", "").strip("_")
    name = _ALIASES.get(name, name)
    if name in ("clamp", "clip", "clamp_min", "hardtanh"):
        low, high = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
        rectifies = _argument(args, kwargs, 1, low) == 0 and _argument(args, kwargs, 2, high) in (None, 6)
        return "relu" if rectifies else name if name == "hardtanh" else None
    if name == "maximum":
        return name if isinstance(kwargs.get("other", args[1] if len(args) > 1 else None), Tensor) else None
    return name if name in FUNCTIONS and name != FORMULA else None


def _argument(args: Sequence[Any], kwargs: dict[str, Any], place: int, name: str) -> float | None:
    """A number among the arguments; NaN for what is none, since a tensor is no bound of a ReLU."""
    given = kwargs.get(name, args[place] if place < len(args) else None)
    return given if isinstance(given, int | float | None) else float("nan")


def _is_in_place(called: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    name: str = getattr(called, "__name__", "")
    return (name.endswith("_") and not name.startswith("__")) or bool(kwargs.get("inplace"))


class FunctionHooks(TorchFunctionMode):
    """Hooks on the activation functions that the modules of a network call, each under the module that calls it.

    They are active only while one of `owners` runs, so that nothing else is slowed down.

    Args:
        network: whose modules are told apart.
        hooks: those on a call; asked at every call by an owner.
        owners: paths of the modules whose own calls are hooked.
        replaces: what the hooks return goes on through the network.
        formulas: look for activation functions that are written out, too; then they are active in the whole pass.
    """

    def __init__(
        self,
        network: nn.Module,
        hooks: Callable[[Call], Sequence[Hook]],
        owners: Collection[str],
        *,
        replaces: bool = False,
        formulas: bool = False,
    ) -> None:
        super().__init__()
        self._network = network
        self._hooks = hooks
        self._replaces = replaces
        self._paths = {module: path for path, module in network.named_modules()}
        self._transparent = {m for m in self._paths if m is not network and belongs_to_its_caller(m)}
        self._owners = {network.get_submodule(path) for path in (*owners, *[""] * formulas)} - self._transparent
        self._formulas = Formulas() if formulas else None
        self._running: list[nn.Module] = []
        self._threads: list[int] = []  # in which each of them runs
        self._active = 0
        self._calls: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """In every forward pass inside the block."""
        with ExitStack() as handles:
            handles.callback(self._stop)
            for module in self._concerned():
                handles.callback(module.register_forward_pre_hook(self._enter).remove)
                # First of all, so that the last mode to be entered is the first to be left; and after exceptions.
                left = module.register_forward_hook(self._leave, always_call=True, prepend=True)
                handles.callback(left.remove)
            yield

    def _concerned(self) -> set[nn.Module]:
        """The owners, what may run inside them, and around them (where a pass, or what is run again, begins)."""
        inside = {module for owner in self._owners for module in owner.modules()}
        return inside | {module for module in self._paths if not self._owners.isdisjoint(module.modules())}

    def _stop(self) -> None:
        """Not active any more, also where an interruption has torn a pass without any hook."""
        self._running.clear()
        self._threads.clear()
        self._calls.clear()
        if self._formulas:
            self._formulas.clear()
        if self._active:
            self._active = 0
            self.__exit__(None, None, None)

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        # A module that runs outside a pass (activation checkpointing does that) begins one of its own.
        if module is self._network or not self._running:
            self._stop()
        self._running.append(module)
        self._threads.append(get_ident())
        if module in self._owners:
            self._active += 1
            if self._active == 1:
                self.__enter__()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self._running or self._running[-1] is not module or self._threads[-1] != get_ident():
            return  # another hook failed before this module was entered
        self._running.pop()
        self._threads.pop()
        if module in self._owners:
            self._active -= 1
            if self._active == 0:
                self.__exit__(None, None, None)

    def __torch_function__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute as asked for, and run the hooks on the result."""
        kwargs = kwargs or {}
        name, function = getattr(called, "__name__", ""), activation_function(called, args, kwargs)
        parts = frozenset[Any]()
        if self._formulas and function in (None, "maximum"):
            completes, parts = self._formulas.completes(name, args, kwargs)
            function = function or (FORMULA if completes else None)
        owner = next((m for m in reversed(self._running) if m not in self._transparent), self._network)
        if function is None or owner not in self._owners:
            call, result = None, called(*args, **kwargs)
        else:
            path = self._paths[owner]
            self._calls[path, function] += 1
            through = self._paths[self._running[-1]] if self._running[-1] in self._transparent else ""
            call = Call(path, function, self._calls[path, function], through, parts)
            result = self._computed(called, args, kwargs, self._hooks(call))
        if self._formulas:
            key = call and call[:3]
            self._formulas.made(result, name, args, kwargs, key, function == FORMULA)
        return result

    def _computed(self, called: Any, args: Any, kwargs: Any, hooks: Sequence[Hook]) -> Any:
        """What the call gives, after the hooks."""
        if not (hooks and self._replaces and _is_in_place(called, kwargs)):
            return hooked(called(*args, **kwargs), hooks)
        # A function that works in place is computed beside its argument, which then receives what replaces it: so
        # the caller who ignores the return value sees it too, and the gradient is right.
        argument, *others = args
        return argument.copy_(hooked(called(argument.clone(), *others, **kwargs), hooks))


def hooked(activation: Tensor, hooks: Sequence[Hook]) -> Tensor:
    """The activation after all hooks, or what they have replaced it with."""
    for hook in hooks:
        replacement = hook(activation)
        activation = activation if replacement is None else replacement
    return activation
