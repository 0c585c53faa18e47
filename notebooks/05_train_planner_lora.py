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
# **After this notebook you can** say what one GRPO step does and what it costs, predict from the reward alone what it will
# do to a planner's habits, read a training log by its reward parts, tell a healthy run from one that has collapsed, and
# know what to do then.
#
# **Time:** what it took here stands at the end. Notebook 04 has the algorithm itself in sixty lines.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
from datetime import datetime

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from tracelift_lib.groups.habits import FULL, habit_of
from tracelift_lib.groups.truth import has_truth
from tracelift_lib.planner.collapse import TrainingCollapsed
from tracelift_lib.planner.prediction import habit_table
from tracelift_lib.planner.rewards import ARMS, NEEDS
from tracelift_lib.runs import report
from tracelift_lib.runs.pipeline import Run
from tracelift_lib.runs.presets import load_preset

# %%
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
names = {arm: report.LABELS.get(arm, arm) for arm in arms}

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


# Four traces with made-up (s, q, û): full, one with a false order of events but a right answer, wrong, and full again.
made_up = {"full": (1, 0.95, 0.9), "wrong order, right answer": (1, 0.60, 0.9), "wrong answer": (0, 0.35, -0.1),
           "full again": (1, 0.95, 0.9)}
example = pd.DataFrame(
    {arm: advantages([ARMS[arm](s, q, u, 0.0) for s, q, u in made_up.values()]) for arm in ("exec_only", "tracelift")},
    index=[*made_up])
display(example.round(2))
lucky, full = example.loc["wrong order, right answer"], example.loc["full"]
print(f"exec_only pushes both right answers up by {full['exec_only']:.2f}; "
      f"tracelift the full trace by {full['tracelift']:.2f}, the other by {lucky['tracelift']:.2f}")

# %% [markdown]
# Under `exec_only` a trace with a false order of events is pushed up exactly as much as a full one, if the answer is right
# all the same. Under `tracelift` it is pushed up less. That is the whole difference between the two arms.
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
# ## A prediction, written down first
#
# Where every true step is known, we can sort the warm start's traces into *habits* (notebook 00 shows them) and measure
# what each is paid: the executor's success $s$, the RM's score $q$, the uplift $\hat u$. That is enough to say, before any
# training, where each arm will go: a softmax policy over habits, trained by the GRPO of the cell above, with the
# rewards of the real arm (`tracelift_lib/planner/prediction.py`). It is made *now*, before the first run, and its manifest has the date.

# %%
predicted = None
if run.preset.prediction:
    measured_files, predicted_files = run.make("habits"), run.make("prediction")
    measured = pd.read_parquet(measured_files.path / "habits.parquet")
    predicted = pd.read_parquet(predicted_files.path / "prediction.parquet")
    tables = {split: habit_table(part) for split, part in measured.groupby("split", sort=False)}
    paid = pd.concat(tables, names=["split", "habit"]).reset_index().rename(columns={"n": "traces"})
    n_measured = f"{measured.groupby('split')['problem_id'].nunique().max()} problems a split x {run.preset.prediction.traces} traces"
    report.save_table(run, paid, "habits_at_start", [measured_files], n_measured)
    display(Markdown("What each habit is paid on the training problems; `u` is the uplift:"))
    display(tables["rl"].round(2))
else:
    print("this preset has no section `prediction`: without known true steps a trace's habit cannot be read off")

# %% [markdown]
# Two habits with the same $s$ and the same $\hat u$ are one and the same to `exec_only`. `tracelift` tells them apart if $q$ does.
# Here is what that comes to after all steps. The band is the middle 95 % of simulated trainings.

# %%
def at(step, arm, habit):
    """(share, low, high) that the prediction has for a habit at a step."""
    row = predicted.query("arm == @arm and step == @step and habit == @habit").iloc[0]
    return row["share"], row["low"], row["high"]


if predicted is not None:
    last = predicted["step"].max()
    top = sorted(tables["rl"].index[tables["rl"]["share"] >= 0.05], key=lambda h: h != FULL)  # by share, but the full trace first
    made = datetime.fromisoformat(predicted_files.manifest["finished"])
    lines = [f"- **{names[arm]}** will end with " + ", ".join(
        f"{h.replace('_', ' ')} {report.with_interval(*at(last, arm, h), 2)} (start {at(0, arm, h)[0]:.2f})" for h in top) + "."
        for arm in arms if arm in set(predicted["arm"])]
    if FULL in tables["rl"].index and {"exec_only", "tracelift"} <= {*arms}:
        ours, theirs = at(last, "tracelift", FULL), at(last, "exec_only", FULL)
        apart = ours[1] > theirs[2] or ours[2] < theirs[1]
        lines.append(f"- The shares of full traces, {ours[0]:.2f} under TraceLift and {theirs[0]:.2f} under exec-only, "
                     + ("should differ: their bands do not meet." if apart else "may not differ: their bands meet."))
    display(Markdown(f"Predicted on {made:%Y-%m-%d at %H:%M} UTC:\n\n" + "\n".join(lines)))
    ends = predicted[predicted["step"] == last].drop(columns="step")
    report.save_table(run, ends, "prediction_ends", [predicted_files], f"{run.preset.prediction.trainings} simulated trainings an arm")

# %% [markdown]
# ## Training
#
# Interrupt the cell and run it again: each run goes on from its last checkpoint and ends where it would have ended in
# one piece. (`tests/planner/test_planner_training.py` kills a run with SIGKILL and compares: log, completions and weights are
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
if predicted is not None:
    ready = min(datetime.fromisoformat(f.manifest["finished"]) for f in runs)
    print(f"prediction made {made:%Y-%m-%d %H:%M} UTC; first run ready {ready:%Y-%m-%d %H:%M} UTC,",
          "later, as it should be" if made <= ready else "EARLIER: this prediction came after the fact")
print("a row of the log has:", ", ".join(log.columns))

# %% [markdown]
# ## How training went
#
# A line is the mean over seeds, the band goes from the lowest seed to the highest. The reward itself is not drawn: each arm
# has its own scale. What can be compared is $s$, the verdict of the executor's run, which both arms log. In math $s$ is
# success; in code it is a *graded* reward (a program that runs and fails its tests still earns something, `execution.style`),
# so there it is higher than the success that notebook 07 reports.

# %%
if {"exec_only", "tracelift"} <= {*arms}:  # the same seed sees the same problems at the same step
    by_arm = log.set_index(["seed", "step", "arm"])["s"].unstack("arm")
    log = log.merge((by_arm["tracelift"] - by_arm["exec_only"]).rename("s_gap").reset_index(), on=["seed", "step"])
    log.loc[log["arm"] != "tracelift", "s_gap"] = np.nan


def line(axis, data, column, arm, style):
    """One arm's mean over seeds, with the band of its seeds. Step by step it jumps, so it is a running mean of 3 steps."""
    table = data.pivot(index="step", columns="seed", values=column).rolling(3, min_periods=1, center=True).mean()
    axis.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=palette[arm], alpha=0.18, lw=0)
    axis.plot(table.index, table.mean(axis=1), color=palette[arm], ls=style, lw=1.6, label=names[arm])


# %%
def curves(panels, name):
    """A panel for each column that any run has, one below the other; the legend has the arms that are drawn."""
    panels = {c: title for c, title in panels.items() if c in log and log[c].notna().any()}
    figure, axes = plt.subplots(len(panels), 1, figsize=(report.COLUMN_WIDTH, 0.7 + 1.25 * len(panels)), sharex=True, squeeze=False)
    for axis, (column, title) in zip(axes[:, 0], panels.items()):
        for arm, style in zip(arms, ("-", (0, (4, 1.5)), ":", "-.") * 3):
            data = log[log["arm"] == arm]
            if data[column].notna().any():
                line(axis, data, column, arm, style)
        axis.set_title(title, loc="left")
        if column.endswith("_gap"):
            axis.axhline(0, color="0.3", lw=0.8)
    axes[-1][0].set_xlabel("step")
    axes[-1][0].xaxis.get_major_locator().set_params(integer=True)
    drawn = {text: handle for axis in axes[:, 0] for handle, text in zip(*axis.get_legend_handles_labels())}
    figure.legend(drawn.values(), drawn.keys(), loc="outside upper center", ncols=3, frameon=False)
    data = log[["arm", "seed", "step", *panels]]
    report.save_figure(run, figure, name, data, sources, n, seeds)


curves({"s": "s, executor's run with the trace", "s_gap": "s, TraceLift less exec-only, same problems",
        "tokens": "completion length (tokens)"}, "training_curves")

# %% [markdown]
# The reward taken apart, for the arms that look at these parts: the RM's score $q$, the uplift $\hat u$, and the executor's
# success *without* a trace on the same problems. That last curve moves only because the problems change from step to step:
# the executor is frozen.

# %%
if log[["q", "u"]].notna().any(axis=None):
    curves({"q": "RM score q", "u": "uplift û", "baseline_success": "success without a trace"}, "training_parts")
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
curves({"zero_variance": "share of groups without variance", "entropy": "entropy (nats)",
        "format_errors": "share of completions without a trace", "grad_norm": "gradient norm"}, "training_health")
if "kl" in log:
    curves({"kl": "KL from the start (nats a token)", "tokens": "completion length (tokens)"}, "training_kl")

# %% [markdown]
# ## Did the prediction hold?
#
# Every completion of every step is kept, so we can read off the habits of the real planners as they train, and lay them
# over the prediction. The simulation leaves out much (weights that habits share, problems that differ, an adapter that
# starts slowly); where the lines part from the bands, it is because of those. The one fitted constant, how far a logit moves a
# step (`prediction.step_size`), is from one training of preset tiny with another seed, which is in no result.

# %%
pool = pd.concat([pd.read_parquet(f.path / "rollouts.parquet").assign(arm=arm, seed=seed) for (arm, seed), f in trained.items()])
problems = {p.problem_id: p for p in run.problems(settings.split)}
knows_truth = all(map(has_truth, problems.values()))
if knows_truth:
    texts = pool["trace"].fillna("")
    pairs = pd.Series([*zip(pool["problem_id"], texts)], pool.index)
    habit = {(i, z): habit_of(problems[i], z) for i, z in set(pairs)}
    pool["habit"] = pairs.map(habit)

# %%
def at_end(arm, habit):
    """(share, low, high) predicted for a habit, mean over the last five steps that the planners sampled at."""
    return np.mean([at(step, arm, habit) for step in range(max(0, settings.steps - 5), settings.steps)], axis=0)


if predicted is not None:
    of_step = pool.groupby(["arm", "seed", "step"])["habit"].value_counts(normalize=True).unstack(fill_value=0.0)
    last_five = of_step[of_step.index.get_level_values("step") >= settings.steps - 5].groupby(["arm", "seed"]).mean()
    checks = pd.DataFrame([
        {"arm": arm, "habit": h, "start": at(0, arm, h)[0], **dict(zip(("predicted", "low", "high"), at_end(arm, h))),
         "observed": seen.mean(), "lowest seed": seen.min(), "highest seed": seen.max()}
        for arm in arms if arm in set(predicted["arm"]) for h in top
        for seen in [last_five.loc[arm][h] if h in last_five else pd.Series([0.0])]])
    checks["way"] = np.sign((checks["predicted"] - checks["start"]) * (checks["observed"] - checks["start"])) > 0
    checks["overlap"] = (checks["lowest seed"] <= checks["high"]) & (checks["highest seed"] >= checks["low"])  # ranges meet
    report.save_table(run, checks, "prediction_check", [predicted_files, *sources], n, seeds)
    display(checks.round(2))
    moving = checks[(checks["predicted"] - checks["start"]).abs() >= 0.05]
    print(f"of {len(moving)} shares that should move by 0.05 or more, {moving['way'].sum()} went that way; of all {len(checks)}, "
          f"{checks['overlap'].sum()} have seeds whose range meets the predicted band (last five steps)")

# %%
if predicted is not None and len(checks):
    figure, axes = plt.subplots(len(arms), 1, figsize=(report.COLUMN_WIDTH, 0.9 + 1.5 * len(arms)), sharex=True, squeeze=False)
    colours = dict(zip(top, [*sns.color_palette("colorblind")[2:3], *sns.color_palette("muted")[1:2], *sns.color_palette("dark")[4:]]))
    for axis, arm in zip(axes[:, 0], arms):
        for h in top:
            part = predicted[(predicted["arm"] == arm) & (predicted["habit"] == h)]
            axis.fill_between(part["step"], part["low"], part["high"], color=colours[h], alpha=0.25, lw=0)
            axis.plot(part["step"], part["share"], color=colours[h], lw=1, ls=":")
            if h in of_step:
                real = of_step.loc[arm][h].unstack("seed")
                axis.plot(real.index, real, color=colours[h], lw=0.5, alpha=0.5)
                axis.plot(real.index, real.mean(axis=1), color=colours[h], lw=1.6, label=h.replace("_", " "))
        axis.set(ylim=(0, 1), ylabel="share")
        axis.set_title(f"{names[arm]}: dotted predicted, lines observed", loc="left")
    axes[-1][0].set_xlabel("step")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False,
                  fontsize="x-small", columnspacing=0.8, handlelength=1.2)
    real = of_step[[h for h in top if h in of_step]].rename_axis(columns="habit").stack().rename("share").reset_index()
    plotted = pd.concat({"predicted": predicted[predicted["arm"].isin(arms)], "observed": real}, names=["what", None])
    report.save_figure(run, figure, "prediction", plotted.reset_index("what"), [predicted_files, *sources], n, seeds)

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
# ## One group, seen by both arms
#
# Every completion is kept with its parts, so a group of the TraceLift runs can be given the reward of `exec_only` as well:
# it is $s$. Where do the two arms disagree most? We look among the groups of step 0, which the same planner wrote in all
# runs, and if they agree there, among all steps; disagreement is the mean of $|A^{\text{exec}} - A^{\text{tracelift}}|$.

# %%
both = next((a for a in arms if a == "tracelift" or {"q", "u"} <= NEEDS[a]), None)
chosen = pd.DataFrame()
if both:
    groups = pool[(pool["arm"] == both) & pool["reward"].notna()].reset_index(drop=True)
    whose = [groups["seed"], groups["step"], groups["problem_id"]]
    plain = groups["s"].where(groups["trace"].notna(), 0.0)
    for column, rewards in (("A_exec", plain), ("A_tracelift", groups["reward"])):
        by_group = rewards.groupby(whose)
        groups[column] = (rewards - by_group.transform("mean")) / (by_group.transform("std") + 1e-4)
    apart = (groups["A_tracelift"] - groups["A_exec"]).abs().groupby(whose).mean().dropna()
    for what, pick in (("step 0", apart[apart.index.get_level_values("step") == 0]), ("all steps", apart)):
        print(f"{what}: in {(pick > 0.1).sum()} of {len(pick)} groups the two advantages differ by more than 0.1 a completion")
        if not len(chosen) and (pick > 0.1).any():
            chosen = groups.set_index(["seed", "step", "problem_id"]).loc[[pick.idxmax()]].reset_index()
if not len(chosen):
    print("so there is no group to show: in this run the two arms pay alike")

# %%
if len(chosen):
    chosen["habit"] = chosen["habit"] if knows_truth else [f"completion {i}" for i in range(len(chosen))]
    shown_problem = problems[chosen["problem_id"][0]]
    print(f"step {chosen['step'][0]}, seed {chosen['seed'][0]}, problem {shown_problem.problem_id}:\n{shown_problem.problem}\n")
    print(f"reference:\n{shown_problem.reference_solution}\n")
    for trace, same in chosen.groupby(chosen["trace"].fillna("(no trace)"), sort=False):
        r = same.iloc[0]
        print(f"{len(same)} x {r['habit']}: s {r['s']:.2f}, q {r['q']:.2f}, û {r['u']:+.2f}, "
              f"A_exec {r['A_exec']:+.2f}, A_tracelift {r['A_tracelift']:+.2f}\n{trace}\n")
    r = chosen.loc[(chosen["A_tracelift"] - chosen["A_exec"]).abs().idxmax()]
    way = {1: "pushes it up", 0: "leaves it alone", -1: "pushes it down"}
    does = [way[int(np.sign(round(r[c], 2)))] for c in ("A_exec", "A_tracelift")]
    display(Markdown(f"**The trace with the greatest difference shows the habit *{r['habit'].replace('_', ' ')}*: `exec_only` "
                     f"{does[0]} ({r['A_exec']:+.2f}), `{both}` {does[1]} ({r['A_tracelift']:+.2f}).**"))

# %%
if len(chosen):
    columns = {"s": "s", "q": "q", "u": "û", "A_exec": "A\nexec-only", "A_tracelift": "A\nTraceLift"}
    table = chosen.sort_values("A_tracelift", ascending=False).set_index("habit")[[*columns]].astype(float)
    figure, axis = plt.subplots(figsize=(report.COLUMN_WIDTH, 0.9 + 0.22 * len(table)))
    sns.heatmap(table.rename(columns=columns, index=lambda h: h.replace("_", " ")), annot=True, fmt=".2f", cmap="vlag", center=0,
                vmin=-1.5, vmax=1.5, cbar=False, annot_kws={"size": 7}, linewidths=0.5, ax=axis)
    axis.set(ylabel="", title="One group under both rewards")
    axis.tick_params(axis="y", rotation=0)
    axis.tick_params(axis="x", bottom=False, labelbottom=False, top=False, labeltop=True)
    report.save_figure(run, figure, "training_group", chosen.drop(columns=["malformed"], errors="ignore"), sources,
                       f"{len(chosen)} completions of problem {chosen['problem_id'][0]}", [int(chosen["seed"][0])])

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
    f"- `{arm}`: s {before['s']:.2f} in the first five steps and {after['s']:.2f} in the last five; "
    f"{after['zero_variance']:.0%} of the groups have no variance at the end."
    for arm, before, after in (
        (a, log[(log["arm"] == a) & (log["step"] < 5)].mean(numeric_only=True),
         last_steps[last_steps["arm"] == a].mean(numeric_only=True)) for a in arms)
) + """
- All arms start from the same planner and see the same problems in the same order for the same seed. Only the reward
  differs.
- What $s$ shows during training is measured on training problems with a moving policy: it shows that learning happens, not
  what has been learned. Notebook 07 evaluates on held-out problems.
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
# **Next:** [06_train_planner_full](06_train_planner_full.ipynb) trains all weights, in several processes; the results do not depend on it,
# so a short course goes on with [07_evaluate](07_evaluate.ipynb).

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
