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
# # 01 · Building TraceLift-Groups
#
# A reward model that is to judge *reasoning* must see reasoning that is wrong in instructive ways. The paper (section 3)
# builds, for every problem, a **group**: one reference trace and a bank of flawed ones, each with a rubric. The flawed
# traces stay on topic and read plausibly; each is damaged in one place.
#
# **After this notebook you can** damage a trace in seven defined ways, score it with the five-dimension rubric, say what a
# group record holds, and explain why groups must never be split between training and test data.
#
# **Time:** seconds.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
import json
import random

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from tracelift_lib import report
from tracelift_lib.groups import dimensions, kinds, load_groups, perturb, true_rubric
from tracelift_lib.group_building.kinds import KINDS
from tracelift_lib.pipeline import Run
from tracelift_lib.problems import InputError
from tracelift_lib.tinyworld import true_steps

report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)

# %% [markdown]
# ## A reference trace
#
# Each line of a trace says what happens and calculates: `- event: before+operand=after`, or another of the four
# operations. A trace for a program (domain code) works out the numbers that the task keeps back, and ends with the plan.

# %%
run.make("problems")
problem = next(p for p in run.problems("train") if len(true_steps(p)) == 3)
print(problem.problem, "\n")
print(problem.reference_solution)
names = dimensions(problem.domain)

# %% [markdown]
# ## Seven ways to be wrong
#
# The paper uses seven kinds of flaw in each domain but we do not know their names (one is known for code:
# `wrong_algorithm_choice`), so these seven are our own choice. After the damaged step the rest is recomputed, as a person
# would go on after a slip: the trace stays consistent with its own mistake. Most kinds change the answer.
# `unsupported_leap` keeps it, and only leaves a hole in the support; in code `leaked_code` keeps it too, but writes the
# program that the planner was told to leave to the executor.

# %%
rows = []
for kind in kinds(problem.domain):
    flawed = perturb(problem, kind, random.Random(0))
    rows.append({"kind": kind, "what it does": KINDS[problem.domain, kind].definition,
                 "trace": flawed or "(no place for it in this problem)"})
table = pd.DataFrame(rows).style.hide(axis="index")
display(table.set_properties(**{"white-space": "pre-wrap", "text-align": "left"}))

# %% [markdown]
# ## The rubric
#
# Five dimensions, each with a label from 0 to 4, and a total in [0, 1]. In the paper a judge LLM gives scores $0..10$; a label
# is $\lfloor \text{score} / 2 \rfloor$ cut to 4. In the tiny world an infallible judge is possible, because every true
# step is known. Ours counts, for each dimension, the share of what is right:
#
# | math | share of |
# | --- | --- |
# | problem_understanding | quantities of the story that the trace uses |
# | solution_strategy | operations that are the true ones, in order |
# | step_coherence | steps that start from the result before them |
# | calculation_correctness | calculations that are right in themselves |
# | answer_support | true intermediate results that are reached, halved if the last one is wrong |
#
# | code | share of |
# | --- | --- |
# | task_understanding | facts of the task (numbers, examples, conditions) that the trace uses |
# | plan_quality | operations of the plan that are the true ones, in order |
# | step_coherence | lines that take up only what is known there: told, or worked out before |
# | action_support | true intermediate results that are reached, halved if the plan is wrong |
# | non_leakage | 1 if the trace holds no code, else 0 |
#
# and the total is the mean of their mean and their minimum: a trace is not much better than its weakest part.

# %%
scores = {"reference": true_rubric(problem, problem.reference_solution)}
for kind in kinds(problem.domain):
    flawed = perturb(problem, kind, random.Random(0))
    if flawed:
        scores[kind] = true_rubric(problem, flawed)
pd.DataFrame({kind: rubric.flat() for kind, rubric in scores.items()}).T

# %% [markdown]
# Read a row: a flaw hurts some dimensions and leaves others alone. A wrong operation, for instance, is right in its own
# arithmetic but fails in strategy and support; an arithmetic slip is the other way round. A rubric with several dimensions
# can say *how* a trace is bad; a single score cannot.
#
# ## Building the groups
#
# One flawed trace of each kind that fits, duplicates dropped; a group with fewer than four distinct flawed traces is
# dropped. The split is by problem, never inside a group: problems are ordered by SHA-256 of (18, problem id) and the first
# tenth is the development set. The test groups come from problems that no model has been trained on.

# %%
files = run.make("groups")
groups = {split: run.groups(split) for split in ("train", "dev", "test")}
assert not {g.problem_id for g in groups["train"]} & {g.problem_id for g in groups["dev"]}
for split, members in groups.items():
    traces = sum(1 + len(g.negative_bank) for g in members)
    print(f"{split:5} {len(members):5} groups, {traces:6} traces")

# %% [markdown]
# One record, as it stands in the file. Every line is validated when it is read; an error names the file, line and field.

# %%
record = groups["dev"][0].to_record()
record["negative_bank"] = record["negative_bank"][:1]
print(json.dumps(record, indent=1)[:1800], "...")

# %% [markdown]
# What a malformed record leads to:

# %%
broken = groups["dev"][0].to_record()
broken["positive_pool"][0]["rubric"]["step_coherence"] = 7
path = files.path.parent / "broken-example.jsonl"
path.write_text(json.dumps(broken) + "\n")
try:
    list(load_groups(path))
except InputError as error:
    print(str(error).replace(str(path), path.name))
path.unlink()

# %% [markdown]
# ## The data card: how many of each kind, and what they score
#
# Not every kind fits every problem: two additions can be swapped without any effect, so such a swap is rejected.

# %%
candidates = pd.DataFrame(
    {"kind": c.negative_kind or "reference", "total": c.rubric.total,
     **{name: c.rubric.labels[name] for name in names}}
    for g in groups["train"] for c in [*g.positive_pool, *g.negative_bank]
)
card = candidates.groupby("kind").agg(traces=("total", "size"), mean_total=("total", "mean")).reset_index()
report.save_table(run, card, "group_kinds", [files], n=f"{len(groups['train'])} train groups")
card.round(3)

# %%
labels = candidates.groupby("kind")[list(names)].mean()
figure, axis = plt.subplots(figsize=(report.COLUMN_WIDTH, 3.2))
sns.heatmap(labels, vmin=0, vmax=4, annot=True, fmt=".1f", cmap="viridis", cbar_kws={"label": "mean label"}, ax=axis)
axis.set(xlabel="", ylabel="", title="Each kind hurts its own dimensions")
axis.set_xticklabels([name.replace("_", " ") for name in names], rotation=35, ha="right", fontsize=6.5)
report.save_figure(run, figure, "group_rubrics", labels.reset_index(), [files], n=f"{len(candidates)} traces")

# %% [markdown]
# ## What we saw
#
# - A group holds one reference and at least four flawed traces; a flaw is local, and the trace stays plausible.
# - The rubric profile differs by kind. That is what the reward model of notebook 02 has to learn from text alone.
# - `unsupported_leap` is the kind to watch: its answer is right. A reward on success alone cannot see it.
#
# **Try it yourself.** Write an eighth kind, for instance one that repeats a step, add it to the makers of its domain
# (`groups.MATH_KINDS`, `tinycode.KINDS`), and see which dimensions it hurts.
#
# **Next:** [02_train_reward_model](02_train_reward_model.ipynb).

# %%
display(Markdown(f"- {files.cost()}"))
