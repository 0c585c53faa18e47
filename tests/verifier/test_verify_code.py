"""Outcomes, rewards and the border between test code and program; test_sandbox.py has the hostile side."""

import asyncio
import builtins
import json
import math
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelift_lib.problems.code_tests import AssertTests, StdioTests, read_tests
from tracelift_lib.problems.files import InputError
from tracelift_lib.sandbox import host, tiers
from tracelift_lib.sandbox.assert_plans import plan
from tracelift_lib.sandbox.calls import MAX_MESSAGE, Channel, deeply, overwrite
from tracelift_lib.sandbox.host import Limits, SandboxError
from tracelift_lib.sandbox.program import read_all
from tracelift_lib.sandbox.running import Outcome, same_output
from tracelift_lib.sandbox.tiers import choose_tier, tier_fault
from tracelift_lib.sandbox.values import ProtocolError, decode, encode
from tracelift_lib.verifier import verify_code
from tracelift_lib.verifier.verify_code import CodeResult, CodeVerifier, execution_reward, extract_program

PASS, WRONG, ERROR, TIMEOUT, MEMORY, UNSUPPORTED = Outcome


def tier_or_skip() -> str:
    try:
        return choose_tier()
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def verifier():
    with CodeVerifier(2, Limits(cpu_s=1, memory_mb=256), tier=tier_or_skip()) as verifier:
        yield verifier


def stdio(*cases: tuple[str, str]) -> StdioTests:
    return StdioTests(style="stdio", cases=[{"input": i, "output": o} for i, o in cases])


def asserts(*code: str, **more) -> AssertTests:
    return AssertTests(style="asserts", code=list(code), **{"entry_point": "solve", **more})


# --- rewards (method.md section 4) ----------------------------------------------------------------


@pytest.mark.parametrize(
    "outcomes, compiled, binary, rate, coderl, hybrid",
    [
        ([PASS], True, 1, 1, 1, 1.0),
        ([PASS, PASS, PASS, PASS], True, 1, 1, 1, 1.0),
        ([WRONG], True, 0, 0, -0.3, 0.2),
        ([PASS, WRONG], True, 0, 0.5, -0.3, 0.6),
        ([PASS, PASS, PASS, ERROR], True, 0, 0.75, -0.6, 0.65),
        ([TIMEOUT, WRONG], True, 0, 0, -0.6, 0.05),
        ([WRONG, ERROR], True, 0, 0, -0.3, 0.2),  # the first failing test decides, not the worst (section 9)
        ([PASS, WRONG, TIMEOUT, PASS], True, 0, 0.5, -0.3, 0.6),
        ([MEMORY], True, 0, 0, -0.6, 0.05),
        ([ERROR, ERROR], False, 0, 0, -1, 0.0),
    ],
)
def test_rewards_by_hand(outcomes, compiled, binary, rate, coderl, hybrid):
    result = CodeResult(tuple(outcomes), compiled, "bubblewrap")
    got = [execution_reward(result, style) for style in ("binary", "pass_rate", "coderl", "hybrid")]
    assert got == pytest.approx([binary, rate, coderl, hybrid])


@given(st.lists(st.sampled_from([PASS, WRONG, ERROR, TIMEOUT, MEMORY]), min_size=1, max_size=8))
def test_a_better_result_never_earns_less(outcomes):
    """Mending the last test that fails raises or keeps every reward; nothing exceeds that of a full pass. (Mending the
    first may show that the second is worse, since the first failing test decides.)"""
    for style in ("binary", "pass_rate", "coderl", "hybrid"):
        reward = execution_reward(CodeResult(tuple(outcomes), True, "x"), style)
        assert reward <= 1
        failing = [index for index, outcome in enumerate(outcomes) if outcome is not PASS]
        for index in failing if style in ("binary", "pass_rate") else failing[-1:]:
            better = (*outcomes[:index], PASS, *outcomes[index + 1 :])
            assert execution_reward(CodeResult(better, True, "x"), style) >= reward


# --- programs in answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, program",
    [
        ("x = 1\n", "x = 1\n"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```py\ndraft\n```\nBetter:\n```python\nfinal\n```\n", "final\n"),
        ("```python\ncode\n```\nIt prints\n```\n5\n```", "code\n"),
        ("```\nfirst\n```\n```\nsecond\n```", "second\n"),
        ("```text\n5\n```\n```\ncode\n```", "code\n"),
        ("```python\ncut off\nhere", "cut off\nhere"),
        ("~~~python\na = '```'\n~~~", "a = '```'\n"),
        ("````python\n```\ninside\n```\n````", "```\ninside\n```\n"),
        ("  ```Python\n  x\n  ```", "  x\n"),
        ("```python\n```", ""),
        ("", ""),
        ("Text:\r\n```python\r\nx = 1\r\n```\r\n", "x = 1\n"),
        ("Here it is: ```python\nx = 1\n```", "x = 1\n"),
        ("Use `x` and ```y``` here.\n```\ncode\n```", "code\n"),
        ("> ```python\nx\n```", "x\n"),
    ],
)
def test_the_program_of_an_answer(answer, program):
    assert extract_program(answer) == program


SOLUTION, USAGE = "def solve(x):\n    return x\n", "print(solve(1))\n"


@pytest.mark.parametrize(
    "answer, program",
    [
        (f"```python\n{SOLUTION}```\nUsage:\n```python\n{USAGE}```", SOLUTION),
        (f"```\n{SOLUTION}```\nUsage:\n```python\n{USAGE}```", SOLUTION),
        (f"```python\n{SOLUTION}```\nBetter:\n```python\n{SOLUTION}# 2\n```\n```\n1\n```", SOLUTION + "# 2\n"),
        ("```python\nsolve = abs\n```\n```python\nassert solve == abs\n```", "solve = abs\n"),
        ("```python\nclass solve:\n    pass\n```\n```python\nsolver(solve)\n```", "class solve:\n    pass\n"),
        ("```python\ndef solver(x): pass\n```\n```python\nlast\n```", "last\n"),
    ],
)
def test_the_entry_point_decides_which_block_is_judged(answer, program):
    assert extract_program(answer, "solve") == program


@pytest.mark.parametrize(
    "line", ["```python " + "x" * 16_000, "```", "``` `", "~~~ " * 4000, "x ```py" * 3000, "``` \t"]
)
def test_fences_that_are_never_closed_are_read_in_linear_time(line):
    start = time.process_time()
    extract_program("\n".join([line] * max(1, 300_000 // len(line))), "solve")
    assert time.process_time() - start < 3


# --- tests in metadata -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tests, word",
    [
        (None, "no 'tests'"),
        ({"style": "other"}, "style"),
        ({"style": "stdio", "cases": []}, "cases"),
        ({"style": "stdio", "cases": [{"input": "1"}]}, "output"),
        ({"style": "stdio", "cases": [], "more": 1}, "cases"),
        ({"style": "asserts", "code": ["assert ("]}, "code"),
        ({"style": "asserts", "code": "assert 1"}, "code"),
        ({"style": "asserts", "code": ["pass"], "setup": "import"}, "setup"),
    ],
)
def test_bad_tests_name_problem_and_field(tests, word):
    with pytest.raises(InputError, match="problem-7.*" + word):
        read_tests({} if tests is None else {"tests": tests}, "problem-7")


@pytest.mark.parametrize("tests", [stdio(("1", "2")), asserts("assert solve(1)")])
def test_tests_survive_json(tests):
    assert read_tests({"tests": json.loads(tests.model_dump_json())}, "p") == tests


@pytest.mark.parametrize(
    "printed, expected, same",
    [
        ("1 2\n", "1\n2", True),
        ("  a\tb ", "a b", True),
        ("1 2", "12", False),
        ("1.0", "1", False),
        ("", "\n", True),
        ("a", "A", False),
        ("1 2 3", "1 2", False),
    ],
)
def test_output_is_compared_by_tokens(printed, expected, same):
    assert same_output(printed, expected) is same


# --- running -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program, outcomes, compiled",
    [
        ("print(int(input()) * 2)", [PASS, PASS], True),
        ("print(4)", [PASS, WRONG], True),
        ("n = int(input())\nprint(4 if n == 2 else 1 // 0)", [PASS, ERROR], True),
        ("n = int(input())\nprint(4)\nwhile n > 2: pass", [PASS, TIMEOUT], True),
        ("n = int(input())\nprint(4)\nx = bytearray(1 << 33) if n > 2 else 0", [PASS, MEMORY], True),
        ("print(4", [ERROR, ERROR], False),
        ("return 4", [ERROR, ERROR], False),
        ("import sys\nprint(sys.stdin.read().strip() == '2' and 4 or 10)\nsys.exit(0)", [PASS, PASS], True),
        ("import sys\nprint(4)\nsys.exit(1)", [ERROR, ERROR], True),
        ("import sys\nprint(4)\nsys.exit('message')", [ERROR, ERROR], True),
        ("if __name__ == '__main__':\n    print(2 * int(input()))", [PASS, PASS], True),
        ("import threading\nthreading.Thread(target=lambda: print(2 * int(input()))).start()", [PASS, PASS], True),
        ("import atexit\natexit.register(lambda: print(2 * int(input())))", [PASS, PASS], True),
        (
            "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int\nprint(A(int(input())).x * 2)",
            [PASS, PASS],
            True,
        ),
    ],
)
def test_outcomes_of_standard_output(verifier, program, outcomes, compiled):
    (result,) = verifier.verify([(program, stdio(("2\n", "4\n"), ("5\n", "10\n")))])
    assert (list(result.outcomes), result.compiled, result.tier) == (outcomes, compiled, verifier.tier)


UNPLANNED = "\nif True: pass"  # an `if` has no plan, so the test runner runs the test


@pytest.mark.parametrize("way", ["", UNPLANNED], ids=["plan", "test_runner"])
@pytest.mark.parametrize(
    "program, code, outcome",
    [
        ("def solve(x): return x + 1", "assert solve(1) == 2\nassert solve(5) == 6", PASS),
        ("def solve(x): return x + 1", "assert solve(1) == 2\nassert solve(5) == 7", WRONG),
        ("def solve(x): return None", "assert abs(solve(1) - 1.5) < 1e-6", WRONG),
        ("def solve(x): return 1 / 0", "assert solve(1) == 2", ERROR),
        ("def solve(x): assert False", "assert solve(1) == 2", ERROR),
        (
            "def solve(x):\n    if x > 1: raise ValueError\n    return 5",
            "assert solve(1) == 6\nassert solve(2) == 6",
            WRONG,
        ),
        ("def solve(x):\n    while x > 1: pass\n    return 5", "assert solve(1) == 6\nassert solve(2) == 6", WRONG),
        ("def solve(x):\n    while x > 1: pass\n    return 5", "assert solve(1) == 5\nassert solve(2) == 5", TIMEOUT),
        ("def solve(x): return bytearray(1 << 34)", "assert solve(1) == 2", MEMORY),
        ("def other(x): return 2", "assert solve(1) == 2", ERROR),
        ("def solve(x) return 2", "assert solve(1) == 2", ERROR),
        ("raise RuntimeError\ndef solve(x): return 2", "assert solve(1) == 2", ERROR),
        (
            "def solve(x): return (1, [2.5, {'a': {3}}], None, b'x', 2j, 10**30, True)",
            "assert solve(1) == (1, [2.5, {'a': {3}}], None, b'x', 2j, 10**30, True)".replace("10**30", str(10**30)),
            PASS,
        ),
        ("def solve(x): return x", "assert solve((1, 2)) == [1, 2]", WRONG),
        ("def solve(x): return float('nan')", "assert solve(1) != solve(1)", PASS),
        ("def solve(x): return x", "assert solve(x=-3) is -3 or True", PASS),
        (
            "import collections\ndef solve(x): return collections.Counter(x)",
            "assert solve('aab') == {'a': 2, 'b': 1}",
            PASS,
        ),
        ("def solve(x):\n    yield x\n    yield x", "assert list(solve(3)) == [3, 3]", PASS),
        (
            "n = 0\ndef solve(x):\n    global n\n    n += 1\n    return n",
            "assert solve(0) == 1\nassert solve(0) == 2",
            PASS,
        ),
        ("print('noise')\ndef solve(x):\n    print('noise')\n    return x", "assert solve(1) == 1", PASS),
        ("if __name__ == '__main__': raise SystemExit\ndef solve(x): return x", "assert solve(1) == 1", PASS),
    ],
)
def test_outcomes_of_test_code(verifier, way, program, code, outcome):
    """The plan and the test runner agree on every verdict."""
    (result,) = verifier.verify([(program, asserts(code + way))])
    assert result.outcomes == (outcome,)


@pytest.mark.parametrize(
    "program, code, more, outcome",
    [
        (
            "def solve(x): raise KeyError('k')",
            "try:\n    solve(1)\nexcept KeyError:\n    pass\nelse:\n    assert False",
            {},
            PASS,
        ),
        (
            "class Mine(ValueError): pass\ndef solve(x): raise Mine",
            "try:\n    solve(1)\nexcept ValueError:\n    pass",
            {},
            PASS,
        ),
        (
            "def solve(x): x.append(1); x[0].append(2)",
            "x = [[]]\ny = x[0]\nsolve(x)\nassert x == [[2], 1] and y == [2]",
            {},
            PASS,
        ),
        (
            "class P:\n    def __init__(self, a): self.a = a\ndef solve(ps): return max(p.a for p in ps)",
            "p = P(4)\np.a = 9\nassert solve([P(5), p]) == 9 and p.a == 9",
            {"from_program": ["P"]},
            PASS,
        ),
        ("def solve(x): return lambda y: x + y", "assert solve(1)(2) == 3", {}, PASS),
        (
            "def solve(a): return helper(a)\ndef helper(a): return a",
            "assert helper(solve(2)) == 2",
            {"from_program": ["helper"]},
            PASS,
        ),
        ("def solve(x): return 1.0", "assert math.isclose(solve(1), 1.0)", {}, PASS),
        ("def solve(x): return x", "assert solve(base) == 7", {"setup": "base = 7"}, PASS),
        (
            "def solve(x): return triple(x)",
            "def check(candidate):\n    assert candidate(2) == triple(2)",
            {"setup": "def triple(x): return 3 * x", "preamble": "def triple(x): return 3 * x"},
            PASS,
        ),
        (
            "def triple(x): return 0\ndef solve(x): return 0",
            "def check(candidate):\n    assert candidate(2) == triple(2)",
            {"setup": "def triple(x): return 3 * x"},
            WRONG,
        ),
        ("def sum(a, b): return a * b", "assert sum(3, 4) == 12", {"entry_point": "sum"}, PASS),
        ("def f(x): return x", "assert f(3) == 3", {"entry_point": None}, PASS),
        ("def solve(x): return 2", "def check(candidate):\n    assert candidate(1) == 3", {}, WRONG),
    ],
)
def test_what_needs_the_test_runner(verifier, program, code, more, outcome):
    (result,) = verifier.verify([(program, asserts(code, **more))])
    assert result.outcomes == (outcome,)


FRACTION = "from fractions import Fraction\n"
NESTED_600 = "r = 1\nfor _ in range(600): r = [r]\n"
KIND = "class K:\n    pass\n"


@pytest.mark.parametrize(
    "program, code, more",
    [
        ("import re\ndef solve(x): return re.match('a', x)", "assert solve('a') and not solve('b')", {}),
        ("N = 3", "assert N == 3", {}),
        ("N = 3", "assert N == 3", {"entry_point": None}),
        (FRACTION + "def solve(x): return Fraction(x, 3)", FRACTION + "assert solve(2) == Fraction(2, 3)", {}),
        (
            "def solve(x): return x + 1",
            "from decimal import Decimal\nassert solve(Decimal('1.5')) == Decimal('2.5')",
            {},
        ),
        (
            "import datetime\ndef solve(x): return x + datetime.timedelta(1, 2, 3)",
            "import datetime as d\nassert solve(d.datetime(2020, 2, 28)) == d.datetime(2020, 2, 29, 0, 0, 2, 3)\n"
            "z = d.timezone(d.timedelta(hours=2))\n"
            "assert solve(d.datetime(2020, 1, 1, tzinfo=z)).utcoffset().seconds == 7200",
            {},
        ),
        ("def solve(x): return x", "import datetime as d\nassert solve(d.date(2020, 1, 1)).year == 2020", {}),
        (
            "from collections import deque\ndef solve(x): return deque(x, 2)",
            "assert list(solve([1, 2, 3])) == [2, 3]",
            {},
        ),
        (
            "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef solve(x): return P(x, 2)",
            "assert solve(1).x == 1 and solve(1) == (1, 2) and solve(1)._replace(x=5).x == 5",
            {},
        ),
        ("def solve(x): return x.keys()", "assert solve({1: 2}) == {1} and 1 in solve({1: 2})", {}),
        ("def solve(x): return x.items()", "assert sorted(solve({1: 2})) == [(1, 2)]", {}),
        (
            "def solve(x): yield from x",
            "import types\ng = solve([1, 2])\nassert isinstance(g, types.GeneratorType)\n"
            "assert next(g) == 1 and list(g) == [2]",
            {},
        ),
        (
            "import itertools\ndef solve(x): return itertools.count(x)",
            "assert [a for a, _ in zip(solve(3), 'ab')] == [3, 4]",
            {},
        ),
        ("def solve(x): return [y for y in x]", "assert solve(y + 1 for y in range(2)) == [1, 2]", {}),
        ("def solve(f): return f(3)", "assert solve(lambda x: x + 1) == 4", {}),
        ("def solve(f, x): return f(x)", "assert solve(lambda y: solve(abs, -y), 3) == 3", {}),
        (
            "def solve(f):\n    try: return f()\n    except KeyError: return 5",
            "def f(): raise KeyError\nassert solve(f) == 5",
            {},
        ),
        ("def solve(x): return x", "f = lambda: 1\nassert solve(f) is f", {}),
        ("async def solve(x): return x + 1", "import asyncio\nassert asyncio.run(solve(1)) == 2", {}),
        (
            KIND + "def solve(x): return K()",
            "assert isinstance(solve(1), K) and not isinstance(5, K)",
            {"from_program": ["K"]},
        ),
        (
            "class K:\n    def __init__(self, a): self.a = a\n    def __eq__(self, o): return self.a == o.a\n"
            "def solve(x): return K(x)",
            "assert solve(1) == solve(1) and solve(1) != solve(2)",
            {},
        ),
        (
            "class P:\n    def __init__(self, a): self.a = a\ndef solve(ps): return ps[0].a",
            "assert solve([P(5)]) == 5",
            {},
        ),
        (
            "def solve(x): raise KeyError('k', 2)",
            "try:\n    solve(1)\nexcept KeyError as e:\n    assert e.args == ('k', 2)",
            {},
        ),
        (
            "def solve(x): raise KeyError('k')",
            "try:\n    solve(1)\nexcept KeyError as e:\n    assert str(e) == \"'k'\"",
            {},
        ),
        ("def solve(x): return [x]", "n = float('nan')\nassert solve(n) == [n] and solve(n)[0] is n", {}),
        ("import math\ndef solve(x): return [math.nan]", "import math\nassert solve(1) == [math.nan]", {}),
        (
            f"def solve(x):\n    {NESTED_600.replace(chr(10), chr(10) + '    ')}return r",
            NESTED_600 + "assert solve(1) == r",
            {},
        ),
        ("def solve(x: List[int]) -> Optional[int]: return math.gcd(*x)", "assert solve([4, 6]) == 2", {}),
        ("def solve(x): return 10 ** x", "assert solve(5000) == 10 ** 5000", {}),
        ("def solve(x): return callable(x)", "assert solve(print) and callable(solve)", {}),
    ],
)
def test_values_that_cross(verifier, program, code, more):
    """Each passes in a plain interpreter too."""
    (result,) = verifier.verify([(program, asserts(code, **more))])
    assert (result.outcomes, result.reason) == ((PASS,), "")


YES = "class Y:\n    def __eq__(self, o): return True\n    def __sub__(self, o): return 0.0\n    __lt__ = __eq__\n"


@pytest.mark.parametrize(
    "program, code, outcome, reason",
    [
        ("def solve(x): return x\nis_close = lambda *_: True", "assert is_close(solve(1), 5)", UNSUPPORTED, "is_close"),
        ("def solve(x): return x\nimport math as np", "assert np.isclose(solve(1), 5)", UNSUPPORTED, "np"),
        ("def solve(x): return x\nWANTED = 1", "assert solve(1) == WANTED", UNSUPPORTED, "WANTED"),
        ("def solve(x): return 1", "import no_such_module\nassert solve(1) == 1", UNSUPPORTED, "no_such_module"),
        ("def solve(x): return 1", "assert 1 / 0\nassert solve(1) == 1", UNSUPPORTED, "division by zero"),
        ("def solve(x): return 1", "assert solve(object()) == 1", UNSUPPORTED, "of type object"),
        (YES + "def solve(x): return Y()", "assert abs(solve(1) - 3.5) < 1e-6", UNSUPPORTED, "__sub__"),
        (
            YES + "def solve(x): return Y()",
            "try:\n    assert solve(1) < 5\nexcept BaseException: pass",
            UNSUPPORTED,
            "__lt__",
        ),
        (YES + "def solve(x): return Y()", "assert solve(1) == 5", WRONG, ""),
        ("def solve(x): return object()", "assert solve(1) + 1 == 5", WRONG, ""),
        (
            "def solve(x):\n    r = 1\n    for _ in range(10**5): r = [r]\n    return r",
            "assert solve(1) == 5",
            WRONG,
            "",
        ),
        ("def solve(x):\n    r = []\n    r.append(r)\n    return r", "assert solve(1) == 5", WRONG, ""),
        ("def solve(x): return 'x' * (1 << 25)", "assert solve(1) == 'x'", WRONG, ""),
        ("def solve(x): return 'x' * (1 << 25)", "assert solve(1) == 'x' * (1 << 25)", UNSUPPORTED, "too large"),
        ("def other(): pass", "assert solve(2, 4) == 2", ERROR, ""),
        ("def other(): pass", "assert gcd(2, 4) == 2", ERROR, ""),  # the prelude's gcd is not the program's
    ],
)
def test_what_cannot_be_judged_is_not_the_programs_fault(verifier, program, code, outcome, reason):
    entry = "gcd" if "gcd" in code else "solve"
    (result,) = verifier.verify([(program, asserts(code, entry_point=entry))])
    assert result.outcomes == (outcome,) and reason in result.reason


@pytest.mark.parametrize(
    "program, given, output, more",
    [
        ("print('x')\nexit()", "", "x", {}),
        ("print('x')\nquit(0)", "", "x", {}),
        ("print(open('/dev/stdin').read())", "in", "in", {}),
        ("import pathlib\nprint(pathlib.Path('/dev/stdin').read_text())", "in", "in", {}),
        ("import os\nf = os.fdopen(1, 'w')\nf.write('hi')", "", "hi", {}),
        ("f = open(1, 'wb', closefd=False)\nf.write(b'hi')", "", "hi", {}),
        ("import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f))", "", "def f(): return 1", {}),
        ("def f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(995))", "", "995", {}),
        ("print(int(input()) + 1)", "9" * 5000, "1" + "0" * 5000, {}),
        ("print(0.333333)", "", "0.333333333333", {"tolerance": 1e-5}),
        ("print(0.5)", "", "0.50", {"tolerance": 0}),
        ("print(sum(map(ord, input())) > 0)", "\ud800", "True", {}),
        ("print(deque([1])[0], sorted(Counter('ab')), floor(2.5))", "", "1 ['a', 'b'] 2", {}),
        ("import asyncio\nasync def main(): print(3)\nasyncio.run(main())", "", "3", {}),
    ],
)
def test_what_a_plain_interpreter_accepts(verifier, program, given, output, more):
    tests = StdioTests(style="stdio", cases=[{"input": given, "output": output}], **more)
    assert verifier.verify([(program, tests)])[0].outcomes == (PASS,)


@pytest.mark.parametrize(
    "printed, expected, tolerance, same",
    [
        ("0.5", "0.50", 0, True),
        ("0.50000001", "0.5", 0, False),
        ("1e3", "1000", 0, True),
        ("1.0001", "1", 1e-3, True),
        ("1.01", "1", 1e-3, False),
        ("1000001", "1000000", 1e-3, True),  # relatively
        ("nan", "nan", 1.0, True),  # as texts
        ("nan", "1", 1.0, False),
        ("inf", "1e999", 1.0, False),
        ("YES", "yes", 1.0, False),
        ("9" * 5000, "9" * 4999 + "8", 1e-9, False),
        ("9" * 5000, "9" * 5000 + ".0", 0, True),
        ("1_0", "10", 1.0, False),
        ("1 2", "1", 5.0, False),
        ("1e99999", "1e99999", 0.1, True),
    ],
)
def test_a_tolerance_that_the_problem_names(printed, expected, tolerance, same):
    assert same_output(printed, expected, tolerance) is same


def test_many_tests_are_judged(verifier):
    """More texts than a process has descriptors."""
    tests = asserts(*["import math\nassert math.isclose(solve(1), 2)"] * 70)
    with CodeVerifier(1, max_tests=70, tier=verifier.tier) as patient:
        assert patient.verify([("def solve(x): return 2.0", tests)])[0].outcomes == (PASS,) * 70


def test_the_prelude_hides_no_builtin():
    names = {}
    exec(host.PRELUDE, names)
    assert not (names.keys() - {"__builtins__"}) & set(dir(builtins))
    assert {"List", "Optional", "math", "Counter"} <= names.keys()


def test_no_exception_but_the_sandboxes_leaves_verify(verifier, monkeypatch):
    """A fault of ours in one job costs no other its verdict, and no program is blamed for it."""
    real = verify_code.run_tests

    def fails(borrow, program, *rest):
        if "odd" in program:
            raise RecursionError("odd")
        return real(borrow, program, *rest)

    monkeypatch.setattr(verify_code, "run_tests", fails)
    odd, good = verifier.verify([("odd", stdio(("", "1"), ("", "2"))), ("print(1)", stdio(("", "1")))])
    assert (odd.outcomes, odd.judged, good.passed) == ((UNSUPPORTED,) * 2, False, True)
    assert "RecursionError: odd" in odd.reason


@pytest.mark.parametrize(
    "outcomes, judged",
    [
        ([PASS], True),
        ([UNSUPPORTED], False),
        ([PASS, UNSUPPORTED], False),
        ([WRONG, UNSUPPORTED], True),
        ([ERROR], True),
    ],
)
def test_a_failing_test_is_a_verdict_whatever_the_others_are(outcomes, judged):
    result = CodeResult(tuple(outcomes), True, "x")
    assert result.judged is judged and not (result.passed and UNSUPPORTED in outcomes)


def test_only_the_first_tests_count(verifier):
    tests = asserts(*["assert solve(1) == 1"] * 8, "assert solve(1) == 2")
    assert verifier.verify([("def solve(x): return x", tests)])[0].outcomes == (PASS,) * 8
    cases = stdio(*[("", "1")] * 8, ("", "2"))
    assert verifier.verify([("print(1)", cases)])[0].outcomes == (PASS,) * 8


def test_results_keep_their_order_and_threads_share_the_verifier(verifier):
    jobs = [(f"print({n})", stdio(("", str(n % 3)))) for n in range(12)]
    expected = [n < 3 for n in range(12)]
    got = []
    threads = [threading.Thread(target=lambda: got.append([r.passed for r in verifier.verify(jobs)])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [expected] * 3
    assert [r.passed for r in asyncio.run(asyncio.to_thread(verifier.verify, jobs))] == expected
    assert verifier.verify([]) == []


# --- when the harness fails ----------------------------------------------------------------------------


def test_a_killed_worker_is_replaced():
    with CodeVerifier(1, tier=tier_or_skip()) as verifier:
        job = ("print(1)", stdio(("", "1")))
        assert verifier.verify([job])[0].passed
        worker = verifier._idle.get()
        verifier._idle.put(worker)
        worker.control.shutdown(socket.SHUT_RDWR)
        worker.process.wait(timeout=30)
        assert verifier.verify([job])[0].passed


def test_a_harness_that_does_not_start_is_an_error_and_recovers(monkeypatch):
    with CodeVerifier(1, tier=tier_or_skip()) as verifier:
        job = ("print(1)", stdio(("", "1"), ("", "2")))
        monkeypatch.setattr(verify_code, "Worker", lambda *_: (_ for _ in ()).throw(SandboxError("no")))
        with pytest.raises(SandboxError, match="no"):
            verifier.verify([job])
        monkeypatch.undo()
        assert verifier.verify([job])[0].outcomes == (PASS, WRONG)


def test_a_program_that_breaks_every_worker_is_at_fault(monkeypatch):
    """It must not choose to have no verdict."""
    run = host.Worker.run

    def breaks(worker, tests, test_code=False):
        if b"kernel bug" in read_all(tests[0][0]):
            worker.control.shutdown(socket.SHUT_RDWR)
        return run(worker, tests, test_code)

    monkeypatch.setattr(host.Worker, "run", breaks)
    with CodeVerifier(1, tier=tier_or_skip()) as verifier:
        results = verifier.verify([("'kernel bug'", stdio(("", ""))), ("print(1)", stdio(("", "1")))])
    assert [r.outcomes for r in results] == [(ERROR,), (PASS,)]


def test_no_safe_tier_is_refused_with_reasons(monkeypatch):
    monkeypatch.setattr(tiers, "tier_fault", lambda tier: f"fault of {tier}")
    with pytest.raises(SandboxError, match="(?s)fault of bubblewrap.*fault of namespaces.*fault of landlock.*'none'"):
        CodeVerifier()
    with pytest.raises(SandboxError, match="fault of landlock"):
        CodeVerifier(tier="landlock")


def test_other_systems_get_a_clear_error(monkeypatch):
    monkeypatch.setattr(tiers.sys, "platform", "darwin")
    assert "needs Linux" in tier_fault.__wrapped__("bubblewrap")


def test_a_wall_limit_counts_for_programs_that_wait():
    with CodeVerifier(1, Limits(wall_s=0.5), tier=tier_or_skip()) as verifier:
        (result,) = verifier.verify([("import time\ntime.sleep(60)", stdio(("", "")))])
    assert result.outcomes == (TIMEOUT,)


# --- values at the border ----------------------------------------------------------------------------


def refused(tag):
    raise ProtocolError(tag)


def never(*_):
    raise AssertionError("only builtin values here")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.just(...)
    | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3))
    | st.integers(10**300, 10**310)
)
KEYS = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    KEYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(KEYS, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_values_travel(value):
    back = decode(json.loads(json.dumps(encode(value, never))), never)
    assert type(back) is type(value)
    assert back == value


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, -0.0, 1 << 20_000, "\ud800", "\0", [[]], bytearray(b"x"), int], ids=type
)
def test_special_values_travel(value):
    back = decode(json.loads(json.dumps(encode(value, never))), never)
    assert type(back) is type(value) and back == value
    assert type(value) is not float or math.copysign(1, back) == math.copysign(1, value)


@pytest.mark.parametrize(
    "forged",
    [
        {"h": 0, "i": "1"},
        {"z": 1},
        {"F": [1, 0]},
        {"N": "one"},
        {"D": "2020-02-30"},
        {"U": ["A", "class", 1]},
        {"U": "abc"},
        {"U": ["A"] + ["f"] * 300},
        {"Q": []},
        {"A": "abc"},
        {},
        {"i": 5},
        {"i": "z"},
        {"d": [1]},
        {"d": [[], 1]},
        {"s": {"r": [0, 1 << 40, 1]}, "t": []},
        {"r": ["1", "2", "3"]},
        {"s": [[]]},
        {"c": 1},
        {"b": "zz"},
        {"r": [1, 2, 0]},
        {"n": "eval"},
        {"n": "__import__"},
        {"t": 5},
        {"n": []},
    ],
)
def test_forged_values_are_refused(forged):
    with pytest.raises(ProtocolError):
        decode(forged, lambda tag, number: refused(tag))


def test_depth_and_size_have_limits():
    deep = []
    for _ in range(1100):
        deep = [deep]
    with pytest.raises(ProtocolError):
        deeply(lambda: encode(deep, never))
    with pytest.raises(ProtocolError):
        deeply(lambda: decode(deep, never))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours.fileno(), ours.fileno())
        sender = threading.Thread(target=theirs.sendall, args=(b"1" * (MAX_MESSAGE + 1),))
        sender.start()
        with pytest.raises(ProtocolError, match="more than"):
            channel.receive()


NESTED = st.recursive(
    st.integers(0, 3), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 3), inner, max_size=3)
)


@given(NESTED, NESTED)
def test_arguments_are_overwritten_in_place(old, new):
    before = old
    overwrite(old, new)
    assert old is before
    if type(old) is type(new) and isinstance(old, (list, dict)):
        assert old == new


@pytest.mark.parametrize(
    "code, setup, planned",
    [
        ("assert solve(1) == 2, 'message'", "", True),
        (
            "METADATA = {}\ndef check(candidate):\n    'text'\n    assert candidate([1, -2], key={'a': (1,)}) == 2",
            "",
            True,
        ),
        (
            "assert sorted(solve(1)) == [1] and abs(solve(2) - 1) < 2",
            "",
            False,
        ),  # `and` may stop before the second call
        ("assert solve(solve(1)) == 2", "", False),
        ("x = 1\nassert solve(x) == 2", "", False),
        ("assert solve(1) == [2] * 3", "", False),
        ("assert solve(1).real == 2", "", False),
        ("assert open('f')", "", False),
        ("assert len(solve(1)) == 2", "def len(x): return 2", False),
        ("assert ().__class__", "", False),
        ("assert 1 < solve(1) < solve(2)", "", False),
        ("for x in [1]:\n    assert solve(x)", "", False),
        ("print\nassert solve(3 * 19) == [3, 19] and True", "", False),  # `and`
        ("print\nassert solve([-2, 'a']) == 6.5 - 5", "", True),
        ("assert solve(3 * 19) == 57", "", False),
        ("assert solve(9 ** 9 ** 9) == 1", "", False),
        ("assert solve(1 / 0) == 1", "", False),
        ("assert solve(1) * 2 == 4", "", False),  # a result may be a text of any length
        ("assert solve(*[1]) == 2", "", False),
        ("assert eval('1')", "", False),
    ],
)
def test_what_has_a_plan(code, setup, planned):
    assert (plan(code, setup, "solve") is not None) is planned


def test_a_plan_has_calls_for_the_program_and_checks_of_its_results():
    made = plan("assert solve(18, [7, 8], text='ab') == 1.5 - 1", "", "solve")
    assert json.loads(made.calls) == ["call", "solve", [18, [7, 8]], {"text": "ab"}]
    assert made.verdict(json.dumps({"value": 0.5})) == "pass"
    assert made.verdict(json.dumps({"value": 0.5 + 1e-9})) == "wrong"
