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
# # 06 · Training all of the planner, on one GPU or many
#
# Notebook 05 trains an adapter. Here every weight learns, as in the paper's full-parameter runs, which take eight
# GPUs. This notebook has no GPU to show that on, so it does three things: it **counts** the memory of real sizes, it
# **shows** training in two processes on this machine, and it **gives** the commands and configurations for 1, 2, 8
# GPUs and several nodes.
#
# **After this notebook you can** say where the memory of training goes and which ZeRO stage a model needs, why two
# processes can train the same planner as one, and what goes wrong if each normalises its loss alone.
#
# **Time:** with `tiny`, about three minutes. It needs notebooks 00, 02 and 03.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown, display
from scipy import stats
from transformers import AutoConfig

from tracelift_lib.evaluation.intervals import crossed_interval
from tracelift_lib.evaluation.planner_evaluation import per_problem
from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.planner import memory
from tracelift_lib.planner.memory import CONFIGS, FLOAT32, GIB, MIXED, model_states
from tracelift_lib.runs import launch, report
from tracelift_lib.runs.pipeline import Run

report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
for stage in ("executor", "planner", "reward_model", "baseline"):
    run.need(stage)
settings = run.preset.planner_training

# %% [markdown]
# ## Where the memory goes
#
# Training a weight takes much more than the weight. In 16-bit training with Adam:
#
# | for each parameter that learns | bytes |
# | --- | --- |
# | the weight, bf16 | 2 |
# | its gradient, bf16 | 2 |
# | a float32 **master copy**: a step of 5e-6 times a weight is less than bf16 can tell apart | 4 |
# | Adam's two **moments**, float32 | 8 |
#
# Sixteen in all. In plain float32 it is sixteen too (4 + 4 + 0 + 8): the weights are their own master copy. With LoRA
# the frozen weights cost two bytes, and only the adapter costs sixteen.
#
# Does the count hold? Here is the planner of this run after one step of Adam: bytes of the tensors that are really
# there against the formula.

# %%
start = run.need("planner").path
model, tokenizer = load_model(start), load_tokenizer(start)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
model(**tokenizer("a story", return_tensors="pt").to(model.device)).logits.sum().backward()
optimizer.step()
config = AutoConfig.from_pretrained(start)
counted = model_states(0, memory.parameter_count(config), FLOAT32)
measured = memory.measured_states(model, optimizer)
check = pd.DataFrame([{"part": part, "counted (bytes)": int(getattr(counted, part)),
                       "measured (bytes)": int(getattr(measured, part))}
                      for part in ("weights", "gradients", "master", "moments")])
assert counted == measured or model.dtype != torch.float32
report.save_table(run, check, "memory_measured", [run.need("planner")], "one step of AdamW, float32")
display(check.style.hide(axis="index"))

# %% [markdown]
# The paper's planners, built on the `meta` device: all shapes, no memory, no download.

# %%
rows = []
for name, config in CONFIGS.items():
    whole, adapter = memory.parameter_count(config), memory.lora_count(config, 16)
    rows.append({"model": name, "parameters": whole, "LoRA r 16": adapter,
                 "full (GiB)": model_states(0, whole, MIXED).total / GIB,
                 "LoRA (GiB)": model_states(whole, adapter, MIXED).total / GIB})
sizes = report.save_table(run, pd.DataFrame(rows), "memory_models", [], "counted; model states on one GPU, 16 bits")
display(sizes.style.hide(axis="index").format(precision=1, thousands=","))

# %% [markdown]
# So a 7B model does not fit one GPU of 80 GB when all of it learns, even before the first activation.
#
# ## Data parallel, and the three stages of ZeRO
#
# **Data parallel**: $N$ processes, each with the whole model and a part of the batch. After the backward pass
# gradients are averaged (*all-reduce*), each process takes the same step, and the copies stay equal. It is fast and
# wastes memory: $N$ equal copies of everything. **ZeRO** ([Rajbhandari et al.](https://arxiv.org/abs/1910.02054))
# removes the copies; with $\Psi$ parameters a GPU holds
#
# | stage | spread over the $N$ GPUs | bytes on each | communication |
# | --- | --- | --- | --- |
# | 0 (data parallel) | nothing | $16 \Psi$ | all-reduce of gradients |
# | 1 | master copy, moments | $4 \Psi + 12 \Psi / N$ | the same |
# | 2 | and gradients | $2 \Psi + 14 \Psi / N$ | the same |
# | 3 | and weights | $16 \Psi / N$ | 1.5 times: weights are fetched for each layer, twice |
#
# GRPO also **generates** with the weights. At stage 3 they have to be gathered first (TRL does it,
# `ds3_gather_for_generation`): for a moment each GPU holds them whole. So prefer stage 2 while it fits.

# %%
SETUPS = [(1, 0), (2, 0), (2, 2), (2, 3), (8, 0), (8, 2), (8, 3), (16, 2), (16, 3)]  # GPUs, ZeRO stage
rows = [
    {"model": name, "GPUs": n, "stage": stage, **{part: getattr(states, part) / GIB for part in vars(states)}}
    for name, config in CONFIGS.items() for n, stage in SETUPS
    for states in [model_states(0, memory.parameter_count(config), MIXED, stage, n)]
]
zero = pd.DataFrame(rows)
figure, axes = plt.subplots(1, 3, figsize=(2 * report.COLUMN_WIDTH, 2.7), sharey=True)
for axis, (name, part) in zip(axes, zero.groupby("model", sort=False)):
    bars = part.set_index(part["GPUs"].astype(str) + " · " + part["stage"].astype(str))
    bars[["weights", "gradients", "master", "moments"]].plot.bar(
        stacked=True, ax=axis, width=0.8, legend=axis is axes[0], color=sns.color_palette("colorblind"))
    axis.axhline(80e9 / GIB, color="0.3", ls="--", lw=0.8)
    axis.set(title=name, xlabel="GPUs · ZeRO stage", ylabel="model states on a GPU (GiB)")
    axis.grid(axis="x", visible=False)
axes[0].text(8.4, 80e9 / GIB + 1.5, "a GPU of 80 GB", ha="right", fontsize="x-small", color="0.3")
axes[0].legend(fontsize="x-small", loc="upper left", ncols=2)
report.save_figure(run, figure, "memory_zero", zero, [], "counted; bf16 weights and gradients, Adam")

# %% [markdown]
# **Activations** come on top, and no stage spreads them: each GPU has those of its own sequences. Gradient
# checkpointing keeps each layer's input only and computes the inside again. What is left is mostly the **logits**:
# vocabulary times completion tokens, in float32. Counted by running the forward pass on `meta` and adding up what
# autograd keeps, for the paper's 512 completion tokens after as many of the prompt:

# %%
rows = [
    {"model": name, "sequences": batch,
     "kept whole (GiB)": memory.activations(config, batch, 1024, 512, checkpointing=False) / GIB,
     "with checkpointing (GiB)": memory.activations(config, batch, 1024, 512, checkpointing=True) / GIB}
    for name, config in CONFIGS.items() for batch in (1, 4)
]
kept = report.save_table(run, pd.DataFrame(rows), "memory_activations", [],
                         "counted on meta, 1024 tokens of which 512 completion, bf16; attention matrices kept")
display(kept.style.hide(axis="index").format(precision=1))

# %% [markdown]
# ## What must be one process, and what not
#
# | part | processes |
# | --- | --- |
# | sampling, loss, backward | every rank, for its own part of a step's problems; a group stays in one rank |
# | rewards | every rank, for its own completions; the parts are logged by rank and put together at the end |
# | advantages | every rank, from rewards that TRL gathers first |
# | optimizer step | every rank takes the same one (stage 0), or one for its part of the weights (1 to 3) |
# | stage lock, checkpoint, artifact, manifest | the first rank alone; the others are told where |
# | when to save or stop | all at the same step: one rank's interrupt or clock counts for all |
# | executor, RM | best of all neither: servers, on GPUs of their own, which all ranks ask |
#
# ## Averaging gradients: why the length of a loss matters
#
# `all-reduce` gives the **mean of the ranks' gradients**. A loss that is a mean over *sequences* (`grpo`, `dr_grpo`)
# survives that: ranks have equally many, and a mean of means is the mean. A loss that is a mean over *tokens* does
# not: ranks have different numbers of tokens. If rank $r$ divides by its own $T_r$, a token in a rank with short
# completions weighs more:
#
# $$\frac1N \sum_r \frac{1}{T_r} \sum_{t \in r} \ell_t \;\ne\; \frac{1}{\sum_r T_r} \sum_t \ell_t.$$
#
# `dapo` therefore divides by $\sum_r T_r / N$, the tokens of *all* ranks over their number: then the mean over ranks
# is the right one. A check with the gradient of eight completions, two ranks, and lengths as they come when one rank
# has the harder problems:

# %%
torch.manual_seed(run.preset.seed)
lengths = torch.tensor([5, 8, 6, 7, 40, 64, 52, 33])
theta = torch.zeros(3, requires_grad=True)
features = torch.randn(8, 64, 3)
advantage = torch.tensor([1.0, -1, 1, -1, 1, 1, -1, -1])
mask = (torch.arange(64) < lengths[:, None]).float()
losses = lambda: -(advantage[:, None] * (features @ theta)) * mask  # noqa: E731


def gradient(divide, ranks):
    """Mean over the ranks of the gradient of their loss; `divide` gives the divisor from mask of rank and of all."""
    parts = []
    for rows in torch.arange(8).chunk(ranks):
        parts.append(torch.autograd.grad(losses()[rows].sum() / divide(mask[rows], ranks), theta)[0])
    return torch.stack(parts).mean(0)

# %%
own, shared = lambda part, n: part.sum(), lambda part, n: mask.sum() / n
whole = gradient(shared, 1)
forms = {"the rank's own tokens": own, "all tokens / ranks (dapo)": shared}
rows = [{"divided by": text, "ranks": n,
         "error of the gradient": ((gradient(divide, n) - whole).norm() / whole.norm()).item()}
        for text, divide in forms.items() for n in (1, 2, 4)]
ranks = report.save_table(run, pd.DataFrame(rows), "rank_normalisation", [], "8 completions of 5 to 64 tokens")
assert (ranks.loc[ranks["divided by"].str.contains("dapo"), "error of the gradient"] < 1e-5).all()
display(ranks.style.hide(axis="index").format(precision=3))

# %% [markdown]
# ## Shown here: one process against two
#
# The tiny planner, all its weights, `exec_only`, loss form `dapo`: once in one process, once in two under `accelerate
# launch`, which average their gradients over gloo. What is equal: start, problems and their order, completions a step
# (**global batch**), number of steps, learning rate. What is not: the random numbers, since each process draws its
# own. So single steps differ, and what should agree is success on test problems, up to the noise between seeds.

# %%
shared_values = {
    **OVERRIDES, "planner_training.parameters": "full", "planner_training.loss_type": "dapo",
    "planner_training.learning_rate": 3e-4, "planner_training.steps": min(20, settings.steps),
    "planner_training.problems_per_step": min(8, settings.problems_per_step),
    "evaluation.splits": ["test"], "evaluation.traces": 2, "second_executor": None,
}
runs = {n: Run(PRESET, SEED, {**shared_values, "planner_training.processes": n}) for n in (1, 2)}
policies = [{"arm": "exec_only", "seed": seed} for seed in settings.seeds]
trained = {1: runs[1].make_all("planner_training", policies), 2: launch.train_in_processes(runs[2], policies)}
log = pd.concat([pd.read_csv(files.path / "steps.csv").assign(processes=n, seed=policy["seed"])
                 for n in trained for policy, files in zip(policies, trained[n])], ignore_index=True)

# %%
judged = {n: runs[n].make_all("evaluation", policies) for n in runs}
success = {n: [per_problem(pd.read_parquet(e.path / "rows.parquet"), "success") for e in judged[n]] for n in judged}
before = runs[1].make("evaluation", arm="warm_start", seed=0)
success_before = [per_problem(pd.read_parquet(before.path / "rows.parquet"), "success")]
sources = [*trained[1], *trained[2], *judged[1], *judged[2], before]
t = runs[2].preset.planner_training
n_text = f"{t.steps} steps of {t.problems_per_step} x {t.generations} completions, {len(success[1][0])} test problems"
print(n_text)


# %%
def interval(treated, control=None):
    return crossed_interval(np.array(treated), None if control is None else np.array(control))


rows = [("warm start", interval(success_before)), ("one process", interval(success[1])),
        ("two processes", interval(success[2])), ("two minus one", interval(success[2], success[1]))]
table = pd.DataFrame([{"policy": name, "success": m, "low": low, "high": high} for name, (m, low, high) in rows])
by_seed = {n: [values.mean() for values in success[n]] for n in success}
welch = stats.ttest_ind(by_seed[2], by_seed[1], equal_var=False).confidence_interval()
table.loc[4] = ["two minus one, seeds unpaired (Welch)", table.loc[3, "success"], welch.low, welch.high]
table["seeds' own"] = ["", *(" ".join(f"{m:.3f}" for m in by_seed[n]) for n in (1, 2)), "", ""]
report.save_table(run, table, "processes_success", sources, n_text, settings.seeds)
display(table.style.hide(axis="index").format(precision=3))

# %%
figure, axes = plt.subplots(1, 2, figsize=(2 * report.COLUMN_WIDTH, 2.4), width_ratios=[2, 1])
colors = dict(zip((1, 2), sns.color_palette("colorblind")))
sns.lineplot(log, x="step", y="s", hue="processes", units="seed", estimator=None, lw=0.6, alpha=0.5, palette=colors,
             legend=False, ax=axes[0])
sns.lineplot(log, x="step", y="s", hue="processes", errorbar=None, lw=1.8, palette=colors, ax=axes[0])
axes[0].set(ylabel="execution reward s in training", title="thin: a seed; thick: their mean")
axes[0].xaxis.get_major_locator().set_params(integer=True)
shown = table.iloc[:3]
axes[1].errorbar(shown["success"], range(3), fmt="o", capsize=3, color="0.2",
                 xerr=[shown["success"] - shown["low"], shown["high"] - shown["success"]])
axes[1].set(yticks=range(3), yticklabels=shown["policy"], xlabel="success on test problems", ylim=(-0.5, 2.5),
            title="95 % intervals")
plotted = log[["processes", "seed", "step", "s", "reward", "tokens"]]
report.save_figure(run, figure, "processes", plotted, sources, n_text, settings.seeds)

# %%
for i, text in ((3, "problems and paired seeds"), (4, "Welch over seeds")):
    low, high = table.loc[i, ["low", "high"]]
    verdict = "does not cover zero" if low > 0 or high < 0 else "does not exclude zero"
    difference = report.with_interval(table.loc[i, "success"], low, high)
    display(Markdown(f"- two processes minus one, {text}: {difference} {verdict}."))

# %% [markdown]
# Why two intervals? The first takes seeds in pairs, with the $t$ quantile of three (notebook 07). But a seed here
# pairs little: it fixes the order of problems, not what is sampled. Welch's interval takes the runs
# as independent. Where the two disagree, three seeds do not decide it.
#
# A sharper question leaves chance out: **on the same completions**, with the same rewards, does each step have the
# same gradient? `tests/runs/test_launch.py` asks it of this trainer with 1 and 2 processes, completions of 1 to 40 tokens
# that fall unequally to the ranks, and the three loss forms: the gradients differ by less than a ten-thousandth of
# their norm. What a wrong average would change first is that norm; here it is in the runs above:

# %%
norms = log.groupby(["processes", "seed"])["grad_norm"].mean().unstack("seed").round(3)
report.save_table(run, norms.reset_index(), "processes_gradients", sources, n_text, settings.seeds)
display(norms)

# %% [markdown]
# ## On GPUs
#
# `pip install deepspeed` first. The executor and the RM are servers on GPUs of their own (here 2 of 10, or another
# machine), named in the preset by `execution.backend` and `execution.scorer`; the planner trains on the others:
#
# ```sh
# CUDA_VISIBLE_DEVICES=8 vllm serve Qwen/Qwen2.5-7B-Instruct --revision a09a35458c702b33eeacc393d103063234e8bc28 \
#     --generation-config vllm --max-model-len 4096 --port 8000 &
# CUDA_VISIBLE_DEVICES=9 tracelift serve-rm --model runs/paper/reward_model/KEY/model --port 8100 &
#
# CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 accelerate launch --config_file presets/accelerate/zero2_8gpu.yaml \
#     -m tracelift_lib.runs.launch --preset paper --run tracelift:0 --override planner_training.parameters=full
# ```
#
# Several runs go one after the other: `--run exec_only:0 tracelift:0`. Interrupted, the same command goes on from the
# last checkpoint. `planner_training.processes` follows from the launch; `problems_per_step` must be a multiple of it.
#
# **Several nodes:** the same command on each of them, with `--machine_rank 0` (1, ...) `--main_process_ip
# ADDRESS_OF_RANK_0`, and `presets/accelerate/zero3_2nodes.yaml`. All nodes must see the same folder
# (`TRACELIFT_HOME`), the same code, and the servers. Between nodes the network is slow: stage 2 communicates less
# than stage 3; and scale the servers too, since rewards of twice as many completions are asked for at once.
#
# | planner, all weights | GPUs of 80 GB | configuration |
# | --- | --- | --- |
# | 4B | 1, with the optimizer in main memory | `zero2_1gpu` |
# | 4B | 2 | `zero2_2gpu` |
# | 7B, 8B | 8 | `zero2_8gpu`; `zero3_8gpu` where that is too tight |
# | 7B, 8B | 16 on two nodes | `zero2_2nodes`, `zero3_2nodes` |
#
# These configurations are read by accelerate's own parser in our tests. We have not run them on GPUs.
#
# ## What we saw
#
# Sixteen bytes for every parameter that learns: that, not the weights, is why 7B wants several GPUs, and ZeRO spreads
# it. The formulas equal the bytes of real tensors and the counts of real shapes. On the same completions two processes
# have the gradients of one, and what makes them equal is a loss divided by the tokens of all ranks.

# %%
paired, welch_row = (table.loc[i, ["success", "low", "high"]] for i in (3, 4))
apart = [row["low"] > 0 or row["high"] < 0 for row in (paired, welch_row)]
own = report.with_interval(*paired)
display(Markdown("**Trained on their own completions**, two processes minus one differ by " + own + " in success. " + (
    "Both intervals exclude 0: here they do *not* train the planner as one does." if all(apart) else
    "Neither interval excludes 0: no difference found, at this number of seeds." if not any(apart) else
    "One interval excludes 0 and the other does not, so this run leaves open whether they train the planner as one does.")))

# %% [markdown]
# Not shown: ZeRO itself, which wants GPUs; and speed, since two processes on two busy cores say nothing about eight GPUs.
#
# ## Exercises
#
# 1. *Which stage?* What does a GPU hold of Qwen2.5-7B (states, and activations of 4 sequences with checkpointing) at
#    stages 0, 2, 3 on 4 GPUs? Which fit 80 GB?
# 2. *Groups across ranks.* Suppose each rank normalised rewards over its own completions only, and a group of 8 lay
#    half in one rank, half in another. Rewards are 1 with probability $p$. How likely is it that a half-group has no
#    variance, and a whole one?
# 3. *Sixteen bits only.* Why not drop the master copy and save four bytes? Find the largest step that a bf16 weight
#    of 1 ignores.

# %% [markdown] tags=["solution"]
# <details><summary><b>Solutions</b></summary>
#
# **1.** See the cell below. Stage 0 does not fit; stages 2 and 3 do, and stage 2 needs no gathering for generation.
#
# **2.** $p^4 + (1-p)^4$ against $p^8 + (1-p)^8$: at $p = 1/2$ it is 0.125 against 0.0078. Half-groups would throw
# away every eighth; at $p = 0.9$ even 66 % against 43 %. That is why rewards are gathered before they are normalised,
# and groups are kept whole.
#
# **3.** bf16 has 8 bits of precision: next to 1 the spacing is $2^{-7}$ above and $2^{-8}$ below. A step up of at
# most $2^{-8} = 0.0039$ is rounded away, and Adam's steps are about as large as the learning rate, 5e-6. A weight of
# size $w$ ignores steps below about $2^{-8} w$, so at 5e-6 only weights below about 0.0013 would move at all: most of the
# network would stand still, and the rest would train alone.
# </details>

# %% tags=["solution"] jupyter={"source_hidden": true}
qwen = CONFIGS["Qwen2.5-7B"]
for stage in (0, 2, 3):
    states = model_states(0, memory.parameter_count(qwen), MIXED, stage, 4).total
    total = (states + memory.activations(qwen, 4, 1024, 512, checkpointing=True)) / 1e9
    print(f"exercise 1: stage {stage}: {total:.0f} GB, {'fits' if total < 80 else 'does not fit'}")
for p in (0.5, 0.9):
    print(f"exercise 2: p = {p}: half groups {p**4 + (1 - p)**4:.4f}, whole groups {p**8 + (1 - p)**8:.4f}")
one = torch.ones((), dtype=torch.bfloat16)
for step in (2**-8, 2**-8 * 1.01):
    print(f"exercise 3: 1 + {step:.5f} = {(one + step).item():.5f}")

# %% [markdown]
# **Next:** [07_evaluate](07_evaluate.ipynb).

# %%
display(report.cost_table(sources).round(1))
