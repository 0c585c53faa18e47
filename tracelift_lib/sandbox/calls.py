"""Function calls between the test code of a problem and the program under test, which are never in one process.

The judge runs the test code, with its expected values, and holds stand-ins for what the program defines. A call of a
stand-in goes as JSON to the program's process; back come values of exact builtin types, an exception of a builtin
type, or a number that stands for an object the program keeps. So nothing that a program does to `__eq__`, `__class__`
or `builtins` reaches the comparison. Standard library only: this file runs inside the sandbox (worker.py).
"""

from __future__ import annotations

import builtins
import json
import os
import socket
import sys
import types
from collections.abc import Callable
from typing import Any

MAX_MESSAGE = 16 << 20  # bytes of JSON, either way
MAX_DEPTH = 150  # containers in containers
MAX_ITEMS = 1_000_000  # taken from an iterator
PLAIN = (type(None), bool, str, float)
CONTAINERS = {"l": list, "t": tuple, "s": set, "f": frozenset}
MUTABLE = (list, dict, set, bytearray)


class ConnectionLost(BaseException):
    """The other process has ended. No `Exception`, so that test code does not catch it by chance."""


class ProtocolError(ValueError):
    """A message that no honest program sends, or a value too large or too deep to travel."""


# --- values ------------------------------------------------------------------------------------


def encode(value: Any, keep: Callable[[Any], dict], depth: int = 0) -> Any:
    """JSON for a value. Subclasses of builtin types travel as their base; `keep` gives the JSON of any other object."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if depth > MAX_DEPTH:
        raise ProtocolError(f"more than {MAX_DEPTH} containers inside each other")
    if kind is int or isinstance(value, int):
        return {"i": hex(value)} if abs(value) >> 53 else int(value)  # JSON numbers have a limit of 4,300 digits
    for tag, base in CONTAINERS.items():
        if isinstance(value, base):
            items = [encode(item, keep, depth + 1) for item in base.__iter__(value)]
            return items if tag == "l" else {tag: items}
    if isinstance(value, dict):
        return {"d": [[encode(k, keep, depth + 1), encode(v, keep, depth + 1)] for k, v in dict.items(value)]}
    return _encode_rare(value, keep)


def _encode_rare(value: Any, keep: Callable[[Any], dict]) -> Any:
    for base in (str, float):
        if isinstance(value, base):
            return base.__str__(value) if base is str else base.__float__(value)
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"b" if isinstance(value, bytes) else "y": bytes(value).hex()}
    if isinstance(value, range):
        return {"r": [{"i": hex(part)} for part in (value.start, value.stop, value.step)]}
    if value is Ellipsis or value is NotImplemented:
        return {"n": "Ellipsis" if value is Ellipsis else "NotImplemented"}
    if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
        return {"n": value.__name__}
    return keep(value)


def decode(data: Any, found: Callable[[Any], Any], depth: int = 0) -> Any:
    """The value of `encode`'s JSON, made of exact builtin types; `found` gives the object for a {"h": ...}.

    Raises:
        ProtocolError: no JSON that `encode` writes.
    """
    if type(data) in PLAIN or type(data) is int:
        return data
    if depth > MAX_DEPTH + 1:
        raise ProtocolError("too deep")
    if type(data) is list:
        return [decode(item, found, depth + 1) for item in data]
    if type(data) is not dict or len(data) != 1:
        raise ProtocolError("not one tag")
    ((tag, body),) = data.items()
    try:
        if tag in CONTAINERS:
            return CONTAINERS[tag](decode(item, found, depth + 1) for item in body)
        if tag == "d":
            return {decode(k, found, depth + 1): decode(v, found, depth + 1) for k, v in body}
        return _decode_rare(tag, body, found, depth)
    except (TypeError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise ProtocolError(f"bad body for tag {tag!r}: {error}") from None


def _decode_rare(tag: str, body: Any, found: Callable[[Any], Any], depth: int) -> Any:
    if tag == "i":
        return int(body, 16)
    if tag == "c":
        return complex(*body)
    if tag in "by":
        return (bytes if tag == "b" else bytearray).fromhex(body)
    if tag == "r":
        return range(*(decode(part, found, depth + 1) for part in body))
    if tag == "n":
        if body in ("Ellipsis", "NotImplemented") or isinstance(getattr(builtins, body), type):
            return getattr(builtins, body)
    if tag == "h":
        return found(body)
    raise ProtocolError(f"unknown tag {tag!r}")


class Channel:
    """Messages over a stream socket: four bytes of length, then JSON."""

    def __init__(self, connection: socket.socket):
        self.connection = connection

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE:
            raise ProtocolError(f"a value of {len(data)} bytes; at most {MAX_MESSAGE} can travel")
        try:
            self.connection.sendall(len(data).to_bytes(4, "big") + data)
        except OSError:
            raise ConnectionLost from None

    def receive(self) -> Any:
        size = int.from_bytes(self._exactly(4), "big")
        if size > MAX_MESSAGE:
            raise ProtocolError(f"a message of {size} bytes")
        try:
            return json.loads(self._exactly(size))
        except (ValueError, RecursionError) as error:
            raise ProtocolError(str(error)) from None

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = self.connection.recv(min(size, 1 << 20))
            except OSError:
                part = b""
            if not part:
                raise ConnectionLost
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


# --- the program's side ------------------------------------------------------------------------


class RpcServer:
    """Answers calls into a loaded program until the judge closes the connection."""

    def __init__(self, names: dict, failure: BaseException | None):
        self.names, self.failure = names, failure
        self.kept: list[Any] = []

    def serve(self, connection: socket.socket) -> None:
        channel = Channel(connection)
        while True:
            try:
                request = channel.receive()
            except ConnectionLost:
                return
            try:
                if self.failure is not None:
                    raise self.failure
                reply = self.answer(*request)
            except BaseException as error:  # SystemExit too: the program must not end the conversation politely
                reply = {"raised": _builtin_name(error), "text": _text(error)}
            try:
                channel.send(reply)
            except (ProtocolError, ValueError, RecursionError) as error:
                channel.send({"raised": "ValueError", "text": f"the result cannot leave the program: {error}"})

    def answer(self, action: str, target: Any, arguments: list, keywords: dict) -> dict:
        """{"value": JSON of the result, "arguments": JSON of them if the call changed them}."""
        thing = self.object(target)
        arguments = [decode(a, self.kept.__getitem__) for a in arguments]
        keywords = {k: decode(v, self.kept.__getitem__) for k, v in keywords.items()}
        if action != "call":
            return {"value": encode(ACTIONS[action](thing, *arguments), self.keep)}
        before = [encode(a, self.keep) for a in arguments] if any(isinstance(a, MUTABLE) for a in arguments) else None
        reply = {"value": encode(thing(*arguments, **keywords), self.keep)}
        if before is not None:
            after = [encode(a, self.keep) for a in arguments]
            if after != before:
                reply["arguments"] = after
        return reply

    def object(self, target: Any) -> Any:
        if isinstance(target, int):
            return self.kept[target]
        if target in self.names:
            return self.names[target]
        raise NameError(f"name {target!r} is not defined")

    def keep(self, value: Any) -> dict:
        for index, kept in enumerate(self.kept):
            if kept is value:
                return {"h": index}
        self.kept.append(value)
        return {"h": len(self.kept) - 1}

    def answer_all(self, name: str, calls: list, results_fd: int) -> None:
        """The calls of a plan (assert_plans.py), one line a result, until one raises."""
        for arguments, keywords in calls:
            try:
                if self.failure is not None:
                    raise self.failure
                reply = self.answer("call", name, arguments, keywords)
            except BaseException as error:
                reply = {"raised": _builtin_name(error), "text": ""}
            os.write(results_fd, json.dumps(reply).encode() + b"\n")
            if "raised" in reply:
                return


def _items(thing: Any) -> list:
    from itertools import islice

    items = list(islice(iter(thing), MAX_ITEMS + 1))
    if len(items) > MAX_ITEMS:
        raise ValueError(f"an iterator of more than {MAX_ITEMS} items")
    return items


ACTIONS = {
    "value": lambda thing: thing,
    "get": getattr,
    "set": setattr,
    "items": _items,
    "len": len,
    "text": str,
    "item": lambda thing, key: thing[key],
}


def _builtin_name(error: BaseException) -> str:
    for kind in type(error).__mro__:
        if getattr(builtins, kind.__name__, None) is kind:
            return kind.__name__
    return "Exception"


def _text(error: BaseException) -> str:
    try:
        return str(error)[:2000]
    except BaseException:  # its __str__ is the program's
        return ""


# --- the judge's side --------------------------------------------------------------------------


class Proxy:
    """Stand-in for something that the program keeps: a function, a class, an object. Equal to itself only."""

    __slots__ = ("_link", "_target")

    def __init__(self, link: RpcClient, target: str | int):
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_target", target)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._link.ask("call", self._target, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("get", self._target, (name,), {})

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self._target, (name, value), {})

    def __iter__(self) -> Any:
        return iter(self._link.ask("items", self._target, (), {}))

    def __len__(self) -> int:
        return self._link.ask("len", self._target, (), {})

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self._target, (key,), {})

    def __str__(self) -> str:
        return self._link.ask("text", self._target, (), {})


class RpcClient:
    """The judge's end of one connection. `raised` holds the exceptions that came from the program."""

    def __init__(self, connection: socket.socket):
        self.channel = Channel(connection)
        self.remotes: dict[int, Proxy] = {}
        self.raised: list[BaseException] = []
        self.broken: str | None = None  # sticky: test code that catches everything must not hide it

    def ask(self, action: str, target: str | int, arguments: tuple, keywords: dict) -> Any:
        encoded = [encode(a, self._handle) for a in arguments]
        self.channel.send([action, target, encoded, {k: encode(v, self._handle) for k, v in keywords.items()}])
        try:
            reply = self.channel.receive()
            if type(reply) is dict and "raised" in reply:
                self._raise(reply["raised"], reply.get("text"))
            value = decode(reply["value"], self._remote)
            for old, new in zip(arguments, reply.get("arguments", ())):
                overwrite(old, decode(new, self._remote))
            return value
        except ConnectionLost:
            self.broken = "lost"
            raise
        except (ProtocolError, LookupError, TypeError, AttributeError) as error:
            if error in self.raised:
                raise
            self.broken = "protocol"
            raise ConnectionLost from None

    def _raise(self, name: Any, text: Any) -> None:
        kind = getattr(builtins, name, None) if type(name) is str else None
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ProtocolError("not a builtin exception")
        if issubclass(kind, BaseExceptionGroup) or issubclass(kind, UnicodeError) and kind is not UnicodeError:
            kind = UnicodeError if issubclass(kind, UnicodeError) else Exception  # they cannot be made from a text
        error = kind(str(text))
        self.raised.append(error)
        raise error

    def _handle(self, value: Any) -> dict:
        if isinstance(value, Proxy) and value._link is self:
            target = value._target
            return {"h": target if isinstance(target, int) else self._number(target)}
        raise TypeError(f"the test passes a {type(value).__name__}, which cannot travel to the program")

    def _number(self, name: str) -> int:
        value = self.ask("value", name, (), {})
        if not isinstance(value, Proxy):
            raise TypeError(f"{name} is no object of the program's own")
        return value._target

    def _remote(self, number: Any) -> Proxy:
        if type(number) is not int:
            raise ProtocolError("a handle is a number")
        return self.remotes.setdefault(number, Proxy(self, number))


def overwrite(old: Any, new: Any) -> None:
    """Give `old` the contents of `new` in place, as far down as both are mutable and of one type."""
    if type(old) is not type(new):
        return
    if type(old) is list:
        old[:] = [_merged(old[i], item) if i < len(old) else item for i, item in enumerate(new)]
    elif type(old) is dict:
        merged = {key: _merged(old[key], item) if key in old else item for key, item in new.items()}
        old.clear()
        old.update(merged)
    elif type(old) is set:
        old.clear()
        old.update(new)
    elif type(old) is bytearray:
        old[:] = new


def _merged(old: Any, new: Any) -> Any:
    if type(old) is type(new) and isinstance(old, MUTABLE):
        overwrite(old, new)
        return old
    return new


def test_globals(link: RpcClient, setup: str, foreign: list[str], entry_point: str | None) -> dict:
    """Names for the test code: what `setup` binds, and of the `foreign` ones, which the test code reads and nothing in
    it binds, real standard modules and stand-ins for all others but builtins."""
    names: dict[str, Any] = {"__name__": "tests"}
    for name in foreign:
        if hasattr(builtins, name):
            continue
        if name in sys.stdlib_module_names:
            names[name] = __import__(name)
        else:
            names[name] = Proxy(link, name)
    exec(compile(setup, "<setup>", "exec"), names)
    if entry_point:
        names[entry_point] = names["candidate"] = Proxy(link, entry_point)
    return names


def judge_one(link: RpcClient, tests: dict, code: str, foreign: list[str]) -> str:
    """How one test ended: "pass", "wrong", "lost", "protocol", or the name of the exception that the program raised."""
    try:
        names = test_globals(link, tests["setup"], foreign, tests["entry_point"])
        exec(compile(code, "<test>", "exec"), names)
        if tests["entry_point"] and isinstance(names.get("check"), types.FunctionType):
            names["check"](names[tests["entry_point"]])
        verdict = "pass"
    except ConnectionLost:
        verdict = "lost"
    except BaseException as error:
        verdict = type(error).__name__ if any(error is e for e in link.raised) else "wrong"
    return link.broken or verdict


def test_runner(tests_fd: int, verdicts_fd: int, connections: list[int]) -> None:
    """Run each test on its own connection; one JSON line {"test", "verdict"} each into `verdicts_fd`."""
    with os.fdopen(tests_fd, "rb") as file:
        tests = json.load(file)
    for index, (fd, code, foreign) in enumerate(zip(connections, tests["code"], tests["foreign"], strict=True)):
        connection = socket.socket(fileno=fd)
        verdict = judge_one(RpcClient(connection), tests, code, foreign)
        os.write(verdicts_fd, json.dumps({"test": index, "verdict": verdict}).encode() + b"\n")
        connection.close()
