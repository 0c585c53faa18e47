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
# # 10 · Case studies: looking at single traces
#
# Tables say how often something happens. To see *what* happens, one has to read traces. But whoever picks traces by hand
# finds what they looked for. So here a **rule** picks them, written down before anybody has read one.
#
# **After this notebook you can** choose cases by a rule and say what such cases can show and what they cannot, read one group of
# completions under two rewards, tell from a trace why the reward model and the executor disagree, and explain a failing program by
# the line of its plan that is wrong or missing.
#
# **You need** the reward (notebook 00), the advantage $A$ (04) and trained planners (05). **Time:** about a minute.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from IPython.display import Markdown, display

from tracelift_lib.planner.rewards import ARMS
from tracelift_lib.problems.files import PROJECT
from tracelift_lib.problems.problem import Problem
from tracelift_lib.runs import cases as cs
from tracelift_lib.runs import report, viewer
from tracelift_lib.runs.pipeline import Run

# %%
report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
seed = run.preset.planner_training.seeds[0]
arms = [arm for arm in ("tracelift", "exec_only") if arm in run.preset.planner_training.arms]
trained = {arm: run.need("planner_training", arm=arm, seed=seed) for arm in arms}
problems = {p.problem_id: p for p in run.problems(run.preset.planner_training.split)}
executor = run.executor()
scorer = run.reward_model() if run.has("reward_model") else None
k = run.preset.execution.k
if not run.preset.is_result:
    display(Markdown("**This preset only checks that everything runs. What its traces look like is not a result.**"))

# %% [markdown]
# ## From a training run to a case
#
# While a planner trains, every completion is written to `rollouts.parquet` with the parts of its reward. A **group** is the $G$
# completions for one problem in one step: the reward compares only within it. A rule gives every group a number; the groups
# with the largest numbers are the cases. What the log does not keep (the executor's texts, the reward model's five labels) is
# drawn again from the same frozen models.

# %%
def boxes(texts, arrows, width, height):
    """A diagram: name -> (x, y, text); arrows between names."""
    figure, axis = plt.subplots(figsize=(width, height))
    axis.set(xlim=(0, 10), ylim=(0, 4.2))
    axis.axis("off")
    drawn = {name: axis.text(x, y, text, ha="center", va="center", fontsize=7, bbox={
        "boxstyle": "round,pad=0.5", "facecolor": "#eef2f7", "edgecolor": "#556"}) for name, (x, y, text) in texts.items()}
    for start, end in arrows:
        axis.annotate("", texts[end][:2], texts[start][:2], arrowprops={
            "arrowstyle": "->", "color": "#556", "patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()})
    return figure


boxes({"log": (1.2, 2.1, "rollouts.parquet\ntrace, s, q, û, reward"), "group": (3.7, 2.1, "group\nG completions,\none problem"),
       "rule": (6.1, 3.4, "rule\na number a group"), "models": (6.1, 0.8, "frozen executor,\nreward model"),
       "case": (8.8, 2.1, "case\nproblem, traces,\nwhat both arms pay")},
      [("log", "group"), ("group", "rule"), ("rule", "case"), ("models", "case"), ("group", "case")], 2 * report.COLUMN_WIDTH, 2.3)
plt.show()

# %% [markdown]
# ## One completion, one group
#
# One row of the log, a completion of the first step:

# %%
rollouts = cs.read_rollouts([files.path / "rollouts.parquet" for files in trained.values()])
one = rollouts.iloc[0]
print(f"{len(rollouts):,} completions of {len(arms)} runs (seed {seed})\n")
print(one["trace"] if isinstance(one["trace"], str) else f"(no well-formed trace) {one['malformed']}")
print(f"\narm {one['arm']}: s = {one['s']:.2f}, q = {one['q']:.2f}, û = {one['u']:+.2f}, reward = {one['reward']:.2f}")

# %% [markdown]
# The parts are enough to say what *another* arm would have paid for the same completion: `exec_only` pays $s$. (The other way
# round does not work: a run of `exec_only` never asks the reward model.) Within a group the rewards become advantages,
#
# $$A_j = \frac{r_j - \operatorname{mean}(r)}{\operatorname{std}(r) + 10^{-4}},$$
#
# computed here by hand for the group of that row and compared with the library's.

# %%
group = rollouts[(rollouts[cs.GROUP] == one[cs.GROUP]).all(axis=1)]
r = group[f"r_{one['arm']}"]
by_hand = (r - r.mean()) / (r.std(ddof=1) + 1e-4)
assert np.allclose(by_hand, group[f"A_{one['arm']}"], equal_nan=True)
display(group[[c for c in ("s", "q", "u", "r_exec_only", "A_exec_only", "r_tracelift", "A_tracelift") if c in group]].round(2))

# %% [markdown]
# ## Three rules
#
# - **advantages**: where do `exec_only` and `tracelift` treat the same completions most differently? The mean over the group of
#   $|A^{\text{exec}} - A^{\text{tracelift}}|$.
# - **disagreement**: where is the reward model most at odds with the executor? The largest $|q - \hat p_z|$ of a trace, with
#   $\hat p_z$ the success rate of the $K$ runs with the trace.
# - **failures**: where did most completions fail (no trace, no reward, or the executor wrong)?
#
# Of equal values the earliest step wins, and a problem is taken once.

# %%
values = {rule: make(rollouts).dropna() for rule, (_, make) in cs.RULES.items()}
chosen = {rule: cs.choose(rollouts, rule, 1) for rule in cs.RULES}
rules = pd.DataFrame([{
    "rule": rule, "groups with a value": len(v), "median": v.median(), "largest": v.max(),
    "share at half the largest or above": (v >= v.max() / 2).mean() if len(v) and v.max() > 0 else np.nan,
} for rule, v in values.items()])
sources = list(trained.values())
report.save_table(run, rules, "case_rules", sources, f"{len(rollouts)} completions", [seed])
display(rules.style.hide(axis="index").format(precision=2, na_rep="–"))

# %% [markdown]
# A case that a rule picks is an extreme, not a sample. How extreme, the distribution shows; the line is the case.

# %%
figure, axes = plt.subplots(1, 3, figsize=(2 * report.COLUMN_WIDTH, 2.2))
plotted = []
for axis, (rule, v) in zip(axes, values.items()):
    counts, edges = np.histogram(v, bins=20, range=(0, max(1.0, v.max() if len(v) else 1.0)))
    axis.bar(edges[:-1], counts, np.diff(edges), align="edge", color="C0", lw=0)
    if len(v):
        axis.axvline(v.max(), color="C3", lw=1.2)
    axis.set(title=rule, xlabel="value of the rule", ylabel="groups" if axis is axes[0] else "", yscale="symlog")
    plotted.append(pd.DataFrame({"rule": rule, "from": edges[:-1], "to": edges[1:], "groups": counts}))
plotted = pd.concat(plotted)
report.save_figure(run, figure, "case_rule_values", plotted, sources, f"{plotted['groups'].sum()} values of groups", [seed])

# %%
for row in rules.itertuples():
    if row[2]:
        print(f"{row.rule}: the case has {row.largest:.2f}, the median group {row.median:.2f}; {row[5]:.0%} of the groups reach half of it"
              if row.largest > 0 else f"{row.rule}: zero in every group, so there is no case")

# %% [markdown]
# ## Case 1: two rewards, one group
#
# In the viewer a line of a trace is ✓ right, ✗ wrong, or + missing (a line of the reference that is not there). Under it: what
# each arm pays and the advantage that follows, the parts, the reward model's labels, and, to unfold, what the executor wrote with
# this trace. Where the other arm met the same problem in the same step, its group stands beside it.

# %%
def study(rule):
    """The case of a rule: drawn, then printed for places that show no HTML; None if the rule finds none."""
    cases = cs.cases_of(rollouts, chosen[rule], problems, f"rule {rule}, {cs.RULES[rule][0]}")
    if not cases:
        display(Markdown(f"*The rule `{rule}` finds no group in this run: its value is zero or unknown everywhere.*"))
        return None
    cs.replay(cases, executor, scorer, k, run.preset.seed)
    display(viewer.show(cases))
    print(cases[0])
    return cases[0]


case = study("advantages")

# %%
way = {1: "pushes it up", 0: "leaves it alone", -1: "pushes it down"}
split = None
if case:
    traces = next(iter(case.columns.values()))
    apart = {id(t): t.paid["tracelift"][1] - t.paid["exec_only"][1] for t in traces}
    split = max(traces, key=lambda t: (round(abs(np.nan_to_num(apart[id(t)])), 2), apart[id(t)] < 0))  # of equals one that loses
    does = {arm: way[int(np.sign(round(split.paid[arm][1], 2)))] for arm in cs.COMPARED}
    display(Markdown(
        f"**The trace on which the arms differ most** ({split.label or 'habit unknown'}): `exec_only` {does['exec_only']} "
        f"({split.paid['exec_only'][1]:+.2f}), `tracelift` {does['tracelift']} ({split.paid['tracelift'][1]:+.2f}). With it the executor was right "
        f"{sum(x.success for x in split.samples)} of {len(split.samples)} times, and {sum(x.success for x in case.without)} of {len(case.without)} without; "
        f"the RM gives q = {split.parts.get('q', np.nan):.2f}."))

# %% [markdown]
# ## Case 2: the reward model against the executor
#
# Two things can be behind a disagreement: the trace helps although it reads badly ($\hat p_z$ high, $q$ low: a lucky
# shortcut), or it reads well and leads astray ($q$ high, $\hat p_z$ low: the reward model was fooled, or the executor could not follow).

# %%
case = study("disagreement")

# %%
odd = None
if case:
    traces = [t for t in next(iter(case.columns.values())) if {"q", "u", "baseline_success"} <= set(t.parts)]
    gap = {id(t): t.parts["q"] - t.parts["u"] - t.parts["baseline_success"] for t in traces}
    odd = max(traces, key=lambda t: abs(gap[id(t)]))
    right = sum(step.mark == "right" for step in odd.steps)
    known = any(step.mark for step in odd.steps)
    kind = "reads well and leads astray" if gap[id(odd)] > 0 else "helps although the reward model thinks little of it"
    display(Markdown(f"**This trace {kind}**: q = {odd.parts['q']:.2f}, success with it {odd.parts['q'] - gap[id(odd)]:.2f}. " + (
        f"Of its lines {right} are right, {sum(s.mark == 'wrong' for s in odd.steps)} wrong, "
        f"{sum(s.mark == 'missing' for s in odd.steps)} missing: here the {'reward model' if (gap[id(odd)] > 0) == (right == len(odd.steps)) else 'executor'} "
        "is closer to the truth about the trace." if known else "Its true steps are not known.")))

# %% [markdown]
# ## Case 3: failures
#
# A group in which most completions fail teaches little: there is hardly a better one to prefer.

# %%
case = study("failures")

# %%
if case:
    traces = next(iter(case.columns.values()))
    unformed = sum(t.times for t in traces if t.note == "no well-formed trace")
    own = [*case.columns][0]
    largest = max((abs(t.paid[own][1]) for t in traces if own in t.paid and np.isfinite(t.paid[own][1])), default=0.0)
    display(Markdown(f"**{unformed} of {sum(t.times for t in traces)} completions have no trace**; the executor without a trace is right "
                     f"{sum(x.success for x in case.without)} of {len(case.without)} times; the largest advantage is {largest:.2f}"
                     + (", so this group moves nothing." if largest < 0.01 else ".")))

# %% [markdown]
# ## Three themes of programs
#
# The paper's case studies (its section 9) are about programs: regex anchoring, type guards, entity tracking. Its own cases
# are not available to us. So here are three small problems of ours on the same themes, each with hidden tests, a good trace and a
# flawed one that differ in one line, and the program that follows each trace to the letter. We know which line is wrong
# because we wrote it.

# %%
themes = yaml.safe_load((PROJECT / "tracelift_lib/runs/themes.yaml").read_text())


def theme_problem(name, theme):
    """A theme as a problem with hidden tests."""
    tests = {"style": "asserts", "code": theme["tests"], "entry_point": theme["entry_point"]}
    return Problem(problem_id=name, source="themes", domain="code", task_type="function", problem=theme["problem"],
                   reference_solution="\n".join(text for _, text in theme["good"]["steps"]),
                   answer=theme["good"]["program"], metadata={"tests": tests})


asked = {name: theme_problem(name, theme) for name, theme in themes.items()}
print(asked["regex_anchoring"].problem, "\n")
print(themes["regex_anchoring"]["flawed"]["program"])

# %% [markdown]
# Before you go on: which of these texts does that program accept, and should it: `"AB-123"`, `"XAB-123"`, `"AB-1234"`?
#
# Both programs of each theme run on the hidden tests, in the sandbox of notebook 03, as a model's program would.

# %%
KINDS = ("good", "flawed")
jobs = [(name, kind, asked[name], theme[kind]["program"]) for name, theme in themes.items() for kind in KINDS]
tested = cs.run_programs([(problem, program) for _, _, problem, program in jobs])
verdicts = executor.verifier.verify([problem for _, _, problem, _ in jobs], [program for *_, program in jobs])
themes_run = pd.DataFrame([{"theme": name, "trace": kind, "tests passed": sum(o == "pass" for _, o in tests), "tests": len(tests),
                            "success": v.success, "s": v.s} for (name, kind, *_), tests, v in zip(jobs, tested, verdicts)])
report.save_table(run, themes_run, "case_themes", [], f"{len(themes)} problems of ours")
display(themes_run.style.hide(axis="index").format(precision=2))

# %%
grid = pd.DataFrame({f"{name.replace('_', ' ')}, {kind}": [float(o == "pass") for _, o in tests]
                     for (name, kind, *_), tests in zip(jobs, tested)}).T
grid.columns = range(1, len(grid.columns) + 1)
figure, axis = plt.subplots(figsize=(1.4 * report.COLUMN_WIDTH, 2.2))
sns.heatmap(grid, cmap=["#c0392b", "#2b8a3e"], vmin=0, vmax=1, cbar=False, linewidths=1, ax=axis,
            annot=np.where(grid > 0, "✓", "✗"), fmt="", annot_kws={"size": 7})
axis.set(xlabel="hidden test", title="What the program of each trace passes")
report.save_figure(run, figure, "case_theme_tests", grid.rename_axis("program").reset_index(), [], f"{len(themes)} problems of ours")

# %%
flawed, good = (themes_run[themes_run["trace"] == kind] for kind in ("flawed", "good"))
half = (flawed["tests passed"] / flawed["tests"]).mean()
print(f"one line of the plan: the programs of the good traces pass {good['success'].sum()} of {len(good)} problems, those of the flawed traces "
      f"{flawed['success'].sum()}; yet the flawed ones pass {half:.0%} of the tests, so with {run.preset.execution.style} execution reward "
      f"(partial credit in code) each still earns s = {flawed['s'].min():.2f} to {flawed['s'].max():.2f}")

# %% [markdown]
# Every flawed program passes the example in its problem's text: who only tries that sees nothing. In the viewer, the wrong or missing
# line stands beside the tests that it breaks.

# %%
def theme_case(name):
    """A theme as a case: two columns, each trace with the program that follows it."""
    columns = {}
    for (theme, kind, _, program), tests, v in zip(jobs, tested, verdicts):
        if theme == name:
            steps = [cs.Step(text, mark) for mark, text in themes[name][kind]["steps"]]
            sample = cs.Sample(program, bool(v.success), v.outcome, tests)
            columns[f"{kind} trace"] = [cs.Trace(steps, f"{kind} trace", parts={"s": v.s}, samples=[sample])]
    return cs.Case(name.replace("_", " "), "a problem of ours, followed to the letter", asked[name], columns)


theme_cases = [theme_case(name) for name in themes]
display(viewer.show(theme_cases))
print(*theme_cases, sep="\n\n")

# %% [markdown]
# ### And with the executor of this run?
#
# A program that follows a trace to the letter stands for an ideal executor: success 1 with the good trace, 0 with the flawed
# one. We ask the one that this run has, $K$ times with each trace and without.

# %%
pairs = [(case.problem, trace) for case in theme_cases for traces in case.columns.values() for trace in traces]
with_traces = executor.verdicts([p for p, _ in pairs], [t.text for _, t in pairs], n=k, seed=1)
without = executor.verdicts([case.problem for case in theme_cases], [None] * len(theme_cases), n=k, seed=2)
by_kind = {kind: with_traces[[t.label == f"{kind} trace" for _, t in pairs]] for kind in KINDS}
asked_table = pd.DataFrame([{"condition": name, "successes": int(v.sum()), "runs": v.size}
                            for name, v in {"good trace": by_kind["good"], "flawed trace": by_kind["flawed"], "no trace": without}.items()])
report.save_table(run, asked_table, "case_theme_executor", [], f"{len(themes)} problems of ours, K = {k}")
display(asked_table.style.hide(axis="index"))
total = int(with_traces.sum() + without.sum())
if total == 0:
    print("Not one success: this executor cannot write such programs, with any trace. Its uplift on these problems is 0 for the good trace and "
          "the flawed one alike, so it can say nothing about them.")
else:
    print(f"uplift of the good traces {by_kind['good'].mean() - without.mean():+.2f}, of the flawed ones {by_kind['flawed'].mean() - without.mean():+.2f}")

# %% [markdown]
# That is the limit of a small executor, and worth keeping in mind. The executors of the tiny presets know sums, or programs of a few
# operations on one number; SmolLM2-135M (preset `smol`) gets school arithmetic from a good trace, and is still too small to be expected to
# turn such a plan into a tested function. **A trace's uplift is measured against one executor.** An executor that always fails gives
# every trace $\hat u = 0$, one that always succeeds does too; what a 135M model cannot show here, one of 7B can, and the paper's cases are of
# that size. Preset `paper` runs this same notebook.

# %% [markdown]
# ## What we saw

# %%
lines = []
if split:
    lines.append(f"- Two rewards, one group: `exec_only` {does['exec_only']}, `tracelift` {does['tracelift']}, for a trace of habit "
                 f"*{split.label or 'unknown'}*. In the median group the two advantages differ by {values['advantages'].median():.2f}.")
if odd:
    lines.append(f"- The reward model and the executor differ by {abs(gap[id(odd)]):.2f} on one trace; by {values['disagreement'].median():.2f} in the median group "
                 "(the largest of its traces).")
lines.append(f"- In programs one line of a plan decides: {good['success'].sum()} of {len(good)} against {flawed['success'].sum()} of {len(flawed)}, "
             f"while {half:.0%} of the tests pass even so. This run's executor succeeds {total} of {with_traces.size + without.size} times on them.")
display(Markdown("\n".join(lines)))

# %% [markdown]
# - A case shows that something *can* happen, and how. How often it does is the business of tables (notebook 07).
#
# ## Exercises
#
# **1. A rule of your own.** Write `longest_paid(rollouts)`: for each group the number of characters of the longest trace that has
# a reward above zero; 0 if there is none. The result is a series with the index `cs.GROUP`, as the other rules give. What does the case
# that it picks show?

# %% tags=["exercise"]
def longest_paid(rollouts):
    """For each group the length of its longest trace with a reward above zero."""
    ...  # your code


# %% tags=["solution"] jupyter={"source_hidden": true}
def longest_paid(rollouts):
    paid = rollouts["trace"].fillna("").str.len().where(rollouts["reward"] > 0, 0)
    return paid.groupby([rollouts[key] for key in cs.GROUP]).max()


# %% tags=["check"]
trial = pd.DataFrame({"arm": "a", "seed": 0, "step": 0, "problem_id": ["p", "p", "p", "q"],
                      "trace": ["ab", "abcd", None, "abc"], "reward": [1.0, 0.0, 0.0, 0.0]})
found = longest_paid(trial)
assert found is not None, "longest_paid returns nothing yet"
assert found.to_dict() == {("a", 0, 0, "p"): 2, ("a", 0, 0, "q"): 0}, "ab is paid, abcd is not; q has no paid trace"
assert len(longest_paid(rollouts)) == rollouts.groupby(cs.GROUP).ngroups

# %% [markdown]
# **2. The same group under a third reward.** Write `advantages_under(group, arm)`: the advantages of a group's completions under another
# arm of `ARMS`, from the logged parts (a completion without a trace earns 0). Under which arm is the trace of case 1 pushed up most?

# %% tags=["exercise"]
def advantages_under(group, arm):
    """Advantages of the completions of one group of the log under `arm`, as an array."""
    ...  # your code


# %% tags=["solution"] jupyter={"source_hidden": true}
def advantages_under(group, arm):
    paid = [ARMS[arm](r.s, r.q, r.u, r.j, r.c, r.t) if isinstance(r.trace, str) else 0.0 for r in group.itertuples()]
    return (np.array(paid) - np.mean(paid)) / (np.std(paid, ddof=1) + 1e-4)


# %% tags=["check"]
trial = pd.DataFrame({"trace": ["a", "b"], "s": [1.0, 1.0], "q": [1.0, 0.0], "u": [1.0, 1.0], "j": 0.0, "c": 0.0, "t": 0.0})
assert advantages_under(trial, "exec_only") is not None, "advantages_under returns nothing yet"
assert np.allclose(advantages_under(trial, "exec_only"), [0, 0]), "both succeed: exec_only sees no difference"
assert np.allclose(advantages_under(trial, "tracelift"), [0.707, -0.707], atol=0.001), "q = 1 against q = 0"

# %% [markdown]
# **3. A flawed plan.** Take one theme and change one line of its good trace so that the program which follows it to the letter passes
# *more* tests than our flawed one and still fails at least one. Which hidden test catches it? (No check: discuss it.)

# %% [markdown] tags=["solution"]
# <details><summary><b>Solution of 3</b></summary>
#
# Regex anchoring: "the text must begin with the pattern and end after it", as `^...$` with `re.search`. It passes all tests but
# one: a dollar sign also matches before a line break at the end, so `"AB-123\n"` is accepted.
#
# </details>

# %% [markdown]
# **Next:** [12_tables_and_figures](12_tables_and_figures.ipynb) puts all results beside the paper's claims.

# %%
display(Markdown("\n".join(f"- {a.cost()}" for a in sources)))
