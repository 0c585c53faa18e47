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
# # 03 · The frozen executor and the uplift of a trace
#
# Is a trace useful? The paper's answer is an experiment: give the problem to a frozen executor with the trace and without
# it, several times each, and compare how often it succeeds. In the language of causal inference the trace is the treatment
# and the verdict the outcome; the **uplift** estimates the effect.
#
# **After this notebook you can** measure the uplift of a trace, say how noisy that measurement is for a given $K$, and
# explain why the no-trace runs need to be made only once a problem.
#
# **Time:** with `tiny`, a minute or two the first time. With `smol`, where a real pretrained model answers problems from
# GSM8K, it takes longer; interrupt it and it goes on where it stopped. The last cell shows what the run took.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from tracelift_lib.evaluation.intervals import crossed_interval, mean_interval
from tracelift_lib.problems.code_tests import StdioTests
from tracelift_lib.reward_model.metrics import pair_wins
from tracelift_lib.runs import report
from tracelift_lib.runs.pipeline import Run
from tracelift_lib.sandbox.host import SandboxError
from tracelift_lib.verifier.verify_code import CodeVerifier, execution_reward
from tracelift_lib.verifier.verify_math import final_answer, verify_math

# %%
report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
run.make("problems")
local = run.preset.execution.backend.kind == "local"
model_files = [run.make("executor")] if local else []  # a model behind a server is not ours to make
executor = run.executor()
for made in model_files:
    print(made.cost())
print("executor:", executor.backend.name)
print(run.preset.execution)

# %% [markdown]
# ## Where the executor runs
#
# At small sizes it runs in this process. A large one belongs behind a server: any that speaks OpenAI's protocol will do.
# With vLLM, on one GPU and on four:
#
# ```sh
# vllm serve Qwen/Qwen2.5-7B-Instruct --generation-config vllm --max-model-len 4096 --port 8000
# vllm serve Qwen/Qwen2.5-7B-Instruct --generation-config vllm --max-model-len 4096 --port 8000 --data-parallel-size 4
# ```
#
# and in the preset `execution.backend: {kind: server, base_urls: ["http://localhost:8000/v1"], model: ...}`; docs/running.md has
# more. Requests go out side by side, failed ones are tried again, and one that fails for good is counted and
# left out: a failure is never a reward.
#
# ## Two prompts, one difference
#
# With and without trace the executor gets the same problem, the same instruction and the same number of tokens to answer
# with: the trace is the only difference. It is asked to answer directly, without reasoning, because reasoning is the planner's part. So
# the uplift says what a trace is worth to an executor that does not reason by itself; one that may think before it
# answers may start from a higher baseline. The problem comes before the trace, so that a server can reuse what it has
# computed for it.

# %%
problem = run.problems("test")[0]
for trace in (problem.reference_solution, None):
    prompt = executor.backend.show(executor.prompt(problem, trace))
    print("\n".join(textwrap.fill(line, 100) for line in prompt.splitlines()))
    print("-" * 60)

# %% [markdown]
# ## The verifier in math takes one answer, or none
#
# A lenient verifier would pay for guessing. In the strict rule only a *stated* final answer counts, up to where a reader
# would end its sentence, and a text that states two different ones has none. The released code has a chain of rules
# (`released_code`): the text behind `####`, else behind "answer is" up to the next full stop, else the last number.
# `last_number` takes that always. The preset chooses; `docs/answers.md` has what each rule gets wrong.

# %%
texts = ["Answer: 12", "The answer is $1,200.00.", r"So \boxed{3/4}.", "The answer is 3 or 4.",
         "Answer: 3. No, wait. Answer: 4.", "12 apples and 5 pears", "#### 7", "The answer is 3.5",
         "The answer is 18. She sells 9 eggs.", "The answer is 18.\n\nQuestion: Tom has 15 apples."]
RULES = ("strict", "released_code", "last_number")
pd.DataFrame({"text": texts} | {rule: [str(final_answer(t, rule)) for t in texts] for rule in RULES})

# %%
assert verify_math("The answer is 1,200.", "1200") == 1
assert verify_math("Answer: 12 or 13", "12") == 0

# %% [markdown]
# ## The verifier in code runs programs, and trusts none
#
# A program is right if it passes hidden tests, so it has to be run, and what a model writes may do anything. Reinforcement
# learning even *looks* for whatever makes the verdict "pass". So each test runs in a process of its own, forked from a warm
# interpreter inside a sandbox: no network, no files but the interpreter's, limits on time, memory, processes and output.
# The expected outputs never enter that process; what it prints is compared out here. Here are some programs that shall
# print the square of the number they read:

# %%
programs = {
    "honest": "print(int(input()) ** 2)",
    "wrong": "print(int(input()) * 2)",
    "hangs": "while True: pass",
    "takes all memory": "data = [0] * 10 ** 10",
    "reads files of the host": "print(open('/etc/passwd').read())",
    "calls home": "import socket; socket.create_connection(('192.0.2.1', 80), 5)",
    "forks without end": "import os\nwhile True: os.fork()",
    "looks for the expected output": "import gc; print([o for o in gc.get_objects() if '9' in str(o)][:1])",
    "leaves early and calls it success": "import os; os._exit(0)",
}
tests = StdioTests(style="stdio", cases=[{"input": "3\n", "output": "9\n"}, {"input": "5\n", "output": "25\n"}])
try:
    with CodeVerifier() as sandbox:
        results = sandbox.verify([(program, tests) for program in programs.values()])
    shown = [{"program": name, "outcomes": ", ".join(r.outcomes), "s (hybrid)": execution_reward(r, "hybrid"),
              "sandbox": r.tier} for name, r in zip(programs, results)]
    display(pd.DataFrame(shown).style.hide(axis="index").format(precision=2))
except SandboxError as error:  # without a sandbox no program is run at all
    print("no sandbox on this machine:", error)

# %% [markdown]
# The column `s` is the graded execution reward that the paper's code has for programs, `hybrid`: 0.8 times the share of tests
# passed, 0.2 if the program ran to its end, 0.05 if it crashed or ran out of time. Uplift counts a program only if it
# passes all tests.
#
# **What the sandbox stops**: the tests of this project hold over three hundred hostile programs against each kind of
# sandbox (`docs/sandbox.md`: bombs, escapes, forged output, lies to the comparison), and each must end in the right
# verdict with nothing left behind. **What it does not stop**: a hole in the kernel that all of this rests on; a program
# that learns something from how long things take; a program that passes the tests and is wrong elsewhere. The last is the
# one that reinforcement learning finds first: the verdict is only as good as the tests.

# %% [markdown]
# ## The experiment
#
# For each test problem: several answers without a trace, with the reference trace, and, where flawed traces exist, with one
# flawed trace of each kind. Before that, a self-test makes sure that the executor really samples: from an executor that
# decodes greedily every uplift would be −1, 0 or 1.

# %%
files = run.make("uplift")
verdicts = pd.read_parquet(files.path / "verdicts.parquet")
examples = verdicts.groupby("condition", sort=False).head(1).fillna("")
examples["a right answer"] = examples["problem_id"].map({p.problem_id: p.answer for p in run.problems("test")})
examples[["condition", "trace", "answer", "a right answer", "success"]].style.hide(axis="index").set_properties(
    **{"white-space": "pre-wrap", "text-align": "left", "vertical-align": "top"})

# %% [markdown]
# ## What does a trace do?
#
# The share of right answers of each problem, averaged over problems. The intervals are over problems: another
# set of problems would give other numbers.

# %%
draws = run.preset.execution.baseline_samples
success = verdicts.groupby(["condition", "problem_id"])["success"].mean()
conditions = [c for c in ("none", "reference") if c in success.index] + sorted(
    set(success.index.get_level_values(0)) - {"none", "reference"})
flawed = conditions[2:]
rows = []
for condition in conditions:
    mean, low, high = mean_interval(success[condition])
    rows.append({"condition": condition, "problems": len(success[condition]), "success": mean, "low": low, "high": high})
if flawed:
    every = success[flawed].groupby("problem_id").mean().to_numpy()
    rows.append({"condition": "any flaw", "problems": len(every),
                 **dict(zip(("success", "low", "high"), mean_interval(every)))})
n = f"{len(success['none'])} test problems, {draws} answers each"
table = report.save_table(run, pd.DataFrame(rows), "executor_success", [files, *model_files], n)
table.round(3)

# %%
figure, axis = plt.subplots(figsize=(report.COLUMN_WIDTH, 0.9 + 0.24 * len(table)))
colors = ["0.5" if c == "none" else "C2" if c == "reference" else "C3" for c in table["condition"]]
axis.barh(table["condition"], table["success"], color=colors,
          xerr=[table["success"] - table["low"], table["high"] - table["success"]], error_kw={"lw": 1})
axis.invert_yaxis()
axis.set(xlabel="right answers (95 % interval)", xlim=(0, 1), title="What a trace does to the executor")
report.save_figure(run, figure, "executor_success_by_condition", table, [files, *model_files], n)

# %%
rates = table.set_index("condition")["success"]
lines = [f"Without a trace the executor gives the right answer in {rates['none']:.0%} of its tries, with the reference "
         f"trace in {rates['reference']:.0%}."]
if flawed:
    best, worst = rates[flawed].idxmax(), rates[flawed].idxmin()
    lines.append(f"With a flawed trace it is {rates['any flaw']:.0%} on average, from {rates[worst]:.0%} (`{worst}`) to "
                 f"{rates[best]:.0%} (`{best}`). What the executor feels is whether it still gets to the right answer: some "
                 "flaws it passes over, and some sound parts it cannot use. To object to a flaw that does not hurt it takes a "
                 "look at the reasoning itself (the RM).")
else:
    lines.append("This preset has no flawed traces, so it cannot tell whether the executor would notice a wrong one.")
display(Markdown("\n\n".join(lines)))

# %% [markdown]
# ## Two pairs of eyes: why a product
#
# A reward that only asks whether the executor succeeds is blind to a flaw with which it succeeds as often as with the
# reference. A reward that only asks the reward model is blind to a flaw that it does not rank below the reference. So each kind
# of flaw is a point: how often the executor succeeds in spite of it, and how often the RM (notebook 02) prefers the reference.
# What lies in both shaded areas, no combination of the two can see.

# %%
NEAR, HALF_WAY = 0.1, 0.75  # of the reference's success; between a coin's accuracy and a perfect one


def accuracy_by_kind(scores):
    """The RM's pair accuracy for each kind of flaw, with its interval."""
    wins = pair_wins(scores[scores["split"] == "test"])
    return pd.DataFrame({"condition": kind, **dict(zip(("accuracy", "accuracy_low", "accuracy_high"),
                         mean_interval(part["win"])))} for kind, part in wins.groupby("kind"))


plane = pd.DataFrame()
if flawed and run.preset.reward_model:
    rm_file = run.need("rm_scores")
    plane = table[table["condition"].isin(flawed)].merge(
        accuracy_by_kind(pd.read_parquet(rm_file.path / "scores.parquet")), on="condition")
    plane["outcome blind"] = plane["success"] > rates["reference"] - NEAR
    plane["RM blind"] = plane["accuracy"] < HALF_WAY

# %%
if len(plane):
    figure, axis = plt.subplots(figsize=(1.5 * report.COLUMN_WIDTH, 3.2))
    axis.axvspan(rates["reference"] - NEAR, 1.08, color="C0", alpha=0.12, lw=0)
    axis.axhspan(-0.05, HALF_WAY, color="C1", alpha=0.12, lw=0)
    axis.errorbar(plane["success"], plane["accuracy"], fmt="o", ms=3, lw=0.7, color="C3",
                  xerr=[plane["success"] - plane["low"], plane["high"] - plane["success"]],
                  yerr=[plane["accuracy"] - plane["accuracy_low"], plane["accuracy_high"] - plane["accuracy"]])
    near = plane[["success", "accuracy"]].round(1)  # kinds that lie on each other share a label
    for _, part in plane.groupby([near["success"], near["accuracy"]]):
        x, y = part[["success", "accuracy"]].mean()
        axis.annotate("\n".join(part["condition"]), (x, y), fontsize=5.5, ha="right" if x > 0.6 else "left", va="top",
                      xytext=(-6 if x > 0.6 else 6, -4), textcoords="offset points")
    axis.text(1.07, 0.0, "the outcome cannot see", rotation=90, ha="right", va="bottom", fontsize=6, color="C0")
    axis.text(0.0, 0.0, "the RM cannot see", fontsize=6, color="C1")
    axis.set(xlabel="executor success with the flawed trace", ylabel="RM ranks it below the reference", xlim=(-0.05, 1.08),
             ylim=(-0.05, 1.08), title="Which flaws each can see")
    report.save_figure(run, figure, "kinds_plane", plane, [files, rm_file, *model_files], n)

# %%
def named(part):
    return ", ".join(f"`{kind}`" for kind in part["condition"]) or "none"


if len(plane):
    o, r = plane["outcome blind"], plane["RM blind"]
    display(Markdown(f"""Of {len(plane)} kinds of flaw:

- the outcome cannot see, but the RM can: {named(plane[o & ~r])};
- the RM cannot see, but the outcome can: {named(plane[~o & r])};
- both see: {named(plane[~o & ~r])};
- neither sees: {named(plane[o & r])}.

{"The product pays only for what passes both, so it objects to each of the first three." if (o & ~r).any() else
 "Here the outcome alone sees every flaw that the RM sees: in such a world TraceLift has nothing to add to exec_only."}"""))
else:
    print("This preset has no flawed traces of known kind, or no reward model, so the figure is left out.")

# %% [markdown]
# ## The uplift, and its spread over problems
#
# $$\hat u(x, z) = \bar V(x, z) - \bar V(x, \varnothing)$$

# %%
uplift = (success["reference"] - success["none"]).rename("uplift").reset_index()
mean, low, high = crossed_interval(success["reference"].to_numpy()[None], success["none"].to_numpy()[None])
effect = pd.DataFrame([{"trace": "reference", "uplift": mean, "low": low, "high": high}])
report.save_table(run, effect, "uplift_of_reference", [files, *model_files], n)
print("uplift of the reference trace:", report.with_interval(mean, low, high))

figure, axis = plt.subplots()
sns.histplot(uplift, x="uplift", bins=(np.arange(-draws, draws + 2) - 0.5) / draws, ax=axis)  # one bar a possible value
axis.axvline(mean, color="C3", label=f"mean {mean:.2f}")
axis.set(xlabel="uplift of the reference trace", ylabel="problems", title="The same kind of trace helps unequally")
axis.legend()
report.save_figure(run, figure, "uplift_distribution", uplift, [files, *model_files], n)

# %% [markdown]
# ## Judging the judge
#
# Every verdict above is one rule's. First, texts whose label is known without a rule: right and wrong conclusions of
# this run's problems, each written in the ways that models write them. A *false negative* is a right answer that a rule
# calls wrong. (On 2,001 right recorded solutions of GSM8K no rule has one: those all end in the same words.)

# %%
WAYS = {"plain statement": "The answer is {}.", "boxed": r"So it is $\boxed{{{}}}$.", "Minerva": "Final Answer: The final "
        "answer is ${}$. I hope it is correct.", "a remark behind it": "The answer is {}. That took 3 steps.",
        "the next question": "The answer is {}.\n\nQuestion: Tom has 99 apples. How many are left?",
        "with cents": "The answer is ${}.00", "only a number": "= {}", "two answers": "The answer is {} or 1000."}
judged = [{"way": way, "right": shift == 0, **{rule: verify_math(text.format(int(p.answer) + shift), p.answer, rule)
                                               for rule in RULES}}
          for p in run.problems("test")[:20] if p.answer.isdigit() for way, text in WAYS.items() for shift in (0, 1)]
shares = pd.DataFrame(judged).groupby(["right", "way"], sort=False)[list(RULES)].mean() if judged else pd.DataFrame()
display(shares.rename({True: "right, called right", False: "wrong, called right"}, level="right").round(2)
        if judged else "no whole numbers to judge here")

# %% [markdown]
# `released_code` reads "with cents" because it stops at the point; it would read 3.5 as 3 for the same reason. "two
# answers" is a guess: `released_code` pays for it if its first half is right, `last_number` if its last is, `strict` never.
# Now the answers of this run: the same saved texts, three rules. What changes is not only how many are right, but by how
# much a trace seems to help.

# %%
truth = {p.problem_id: p.answer for p in run.problems("test") if p.domain == "math"}
again = verdicts[verdicts["problem_id"].isin(truth) & verdicts["condition"].isin(["none", "reference"])]
for rule in RULES:
    again = again.assign(**{rule: [verify_math(y, truth[p], rule) for y, p in zip(again["answer"], again["problem_id"])]})
if len(again):
    by_rule = again.groupby("condition")[list(RULES)].mean().T
    by_rule["uplift of the reference"] = by_rule["reference"] - by_rule["none"]
    by_rule["verdicts other than strict"] = [(again[rule] != again["strict"]).mean() for rule in RULES]
    display(by_rule.round(3))
else:
    print("This preset's answers are programs, which are run and not read.")

# %% [markdown]
# ## How noisy is $\hat u$?
#
# One answer is a coin flip with success probability $p_z$ (with trace) or $p_0$ (without), so with $K$ runs with the trace
# and $K_0$ without
#
# $$\operatorname{Var}[\hat u] = \frac{p_z(1 - p_z)}{K} + \frac{p_0(1 - p_0)}{K_0}.$$
#
# The paper has $K_0 = K = 3$, and the public implementation draws the baseline again for every completion. But $p_0$ does
# not depend on the trace at all: the executor is frozen. Drawn once with more runs, kept, and shared by all traces of the
# problem, the baseline costs less and can be more precise.
#
# Below, the formula (lines) beside the spread that we get by drawing $K$ of the stored answers again and again (points).
# Both take the stored answers of a problem for the whole truth about it, so with few of them both come out a little low.

# %%
def drawn_means(condition, k, repeats=400, seed=0):
    """Mean verdict of k stored answers drawn with replacement: shape (repeats, problems)."""
    stored = verdicts[verdicts["condition"] == condition].pivot(index="problem_id", columns="sample", values="success")
    stored = stored.reindex(success["none"].index).to_numpy()
    picks = np.random.default_rng(seed).integers(stored.shape[1], size=(repeats, len(stored), k))
    return np.take_along_axis(stored[None], picks, axis=2).mean(2)


def measured_error(k, k_0):
    """Standard deviation of the estimated uplift of the reference trace, mean over problems."""
    return float((drawn_means("reference", k) - drawn_means("none", k_0, seed=1)).std(0).mean())


def formula_error(k, k_0):
    p, p_0 = success["reference"].to_numpy(), success["none"].to_numpy()
    return float(np.sqrt(p * (1 - p) / k + p_0 * (1 - p_0) / k_0).mean())

# %%
ks = [1, 2, 3, 4, 5, 8]
noise = pd.DataFrame(
    {"K": k, "baseline": name, "formula": formula_error(k, k_0), "measured": measured_error(k, k_0)}
    for k in ks for name, k_0 in (("drawn anew, K runs", k), (f"cached, {draws} runs", draws))
)
figure, axis = plt.subplots()
sns.lineplot(noise, x="K", y="formula", hue="baseline", ax=axis)
sns.scatterplot(noise, x="K", y="measured", hue="baseline", legend=False, ax=axis)
axis.set(xlabel="K, runs with the trace", ylabel="standard error of û (mean)", ylim=(0, None),
         title="Noise of the uplift: formula and measurement")
report.save_figure(run, figure, "uplift_noise", noise, [files, *model_files], n)

# %% [markdown]
# ## What the cache changes for a comparison
#
# GRPO never uses $\hat u$ alone. It compares the traces of a group, and their difference is a different story:
#
# $$\operatorname{Var}[\hat u_i - \hat u_j] = \frac{p_i(1 - p_i) + p_j(1 - p_j)}{K}
#   + \underbrace{\frac{2\,p_0(1 - p_0)}{K_0}}_{\text{own baselines only}} .$$
#
# A *shared* baseline cancels from the difference, however few runs it has. Own baselines put their noise into it twice.
# The price of sharing: all traces of the problem carry the same error, which does not cancel where their quality $q$ differs
# (notebook 09, statement (d)). Measured as above, for the reference against another trace of the same problem:

# %%
other = flawed[0] if flawed else "reference"  # without flawed traces: two traces that are equally good
shown = success[other].index
p_i, p_j, p_0 = (success[c].reindex(shown).to_numpy() for c in ("reference", other, "none"))
keep = success["none"].index.isin(shown)
rows = []
for k in ks:
    traces = drawn_means("reference", k) - drawn_means(other, k, seed=2)
    own = traces - drawn_means("none", k, seed=3) + drawn_means("none", k, seed=4)
    variance = (p_i * (1 - p_i) + p_j * (1 - p_j)) / k
    for name, values, theory in (("own, K runs", own, variance + 2 * p_0 * (1 - p_0) / k), ("shared", traces, variance)):
        rows.append({"K": k, "baseline": name, "formula": np.sqrt(theory).mean(), "measured": values[:, keep].std(0).mean()})
comparison = pd.DataFrame(rows)
report.save_table(run, comparison, "uplift_difference_noise", [files, *model_files], n)
comparison.pivot(index="K", columns="baseline", values=["formula", "measured"]).round(3)

# %% [markdown]
# ## The baseline cache
#
# The baseline of every training problem, drawn once. Training (notebook 05) reads it instead of asking the executor again.

# %%
costs = [*model_files, files]
if run.preset.planner_training and "05" not in run.preset.leaves_out:
    baseline = run.make("baseline")
    costs.append(baseline)
    p0 = pd.Series({i: np.mean(v) for i, v in baseline.json("baseline.json").items()}, name="p0")
    print(f"{len(p0)} problems, mean no-trace success {p0.mean():.3f}, "
          f"{(p0 == 0).mean():.0%} of them never solved in {draws} tries")
else:
    print(f"preset {run.preset.name} does not train a planner, so it needs no baseline cache")

# %%
k = run.preset.execution.k
errors = noise.set_index(["baseline", "K"])["formula"]
seen = [f"- The uplift of the reference trace is {report.with_interval(mean, low, high, 2)} over {n}."]
if flawed:
    seen.append(f"- Flaws differ in what they cost the executor: `{worst}` leaves {rates[worst]:.0%} right answers, `{best}` "
                f"{rates[best]:.0%}. So uplift alone cannot see every flaw, and quality alone cannot see usefulness.")
seen.append(f"- With K = {k} the standard error of one û is {errors['drawn anew, K runs', k]:.2f} on average, with the "
            f"baseline cached {errors[f'cached, {draws} runs', k]:.2f}, at no cost a trace.")
display(Markdown("## What we saw\n\n- The uplift is a controlled experiment on a frozen model: same problem, same "
                 "executor, trace given or withheld.\n" + "\n".join(seen)))

# %% [markdown]
# **Try it yourself.** How large must $K$ be for a standard error below 0.1 on the noisiest problem? Compute it from the
# formula, then check it with `measured_error`.
#
# **Next:** [04_grpo_from_scratch](04_grpo_from_scratch.ipynb).

# %%
display(Markdown("\n".join(f"- {a.cost()}" for a in costs)))
