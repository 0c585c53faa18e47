# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · Theory: the reward as a quality-weighted treatment effect
#
# What does the reward $r = \tfrac12 s + \tfrac12 q\,\hat u$ pay for? This notebook answers with ten statements, (a)
# to (j). Each comes with its assumptions, a proof, and a check by simulation or by exact enumeration with the
# library's own reward functions.
#
# **After this notebook you can** read the TraceLift reward as a causal estimand, say which traces it prefers and how
# noisy it is, plan how many executor runs a comparison needs, and name three places where it does not do what one
# hopes for.
#
# **Time:** seconds; less than a minute for all simulations. The statements need no model and none of the other notebooks; the
# last section reads what notebooks 05 and 08 have left, and says so where they have left nothing.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
import itertools
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from scipy import stats

from tracelift_lib.evaluation.intervals import wilson
from tracelift_lib.groups.habits import habit_of
from tracelift_lib.planner import theory
from tracelift_lib.planner.rewards import ARMS, code_coefficient, released_code_reward, uplift
from tracelift_lib.runs import report
from tracelift_lib.runs.pipeline import Run

start = time.monotonic()
report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
K, K_0 = run.preset.execution.k, run.preset.execution.baseline_samples
n = run.preset.simulated_groups
rng = np.random.default_rng(run.preset.seed)
simulated = f"{n} simulated groups"
print(f"K = {K} runs with a trace, K_0 = {K_0} without; {n} groups a simulation")

# %% [markdown]
# ## What the paper says, and what is ours
#
# The paper's theory is its section 10. Its exact theorems and proofs are not available to us; we know what they are
# about. So every statement and proof below is our own derivation. Where the paper has a statement of the same
# content, the table says so.
#
# | statement | the paper | ours |
# | --- | --- | --- |
# | definitions | names the reward a quality-weighted conditional treatment effect | the potential-outcome form, and $(1+q)\tau$ |
# | (a) uplift: unbiased, variance, shared baseline | not known to us | all of it |
# | (b) zero effect, zero expected bonus | "zero uplift zeroes the bonus" | the sign, its noise, and the released code's exception |
# | (c) a saturated judge ranks by execution only | Corollary 4; 95.5 % of a judge's scores are exactly 1.0 | what normalisation changes; how fast it fails |
# | (d) to (j) | not known to us | all of them |

# %% [markdown]
# ## Definitions: a trace is a treatment
#
# Fix a problem $x$. The executor is frozen, and *we* decide whether it is shown a trace. In the language of potential
# outcomes:
#
# - **Treatment**: the trace $z$ that the executor is shown, or none ($\varnothing$).
# - **Outcome**: the verdict. $Y(z) \in \{0, 1\}$ with $p_z = \Pr[Y(z) = 1]$; without a trace $Y(\varnothing)$ with
#   $p_0 = \Pr[Y(\varnothing) = 1]$.
# - **Conditional effect**: $\tau(x, z) = \mathbb E[Y(z) - Y(\varnothing) \mid x, z] = p_z - p_0$.
# - **Quality**: $q(x, z) \in [0, 1]$, the reward model's score. It is computed from $x$ and $z$ alone.
# - **Uplift**: $\hat u = \bar Y_K(z) - \bar Y_{K_0}(\varnothing)$, a mean of $K$ verdicts with the trace minus a mean
#   of $K_0$ without. The paper has $K_0 = K = 3$.
# - **Reward**: $r = \tfrac12 s + \tfrac12 q\,\hat u$, where $s$ is one more verdict with the trace.
#
# In a medical trial one person shows only one of the two outcomes, and who gets treated may depend on who is ill. Here
# both arms can be run as often as we like, on the same problem, and nothing but the prompt differs: there is no
# confounding, and $\tau$ is identified by design.
#
# **Standing assumptions.** (A1) Executor runs are independent given $(x, z)$. (A2) $q$ does not depend on these runs.
#
# Taking expectations over the executor's runs gives the identity that the rest is built on:
#
# $$\mathbb E[r \mid x, z] = \tfrac12 p_z + \tfrac12 q\,\tau = \tfrac12 p_0 + \tfrac12 (1 + q)\,\tau .$$
#
# Within a group $p_0$ is the same for all traces. So TraceLift ranks the traces of a problem by $(1 + q)\,\tau$: the
# treatment effect, with a weight between 1 and 2 that quality decides. Quality can at most double the credit for an
# effect.
#
# ## How the checks work
#
# A simulated mean is never exactly its expectation. We divide the difference by its standard error and compare that
# with the largest value that chance explains: an assertion may fail for a true statement with one seed in 10,000,
# shared by all quantities it compares (Bonferroni). Nothing else sets a tolerance; exact checks allow for rounding
# only.

# %%
def agree(names, samples, expected):
    """Simulated means beside their expectation; an error if chance does not explain one of the differences."""
    table = pd.DataFrame({"quantity": names, **theory.against(samples, expected)})
    limit = theory.z_limit(len(table))
    assert (table["z"].abs() <= limit).all(), table
    return table


ROUNDING = 1e-9  # exact statements: sums of a few thousand numbers of size 1 in double precision
print(f"limit for one quantity: {theory.z_limit(1):.1f} standard errors, for ten: {theory.z_limit(10):.1f}")

# %% [markdown]
# The simulations draw counts of successes instead of single verdicts, for speed. That is the library's `uplift` all
# the same:

# %%
for a, b in itertools.product(range(K + 1), range(K_0 + 1)):
    assert np.isclose(uplift([1] * a + [0] * (K - a), [1] * b + [0] * (K_0 - b)), a / K - b / K_0, atol=ROUNDING)

# %% [markdown]
# ## (a) The uplift is unbiased; a shared baseline correlates a group
#
# **Statement.** $\mathbb E[\hat u] = \tau$ and
#
# $$\operatorname{Var}[\hat u] = \frac{p_z(1 - p_z)}{K} + \frac{p_0(1 - p_0)}{K_0},$$
#
# which is $[p_z(1-p_z) + p_0(1-p_0)]/K$ for $K_0 = K$. For two traces $i \neq j$ of a problem,
# $\operatorname{Cov}[\hat u_i, \hat u_j]$ is $0$ if each has its own baseline and $p_0(1-p_0)/K_0$ if they share one.
# A shared baseline leaves the difference $\hat u_i - \hat u_j$ with no baseline noise at all; own baselines leave it
# with $2 p_0(1-p_0)/K_0$.
#
# **Assumptions.** (A1).
#
# **Proof.** A mean of $K$ independent Bernoulli($p$) verdicts has mean $p$ and variance $p(1-p)/K$. The two means in
# $\hat u$ are independent, so expectations subtract and variances add. Write $\hat u_i = \bar Y_i - B_i$. If $B_i$
# and $B_j$ are independent, so are $\hat u_i$ and $\hat u_j$. If $B_i = B_j = B$, the covariance is
# $\operatorname{Var}[B]$, because $\bar Y_i$, $\bar Y_j$ and $B$ are independent; and
# $\hat u_i - \hat u_j = \bar Y_i - \bar Y_j$. $\square$
#
# **Remark.** "Unbiased" is over draws of the baseline. A baseline that is drawn once and *kept* has the same error at
# every training step: given the cache, $\mathbb E[\hat u \mid B] = p_z - B$. Statement (d) says when that matters.

# %%
p, p_0 = np.array([0.9, 0.6, 0.3]), 0.4
plans = {f"own, {K} runs": (K, False), f"shared, {K} runs": (K, True), f"shared, {K_0} runs": (K_0, True)}
parts = []
for name, (k_0, shared) in plans.items():
    _, u = theory.simulate(rng, n, p, p_0, K, k_0, shared)
    error = u - (p - p_0)
    squares = np.stack([error[:, 0], error[:, 0] ** 2, error[:, 0] * error[:, 1], (error[:, 0] - error[:, 1]) ** 2], 1)
    covariance = theory.uplift_covariance(p, p_0, K, k_0, shared)
    expected = [0, covariance[0, 0], covariance[0, 1], covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]]
    quantities = ["bias", "variance", "covariance of two", "variance of a difference"]
    parts.append(agree(quantities, squares, expected).assign(baseline=name))
moments = report.save_table(run, pd.concat(parts, ignore_index=True), "theory_uplift_moments", [], simulated)
moments.round(4)

# %%
figure, axis = plt.subplots()
shown = moments[moments["quantity"] != "bias"]
for i, (name, rows) in enumerate(shown.groupby("baseline", sort=False)):
    place = np.arange(len(rows)) + 0.27 * (i - 1)
    axis.bar(place, rows["theory"], 0.25, label=name, color=f"C{i}", alpha=0.5)
    axis.errorbar(place, rows["simulated"], [rows["simulated"] - rows["low"], rows["high"] - rows["simulated"]],
                  fmt="k.", ms=3, lw=1)
axis.set(xticks=range(3), ylabel="variance of û", title="Formula (bars), simulation (points, 95 %)")
axis.set_xticklabels(["of one", "covariance\nof two", "of a\ndifference"])
axis.legend(title="baseline")
report.save_figure(run, figure, "theory_uplift_variance", shown, [], simulated)

# %% [markdown]
# ## (b) Zero effect, zero expected bonus; the sign of the bonus is the sign of the effect
#
# **Statement.** The bonus $b = \tfrac12 q\,\hat u$ has $\mathbb E[b \mid x, z] = \tfrac12 q\,\tau$. So it is $0$ in
# expectation whenever $\tau = 0$, whatever $q$ is, and for $q > 0$ its expectation has the sign of $\tau$. (The
# paper: zero uplift zeroes the bonus.)
#
# **Assumptions.** (A1) and (A2).
#
# **Proof.** Given $(x, z)$ the score $q$ is a constant, and $\mathbb E[\hat u] = \tau$ by (a). $\square$
#
# **What (A2) is for.** If the score saw the executor's runs, then
# $\mathbb E[q\,\hat u] = \mathbb E[q]\,\tau + \operatorname{Cov}[q, \hat u]$, and a useless trace would be paid for
# by the covariance.
#
# **In expectation, not in each draw.** A *measured* $\hat u$ of exactly 0 pays exactly nothing. But at $\tau = 0$ the
# measured one is seldom exactly 0, and at $\tau > 0$ it can be negative. First the expectation:

# %%
q = 0.8
effects = np.array([-0.4, -0.2, 0.0, 0.2, 0.4])
s, u = theory.simulate(rng, n, p_0 + effects, p_0, K, K, shared=False)
bonus = ARMS["tracelift"](s, q, u, 0.0) - ARMS["tracelift"](s, q, 0.0, 0.0)
signs = agree([f"expected bonus at effect {e:+.1f}" for e in effects], bonus, q * effects / 2)
signs["wrong sign"] = np.where(effects == 0, np.nan, (bonus * np.sign(effects) < -1e-12).mean(0))
report.save_table(run, signs, "theory_bonus_sign", [], simulated).round(4)

# %% [markdown]
# **The released code-domain reward does not have this property.** Its coefficient pays for ties of successes: with
# $p_z = p_0 = p$ the cases "helped" and "hurt" are equally likely and cancel, and
# $\mathbb E[c] = \sum_a \Pr[a]^2 \, t_a > 0$ is left, with $t_a$ the value of a tie of $a$ successes. A trace that
# changes nothing on an easy problem gets nearly the full bonus. Left: that expectation, exactly. Right: how often a
# single measured uplift has the wrong sign. (With few runs it is often exactly 0 instead, so for small effects the
# curve of K = 1 is the lowest.)

# %%
chances = np.linspace(0, 1, 41)
ties = []
for chance in chances:
    counts = theory.binomial(K, chance)
    ties.append(sum(counts[a] * counts[b] * code_coefficient(a, b, K)
                    for a, b in itertools.product(range(K + 1), repeat=2)))
    assert np.isclose(ties[-1], sum(counts[a] ** 2 * code_coefficient(a, a, K) for a in range(K + 1)), atol=ROUNDING)
no_effect = pd.DataFrame({"what": "coefficient at zero effect", "K": K, "x": chances, "y": ties})
wrong = []
for k, effect in itertools.product((1, 3, 5, 10), np.linspace(0.02, 0.6, 30)):
    values, weights = theory.uplift_distribution(p_0 + effect, p_0, k, k)
    wrong.append({"what": "wrong sign", "K": k, "x": effect, "y": weights[values < 0].sum()})
curves = pd.concat([no_effect, pd.DataFrame(wrong)], ignore_index=True)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(2 * report.COLUMN_WIDTH, 2.6))
left.plot(chances, ties, color="C3", label="released code: E[c]")
left.axhline(0, color="C0", label="paper: E[û] = 0")
left.set(xlabel="success with and without the trace", ylabel="expected factor of q", title="A trace without effect")
left.legend()
sns.lineplot(curves[curves["what"] == "wrong sign"], x="x", y="y", hue="K", palette="viridis", ax=right)
right.set(xlabel=f"effect τ, from $p_0$ = {p_0}", ylabel="P(û < 0)", title="A helpful trace measured as harmful")
report.save_figure(run, figure, "theory_zero_effect", curves, [], "exact enumeration")

# %% [markdown]
# ## (c) A saturated judge ranks as execution alone does
#
# Put a judge's score $j$ in the place of $q$ (arm `llm_judge`) and let it be saturated: $j = c$ for all traces,
# $0 < c \le 1$. The paper's Corollary 4 says that the reward then reduces to the execution-only ranking. In which
# sense? $s$ and $\hat u$ are *different* noisy samples of the same $p_z$, so for single draws the two rewards are not
# the same, and not even in the same order.
#
# **Statement.** Let $G$ completions be drawn independently from a policy, and $j \equiv c$.
#
# 1. *Expected rewards*: $\mathbb E[r \mid z] = \tfrac12(1 + c)\,p_z - \tfrac12 c\,p_0$, an increasing function of
#    $p_z$, which is the expected reward of `exec_only`. So both rank the traces of a problem alike.
# 2. *Centred advantages* $r_i - \bar r$ (no division): their expectations given the traces are $\tfrac12(1 + c)$
#    times those of `exec_only`. Same ranking, same weights but for one common factor, which a learning rate absorbs.
# 3. *GRPO's advantages* $A_i = (r_i - \bar r) / (\operatorname{sd} + \epsilon)$: $\mathbb E[A_i \mid z_i]$ increases
#    in $p_{z_i}$ under both arms, so they rank alike. But the values differ by more than a common factor, because the
#    divisor is random and correlated with the numerator.
# 4. *Noise*: for telling traces apart, the saturated judge is worth $n_{\text{eff}} = (1 + c)^2 / (1 + c^2/K)$
#    executor runs, where `exec_only` has one. (With a shared baseline; own ones add noise.)
#
# **Assumptions.** (A1), and $j$ the same for all traces of the problem.
#
# **Proof of 1, 2 and 4.** 1 is the identity for $\mathbb E[r]$ with $q = c$. In 2 the mean over the group is linear
# and the term with $p_0$ cancels. For 4: given the baseline, $r = \tfrac12 s + \tfrac12 c \bar Y_K + \text{const}$
# has variance $p_z(1 - p_z)(\tfrac14 + \tfrac{c^2}{4K})$, and a difference of success $\delta$ shows as
# $\tfrac12(1 + c)\delta$. Squared signal over variance is $n_{\text{eff}}$ times that of $s$ alone. $\square$

# %% [markdown]
# **Proof of 3.** *Step 1: a completion's advantage never falls when its own reward rises.* Let $d = r_1 - \bar r$ and
# $S = \sum_i (r_i - \bar r)^2$, $\operatorname{sd} = \sqrt{S / (G-1)}$. Then $\partial d / \partial r_1 = 1 - 1/G$
# and $\partial \operatorname{sd} / \partial r_1 = d / ((G-1)\operatorname{sd})$, so the derivative of
# $A_1 = d / (\operatorname{sd} + \epsilon)$ has the sign of
#
# $$\Big(1 - \frac1G\Big)(\operatorname{sd} + \epsilon) - \frac{d^2}{(G-1)\operatorname{sd}} .$$
#
# The deviations of the others add to $-d$, so by Cauchy–Schwarz their squares add to at least $d^2/(G-1)$, hence
# $S \ge d^2\,G/(G-1)$ and
# $(1 - \tfrac1G)\operatorname{sd} = (1 - \tfrac1G)\,S/((G-1)\operatorname{sd}) \ge d^2 / ((G-1)\operatorname{sd})$.
# What is left is at least $(1 - \tfrac1G)\,\epsilon > 0$.
#
# *Step 2: a better trace has a stochastically larger reward.* Draw each verdict with the trace as
# $\mathbf 1[U \le p_z]$ with $U$ uniform. With the same $U$, a larger $p_z$ gives a reward at least as large, and a
# larger one with positive probability.
#
# *Step 3.* The other $G - 1$ completions come from the policy, and their law does not depend on what $z_1$ is (given
# the baseline, if it is shared). Average step 1 over step 2. $\square$
#
# Step 1 is about a completion's *own* advantage. The difference $A_1 - A_2$ for fixed others is not monotone in
# $r_1$: one very large reward widens the spread and pulls all others towards 0.
#
# An exact check by going through all outcomes of a group of four, for three traces that the policy draws equally
# often:

# %%
policy, p = np.full(3, 1 / 3), np.array([0.9, 0.6, 0.2])
rows = []
for arm, c in (("exec_only", 1.0), ("llm_judge", 1.0), ("llm_judge", 0.5)):
    distributions = [theory.reward_distribution(arm, x, c, p_0, K) for x in p]
    for normalise in (False, True):
        values = theory.expected_advantages(policy, distributions, 4, normalise)
        rows.append({"arm": arm, "c": c, "advantage": "GRPO" if normalise else "centred",
                     **{f"p = {x}": v for x, v in zip(p, values)}})
ranking = pd.DataFrame(rows)
columns = [f"p = {x}" for x in p]
assert (np.diff(ranking[columns].to_numpy(), axis=1) < 0).all()  # statement 3 (and 1, 2): ordered as p is
centred = ranking[ranking["advantage"] == "centred"].set_index(["arm", "c"])[columns]
for c in (1.0, 0.5):  # statement 2: one common factor
    assert np.allclose(centred.loc[("llm_judge", c)], (1 + c) / 2 * centred.loc[("exec_only", 1.0)], atol=ROUNDING)
report.save_table(run, ranking, "theory_saturated_judge", [], "exact enumeration, G = 4").round(3)

# %% [markdown]
# Divided by those of `exec_only`, GRPO's advantages of the saturated judge do not have one common factor: same order,
# other weights. And statement 4, from the exact moments of the rewards:

# %%
grpo = ranking[ranking["advantage"] == "GRPO"].set_index(["arm", "c"])[columns]
display((grpo.loc["llm_judge"] / grpo.loc[("exec_only", 1.0)]).round(3))
for c in (1.0, 0.5):
    (mean_j, variance_j), (mean_s, variance_s) = (
        theory.reward_moments(arm, p, np.full(3, c), p_0, K) for arm in ("llm_judge", "exec_only"))
    gain = ((mean_j[0] - mean_j[1]) ** 2 / variance_j) / ((mean_s[0] - mean_s[1]) ** 2 / variance_s)
    assert np.allclose(gain, theory.effective_runs(c, K), atol=ROUNDING)
    print(f"c = {c}: worth {theory.effective_runs(c, K):.2f} runs of the executor a trace")

# %% [markdown]
# So the saturated judge asks the same question as `exec_only`, only with less noise. A gain over `exec_only` in an
# experiment is not by itself evidence that the judge's scores matter.
#
# **How fast does it fail?** Let the scores differ: $|j_i - c| \le \varepsilon$ in the group. From
# $2\,\mathbb E[r_i - r_k] = (1 + c)(p_i - p_k) + (j_i - c)\tau_i - (j_k - c)\tau_k$, a pair can change its order only
# if
#
# $$(1 + c)\,|p_i - p_k| \le \varepsilon\,(|\tau_i| + |\tau_k|).$$
#
# A typical pair thus survives any spread that is small against its difference in success.
#
# For the share of pairs that change, take a judge that gives exactly 1 with probability $\rho$ and otherwise a
# uniform score, and let $p_i$, $p_k$, $p_0$ be uniform too. (What the 4.5 % unsaturated scores of the paper's judge
# look like is not available to us; uniform is our choice and, as scores of judges go, a wide spread.) Then the share
# is exactly
#
# $$2\rho(1 - \rho) \cdot \tfrac1{12} + (1 - \rho)^2 \cdot \big(\tfrac13 \ln 2 - \tfrac16\big).$$
#
# **Proof.** Rank by $p + j\tau$, that is, by $(1 + j)\,\tau$. Traces with effects of different sign keep their order.
# With the same sign (probability $\mathbb E[p_0^2 + (1 - p_0)^2] = \tfrac23$) the ratio of the smaller $|\tau|$ to
# the larger is uniform on $[0, 1]$, and the order changes if the larger effect has the smaller weight,
# $1 + j = \alpha$ against $\beta > \alpha$, and the ratio exceeds $\alpha/\beta$. Which trace has the larger effect
# is a fair coin. One score 1, the other uniform:
# $\tfrac23 \cdot \tfrac12 \cdot \mathbb E[1 - \beta'/2] = \tfrac1{12}$ with $\beta'$ uniform on $[1, 2]$. Both
# uniform:
# $\tfrac23 \int_1^2\!\int_1^\beta (1 - \tfrac\alpha\beta)\,d\alpha\,d\beta = \tfrac23(\tfrac12\ln 2 - \tfrac14)$.
# $\square$

# %%
def changed_pairs(saturation, draws):
    """1 for each random pair of traces that the judge's expected rewards order otherwise than success does."""
    p, p_0 = rng.random((draws, 2)), rng.random((draws, 1))
    j = np.where(rng.random((draws, 2)) < saturation, 1.0, rng.random((draws, 2)))
    r = ARMS["llm_judge"](p, 0.0, p - p_0, j)
    changed = (r[:, 0] - r[:, 1]) * (p[:, 0] - p[:, 1]) < -1e-15
    reach = (1 - j).max(1) * abs(p - p_0).sum(1)
    assert (2 * abs(p[:, 0] - p[:, 1]) <= reach + ROUNDING)[changed].all()  # the bound, pair by pair
    return changed.astype(float)


shares = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.955, 1.0])
share_changed = shares * (1 - shares) / 6 + (1 - shares) ** 2 * (np.log(2) / 3 - 1 / 6)
samples = np.stack([changed_pairs(x, n) for x in shares], 1)
judge = agree([f"{x:.1%} saturated" for x in shares], samples, share_changed).assign(saturation=shares)
report.save_table(run, judge, "theory_judge_spread", [], f"{n} simulated pairs").round(4)

# %%
figure, axis = plt.subplots()
grid = np.linspace(0, 1, 101)
axis.plot(grid, grid * (1 - grid) / 6 + (1 - grid) ** 2 * (np.log(2) / 3 - 1 / 6), label="exact")
axis.errorbar(judge["saturation"], judge["simulated"],
              [judge["simulated"] - judge["low"], judge["high"] - judge["simulated"]], fmt="k.", ms=4,
              label="simulated, 95 %")
axis.axvline(0.955, color="C3", ls="--", label="the paper's judge: 95.5 %")
axis.set(xlabel="share of scores that are exactly 1", ylabel="share of pairs", ylim=(0, None),
         title="Pairs ranked otherwise than by success")
axis.legend(loc="lower left")
report.save_figure(run, figure, "theory_judge_saturation", judge, [], f"{n} simulated pairs")

# %%
paper = judge.set_index("saturation").loc[0.955]
display(Markdown(
    f"At 95.5 % saturation {1 - 0.955 ** 4:.0%} of the groups of four have at least one score below 1, but only "
    f"{paper['theory']:.2%} of the pairs change their order in expectation (simulated: {paper['low']:.2%} to "
    f"{paper['high']:.2%})."))

# %% [markdown]
# ## (d) When the baseline cancels, and what is left of it
#
# **Statement.** Let a group share the baseline value $b$, so $r_i = \tfrac12 s_i + \tfrac12 q_i(\bar Y_i - b)$.
#
# 1. The centred advantages do not depend on $b$ if and only if $q$ is constant in the group. Otherwise a change of
#    the baseline by $\Delta$ shifts them by $-\tfrac12 \Delta\,(q_i - \bar q)$.
# 2. If $q$ is constant, GRPO's normalised advantages do not depend on $b$ either. If it is not, they do, but for one
#    degenerate case: when the centred rewards at $b = 0$ are a multiple of $q_i - \bar q$ (always so for $G = 2$),
#    $b$ decides only the sign and, through $\epsilon$, hardly the size.
#
# **Proof.** $r_i(b) - \bar r(b) = v_i - \tfrac b2 w_i$ with $w_i = q_i - \bar q$ and $v$ the centred rewards at
# $b = 0$: 1 is read off. For 2 with $w = 0$, numerator and spread are both free of $b$. With $w \neq 0$, write
# $A(b) = (v - \tfrac b2 w)/\lVert v - \tfrac b2 w\rVert$ up to a constant ($\epsilon = 0$). If $v$ and $w$ are
# linearly independent, the direction of $v - \tfrac b2 w$ is different for each $b$. If $v = \lambda w$, then
# $A(b) = \operatorname{sign}(\lambda - \tfrac b2)\,w / \lVert w\rVert$. For $G = 2$ centred vectors form a line, so
# $v$ and $w$ are always parallel. $\square$
#
# **What is left.** With an estimate $B$ in the place of $p_0$, $\Delta = B - p_0$ has mean 0 and variance
# $p_0(1 - p_0)/K_0$ over draws of the baseline. In a cache it is drawn once and then fixed: where the cached baseline
# is too low, every trace of the problem is paid $\tfrac12 \lvert\Delta\rvert$ for each unit of quality, helpful or
# not, a little of `no_uplift`; where it is too high, quality is punished. Own baselines have no such lasting error
# but put $\tfrac14 q_i^2\,p_0(1-p_0)/K_0$ of fresh noise on every single reward.

# %%
p, quality = np.array([0.9, 0.7, 0.5, 0.2]), {"constant": np.full(4, 0.7), "different": np.array([0.9, 0.3, 0.6, 0.4])}
s, with_trace = theory.simulate(rng, n, p, 0.0, K, 1, shared=True)  # baseline 0: the mean verdict, nothing taken off
rows = []
for (name, q), normalise in itertools.product(quality.items(), (False, True)):
    low, high = (theory.advantages(ARMS["tracelift"](s, q, with_trace - b, 0.0), normalise) for b in (0.2, 0.5))
    shift = abs(high - low).max()
    rows.append({"q": name, "advantage": "GRPO" if normalise else "centred", "largest shift": shift})
    assert (shift < ROUNDING) == (name == "constant")
    if not normalise:
        assert np.allclose(high - low, -0.5 * 0.3 * (q - q.mean()), atol=ROUNDING)
report.save_table(run, pd.DataFrame(rows), "theory_baseline_shift", [], simulated)

# %% [markdown]
# How large is what is left? The variance that a shared baseline of $K_0$ runs adds to the first trace's centred
# advantage:

# %%
q, rows = quality["different"], []
for k_0 in (K, K_0, 32):
    estimate = rng.binomial(k_0, p_0, (n, 1)) / k_0
    exact, shifted = (theory.advantages(ARMS["tracelift"](s, q, with_trace - b, 0.0), False) for b in (p_0, estimate))
    formula = 0.25 * (q[0] - q.mean()) ** 2 * p_0 * (1 - p_0) / k_0
    rows.append(agree(["variance of the shift"], ((shifted - exact)[:, :1]) ** 2, formula).assign(K_0=k_0))
rest = pd.concat(rows, ignore_index=True)
rest["share of the advantage's variance"] = rest["theory"] / exact[:, 0].var()
report.save_table(run, rest, "theory_baseline_rest", [], simulated).round(6)

# %% [markdown]
# ## (e) Better at equal effect, more useful at equal quality
#
# **Statement.** Let $R = \mathbb E[r \mid x, z] = \tfrac12 p_0 + \tfrac12(1 + q)\tau$. (i) Among traces of equal
# effect $\tau > 0$, more quality earns more. (ii) Among traces of equal quality, more effect earns more. (iii) The
# two are complements: quality is worth more where the effect is larger.
#
# **Proof.** $\partial R / \partial q = \tau/2$, $\partial R / \partial \tau = (1 + q)/2 > 0$,
# $\partial^2 R / \partial q\,\partial \tau = \tfrac12 > 0$. $\square$
#
# The rate of exchange along a line of equal reward is $d\tau/dq = -\tau/(1 + q)$: a point of quality buys at most as
# much as the effect itself. `no_uplift` has $\partial R/\partial q = \tfrac12$ everywhere, harmful traces included.
#
# ## (f) Harmful traces: quality makes the penalty larger
#
# **Statement.** For $\tau < 0$, $\partial R / \partial q = \tau/2 < 0$: among equally harmful traces the one that
# reads better is punished more.
#
# **When that is wanted.** A trace that is wrong but convincing misleads the executor *because* it reads well; a plain
# gap would have done no harm. Taking more from it works against persuasive nonsense.
#
# **When it is not.** (1) At the ceiling: if the executor alone always succeeds ($p_0 = 1$), every effect is $\le 0$
# and the best trace is at most a nuisance; the planner is then taught to write worse among equally successful traces.
# (2) When the harm is the executor's: a sound trace that it cannot follow, or a format it stumbles over. (3) When the
# harm is noise: by (b), a measured $\hat u < 0$ at $\tau \ge 0$ is common.
#
# A repair that suggests itself is to pay $q \max(\hat u, 0)$. It costs property (b): see exercise 2.
#
# Three pairs of traces; the difference of their mean rewards, from sampled rewards, and what the formula says:

# %%
pairs = {
    "(e) equal effect +0.4, q 0.9 against 0.5": ((0.8, 0.8), (0.9, 0.5)),
    "(e) equal quality 0.7, effect +0.4 against +0.1": ((0.8, 0.5), (0.7, 0.7)),
    "(f) equal effect -0.3, q 0.9 against 0.5": ((0.1, 0.1), (0.9, 0.5)),
}
rows = []
for name, (p, q) in pairs.items():
    p, q = np.array(p), np.array(q)
    s, u = theory.simulate(rng, n, p, p_0, K, K_0, shared=True)
    R = ARMS["tracelift"](p, q, p - p_0, 0.0)  # the expected reward: the arm is affine in each part
    r = ARMS["tracelift"](s, q, u, 0.0)
    rows.append(agree([name], (r[:, 0] - r[:, 1])[:, None], R[0] - R[1]))
credit = report.save_table(run, pd.concat(rows, ignore_index=True), "theory_credit", [], simulated)
credit.round(4)

# %% [markdown]
# Lines of equal expected reward; lighter is more. To the right of the dashed line a trace helps. Under `exec_only`
# the lines are vertical: quality earns nothing. Under TraceLift they lean with quality where the trace helps and
# against it where it harms.

# %%
effect, quality = np.meshgrid(np.linspace(-p_0, 1 - p_0, 31), np.linspace(0, 1, 21))
figure, axes = plt.subplots(1, 3, figsize=(2 * report.COLUMN_WIDTH, 2.5), sharey=True)
lines = []
for axis, arm in zip(axes, ("exec_only", "tracelift", "no_uplift")):
    reward = ARMS[arm](p_0 + effect, quality, effect, quality)
    axis.contourf(effect, quality, reward, levels=12, cmap="viridis")
    axis.contour(effect, quality, reward, levels=12, colors="w", linewidths=0.6, linestyles="solid")
    axis.axvline(0, color="k", ls="--", lw=1)
    axis.grid(False)
    axis.set(xlabel="effect τ", title=arm)
    lines.append(pd.DataFrame({"arm": arm, "effect": effect.ravel(), "q": quality.ravel(), "reward": reward.ravel()}))
axes[0].set_ylabel("quality q")
report.save_figure(run, figure, "theory_equal_reward", pd.concat(lines), [], f"exact, p_0 = {p_0}")

# %% [markdown]
# ## (g) Where the released code-domain bonus cannot act
#
# The released code pays $r = \operatorname{clip}(s + 0.2\,q\,c, 0, 1)$ for code, with $s \in [0, 1]$ the graded
# execution reward and $c$ the coefficient of the sign of $a - b$.
#
# **Statement.** Let $\Delta = r - s$ be the bonus that survives the clip.
#
# 1. For $c > 0$: $\Delta = \min(0.2\,q\,c,\; 1 - s)$. It is 0 for every trace whose own run passed ($s = 1$), however
#    good and useful.
# 2. For $c < 0$: $\Delta = -\min(0.2\,q\,|c|,\; s)$. It is 0 for every trace whose own run has $s = 0$ (the program
#    does not compile).
# 3. For a trace that passes with probability $p_z$ and otherwise gets $s_f$,
#
# $$\mathbb E[\Delta] = (1 - p_z)\,\mathbb E\big[\min(0.2\,q\,c^+,\, 1 - s_f)\big]
# {} - \Pr[a < b]\,\big(0.2\,q\,p_z + (1 - p_z)\min(0.2\,q,\, s_f)\big).$$
#
# As $p_z \to 1$ the first term vanishes: a reliable trace can only lose. So the bonus orders *failing* runs by
# usefulness and can lower passing ones, but never tells a sound from a lucky success.
#
# **Assumptions.** (A1), $q \in [0, 1]$, $s_f < 1$; for 3, ties are not negative (the default table).
#
# **Proof.** 1 and 2: $\operatorname{clip}(s + t) - s = \min(t, 1 - s)$ for $t \ge 0$ and $-\min(|t|, s)$ for $t < 0$,
# as $0 \le s \le 1$. 3: the own run is independent of $a$ and $b$; average 1 and 2 over $s \in \{1, s_f\}$; $c < 0$
# happens only for $a < b$, with $c = -1$. $\square$

# %%
for s, q, c in itertools.product(np.linspace(0, 1, 21), np.linspace(0, 1, 11), (-1.0, 0.0, 0.5, 2 / 3, 1.0)):
    bonus = min(0.2 * q * c, 1 - s) if c > 0 else -min(-0.2 * q * c, s)
    assert np.isclose(released_code_reward(s, q, c) - s, bonus, atol=ROUNDING)

# %% [markdown]
# Part 3 as a map, by exact enumeration ($q = 1$; a failing program that runs to its end has $s_f = 0.2$), beside the
# paper's bonus. The dashed diagonal is zero effect. Above it a trace helps. Along the solid line the expected bonus
# is zero.

# %%
rates = np.linspace(0, 1, 41)
without, given = np.meshgrid(rates, rates)
maps = {"paper: ½ q τ": ARMS["tracelift"](0.0, 1.0, given - without, 0.0),
        "released code, after the clip": theory.released_bonus(given, without, 1.0, K, 0.2)}
figure, axes = plt.subplots(1, 2, figsize=(2 * report.COLUMN_WIDTH, 2.9), sharey=True)
for axis, (title, values) in zip(axes, maps.items()):
    size = abs(values).max()
    drawn = axis.pcolormesh(without, given, values, cmap="RdBu", vmin=-size, vmax=size, rasterized=True)
    axis.contour(without, given, values, levels=[0], colors="k", linewidths=1)
    axis.plot([0, 1], [0, 1], "k--", lw=0.8)
    figure.colorbar(drawn, ax=axis)
    axis.set(xlabel="success without a trace $p_0$", title=title)
axes[0].set_ylabel("success with the trace $p_z$")
data = pd.concat([pd.DataFrame({"bonus": title, "p_0": without.ravel(), "p_z": given.ravel(), "expected": v.ravel()})
                  for title, v in maps.items()])
report.save_figure(run, figure, "theory_released_bonus", data, [], "exact enumeration")

# %%
helps, harms = given > without + 1e-12, given < without - 1e-12
rows = []
for s_f in (0.0, 0.2, 0.6):
    released = theory.released_bonus(given, without, 1.0, K, s_f)
    assert (released[given == 1] <= ROUNDING).all()  # a trace that always succeeds never gains
    rows.append({"reward of a failed run": s_f, "helpful, bonus not positive": (helps & (released <= ROUNDING)).mean(),
                 "harmful, bonus positive": (harms & (released > ROUNDING)).mean(),
                 "bonus falls while p_z rises": (np.diff(released, axis=0) < -ROUNDING).mean()})
areas = report.save_table(run, pd.DataFrame(rows), "theory_released_regions", [], "grid of 41 x 41, exact enumeration")
areas.round(4)

# %% [markdown]
# ## (h) How many groups does a ranking need?
#
# Two kinds of trace, say complete ones and ones with a hole, differ by $\delta$ in expected reward. $M$ groups hold
# $G/2$ completions of either kind. We rank the kinds by their mean rewards.
#
# **Statement.** With $\sigma_1^2$, $\sigma_2^2$ the variances of a reward given the baseline, the ranking is wrong
# with probability about $\alpha$ for
#
# $$M = \frac{z_\alpha^2}{\delta^2}\Big[\frac2G(\sigma_1^2 + \sigma_2^2) + (q_1 - q_2)^2\,\frac{p_0(1 - p_0)}{4 K_0}\Big],
# \qquad \sigma_i^2 = \tfrac14 p_i(1 - p_i)\Big(1 + \frac{q_i^2}K\Big),$$
#
# and with probability at most $\alpha$, without any approximation, for $M \ge 2 w^2 \ln(1/\alpha) / (G\,\delta^2)$,
# where $w = \tfrac12(1 + q)$ is the width of the interval that holds the rewards (equal $q$, shared baseline).
#
# **Assumptions.** (A1); baselines shared in a group and drawn anew for each group (other problems, or no cache); the
# kinds' $p$ and $q$ alike in all groups. If $p$ varies from problem to problem, $p(1-p)$ is smaller on average (it is
# concave), so the plan is on the safe side for a given mean.
#
# **Proof.** A group's difference $D_m$ of the two means has expectation $\delta$ and, by (d), variance in the
# brackets. The mean over $M$ independent groups is close to normal, so it is negative with probability about
# $\Phi(-\delta\sqrt M / \operatorname{sd}(D))$; put this equal to $\alpha$.
#
# With equal $q$ the baseline cancels and the mean difference is a sum of $MG$ independent terms, a reward times
# $\pm 2/(MG)$ each. The second bound is Hoeffding's inequality: each term lies in an interval of width $2w/(MG)$, so
# the sign is wrong with probability at most
# $\exp\big(-2\delta^2 / (MG \cdot 4w^2/(MG)^2)\big) = \exp(-MG\,\delta^2 / (2 w^2))$. And the normal approximation of
# such a sum is off by at most $0.56 \sum \mathbb E|X_i|^3 / (\sum \mathbb E X_i^2)^{3/2}$ for its centred terms $X_i$
# (Berry–Esseen). As $|X_i|$ is at most the width of its interval, this is at most $0.56\,w / \sqrt{MG\,\bar\sigma^2}$
# with $\bar\sigma^2$ the mean of the two variances. $\square$

# %%
def wrong_rankings(p, q, groups, generations, k, draws):
    """1 for each simulated experiment that ranks two kinds of equal quality wrongly (a tie counts half)."""
    runs = groups * generations // 2
    s, mean = rng.binomial(runs, p, (draws, 2)) / runs, rng.binomial(runs * k, p, (draws, 2)) / (runs * k)
    r = ARMS["tracelift"](s, q, mean, 0.0)  # means of rewards; the shared baseline cancels, as q is equal
    return (r[:, 0] < r[:, 1] - 1e-12) + 0.5 * (abs(r[:, 0] - r[:, 1]) <= 1e-12)


def plan(gap, alpha, k, generations, q=0.8, p_2=0.5):
    """One row of the planning table: success p_2 + gap against p_2."""
    p, width = np.array([p_2 + gap, p_2]), (1 + q) / 2
    means, variances = theory.reward_moments("tracelift", p, np.full(2, q), p_0, k)
    delta = means[0] - means[1]
    normal = theory.groups_needed(delta, alpha, tuple(variances), generations)
    safe = theory.groups_needed_hoeffding(delta, alpha, width, generations)
    return {"difference in success": gap, "error": alpha, "K": k, "G": generations, "groups": normal,
            "executor runs": normal * generations * (1 + k), "groups, Hoeffding": safe}

# %% [markdown]
# The planning table, for $q = 0.8$ and a success of 0.5 against $0.5 + $ difference. More runs a trace ($K$) save
# groups but not executor runs; see exercise 1.

# %%
cases = itertools.product((0.05, 0.1, 0.2, 0.3), (0.05, 0.01), (1, 3, 5), (4, 8))
planning = pd.DataFrame(plan(*case) for case in cases)
report.save_table(run, planning, "theory_planning", [], "normal approximation and Hoeffding's bound, q = 0.8")
planning.pivot(index=["difference in success", "error"], columns=["K", "G"], values="groups")

# %% [markdown]
# Do the plans keep their promise? Simulated error rates. The tolerance is the sampling error, for the normal plan
# plus the Berry–Esseen bound.

# %%
rows = []
for gap, alpha in itertools.product((0.05, 0.1, 0.2), (0.05, 0.01)):
    row, p = plan(gap, alpha, K, 4), np.array([0.5 + gap, 0.5])
    _, variances = theory.reward_moments("tracelift", p, np.full(2, 0.8), p_0, K)
    for method in ("groups", "groups, Hoeffding"):
        wrong = wrong_rankings(p, 0.8, row[method], 4, K, n)
        approximation = 0.56 * 0.9 / np.sqrt(4 * row[method] * variances.mean()) if method == "groups" else 0.0
        limit = alpha + approximation + theory.z_limit(6) * np.sqrt(alpha * (1 - alpha) / n)
        assert wrong.mean() <= limit
        low, high = wilson(int(wrong.sum()), n)
        rows.append({"difference": gap, "error planned": alpha, "plan": method, "number of groups": row[method],
                     "error simulated": wrong.mean(), "low": low, "high": high, "limit": limit})
kept = report.save_table(run, pd.DataFrame(rows), "theory_planning_check", [], f"{n} simulated experiments")
kept.round(4)

# %% [markdown]
# ## (i) Convergence in a tabular softmax policy
#
# The smallest planner: one problem, $m$ possible traces, $\pi_i = e^{\theta_i} / \sum_k e^{\theta_k}$. Let $R_i$ be
# the expected reward of trace $i$ under an arm and $\bar R = \sum_i \pi_i R_i$.
#
# **Statement.**
#
# 1. *Expected direction.* The update $g = \frac1G \sum_k A_k \nabla_\theta \log \pi(z_k)$ of one group has, for
#    centred advantages, $\mathbb E[g_i] = (1 - \tfrac1G)\,\pi_i (R_i - \bar R)$: a multiple of the gradient of
#    $\bar R$. For GRPO's advantages $\mathbb E[g_i] = \pi_i\,\mathbb E[A_1 \mid z_1 = i]$.
# 2. *Fixed points* of the flow $\dot\theta_i = \pi_i(R_i - \bar R)$ are the policies whose traces in use all have the
#    same $R_i$.
# 3. *Convergence.* From every policy that gives each trace some probability, the flow ends with all probability on
#    traces of maximal $R_i$.
# 4. *Ties.* For $R_1 = R_2$, $\frac{d}{dt} \log \frac{\pi_1}{\pi_2} = (\pi_1 - \pi_2)(R_1 - \bar R)$: while others
#    are worse, the more frequent of two equally paid traces gains on the other.
# 5. *Rate.* Let $B$ be the traces of maximal reward and $c$ the least total probability that they have along the way.
#    Then $\max_i R_i - \bar R \le |B| / (c^2\,t)$.
#
# That softmax policy gradients converge, and at the rate $1/t$, is known in far greater generality
# ([Agarwal et al.](https://arxiv.org/abs/1908.00261), [Mei et al.](https://arxiv.org/abs/2005.06392)); for one
# problem and a flow an elementary proof will do.
#
# **Assumptions.** (A1), (A2); $K$ and the baseline fixed; 2 to 4 are about the flow (small learning rate, many
# groups), without clipping or KL term.
#
# **Proof of 1.** $\nabla \log \pi(z_k) = e_{z_k} - \pi$. In $\sum_k (r_k - \bar r) \nabla \log \pi(z_k)$ the group
# mean $\bar r$ holds $r_k / G$, and the other rewards are independent of $z_k$ (given a shared baseline), so with
# $\mathbb E \nabla \log \pi = 0$ only $(1 - \tfrac1G)\,\mathbb E[r_k \nabla \log \pi(z_k)]$ is left, the policy
# gradient. It is affine in the baseline, so the average over baselines puts $p_0$ in its place. For GRPO's $A$:
# $\sum_k A_k = 0$ removes $\pi$, and
# $\frac1G \sum_k \mathbb E[A_k \mathbf 1(z_k = i)] = \pi_i\,\mathbb E[A_1 \mid z_1 = i]$ by symmetry. $\square$
#
# **Proof of 2 and 4.** 2: each $\pi_i (R_i - \bar R)$ must vanish. 4:
# $\frac{d}{dt}(\theta_1 - \theta_2) = \pi_1(R_1 - \bar R) - \pi_2(R_2 - \bar R)$. $\square$

# %% [markdown]
# **Proof of 3.** *Where it can end.*
# $\frac{d}{dt} \bar R = \lVert \nabla_\theta \bar R \rVert^2 = \sum_i \pi_i^2 (R_i - \bar R)^2 \ge 0$. So $\bar R$
# rises to a limit $R_\infty$, and the integral of the right side is finite. Its derivative is bounded, hence it tends
# to 0 (Barbalat): $\pi_i (R_i - \bar R) \to 0$, and every trace with $R_i \neq R_\infty$ ends with $\pi_i \to 0$.
#
# *It ends at the top.* Divide the traces into $U$, $I$, $L$ with $R_i$ above, equal to, below $R_\infty$, and suppose
# $U$ is not empty. As $\bar R \le R_\infty$, no logit in $U$ or $I$ ever falls. From some time on $\bar R$ exceeds
# all rewards in $L$ by at least some $\eta > 0$; from then on no logit in $L$ rises, and each either converges (call
# these $L_f$) or falls without bound ($L_\infty$).
#
# - For $k \in L_f$: $-\dot\theta_k = \pi_k(\bar R - R_k) \ge \eta\,\pi_k$, so $\int \pi_k\,dt$ is finite.
# - For $k \in L_\infty$ and $u \in U$: $\pi_k / \pi_u = e^{\theta_k - \theta_u} \to 0$, as $\theta_u$ does not fall.
# - The logits in $I$ grow together at the rate
#   $\sum_I \pi_i (R_\infty - \bar R) \le R_\infty - \bar R = \sum_L \pi_k (R_\infty - R_k) - \sum_U \pi_u (R_u - R_\infty)$.
#   By the second point the part of $L_\infty$ is in the end smaller than that of $U$, so the rate is at most
#   $\sum_{L_f} \pi_k (R_\infty - R_k)$, whose integral is finite by the first point.
#
# So the logits in $I$ stay bounded, those in $L$ are bounded above, and those in $U$ do not fall: the probability of
# $U$ stays away from 0. That contradicts $\pi_u \to 0$. Hence $U$ is empty and $R_\infty = \max_i R_i$. $\square$
#
# **Proof of 5.** For the gap $D = \max_i R_i - \bar R$:
# $-\dot D = \sum_i \pi_i^2 (R_i - \bar R)^2 \ge D^2 \sum_B \pi_i^2 \ge D^2 c^2 / |B|$, by Cauchy–Schwarz. So $1/D$
# grows at least at the rate $c^2 / |B|$. $\square$
#
# **What each arm converges to**, by 3 and the identity for $\mathbb E[r]$:
#
# | arm | maximises | what may be lost |
# | --- | --- | --- |
# | `exec_only` | $p_z$ | soundness: sound and lucky traces of equal $p_z$ are tied (4) |
# | `tracelift` | $(1 + q)\,\tau$ | at most half of the largest effect |
# | `no_uplift` | $p_z + q$ | anything: $p_z = 0$ with $q = 1$ ties with $p_z = 1$, $q = 0$ |
# | `rm_uplift_only` | $q\,\tau$ | any share of the effect, if the useful traces have small $q$ |
# | `llm_judge`, saturated | $p_z$ | as `exec_only` |
#
# *The half:* let $i$ maximise $(1 + q)\tau$ and $m$ have the largest effect $\tau_m \ge 0$. Then
# $\tau_i \ge \tau_m (1 + q_m)/(1 + q_i) \ge \tau_m / 2$. $\square$
#
# Check of 1, with four completions a group and three traces: *sound*, *lucky* (a hole, but the right value), *fine
# words* (reads best, helps less).

# %%
names, p, q = ["sound", "lucky", "fine words"], np.array([0.9, 0.9, 0.6]), np.array([0.6, 0.3, 1.0])
policy, G, tables = np.array([0.2, 0.5, 0.3]), 4, []
z = rng.choice(3, size=(n, G), p=policy)
s, u = theory.simulate(rng, n, p[z], p_0, K, K_0, shared=True)
for arm in ("exec_only", "tracelift", "no_uplift", "rm_uplift_only"):
    R = ARMS[arm](p, q, p - p_0, q)
    updates = theory.sampled_updates(z, ARMS[arm](s, q[z], u, q[z]), 3, normalise=False)
    expected = (1 - 1 / G) * theory.expected_update(policy, R)
    tables.append(agree(names, updates, expected).assign(arm=arm, advantage="centred"))
# Known baseline (the verdicts alone, less p_0), so that the exact enumeration stays small.
s, mean = theory.simulate(rng, n, p[z], 0.0, K, 1, shared=True)
for arm in ("exec_only", "tracelift"):
    updates = theory.sampled_updates(z, ARMS[arm](s, q[z], mean - p_0, q[z]), 3, normalise=True)
    exact = theory.expected_advantages(policy, [theory.reward_distribution(arm, a, b, p_0, K) for a, b in zip(p, q)], G)
    tables.append(agree(names, updates, policy * exact).assign(arm=arm, advantage="GRPO"))
directions = report.save_table(run, pd.concat(tables, ignore_index=True), "theory_update_direction", [], simulated)
directions.pivot(index=["arm", "advantage"], columns="quantity", values="theory")[names].round(4)

# %% [markdown]
# GRPO's division by the spread is more than a learning rate: its direction is not the gradient's. With K = 3 even a
# sign differs: under `tracelift` the lucky trace earns more than the policy's mean, so the centred update raises it,
# while GRPO's lowers it. In groups where all runs succeed the spread is small, and dividing by it magnifies what is
# left: the difference in quality.
#
# Check of 3 and 5 by integrating the flow from many policies: the expected reward never falls, and the gap to the
# best stays under the bound.

# %%
starts = np.array([[i, j, 10 - i - j] for i in range(1, 9) for j in range(1, 10 - i)]) / 10
arms = ["exec_only", "tracelift", "no_uplift", "rm_uplift_only"]
paths, ends = {}, []
for arm in arms:
    R = ARMS[arm](p, q, p - p_0, q)
    path = theory.flow(starts, R, time=4000.0, steps=1000)
    J = path @ R
    assert (np.diff(J, axis=0) >= -ROUNDING).all()
    best = R >= R.max() - ROUNDING
    least = path[:, :, best].sum(2).min(0)
    assert (R.max() - J[-1] <= best.sum() / (least**2 * 4000.0) + ROUNDING).all()
    paths[arm] = path
    ends.append({"arm": arm, **{f"R, {name}": x for name, x in zip(names, R)},
                 "least probability on the best": path[-1][:, best].sum(1).min()})
report.save_table(run, pd.DataFrame(ends), "theory_flow_ends", [], f"{len(starts)} starting policies").round(3)

# %% [markdown]
# The phase picture. Each point of a triangle is a policy; a corner is a policy that writes one kind of trace only.
# Lines: the flow. Dots: where it ends. Under `exec_only` the whole left edge is at rest: it removes fine words but
# never decides between sound and lucky. `no_uplift` ends with fine words.

# %%
corners = np.array([[0.0, 0.0], [0.5, np.sqrt(0.75)], [1.0, 0.0]])  # sound, lucky, fine words
figure, axes = plt.subplots(1, 4, figsize=(2 * report.COLUMN_WIDTH, 2.0))
for axis, arm in zip(axes, arms):
    axis.plot(*corners[[0, 1, 2, 0]].T, color="0.6", lw=0.8)
    xy = paths[arm] @ corners
    for i, line in enumerate(xy.swapaxes(0, 1)):
        axis.plot(*line.T, color="C0", lw=0.6, alpha=0.7)
        if i % 5 == 2:
            arrow = {"arrowstyle": "-|>", "color": "C0", "lw": 0.5, "mutation_scale": 6}
            axis.annotate("", line[5], line[3], arrowprops=arrow)
    axis.plot(*xy[-1].T, "C3.", ms=4, clip_on=False)
    for name, corner, side in zip(names, corners, ("top", "bottom", "top")):
        axis.annotate(name, corner, ha="center", va=side, fontsize=6, xytext=(0, 3 if side == "bottom" else -3),
                      textcoords="offset points")
    axis.set(title=arm, aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.12, 0.98))
    axis.axis("off")
data = pd.concat([pd.DataFrame(np.hstack([starts, paths[arm][-1]]), columns=[*(f"start {x}" for x in names), *names])
                  .assign(arm=arm) for arm in arms])
report.save_figure(run, figure, "theory_phase_picture", data, [], f"{len(starts)} starting policies, flow to t = 4000")

# %% [markdown]
# The flow has no noise; GRPO does. So the same policy is now *trained*: 40 runs an arm from the uniform policy, 16
# groups of four a step, the advantages of TRL. Intervals over runs.

# %%
def train(arm, runs=40, steps=150, groups=16, rate=0.5):
    """Final policies (runs, 3) of GRPO with sampled completions and verdicts."""
    logits = np.zeros((runs, 3))
    for _ in range(steps):
        policy = np.repeat(theory.softmax(logits), groups, axis=0)
        z = (rng.random((len(policy), G, 1)) > policy.cumsum(1)[:, None, :-1]).sum(2)
        s, u = theory.simulate(rng, len(z), p[z], p_0, K, K_0, shared=True)
        update = theory.sampled_updates(z, ARMS[arm](s, q[z], u, q[z]), 3, normalise=True)
        logits += rate * update.reshape(runs, groups, 3).mean(1)
    return theory.softmax(logits)


rows = []
for arm in arms:
    final = theory.against(train(arm), 0.0)
    rows += [{"arm": arm, "trace": name, "probability": m, "low": low, "high": high}
             for name, m, low, high in zip(names, final["simulated"], final["low"], final["high"])]
trained = report.save_table(run, pd.DataFrame(rows), "theory_sampled_grpo", [], "40 runs, 150 steps, 16 groups of 4")
trained.pivot(index="arm", columns="trace", values="probability").loc[arms, names].round(3)

# %% [markdown]
# ## (j) Noise: the reward model's and the executor's
#
# **Statement.** Let the score be $q + \eta$ with an error of mean 0 and variance $\sigma_q^2$ that is independent of
# the executor, and let the baseline be known.
#
# 1. The expected reward does not change. Its variance is
#    $$\operatorname{Var}[r] = \tfrac14 v + \tfrac14 q^2 \frac vK + \tfrac14 \sigma_q^2 \Big(\tau^2 + \frac vK\Big), \qquad v = p_z(1 - p_z).$$
# Executor noise is weighed with quality, and the reward model's noise with $\mathbb E[\hat u^2]$: it is mute where a
# trace has no measured effect. Under `no_uplift` its weight is 1 everywhere.
# 2. *Biased scores.* An error of at most $\varepsilon$ in $q$, of any kind, cannot reverse two traces whose expected
#    rewards differ by more than $\tfrac12 \varepsilon (|\tau_i| + |\tau_k|)$.
# 3. *A wrong verifier.* Let it pass a wrong answer with probability $\phi$ and fail a right one with probability
#    $\psi$, whatever the trace, $\phi + \psi < 1$. Then `exec_only`, `tracelift` and `rm_uplift_only` keep their
#    expected direction, scaled by $1 - \phi - \psi$; `no_uplift` does not.
#
# **Proof.** 1: $s$, $\hat u$ and $\eta$ are independent,
# $\operatorname{Var}[(q + \eta)\hat u] = (q^2 + \sigma_q^2)(\tau^2 + v/K) - q^2\tau^2$. 2: the reward moves by at
# most $\tfrac12 \varepsilon |\tau|$. 3: $p \mapsto \phi + (1 - \phi - \psi)\,p$ for every $p$, hence
# $\tau \mapsto (1 - \phi - \psi)\,\tau$. So $\tfrac12 p + \tfrac12 q\tau$ becomes $(1 - \phi - \psi)$ times itself
# plus a constant, which the group removes. In `no_uplift` only the first term shrinks. $\square$
#
# **Signal-to-noise ratio.** For one group's centred update $g$ let
# $\text{SNR} = \lVert \mathbb E g \rVert / \sqrt{\operatorname{tr} \operatorname{Cov} g}$; with $M$ groups it grows
# as $\sqrt M$. Up to the factor $1 - 1/G$, $g$ is a U-statistic: the mean over pairs of completions of
# $h = \tfrac12 (r_1 - r_2)(e_{z_1} - e_{z_2})$. Hoeffding's formula
# $\operatorname{Cov} = \frac{4(G - 2)}{G(G - 1)} \zeta_1 + \frac2{G(G - 1)} \zeta_2$, with
# $\zeta_2 = \operatorname{Cov}[h]$ and $\zeta_1$ that of $\mathbb E[h \mid z_1, r_1]$, then gives it exactly from
# $\pi$ and the reward's means and variances (`theory.gradient_snr`).

# %%
variance = p * (1 - p)
for q_sd in (0.0, 0.2):
    formula = (variance * (1 + q**2 / K) + q_sd**2 * ((p - p_0) ** 2 + variance / K)) / 4
    assert np.allclose(theory.reward_moments("tracelift", p, q, p_0, K, q_sd)[1], formula, atol=ROUNDING)
for arm, (fp, fn) in itertools.product(arms, ((0.1, 0.0), (0.0, 0.2), (0.1, 0.2))):
    seen, baseline = (fp + (1 - fp - fn) * x for x in (p, p_0))
    true, wrong = (theory.expected_update(policy, ARMS[arm](a, q, a - b, q)) for a, b in ((p, p_0), (seen, baseline)))
    assert np.allclose(wrong, (1 - fp - fn) * true, atol=ROUNDING) == (arm != "no_uplift")

# %% [markdown]
# The ratio against the reward model's error (left) and the number of runs (right): lines are exact, points simulated
# with 95 % intervals. Each arm's ratio says how well it finds *its own* direction.

# %%
def simulated_snr(arm, k, q_sd):
    """(check row, SNR with its interval) of n groups; the baseline is known."""
    z = rng.choice(3, size=(n, G), p=policy)
    s, mean = theory.simulate(rng, n, p[z], 0.0, k, 1, shared=True)
    score = q[z] + q_sd * rng.choice([-1.0, 1.0], size=z.shape)
    updates = theory.sampled_updates(z, ARMS[arm](s, score, mean - p_0, score), 3, normalise=False)
    means, variances = theory.reward_moments(arm, p, q, p_0, k, q_sd)
    expected = (1 - 1 / G) * theory.expected_update(policy, means)
    exact = theory.gradient_snr(policy, means, variances, G)
    size = np.linalg.norm(expected)
    row = agree(["mean square error of g"], ((updates - expected) ** 2).sum(1, keepdims=True), (size / exact) ** 2)
    return {"arm": arm, "K": k, "RM error": q_sd, "exact": exact, "simulated": size / np.sqrt(row["simulated"][0]),
            "low": size / np.sqrt(row["high"][0]), "high": size / np.sqrt(row["low"][0])}


policy = np.full(3, 1 / 3)
cases = [(arm, K, e) for arm in arms for e in (0.0, 0.1, 0.2, 0.3)]
cases += [(arm, k, 0.1) for arm in arms for k in (1, 2, 4, 8)]
snr = report.save_table(run, pd.DataFrame(simulated_snr(*case) for case in cases), "theory_snr", [], simulated)

# %%
figure, axes = plt.subplots(1, 2, figsize=(2 * report.COLUMN_WIDTH, 2.6), sharey=True)
panels = (("RM error", snr.iloc[:16], f"K = {K}"), ("K", snr.iloc[16:], "RM error 0.1"))
for axis, (x, rows, title) in zip(axes, panels):
    for color, (arm, points) in enumerate(rows.groupby("arm", sort=False)):
        axis.plot(points[x], points["exact"], color=f"C{color}", label=arm)
        bars = [points["simulated"] - points["low"], points["high"] - points["simulated"]]
        axis.errorbar(points[x], points["simulated"], bars, fmt=".", color=f"C{color}", ms=4, lw=1)
    axis.set(xlabel=x, title=title)
axes[0].set(xlabel="standard deviation of the RM's error", ylabel="SNR of one group's update", ylim=(0, None))
axes[1].legend(fontsize=6)
report.save_figure(run, figure, "theory_snr_figure", snr, [], simulated)

# %% [markdown]
# ## A prediction against trained planners
#
# Statement (i) is about a table with three rows. Does it say anything about a network? Before any training, notebook 05
# measured what each habit of the warm start earns, and simulated the same tabular GRPO on these habits: so many groups, so many
# steps, the advantages of TRL (`planner/prediction.py`). It wrote down the share of each habit at every step. Now the planners
# are trained, and each of their completions shows a habit (`groups/habits.py`).
#
# A prediction is one only if it is older than what it predicts; the manifests have the dates.

# %%
policies = run.policies()
absent = [] if run.preset.prediction else ["the preset has no section `prediction`"]
absent = absent or [f"stage {name!r} is missing, which notebook 05 makes" for name, made in (
    ("prediction", run.has("prediction")), ("planner_training", all(run.has("planner_training", **p) for p in policies)),
) if not made]
ready = not absent
if ready:
    trained_files = {(p["arm"], p["seed"]): run.need("planner_training", **p) for p in policies}
    forecast_file = run.need("prediction")
    began = min(pd.Timestamp(f.manifest["finished"]) - pd.Timedelta(seconds=f.manifest["seconds"]) for f in trained_files.values())
    told = pd.Timestamp(forecast_file.manifest["finished"])
    display(Markdown(f"Predicted: {told:%Y-%m-%d %H:%M:%S}. First training began: {began:%Y-%m-%d %H:%M:%S}. " + (
        "The prediction is older." if told <= began else "**The prediction is younger than the training: what follows is "
        "an explanation after the fact, not a prediction.**")))
else:
    display(Markdown(f"**Left out here**: {'; '.join(absent)}. Preset `tiny` has both."))

# %%
def real_shares(arm, seed):
    """Rows (step, habit, share): what the completions of each step of a training show, before its update."""
    rollouts = pd.read_parquet(trained_files[arm, seed].path / "rollouts.parquet")
    once = rollouts[["problem_id", "trace"]].drop_duplicates()
    once["habit"] = [habit_of(by_id[i], z if isinstance(z, str) else None) for i, z in zip(once["problem_id"], once["trace"])]
    habits = rollouts.merge(once, on=["problem_id", "trace"])
    shares = pd.crosstab(habits["step"], habits["habit"], normalize="index").stack().rename("share")
    return shares.reset_index().assign(arm=arm, seed=seed)


if ready:
    by_id = {p.problem_id: p for p in run.problems(run.preset.planner_training.split)}
    forecast = pd.read_parquet(forecast_file.path / "prediction.parquet")
    trained_arms = [arm for arm in run.preset.planner_training.arms if arm in set(forecast["arm"])]
    forecast = forecast[forecast["arm"].isin(trained_arms)]
    real = pd.concat([real_shares(*policy) for policy in trained_files if policy[0] in trained_arms])
    real = real.set_index(["arm", "seed", "step", "habit"])["share"].unstack(fill_value=0.0).stack().rename("share").reset_index()
    largest = pd.concat([forecast, real]).groupby("habit")["share"].max().nlargest(4)
    main_habits = list(largest[largest > 0.05].index)
    trained_seeds = run.preset.planner_training.seeds
    groups_said = f"{run.preset.prediction.trainings} simulated trainings an arm, {len(trained_seeds)} real ones"

# %% [markdown]
# Broken lines are predicted, with the middle 95 % of simulated trainings; each thin line is a trained planner (five steps
# averaged). The band has the luck of sampling in it, not the error of the model.

# %%
if ready:
    figure, axes = plt.subplots(1, len(trained_arms), figsize=(2 * report.COLUMN_WIDTH, 2.6), sharey=True, squeeze=False)
    for axis, arm in zip(axes[0], trained_arms):
        for color, habit in enumerate(main_habits):
            line = forecast[(forecast["arm"] == arm) & (forecast["habit"] == habit)]
            axis.fill_between(line["step"], line["low"], line["high"], color=f"C{color}", alpha=0.15, lw=0)
            axis.plot(line["step"], line["share"], "--", color=f"C{color}", label=habit)
            seen = real[(real["arm"] == arm) & (real["habit"] == habit)]
            for _, one in seen.groupby("seed"):
                smooth = one.set_index("step")["share"].rolling(5, min_periods=1, center=True).mean()
                axis.plot(smooth, color=f"C{color}", lw=0.6)
        axis.set(title=report.LABELS.get(arm, arm), xlabel="step", ylim=(0, 1))
    axes[0, 0].set_ylabel("share of completions")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=6)
    both = pd.concat([forecast.assign(what="predicted"), real.assign(what="trained")]).rename(columns={"seed": "training"})
    report.save_figure(run, figure, "theory_prediction", both, [forecast_file, *trained_files.values()], groups_said, trained_seeds)

# %% [markdown]
# The same in the triangle of (i): now the corners are the full trace, the lucky order, and everything else. A trained planner
# moves through it as the table said, or it does not.

# %%
def in_triangle(table):
    """Points (steps, 2) of a table of shares with columns step, habit, share."""
    shares = table.pivot_table(index="step", columns="habit", values="share", fill_value=0.0)
    full, lucky = (shares.get(habit, 0.0 * shares.iloc[:, 0]) for habit in ("full", "lucky_order"))
    return np.stack([full, lucky, 1 - full - lucky], 1) @ corners


if ready:
    figure, axes = plt.subplots(1, len(trained_arms), figsize=(2 * report.COLUMN_WIDTH, 2.6), squeeze=False)
    for axis, arm in zip(axes[0], trained_arms):
        axis.plot(*corners[[0, 1, 2, 0]].T, color="0.6", lw=0.8)
        for _, one in real[real["arm"] == arm].groupby("seed"):
            path = pd.DataFrame(in_triangle(one)).rolling(5, min_periods=1, center=True).mean().to_numpy()
            axis.plot(*path.T, color="C0", lw=0.6)
            axis.plot(*path[-1], "C0.", ms=5)
        path = in_triangle(forecast[forecast["arm"] == arm])
        axis.plot(*path.T, "C3--", lw=1.2)
        axis.plot(*path[-1], "C3*", ms=7)
        for name, corner, side in zip(("full", "lucky order", "all else"), corners, ("top", "bottom", "top")):
            axis.annotate(name, corner, ha="center", va=side, fontsize=6)
        axis.set(title=report.LABELS.get(arm, arm), aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.12, 0.98))
        axis.axis("off")
    report.save_figure(run, figure, "theory_prediction_triangle", both, [forecast_file, *trained_files.values()], groups_said,
                       trained_seeds)

# %% [markdown]
# **The score.** Shares over the last five steps, predicted and real; the error beside that of a rival who says that
# nothing will change. A rank correlation asks less: whether the changes come in the right order.

# %%
def last_steps(table, by):
    """Mean share over the last five steps that both have."""
    end = real["step"].max()
    return table[table["step"].between(end - 4, end)].groupby(by)["share"].mean()


if ready:
    by = ["arm", "habit"]
    score = pd.DataFrame({"start": real[real["step"] == 0].groupby(by)["share"].mean(),
                          "predicted": last_steps(forecast, by), "trained": last_steps(real, by)}).fillna(0.0)
    spread = last_steps(real, [*by, "seed"]).groupby(by).agg(["min", "max"])
    score = score.join(spread.rename(columns={"min": "lowest seed", "max": "highest seed"})).reset_index()
    error, rival = ((score[name] - score["trained"]).abs().mean() for name in ("predicted", "start"))
    change = score[["predicted", "trained"]].sub(score["start"], axis=0)
    order = stats.spearmanr(change["predicted"], change["trained"]).statistic if len(score) > 2 else np.nan
    report.save_table(run, score, "theory_prediction_score", [forecast_file, *trained_files.values()], groups_said, trained_seeds)
    display(score.round(3))
    display(Markdown(f"Mean error of a share {error:.3f}; of the rival who says that nothing changes {rival:.3f}. Rank correlation of "
                     f"the changes over {len(score)} pairs of arm and habit: {order:.2f}."))

# %%
path = report.figures_folder(run) / "ablations.csv"  # of notebook 08
known = pd.read_csv(path).query("moved").dropna(subset=["predicted", "difference"]) if path.exists() else pd.DataFrame()
for (measure, split), part in known.groupby(["measure", "split"]) if len(known) else []:
    if len(part) > 2:
        order = stats.spearmanr(part["predicted"], part["difference"]).statistic
        print(f"over {len(part)} cells of notebook 08, {measure} on {split}: rank correlation of predicted and measured "
              f"difference to exec_only {order:.2f}, mean error {(part['predicted'] - part['difference']).abs().mean():.3f}")
if not len(known):
    print("no cells of notebook 08 to compare")

# %% [markdown]
# **What the table leaves out**, and where to look when it is wrong:
#
# - *Shared weights.* Habits are not independent rows: what teaches the planner one trace moves its other traces, and those of other
#   problems. A habit may so rise or fall with another one that pays.
# - *Problems.* Each simulated completion is paid what its habit earned on some measured problem; that a habit pays on one kind of problem
#   and not on another, which a network can learn to tell apart, is averaged away.
# - *Habits that do not exist yet.* The table has those of the warm start, and can only weigh them anew.
# - *The optimizer.* Adam, clipping and warm-up are one constant, `prediction.step_size`. It was fitted on another training of the
#   same world, with a seed that is in no result; so the speed is fitted, and how far a path gets; direction and order are not.
# - *Entropy.* A habit that takes many different spellings is harder to repeat than one that takes one.

# %%
at = snr.iloc[:16].set_index(["arm", "RM error"])["exact"]
loss = {arm: 1 - (at[arm, 0.3] / at[arm, 0.0]) ** 2 for arm in arms}
dead = areas.set_index("reward of a failed run").loc[0.2, "helpful, bonus not positive"] / helps.mean()
display(Markdown(f"""## What we saw

- The reward ranks the traces of a problem by $(1 + q)\\tau$: a treatment effect whose weight quality can at most
  double.
- With K = {K} the uplift of one trace is noisy. A shared baseline takes its own noise out of all comparisons between
  traces of equal quality.
- A judge with equal scores ranks as `exec_only` does, but as if the executor had been run
  {theory.effective_runs(1.0, K):.1f} times a trace. With 95.5 % of its scores at 1, {paper['theory']:.1%} of random
  pairs change their order.
- The released code's clip and ties break the link to the effect: with a failed run worth 0.2, the expected bonus is not
  positive in {dead:.0%} of the combinations of $p_0$ and $p_z$ in which the trace helps.
- In the tabular model each arm finds the best traces *by its own measure*; `exec_only` cannot tell a sound from a lucky
  trace of equal success, and `no_uplift` can end with fine words.
- An RM error of 0.3 costs `tracelift` {loss['tracelift']:.0%} of what a group tells and `no_uplift` {loss['no_uplift']:.0%}:
  the product with the uplift mutes the reward model where nothing was measured.

**Try it yourself.** `OVERRIDES = {{"execution.k": 1}}` or `{{"execution.baseline_samples": 32}}`: which tables change,
and which cannot?"""))

# %% [markdown]
# ## Exercises
#
# 1. *How many runs a trace?* By (c) and (h), telling two kinds of trace apart with equal quality $c$ takes a number
#    of completions in proportion to $1 / n_{\text{eff}}$, $n_{\text{eff}} = (1 + c)^2 / (1 + c^2/K)$. A completion
#    costs $1 + K + \kappa$, where $\kappa$ is the cost of writing the trace, in executor runs. Which $K$ is best? For
#    which $\kappa$ is it the paper's 3?
# 2. *The repair.* Someone proposes $\tfrac12 s + \tfrac12 q \max(\hat u, 0)$, to stop punishing quality. What is the
#    expected bonus at $\tau = 0$? Compute it for $K = K_0 = 1$ by hand and for more runs with
#    `theory.uplift_distribution`.
# 3. *Zero ties.* Give `code_coefficient` a tie table of zeros. Prove that (b) then holds for $c$ in the form
#    "$\mathbb E[c]$ has the sign of $\tau$". Does it hold for the clipped reward, too?
#
# The cells with solutions carry the tag `solution` and are folded. `make course` writes copies of all notebooks without
# such cells to `build/course/`, to hand out.

# %% [markdown] tags=["solution"]
# <details><summary><b>Solutions</b></summary>
#
# **1.** Value for money is $(1+c)^2 K / [(K + c^2)(1 + K + \kappa)]$. Its derivative by $K$ has the sign of
# $c^2(1 + \kappa) - K^2$, so $K^* = c\sqrt{1 + \kappa}$. If traces cost nothing ($\kappa = 0$), more completions beat
# more runs. $K^* = 3$ at $c = 1$ needs $\kappa = 8$: a trace that costs as much as eight answers of the executor.
# (The baseline, once a problem, is left out.)
#
# **2.** $\max(\cdot, 0)$ is convex, so $\mathbb E[\max(\hat u, 0)] \ge \max(\tau, 0)$ (Jensen), with a strict gap
# whenever both signs of $\hat u$ occur. For $K = K_0 = 1$ and $p_z = p_0 = p$ it is $\Pr[1, 0] = p(1 - p)$. The bonus
# then pays for quality without effect, most of all on problems of medium difficulty, and the payment falls only as
# $1/\sqrt K$.
#
# **3.** $\mathbb E[c] = \Pr[a > b] - \Pr[a < b]$. At $\tau = 0$ the two counts have the same law and the terms
# cancel. For $p_z > p_0$ couple $a$ with $a' \le a$, a count with success $p_0$:
# $\Pr[a > b] \ge \Pr[a' > b] = \Pr[b > a'] \ge \Pr[b > a]$, and one of the two is strict; the other way round for
# $p_z < p_0$. For the clipped reward it fails. The clip cuts the gains of passing runs, not their losses: with
# $0.2\,q \le s_f \le 1 - 0.2\,q$ the expected bonus at $\tau = 0$ is $-0.2\,q\,p\,\Pr[a > b] < 0$. With $s_f = 0$ the
# losses of failing runs are cut too, and it is $0.2\,q\,(1 - 2p)\,\Pr[a > b]$: a trace without effect is paid on hard
# problems and fined on easy ones.
#
# </details>

# %% tags=["solution"] jupyter={"source_hidden": true}
for c, kappa in itertools.product((0.5, 1.0), (0, 3, 8, 24)):
    runs = np.arange(1, 41)
    value = [theory.effective_runs(c, k) / (1 + k + kappa) for k in runs]
    best = runs[np.argmax(value)]
    assert abs(best - max(1, c * np.sqrt(1 + kappa))) <= 1
    print(f"exercise 1: c = {c}, writing a trace costs {kappa} runs: K = {best}")

# %% tags=["solution"] jupyter={"source_hidden": true}
for k in (1, 3, 10, 30):
    values, weights = theory.uplift_distribution(0.5, 0.5, k, k)
    print(f"exercise 2: K = {k}, p = 0.5: expected max(û, 0) = {np.maximum(values, 0) @ weights:.3f} at zero effect")
zeros = [0.0] * (K + 1)
for chance, s_f in itertools.product((0.3, 0.7), (0.0, 0.2)):
    counts, total, kept = theory.binomial(K, chance), 0.0, 0.0
    for a, b in itertools.product(range(K + 1), repeat=2):
        c, weight = code_coefficient(a, b, K, zeros), counts[a] * counts[b]
        total += weight * c
        kept += weight * chance * (released_code_reward(1.0, 1.0, c) - 1.0)
        kept += weight * (1 - chance) * (released_code_reward(s_f, 1.0, c) - s_f)
    print(f"exercise 3: p_z = p_0 = {chance}, failed run {s_f}: E[c] = {abs(total):.3f}, after the clip {kept:+.3f}")

# %% [markdown]
# **Next:** [10_case_studies](10_case_studies.ipynb): single traces, chosen by a rule.

# %%
print(f"{time.monotonic() - start:.0f} s for this notebook")
