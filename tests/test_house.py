"""The rules of the house that no linter knows: floors, registries that explain themselves, a README that is true."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from coprobe.core.registry import Registry
from tests import readme_tables

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "coprobe"

#: A module imports from floors below its own, or from its own package; CONTRIBUTING.md draws this.
FLOORS = [
    {"_version", "errors"},
    {"core"},
    {"models", "data"},
    {"nodes"},
    {"fast", "checkpoint"},
    {"attacks"},
    {"checks"},
    {"metrics"},
    {"masking", "verdict"},
    {"training", "figures"},
    {"probe"},
    {"paper"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """`coprobe.attacks.base` lies in the room `attacks`."""
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> list[tuple[str, str]]:
    """(module, name) of everything that a file imports from coprobe, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "coprobe":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = node.module == "coprobe" and alias.name in FLOOR
                found.append((whole if is_module else node.module, alias.name))
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name.startswith("coprobe.")]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_upwards_or_its_neighbours_private_names(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = parts[0]
    if own == "__init__":
        return  # the public names of the package, imported when they are asked for
    assert own in FLOOR, f"{own} has no floor; give it one here and in CONTRIBUTING.md"
    for module, name in imports_of(path):
        target = room(module)
        if target == own or not target:
            continue
        assert FLOOR[target] < FLOOR[own], f"{path.name} (floor {FLOOR[own]}) imports {module} (floor {FLOOR[target]})"
        assert not name.startswith("_") or name == "__version__", f"{path.name} imports the private {module}.{name}"


def registries() -> list[Registry]:
    from coprobe.attacks import ATTACKS
    from coprobe.data import DATASETS
    from coprobe.masking import SELECTORS
    from coprobe.metrics import METRICS
    from coprobe.models import ARCHITECTURES
    from coprobe.training import METHODS
    from coprobe.verdict.signs import SIGNS

    return [ATTACKS, METRICS, DATASETS, SELECTORS, ARCHITECTURES, METHODS, SIGNS]


@pytest.mark.parametrize("registry", registries(), ids=lambda registry: registry.kind)
def test_everything_registered_says_what_it_is_and_where_it_comes_from(registry: Registry) -> None:
    assert len(registry) > 0
    for entry in registry.entries():
        assert entry.summary, entry.name
        assert entry.source, entry.name


def test_registering_a_name_twice_is_refused() -> None:
    registry: Registry[int] = Registry("thing")
    registry.add("a", 1, summary="s")
    with pytest.raises(ValueError, match="thing 'a' is registered twice"):
        registry.add("a", 2, summary="s")


def test_the_tables_of_the_readme_are_those_of_the_registries() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_tables.renewed(text) == text, "README.md is stale; run 'make readme'"


#: Whatever of these stands in the package could run what stands in a file; `checkpoint/reader` needs none of them.
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "torch.package.PackageImporter",
    "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.export.load", "pandas.read_pickle", "pd.read_pickle",
    "np.load", "numpy.load", "runpy.run_path", "runpy.run_module",
}  # fmt: skip
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
#: Who imports modules by names: registries and commands of our own, and code that a person names (`--model`, `--arch`).
IMPORTERS = {
    "__init__.py", "cli/__init__.py", "core/processes.py", "core/registry.py", "models/factory.py", "models/public.py",
    "training/__init__.py",
}  # fmt: skip


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_can_run_what_stands_in_a_file(path: Path) -> None:
    modules, calls = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.split(".")[0])
            calls |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Attribute | ast.Name):
            calls.add(ast.unparse(node))
    assert not modules & UNSAFE_MODULES
    assert not calls & UNSAFE_CALLS
    assert "importlib" not in modules or path.relative_to(PACKAGE).as_posix() in IMPORTERS


def test_the_probe_is_a_facade() -> None:
    assert len((PACKAGE / "probe.py").read_text(encoding="utf-8").splitlines()) <= 250
