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
# trained twice from the same start, once with the reward `exec_only` and once with `tracelift`, and nothing else
# differs. Three seeds each, because one run of reinforcement learning says little.
#
# **After this notebook you can** say what one GRPO step does, read a training log by its reward parts, and recognise two
# ways in which a step teaches nothing.
#
# **Time:** with `tiny`, about ten minutes the first time.

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

from tracelift_lib import report
from tracelift_lib.pipeline import Run
from tracelift_lib.rewards import ARMS

report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
settings = run.preset.planner_training
for stage in ("executor", "planner", "reward_model", "baseline"):
    run.need(stage)
print(settings)

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
# matrices $A$, $B$ of rank $r$. TRL's `GRPOTrainer` does the steps; our one reward function (`reward_engine.RewardEngine`)
# does step 2, logs every part of it, and returns nothing (rather than a zero) where a part failed. Interrupt the cell
# and run it again: it goes on from the last checkpoint.

# %%
policies = run.policies()
runs = run.make_all("planner_training", policies)
trained = {(policy["arm"], policy["seed"]): files for policy, files in zip(policies, runs)}
for policy, files in zip(policies, runs):
    print(files.cost(), policy)

# %% [markdown]
# ## How training went
#
# The two rewards have different scales, so their curves must not be compared with each other. What can be compared is the
# executor's success $s$, which both arms log.

# %%
log = pd.concat([pd.read_csv(f.path / "steps.csv").assign(arm=arm, seed=seed) for (arm, seed), f in trained.items()])
sources, seeds = list(trained.values()), settings.seeds
n = f"{settings.problems_per_step} problems x {settings.generations} completions a step"


def curves(columns, titles, name):
    """One panel a column: mean over seeds, and the range of the seeds as a band."""
    figure, axes = plt.subplots(1, len(columns), figsize=(2 * report.COLUMN_WIDTH, 2.4))
    for axis, column, title in zip(axes, columns, titles):
        sns.lineplot(log, x="step", y=column, hue="arm", palette=report.PALETTE, errorbar=("pi", 100), ax=axis,
                     legend=axis is axes[0])
        axis.set(title=title, ylabel="")
    report.save_figure(run, figure, name, log[["arm", "seed", "step", *columns]], sources, n, seeds)

# %%
curves(["s", "reward", "tokens"], ["executor success s", "reward (own scale)", "completion length (tokens)"],
       "training_curves")

# %% [markdown]
# ## Health of the run
#
# Three things to watch in any GRPO run: the share of groups **without variance** (they teach nothing; it grows when the
# planner gets good), the **entropy** of the policy (if it falls to zero, nothing is explored any more), and **format
# errors** (completions without a well-formed trace).

# %%
curves(["zero_variance", "entropy", "format_errors"],
       ["groups without variance", "entropy", "completions without a trace"], "training_health")

# %% [markdown]
# ## The reward parts of one group
#
# Every completion of every step is kept with its parts. Here is one group of the TraceLift arm from the first step.

# %%
first_seed = settings.seeds[0]
arm = "tracelift" if "tracelift" in settings.arms else settings.arms[0]
rollouts = pd.read_parquet(trained[arm, first_seed].path / "rollouts.parquet")
start = rollouts[rollouts["step"] == 0]
chosen = start.groupby("problem_id")["reward"].std().idxmax()
group = start[start["problem_id"] == chosen][["trace", "s", "q", "u", "reward"]]
group = group.assign(advantage=advantages(group["reward"]))
display(group.style.hide(axis="index").format(precision=2, na_rep="(no trace)")
        .set_properties(**{"white-space": "pre-wrap", "text-align": "left"}))

# %% [markdown]
# ## What we saw
#
# - Both arms start from the same planner and see the same problems in the same order for the same seed. Only the reward
#   differs.
# - Success during training is measured on training problems with a moving policy: it shows that learning happens, not
#   what has been learned. Notebook 07 evaluates on held-out problems.
#
# **Try it yourself.** Train the arm `no_uplift` (`OVERRIDES = {"planner_training.arms": ["no_uplift"]}`). Before you do:
# what would you expect of a reward that pays for good looks whether or not they help?
#
# **Next:** [07_evaluate](07_evaluate.ipynb).

# %%
display(Markdown("\n".join(f"- {a.cost()}" for a in sources)))
