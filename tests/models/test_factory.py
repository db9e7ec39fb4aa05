from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from torch import nn

from coprobe.errors import InputError
from coprobe.models.factory import factory_network

NETS = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Widths:
    first: int = 3

class Net(nn.Sequential):
    def __init__(self, num_classes, width=4):
        print("building")
        super().__init__(nn.Linear(width, num_classes))

def make(*, width=Widths().first):
    return nn.Linear(width, width)

def broken():
    raise KeyError("the key\\nthat is missing" + "!" * 500)

def number():
    return 7

ready = nn.Linear(2, 5).train()
constant = 3
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    return str(tmp_path / "nets.py")


def repository(folder: Path, width: int) -> str:
    """A file beside a package `models`, as most repositories have it."""
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "__init__.py").touch()
    (folder / "models" / "sizes.py").write_text(f"WIDTH = {width}", encoding="utf-8")
    (folder / "train.py").write_text(
        "from torch import nn\n\ndef net():\n    from models.sizes import WIDTH\n    return nn.Linear(1, WIDTH)\n",
        encoding="utf-8",
    )
    return f"{folder / 'train.py'}:net"


def complaint(spec: str, **model_args: object) -> str:
    with pytest.raises(InputError) as caught:
        factory_network(spec, **model_args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_functions_and_networks_of_a_file(nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert factory_network(f"{nets}:Net", num_classes=6)[0].out_features == 6
    assert factory_network(f"{nets}:make").in_features == 3
    assert factory_network(f"{nets}:make", width=8).in_features == 8
    assert factory_network(f"{nets}:ready").training
    assert capsys.readouterr().out == ""  # foreign prints are kept out of ours


def test_a_file_is_read_again(nets: str) -> None:
    assert factory_network(f"{nets}:make").in_features == 3
    Path(nets).write_text(NETS.replace("first: int = 3", "first: int = 33"), encoding="utf-8")
    assert factory_network(f"{nets}:make").in_features == 33


def test_a_module_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "somebodys_package").mkdir()
    (tmp_path / "somebodys_package" / "nets.py").write_text(NETS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert factory_network("somebodys_package.nets:make").in_features == 3
    assert factory_network("torch.nn:Linear", in_features=2, out_features=3).out_features == 3


def test_the_neighbours_of_a_file_are_its_own(tmp_path: Path) -> None:
    path = list(sys.path)
    first, second = repository(tmp_path / "a", 11), repository(tmp_path / "b", 22)
    assert [factory_network(spec).out_features for spec in (first, second, second, first)] == [11, 22, 22, 11]
    assert sys.path == path


def test_the_path_is_restored_after_a_failure(nets: str) -> None:
    path = list(sys.path)
    complaint(f"{nets}:broken")
    assert sys.path == path


def test_what_the_code_raises_is_quoted_on_one_line_and_chained(nets: str) -> None:
    with pytest.raises(InputError, match=r"nets\.py:broken fails \(KeyError: 'the key.*; .* --debug$") as caught:
        factory_network(f"{nets}:broken")
    assert isinstance(caught.value.__cause__, KeyError)
    assert len(str(caught.value)) <= 300 + len(nets)


@pytest.mark.parametrize(
    ("code", "quoted"),
    [
        ("import somebody_forgot_this", "(ModuleNotFoundError: No module named 'somebody_forgot_this')"),
        ("def f(:", "(SyntaxError: "),
        ("import sys; sys.exit(2)", "(SystemExit: 2)"),
        ("raise RuntimeError", "(RuntimeError)"),
    ],
)
def test_code_that_fails_while_it_is_imported(code: str, quoted: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(code, encoding="utf-8")
    message = complaint(f"{file}:net")
    assert message.startswith(f"{file} fails ")
    assert quoted in message


def test_a_module_that_lacks_another_one_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacks_another.py").write_text("import somebody_forgot_this", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "lacks_another fails (ModuleNotFoundError: No module named 'somebody" in complaint("lacks_another:net")


def test_wrong_arguments_say_which_it_takes(nets: str) -> None:
    assert complaint(f"{nets}:make", wdith=8).endswith("got an unexpected keyword argument 'wdith'; it takes width=3")
    assert complaint(f"{nets}:Net").endswith(
        "missing a required argument: 'num_classes'; it takes num_classes, width=4"
    )
    assert complaint(f"{nets}:number", x=1).endswith("it takes no arguments")
    assert "is no factory and takes no arguments; leave out x" in complaint(f"{nets}:ready", x=1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet", "'resnet' names no factory; write pkg.module:factory"),
        (":net", "names no factory"),
        ("pkg.module:", "names no factory"),
        ("absent/nets.py:net", "nets.py: no such file"),
        ("no_such_package.nets:net", "no module 'no_such_package' here or installed"),
        ("torch.no_such_module:net", "no module 'torch.no_such_module' here"),
        ("torch.nn:Linaer", "unknown factory of torch.nn 'Linaer'; did you mean Linear"),
        ("torch.nn:Module.forward", "unknown factory of torch.nn 'Module.forward'"),
    ],
)
def test_what_is_not_there_says_so(spec: str, message: str) -> None:
    assert message in complaint(spec)


def test_what_is_no_network_is_refused(nets: str) -> None:
    for name in ("number", "constant"):
        assert re.search(rf":{name} gives a int, not a torch\.nn\.Module; name what", complaint(f"{nets}:{name}"))
    assert isinstance(factory_network(f"{nets}:make"), nn.Module)
