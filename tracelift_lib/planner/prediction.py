"""What a training will do to a planner's habits, said before it starts: tabular GRPO on measured habits.

The policy is a softmax over habits. It starts from the shares that the warm start shows; each completion of a simulated
group draws one of the measured traces of its habit, and is paid what the arm pays for it. Shared weights, entropy and
the difference between problems are left out: where the real training goes another way, it is because of those.
Source: ours (notebook 09).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tracelift_lib.executor.frozen import Executor
from tracelift_lib.groups.habits import NO_TRACE, habit_of
from tracelift_lib.groups.truth import true_rubric
from tracelift_lib.models.generation import Sampler
from tracelift_lib.planner.rewards import ARMS, CODE_BONUS_WEIGHT, code_coefficient
from tracelift_lib.planner.theory import sampled_updates, softmax
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import PromptLimits, PromptStyle, as_chat, extract_trace, planner_prompt
from tracelift_lib.reward_model.scorer import TraceScorer


def measure_habits(
    planner: Sampler,
    executor: Executor,
    scorer: TraceScorer,
    problems: Sequence[Problem],
    traces: int,
    runs: int,
    style: PromptStyle,
    limits: PromptLimits,
    seed: int,
) -> pd.DataFrame:
    """One row for each of `traces` sampled completions per problem.

    Columns: problem_id, trace, habit; s, mean verdict of `runs` executor runs with the trace; s_none, of `runs` without
    one; q, the RM's score; truth, the true rubric's total. Without a trace s, q and truth are 0.
    """
    prompts = [as_chat(planner_prompt(p, style, limits), planner.tokenizer) for p in problems]
    sampled = planner.sample(prompts, traces, seed, progress="planner")
    pairs = [(p, extract_trace(text)) for p, texts in zip(problems, sampled) for text in texts]
    alone = executor.verdicts(problems, [None] * len(problems), runs, seed + 1, "executor, no trace").mean(1)
    without = dict(zip([p.problem_id for p in problems], alone))
    rows = pd.DataFrame(
        {"problem_id": p.problem_id, "trace": z, "habit": habit_of(p, z), "s_none": without[p.problem_id]}
        for p, z in pairs
    )
    asked, written = [p for p, z in pairs if z], [z for _, z in pairs if z]
    measured = pd.DataFrame(
        {
            "s": executor.verdicts(asked, written, runs, seed + 2, "executor").mean(1),
            "q": scorer.score(asked, written, progress="reward model")[0],
            "truth": [true_rubric(p, z).total for p, z in zip(asked, written)],
        },
        index=rows.index[rows["trace"].notna()],
    )
    return rows.join(measured.reindex(rows.index, fill_value=0.0))


def habit_table(rows: pd.DataFrame) -> pd.DataFrame:
    """For each habit: n, share, and the means of s, q and û = s - s_none; the most frequent habit first."""
    by_habit = rows.assign(u=rows["s"] - rows["s_none"]).groupby("habit")
    table = by_habit[["s", "q", "u"]].mean().assign(n=by_habit.size())
    table.insert(0, "share", table["n"] / len(rows))
    return table.sort_values("share", ascending=False)


@dataclass(frozen=True)
class Simulation:
    """Tabular GRPO of one arm.

    Attributes:
        k, baseline_samples: executor runs with a trace, and without one (`fresh`: drawn anew for each trace, else once
            per problem).
        groups, generations, steps: of a training, as in planner_training.
        step_size: what the logit of a habit gains in one step, per unit of mean advantage. The one constant that is
            fitted; on another training than those predicted (docs/method.md section 11).
        saturation: of the simulated LLM judge.
    """

    arm: str
    k: int
    baseline_samples: int
    fresh: bool
    groups: int
    generations: int
    steps: int
    step_size: float
    saturation: float

    def path(self, rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
        """Shares of the habits before each step and after the last, (steps + 1, habits), in one simulated training.

        Args:
            rows: of `measure_habits`.
        """
        habits = rows["habit"].value_counts(normalize=True)
        logits, shares = np.log(habits.to_numpy()), [habits.to_numpy()]
        pools = [rows.loc[rows["habit"] == habit, ["s", "q", "truth"]].to_numpy() for habit in habits.index]
        problems = rows.groupby("problem_id")["s_none"].first().to_numpy()
        for _ in range(self.steps):
            z = rng.choice(len(habits), (self.groups, self.generations), p=shares[-1])
            rewards = self._rewards(z, pools, rng.choice(problems, (self.groups, 1)), rng)
            rewards[z == habits.index.get_indexer([NO_TRACE])[0]] = 0.0
            logits = logits + self.step_size * sampled_updates(z, rewards, len(habits), normalise=True).mean(0)
            shares.append(softmax(logits))
        return pd.DataFrame(shares, columns=habits.index)

    def _rewards(
        self, z: np.ndarray, pools: list[np.ndarray], p_none: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Rewards of completions with the habits z (groups, G); p_none (groups, 1) is the success without a trace."""
        chosen = np.empty((*z.shape, 3))
        for i, pool in enumerate(pools):
            chosen[z == i] = pool[rng.integers(len(pool), size=(z == i).sum())]
        p, q, truth = np.moveaxis(chosen, -1, 0)
        s, a = rng.binomial(1, p), rng.binomial(self.k, p)
        n = self.k if self.fresh else self.baseline_samples
        b = rng.binomial(n, np.broadcast_to(p_none, z.shape if self.fresh else p_none.shape))
        j = np.where(rng.random(z.shape) < self.saturation, 1.0, truth)
        if self.arm == "random_bonus":
            j = rng.random(z.shape)
        t = (s == s[:, :1]).all(1, keepdims=True)
        if self.arm == "released_code":
            return np.clip(s + CODE_BONUS_WEIGHT * q * np.vectorize(code_coefficient)(a, b, self.k), 0, 1)
        return np.broadcast_to(ARMS[self.arm](s, q, a / self.k - b / n, j, 0.0, t), z.shape).astype(float)


def predict(rows: pd.DataFrame, simulation: Simulation, trainings: int, seed: int) -> pd.DataFrame:
    """Predicted shares: step, habit, share (mean over simulated trainings), low and high (their middle 95 %)."""
    rng = np.random.default_rng(seed)
    paths = pd.concat(
        {i: simulation.path(rows, rng).rename_axis(index="step", columns="habit").stack() for i in range(trainings)}
    )
    by = paths.groupby(["step", "habit"])
    table = pd.DataFrame({"share": by.mean(), "low": by.quantile(0.025), "high": by.quantile(0.975)})
    return table.reset_index()


def shift(start: pd.Series, from_shares: pd.Series, to_shares: pd.Series) -> pd.Series:
    """Shares on another split after training, if training moves its logits as it does on the problems trained on.

    `start`: shares on that split before; `from_shares`, `to_shares`: on the training problems before and after.
    """
    moved = start * (to_shares / from_shares).reindex(start.index, fill_value=1.0)
    return moved / moved.sum()


def fit_step_size(
    rows: pd.DataFrame, observed: pd.DataFrame, simulation: Simulation, candidates: Sequence[float], seed: int
) -> float:
    """The candidate whose predicted path is nearest, by squared error, to the observed shares (steps, habits)."""
    errors = {}
    for size in candidates:
        guess = Simulation(**{**vars(simulation), "step_size": size})
        path = predict(rows, guess, 10, seed).pivot(index="step", columns="habit", values="share")
        known = path.columns.intersection(observed.columns)
        errors[size] = float(((path[known].iloc[: len(observed)] - observed[known].to_numpy()) ** 2).to_numpy().sum())
    return min(errors, key=errors.get)
