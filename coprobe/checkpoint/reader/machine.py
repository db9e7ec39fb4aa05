"""A pickle machine in which every name is only a label: nothing is imported, and nothing is called.

It walks the opcodes of protocols 0 to 5. What a pickle would call or restore becomes plain data where its meaning
is known (`meaning`), and a `Foreign` object where it is not. Every step is paid from a budget of operations and
of memory, so a small file can't make a large mess.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from typing import Any

from coprobe.checkpoint.reader.values import Foreign, Name, Stored
from coprobe.errors import InputError

#: Operations and bytes of objects that any file may use, and what each storage that really is in the file adds:
#: a tensor takes about 40 operations and 2 kB.
OPERATIONS, OPERATIONS_PER_STORAGE = 400_000, 100
ROOM, ROOM_PER_STORAGE = 32 << 20, 6 << 10
_LONGEST_NUMBER = 1000
_MOST_TUPLE_KEYS, _WIDEST_KEY = 1000, 20
_FAR = 2**61 - 1

_DAMAGED = "holds a damaged or forged pickle"
REMEDY = "copy it again, or save model.state_dict()"
_TOO_MUCH = "describes more objects than coprobe reads; save model.state_dict() alone"

#: (name, arguments) to the value that a call would have made, or `UNKNOWN`.
Calls = Callable[["Machine", str, tuple[Any, ...]], Any]

UNKNOWN = object()
_MARK = object()


class Machine:
    """Runs one pickle.

    Args:
        data: the pickle, and whatever follows it.
        place: where it begins.
        call: gives known calls a meaning; returns `UNKNOWN` for the others.
        restore: the same for `BUILD` on an array.
        persistent: what a persistent id stands for.
        storages: how many storages the file really has.

    Attributes:
        place: after `run`, the first byte behind the pickle.
        called: the foreign names that it would have called, in order.
    """

    def __init__(
        self,
        data: bytes,
        place: int = 0,
        *,
        call: Calls,
        restore: Callable[[Stored, Any], None],
        persistent: Callable[[Any], Any],
        storages: int = 0,
    ) -> None:
        self.data = data
        self.place = place
        self.called: dict[str, None] = {}
        self._call, self._restore, self._persistent = call, restore, persistent
        self._operations = OPERATIONS + OPERATIONS_PER_STORAGE * storages
        self._room = ROOM + ROOM_PER_STORAGE * storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._names: dict[str, Name] = {}
        self._tuple_keys = 0

    def run(self) -> Any:
        """The value of the pickle.

        Raises:
            InputError: it is damaged, cut short, or describes too much.
        """
        try:
            for _ in range(self._operations):
                operation = self.data[self.place]
                self.place += 1
                if operation == _STOP:
                    (value,) = self._stack
                    return value
                _OPERATIONS[operation](self)
        except InputError:
            raise
        except (IndexError, struct.error):
            if self.place >= len(self.data):
                raise InputError(f"holds a pickle that is cut short; {REMEDY}") from None
            raise InputError(f"{_DAMAGED}; {REMEDY}") from None
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, MemoryError):
            raise InputError(f"{_DAMAGED}; {REMEDY}") from None
        raise InputError(_TOO_MUCH)

    def pay(self, nbytes: int) -> None:
        """Take memory from the budget, before it is used."""
        self._room -= nbytes
        if self._room < 0:
            raise InputError(_TOO_MUCH)

    def call(self, name: Any, args: Any) -> Any:
        """What calling `name` stands for."""
        if not isinstance(args, tuple):
            raise TypeError
        label = name.name if isinstance(name, Name | Foreign) else f"a {type(name).__name__}"
        value = self._call(self, label, args)
        if value is not UNKNOWN:
            return value
        self.pay(500)
        self.called[label] = None
        return Foreign(label, args)

    @property
    def names(self) -> Collection[str]:
        """Every global that it has named so far."""
        return self._names

    # Reading the pickle's own bytes.

    def _take(self, count: int) -> bytes:
        start = self.place
        self.place = start + count
        if count < 0 or self.place > len(self.data):
            self.place = len(self.data)
            raise IndexError
        self.pay(count + 50)
        return self.data[start : self.place]

    def _number(self, code: str, width: int) -> Any:
        (value,) = struct.unpack_from(code, self.data, self.place)
        self.place += width
        return value

    def _line(self) -> bytes:
        end = self.data.find(b"\n", self.place, self.place + (1 << 20))
        if end < 0:
            self.place = len(self.data)
            raise IndexError
        line = self._take(end - self.place)
        self.place += 1
        return line

    # The stack.

    def _push(self, value: Any, nbytes: int = 0) -> None:
        self.pay(nbytes + 8)
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        stack = self._stack
        for place in range(len(stack) - 1, -1, -1):
            if stack[place] is _MARK:
                values = stack[place + 1 :]
                del stack[place:]
                return values
        raise IndexError

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise TypeError
        return value

    def _top(self) -> Any:
        value = self._stack[-1]
        if value is _MARK:
            raise TypeError
        return value

    def _name(self, module: Any, name: Any) -> Name:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError
        self.pay(len(module) + len(name))  # every time, since it takes time to look up
        label = f"{module}.{name}"
        if label not in self._names:
            self.pay(300)
            self._names[label] = Name(label)
        return self._names[label]

    # Containers.

    def key(self, value: Any, depth: int = 0) -> Any:
        """`value`, if it may be a key: whoever chose it can't make it slow to hash and to compare."""
        if isinstance(value, str | bytes):
            self.pay(len(value))
            return value
        if isinstance(value, bool | float | Name | None) or (isinstance(value, int) and -_FAR < value < _FAR):
            return value
        if isinstance(value, tuple) and self._tuple_keys < _MOST_TUPLE_KEYS and max(len(value), depth) <= _WIDEST_KEY:
            self._tuple_keys += 1
            return tuple(self.key(part, depth + 1) for part in value)
        raise InputError(f"holds a dictionary with keys of the kind {type(value).__name__}; {REMEDY}")

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Foreign):
            target.items = {} if target.items is None else target.items
            target = target.items
        if type(target) is not dict or len(values) % 2:
            raise TypeError
        self.pay(110 * len(values) // 2)
        for place in range(0, len(values), 2):
            target[self.key(values[place])] = values[place + 1]

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Foreign):
            target.items = [] if target.items is None else target.items
            target = target.items
        if type(target) is not list:
            raise TypeError
        self.pay(10 * len(values))
        target.extend(values)

    def _add(self) -> None:
        values, target = self._since_mark(), self._top()
        if type(target) is not set:
            raise TypeError
        self.pay(80 * len(values))
        target.update(map(self.key, values))

    def _tuple(self, values: list[Any]) -> None:
        self._push(tuple(values), 140 + 8 * len(values))

    # Objects.

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Stored):
            self._restore(target, state)
        elif isinstance(target, Foreign):
            target.state = state if target.state is None else (target.state, state)
        elif not isinstance(target, dict | Name):  # attributes of an OrderedDict; a class is only a label
            raise TypeError

    def _call_popped(self) -> None:
        args, name = self._pop(), self._pop()
        self._push(self.call(name, args))

    def _call_with_keywords(self) -> None:
        keywords, args, name = self._pop(), self._pop(), self._pop()
        value = self.call(name, args)
        if isinstance(value, Foreign) and keywords:
            value.state = keywords
        self._push(value)

    def _instance(self, name: Any, args: list[Any]) -> None:
        self._push(self.call(name, tuple(args)))

    def _memoize(self, key: int) -> None:
        value = self._top()
        self.pay(110)
        self._memo[key] = value


def _big_integer(machine: Machine, length: int) -> int:
    if not 0 <= length <= _LONGEST_NUMBER:
        raise InputError(f"holds a number of {length} bytes; {REMEDY}")
    return int.from_bytes(machine._take(length), "little", signed=True)


def _integer_line(machine: Machine) -> Any:
    line = machine._line()
    if len(line) > _LONGEST_NUMBER:
        raise InputError(f"holds a number of {len(line)} digits; {REMEDY}")
    return {b"00": False, b"01": True}.get(line) if line in (b"00", b"01") else int(line.rstrip(b"L"))


def _string_line(machine: Machine) -> str:
    line = machine._line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError
    return line[1:-1].decode("latin-1")  # without its escapes: coprobe shows such text, and does not need more


def _text(machine: Machine, length: int) -> str:
    return str(machine._take(length), "utf-8", "surrogatepass")


def _get(machine: Machine, key: int) -> None:
    machine._push(machine._memo[key])


def _stack_global(machine: Machine) -> None:
    name, module = machine._pop(), machine._pop()
    machine._push(machine._name(module, name))


def _global_lines(machine: Machine) -> Name:
    return machine._name(str(machine._line(), "utf-8"), str(machine._line(), "utf-8"))


def _instance_of_lines(machine: Machine) -> None:
    name = _global_lines(machine)
    machine._instance(name, machine._since_mark())


def _object(machine: Machine) -> None:
    name, *args = machine._since_mark()
    machine._instance(name, args)


def _dictionary(machine: Machine) -> None:
    values = machine._since_mark()
    machine._push({}, 100)
    machine._set_items(values)


def _frozen_set(machine: Machine) -> None:
    values = machine._since_mark()
    machine._push(frozenset(map(machine.key, values)), 230 + 80 * len(values))


def _frame(machine: Machine) -> None:
    length = machine._number("<Q", 8)
    if length > len(machine.data) - machine.place:
        machine.place = len(machine.data)
        raise IndexError


def _protocol(machine: Machine) -> None:
    version = machine._number("<B", 1)
    if version > 5:
        raise InputError(f"holds a pickle of the unknown protocol {version}; {REMEDY}")


def _out_of_band(machine: Machine) -> None:
    raise InputError(f"holds a pickle whose buffers are elsewhere; {REMEDY}")


def _extension(code: str, width: int) -> Callable[[Machine], None]:
    return lambda m: m._push(m._name("extension", str(m._number(code, width))))


def _value(read: Callable[[Machine], Any], nbytes: int = 32) -> Callable[[Machine], None]:
    return lambda m: m._push(read(m), nbytes)


_STOP = ord(".")
_KNOWN: dict[int, Callable[[Machine], Any]] = {
    ord("("): lambda m: m._push(_MARK),
    ord("0"): lambda m: m._stack.pop(),
    ord("1"): lambda m: m._since_mark(),
    ord("2"): lambda m: m._push(m._top()),
    # Plain values.
    ord("N"): lambda m: m._push(None),
    0x88: lambda m: m._push(True),
    0x89: lambda m: m._push(False),
    ord("K"): _value(lambda m: m._number("<B", 1), 0),
    ord("M"): _value(lambda m: m._number("<H", 2)),
    ord("J"): _value(lambda m: m._number("<i", 4)),
    0x8A: _value(lambda m: _big_integer(m, m._number("<B", 1))),
    0x8B: _value(lambda m: _big_integer(m, m._number("<i", 4))),
    ord("I"): _value(_integer_line),
    ord("L"): _value(_integer_line),
    ord("G"): _value(lambda m: m._number(">d", 8)),
    ord("F"): _value(lambda m: float(m._line())),
    # Text and bytes.
    ord("S"): _value(_string_line),
    ord("T"): _value(lambda m: m._take(m._number("<i", 4)).decode("latin-1")),
    ord("U"): _value(lambda m: m._take(m._number("<B", 1)).decode("latin-1")),
    ord("V"): _value(lambda m: str(m._line(), "raw-unicode-escape")),
    ord("X"): _value(lambda m: _text(m, m._number("<I", 4))),
    0x8C: _value(lambda m: _text(m, m._number("<B", 1))),
    0x8D: _value(lambda m: _text(m, m._number("<Q", 8))),
    ord("B"): _value(lambda m: m._take(m._number("<I", 4))),
    ord("C"): _value(lambda m: m._take(m._number("<B", 1))),
    0x8E: _value(lambda m: m._take(m._number("<Q", 8))),
    0x96: _value(lambda m: m._take(m._number("<Q", 8))),
    # Containers.
    ord("]"): lambda m: m._push([], 140),
    ord("}"): lambda m: m._push({}, 100),
    0x8F: lambda m: m._push(set(), 230),
    ord(")"): lambda m: m._push(()),
    ord("l"): lambda m: m._push(m._since_mark(), 140),
    ord("d"): _dictionary,
    ord("t"): lambda m: m._tuple(m._since_mark()),
    0x85: lambda m: m._tuple([m._pop()]),
    0x86: lambda m: m._tuple([m._pop(), m._pop()][::-1]),
    0x87: lambda m: m._tuple([m._pop(), m._pop(), m._pop()][::-1]),
    0x91: _frozen_set,
    ord("a"): lambda m: m._append([m._pop()]),
    ord("e"): lambda m: m._append(m._since_mark()),
    ord("s"): lambda m: m._set_items([m._pop(), m._pop()][::-1]),
    ord("u"): lambda m: m._set_items(m._since_mark()),
    0x90: lambda m: m._add(),
    # The memo.
    ord("p"): lambda m: m._memoize(int(m._line())),
    ord("q"): lambda m: m._memoize(m._number("<B", 1)),
    ord("r"): lambda m: m._memoize(m._number("<I", 4)),
    0x94: lambda m: m._memoize(len(m._memo)),
    ord("g"): lambda m: _get(m, int(m._line())),
    ord("h"): lambda m: _get(m, m._number("<B", 1)),
    ord("j"): lambda m: _get(m, m._number("<I", 4)),
    # Names and objects.
    ord("c"): lambda m: m._push(_global_lines(m)),
    0x93: _stack_global,
    0x82: _extension("<B", 1),
    0x83: _extension("<H", 2),
    0x84: _extension("<i", 4),
    ord("R"): Machine._call_popped,
    0x81: Machine._call_popped,
    0x92: Machine._call_with_keywords,
    ord("i"): _instance_of_lines,
    ord("o"): _object,
    ord("b"): Machine._build,
    ord("P"): lambda m: m._push(m._persistent(str(m._line(), "ascii"))),
    ord("Q"): lambda m: m._push(m._persistent(m._pop())),
    # Framing.
    0x80: _protocol,
    0x95: _frame,
    0x97: _out_of_band,
    0x98: _out_of_band,
}


def _unknown(machine: Machine) -> None:
    raise ValueError


_OPERATIONS: list[Callable[[Machine], Any]] = [_KNOWN.get(code, _unknown) for code in range(256)]
