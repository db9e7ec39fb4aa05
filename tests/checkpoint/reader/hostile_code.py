"""Pickles that run code when an unsafe loader takes them, through every door that is known."""

from __future__ import annotations

import marshal
import os
import pickle
from collections.abc import Callable, Iterator

from tests.checkpoint.reader import opcodes as op
from tests.checkpoint.reader import writers
from tests.checkpoint.reader.corpus import Entry, Trap

Expression = Callable[[Trap], bytes]


def _command(function: str) -> Expression:
    return lambda trap: op.call(function, op.text(trap.command))


def _code(function: str, *more: bytes) -> Expression:
    return lambda trap: op.call(function, op.text(trap.code), *more)


def _words(function: str) -> Expression:
    """A function that takes the words of a command as a list."""
    return lambda trap: op.call(function, op.listing(op.text("touch"), op.text(str(trap.sentinel))))


def _creates(function: str) -> Expression:
    """A function that creates the file which it is given for writing."""
    return lambda trap: op.call(function, op.text(str(trap.sentinel)), op.text("w"))


def _attribute(owner: bytes, last: str) -> bytes:
    return op.call("builtins.getattr", owner, op.text(last))


_SYSTEM = op.name("posix.system")


def _nested(trap: Trap) -> bytes:
    return op.pickled(op.call(_SYSTEM, op.text(trap.command)))


def _function(trap: Trap) -> bytes:
    compiled = op.octets(marshal.dumps(compile(trap.code, "x", "exec")))
    builtins = op.mapping([(op.text("__builtins__"), op.call("builtins.__import__", op.text("builtins")))])
    made = op.call("types.FunctionType", op.call("marshal.loads", compiled), builtins)
    return op.call(made)


def _extension(module: str, last: str, code: int, opcode: bytes, argument: str) -> bytes:
    """A name registered under a number, and called by that number."""
    register = op.call("copyreg.add_extension", op.text(module), op.text(last), op.number(code))
    return register + op.POP + op.call(opcode, op.text(argument))


def _script(trap: Trap) -> str:
    path = trap.decoy.parent / "script.py"
    path.write_text(trap.code)
    return str(path)


#: Run in the control: an unsafe loader must set the sentinel (or lose the decoy) with each.
RUNNING: dict[str, Expression] = {
    "os-system": _command("os.system"),
    "posix-system": _command("posix.system"),
    "os-popen": lambda trap: op.call(_attribute(op.call("os.popen", op.text(trap.command)), "read")),
    "subprocess-popen": lambda trap: op.call(_attribute(_words("subprocess.Popen")(trap), "wait")),
    "subprocess-run": _words("subprocess.run"),
    "subprocess-call": _words("subprocess.call"),
    "subprocess-check-output": _words("subprocess.check_output"),
    "subprocess-getoutput": _command("subprocess.getoutput"),
    "posix-spawn": lambda trap: op.call(
        "os.waitpid",
        op.call(
            "posix.posix_spawn",
            op.text("/usr/bin/touch"),
            op.listing(op.text("touch"), op.text(str(trap.sentinel))),
            op.EMPTY_DICT,
        ),
        op.number(0),
    ),
    "eval": _code("builtins.eval"),
    "eval-of-python-2": _code("__builtin__.eval"),
    "exec": _code("builtins.exec"),
    "exec-compile": lambda trap: op.call(
        "builtins.exec", _code("builtins.compile", op.text("x"), op.text("exec"))(trap)
    ),
    "import-getattr": lambda trap: op.call(
        _attribute(op.call("builtins.__import__", op.text("os")), "system"), op.text(trap.command)
    ),
    "importlib-getattr": lambda trap: op.call(
        _attribute(op.call("importlib.import_module", op.text("os")), "system"), op.text(trap.command)
    ),
    "getattr-of-a-listed-class": lambda trap: op.call(
        op.call(
            _attribute(_attribute(op.name("torch._utils._rebuild_tensor_v2"), "__globals__"), "get"),
            op.text("nothing"),
            _SYSTEM,
        ),
        op.text(trap.command),
    ),
    "dotted-name": lambda trap: op.call(op.stack_name("torch.serialization", "os.system"), op.text(trap.command)),
    "runpy-run-path": lambda trap: op.call("runpy.run_path", op.text(_script(trap))),
    "runpy-run-code": _code("runpy._run_code", op.EMPTY_DICT),
    "ctypes": lambda trap: op.call(
        _attribute(op.call("ctypes.CDLL", op.NONE), "system"), op.octets(trap.command.encode())
    ),
    "timeit": _code("timeit.timeit", op.text("pass"), op.name("time.perf_counter"), op.number(1)),
    "cprofile": _code("cProfile.run", op.text("/dev/null")),
    "bdb": lambda trap: op.call(_attribute(op.call("bdb.Bdb"), "run"), op.text(trap.code)),
    "code-interpreter": lambda trap: op.call(
        _attribute(op.call("code.InteractiveInterpreter"), "runsource"), op.text(trap.code)
    ),
    "numpy-runstring": lambda trap: op.call(
        "numpy.testing._private.utils.runstring", op.text(trap.code), op.EMPTY_DICT
    ),
    "torch-collect-env": _command("torch.utils.collect_env.run"),
    "methodcaller": lambda trap: op.call(
        op.call("operator.methodcaller", op.text("system"), op.text(trap.command)),
        op.call("builtins.__import__", op.text("os")),
    ),
    "partial": lambda trap: op.call(op.call("functools.partial", _SYSTEM, op.text(trap.command))),
    "reduce": lambda trap: op.call(
        "functools.reduce", op.name("builtins.eval"), op.listing(op.text(trap.code), op.EMPTY_DICT)
    ),
    "lazy-map": lambda trap: op.call(
        "builtins.list", op.call("builtins.map", op.name("builtins.eval"), op.listing(op.text(trap.code)))
    ),
    "marshalled-function": _function,
    "nested-pickle": lambda trap: op.call("pickle.loads", op.octets(_nested(trap))),
    "nested-c-pickle": lambda trap: op.call("_pickle.loads", op.octets(_nested(trap))),
    "nested-torch-storage": lambda trap: op.call(
        "torch.storage._load_from_bytes", op.octets(writers.legacy(op.call(_SYSTEM, op.text(trap.command))))
    ),
    "nested-torch-zip": lambda trap: op.call(
        "torch.storage._load_from_bytes", op.octets(writers.zipped(op.call(_SYSTEM, op.text(trap.command))))
    ),
    "open": _creates("builtins.open"),
    "io-open": _creates("_io.open"),
    "codecs-open": _creates("codecs.open"),
    "zip-file": _creates("zipfile.ZipFile"),
    "file-handler": _creates("logging.FileHandler"),
    "path-touch": lambda trap: op.call(
        op.stack_name("pathlib", "Path.touch"), op.call("pathlib.PosixPath", op.text(str(trap.sentinel)))
    ),
    "mkdir": lambda trap: op.call("posix.mkdir", op.text(str(trap.sentinel))),
    "rmtree": lambda trap: op.call("shutil.rmtree", op.text(str(trap.decoy))),
    "rmdir": lambda trap: op.call("posix.rmdir", op.text(str(trap.decoy))),
    "names-through-memo": lambda trap: (
        op.text("posix")
        + b"q\xc8"
        + op.POP
        + op.text("system")
        + b"r\x00\x01\x00\x00"
        + op.POP
        + op.call(b"h\xc8j\x00\x01\x00\x00\x93", op.text(trap.command))
    ),
    "names-through-text-memo": lambda trap: (
        op.text("posix") + b"p77\n0" + op.text("system") + b"p78\n0" + op.call(b"g77\ng78\n\x93", op.text(trap.command))
    ),
    "names-through-duplicates": lambda trap: op.call(
        op.text("junk") + op.POP + op.text("posix") + op.DUP + op.POP + b"U\x06system\x93", op.text(trap.command)
    ),
    "inst": lambda trap: op.MARK + op.text(trap.command) + b"iposix\nsystem\n",
    "obj": lambda trap: op.MARK + op.name("zipfile.ZipFile") + op.text(str(trap.sentinel)) + op.text("w") + op.OBJ,
    "build-with-setstate": lambda trap: (
        op.call("types.SimpleNamespace") + op.named(__setstate__=_SYSTEM) + op.BUILD + op.text(trap.command) + op.BUILD
    ),
    "extension-1": lambda trap: _extension("posix", "system", 0xF0, b"\x82\xf0", trap.command),
    "extension-2": lambda trap: _extension("os", "system", 0x1234, b"\x83\x34\x12", trap.command),
    "extension-4": lambda trap: _extension("subprocess", "getoutput", 0x12345, b"\x84\x45\x23\x01\x00", trap.command),
    "default-factory": lambda trap: op.call(
        _attribute(
            op.call("collections.defaultdict", op.call("functools.partial", _SYSTEM, op.text(trap.command))),
            "__missing__",
        ),
        op.text("key"),
    ),
}

#: Only labels here, since running them would open a browser, a terminal or the net; the scanner looks at them too.
STILL: dict[str, Expression] = {
    "nt-system": _command("nt.system"),
    "os-execv": _words("os.execv"),
    "webbrowser": lambda trap: op.call("webbrowser.open", op.text("http://127.0.0.1:9/")),
    "pty": _words("pty.spawn"),
    "socket": lambda trap: op.call("socket.create_connection", op.sequence(op.text("127.0.0.1"), op.number(9))),
    "urlopen": lambda trap: op.call("urllib.request.urlopen", op.text("http://127.0.0.1:9/")),
    "pip-main": lambda trap: op.call("pip.main", op.listing(op.text("install"), op.text("."))),
    "pydoc-pager": lambda trap: op.call("pydoc.pipepager", op.text("x"), op.text(trap.command)),
    "runpy-run-module": lambda trap: op.call("runpy.run_module", op.text("this")),
    "torch-hub": lambda trap: op.call("torch.hub.load", op.text("."), op.text("model")),
    "numpy-load": lambda trap: op.call("numpy.load", op.text(str(trap.path))),
    "joblib-load": lambda trap: op.call("joblib.load", op.text(str(trap.path))),
    "kill": lambda trap: op.call("os.kill", op.number(0), op.number(0)),
    "exit": lambda trap: op.call("os._exit", op.number(0)),
    "idle": lambda trap: op.call("idlelib.pyshell.ModifiedInterpreter.runcode", op.text(trap.code)),
}

#: Doors that stand in whichever container it is.
_EVERYWHERE = (
    "posix-system",
    "eval",
    "exec-compile",
    "import-getattr",
    "nested-pickle",
    "names-through-memo",
    "inst",
    "obj",
)
#: Names with dots in their last part are a matter of protocol 4.
_PROTOCOL_4 = ("dotted-name", "path-touch")


class _Evil:
    """Pickles itself as a call of `posix.system`."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce_ex__(self, protocol: object) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def entries() -> Iterator[Entry]:
    for label, expression in {**RUNNING, **STILL}.items():
        protocol = 4 if label in _PROTOCOL_4 else 2
        yield Entry(f"code-{label}.pt", _zip(expression, protocol), _expected(label), runs=label in RUNNING, code=True)
    for label in _EVERYWHERE:
        yield Entry(f"code-{label}.pth", _legacy(RUNNING[label]), "inert", runs=True, code=True)
        yield Entry(f"code-{label}.pkl", _plain(RUNNING[label]), "inert", runs=True, code=True)
    for protocol in range(6):
        yield Entry(f"reduce-ex-{protocol}.pt", _reduced(protocol, "zip"), "inert", runs=True, code=True)
        yield Entry(f"reduce-ex-{protocol}.pth", _reduced(protocol, "legacy"), "inert", runs=True, code=True)
        plain = "inert" if protocol >= 2 else "refused|inert"  # older ones begin like any text
        yield Entry(f"reduce-ex-{protocol}.ckpt", _reduced(protocol, "plain"), plain, runs=True, code=True)
    honest = op.named(w=op.legacy_vector())
    for part in ("magic", "version", "system", "keys"):
        yield Entry(f"{part}-is-code.pth", _second(part), "refused|inert", runs=True, code=True)
    yield Entry("behind-the-stop.pt", _behind_the_stop, "refused|inert")
    yield Entry("behind-the-stop.pkl", lambda trap: op.pickled(op.named(a=op.TRUE)) + _nested(trap), "refused|inert")
    yield Entry(
        "in-bytes.pt", lambda trap: writers.zipped(op.named(w=op.vector(), b=op.octets(_nested(trap)))), "inert"
    )
    yield Entry("in-storage.pt", _in_storage, "inert")
    yield Entry("behind-the-tensors.pth", lambda trap: writers.legacy(honest) + _nested(trap), "refused|inert")


def _expected(label: str) -> str:
    if label.startswith("nested-torch"):
        return "unreadable"  # a storage within the pickle is known, and not read
    return "refused|inert" if label.startswith("extension") or label == "lazy-map" else "inert"


def _zip(expression: Expression, protocol: int) -> Callable[[Trap], bytes]:
    return lambda trap: writers.zipped(op.named(extra=expression(trap), w=op.vector()), protocol=protocol)


def _legacy(expression: Expression) -> Callable[[Trap], bytes]:
    return lambda trap: writers.legacy(op.named(extra=expression(trap), w=op.legacy_vector()))


def _plain(expression: Expression) -> Callable[[Trap], bytes]:
    return lambda trap: op.pickled(op.named(extra=expression(trap)))


def _second(part: str) -> Callable[[Trap], bytes]:
    return lambda trap: writers.legacy(op.named(w=op.legacy_vector()), **{part: _nested(trap)})


def _reduced(protocol: int, container: str) -> Callable[[Trap], bytes]:
    def build(trap: Trap) -> bytes:
        raw = pickle.dumps({"extra": _Evil(trap.command)}, protocol=protocol)
        if container == "zip":
            return writers.archive(writers.members(raw, {}))
        if container == "plain":
            return raw
        whole = writers.legacy(op.NONE, {})
        return whole.replace(op.pickled(op.NONE), raw)

    return build


def _behind_the_stop(trap: Trap) -> bytes:
    return writers.archive(writers.members(op.pickled(op.named(w=op.vector())) + _nested(trap)))


def _in_storage(trap: Trap) -> bytes:
    code = _nested(trap)
    code += bytes(-len(code) % 4)
    return writers.zipped(op.named(w=op.vector(len(code) // 4)), {"0": code})
