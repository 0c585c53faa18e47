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
# # 00 · Start here: one problem, end to end
#
# A language model can reach a right answer by bad reasoning, and it can write reasoning that looks fine and helps
# nobody. The paper this companion follows, *Correct Is Not Enough: Training Reasoning Planners with
# Executor-Grounded Rewards* (TraceLift, [arXiv 2605.03862](https://arxiv.org/abs/2605.03862)), rewards reasoning for
# what it does: a **planner** writes a reasoning trace, a **frozen executor** turns problem and trace into an answer,
# and a **verifier** checks the answer. A trace earns a bonus of
#
# $$\underbrace{q(x, z)}_{\text{how good it reads}} \times
#   \underbrace{\hat u(x, z)}_{\text{how much more often the executor succeeds with it}} .$$
#
# **After this notebook you can** name the four parts (planner, executor, verifier, reward), compute the reward of a
# trace by hand, say why neither factor of the bonus would be enough alone, and recognise a right answer that was reached
# for the wrong reason.
#
# **You need** Python, and an idea of what a language model does. **Time:** with the default preset `tiny` a minute or two on two
# CPU cores.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %% [markdown]
# A **preset** is a file in `presets/` that decides every size: which models, how many problems, how many steps. The
# code is the same for all of them. `SEED = None` takes the preset's own seed.

# %%
import random

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Image, Markdown, display

from tracelift_lib.groups.habits import FULL, habit_of, write_habit
from tracelift_lib.groups.truth import is_faithful, true_rubric
from tracelift_lib.planner.rewards import ARMS, uplift
from tracelift_lib.problems.files import PROJECT
from tracelift_lib.problems.prompts import as_chat, executor_prompt, extract_trace, planner_prompt
from tracelift_lib.runs import report, store
from tracelift_lib.runs.pipeline import Run

report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
print("machine:", store.hardware())
print("preset: ", run.preset.name, "-", run.preset.description)

# %% [markdown]
# Where this course is heading: how often the executor succeeds with a planner's traces, and how often these traces are
# faithful, before training and after it with two rewards. You need not understand it yet; notebook 07 makes it.

# %%
headline = PROJECT / "paper_figures" / "tiny" / "headline.png"
if headline.exists():
    display(Image(str(headline), width=560))
else:
    print("not made yet: notebook 07 of preset tiny makes it")

# %% [markdown]
# ## The method in one picture
#
# Follow the trace $z$. It takes two ways: to the executor, which has to work with it, and to the reward model, which
# only reads it. The reward brings both together. What learns is the planner alone; executor and reward model are frozen
# while it does.

# %%
BOXES = {"problem x": (0, 1), "planner": (1, 2), "trace z": (2, 2), "reward model": (3, 3), "executor\nwith z": (3, 2),
         "executor\nwithout z": (3, 1), "verifier": (4, 1.5), "s, û": (5, 1.5), "q": (5, 3), "reward\n½ s + ½ q û": (6, 2.25)}
ARROWS = pd.DataFrame([
    ("problem x", "planner"), ("planner", "trace z"), ("trace z", "reward model"), ("trace z", "executor\nwith z"),
    ("problem x", "executor\nwithout z"), ("executor\nwith z", "verifier"), ("executor\nwithout z", "verifier"),
    ("reward model", "q"), ("verifier", "s, û"), ("q", "reward\n½ s + ½ q û"), ("s, û", "reward\n½ s + ½ q û"),
], columns=["from", "to"])
COLORS = {"planner": report.PALETTE["tracelift"], "executor": report.PALETTE["exec_only"], "reward model": "#009e73"}

# %%
figure, axis = plt.subplots(figsize=(7, 2.3))
boxes = {}
for name, (x, y) in BOXES.items():
    color = next((c for part, c in COLORS.items() if name.startswith(part)), "0.35")
    text = axis.text(x, y, name, ha="center", va="center", fontsize=8, color=color,
                     bbox={"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": color})
    boxes[name] = text.get_bbox_patch()


def arrow(start, end, **style):
    """From box to box; it begins and ends at their edges."""
    axis.annotate("", BOXES[end], BOXES[start], arrowprops={
        "arrowstyle": "->", "color": "0.5", "patchA": boxes[start], "patchB": boxes[end], "shrinkA": 2, "shrinkB": 2, **style})


for start, end in ARROWS.itertuples(index=False):
    arrow(start, end)
arrow("reward\n½ s + ½ q û", "planner", color=COLORS["planner"], connectionstyle="arc3,rad=0.4")
axis.text(3.5, 4.1, "GRPO trains the planner", fontsize=8, ha="center", color=COLORS["planner"])
axis.set(xlim=(-0.5, 6.6), ylim=(0.5, 4.4))
axis.axis("off")
report.save_figure(run, figure, "method", ARROWS, [], n="a diagram")

# %% [markdown]
# ## The problem $x$
#
# The tiny world has two kinds of problems: short arithmetic stories (domain math, preset `tiny`) and small programs to
# write (domain code, preset `tiny_code`). We generate them, so we know every true step, which no public benchmark
# offers. `run.make` builds a stage, or finds it if it has been built before; results live in `runs/`. The problem comes
# from the split `rl`, on which planners will be trained: the first one to which all habits of the next section apply.

# %%
run.make("problems")
problems = run.problems("rl")[:200]
taught = run.preset.planner.habits  # habit -> share of the planner's first lessons


def told_by_habits(problem):
    """The problem's trace as each habit writes it."""
    return {habit: write_habit(problem, habit, random.Random(0)) for habit in taught}


problem = next((p for p in problems if len(set(told_by_habits(p).values())) == len(taught)), problems[0])
print(problem.problem, "\n")
print(problem.reference_solution)
print("\nright answer:", problem.answer, sep="\n")

# %% [markdown]
# ## Planner and executor
#
# Why two models? A model that reads its own reasoning can ignore it and still be right; then the reasoning proves nothing. So one
# model writes the trace, another one has to work with it, and success is a test of the *trace*. Why is the second one
# frozen? If it learned too, it could learn to read bad traces, and what is measured would move with the planner. And with
# a frozen reader, running with and without the trace is a controlled experiment (notebook 03).
#
# Both models are so small that the pipeline trains them itself, offline, in some minutes. For the presets `tiny` and
# `tiny_code` they have been trained already and lie in `base_models/` (2.6 MB each); with `BASE=trained` in the environment
# they are trained here. The **executor** is a
# Qwen2 model with under a million weights that has learned to solve a problem, with the reference trace in front of it
# or without one. The **planner** starts from the same weights and was fine-tuned on traces with mixed *habits*. It can reason
# well, but often does not, which is what reinforcement learning needs.

# %%
executor_files = run.make("executor")
planner_files = run.make("planner")
print(executor_files.cost())
print(planner_files.cost())
by_habit = told_by_habits(problem)
lessons = pd.DataFrame({"habit": h, "share of lessons": taught[h], "our problem, as this habit tells it": by_habit[h]} for h in taught)
display(lessons.style.hide(axis="index").format(precision=2)
        .set_properties(**{"white-space": "pre-wrap", "text-align": "left"}))

# %% [markdown]
# This is all that the two models get to read. The planner's prompt holds the problem; the executor's prompt holds the
# problem and, in one of its two forms, the trace.

# %%
planner, executor = run.planner(), run.executor()
print(as_chat(planner_prompt(problem, executor.style), planner.tokenizer))
print("-" * 60)
print(as_chat(executor_prompt(problem, "(the trace)", executor.style), planner.tokenizer))

# %% [markdown]
# ## The planner writes a trace $z$
#
# We draw six and show the different ones. The trace is what stands between the tags; a completion without a well-formed
# pair of tags has none.

# %%
prompt = as_chat(planner_prompt(problem, executor.style), planner.tokenizer)
completions = planner.sample([prompt], n=6, seed=run.preset.seed)[0]
for trace in dict.fromkeys(extract_trace(completion) for completion in completions):
    print(trace or "(no well-formed trace)", "\n---")

# %% [markdown]
# ## The executor tries, the verifier judges
#
# The executor answers $K$ times with the trace and $K$ times without. The verifier $V(x, y)$ judges each text. In math it
# takes the one final answer out of it and compares that with the truth; in code it runs the program on hidden test cases,
# in a sandbox, because what a model writes is not to be trusted (notebook 03). 1 if right, else 0.

# %%
k = run.preset.execution.k
trace = problem.reference_solution
with_trace = executor.answer([problem], [trace], n=k, seed=1)[0]
without_trace = executor.answer([problem], [None], n=k, seed=2)[0]
answers = pd.DataFrame(
    {"asked": name, "answer": text, "verdict": executor.verdict(problem, text)}
    for name, texts in (("with the reference trace", with_trace), ("without a trace", without_trace)) for text in texts
)
display(answers.style.hide(axis="index").set_properties(**{"white-space": "pre-wrap", "text-align": "left"}))

# %% [markdown]
# The **uplift** is the difference of the two success rates, between −1 (the trace does harm) and 1:
#
# $$\hat u(x, z) = \frac1K \sum_{i=1}^{K} V(x, y_i^{z}) - \frac1K \sum_{i=1}^{K} V(x, y_i^{\varnothing}).$$

# %%
a = [executor.verdict(problem, text) for text in with_trace]
b = [executor.verdict(problem, text) for text in without_trace]
u_hat = sum(a) / k - sum(b) / k
assert u_hat == uplift(a, b)  # the library computes the same
print(f"uplift of the reference trace: {u_hat:+.2f}")

# %% [markdown]
# ## The reward
#
# $s$ is the verdict of one further run with the trace. The uplift again takes $K$ runs with the trace, but more runs without:
# those do not depend on the trace, so they are drawn once a problem and shared by all its traces (`baseline_samples`);
# the more of them, the less noise, at no further cost.
#
# The quality $q$ comes from a learned reward model, which
# notebook 02 trains; until then the ground truth stands in for it (this world knows which steps are right). The paper's
# reward is $r = 0.5\,s + 0.5\,q\,\hat u$.
#
# Below are several traces for our problem: one of each habit, and what the planner wrote.

# %%
samples = run.preset.execution.baseline_samples
traces = {**by_habit, **{f"planner {i}": extract_trace(text) for i, text in enumerate(dict.fromkeys(completions), start=1)}}
traces = {name: trace for name, trace in traces.items() if trace}
verdicts = executor.verdicts([problem] * len(traces), list(traces.values()), n=1 + k, seed=3)
baseline = executor.verdicts([problem], [None], n=samples, seed=4)[0].tolist()
print(f"K = {k} runs with each trace, and one more for s; {samples} runs without a trace, shared by all")

# %%
PAID = ("exec_only", "tracelift", "no_uplift")


def rewards_of(problem, trace, verdicts, baseline):
    """The reward's parts for one trace and what three arms pay: verdicts[0] is s, the others are the K runs."""
    s, u, q = float(verdicts[0]), uplift(list(map(float, verdicts[1:])), baseline), true_rubric(problem, trace).total
    paid = {arm: ARMS[arm](s, q, u, q) for arm in PAID}
    return {"faithful": is_faithful(problem, trace), "s": s, "q": q, "û": u, **paid}


rewards = pd.DataFrame(
    {"trace": name, **rewards_of(problem, trace, v, baseline)} for (name, trace), v in zip(traces.items(), verdicts))
display(rewards.style.hide(axis="index").format(precision=2))

# %% [markdown]
# Read the columns from the right:
#
# - **exec_only** pays $s$ alone: the same for every trace with which the executor happens to be right.
# - **tracelift** pays more for a trace that is right *and* reads right.
# - **no_uplift** ($0.5\,s + 0.5\,q$) pays for good looks even where the trace does not help.

# %%
blind = rewards[~rewards["faithful"] & (rewards["s"] == 1)]
full_pay = rewards.loc[rewards["faithful"], "tracelift"].mean()
if len(blind) and rewards["faithful"].any():
    print(f"{len(blind)} of these traces are unfaithful and the executor was right: exec_only pays each 1.00, tracelift "
          f"{blind['tracelift'].min():.2f} to {blind['tracelift'].max():.2f} (a faithful one: {full_pay:.2f} on average)")
else:
    print("in this draw no unfaithful trace succeeded, or none was faithful")

# %% [markdown]
# ## How often does the planner reason faithfully before training?
#
# A trace is *faithful* if it makes exactly the true calculations for the true reasons: all of them, in order, none wrong,
# none invented (and in code, if it then states the true plan). We draw traces for training problems and sort them by
# the habit that they show. `full` is the faithful one; beside the habits that were taught there are `slip` (a
# calculation went wrong) and `other`.

# %%
prompts = [as_chat(planner_prompt(p, executor.style), planner.tokenizer) for p in problems]
sampled = planner.sample(prompts, n=2, seed=run.preset.seed, progress="planner")
drawn = [(p, extract_trace(text)) for p, texts in zip(problems, sampled) for text in texts]
habits = pd.DataFrame({"habit": habit_of(p, trace)} for p, trace in drawn)

# %%
shares = habits["habit"].value_counts(normalize=True).rename("share").reset_index()
figure, axis = plt.subplots()
sns.barplot(shares, y="habit", x="share", color="C0", ax=axis)
axis.set(xlabel="share of sampled traces", ylabel="", xlim=(0, 1), title="The warm-started planner's habits")
axis.set_yticks(axis.get_yticks(), [text.get_text().replace("_", " ") for text in axis.get_yticklabels()])
report.save_figure(run, figure, "planner_habits", shares, [planner_files],
                   n=f"{len(habits)} traces of {len(problems)} rl problems")

# %% [markdown]
# ## The first right answer for the wrong reason
#
# Go through these traces in the order in which they were drawn, and stop at the first that is not faithful although the
# executor succeeds with it. This is what the paper is about.

# %%
suspects = [(p, trace) for p, trace in drawn if trace and not is_faithful(p, trace)]
runs = executor.verdicts([p for p, _ in suspects], [z for _, z in suspects], n=1 + k, seed=5) if suspects else []
lucky = [(p, z, v) for (p, z), v in zip(suspects, runs) if v[0] == 1]
print(f"{len(suspects)} of {len(drawn)} traces are unfaithful; with {len(lucky)} of these the executor is right")
if lucky:
    wrong_problem, wrong_trace, verdicts = lucky[0]
    without = executor.verdicts([wrong_problem], [None], n=samples, seed=6)[0].tolist()
    pairs = {"reference": (wrong_problem.reference_solution, executor.verdicts(
        [wrong_problem], [wrong_problem.reference_solution], n=1 + k, seed=7)[0]), "planner": (wrong_trace, verdicts)}
    found = pd.DataFrame({"who": who, "text": z, **rewards_of(wrong_problem, z, v, without)} for who, (z, v) in pairs.items())
    print(f"\n{wrong_problem.problem}\nright answer:\n{wrong_problem.answer}")
    display(found.style.hide(axis="index").format(precision=2).set_properties(**{"white-space": "pre-wrap", "text-align": "left"}))

# %%
if lucky:
    ours, theirs = found.iloc[1], found.iloc[0]
    same = "exactly as much as" if ours["exec_only"] == theirs["exec_only"] else f"where it pays {theirs['exec_only']:.2f} for"
    gap = theirs["tracelift"] - ours["tracelift"]
    display(Markdown(
        f"**The answer is right, the trace is not** (habit *{habit_of(wrong_problem, wrong_trace).replace('_', ' ')}*, "
        f"q = {ours['q']:.2f}). `exec_only` pays it {ours['exec_only']:.2f}, {same} the reference. `tracelift` pays it "
        f"{ours['tracelift']:.2f}, {abs(gap):.2f} {'less' if gap > 0 else 'more'} than the reference "
        f"({theirs['tracelift']:.2f})."))

# %% [markdown]
# ## What we saw

# %%
faithful = (habits["habit"] == FULL).mean()
display(Markdown(
    f"- Of the warm-started planner's traces {faithful:.0%} are faithful"
    + (": it can reason, but does so only part of the time" if 0.05 < faithful < 0.95 else "")
    + ". Notebooks 05 and 07 train it and measure what each reward changes.\n"
    f"- With {len(lucky)} of {len(suspects)} unfaithful traces the executor is right all the same"
    + (". A reward on success alone cannot tell those from faithful ones." if lucky else ".")))

# %% [markdown]
# - A trace is judged by two questions at once: does it read like sound reasoning ($q$), and does it help the executor
#   ($\hat u$)? The product pays only if both hold.
#
# **Try it yourself.** Choose another problem (`run.problems("dev")[5]`), write a trace by hand, and predict its three
# rewards before you compute them. Can you write a trace with $q = 1$ and $\hat u \le 0$?
#
# **Next:** [01_build_groups](01_build_groups.ipynb) builds the data set from which the reward model learns $q$.

# %%
display(Markdown("\n".join(f"- {a.cost()}" for a in (executor_files, planner_files))))
