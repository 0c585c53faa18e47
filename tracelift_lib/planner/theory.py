"""What notebook 09 proves about the rewards, as numbers: moments, simulation, sample sizes, a tabular softmax policy.

The rewards themselves come from rewards.py. Its arms are sums of products of s, q, û and j with no factor twice, so for
independent factors E[arm(s, q, û, j)] = arm(E s, E q, E û, E j), and they work element by element on arrays.

Statements and formulas are ours unless a docstring says otherwise: of the paper's theory (its section 10) only the
subjects are known to us (docs/method.md section 7). Shapes: traces of a group (G,), simulated groups (n, G).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from tracelift_lib.planner.rewards import ARMS, code_coefficient, released_code_reward

FALSE_ALARM = 1e-4  # chance that one assertion of notebook 09 fails for another seed though its statement is true
Array = np.ndarray


def z_limit(comparisons: int, false_alarm: float = FALSE_ALARM) -> float:
    """Standard errors that the largest of `comparisons` deviations exceeds with probability <= `false_alarm`.

    Bonferroni, two-sided, normal approximation: meant for means of a thousand or more draws.
    """
    return float(stats.norm.isf(false_alarm / (2 * comparisons)))


def against(samples: Array, expected: Array | float) -> dict[str, Array]:
    """Means over axis 0 beside their expectation: simulated, low, high (95 % interval), theory, z.

    z counts standard errors between the two. For a constant sample it is 0 if that equals its expectation up to
    rounding, infinite if not.
    """
    mean, error = samples.mean(0), samples.std(0, ddof=1) / math.sqrt(len(samples))
    expected = np.broadcast_to(expected, np.shape(mean))
    gap = np.where(np.isclose(mean, expected, rtol=0, atol=1e-12), 0.0, mean - expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(gap == 0, 0.0, gap / error)
    half = stats.norm.isf(0.025) * error
    return {"simulated": mean, "low": mean - half, "high": mean + half, "theory": expected, "z": z}


def simulate(
    rng: np.random.Generator, n: int, p: Array, p_0: float, k: int, k_0: int, shared: bool
) -> tuple[Array, Array]:
    """(s, û) of n groups with G traces, both of shape (n, G).

    Args:
        p: (G,) or (n, G) success probability of each trace. p_0: the one without a trace.
        k: runs with a trace, besides the one that gives s. k_0: runs without.
        shared: one baseline per group (drawn once and kept), else one per trace (drawn anew, as in the released code).
    """
    shape = (n, np.shape(p)[-1])
    without = rng.binomial(k_0, p_0, (n, 1) if shared else shape) / k_0
    return rng.binomial(1, p, shape).astype(float), rng.binomial(k, p, shape) / k - without


def uplift_variance(p_z: Array | float, p_0: Array | float, k: int, k_0: int) -> Array | float:
    """Var û = p_z (1 - p_z) / K + p_0 (1 - p_0) / K_0 for independent runs; the paper has K_0 = K."""
    return p_z * (1 - p_z) / k + p_0 * (1 - p_0) / k_0


def uplift_covariance(p: Array, p_0: float, k: int, k_0: int, shared: bool) -> Array:
    """(G, G) covariance of the uplifts of a group's traces: a shared baseline adds Var of it to every pair."""
    p = np.asarray(p, float)
    return np.diag(uplift_variance(p, p_0, k, k_0)) + shared * (1 - np.eye(len(p))) * p_0 * (1 - p_0) / k_0


def binomial(k: int, p: Array | float) -> Array:
    """Probabilities of 0..K successes, (K + 1, ...) for p of shape (...)."""
    p = np.asarray(p, float)
    return np.array([math.comb(k, a) * p**a * (1 - p) ** (k - a) for a in range(k + 1)])


def uplift_distribution(p_z: float, p_0: float, k: int, k_0: int) -> tuple[Array, Array]:
    """(values, probabilities) of û, each of length (K + 1)(K_0 + 1); values may repeat."""
    a, b = np.arange(k + 1), np.arange(k_0 + 1)
    values = np.subtract.outer(a * k_0, b * k) / (k * k_0)  # over the common denominator: a tie is exactly 0
    return values.ravel(), np.outer(binomial(k, p_z), binomial(k_0, p_0)).ravel()


def reward_distribution(arm: str, p_z: float, q: float, p_0: float, k: int, q_sd: float = 0) -> tuple[Array, Array]:
    """(values, probabilities) of one trace's reward under an arm, for a known baseline p_0; q stands for j too.

    q_sd: standard deviation of a symmetric two-point error of q. The arms are affine in q, so mean and variance of the
    reward are those of any unbiased error of that size.
    """
    scores = (q - q_sd, q + q_sd) if q_sd else (q,)
    cases = itertools.product((0.0, 1.0), range(k + 1), scores)
    values = np.array([ARMS[arm](s, score, a / k - p_0, score) for s, a, score in cases])
    weights = np.outer(binomial(1, p_z), binomial(k, p_z)).ravel()
    return values, np.repeat(weights, len(scores)) / len(scores)


def reward_moments(
    arm: str, p: Sequence[float], q: Sequence[float], p_0: float, k: int, q_sd: float = 0.0
) -> tuple[Array, Array]:
    """(means, variances) of the reward of each trace, (G,) each, for a known baseline."""
    pairs = [reward_distribution(arm, a, b, p_0, k, q_sd) for a, b in zip(p, q)]
    means = np.array([v @ w for v, w in pairs])
    return means, np.array([(v - m) ** 2 @ w for (v, w), m in zip(pairs, means)])


def effective_runs(c: float, k: int) -> float:
    """Executor runs that 0.5 s + 0.5 c û is worth for ranking traces: (1 + c)^2 / (1 + c^2 / K); exec_only has 1."""
    return (1 + c) ** 2 / (1 + c * c / k)


def released_bonus(p_z: Array, p_0: Array, q: float, k: int, s_failed: float) -> Array:
    """Expected r - s of the released code-domain reward (docs/method.md section 2), shape of p_z and p_0 together.

    The trace's own run passes with probability p_z (s = 1), otherwise s = `s_failed`.
    """
    given, without, total = binomial(k, p_z), binomial(k, p_0), 0.0
    for a, b in itertools.product(range(k + 1), repeat=2):
        passed, failed = (released_code_reward(s, q, code_coefficient(a, b, k)) - s for s in (1.0, s_failed))
        total = total + given[a] * without[b] * (p_z * passed + (1 - p_z) * failed)
    return total


def advantages(rewards: Array, normalise: bool = True, epsilon: float = 1e-4) -> Array:
    """GRPO advantages over the last axis, as TRL computes them: minus the mean, over (std with G - 1, plus epsilon)."""
    rewards = np.asarray(rewards, float)
    centred = rewards - rewards.mean(-1, keepdims=True)
    return centred / (rewards.std(-1, ddof=1, keepdims=True) + epsilon) if normalise else centred


def expected_advantages(
    policy: Array, distributions: Sequence[tuple[Array, Array]], generations: int, normalise: bool = True
) -> Array:
    """(m,) exact E[A of a completion | its trace], the G completions drawn from `policy`: for small groups.

    Args:
        distributions: (values, probabilities) of the reward of each of the m traces, given the baseline.
    """
    values = np.concatenate([v for v, _ in distributions]).round(12)
    levels, index = np.unique(values, return_inverse=True)
    own = np.zeros((len(policy), len(levels)))  # probability of each reward level, trace by trace
    np.add.at(
        own,
        (np.repeat(np.arange(len(policy)), [len(v) for v, _ in distributions]), index),
        np.concatenate([w for _, w in distributions]),
    )
    combinations = np.array(list(itertools.product(range(len(levels)), repeat=generations)))
    others = (policy @ own)[combinations[:, 1:]].prod(1)
    first = advantages(levels[combinations], normalise)[:, 0]
    return own @ np.bincount(combinations[:, 0], others * first)


def groups_needed(
    delta: float, alpha: float, variances: tuple[float, float], generations: int, baseline_variance: float = 0.0
) -> int:
    """Groups that rank two kinds of trace, G/2 completions each per group, with error `alpha` (normal approximation).

    Args:
        delta: difference of their expected rewards.
        variances: of one reward of either kind, given the baseline.
        baseline_variance: what a shared baseline adds to a group's difference, (q_1 - q_2)^2 p_0 (1 - p_0) / (4 K_0).
    """
    noise = 2 / generations * sum(variances) + baseline_variance
    return math.ceil(stats.norm.isf(alpha) ** 2 * noise / delta**2)


def groups_needed_hoeffding(delta: float, alpha: float, width: float, generations: int) -> int:
    """The same without approximation, for rewards in an interval of width w: 2 w^2 ln(1/alpha) / (G delta^2)."""
    return math.ceil(2 * width**2 * math.log(1 / alpha) / (generations * delta**2))


def expected_update(policy: Array, rewards: Array) -> Array:
    """Gradient of the expected reward by the logits, pi_i (R_i - R): last axis is the trace.

    The centred update of a group of G has (1 - 1/G) times this as its expectation.
    """
    return policy * (rewards - (policy * rewards).sum(-1, keepdims=True))


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def flow(policy: Array, rewards: Array, time: float, steps: int) -> Array:
    """Gradient flow of the logits from `policy` (..., m), Runge-Kutta of order 4: policies (steps + 1, ..., m)."""
    logits, h = np.log(policy), time / steps
    path = [policy]
    for _ in range(steps):
        slopes = [expected_update(softmax(logits), rewards)]
        for part in (h / 2, h / 2, h):
            slopes.append(expected_update(softmax(logits + part * slopes[-1]), rewards))
        logits = logits + h / 6 * (slopes[0] + 2 * slopes[1] + 2 * slopes[2] + slopes[3])
        path.append(softmax(logits))
    return np.array(path)


def sampled_updates(traces: Array, rewards: Array, size: int, normalise: bool) -> Array:
    """(n, m) logit updates of n groups: mean of A_k (e_{z_k} - pi); the term with pi vanishes as a group's A add to 0.

    Args:
        traces: (n, G) which of the `size` traces each completion is. rewards: (n, G).
    """
    chosen = traces[..., None] == np.arange(size)
    return (advantages(rewards, normalise)[..., None] * chosen).mean(1)


def gradient_snr(policy: Array, means: Array, variances: Array, generations: int) -> float:
    """|E g| / sqrt(trace of Cov g) of one group's centred update g, for a known baseline. Exact.

    G g / (G - 1) is a U-statistic with kernel h = (r_1 - r_2)(e_1 - e_2) / 2; Hoeffding's formula gives its covariance.
    """
    g = expected_update(policy, means)
    pairs = np.outer(policy, policy) * ((means[:, None] - means) ** 2 + variances[:, None] + variances)
    zeta_2 = (pairs.sum() - np.trace(pairs)) / 2 - g @ g
    basis = np.eye(len(policy)) - policy  # row a: e_a - pi
    known = (means[:, None] * basis - (policy @ means) * np.eye(len(policy)) + policy * means) / 2
    zeta_1 = policy @ ((known**2).sum(1) + variances * (basis**2).sum(1) / 4) - g @ g
    spread = (4 * (generations - 2) * zeta_1 + 2 * zeta_2) / (generations * (generations - 1))
    return float(np.linalg.norm(g) / math.sqrt(spread))
