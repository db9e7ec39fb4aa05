"""An unpickler for which every name is only a label: it imports nothing and calls nothing that a pickle names.

It walks the opcodes of protocols 0 to 5. What a pickle would call becomes plain data where there is a reducer for it
(`reducers`), and an `OpaqueObject` otherwise. Every step is paid from a budget of operations and of memory, so a small
file can't cost much.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from typing import Any

from coprobe.checkpoint.reader.reducers import REDUCERS, UNKNOWN, restore_array
from coprobe.checkpoint.reader.values import GlobalName, OpaqueObject, TensorSpec
from coprobe.errors import InputError

#: Operations and bytes of memory that reading any file may take, and what each storage that really is in the file adds
#: (its tensor takes about 40 operations and 2 kB).
OPERATIONS, OPERATIONS_PER_STORAGE = 400_000, 100
ROOM, ROOM_PER_STORAGE = 32 << 20, 6 << 10
_LONGEST_NUMBER = 1000
_MOST_TUPLE_KEYS, _WIDEST_KEY = 1000, 20
_FAR = 2**61 - 1

_DAMAGED = "holds a damaged or forged pickle"
REMEDY = "copy it again, or save model.state_dict()"
_TOO_MUCH = "describes more objects than coprobe reads; save model.state_dict() alone"

_MARK = object()


class Unpickler:
    """Reads one pickle.

    Args:
        data: the pickle, and whatever follows it.
        place: where it begins.
        persistent: from a persistent id to what it stands for.
        storages: how many storages the file really has; the budgets grow with them.

    Attributes:
        place: after `run`, the first byte behind the pickle.
        called: the names without a reducer that the pickle would have called, in order.
    """

    def __init__(
        self,
        data: bytes,
        place: int = 0,
        *,
        persistent: Callable[[Any], Any],
        storages: int = 0,
    ) -> None:
        self.data = data
        self.place = place
        self.called: dict[str, None] = {}
        self._persistent = persistent
        self._operations = OPERATIONS + OPERATIONS_PER_STORAGE * storages
        self._room = ROOM + ROOM_PER_STORAGE * storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._names: dict[str, GlobalName] = {}
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
        """What calling `name` would return, as plain data."""
        if not isinstance(args, tuple):
            raise TypeError
        label = name.name if isinstance(name, GlobalName | OpaqueObject) else f"a {type(name).__name__}"
        reducer = REDUCERS.get(label)
        value = reducer(self, *args) if reducer else UNKNOWN
        if value is not UNKNOWN:
            return value
        self.pay(500)
        self.called[label] = None
        return OpaqueObject(label, args)

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

    def _name(self, module: Any, name: Any) -> GlobalName:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError
        self.pay(len(module) + len(name))  # every time, since it takes time to look up
        label = f"{module}.{name}"
        if label not in self._names:
            self.pay(300)
            self._names[label] = GlobalName(label)
        return self._names[label]

    # Containers.

    def key(self, value: Any, depth: int = 0) -> Any:
        """`value`, if it may be a key: whoever chose it can't make it slow to hash and to compare."""
        if isinstance(value, str | bytes):
            self.pay(len(value))
            return value
        if isinstance(value, bool | float | GlobalName | None) or (isinstance(value, int) and -_FAR < value < _FAR):
            return value
        if isinstance(value, tuple) and self._tuple_keys < _MOST_TUPLE_KEYS and max(len(value), depth) <= _WIDEST_KEY:
            self._tuple_keys += 1
            return tuple(self.key(part, depth + 1) for part in value)
        raise InputError(f"holds a dictionary with keys of the kind {type(value).__name__}; {REMEDY}")

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, OpaqueObject):
            target.items = {} if target.items is None else target.items
            target = target.items
        if type(target) is not dict or len(values) % 2:
            raise TypeError
        self.pay(110 * len(values) // 2)
        for place in range(0, len(values), 2):
            target[self.key(values[place])] = values[place + 1]

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, OpaqueObject):
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
        if isinstance(target, TensorSpec):
            restore_array(target, state)
        elif isinstance(target, OpaqueObject):
            target.state = state if target.state is None else (target.state, state)
        elif not isinstance(target, dict | GlobalName):  # attributes of an OrderedDict; a class is only a label
            raise TypeError

    def _call_popped(self) -> None:
        args, name = self._pop(), self._pop()
        self._push(self.call(name, args))

    def _call_with_keywords(self) -> None:
        keywords, args, name = self._pop(), self._pop(), self._pop()
        value = self.call(name, args)
        if isinstance(value, OpaqueObject) and keywords:
            value.state = keywords
        self._push(value)

    def _memoize(self, key: int) -> None:
        value = self._top()
        self.pay(110)
        self._memo[key] = value


def _big_integer(unpickler: Unpickler, length: int) -> int:
    if not 0 <= length <= _LONGEST_NUMBER:
        raise InputError(f"holds a number of {length} bytes; {REMEDY}")
    return int.from_bytes(unpickler._take(length), "little", signed=True)


def _integer_line(unpickler: Unpickler) -> Any:
    line = unpickler._line()
    if len(line) > _LONGEST_NUMBER:
        raise InputError(f"holds a number of {len(line)} digits; {REMEDY}")
    return {b"00": False, b"01": True}.get(line) if line in (b"00", b"01") else int(line.rstrip(b"L"))


def _string_line(unpickler: Unpickler) -> str:
    line = unpickler._line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError
    return line[1:-1].decode("latin-1")  # without its escapes: coprobe shows such text, and does not need more


def _text(unpickler: Unpickler, length: int) -> str:
    return str(unpickler._take(length), "utf-8", "surrogatepass")


def _get(unpickler: Unpickler, key: int) -> None:
    unpickler._push(unpickler._memo[key])


def _stack_global(unpickler: Unpickler) -> None:
    name, module = unpickler._pop(), unpickler._pop()
    unpickler._push(unpickler._name(module, name))


def _global_lines(unpickler: Unpickler) -> GlobalName:
    return unpickler._name(str(unpickler._line(), "utf-8"), str(unpickler._line(), "utf-8"))


def _instance_of_lines(unpickler: Unpickler) -> None:
    name = _global_lines(unpickler)
    unpickler._push(unpickler.call(name, tuple(unpickler._since_mark())))


def _object(unpickler: Unpickler) -> None:
    name, *args = unpickler._since_mark()
    unpickler._push(unpickler.call(name, tuple(args)))


def _dictionary(unpickler: Unpickler) -> None:
    values = unpickler._since_mark()
    unpickler._push({}, 100)
    unpickler._set_items(values)


def _frozen_set(unpickler: Unpickler) -> None:
    values = unpickler._since_mark()
    unpickler._push(frozenset(map(unpickler.key, values)), 230 + 80 * len(values))


def _frame(unpickler: Unpickler) -> None:
    length = unpickler._number("<Q", 8)
    if length > len(unpickler.data) - unpickler.place:
        unpickler.place = len(unpickler.data)
        raise IndexError


def _protocol(unpickler: Unpickler) -> None:
    version = unpickler._number("<B", 1)
    if version > 5:
        raise InputError(f"holds a pickle of the unknown protocol {version}; {REMEDY}")


def _out_of_band(unpickler: Unpickler) -> None:
    raise InputError(f"holds a pickle whose buffers are elsewhere; {REMEDY}")


def _extension(code: str, width: int) -> Callable[[Unpickler], None]:
    return lambda m: m._push(m._name("extension", str(m._number(code, width))))


def _value(read: Callable[[Unpickler], Any], nbytes: int = 32) -> Callable[[Unpickler], None]:
    return lambda m: m._push(read(m), nbytes)


_STOP = ord(".")
_KNOWN: dict[int, Callable[[Unpickler], Any]] = {
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
    ord("R"): Unpickler._call_popped,
    0x81: Unpickler._call_popped,
    0x92: Unpickler._call_with_keywords,
    ord("i"): _instance_of_lines,
    ord("o"): _object,
    ord("b"): Unpickler._build,
    ord("P"): lambda m: m._push(m._persistent(str(m._line(), "ascii"))),
    ord("Q"): lambda m: m._push(m._persistent(m._pop())),
    # Framing.
    0x80: _protocol,
    0x95: _frame,
    0x97: _out_of_band,
    0x98: _out_of_band,
}


def _unknown(unpickler: Unpickler) -> None:
    raise ValueError


_OPERATIONS: list[Callable[[Unpickler], Any]] = [_KNOWN.get(code, _unknown) for code in range(256)]
