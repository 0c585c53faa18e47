"""Function calls between the test code of a problem and the program under test, which are never in one process.

The test runner runs the test code, with its expected values, and holds proxies for what the program defines. A call of
a proxy goes as JSON to the program's process; back come values of exact builtin types, an exception of a builtin type,
or a number that stands for an object the program keeps. So nothing that a program does to `__eq__`, `__class__` or
`builtins` reaches the comparison. Standard library only: this file runs inside the sandbox (worker.py).
"""

from __future__ import annotations

import builtins
import json
import operator
import os
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, islice
from typing import Any

MAX_MESSAGE = 16 << 20  # bytes of JSON, either way
MAX_DEPTH = 150  # containers in containers
MAX_ITEMS = 1_000_000  # taken from an iterator


class ConnectionLost(BaseException):
    """The other process has ended. No `Exception`, so that test code does not catch it by chance."""


class ProtocolError(ValueError):
    """A message that no honest program sends, or a value too large or too deep to travel."""


# --- values ------------------------------------------------------------------------------------


def _dict(parts: list) -> dict:
    return dict(zip(parts[::2], parts[1::2], strict=True))


# JSON tag: type, its parts (values, or a text), the value of them. None, bool, str, float, list and int below
# 2**53 travel as they are. Integers in base 16, since decimal ones have a limit of 4,300 digits.
KINDS = {
    "t": (tuple, tuple.__iter__, tuple),
    "s": (set, set.__iter__, set),
    "f": (frozenset, frozenset.__iter__, frozenset),
    "d": (dict, lambda value: chain.from_iterable(dict.items(value)), _dict),
    "i": (int, hex, lambda text: int(text, 16)),
    "c": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "b": (bytes, bytes.hex, bytes.fromhex),
    "y": (bytearray, bytearray.hex, bytearray.fromhex),
    "r": (range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
}
# What travels by its name
NAMED = {
    name: thing
    for name, thing in vars(builtins).items()
    if (isinstance(thing, type) and thing.__name__ == name) or thing in (Ellipsis, NotImplemented)
}
EXCEPTIONS = {name: kind for name, kind in NAMED.items() if isinstance(kind, type) and issubclass(kind, BaseException)}


def encode(value: Any, keep: Callable[[Any], Any], depth: int = 0) -> Any:
    """JSON for a value. Subclasses of builtin types travel as their base; `keep` gives the JSON of any other object."""
    small = isinstance(value, int) and not abs(value) >> 53
    if small or value is None or isinstance(value, (str, float)):
        return value
    if depth > MAX_DEPTH:
        raise ProtocolError(f"more than {MAX_DEPTH} containers inside each other")
    if isinstance(value, list):
        return [encode(item, keep, depth + 1) for item in list.__iter__(value)]
    for tag, (kind, parts_of, _) in KINDS.items():
        if isinstance(value, kind):
            parts = parts_of(value)
            return {tag: parts if isinstance(parts, str) else [encode(part, keep, depth + 1) for part in parts]}
    for name, thing in NAMED.items():
        if thing is value:
            return {"n": name}
    return keep(value)


def decode(data: Any, found: Callable[[Any], Any], depth: int = 0) -> Any:
    """The value of `encode`'s JSON, made of exact builtin types; `found` gives the object for a {"h": ...}.

    Raises:
        ProtocolError: no JSON that `encode` writes.
    """
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if depth > MAX_DEPTH + 1:
        raise ProtocolError("too deep")
    if isinstance(data, list):
        return [decode(item, found, depth + 1) for item in data]
    if len(data) != 1:
        raise ProtocolError("not one tag")
    ((tag, body),) = data.items()
    try:
        if tag == "n":
            return NAMED[body]
        if tag == "h":
            return found(body)
        parts = body if isinstance(body, str) else [decode(part, found, depth + 1) for part in body]
        return KINDS[tag][2](parts)
    except (TypeError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise ProtocolError(f"bad body for tag {tag!r}: {error}") from None


class Channel:
    """Messages, each a line of JSON, from one descriptor and to another (or the same: a stream socket)."""

    def __init__(self, source: int, target: int):
        self.source, self.target = open(source, "rb", closefd=False), open(target, "wb", closefd=False)

    def send(self, message: Any) -> None:
        """Raises ProtocolError for a message that is too large, ConnectionLost."""
        data = json.dumps(message).encode() + b"\n"
        if len(data) > MAX_MESSAGE:
            raise ProtocolError(f"a value of {len(data)} bytes; at most {MAX_MESSAGE} can travel")
        try:
            self.target.write(data)
            self.target.flush()
        except OSError:
            raise ConnectionLost from None

    def receive(self) -> Any:
        """Raises ProtocolError for what is no message or too large, ConnectionLost."""
        try:
            line = self.source.readline(MAX_MESSAGE)
        except OSError:
            raise ConnectionLost from None
        if len(line) == MAX_MESSAGE and not line.endswith(b"\n"):
            raise ProtocolError(f"a message of more than {MAX_MESSAGE} bytes")
        if not line.endswith(b"\n"):
            raise ConnectionLost
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(str(error)) from None


# --- the program's side ------------------------------------------------------------------------


class RpcServer:
    """Answers calls into a loaded program; every call raises `failure` where loading it failed."""

    def __init__(self, names: dict, failure: BaseException | None):
        self.names, self.failure = names, failure
        self.kept: list[Any] = []

    def serve(self, channel: Channel, until_one_raises: bool) -> None:
        """Answer all requests: of the test runner over a socket, or of a plan (assert_plans.py), which ends as its
        assertions would, with the first call that raises."""
        with suppress(ConnectionLost):
            while True:
                reply = self.reply(*channel.receive())
                try:
                    channel.send(reply)
                except (ValueError, RecursionError) as error:
                    reply = {"raised": "ValueError", "text": f"the result cannot leave the program: {error}"}
                    channel.send(reply)
                if until_one_raises and "raised" in reply:
                    return

    def reply(self, *request: Any) -> dict:
        """`answer`, or {"raised": name of a builtin exception, "text": its message}."""
        try:
            if self.failure is not None:
                raise self.failure
            return self.answer(*request)
        except BaseException as error:  # SystemExit too: the program must not end the conversation politely
            names = (kind.__name__ for kind in type(error).__mro__ if EXCEPTIONS.get(kind.__name__) is kind)
            text = ""
            with suppress(BaseException):  # its __str__ is the program's
                text = str(error)[:2000]
            return {"raised": next(names, "Exception"), "text": text}

    def answer(self, action: str, target: Any, arguments: list, keywords: dict) -> dict:
        """{"value": JSON of the result, "arguments": JSON of them if the call changed them}."""
        thing = self.object(target)
        arguments = [decode(a, self.object) for a in arguments]
        keywords = {k: decode(v, self.object) for k, v in keywords.items()}
        before = [encode(a, self.keep) for a in arguments]
        reply = {"value": encode(ACTIONS[action](thing, *arguments, **keywords), self.keep)}
        after = [encode(a, self.keep) for a in arguments]
        return reply if after == before else reply | {"arguments": after}

    def object(self, target: str | int) -> Any:
        """What a name of the program or the number of a kept object stands for."""
        if isinstance(target, int):
            return self.kept[target]
        if target in self.names:
            return self.names[target]
        raise NameError(f"name {target!r} is not defined")

    def keep(self, value: Any) -> dict:
        """Keep an object that cannot travel; the JSON that stands for it."""
        for index, kept in enumerate(self.kept):
            if kept is value:
                return {"h": index}
        self.kept.append(value)
        return {"h": len(self.kept) - 1}


def _items(thing: Any) -> list:
    items = list(islice(iter(thing), MAX_ITEMS + 1))
    if len(items) > MAX_ITEMS:
        raise ValueError(f"an iterator of more than {MAX_ITEMS} items")
    return items


ACTIONS = {"call": operator.call, "get": getattr, "set": setattr, "item": operator.getitem}
ACTIONS |= {"items": _items, "len": len, "text": str}


# --- the test runner's side --------------------------------------------------------------------


class Proxy:
    """Stands for something that the program keeps: a function, a class, an object. Equal to itself only."""

    def __init__(self, client: RpcClient, target: str | int):
        self.__dict__.update(_client=client, _target=target)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._client.ask("call", self._target, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._client.ask("get", self._target, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._client.ask("set", self._target, (name, value))

    def __iter__(self) -> Any:
        return iter(self._client.ask("items", self._target))

    def __len__(self) -> int:
        return self._client.ask("len", self._target)

    def __getitem__(self, key: Any) -> Any:
        return self._client.ask("item", self._target, (key,))

    def __str__(self) -> str:
        return self._client.ask("text", self._target)


class RpcClient:
    """The test runner's end of the connection. `raised` holds the exceptions that came from the program."""

    def __init__(self, connection_fd: int):
        self.channel = Channel(connection_fd, connection_fd)
        self.proxies: dict[int, Proxy] = {}
        self.raised: list[BaseException] = []
        self.broken: str | None = None  # sticky: test code that catches everything must not hide it

    def ask(self, action: str, target: str | int, arguments: tuple = (), keywords: dict | None = None) -> Any:
        """The result of one request; arguments that the program changed are changed in place.

        Raises:
            ConnectionLost: the program has ended or sent what no honest program sends.
            Exception: what the program raised, as its nearest builtin type.
        """
        encoded = [encode(a, self._handle) for a in arguments]
        named = {name: encode(value, self._handle) for name, value in (keywords or {}).items()}
        self.channel.send([action, target, encoded, named])
        try:
            reply = self.channel.receive()
            if "raised" in reply:
                self._raise(EXCEPTIONS[reply["raised"]], reply.get("text"))
            value = decode(reply["value"], self._proxy)
            for old, new in zip(arguments, reply.get("arguments", ())):
                overwrite(old, decode(new, self._proxy))
            return value
        except ConnectionLost:
            self.broken = "lost"
            raise
        except (ProtocolError, LookupError, TypeError, AttributeError) as error:
            if error in self.raised:
                raise
            self.broken = "protocol"
            raise ConnectionLost from None

    def _raise(self, kind: type[BaseException], text: Any) -> None:
        if issubclass(kind, (BaseExceptionGroup, UnicodeError)):  # most of these cannot be made from a text
            kind = UnicodeError if issubclass(kind, UnicodeError) else Exception
        error = kind(str(text))
        self.raised.append(error)
        raise error

    def _handle(self, value: Any) -> dict:
        if isinstance(value, Proxy) and value._client is self:
            return {"h": value._target}
        raise TypeError(f"the test passes a {type(value).__name__}, which cannot travel to the program")

    def _proxy(self, number: Any) -> Proxy:
        return self.proxies.setdefault(number, Proxy(self, number))


def overwrite(old: Any, new: Any) -> Any:
    """`old` with the contents of `new`, in place as far down as both are mutable and of one type; else `new`."""
    if type(old) is not type(new) or not isinstance(old, (list, bytearray, dict, set)):
        return new
    if isinstance(old, (list, bytearray)):
        old[:] = [overwrite(old[i], item) if i < len(old) else item for i, item in enumerate(new)]
        return old
    if isinstance(old, dict):
        new = {key: overwrite(old[key], item) if key in old else item for key, item in new.items()}
    old.clear()
    old.update(new)
    return old


def names_in(*texts: str) -> tuple[set[str], set[str]]:
    """Names that the code reads, and names that something in it binds, in whatever scope.

    Raises:
        SyntaxError: no Python.
    """
    from symtable import symtable  # only the test runner wants it

    tables = [symtable(text, "<test>", "exec") for text in texts]
    for table in tables:  # grows
        tables += table.get_children()
    symbols = [symbol for table in tables for symbol in table.get_symbols()]
    bound = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported() or s.is_parameter()}
    return {s.get_name() for s in symbols if s.is_referenced()}, bound


def test_globals(client: RpcClient, setup: str, code: str, entry_point: str | None) -> dict:
    """Names for the test code: what `setup` binds, and of those that the test code reads and nothing in it binds, real
    standard modules, and proxies for all others but builtins."""
    names: dict[str, Any] = {"__name__": "tests"}
    read, bound = names_in(setup, code)
    for name in sorted(read - bound - {entry_point}):
        if name in sys.stdlib_module_names:
            names[name] = __import__(name)
        elif not hasattr(builtins, name):
            names[name] = Proxy(client, name)
    exec(compile(setup, "<setup>", "exec"), names)
    if entry_point:
        names[entry_point] = names["candidate"] = Proxy(client, entry_point)
    return names


def test_runner(test_fd: int, verdict_fd: int, connection_fd: int) -> None:
    """Run one test (JSON: the code and the other arguments of `test_globals`) and write into `verdict_fd` how it ended:
    "pass", "wrong", "lost", "protocol", or the name of the exception that the program raised."""
    with os.fdopen(test_fd, "rb") as file:
        test = json.load(file)
    client = RpcClient(connection_fd)
    try:
        names = test_globals(client, **test)
        exec(compile(test["code"], "<test>", "exec"), names)
        if test["entry_point"] and isinstance(names.get("check"), types.FunctionType):
            names["check"](names[test["entry_point"]])
        verdict = "pass"
    except ConnectionLost:
        verdict = "lost"
    except BaseException as error:
        verdict = type(error).__name__ if any(error is e for e in client.raised) else "wrong"
    os.write(verdict_fd, (client.broken or verdict).encode())
