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
# # 07 · Evaluation: did it work, and what did it change?
#
# Two questions, in this order. Did training work at all, that is, is each trained planner clearly better than the start?
# And does TraceLift differ from exec-only? The second is the paper's claim. We report whatever comes out.
#
# **After this notebook you can** evaluate a planner in two stages, compute an interval that pairs problems and
# seeds, and tell "no difference found" from "no difference".
#
# **Time:** with `tiny`, about three minutes the first time.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from tracelift_lib.evaluation.planner_evaluation import paired_bootstrap, per_problem
from tracelift_lib.runs import report
from tracelift_lib.runs.pipeline import WARM_START, Run

report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
settings, resamples = run.preset.evaluation, run.preset.evaluation.bootstrap
arms, seeds = run.preset.planner_training.arms, run.preset.planner_training.seeds

# %% [markdown]
# ## Two stages, as at training time
#
# For every held-out problem the planner draws several traces, at the temperature of training, and the executor answers
# each once. Greedy decoding would hide what we want to see: a planner that reasons badly a quarter of the time may look
# perfect when only its favourite trace counts. For each trace we record
#
# | measure | meaning |
# | --- | --- |
# | success | the executor's answer is right (end to end) |
# | faithful | the trace makes exactly the true calculations (code: and states the true plan); known in a generated world |
# | quality | the RM's score $q$; biased in favour of an arm that was trained on it |
# | tokens | length of the trace |
#
# In the tiny world the split `test` has problems of as many steps as in training, `long` has longer ones than the planner has ever seen.

# %%
policies = [WARM_START, *run.policies()]
evaluated = {(p["arm"], p["seed"]): files for p, files in zip(policies, run.make_all("evaluation", policies))}
rows = pd.concat([pd.read_parquet(f.path / "rows.parquet") for f in evaluated.values()])
truth = "faithful" in rows
measures = ["success", *(["faithful"] if truth else []), "quality", "tokens"]
if not truth:
    display(Markdown("**The true steps of these problems are not known, so faithfulness is not measured.** What follows has "
                     "the executor's success, the RM's score and the length of the traces."))
rows.groupby(["split", "arm", "seed"])[measures].mean().round(3)

# %% [markdown]
# ## Intervals
#
# Problems differ in difficulty, and so do seeds in luck; both are samples of what might have been. The bootstrap
# resamples both, and it does so *paired*: the same problems and seeds on both sides of a comparison, so that what is
# common to both cancels. With three seeds the part that comes from seeds is rough.

# %%
def matrix(arm, measure, split):
    """Mean of `measure` a problem: one row a seed, problems in a fixed order."""
    part = rows[(rows["arm"] == arm) & (rows["split"] == split)]
    return np.stack([per_problem(part[part["seed"] == seed], measure) for seed in sorted(part["seed"].unique())])


def compare(treated, control, measure, split):
    """One row of a comparison table: the mean difference with its 95 % interval."""
    low_high = paired_bootstrap(matrix(treated, measure, split), matrix(control, measure, split), resamples, 0)
    return {"split": split, "comparison": f"{treated} - {control}", "measure": measure,
            **dict(zip(("difference", "low", "high"), low_high))}

# %%
levels = pd.DataFrame(
    {"split": split, "policy": arm, "measure": measure,
     **dict(zip(("mean", "low", "high"), paired_bootstrap(matrix(arm, measure, split), None, resamples, 0)))}
    for split in settings.splits for arm in ["warm_start", *arms] for measure in measures
)
sources = list(evaluated.values())
sizes = rows.groupby("split")["problem_id"].nunique()
n = " + ".join(f"{sizes[split]} {split}" for split in settings.splits) + f" problems x {settings.traces} traces"
report.save_table(run, levels, "evaluation_levels", sources, n, seeds)
shown = levels.assign(value=[report.with_interval(r.mean, r.low, r.high, 2) for r in levels.itertuples()])
shown.pivot(index=["split", "policy"], columns="measure", values="value")[measures]

# %% [markdown]
# ## Did training work?
#
# The gain of each arm over the common start. Training worked if the interval of the success gain lies above 0.

# %%
gains = pd.DataFrame(compare(arm, "warm_start", m, split) for split in settings.splits for arm in arms for m in measures)
report.save_table(run, gains, "gain_over_warm_start", sources, n, seeds)
gains[gains["measure"].isin(["success", "faithful"])].round(3)

# %% [markdown]
# ## TraceLift against exec-only
#
# The comparison that the paper is about. An interval that includes 0 means that this run cannot tell the arms apart in
# that measure; it does not mean that they are the same.

# %%
contrast = pd.DataFrame(
    compare(arm, "exec_only", m, split) for split in settings.splits for arm in arms if arm != "exec_only" for m in measures
)
if len(contrast):
    contrast["excludes 0"] = (contrast["low"] > 0) | (contrast["high"] < 0)
    report.save_table(run, contrast, "tracelift_against_exec_only", sources, n, seeds)
contrast.round(3)

# %%
ticks = {"success": "executor\nsuccess", "faithful": "faithful\ntrace", "quality": "RM score\nq"}
ticks = {measure: name for measure, name in ticks.items() if measure in measures}
test = levels[(levels["split"] == settings.splits[0]) & levels["measure"].isin(ticks)]
figure, axis = plt.subplots()
for i, policy in enumerate(["warm_start", *arms]):
    part = test[test["policy"] == policy]
    axis.errorbar(np.arange(len(part)) + (i - 1) * 0.15, part["mean"], yerr=[part["mean"] - part["low"], part["high"] - part["mean"]],
                  fmt="o", capsize=2, color=report.PALETTE.get(policy), label=report.LABELS.get(policy, policy))
axis.set_xticks(range(len(ticks)), ticks.values())
axis.set(xlim=(-0.5, len(ticks) - 0.5), ylabel=f"mean on {settings.splits[0]} (95 % interval)", title="Held-out evaluation", ylim=(0, 1.02))
axis.legend(loc="lower right")
report.save_figure(run, figure, "evaluation", test, sources, n, seeds)

# %% [markdown]
# ## Right answer, unfaithful trace
#
# The title of the paper is "Correct is not enough". How many of the *successful* traces are not faithful?

# %%
if truth:
    won = rows[(rows["success"] == 1) & (rows["split"] == settings.splits[0])]
    policies = rows.groupby(["arm", "seed"]).size().index  # a policy without any success stays in the table, without a share
    shares = won.assign(unfaithful=1 - won["faithful"]).groupby(["arm", "seed"])["unfaithful"].mean()
    unfaithful = shares.reindex(policies).reset_index()
    report.save_table(run, unfaithful, "unfaithful_successes", sources, n, seeds)
    figure, axis = plt.subplots()
    order = ["warm_start", *arms]
    sns.swarmplot(unfaithful, x="arm", y="unfaithful", hue="arm", order=order, hue_order=order,
                  palette=[report.PALETTE.get(a, "C0") for a in order], legend=False, ax=axis)
    axis.set_xticks(range(len(order)), [report.LABELS.get(a, a) for a in order])
    axis.set(xlabel="", ylabel="share of successes (a point a seed)", ylim=(0, None),
             title="Successes whose trace is not faithful")
    report.save_figure(run, figure, "unfaithful_successes_by_arm", unfaithful, sources, n, seeds)
else:
    print("not measured: the true steps of these problems are not known")

# %% [markdown]
# ## What we saw
#
# The sentences below are made from the tables, so they hold for whatever run you are looking at.

# %%
def verdict(row):
    size = report.with_interval(row.difference, row.low, row.high)
    if row.low > 0 or row.high < 0:
        return f"{row.measure}: {row.comparison} = {size}, so a difference is there"
    return f"{row.measure}: {row.comparison} = {size}, so this run cannot tell them apart"


if not run.preset.is_result:
    display(Markdown("**This preset only checks that everything runs. Its numbers are not a result.**"))
first = settings.splits[0]
lines = [f"- {verdict(r)}" for table in (gains, contrast) for r in table.itertuples() if r.split == first]
display(Markdown("\n".join(lines)))

# %% [markdown]
# - With the tiny presets these are models with under a million weights in a generated world. What holds there need not hold
#   for 7B models on MATH500; what that scale offers instead is the exact truth about every trace, and three seeds in minutes.
# - Their length that was never trained (`long`) shows what none of this teaches: to go beyond what the planner could do.
#
# **Try it yourself.** Where would you put the burden of proof: how many seeds would you need before a difference of 0.02 in
# success shows? Use the spread between seeds in the first table.
#
# **Next:** [12_tables_and_figures](12_tables_and_figures.ipynb).

# %%
display(Markdown("\n".join(f"- {a.cost()}" for a in sources[:1])))
