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
# trace by hand, and say why neither factor of the bonus would be enough alone.
#
# **Time:** with the default preset `tiny`, about four minutes on two CPU cores the first time (two small language models
# are trained on the way), seconds after that.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %% [markdown]
# A **preset** is a file in `presets/` that decides every size: which models, how many problems, how many steps. The
# code is the same for all of them. `SEED = None` takes the preset's own seed.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from tracelift_lib.groups.group_maker import perturb
from tracelift_lib.groups.truth import is_faithful, true_rubric
from tracelift_lib.planner.rewards import ARMS, uplift
from tracelift_lib.problems.prompts import as_chat, executor_prompt, extract_trace, planner_prompt
from tracelift_lib.problems.tinyworld import read_calculations, true_steps
from tracelift_lib.runs import report, store
from tracelift_lib.runs.pipeline import Run

report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
print("machine:", store.hardware())
print("preset: ", run.preset.name, "-", run.preset.description)

# %% [markdown]
# ## The problem $x$
#
# The tiny world has two kinds of problems: short arithmetic stories (domain math, preset `tiny`) and small programs to
# write (domain code, preset `tiny_code`). We generate them, so we know every true step, which no public benchmark
# offers. `run.make` builds a stage, or finds it if it has been built before; results live in `runs/`.

# %%
run.make("problems")
problem = run.problems("dev")[1]
print(problem.problem, "\n")
print(problem.reference_solution)
print("\nright answer:", problem.answer, sep="\n")

# %% [markdown]
# ## Planner and executor
#
# At this size we train both models ourselves, in a few minutes, so that everything runs offline. The **executor** is a
# Qwen2 model with under a million weights that has learned to solve a problem, with the reference trace in front of it
# or without one. It is frozen from here on. The **planner** starts from the same weights and was fine-tuned on traces
# with mixed habits: some complete, some with a step skipped, some wrong, some with no reasoning at all. It can reason well,
# but often does not, which is what reinforcement learning needs.

# %%
executor_files = run.make("executor")
planner_files = run.make("planner")
print(executor_files.cost())
print(planner_files.cost())

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
    print(trace, "\n---")

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
# $s$ is the verdict of one further run with the trace. The quality $q$ comes from a learned reward model, which
# notebook 02 trains; until then the ground truth stands in for it (this world knows which steps are right). The paper's
# reward is $r = 0.5\,s + 0.5\,q\,\hat u$.
#
# Below are four kinds of trace for our problem: the reference, one that goes about it in a wrong way, one that skips a
# calculation but uses its result, and what the planner wrote.

# %%
import random

wrong = {"math": "wrong_operation", "code": "wrong_algorithm_choice"}[problem.domain]
traces = {
    "reference": problem.reference_solution,
    wrong.replace("_", " "): perturb(problem, wrong, random.Random(0)),
    "skipped step": perturb(problem, "unsupported_leap", random.Random(0)),
    **{f"planner {i}": extract_trace(text) for i, text in enumerate(dict.fromkeys(completions), start=1)},
}
traces = {name: trace for name, trace in traces.items() if trace}
verdicts = executor.verdicts([problem] * len(traces), list(traces.values()), n=1 + k, seed=3)
baseline = executor.verdicts([problem], [None], n=8, seed=4)[0].tolist()

# %%
rows = []
for (name, trace), v in zip(traces.items(), verdicts):
    s, u = float(v[0]), uplift(v[1:].tolist(), baseline)
    q = true_rubric(problem, trace).total
    rows.append({"trace": name, "faithful": is_faithful(problem, trace), "s": s, "q": q, "û": round(u, 2),
                 **{arm: round(ARMS[arm](s, q, u, q), 2) for arm in ("exec_only", "tracelift", "no_uplift")}})
rewards = pd.DataFrame(rows)
display(rewards.style.hide(axis="index").format(precision=2))

# %% [markdown]
# Read the columns from the right:
#
# - **exec_only** pays $s$ alone. The skipped step costs nothing if the answer is still right.
# - **tracelift** pays the complete trace more than the one with a hole, although the executor succeeds with both.
# - **no_uplift** ($0.5\,s + 0.5\,q$) pays for good looks even where the trace does not help.
#
# ## How often does the planner reason faithfully before training?
#
# A trace is *faithful* if it makes exactly the true calculations: all of them, in order, none wrong, none invented (and in
# code, if it then states the true plan). We draw traces for the development problems and sort them by what is wrong with them.

# %%
def habit(problem, trace):
    """Which habit a sampled trace shows."""
    if trace is None:
        return "no trace"
    given, truth = read_calculations(trace), true_steps(problem)
    if not given:
        return "no reasoning"
    if is_faithful(problem, trace):
        return "faithful"
    return "step missing" if len(given) < len(truth) else "wrong step"


problems = run.problems("dev")
prompts = [as_chat(planner_prompt(p, executor.style), planner.tokenizer) for p in problems]
sampled = planner.sample(prompts, n=2, seed=run.preset.seed, progress="planner")
habits = pd.DataFrame(
    {"habit": habit(p, extract_trace(text))} for p, texts in zip(problems, sampled) for text in texts
)

# %%
shares = habits["habit"].value_counts(normalize=True).rename("share").reset_index()
figure, axis = plt.subplots()
sns.barplot(shares, y="habit", x="share", color="C0", ax=axis)
axis.set(xlabel="share of sampled traces", ylabel="", xlim=(0, 1), title="The warm-started planner's habits")
report.save_figure(run, figure, "planner_habits", shares, [planner_files],
                   n=f"{len(habits)} traces of {len(problems)} dev problems")

# %% [markdown]
# ## What we saw
#
# - A trace is judged by two questions at once: does it read like sound reasoning ($q$), and does it help the executor
#   ($\hat u$)? The product pays only if both hold.
# - Reward on success alone cannot tell a complete trace from one with a hole, as long as the answer comes out right.
# - The planner already knows how to reason faithfully, but does so only part of the time. Notebooks 05 and 07 train it
#   and measure what each reward changes.
#
# **Try it yourself.** Choose another problem (`run.problems("dev")[5]`), write a trace by hand, and predict its three
# rewards before you compute them. Can you write a trace with $q = 1$ and $\hat u \le 0$?
#
# **Next:** [01_build_groups](01_build_groups.ipynb) builds the data set from which the reward model learns $q$.

# %%
display(Markdown("\n".join(f"- {a.cost()}" for a in (executor_files, planner_files))))
