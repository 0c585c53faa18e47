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
# # 08 · Ablations: which part does the work, and where can it?
#
# TraceLift changes three things at once against exec-only: it runs the executor more often, it compares with runs without
# a trace, and it asks a reward model. If it wins, which of these won? An **ablation** answers by leaving one out, or by
# putting something worthless in its place. And a result in one world says little about others, so we also change the
# world: how often a shortcut leads to the right answer, and whether the reward model can see it.
#
# **After this notebook you can** read a forest plot, say which comparison isolates which part of a reward, tell "it does
# not help" from "this run cannot tell", and say beforehand in which worlds TraceLift cannot help.
#
# **Time:** two to four minutes of one core for each training, about 30 of them with `tiny`; found again, seconds.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from tracelift_lib.evaluation.intervals import crossed_interval
from tracelift_lib.evaluation.planner_evaluation import per_problem
from tracelift_lib.planner.prediction import shift
from tracelift_lib.problems.tinyworld import shortcut_holds
from tracelift_lib.runs import report
from tracelift_lib.runs.pipeline import Run

report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
OWN = "preset"  # stands for the preset itself among its variants
runs = {OWN: run} | {name: run.changed(name) for name in run.preset.variants}

# %% [markdown]
# ## A variant is the preset with a few other values
#
# Variants stand in the preset, with all their numbers, before anything is run: whoever chooses them after a look at results
# chooses results. What a variant does not change it shares with the preset, weights included.

# %%
EXAMPLE = """This preset has no variants, so only its own arms are compared below. One that removes the uplift from the
reward, and one that runs the executor five times, would stand in its YAML file like this:

```yaml
variants:
  no_uplift: {planner_training.arms: [no_uplift], planner_training.seeds: [0, 1, 2]}
  k5: {planner_training.arms: [tracelift], planner_training.seeds: [0, 1, 2], execution.k: 5}
```"""
changes = pd.DataFrame(
    {"variant": name, "changes": ", ".join(f"{key}: {value}" for key, value in values.items()) or "nothing",
     "trainings": len(runs[name].policies())} for name, values in run.preset.variants.items())
display(changes.style.hide(axis="index") if len(changes) else Markdown(EXAMPLE))

# %% [markdown]
# What the arms of a reward isolate, with $s$ the executor's success, $q$ the reward model's score and $\hat u$ the uplift:
#
# | compare | with | the difference is due to |
# | --- | --- | --- |
# | `tracelift` $\tfrac12 s + \tfrac12 q\hat u$ | `random_bonus`: a random number for $q$ | the reward model's *judgement*; both have the same executor runs |
# | `tracelift` | `no_uplift` $\tfrac12 s + \tfrac12 q$ | multiplying by the uplift |
# | `tracelift` | `rm_uplift_only` $q \hat u$ | the term of the outcome |
# | `tracelift` | `llm_judge`: a saturated judge for $q$ | a judge that tells traces apart |
# | `tracelift` | `released_code`: sign of the comparison, clipped | the form of the bonus |
# | `success_times_quality` $s\,q$, `quality_among_equals` $s + t\,q$ | `tracelift` | other ways to join the two (docs/method.md, section 10) |
#
# ## Training
#
# Every policy of every variant is trained and evaluated as in notebooks 05 and 07, on the same problems.

# %%
own = {(OWN, p["arm"], p["seed"]): run.need("evaluation", **p) for p in run.policies()}
evaluated = own | run.make_variants()
rows = {key: pd.read_parquet(files.path / "rows.parquet") for key, files in evaluated.items()}
seeds_of = {}
for name, arm, seed in rows:
    seeds_of.setdefault((name, arm), []).append(seed)
splits = run.preset.evaluation.splits
off = "off_distribution" if "off_distribution" in splits else splits[0]
truth = all("faithful" in table for table in rows.values())
OUTCOMES = [("faithful", splits[0])] * truth + [("success", off)]
print(len(evaluated), "policies; measured:", ", ".join(f"{measure} on {split}" for measure, split in OUTCOMES))

# %% [markdown]
# ## The same problems, the same seeds
#
# Each cell is compared with exec_only: with that of its own variant if the variant trains one, otherwise with the
# preset's. A variant that changes the problems or the executor has to train its own. Seeds and problems are
# paired, so what is easy or lucky for both cancels. A policy whose gradient was zero at every step was never trained, and a
# comparison of a model with itself is no result, however narrow its interval: such a cell counts as *not run*.

# %%
def matrix(name, arm, measure, split, seeds):
    """Mean of `measure` a problem: one row a seed, problems in a fixed order."""
    tables = [rows[name, arm, seed] for seed in seeds]
    return np.stack([per_problem(table[table["split"] == split], measure) for table in tables])


def effect(name, arm, measure, split):
    """One row: the mean difference to exec_only of the same seeds, with its 95 % interval."""
    home = name if (name, "exec_only") in seeds_of else OWN
    seeds = sorted(set(seeds_of[name, arm]) & set(seeds_of[home, "exec_only"]))
    treated, control = (matrix(*cell, measure, split, seeds) for cell in ((name, arm), (home, "exec_only")))
    interval = crossed_interval(treated, control)
    return {"variant": name, "arm": arm, "against": home, "measure": measure, "split": split, "pairs of seeds": len(seeds),
            "moved": runs[name].moved(arm), **dict(zip(("difference", "low", "high"), interval))}


cells = [cell for cell in seeds_of if cell[1] != "exec_only"]
effects = pd.DataFrame(effect(*cell, *outcome) for cell in cells for outcome in OUTCOMES)

# %% [markdown]
# ## What was predicted
#
# Each variant has its own prediction, made from its warm start's habits alone (notebook 05, `planner/prediction.py`): the
# share of each habit after training, carried over to the evaluation split. With what the executor does with each habit
# there, these shares give the success and the faithful rate that we should see.

# %%
def predicted(name):
    """For each arm and outcome the value that this variant's prediction gives after training."""
    it = runs[name]
    habits = pd.read_parquet(it.make("habits").path / "habits.parquet")
    paths = pd.read_parquet(it.make("prediction").path / "prediction.parquet")
    values = {}
    for arm, path in paths.groupby("arm"):
        shares = path.pivot(index="step", columns="habit", values="share")
        for measure, split in OUTCOMES:
            part = habits[habits["split"] == split]
            after = shift(part["habit"].value_counts(normalize=True), shares.iloc[0], shares.iloc[-1])
            worth = part.groupby("habit")["s"].mean() if measure == "success" else pd.Series({"full": 1.0})
            values[arm, measure] = float((after * worth.reindex(after.index, fill_value=0.0)).sum())
    return values


forecasts = {name: predicted(name) for name in runs} if run.preset.prediction else {}
effects["predicted"] = [
    forecasts[e.variant].get((e.arm, e.measure), np.nan) - forecasts[e.variant]["exec_only", e.measure] if forecasts else np.nan
    for e in effects.itertuples()]

# %% [markdown]
# ## Every cell that was run
#
# All of them, whatever they show. The verdict reads one interval at a time; with many cells some exclude zero by chance
# (exercise 2).

# %%
MARGIN = 0.02  # an effect below two points is none that we would act on


def verdict(e):
    """What a cell shows, in words."""
    if not e.moved:
        return "not run: no gradient at any step"
    if e["pairs of seeds"] == 1:
        return "cannot tell: one seed, whose luck no interval over problems holds"
    if e.low > 0 or e.high < 0:
        return "helps" if e.low > 0 else "harms"
    if abs(e.predicted) < MARGIN:
        return "cannot tell; the prediction has no effect either"
    return "cannot tell"


effects["verdict"] = [verdict(e) for _, e in effects.iterrows()]
sources = list(evaluated.values())
sizes = next(iter(rows.values())).groupby("split")["problem_id"].nunique()
n = " + ".join(f"{sizes[s]} {s}" for s in dict.fromkeys(s for _, s in OUTCOMES)) + f" problems x {run.preset.evaluation.traces} traces"
all_seeds = sorted({seed for seeds in seeds_of.values() for seed in seeds})
report.save_table(run, effects, "ablations", sources, n, all_seeds)
effects.round(3).style.hide(axis="index").format(precision=3)

# %% [markdown]
# The **forest plot**: one line a cell, the difference with its interval; the vertical line is exec_only. Hollow diamonds
# are what was predicted.

# %%
figure, axes = plt.subplots(1, len(OUTCOMES), figsize=(2 * report.COLUMN_WIDTH, 1.2 + 0.2 * len(cells)), sharey=True, squeeze=False)
for axis, (measure, split) in zip(axes[0], OUTCOMES):
    part = effects[effects["measure"] == measure].reset_index(drop=True)
    y, colors = part.index, ["C1" if arm == "tracelift" else "C0" for arm in part["arm"]]
    axis.axvline(0, color="0.4", lw=0.8)
    axis.hlines(y, part["low"], part["high"], colors=colors, lw=1.2)
    axis.scatter(part["difference"], y, c=colors, s=14, zorder=3)
    axis.scatter(part["predicted"], y, marker="D", s=16, facecolors="none", edgecolors="0.4", lw=0.7)
    axis.set(xlabel=f"{measure}, difference to exec_only", title=split.replace("_", " "))
axes[0, 0].set_yticks(y, [f"{e.variant}: {e.arm}" for e in part.itertuples()])
axes[0, 0].invert_yaxis()
report.save_figure(run, figure, "ablations_forest", effects, sources, n, all_seeds)

# %% [markdown]
# ## Which part does the work?
#
# exec_only is one control among several. Put something worthless in the place of one part and keep the rest: what is then lost
# was that part's. So here TraceLift is compared with the other arms directly, on the seeds that both have.

# %%
PARTS = {"random_bonus": "the RM's judgement", "no_uplift": "the uplift", "rm_uplift_only": "the term of the outcome",
         "llm_judge": "a judge that tells traces apart"}
ARMS_ONLY = {"planner_training.arms", "planner_training.seeds"}  # what else a variant changes is no part of the reward
cell_of = {arm: (name, arm) for name, arm in seeds_of if name == OWN or set(run.preset.variants[name]) <= ARMS_ONLY}


def part_of_reward(control, measure, split):
    """One row: TraceLift less an arm that lacks one part of its reward, paired, with its 95 % interval."""
    ours, theirs = cell_of["tracelift"], cell_of[control]
    seeds = sorted(set(seeds_of[ours]) & set(seeds_of[theirs]))
    interval = crossed_interval(*(matrix(*cell, measure, split, seeds) for cell in (ours, theirs)))
    return {"part": PARTS[control], "without it": control, "measure": measure, "split": split, "pairs of seeds": len(seeds),
            "moved": runs[ours[0]].moved(ours[1]) or runs[theirs[0]].moved(theirs[1]), **dict(zip(("difference", "low", "high"), interval))}


parts = pd.DataFrame(part_of_reward(control, *outcome) for control in PARTS if control in cell_of for outcome in OUTCOMES)
if len(parts):
    report.save_table(run, parts, "ablations_parts", sources, n, all_seeds)
    display(parts.round(3).style.hide(axis="index").format(precision=3))

# %%
def needed(row):
    """What one comparison says about the part that the control lacks."""
    said = ("it is needed" if row.low > 0 else "without it the traces are better" if row.high < 0 else "cannot tell")
    return f"- **{row.part}** ({row.measure}, {row.split.replace('_', ' ')}): {report.with_interval(row.difference, row.low, row.high)}, {said}."


display(Markdown("\n".join(map(needed, parts[parts["moved"]].itertuples())) if len(parts) else
                 "This preset trains no arm that lacks a part of the reward; preset `tiny_arms` does."))

# %% [markdown]
# ## The map: where can it help?
#
# Cells whose names begin with `map-` lie on a map with three coordinates, and here are their *measured* values: the share of
# training problems on which the shortcut gives the right answer; what the reward model sees of it, as the difference of
# mean scores between full traces and such with the lucky order; and how often the executor succeeds alone, because what it can
# do without a trace leaves less to uplift.

# %%
PLACE = re.compile(r"map-shortcut[\d.]+-rm([a-z]+)(-alone)?$")


def place(name):
    """Where a cell of the map lies, as measured."""
    it = runs[name]
    start = pd.read_parquet(it.need("habits").path / "habits.parquet").query("split == 'rl'")
    q = start.groupby("habit")["q"].mean().reindex(["full", "lucky_order"])
    holds = [shortcut_holds(p) is True for p in it.problems(it.preset.planner_training.split)]
    return {"variant": name, "RM": PLACE.match(name)[1], "executor": "strong alone" if PLACE.match(name)[2] else "weak alone",
            "shortcut holds": np.mean(holds), "score gap": q["full"] - q["lucky_order"],
            "success alone": start.groupby("problem_id")["s_none"].first().mean()}


places = pd.DataFrame([place(name) for name in runs if PLACE.match(name)] if forecasts else [])
if len(places):
    places = places.merge(effects[effects["arm"] == "tracelift"], on="variant").sort_values("shortcut holds")
    display(places.drop(columns=["arm", "against", "moved"]).round(3))
else:
    display(Markdown("This preset has no cells of the map; preset `tiny_map` has."))

# %% [markdown]
# The figure has the effect of TraceLift over the share of problems on which the shortcut holds. Points are measured, broken lines
# predicted, each from the cell's own warm start. **Theory's boundary**, dotted, is where the predicted effect changes its sign; within
# the grey band it is below two points either way, so there TraceLift cannot help.

# %%
def crossings(x, y):
    """Where the broken line through the points (x, y) crosses zero."""
    return [a - c * (b - a) / (d - c) for a, b, c, d in zip(x, x[1:], y, y[1:]) if c * d < 0]


if len(places):
    figure, axes = plt.subplots(1, len(OUTCOMES), figsize=(2 * report.COLUMN_WIDTH, 2.6), squeeze=False)
    for axis, (measure, split) in zip(axes[0], OUTCOMES):
        axis.axhspan(-MARGIN, MARGIN, color="0.9")
        lines = places[places["measure"] == measure].groupby(["RM", "executor"])
        for i, ((rm, executor), line) in enumerate(lines):
            bars = [line["difference"] - line["low"], line["high"] - line["difference"]]
            axis.errorbar(line["shortcut holds"], line["difference"], bars, fmt="os"[executor == "strong alone"], ms=4,
                          color=f"C{i}", capsize=2, label=f"RM {rm}, executor {executor}")
            axis.plot(line["shortcut holds"], line["predicted"], "--", color=f"C{i}", lw=1)
            for x in crossings(line["shortcut holds"].tolist(), line["predicted"].tolist()):
                axis.axvline(x, color=f"C{i}", ls=":")
        axis.set(xlabel="share of problems on which the shortcut holds",
                 title=f"{measure}, {split.replace('_', ' ')}", xlim=(-0.05, 1.05))
    axes[0, 0].set_ylabel("tracelift - exec_only")
    axes[0, 0].legend(fontsize=5)
    report.save_figure(run, figure, "ablations_map", places, sources, n, all_seeds)

# %% [markdown]
# ## What we saw
#
# Made from the table, so the sentences hold for whatever run you are looking at.

# %%
def listed(part):
    """The cells of a part of the table, each with its interval."""
    return "; ".join(f"`{e.variant}: {e.arm}` {report.with_interval(e.difference, e.low, e.high)}" for e in part.itertuples())


if not run.preset.is_result:
    display(Markdown("**This preset only checks that everything runs. Its numbers are not a result.**"))
lines = []
for (measure, split), part in effects.groupby(["measure", "split"]):
    lines.append(f"**{measure}, {split.replace('_', ' ')}**, against exec_only:")
    lines += [f"- {word}, {len(cells)} of {len(part)} cells: {listed(cells)}" for word, cells in part.groupby("verdict")]
    known = part[part["moved"]].dropna(subset="predicted")
    if len(known) > 2:
        signs = (np.sign(known["predicted"]) == np.sign(known["difference"])).mean()
        lines.append(f"- The prediction has the sign of the measured difference in {signs:.0%} of {len(known)} cells; its mean error "
                     f"is {(known['predicted'] - known['difference']).abs().mean():.3f}.")
display(Markdown("\n".join(line if line.startswith("-") else f"\n{line}\n" for line in lines)))

# %% [markdown]
# - **A control with the same cost is worth more than one that costs less.** exec_only spends one executor run a trace,
#   TraceLift $1 + K$; `random_bonus` spends as many and knows nothing of quality.
# - **"Cannot tell" is a verdict about the run, not about the method.** The width of the interval says how large an effect
#   would have been seen.
# - What theory leaves out of these predictions, and how well it did, is in [notebook 09](09_theory_checks.ipynb).
#
# ## Exercises
#
# 1. *Why pair?* Compute the interval of TraceLift's effect as if its problems and seeds had nothing to do with those of
#    exec_only. How much wider is it?
# 2. *Many cells.* If no arm had any effect, how many of the intervals above would exclude zero, and how probable is at
#    least one? What level would each interval need?
# 3. *Your variant.* Someone says that TraceLift only wins because it spends more executor runs. Which comparison would
#    convince you, and which cell of `tiny` is nearest to it?
#
# Solutions carry the tag `solution` and are folded.

# %% [markdown] tags=["solution"]
# <details><summary><b>Solutions</b></summary>
#
# **1.** The cell below. The variance of a difference is the sum of both variances less twice their covariance; problems that
# are hard for one arm are hard for the other, so the covariance is positive and pairing gains precision for nothing.
#
# **2.** One in twenty. With $m$ independent cells the chance of at least one is $1 - 0.95^m$. Bonferroni's level of $1 - 0.05/m$
# for each interval keeps the chance of any false one below 5 %.
#
# **3.** exec_only with as many executor runs: $s$ as the mean of four runs in place of one. `random_bonus` is nearest: it has all the
# runs and the uplift, and a random weight on it. If it does as well as TraceLift, the reward model added nothing.
#
# </details>

# %% tags=["solution"] jupyter={"source_hidden": true}
measure, split = OUTCOMES[0]
seeds = seeds_of[OWN, "tracelift"]
both = [matrix(OWN, arm, measure, split, seeds) for arm in ("tracelift", "exec_only")]
apart = [crossed_interval(values) for values in both]
_, low, high = crossed_interval(*both)
unpaired = np.hypot(*(top - bottom for _, bottom, top in apart))
print(f"exercise 1: {measure}, {split}: width {high - low:.3f} paired, {unpaired:.3f} unpaired")
m = len(effects)
print(f"exercise 2: {m} intervals: {0.05 * m:.1f} expected by chance, at least one with probability {1 - 0.95**m:.0%}; "
      f"Bonferroni's level {1 - 0.05 / m:.2%}")

# %% [markdown]
# **Next:** [09_theory_checks](09_theory_checks.ipynb).

# %%
trainings = [runs[name].need("planner_training", arm=arm, seed=seed) for name, arm, seed in evaluated]
minutes = sum({t.path: t.manifest["seconds"] for t in trainings}.values()) / 60
print(f"{len({t.path for t in trainings})} trainings, {minutes:.1f} minutes, summed over the runs")
