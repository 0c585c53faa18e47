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
# # 05 · Training the planner with GRPO and LoRA
#
# Everything so far was preparation: a planner with mixed habits, a frozen executor, a reward model. Now the planner is
# trained from the same start, once with the reward `exec_only` and once with `tracelift`, and nothing else differs.
# Several seeds each, because one run of reinforcement learning says little.
#
# **After this notebook you can** say what one GRPO step does and what it costs, read a training log by its reward
# parts, tell a healthy run from one that has collapsed, and know what to do then.
#
# **Time:** with `tiny`, about five minutes the first time; what it took here stands at the end. Notebook 04 has the
# algorithm itself in sixty lines.

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

from tracelift_lib.planner.collapse import TrainingCollapsed
from tracelift_lib.planner.rewards import ARMS, NEEDS
from tracelift_lib.runs import report
from tracelift_lib.runs.pipeline import Run
from tracelift_lib.runs.presets import load_preset

report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
run.need("executor")
if "00" in run.preset.leaves_out:  # with a pretrained model the planner's warm start belongs here
    print(run.make("planner").cost())
else:
    run.need("planner")
settings, execution = run.preset.planner_training, run.preset.execution
arms, seeds, G = settings.arms, settings.seeds, settings.generations
palette = dict(zip(arms, sns.color_palette("colorblind", len(arms)))) | report.PALETTE

# %% [markdown]
# ## One GRPO step
#
# 1. Take a few problems; for each, the planner samples a **group** of $G$ completions.
# 2. Each completion gets a reward $r_j$: the executor runs with its trace, the verifier judges, the RM scores.
# 3. A completion is compared with its own group only:
#    $$A_j = \frac{r_j - \operatorname{mean}(r_1, \dots, r_G)}{\operatorname{std}(r_1, \dots, r_G)}.$$
# 4. The log-probability of each completion is pushed up or down in proportion to its advantage $A_j$.
#
# There is no value network: the group is the baseline. A group whose rewards are all equal has no advantage at all and
# teaches nothing.

# %%
def advantages(rewards):
    """Group-relative advantages, as in TRL: standard deviation with n - 1, and 1e-4 against division by zero."""
    rewards = np.asarray(rewards, float)
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)


# Four traces: complete, with a hole but right, wrong, and complete again. (s, q, û) of each:
parts = [(1, 0.95, 0.9), (1, 0.60, 0.9), (0, 0.35, -0.1), (1, 0.95, 0.9)]
pd.DataFrame(
    {arm: advantages([ARMS[arm](s, q, u, 0.0) for s, q, u in parts]).round(2) for arm in ("exec_only", "tracelift")},
    index=["complete", "hole, right answer", "wrong", "complete"],
)

# %% [markdown]
# Under `exec_only` the trace with a hole is pushed up exactly as much as the complete ones. Under `tracelift` it is
# pushed up less, or even down, though it led to the right answer. That is the whole difference between the two arms.
#
# ## What is trained
#
# Not the planner's weights but a **LoRA adapter**: every linear layer $W$ becomes $W + \frac{\alpha}{r} B A$ with small
# matrices $A$, $B$ of rank $r$; $B$ starts at zero, so the first step samples from the planner as it is. (With
# `parameters: full` in the preset the whole model learns, and nothing else changes: notebook 06.) TRL's `GRPOTrainer`
# does the steps; our one reward function (`RewardEngine`) does step 2, logs every part of it, and returns
# nothing (rather than a zero) where a part failed.
#
# The paper's settings beside those of this run. Where the paper names nothing, preset `paper` has a choice of ours.

# %%
NAMED = ("learning_rate", "steps", "generations", "temperature", "top_p", "max_completion", "parameters", "lora_r",
         "lora_alpha", "lora_dropout")
OURS = ("problems_per_step", "warmup_steps", "schedule", "weight_decay", "beta", "loss_type", "precision")
CODE = {"learning_rate": 1e-6, "top_p": 0.95, "executor tokens": 768, "problem cut": 3500, "trace cut": 2500}


def values(preset):
    """Every setting of the training stage by name."""
    t, e, cut = preset.planner_training, preset.execution, preset.limits
    return {name: getattr(t, name) for name in (*NAMED, *OURS)} | {
        "seeds": len(t.seeds), "K": e.k, "runs without a trace": e.baseline, "executor temperature": e.temperature,
        "executor tokens": e.max_new_tokens, "problem cut": cut.problem, "trace cut": cut.trace}


def shown(value):
    return "by hardware" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# %%
paper = values(load_preset("paper"))
table = pd.DataFrame([{
    "setting": name.replace("_", " "), "paper, math": shown(paper[name]),
    "paper, code": "" if name in OURS else shown(CODE[name]) if name in CODE else "as math",
    "source": "ours: the paper names none" if name in OURS else "paper, section 6", "this run": shown(value),
} for name, value in values(run.preset).items()])
display(table.style.hide(axis="index").set_properties(**{"text-align": "left"}))

# %% [markdown]
# Small models take and need larger steps than large ones: that is why the learning rates differ so much.
#
# ## Training
#
# Interrupt the cell and run it again: each run goes on from its last checkpoint and ends where it would have ended in
# one piece. (`tests/test_planner_training.py` kills a run with SIGKILL and compares: log, completions and weights are
# equal to the last bit.)

# %%
policies = run.policies()
runs = run.make_all("planner_training", policies)
trained = {(policy["arm"], policy["seed"]): files for policy, files in zip(policies, runs)}
sources = list(trained.values())
log = pd.concat([pd.read_csv(f.path / "steps.csv").assign(arm=arm, seed=seed) for (arm, seed), f in trained.items()])
for arm in arms:  # a part that an arm does not look at is not computed; the log has a zero there
    log.loc[log["arm"] == arm, [part for part in "squ" if part not in NEEDS[arm]]] = np.nan
n = f"{settings.problems_per_step} problems x {G} completions a step"
print(f"{len(trained)} runs of {settings.steps} steps, {n}")
print("a row of the log has:", ", ".join(log.columns))

# %% [markdown]
# ## How training went
#
# A thin line is a seed, a thick one the mean over seeds. The two rewards have different scales, so their curves must not be
# compared with each other. What can be compared is the executor's success $s$, which both arms log.

# %%
def curves(columns, titles, name):
    """A panel for each column that any run has: every seed, and their mean."""
    pairs = [(c, title) for c, title in zip(columns, titles) if c in log and log[c].notna().any()]
    figure, axes = plt.subplots(1, len(pairs), figsize=(2 * report.COLUMN_WIDTH, 2.4))
    for axis, (column, title) in zip(axes, pairs):
        data = log.reset_index(drop=True)
        sns.lineplot(data, x="step", y=column, hue="arm", palette=palette, units="seed", estimator=None, lw=0.6,
                     alpha=0.5, legend=False, ax=axis)
        sns.lineplot(data, x="step", y=column, hue="arm", palette=palette, errorbar=None, lw=1.8, ax=axis,
                     legend=axis is axes[-1])
        axis.set(title=title, ylabel="")
        axis.xaxis.get_major_locator().set_params(integer=True)
    lines, names = axes[-1].get_legend_handles_labels()
    axes[-1].legend(lines, [report.LABELS.get(a, a) for a in names], labelspacing=0.2, handlelength=1.2)
    data = log[["arm", "seed", "step", *(c for c, _ in pairs)]]
    report.save_figure(run, figure, name, data, sources, n, seeds)


curves(["s", "reward", "tokens"], ["executor success s", "reward (own scale)", "completion length (tokens)"],
       "training_curves")

# %% [markdown]
# The reward taken apart: the RM's score $q$, the uplift $\hat u$, and the executor's success *without* a trace on the same
# problems. That last curve moves only because the problems change from step to step: the executor is frozen.

# %%
if log[["q", "u"]].notna().any(axis=None):
    curves(["q", "u", "baseline_success"], ["RM score q", "uplift û", "success without a trace"], "training_parts")
else:
    print("no arm of this run looks at q or û")

# %%
ends = {"first 5 steps": log["step"] < 5, "last 5 steps": log["step"] >= settings.steps - 5}
measures = [c for c in ("s", "u", "q", "reward", "tokens", "zero_variance") if c in log]
summary = pd.concat({when: log[rows].groupby("arm", sort=False)[measures].mean() for when, rows in ends.items()})
summary = summary.rename_axis(["", "arm"]).reset_index()
report.save_table(run, summary, "training_ends", sources, n, seeds)
display(summary.style.hide(axis="index").format(precision=3, na_rep="–"))

# %% [markdown]
# ## Health of the run
#
# Four things to watch in any GRPO run:
#
# - the share of groups **without variance**: they teach nothing. It grows when the planner gets good, which is fine; from
#   the first step on it means that the problems are too easy or too hard, or that $G$ is too small;
# - the **entropy** of the policy, in nats a token: at zero, nothing new is tried any more;
# - **format errors**, completions without a well-formed trace: a few are normal, a rising curve is not;
# - the **gradient norm** before clipping (at 1): single peaks are harmless, a rise over many steps is a warning.
#
# With `beta` above zero the log also has the **KL** divergence from the planner that training started from.

# %%
curves(["zero_variance", "entropy", "format_errors", "grad_norm"],
       ["groups without\nvariance", "entropy (nats)", "completions\nwithout a trace", "gradient norm"],
       "training_health")
if "kl" in log:
    curves(["kl", "tokens"], ["KL from the start (nats a token)", "completion length (tokens)"], "training_kl")

# %% [markdown]
# ## What a step costs
#
# Left: the wall time of a step, from one end to the other. Right: what goes on *within* the reward phase. Those bars overlap
# (executor and RM work at the same time, answers are verified while others are still being written), so they do not add up
# to the phase. The more expensive the executor, the more an overlapping reward phase matters (notebook 03, `make bench`).
# Times are never the same twice, so this figure and the tables of times are shown here, but not saved with the results.

# %%
WALL = {"generation_seconds": "writing traces", "seconds": "rewards", "update_seconds": "update"}
WITHIN = {"executor_seconds": "executor", "rm_seconds": "reward model", "verifier_seconds": "verifier (sum)"}
phases_logged = {*WALL, *WITHIN} <= set(log)
if phases_logged:
    mean_seconds = log.groupby("arm", sort=False)[[*WALL, *WITHIN]].mean().rename(index=report.LABELS)
    figure, axes = plt.subplots(1, 2, figsize=(2 * report.COLUMN_WIDTH, 0.9 + 0.45 * len(arms)), sharey=True)
    mean_seconds[[*WALL]].rename(columns=WALL).plot.barh(stacked=True, ax=axes[0], color=sns.color_palette("colorblind"))
    mean_seconds[[*WITHIN]].rename(columns=WITHIN).plot.barh(ax=axes[1], color=sns.color_palette("muted")[3:], width=0.75)
    for axis, title in zip(axes, ("seconds a step", "within the rewards (overlapping)")):
        axis.set(title=title, ylabel="", xlabel="seconds")
        axis.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        axis.grid(axis="y", visible=False)
    plt.show()
else:
    print("these runs were made before the log had all phases; delete their folders in runs/ to make them again")

# %%
if phases_logged:
    whole = mean_seconds[[*WALL]].sum(axis=1)
    speed = pd.DataFrame({"seconds a step": whole, "share of the rewards": mean_seconds["seconds"] / whole,
                          "completions a second": settings.problems_per_step * G / whole})
    display(speed.style.format(precision=2))

# %% [markdown]
# ## The reward parts of one group
#
# Every completion of every step is kept with its parts. Here is the group of the first step whose rewards differ most.

# %%
first_seed = seeds[0]
arm = "tracelift" if "tracelift" in arms else arms[0]
rollouts = pd.read_parquet(trained[arm, first_seed].path / "rollouts.parquet")
start = rollouts[rollouts["step"] == 0]
chosen = start.groupby("problem_id")["reward"].std().fillna(0).idxmax()
group = start[start["problem_id"] == chosen].reset_index(drop=True)
group["advantage"] = advantages(group["reward"])
print(next(p.problem for p in run.problems("rl") if p.problem_id == chosen))
display(group[["trace", "s", "q", "u", "reward", "advantage"]].style.format(precision=2, na_rep="(no trace)")
        .set_properties(**{"white-space": "pre-wrap", "text-align": "left"}))

# %%
columns = {"s": "s", "q": "q", "u": "û", "reward": "reward", "advantage": "advantage"}
table = group[[*columns]].astype(float)
figure, axis = plt.subplots(figsize=(report.COLUMN_WIDTH, 0.9 + 0.24 * len(table)))
sns.heatmap(table.rename(columns=columns), annot=True, fmt=".2f", cmap="vlag", center=0, vmin=-1.5, vmax=1.5, cbar=False,
            annot_kws={"size": 6}, linewidths=0.5, ax=axis)
axis.set(ylabel="completion", title=f"one group, arm {report.LABELS.get(arm, arm)}")
axis.tick_params(axis="y", rotation=0)
report.save_figure(run, figure, "training_group", group.drop(columns=["malformed"], errors="ignore"),
                   [trained[arm, first_seed]], f"problem {chosen}, {G} completions", [first_seed])

# %% [markdown]
# ## When a run collapses
#
# Reinforcement learning can ruin a policy in a few steps: it stops writing traces, or always writes the same one, and as
# the rewards of its groups are then all equal, nothing brings it back. The training stage stops such a run
# (`tracelift_lib/planner/collapse.py`), when over a whole window of steps (`planner_training.collapse`)
#
# - nearly all completions are without a trace, or the entropy is nearly zero, **and** the reward is lower than in the first
#   window (a good planner has little entropy too, but more reward);
# - or immediately, when the loss or the gradient is NaN or infinite.
#
# The error names the step, the figures, and where the log and the last checkpoint are; nothing that was computed is lost.
#
# | what the log shows | likely reason | try |
# | --- | --- | --- |
# | format errors jump to 1 within a few steps | steps too large | a learning rate 3 to 10 times lower; longer `warmup_steps` |
# | entropy falls to zero early, success stands still | too sure too soon | `beta` of 0.01 to 0.1; a higher temperature; larger $G$ |
# | length runs up to `max_completion`, then format errors | the reward does not mind length | look at `rollouts.parquet`; a lower learning rate; `loss_type: dr_grpo` |
# | loss or gradient is NaN | overflow in fp16, or a step far too large | `precision: bf16` or `fp32`; a lower learning rate |
# | reward stays at zero, all groups without variance | it is not a collapse: the planner never succeeds | easier problems; a warm start; larger $G$ |
# | reward rises, success does not | the reward is being gamed | read traces of the last steps; notebook 07 on held-out problems |

# %%
last_steps = log[log["step"] >= settings.steps - 5]
display(Markdown("""## What we saw

""" + "\n".join(
    f"- `{arm}`: success {before['s']:.2f} in the first five steps and {after['s']:.2f} in the last five; "
    f"{after['zero_variance']:.0%} of the groups have no variance at the end."
    for arm, before, after in (
        (a, log[(log["arm"] == a) & (log["step"] < 5)].mean(numeric_only=True),
         last_steps[last_steps["arm"] == a].mean(numeric_only=True)) for a in arms)
) + """
- All arms start from the same planner and see the same problems in the same order for the same seed. Only the reward
  differs.
- Success during training is measured on training problems with a moving policy: it shows that learning happens, not what
  has been learned. Notebook 07 evaluates on held-out problems.
"""))

# %% [markdown]
# ## Exercises
#
# 1. *Another reward for the same completions.* The table of completions has all parts of the reward. Give the completions
#    of the TraceLift runs the reward `exec_only` instead. How many groups that have variance under `tracelift` have none
#    then? What does the difference mean for how much a batch teaches?
# 2. *Break it.* Train one run with a learning rate a thousand times larger and a window of two steps. At which step does
#    it stop, and what does the message say? Which of its two proposals would you try first?
# 3. *Where is the time?* Suppose the executor gave its answers at once. How much faster could a step be at best?
# 4. *Good looks.* What would you expect of the arm `no_uplift`, which pays for quality whether or not the trace helps? Write
#    it down, then train it: `OVERRIDES = {"planner_training.arms": ["tracelift", "no_uplift"]}`.
#
# The cells with solutions carry the tag `solution` and are folded. `make course` writes copies of all notebooks without
# such cells to `build/course/`, to hand out.
#
# **Next:** [07_evaluate](07_evaluate.ipynb).

# %% [markdown] tags=["solution"]
# <details><summary><b>Solutions</b></summary>
#
# **1.** Under `exec_only` a group has variance only if some of its completions succeed and some fail. Where all succeed (or
# all fail), `tracelift` still tells them apart by $q \hat u$, so the group still pushes. This is not only a gain: with
# success equal everywhere, what is left in the advantages is quality times the noise of $\hat u$, and dividing by the
# standard deviation blows it up to the same size as a real difference. The first cell below counts.
#
# **2.** (Second cell.) With steps that large the policy writes noise after one or two updates. Two windows of two steps
# are needed to see it, so the run stops at step 4 or a little later. Lower the learning rate first: `beta` holds the policy
# near its start by a gradient, and a step far too large overshoots that one as well. (With preset `check` the planner has
# hardly learned to write a trace, so there is nothing to lose and the run goes on.)
#
# **3.** Amdahl's law: the reward phase then lasts as long as its longest other part, here at most the RM's time, and writing
# traces and the update remain. The first cell takes the mean seconds of the log.
#
# **4.** `no_uplift` pays half a point for a trace that the RM likes, even if the executor fails with it or would have
# succeeded without. Expect $q$ to rise at least as fast as under `tracelift`, and $s$ no faster. How the two differ on
# held-out problems is a question for notebook 07, not for this log.
#
# </details>

# %% tags=["solution"] jupyter={"source_hidden": true}
for arm in (a for a in arms if {"q", "u"} <= NEEDS[a]):
    table = pd.concat([pd.read_parquet(trained[arm, seed].path / "rollouts.parquet").assign(seed=seed) for seed in seeds])
    table["s alone"] = table["s"].where(table["trace"].notna(), 0.0)
    spread = table.groupby(["seed", "step", "problem_id"])[["reward", "s alone"]].std()
    own, plain = spread["reward"] > 1e-9, spread["s alone"] > 1e-9
    print(f"exercise 1: {arm}: {own.mean():.0%} of the groups have variance, {plain.mean():.0%} would under exec_only; "
          f"{(own & ~plain).sum()} of {len(spread)} groups push by quality and uplift alone")
for arm, row in mean_seconds.iterrows() if phases_logged else ():
    whole = row[[*WALL]].sum()
    best = whole - row["seconds"] + row["rm_seconds"]
    print(f"exercise 3: {arm}: {whole:.2f} s a step, at best {best:.2f} s, {whole / best:.1f} times faster")

# %% tags=["solution"] jupyter={"source_hidden": true}
seconds = sum(float(a.manifest["seconds"]) for a in runs) / len(runs) / settings.steps
if seconds > 15:
    print(f"exercise 2: left out here, as eight steps would take about {8 * seconds / 60:.0f} minutes; preset tiny runs it")
else:
    broken = {"planner_training.learning_rate": 1000 * settings.learning_rate, "planner_training.steps": 8,
              "planner_training.warmup_steps": 0, "planner_training.collapse": {"window": 2}}
    try:
        Run(PRESET, SEED, OVERRIDES | broken).make("planner_training", arm=arms[0], seed=seeds[0])
        print("exercise 2: no collapse within 8 steps")
    except TrainingCollapsed as error:
        print("exercise 2:", str(error).replace(str(run.folder), f"runs/{run.preset.name}"))

# %%
costs = pd.concat([report.cost_table([files]).assign(**policy) for policy, files in zip(policies, runs)])
display(Markdown("## Time and memory\n\nRuns on a CPU share its cores, one run a core."))
display(costs.style.hide(axis="index").format(precision=1))
display(Markdown("\n".join(f"- {a.cost()}" for a in sources)))
