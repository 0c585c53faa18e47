"""Function calls between the test code of a problem and the program under test, which are never in one process.

The test runner runs the test code, with its expected values, and holds proxies for what the program defines. A call of
a proxy goes as JSON to the program's process; back come values of exact types (values.py), an exception of a builtin
type, or a number that stands for an object the program keeps. So nothing that a program does to `__eq__`, `__class__`
or `builtins` reaches the comparison. What a test wants from an object of the program's but cannot have without trusting
it (its `==` with an expected value, its `-`) is `Unsupported`, no verdict. Standard library only: this file runs inside
the sandbox (worker.py).
"""

from __future__ import annotations

import ast
import builtins
import json
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from tracelift_lib.sandbox.values import EXCEPTIONS, ProtocolError, decode, encode

MAX_MESSAGE = 16 << 20  # bytes of JSON, either way
MAX_ITEMS = 1_000_000  # taken from an iterator
LARGE = 100_000  # bytes of a container: its value may be as large as one that cannot travel
DEEP = 20_000  # frames, for values of many containers in each other
UNSUPPORTED = "unsupported: "  # before the reason, where there is no verdict


class ConnectionLost(BaseException):
    """The other process has ended. No `Exception`, so that test code does not catch it by chance."""


class Unsupported(BaseException):
    """What the test does cannot be done from outside the program's process; says what."""


def deeply(work: Callable[[], Any]) -> Any:
    """The result of `work`, which may recurse: once more with room for it, if there was none."""
    try:
        return work()
    except RecursionError:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(DEEP, limit))
        try:
            return work()
        finally:
            sys.setrecursionlimit(limit)


class Channel:
    """Messages, each a line of JSON, from one descriptor and to another (or the same: a stream socket)."""

    def __init__(self, source: int, target: int):
        self.source, self.target = open(source, "rb", closefd=False), open(target, "wb", closefd=False)

    def send(self, message: Any) -> None:
        """Raises ProtocolError for a message that is too large, ConnectionLost."""
        data = deeply(lambda: json.dumps(message)).encode() + b"\n"
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
            return deeply(lambda: json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ProtocolError(str(error)) from None


# --- the program's side ------------------------------------------------------------------------


class RpcServer:
    """Answers calls into a loaded program; every call raises `failure` where loading it failed."""

    def __init__(self, names: dict, failure: BaseException | None):
        self.names, self.failure = names, failure
        self.kept: list[Any] = []
        self.result: Any = None  # of the last call
        self.callbacks: dict[int, Callback] = {}
        self.not_numbers: list[float] = []  # NaNs of the test's: one that comes back is the same there
        self.channel: Channel | None = None

    def serve(self, channel: Channel, until_one_raises: bool) -> None:
        """Answer all requests: of the test runner over a socket, or of a plan (assert_plans.py), which ends as its
        assertions would, with the first call that raises."""
        self.channel = channel
        with suppress(ConnectionLost):
            while True:
                reply = self.serve_one(channel.receive())
                if until_one_raises and "raised" in reply:
                    return

    def serve_one(self, request: list) -> dict:
        """Answer one request; the reply that was sent."""
        reply = self.reply(*request)
        try:
            self.channel.send(reply)
        except ProtocolError as error:  # too large
            changed, reply = "arguments" in reply, {"value": self.keep(self.result, "large")}
            if changed:
                reply = {"raised": "ValueError", "unsupported": f"values cannot leave the program: {error}"}
            self.channel.send(reply)
        return reply

    def reply(self, *request: Any) -> dict:
        """`answer`, or {"raised": name of a builtin exception, "text": its message, "args": its arguments}; with
        "unsupported" and why, where an honest program would have had an answer."""
        try:
            if self.failure is not None:
                raise self.failure
            return self.answer(*request)
        except ProtocolError as error:
            return {"raised": "ValueError", "unsupported": f"values cannot leave the program: {error}"}
        except BaseException as error:  # SystemExit too: the program must not end the conversation politely
            return self.raised(error)

    def raised(self, error: BaseException) -> dict:
        """The reply for an exception of the program's."""
        names = (kind.__name__ for kind in type(error).__mro__ if EXCEPTIONS.get(kind.__name__) is kind)
        reply = {"raised": next(names, "Exception"), "text": ""}
        with suppress(BaseException):  # its __str__ is the program's
            reply["text"] = str(error)[:2000]
        with suppress(BaseException):
            arguments = encode(list(error.args), self.keep)
            if len(json.dumps(arguments)) < 5000:
                reply["args"] = arguments
        return reply

    def answer(self, action: str, target: Any, arguments_json: list, keywords: dict) -> dict:
        """{"value": JSON of the result, "arguments": JSON of them if the call changed them}."""
        thing = self.object(target)
        arguments = deeply(lambda: [decode(a, self.found) for a in arguments_json])
        keywords = {k: decode(v, self.found) for k, v in keywords.items()}
        before = deeply(lambda: [encode(a, self.keep) for a in arguments])
        self.result = call(thing, arguments, keywords) if action == "call" else ACTIONS[action](thing, *arguments)
        try:
            reply = {"value": deeply(lambda: encode(self.result, self.keep))}
        except (ProtocolError, RecursionError):  # too deep, or endless
            reply = {"value": self.keep(self.result, "large")}
        after = deeply(lambda: [encode(a, self.keep) for a in arguments])
        return reply if after == before else reply | {"arguments": after}

    def object(self, target: str | int) -> Any:
        """What a name of the program or the number of a kept object stands for."""
        if isinstance(target, int):
            return self.kept[target]
        if target in self.names:
            return self.names[target]
        raise NameError(f"name {target!r} is not defined")

    def found(self, tag: str, body: Any) -> Any:
        """What the test runner means by the tag: h, an object of the program's; x, a function of the test's; q, a NaN
        of the test's."""
        if tag == "x":
            return self.callbacks.setdefault(body, Callback(self, body))
        if tag == "q":
            while len(self.not_numbers) <= body:
                self.not_numbers.append(float("nan"))
            return self.not_numbers[body]
        if tag == "h":
            return self.object(body)
        raise ProtocolError(f"tag {tag!r}")

    def keep(self, value: Any, kind: str = "") -> Any:
        """The JSON that stands for an object that cannot travel, which is kept: its number, and what it can do."""
        if type(value) is float:
            known = [index for index, one in enumerate(self.not_numbers) if one is value]
            return {"q": known[0]} if known else value
        if type(value) is Callback:
            return {"x": value.number}
        index = number_of(self.kept, value)
        kind = kind or MIMICKED.get(type(value), "")
        return {"h": [index, kind, [name for name in TRAITS if hasattr(type(value), name)]]}


def number_of(things: list, value: Any) -> int:
    """The place of a very object in a list, which gets it if it has it not."""
    for index, thing in enumerate(things):
        if thing is value:
            return index
    things.append(value)
    return len(things) - 1


class Callback:
    """A function of the test's, in the program's process: calls go back to the test runner."""

    def __init__(self, server: RpcServer, number: int):
        self.server, self.number = server, number

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        server = self.server
        sent = [encode(a, server.keep) for a in arguments], {k: encode(v, server.keep) for k, v in keywords.items()}
        server.channel.send({"callback": self.number, "arguments": sent[0], "keywords": sent[1]})
        while isinstance(reply := server.channel.receive(), list):  # the test's function calls the program meanwhile
            server.serve_one(reply)
        if "raised" in reply:
            raise EXCEPTIONS[reply["raised"]](reply["text"])
        return decode(reply["value"], server.found)


def call(thing: Any, arguments: list, keywords: dict) -> Any:
    """A frame of its own for the program's call: few others are between it and the limit of recursion."""
    return thing(*arguments, **keywords)


def _items(thing: Any) -> list:
    items = list(islice(iter(thing), MAX_ITEMS + 1))
    if len(items) > MAX_ITEMS:
        raise ValueError(f"an iterator of more than {MAX_ITEMS} items")
    return items


def _awaited(thing: Any) -> Any:
    import asyncio  # large, and few programs want it

    async def wait() -> Any:
        return await thing

    return asyncio.run(wait())


# What a proxy can do, besides calls: everything whose result the program could as well have returned by itself.
ACTIONS = {"get": getattr, "set": setattr, "item": operator.getitem, "items": _items, "len": len, "text": str}
ACTIONS |= {"next": next, "truth": bool, "await": _awaited, "name": lambda thing: thing, "repr": repr}
ACTIONS |= {"instance": lambda kind, thing: isinstance(thing, kind), "same": lambda one, other: bool(one == other)}
ACTIONS |= {"has": lambda thing, name: hasattr(type(thing), name)}
TRAITS = ("__call__", "__iter__", "__next__", "__len__", "__getitem__")
MIMICKED = {types.GeneratorType: "generator", types.CoroutineType: "coroutine", types.FunctionType: "function"}


# --- the test runner's side --------------------------------------------------------------------


def _ask(action: str) -> Callable[..., Any]:
    return lambda self, *arguments: self._client.ask(action, self._target, arguments)


class Proxy:
    """Stands for something that the program keeps: a function, a class, an object. Equal to nothing of the test's."""

    _kind = ""

    def __init__(self, client: RpcClient, target: str | int):
        self.__dict__.update(_client=client, _target=target)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__", "__wrapped__"):
            raise AttributeError(name)
        return self._client.ask("get", self._target, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._client.ask("set", self._target, (name, value))

    def __eq__(self, other: Any) -> bool:
        if self is other or not isinstance(other, Proxy):
            if self._kind == "large" and sys.getsizeof(other) > LARGE:
                raise self._client.unsupported("the test compares values that are too large to travel")
            return self is other
        return self._client.ask("same", self._target, (other,))

    def __instancecheck__(self, thing: Any) -> bool:
        return self._client.ask("instance", self._target, (thing,))

    __hash__ = object.__hash__
    __bool__, __str__, __repr__ = _ask("truth"), _ask("text"), _ask("repr")


def _iterated(proxy: Proxy) -> Iterator:
    return proxy if hasattr(type(proxy), "__next__") else iter(proxy._client.ask("items", proxy._target))


def _called(proxy: Proxy, *arguments: Any, **keywords: Any) -> Any:
    return proxy._client.ask("call", proxy._target, arguments, keywords)


def _refused(name: str) -> Callable[..., Any]:
    def operation(self: Proxy, *_: Any) -> Any:
        if self._client.ask("has", self._target, (name,)):
            raise self._client.unsupported(f"the test uses {name} of an object of the program's")
        return NotImplemented

    return operation


METHODS = {"__call__": _called, "__iter__": _iterated, "__next__": _ask("next")}
METHODS |= {"__len__": _ask("len"), "__getitem__": _ask("item")}
OPERATORS = "add sub mul matmul truediv floordiv mod pow and or xor lshift rshift".split()
OPERATORS = [f"__{side}{name}__" for name in OPERATORS for side in ("", "r")] + ["__lt__", "__le__", "__gt__", "__ge__"]
for _name in OPERATORS:
    setattr(Proxy, _name, _refused(_name))


class RpcClient:
    """The test runner's end of the connection. `raised` holds the exceptions that came from the program."""

    def __init__(self, connection_fd: int):
        self.channel = Channel(connection_fd, connection_fd)
        self.proxies: dict[int, Any] = {}
        self.classes: dict[tuple, type] = {}
        self.functions: list[Any] = []  # of the test's, which the program may call
        self.not_numbers: list[float] = []
        self.raised: list[BaseException] = []
        self.broken: str | None = None  # sticky: test code that catches everything must not hide it
        self.asked = False

    def unsupported(self, reason: str) -> Unsupported:
        """An exception to raise; the verdict is then that there is none."""
        self.broken = self.broken or UNSUPPORTED + reason
        return Unsupported(reason)

    def ask(self, action: str, target: str | int, arguments: tuple = (), keywords: dict | None = None) -> Any:
        """The result of one request; arguments that the program changed are changed in place.

        Raises:
            ConnectionLost: the program has ended or sent what no honest program sends.
            Unsupported: an argument or the result cannot travel.
            Exception: what the program raised, as its nearest builtin type.
        """
        self.asked = True
        encoded = [self._encode(a) for a in arguments]
        self.channel.send([action, target, encoded, {name: self._encode(v) for name, v in (keywords or {}).items()}])
        try:
            while "callback" in (reply := self.channel.receive()):
                self.channel.send(self._call_back(reply))
            if "raised" in reply:
                self._raise(reply)
            value = deeply(lambda: decode(reply["value"], self._found))
            for old, new in zip(arguments, reply.get("arguments", ())):
                overwrite(old, decode(new, self._found))
            return value
        except ConnectionLost:
            self.broken = self.broken or "lost"
            raise
        except (ProtocolError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if error in self.raised:
                raise
            self.broken = self.broken or "protocol"
            raise ConnectionLost from None

    def _encode(self, value: Any) -> Any:
        try:
            return deeply(lambda: encode(value, self._handle))
        except (ProtocolError, RecursionError) as error:
            raise self.unsupported(f"an argument cannot travel: {error}") from None

    def _raise(self, reply: dict) -> None:
        if "unsupported" in reply:
            raise self.unsupported(str(reply["unsupported"])[:300])
        kind = EXCEPTIONS[reply["raised"]]
        if issubclass(kind, BaseExceptionGroup):  # it cannot be made from a text
            kind = Exception
        try:
            error = kind(*decode(reply.get("args", []), self._found))
        except (TypeError, ValueError, ProtocolError):
            error = UnicodeError() if issubclass(kind, UnicodeError) else kind(str(reply.get("text")))
        self.raised.append(error)
        raise error

    def _call_back(self, request: dict) -> dict:
        """The reply to a call of a test's function by the program."""
        function = self.functions[request["callback"]]
        arguments = [decode(a, self._found) for a in request["arguments"]]
        keywords = {str(name): decode(value, self._found) for name, value in request["keywords"].items()}
        try:
            return {"value": self._encode(function(*arguments, **keywords))}
        except Exception as error:
            names = (kind.__name__ for kind in type(error).__mro__ if EXCEPTIONS.get(kind.__name__) is kind)
            return {"raised": next(names), "text": str(error)}

    def _handle(self, value: Any) -> Any:
        if isinstance(value, float):
            return {"q": number_of(self.not_numbers, value)}
        if isinstance(value, Proxy) and value._client is self:
            return {"h": value._target}
        if callable(value):
            return {"x": number_of(self.functions, value)}
        if isinstance(value, Iterator):
            return [encode(item, self._handle, 1) for item in _items(value)]
        raise self.unsupported(
            f"the test passes a value of type {type(value).__name__}, which cannot travel to the program"
        )

    def _found(self, tag: str, body: Any) -> Any:
        if tag == "x":
            return self.functions[body]
        if tag == "q":
            return self.not_numbers[body]
        if tag != "h":
            raise ProtocolError(f"tag {tag!r}")
        number, kind, traits = body
        if kind == "coroutine":
            return self._coroutine(number)
        if number not in self.proxies:
            key = (str(kind), tuple(sorted(map(str, traits))))
            self.proxies[number] = self.classes.setdefault(key, proxy_class(*key))(self, int(number))
        return self.proxies[number]

    async def _coroutine(self, number: int) -> Any:
        return self.ask("await", number)


def proxy_class(kind: str, traits: tuple[str, ...]) -> type[Proxy]:
    """For objects with these of TRAITS; generators and functions of the program's say that they are such."""
    body = {name: METHODS[name] for name in traits} | {"_kind": kind}
    for known, name in MIMICKED.items():
        if name == kind:
            body["__class__"] = known
    return type("Proxy", (Proxy,), body)


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


class TestGlobals(dict):
    """Names for the test code. What comes from the program is looked up there when it is read."""

    def __init__(self, client: RpcClient, from_program: set[str]):
        super().__init__(__name__="tests")
        self.client, self.from_program = client, from_program

    def __missing__(self, name: str) -> Any:
        if name not in self.from_program:
            raise KeyError(name)
        value = self.client.ask("name", name)
        if isinstance(value, Proxy):  # nothing but a function, a class ...; a number may change
            self[name] = value
        return value


def names_from_program(
    setup: str, code: str, entry_point: str | None, declared: list[str], known: set[str]
) -> tuple[set[str], set[str]]:
    """(names that test code finds in the program, names of standard modules that it reads without an import).

    From the program come the function under test, what the tests declare, and what only serves as an argument of the
    function under test. If a test does not read the function under test, its one unbound name is what it is about.

    Raises:
        Unsupported: the test reads another name, which nothing binds; a program could bind it to suit itself.
    """
    read, bound = names_in(setup, code)
    unbound = {name for name in read - bound - known if not hasattr(builtins, name)} - {entry_point, *declared}
    modules = unbound & sys.stdlib_module_names
    unbound -= modules
    wanted = {*declared} | ({entry_point} if entry_point else set())
    about = names_in(code)[0] & wanted or (entry_point and "check" in bound)
    if not about and len(unbound) == 1:
        return wanted | unbound, modules
    other = unbound - _only_in_arguments(code, entry_point)
    if other:
        raise Unsupported(
            f"the test reads {sorted(other)}, which nothing binds: import it in its setup, or say that it comes from "
            "the program (from_program)"
        )
    return wanted | unbound, modules


def _only_in_arguments(code: str, entry_point: str | None) -> set[str]:
    """Names that the code reads nowhere but in arguments of the function under test."""
    inside, everywhere = [], [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    for node in ast.walk(ast.parse(code)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in (entry_point, "candidate")
        ):
            for argument in [*node.args, *node.keywords]:
                inside += [n for n in ast.walk(argument) if isinstance(n, ast.Name)]
    places = {(node.lineno, node.col_offset) for node in inside}
    outside = {node.id for node in everywhere if (node.lineno, node.col_offset) not in places}
    return {node.id for node in inside} - outside


def test_globals(
    client: RpcClient, setup: str, code: str, entry_point: str | None, from_program: list[str], prelude: dict
) -> dict:
    """Names for the test code: what `setup` binds, the prelude and standard modules that it reads, and what comes from
    the program."""
    wanted, modules = names_from_program(setup, code, entry_point, from_program, set(prelude))
    names = TestGlobals(client, wanted)
    names.update((name, thing) for name, thing in prelude.items() if name not in wanted)
    for name in sorted(modules):
        names[name] = __import__(name)
    exec(compile(setup, "<setup>", "exec", dont_inherit=True), names)
    names.pop(entry_point, None)  # HumanEval's setup is the prompt, which defines a stub of the function
    return names


def test_runner(test_fd: int, verdict_fd: int, connection_fd: int, prelude: dict) -> None:
    """Run one test (JSON: the code and the other arguments of `test_globals`) and write into `verdict_fd` how it ended:
    "pass", "wrong", "lost", "protocol", the name of the exception that the program raised, or "unsupported: why"."""
    with os.fdopen(test_fd, "rb") as file:
        test = json.load(file)
    client = RpcClient(connection_fd)
    try:
        names = test_globals(client, **test, prelude=prelude)
        exec(compile(test["code"], "<test>", "exec", dont_inherit=True), names)
        if test["entry_point"] and type(names.get("check")) is types.FunctionType:
            names["check"](names[test["entry_point"]])
        verdict = "pass"
    except ConnectionLost:
        verdict = "lost"
    except Unsupported as error:
        verdict = f"{UNSUPPORTED}{error}"
    except BaseException as error:
        verdict = _failure(error, client)
    os.write(verdict_fd, (client.broken or verdict).encode(errors="replace"))


def _failure(error: BaseException, client: RpcClient) -> str:
    """The verdict on a test that ended with an exception: of the program's, of the test's own, or an assertion."""
    if any(error is e for e in client.raised):
        return type(error).__name__
    if isinstance(error, ImportError) or not client.asked:
        return f"{UNSUPPORTED}the test fails by itself: {type(error).__name__}: {error}"
    return "wrong"
