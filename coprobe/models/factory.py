"""Networks that a person's own code makes, imported only because the person named it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from coprobe.errors import InputError, unknown
from coprobe.models.foreign import quiet, reason, some

_PRIVATE = "_coprobe_model_"
#: Top-level modules that were imported from beside a factory's file, and from which folder.
_neighbours: dict[str, Path] = {}


def factory_network(spec: str, **model_args: Any) -> nn.Module:
    """The network that a person's own code makes; importing that code runs it.

    Args:
        spec: `pkg.module:factory`, looked for in the current directory and among what is installed, or
            `path/to/file.py:factory`, whose folder is importable meanwhile. The factory is a class or function that
            returns a network, or a network.
        model_args: keyword arguments of the factory.

    Raises:
        InputError: no such file, module or name, the code fails (the cause is chained), or it makes no network.
    """
    place, _, name = spec.rpartition(":")
    if not (place and name):
        raise InputError(f"'{spec}' names no factory; write pkg.module:factory or path/to/file.py:factory")
    file = Path(place) if place.endswith(".py") else None
    with _importable(file.resolve().parent if file else Path.cwd()), quiet():
        module = _from_file(file) if file else _from_name(place)
        if not hasattr(module, name):
            public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise unknown(f"factory of {place}", name, public)
        network = _called(spec, getattr(module, name), model_args)
    if not isinstance(network, nn.Module):
        raise InputError(f"{spec} gives a {type(network).__name__}, not a torch.nn.Module; name what returns a network")
    return network


def _called(spec: str, factory: Any, model_args: Mapping[str, Any]) -> Any:
    """What the factory makes; what can't be called is what was made."""
    if isinstance(factory, nn.Module) or not callable(factory):
        if model_args:
            raise InputError(f"{spec} is no factory and takes no arguments; leave out {some(list(model_args))}")
        return factory
    parameters = inspect.signature(factory).parameters
    try:
        inspect.signature(factory).bind(**model_args)
    except TypeError as error:
        takes = some([str(p.replace(annotation=p.empty)) for p in parameters.values()]) or "no arguments"
        raise InputError(f"{spec}: {error}; it takes {takes}") from None
    with _blamed(spec):
        return factory(**model_args)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{path}: no such file; write path/to/file.py:factory")
    private = f"{_PRIVATE}{zlib.crc32(str(path.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(private, path)
    assert spec is not None and spec.loader is not None  # since it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module  # where dataclasses and pickle look for it
    with _blamed(str(path)):
        spec.loader.exec_module(module)
    return module


def _from_name(name: str) -> ModuleType:
    with _blamed(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if f"{name}.".startswith(f"{error.name}."):
                raise InputError(
                    f"no module '{error.name}' here or installed; write pkg.module:factory or path/to/file.py:factory"
                ) from None
            raise


@contextmanager
def _blamed(culprit: str) -> Iterator[None]:
    """Turn what a person's code raises into one sentence, the cause chained."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a script without a main guard parses its arguments and exits
        raise InputError(f"{culprit} fails ({reason(error)}); mend it, or see the traceback with --debug") from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put `folder` first on the path, and forget what was imported from the folders of other factories.

    Every other repository has a package `models`, and the second one must not get the first one's.
    """
    strangers = {name for name, home in _neighbours.items() if home != folder}
    for name in [name for name in sys.modules if name.partition(".")[0] in strangers]:
        del sys.modules[name]
    for name in strangers:
        del _neighbours[name]
    path, before = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        new = [name for name in sys.modules if name not in before and not name.startswith(_PRIVATE)]
        _neighbours.update({name: folder for name in new if "." not in name and _lies_in(folder, sys.modules[name])})


def _lies_in(folder: Path, module: ModuleType) -> bool:
    places = getattr(module, "__path__", None) or [getattr(module, "__file__", None)]
    return any(place and Path(place).resolve().parent == folder for place in places)
