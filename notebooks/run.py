"""Execute notebooks and keep their outputs in them: `python -m notebooks.run [NAME]...`, all of them without a name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
#: All that a notebook says of itself; Jupyter also notes the version of Python, which differs between machines.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Fill in the outputs of a notebook, without times, so that the same outputs give the same file.

    Args:
        notebook: its outputs are replaced.
        folder: where its kernel works.

    Raises:
        CellExecutionError: a cell failed.
    """
    resources = {"metadata": {"path": str(folder)}}
    # What a cell prints comes in as many pieces as there was time for: they are put together.
    NotebookClient(notebook, timeout=None, record_timing=False, coalesce_streams=True, resources=resources).execute()
    notebook.metadata = nbformat.from_dict(METADATA)


def main(names: list[str]) -> None:
    """Execute notebooks of this folder in place, by name without suffix; one that fails is left as it was."""
    name, colon, directory = os.environ.get("COPROBE_CIFAR10", "").partition(":")
    if colon:  # a directory that counts from here; kernels work in the notebooks' folder
        os.environ["COPROBE_CIFAR10"] = f"{name}:{Path(directory).resolve()}"
    for path in [HERE / f"{name}.ipynb" for name in names] or sorted(HERE.glob("*.ipynb")):
        print(path.name, file=sys.stderr)
        notebook = nbformat.read(path, as_version=4)
        execute(notebook, path.parent)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
