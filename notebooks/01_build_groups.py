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
# **After this notebook you can** damage a trace in seven defined ways a domain, say what each damage does to the rubric and
# why, tell a judge that can be trusted from one that cannot, keep test problems out of training groups, and split groups
# so that dev measures judgement and not memory.
#
# **You need** notebook 00. **Time:** seconds with generated problems; a thousand seeds of GSM8K take a quarter of a minute.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
import difflib
import random
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.colors import ListedColormap

from tracelift_lib.groups.builder import guard_of
from tracelift_lib.groups.checks import reject_reason
from tracelift_lib.groups.flaws.plans import statement
from tracelift_lib.groups.group_maker import BuildSettings, make_group, propose_exact, reference_trace
from tracelift_lib.groups.judge import RubricJudgement, calibrate, judge_by_truth, rubric_from_scores
from tracelift_lib.groups.kinds import KINDS, kinds_of
from tracelift_lib.groups.schema import dimensions, split_train_dev
from tracelift_lib.groups.seeds import SOURCES, LeakageError, LeakageGuard, SeedSettings, load_seeds
from tracelift_lib.problems.files import data_folder
from tracelift_lib.runs import report
from tracelift_lib.runs.pipeline import Run

# %%
report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
public = run.preset.groups.seeds  # None: groups are made of the preset's own generated problems
source = public.source if public and public.source != "released" else run.preset.problems.source
if source == "gsm8k" and public is None or public and public.source == "released":
    source = "tiny_world"
exact_truth = source.startswith("tiny_")  # every true step is known
seed_settings = SeedSettings(source=source, folder=None if exact_truth else data_folder(), limit=200, seed=run.preset.seed)

# %% [markdown]
# ## One flaw
#
# A **seed** is a problem with a reference: a worked solution in math, a program in code. From each we make a group. Here is
# the one that we shall take apart: of the first seeds that with the most kinds of flaw.

# %%
seeds = list(load_seeds(seed_settings))
judge = judge_by_truth if exact_truth else None  # without a judge: a rubric from the definition of the kind
build_settings = BuildSettings(
    seeds=seed_settings, judge="ground_truth" if exact_truth else "programmatic",
    drop_leaked=public is not None and getattr(public, "drop_leaked", False),
)
made = [make_group(seed, build_settings, propose_exact, judge)[0] for seed in seeds[: 100 if exact_truth else 12]]
example = max((group for group in made if group), key=lambda group: len(group.negative_bank))
problem, reference = example.as_problem(), example.positive_pool[0].reasoning
print(f"{len(seeds)} seeds from {source} ({SOURCES[source].licence}). One of them:\n\n{problem.problem}\n\nIts reference trace:\n\n{reference}")

# %% [markdown]
# Each line of a math trace says what happens and calculates. A trace for a program holds no code: it says how to go about
# it, in words, and the executor will have to write the program.
#
# Now one flaw. Compare line by line (`-` is the reference, `+` the flawed trace):

# %%
def show_difference(flawed):
    """The definition of the flaw, and both traces with what differs marked."""
    kind = kinds_of(example.domain)[flawed.negative_kind]
    print(f"{kind.name}: {kind.definition}\n")
    print("\n".join(difflib.ndiff(reference.splitlines(), flawed.reasoning.splitlines())))


first = example.negative_bank[0]
show_difference(first)

# %% [markdown]
# One place is damaged, and what follows is recomputed, as a person would go on after a slip: the trace stays consistent with
# its own mistake. A reader who does not check that place finds nothing wrong.
#
# ## What a flaw does to the rubric
#
# A **rubric** has five dimensions a domain, each with a label from 0 (bad) to 4 (good), and a total in [0, 1]. Before you run
# the next cell: which dimensions should this flaw lower, and which not?

# %%
names = dimensions(example.domain)


def labels_of(candidate):
    """Labels and total of a trace, as a row."""
    return candidate.rubric.flat()


pd.DataFrame({"reference": labels_of(example.positive_pool[0]), first.negative_kind: labels_of(first)})

# %%
def fallen(candidate):
    """The dimensions below the reference's, the lowest first."""
    before, after = example.positive_pool[0].rubric.labels, candidate.rubric.labels
    return sorted((n for n in names if after[n] < before[n]), key=lambda n: after[n])


def in_words(words):
    return ", ".join(word.replace("_", " ") for word in words) or "nothing"


display(Markdown(f"**{first.negative_kind.replace('_', ' ')}** lowers {in_words(fallen(first))}; it leaves "
                 f"{in_words(n for n in names if n not in fallen(first))} as they are."))

# %% [markdown]
# A second flaw of the same problem, one after which the final answer is still right. That is the kind of trace that a
# reward on success alone may miss:

# %%
quiet = [c for c in example.negative_bank if kinds_of(example.domain)[c.negative_kind].keeps_answer]
second = quiet[0] if quiet else example.negative_bank[-1]
show_difference(second)
display(Markdown(f"**{second.negative_kind.replace('_', ' ')}** lowers {in_words(fallen(second))}, total "
                 f"{second.rubric.total:.2f} (the first flaw: {first.rubric.total:.2f})."))

# %% [markdown]
# A rubric with several dimensions can say *how* a trace is bad; a single score cannot.
#
# ## Fourteen ways to be wrong
#
# The paper uses seven kinds of flaw in each domain. Their names are not available to us but for one (code:
# `wrong_algorithm_choice`), so these fourteen and their definitions are **ours**. One registry, `groups/kinds.yaml`,
# serves the makers, the instructions to a language model, the rubric and the data card. *Lowers* names the rubric
# dimensions that the kind always lowers, the one it lowers most first.

# %%
table = pd.DataFrame(
    {"domain": k.domain, "kind": k.name, "definition": k.definition, "lowers": in_words(k.hurts), "example": k.example,
     "answer": "stays right" if k.keeps_answer else "becomes wrong"}
    for k in KINDS.values()
)
left = {"white-space": "pre-wrap", "text-align": "left", "vertical-align": "top"}
display(table.style.hide(axis="index").set_properties(**left))

# %% [markdown]
# Where does each kind strike? The picture has a row for each flawed trace of our problem and a column for each line of the
# reference: kept as it is, or not found again. A flaw in an early line drags those after it along.

# %%
lines = reference.splitlines()
touched = pd.DataFrame(
    [[int(line not in c.reasoning.splitlines()) for line in lines] for c in example.negative_bank],
    index=[c.negative_kind.replace("_", " ") for c in example.negative_bank], columns=[f"line {i + 1}" for i in range(len(lines))])
figure, axis = plt.subplots(figsize=(report.COLUMN_WIDTH, 2.4))
sns.heatmap(touched, cmap=ListedColormap(["#f0f0f0", report.PALETTE["tracelift"]]), vmin=0, vmax=1, cbar=False,
            linewidths=2, linecolor="white", ax=axis)
axis.set(title="Lines of the reference that a flaw changes", xlabel="", ylabel="")
axis.tick_params(axis="x", rotation=0)
report.save_figure(run, figure, "group_places", touched.rename_axis("kind").reset_index(), [], n=f"1 group of {source}")

# %%
spread = touched.sum(axis=1)
display(Markdown(f"The flaws change {spread.min()} to {spread.max()} of {len(lines)} lines; most: {spread.idxmax()}."))

# %% [markdown]
# There are two **makers**. The exact one, used here, edits the parsed trace. The other asks a language model for the same
# damage (`tracelift groups --maker openai --endpoint ...`), in a fixed JSON form, with retries and a cap on tokens.

# %% [markdown]
# ## Checks: a flawed trace must earn its place
#
# Whoever made it, a flawed trace enters a group only if it differs from the reference in **one place** (what follows from
# the damage may differ in numbers), stays on topic, is no duplicate and no placeholder, does not tell of its own flaw,
# keeps its length within bounds, ends on a wrong answer if its kind says so, and holds code only if that is its flaw.
# A program's flaw must also show when the program runs on the problem's tests, in the sandbox. A rejected trace says why:

# %%
LIGHTHOUSES = "The history of lighthouses is long. Romans built tall towers near harbours and keepers lit fires. "
proposals = {
    "the reference, with more space": reference.replace(" ", "  "),
    "the same again": first.reasoning,
    "the first words only": " ".join(reference.split()[:4]),
    "a placeholder": f"{reference}\n- TODO",
    "a confession": f"{first.reasoning}\n- this step is wrong",
    "about something else": " ".join((LIGHTHOUSES * 20).split()[: len(reference.split())]),
    "with code": f"{first.reasoning}\ndef solve(x):\n    return x",
    "with the answer's tags": f"<reasoning>{first.reasoning}</reasoning>",
}
pd.DataFrame(
    {"proposal": name, "rejected because": reject_reason(problem, reference, text, first.negative_kind, [first.reasoning])}
    for name, text in proposals.items()
)

# %% [markdown]
# ## Where rubrics come from
#
# In the paper a judge LLM gives scores from 0 to 10; a label is $\lfloor \text{score} / 2 \rfloor$ cut to 4, the total is the
# overall score divided by 10. We have three sources:
#
# - a **language model** as judge (`--judge openai` or `local`), JSON form enforced;
# - **programmatic**, for public seeds without a judge: the dimension that the kind lowers most gets label 2, or 1 if more
#   than half of the trace builds on the flaw; the others it lowers get one more; `answer_support` of a wrong answer
#   1 or 0. Nobody has read these traces: the rubric says what the kind *should* do;
# - the **ground truth**, for generated problems. Every true step is known, so an infallible judge can count, for each
#   dimension, the share of what is right:
#
# | math | share of | code | share of |
# | --- | --- | --- | --- |
# | problem_understanding | quantities of the story that the trace uses | task_understanding | facts of the task that the trace uses |
# | solution_strategy | operations that are the true ones, in order | plan_quality | operations of the plan that are the true ones, in order |
# | step_coherence | steps that start from the result before them | step_coherence | lines that take up only what is known there |
# | calculation_correctness | calculations right in themselves | action_support | true intermediate results that are reached, halved if the plan is wrong |
# | answer_support | true intermediate results that are reached, halved if the last is wrong | non_leakage | 1 if the trace holds no code, else 0 |
#
# In the last two, total = mean of (mean, minimum): a trace is not much better than its weakest part.
#
# ## Can the judge be trusted?
#
# A rubric is as good as its judge. The paper reports that 95.5 % of an LLM judge's scores were exactly 1.0: such a judge
# cannot tell traces apart. Groups calibrate any judge for free, because we know which trace of a group is the best. We
# ask each judge three times about the same traces:
#
# - `saturation_rate`, `saturation_rate_negatives`: totals that are exactly 1, of all traces and of flawed ones;
# - `agreement`: (trace, dimension) pairs with the same label in every repeat; `total_spread`: how far totals move;
# - `pair_accuracy`, `group_accuracy`: flawed traces below their reference, groups where all are; `ties` count as wrong.
#
# An LLM judge needs an endpoint (`judge_by_model(Asker(OpenAIModel(...), ...))`), which this notebook does not assume. Two
# judges made by hand show the classical failures: one that reads the last line only, and one that is pleased with
# everything and only unsure how much.

# %%
def last_line_judge(problem, trace, repeat):
    """Full marks for a trace that ends as the reference does, 3 of 10 for others."""
    right = trace.strip().splitlines()[-1] == reference_trace(problem).strip().splitlines()[-1]
    score = 10 if right else 3
    return RubricJudgement(rubric_from_scores(dict.fromkeys(dimensions(problem.domain), score), score), score, "last line")


def pleased_judge(problem, trace, repeat, mood=0):
    """8, 9 or 10 for everything, drawn anew each time."""
    rng = random.Random(f"{mood}:{problem.problem_id}:{trace}:{repeat}")
    scores = {name: rng.choice((8, 9, 10)) for name in dimensions(problem.domain)}
    overall = rng.choice((8, 9, 10))
    return RubricJudgement(rubric_from_scores(scores, overall), overall, "very nice")


# %%
judged = [group for group in made if group]
judges = {"reads the last line": last_line_judge, "pleased with everything": pleased_judge}
if exact_truth:
    judges = {"ground truth": judge_by_truth} | judges
calibration = pd.DataFrame({"judge": name, **calibrate(j, judged, repeats=3)} for name, j in judges.items())
report.save_table(run, calibration, "judge_calibration", [], n=f"{len(judged)} groups of {source}, 3 repeats")
calibration.set_index("judge").T.round(3)

# %% [markdown]
# One pleased judge may be lucky with its draws, as it gives a group's reference one score for all pairs of that group. So look
# at ten of them before you read its ranking:

# %%
moods = [calibrate(partial(pleased_judge, mood=mood), judged, repeats=3)["pair_accuracy"] for mood in range(10)]


def judged_as(name):
    return calibration.set_index("judge").loc[name]


last, pleased = judged_as("reads the last line"), judged_as("pleased with everything")
truth = f"The infallible judge ranks {judged_as('ground truth')['pair_accuracy']:.0%} of pairs right. " if exact_truth else ""
display(Markdown(
    f"{truth}The judge of the last line agrees with itself in {last['agreement']:.0%} of labels, and gives full marks to "
    f"{last['saturation_rate_negatives']:.0%} of flawed traces: those that end well. A pleased judge's labels agree in "
    f"{pleased['agreement']:.0%} (8, 9 and 10 all become label 4), and ten such judges rank {min(moods):.0%} to {max(moods):.0%} of "
    f"pairs right; a coin that ties as often ({pleased['ties']:.0%}) is expected to rank {(1 - pleased['ties']) / 2:.0%}. "
    "**Agreement over repeats says nothing about being right; the ranking does.**"))

# %% [markdown]
# ## No test problem among the seeds
#
# A reward model trained on groups of a test problem has seen its solution and its classical errors. So a build **refuses**
# seeds that are in the test split of a benchmark, and says which. Texts are compared as they are, and *normalised*: case,
# white space, punctuation and the way to write a number do not count, because copies of a data set differ in these. Here
# we plant a copy of one seed in a made-up benchmark:

# %%
copy = statement(seeds[3]).upper().replace(".", " . ")
guard = LeakageGuard([("made-up-benchmark-7", copy), ("made-up-benchmark-8", "How many legs do 3 spiders have?")])
try:
    guard.check(seeds)
except LeakageError as error:
    print(error)
print(f"\nproblems kept out of seeds from {source}: {len(guard_of(seed_settings))}"
      + (" (generated seeds: no benchmark has them)" if exact_truth else ""))

# %% [markdown]
# The guard of public seeds holds the test problems of GSM8K, MATH-500, ProcessBench, HumanEval, MBPP, APPS and
# code_contests, as far as a folder or the hub has them. On MBPP it finds three: tasks 602, 704 and 872 of the training ids
# repeat, word for word, tasks 217, 248 and 216 of the test ids. What no comparison of texts can find is a template with
# other numbers: `gsm_symbolic` goes back to GSM8K test problems, so do not report GSM8K test for a model trained on it.
#
# ## All groups, split by problem
#
# One flawed trace of each kind that fits; a group with fewer than four different ones is dropped, as in the paper. Groups
# are split **by problem**, never inside a group. Otherwise a flawed trace of a training problem would be in the test
# data and could be recognised instead of judged. Test groups come from problems that no other group has.

# %%
if public is None:
    run.make("problems")
files = run.make("groups")
groups = {split: run.groups(split) for split in ("train", "dev", "test")}
for split, members in groups.items():
    traces = sum(1 + len(g.negative_bank) for g in members)
    print(f"{split:5} {len(members):5} groups, {traces:6} traces")

# %% [markdown]
# The rule for dev needs no list: order the problems by a hash of their id, and the first tenth is dev. Whoever has the ids
# gets the same split.

# %%
ids = {split: [g.problem_id for g in members] for split, members in groups.items()}
assert not set(ids["train"]) & set(ids["dev"]) and not set(ids["test"]) & {*ids["train"], *ids["dev"]}
train, dev = split_train_dev(sorted(ids["train"] + ids["dev"]))
assert set(train) == set(ids["train"]) and set(dev) == set(ids["dev"])
print(f"{len(dev)} of {len(train) + len(dev)} problems are dev, among them", ", ".join(dev[:3]))

# %% [markdown]
# Not every kind fits every problem: two additions can be swapped without any effect, a trace of one calculation has no step
# to lose. So kinds are not equally frequent, and the reward model will see more of some than of others:

# %%
candidates = pd.DataFrame(
    {"kind": c.negative_kind or "reference", "total": c.rubric.total,
     **{name: c.rubric.labels[name] for name in names}}
    for g in groups["train"] for c in [*g.positive_pool, *g.negative_bank]
)
kinds_table = candidates.groupby("kind").agg(traces=("total", "size"), mean_total=("total", "mean")).reset_index()
report.save_table(run, kinds_table, "group_kinds", [files], n=f"{len(groups['train'])} train groups")
kinds_table.round(3)

# %% [markdown]
# And what they score, dimension by dimension, the reference on top:

# %%
order = ["reference", *(kind for kind in kinds_of(example.domain) if kind in set(candidates["kind"]))]
labels = candidates.groupby("kind")[list(names)].mean().loc[order]
figure, axis = plt.subplots(figsize=(report.COLUMN_WIDTH, 3.2))
sns.heatmap(labels, vmin=0, vmax=4, annot=True, fmt=".1f", cmap="viridis", cbar_kws={"label": "mean label"}, ax=axis)
axis.set(xlabel="", ylabel="", title="Each kind lowers its own dimensions")
axis.set_xticklabels([name.replace("_", " ") for name in names], rotation=35, ha="right", fontsize=6.5)
report.save_figure(run, figure, "group_rubrics", labels.reset_index(), [files], n=f"{len(candidates)} traces")

# %%
def beyond(kind):
    """Dimensions whose mean the kind lowers by more than half a label, though its definition does not name them."""
    lowered = labels.loc["reference"] - labels.loc[kind]
    return [name for name in names if lowered[name] > 0.5 and name not in kinds_of(example.domain)[kind].hurts]


extra = {kind: beyond(kind) for kind in order[1:] if beyond(kind)}
display(Markdown("Lowered as the definitions say, and " + (
    "beyond them: " + "; ".join(f"*{kind.replace('_', ' ')}* often lowers {in_words(more)} too" for kind, more in extra.items())
    + ". A damaged line carries facts that are lost with it." if extra else "nowhere beyond them.")))

# %% [markdown]
# ## What we saw

# %%
per_group = np.array([len(g.negative_bank) for g in groups["train"]])
hardest = labels.loc[order[1:]].mean(axis=1).idxmax()
keepers = [kind for kind in order[1:] if kinds_of(example.domain)[kind].keeps_answer]
display(Markdown(f"""
- A group holds one reference and {per_group.min()} to {per_group.max()} flawed traces (mean {per_group.mean():.1f}); a flaw is
  local, and the trace stays plausible.
- The rubric profile differs by kind. That is what the reward model of notebook 02 has to learn from text alone. Mildest by its
  labels: *{hardest.replace('_', ' ')}*.
- After {in_words(keepers)} the answer is still right. Whether a reward on success can see them depends on the executor: if it needs
  the missing part, it fails. Notebook 03 measures that for each kind.
- Two guards make the data honest: no test problem among the seeds, no group on both sides of a split."""))

# %% [markdown]
# ## Exercises
#
# 1. *An eighth kind.* Repeat one line of the reference trace. Does it pass the checks? What does the rubric say? Is it a
#    flaw that a group should hold? Start from the cell below.
# 2. *A saturated judge.* A judge gives total 1 with probability 0.955 and otherwise a value drawn evenly from [0, 1),
#    whatever the trace. What pair accuracy do you expect if ties count as wrong, and if they count half?
# 3. *A split inside groups.* Suppose a tenth of all *traces* is drawn for dev, instead of a tenth of the groups. What share
#    of dev traces then has a trace of the same problem in train?

# %% tags=["exercise"]
def eighth_kind(trace):
    """The trace with one of its lines said twice."""
    return trace  # your turn


yours = eighth_kind(reference)
if yours != reference:  # checked as soon as you have changed it
    assert set(yours.splitlines()) == set(lines) and len(yours.splitlines()) == len(lines) + 1
    print(reject_reason(problem, reference, yours, example.negative_bank[0].negative_kind) or "passes the checks")

# %% [markdown]
# Solutions carry the tag `solution` and are folded.

# %% [markdown] tags=["solution"]
# <details><summary><b>Solutions</b></summary>
#
# **1.** A repeated line is one stretch, on topic and within the length bounds. In math the checks still reject it: the
# trace ends on the right answer ("keeps the answer"), and only a kind that is meant to keep the answer may do that. In
# code it can pass. The ground truth takes off much less than for a real flaw, as nothing wrong is derived from the
# repetition. If mainly style suffers, such traces teach the reward model to dislike length, which is another lesson than
# soundness.
#
# **2.** A win needs the reference at 1 and the flawed trace below ($0.955 \cdot 0.045$), or both below and the reference
# higher ($0.045^2 / 2$): 0.044 in all. Ties have probability $0.955^2 = 0.912$. Counted as half, they lift the accuracy to
# exactly one half: chance. The two conventions tell a judge that says nothing (0.044) from a coin (0.5); look which one
# a paper uses.
#
# **3.** A trace of a group with $m$ others has none of them in train with probability $0.1^m$: below one in ten thousand
# from $m = 4$ on. So practically every dev trace has a sibling in train, and ranking on dev tests memory.
#
# </details>

# %% tags=["solution"] jupyter={"source_hidden": true}
repeated = "\n".join([lines[0], *lines])
print("exercise 1:", reject_reason(problem, reference, repeated, first.negative_kind) or "passes the checks")
if exact_truth:
    print("exercise 1:", judge_by_truth(problem, repeated).rubric.flat())

# %% tags=["solution"] jupyter={"source_hidden": true}
rng = np.random.default_rng(0)
best, other = (np.where(rng.random(10**6) < 0.955, 1.0, rng.random(10**6)) for _ in range(2))
wins, ties = (best > other).mean(), (best == other).mean()
assert abs(wins - (0.955 * 0.045 + 0.045**2 / 2)) < 0.001
print(f"exercise 2: ties wrong {wins:.3f}, ties half {wins + ties / 2:.3f}")
others = np.array([len(g.negative_bank) for g in groups["train"] for _ in range(1 + len(g.negative_bank))])
print(f"exercise 3: {np.mean(1 - 0.1**others):.5f} of dev traces would have a sibling in train")

# %% [markdown]
# The command that builds groups from GSM8K or MBPP, its report, the data card and the validator of group files are in
# [docs/groups.md](../docs/groups.md).
#
# **Next:** [02_train_reward_model](02_train_reward_model.ipynb).

# %%
display(Markdown(f"- {files.cost()}"))
