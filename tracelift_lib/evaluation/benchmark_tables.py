"""Tables of a benchmark evaluation, all from the saved outputs: shares, pass@k, averages, comparisons, answer rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd

from tracelift_lib.evaluation import intervals
from tracelift_lib.evaluation.benchmarks import judge
from tracelift_lib.evaluation.intervals import Comparison
from tracelift_lib.problems.problem import Problem
from tracelift_lib.verifier.verdicts import Verifier
from tracelift_lib.verifier.verify_math import AnswerRule

MICRO, MACRO = "micro average", "macro average"
RULES: tuple[str, ...] = get_args(AnswerRule)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, of n drawn with c right (Chen et al. 2021).

    1 - C(n - c, k) / C(n, k). Raises ValueError if k > n.
    """
    if k > n:
        raise ValueError(f"pass@{k} needs at least {k} samples, not {n}")
    return 1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def matrix(rows: pd.DataFrame, column: str = "success") -> pd.DataFrame:
    """Mean of `column` over a problem's samples: one row a policy seed, one column a (set, problem)."""
    return rows.groupby(["policy_seed", "set", "problem_id"])[column].mean().unstack([1, 2]).sort_index(axis=1)


def _level(values: pd.DataFrame) -> tuple[float, float, float]:
    """(mean, low, high) of a share: over problems, and over seeds if there are several."""
    if len(values) == 1:
        return intervals.mean_interval(values.to_numpy(float)[0])
    if values.shape[1] < 2:
        return float(values.to_numpy().mean()), 0.0, 1.0
    mean, low, high = intervals.crossed_interval(values.to_numpy(float))
    return mean, max(0.0, low), min(1.0, high)


def _averages(values: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    """(name, values whose mean it is) of the averages over sets, if there are several."""
    sets = values.columns.get_level_values(0)
    if sets.nunique() > 1:
        for name in (MICRO, MACRO):
            yield name, intervals.stratified(values.to_numpy(float), list(sets), name == MACRO)


def shares(rows: pd.DataFrame, ks: Sequence[int] = (1,)) -> pd.DataFrame:
    """For each policy and set: success with its interval, pass@k, share of malformed traces, tokens, outcomes.

    Lengths of traces are those of well-formed ones alone.
    """
    found = []
    for policy, mine in rows.groupby("policy", sort=False):
        for name, part in mine.groupby("set", sort=False):
            mean, low, high = _level(matrix(part))
            counts = part.groupby(["policy_seed", "problem_id"])["success"].agg(["size", "sum"]).astype(int)
            passed = {
                f"pass@{k}": np.mean([pass_at_k(n, c, k) for n, c in counts.itertuples(index=False)])
                for k in ks
                if k <= counts["size"].min()
            }
            found.append(
                {
                    "policy": policy,
                    "set": name,
                    "problems": part["problem_id"].nunique(),
                    "seeds": part["policy_seed"].nunique(),
                    "samples": int(counts["size"].min()),
                    "success": mean,
                    "low": low,
                    "high": high,
                    **passed,
                    "malformed": 1 - part["well_formed"].mean(),
                    "trace_tokens": part["trace_tokens"].mean(),
                    "answer_tokens": part["answer_tokens"].mean(),
                    "cut": part["cut"].mean(),
                    "seconds": part["seconds"].sum(),
                }
            )
        values = matrix(mine)
        for name, whole in _averages(values):
            mean, low, high = intervals.crossed_interval(whole)
            size = {"problems": values.shape[1], "seeds": len(values)}
            found.append(
                {"policy": policy, "set": name, **size, "success": mean, "low": max(0, low), "high": min(1, high)}
            )
    table = pd.DataFrame(found)
    return table.astype({"samples": "Int64"})


def outcomes(rows: pd.DataFrame) -> pd.DataFrame:
    """How many answers of each policy and set ended how."""
    kinds = rows["outcome"].where(~rows["outcome"].str.startswith("not judged"), "not judged")
    return rows.assign(outcome=kinds).groupby(["policy", "set", "outcome"], sort=False).size().rename("n").reset_index()


def comparisons(rows: pd.DataFrame, control: str, same: Sequence[str] = ()) -> pd.DataFrame:
    """Every other policy less `control`, on the problems that both have: a row a set, and the averages over sets.

    p_holm: adjusted for all rows of the table. Where each side has one answer a problem, p is that of McNemar's test.

    Args:
        same: policies whose model is that of `control`: nothing to compare.
    """
    found, base = [], matrix(rows[rows["policy"] == control])
    for policy in [p for p in rows["policy"].unique() if p != control]:
        mine = matrix(rows[rows["policy"] == policy])
        both = mine.columns.intersection(base.columns).sort_values()
        mine, other = mine[both], base[both]
        if list(mine.index) != list(other.index):  # other seeds: each seed against the mean of all
            other = other.mean().to_frame().T
        for name in both.get_level_values(0).unique():
            here = both.get_level_values(0) == name
            treated, against = mine.loc[:, here].to_numpy(float), other.loc[:, here].to_numpy(float)
            found.append(_row(policy, control, name, treated.shape, _compare(treated, against), policy in same))
        difference = pd.DataFrame(mine.to_numpy(float) - other.to_numpy(float), mine.index, both)
        for name, whole in _averages(difference):
            found.append(_row(policy, control, name, whole.shape, intervals.compare(whole), policy in same))
    table = pd.DataFrame(found)
    if len(table):
        table["p_holm"] = intervals.holm(table["p"].where(~table["verdict"].str.startswith("not")))
    return table


def _compare(treated: np.ndarray, against: np.ndarray) -> Comparison:
    once = len(treated) == len(against) == 1 and np.isin([treated, against], (0, 1)).all()
    if once:
        return intervals.paired_shares(int((treated > against).sum()), int((treated < against).sum()), treated.shape[1])
    if treated.shape[1] < 2:
        return Comparison(float((treated - against).mean()), -1.0, 1.0, 1.0, 1.0)
    return intervals.compare(treated, against)


def _row(policy: str, control: str, name: str, shape: tuple[int, ...], found: Comparison, same: bool) -> dict[str, Any]:
    verdict = intervals.verdict(found, same=same)
    size = {"seeds": shape[0], "problems": shape[1]}
    return {"comparison": f"{policy} - {control}", "set": name, **size, **found._asdict(), "verdict": verdict}


def by_rule(rows: pd.DataFrame, rules: Sequence[str] = RULES) -> pd.DataFrame:
    """Success of the same saved math outputs under each answer rule, and how many verdicts differ from the set's own.

    How much of a difference between papers is only the rule?
    """
    math, found = rows[(rows["domain"] == "math")], []
    for rule in rules:
        judged = math.assign(success=successes(math, rule))
        for (policy, name), part in judged.groupby(["policy", "set"], sort=False):
            mean, low, high = _level(matrix(part))
            own = math.loc[part.index]
            found.append(
                {
                    "policy": policy,
                    "set": name,
                    "rule": rule,
                    "own_rule": own["rule"].iloc[0],
                    "success": mean,
                    "low": low,
                    "high": high,
                    "only_here_right": int(((part["success"] == 1) & (own["success"] == 0)).sum()),
                    "only_own_right": int(((part["success"] == 0) & (own["success"] == 1)).sum()),
                    "answers": len(part),
                }
            )
    return pd.DataFrame(found)


def successes(rows: pd.DataFrame, rule: str) -> np.ndarray:
    """V of saved math answers under a rule, from truth and answer alone."""
    problems = [
        Problem(
            problem_id=r.problem_id,
            source=r.set,
            domain="math",
            task_type="math_word_problem",
            problem=r.problem,
            reference_solution="",
            answer=r.truth,
        )
        for r in rows.itertuples()
    ]
    answers = [None if pd.isna(y) else y for y in rows["answer"]]
    return np.array([v.success for v in judge(problems, answers, Verifier(rule))], float)
