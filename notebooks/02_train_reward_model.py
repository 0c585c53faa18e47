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
# # 02 · Training the Reasoning Reward Model
#
# The Reasoning Reward Model (RM, paper section 5) reads a problem and a trace and says how good the reasoning is:
# $q(x, z) \in [0, 1]$. It never sees the executor. It is trained on the groups of notebook 01 with three losses at once.
#
# **After this notebook you can** write down the RM's heads and losses, say what each loss is for, and read a ranking result
# with its interval and by kind of flaw.
#
# **Time:** with `tiny`, about eight minutes the first time.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown, display

from tracelift_lib import report
from tracelift_lib.evaluation import mean_interval, ranking
from tracelift_lib.groups import kinds
from tracelift_lib.pipeline import Run
from tracelift_lib.prompts import reward_model_text
from tracelift_lib.reward_model import Scores, reward_model_loss

report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
print(run.need("groups").cost())

# %% [markdown]
# ## What the RM reads
#
# This text layout is a wire format: the checkpoints that the paper's authors released were trained on exactly it.

# %%
group = run.groups("train")[0]
print(reward_model_text(group.as_problem(), group.negative_bank[0].reasoning))

# %% [markdown]
# ## Heads
#
# The language-model head is replaced by six small linear heads on the last token's hidden state: one 5-way classifier for
# each rubric dimension and one scalar head for the total. The score averages two views of the same quality,
#
# $$\text{derived} = \sum_{i=1}^{5} w_i \,\frac{\mathbb E[\text{label}_i]}{4}, \qquad
#   \text{total} = \sigma(\text{total head}), \qquad q = \tfrac12(\text{derived} + \text{total}).$$
#
# Here it is on made-up head outputs for a group of one reference and two flawed traces.

# %%
torch.manual_seed(0)
logits = torch.randn(3, 5, 5)        # (traces, dimensions, labels)
total_logit = torch.randn(3)
weights = torch.full((5,), 0.2)

expected = (logits.softmax(-1) * torch.arange(5.0)).sum(-1)   # E[label_i], shape (3, 5)
derived = (weights * expected / 4).sum(-1)
total = torch.sigmoid(total_logit)
q = (derived + total) / 2
print("q of the three traces:", q.numpy().round(3))

# %% [markdown]
# ## Losses
#
# $$\mathcal L = \underbrace{\sum_i \mathrm{CE}_i}_{\text{each label}}
#   + 0.5\,\underbrace{\mathrm{Huber}(\text{total}, \text{gold})}_{\text{the overall score}}
#   + 0.7\,\underbrace{\operatorname{mean}_{z^-}\big[-\log \sigma(q(z^+) - q(z^-))\big]}_{\text{the reference above its flawed versions}}$$
#
# The first two teach the scale of the rubric. The third looks at traces of *one* problem, so it cannot be satisfied by
# judging how hard the problem looks. Written out, and compared with the library:

# %%
gold_labels = torch.tensor([[4, 4, 4, 4, 4], [4, 2, 4, 4, 1], [3, 4, 4, 2, 1]])
gold_total = torch.tensor([1.0, 0.5, 0.45])

cross_entropy = -torch.log_softmax(logits, -1).gather(-1, gold_labels[..., None]).squeeze(-1).mean(0).sum()
huber = (0.5 * (total - gold_total) ** 2).mean()              # |error| < 1, so Huber with delta 1 is quadratic
rank = -torch.log(torch.sigmoid(q[0] - q[1:])).mean()
loss = cross_entropy + 0.5 * huber + 0.7 * rank

library = reward_model_loss(Scores(logits, total, q), gold_labels, gold_total, group_size=3)
assert torch.isclose(loss, library["loss"])
print({name: round(float(value), 4) for name, value in library.items()})

# %% [markdown]
# ## Help for a small backbone
#
# A large language model brings along the ability to *compare*: to notice that a number is not the one it would have
# expected. Our backbone has three layers and has only ever seen correct traces; nothing ever asked it to compare, and the
# label of a whole trace does not say where to look. Two additions help at this size. Both are ours, and both are off in
# preset `paper`:
#
# - two new layers between the backbone and the heads. What the backbone expects at a token stands in its last layer, one
#   token earlier; only a layer above can compare the two, and only one above that can gather what was found;
# - while training, an auxiliary head that reads every token between these two layers and says whether the trace *departs*
#   from its group's reference there. The groups make that label free: a flawed trace is the reference with one damage. It
#   is the kind of help that process reward models give, one label a place instead of one a trace.
#
# The auxiliary head is dropped after training: what is saved has the layout of the released checkpoints.

# %%
for flawed in group.negative_bank[:3]:
    shared = os.path.commonprefix([group.reference_solution, flawed.reasoning])
    print(f"{flawed.negative_kind}:\n{shared}[departs here]{flawed.reasoning[len(shared):]}\n")

# %% [markdown]
# ## Training
#
# A step sees whole groups: one reference and four sampled flawed traces each, whose problem is read once for all five.
# The backbone at this size is the base model that the pipeline trained; in preset `paper` it is Qwen2.5-7B-Instruct with
# LoRA. Ten times on the way, the ranking on dev groups is measured.

# %%
files = run.make("reward_model")
history = pd.DataFrame(files.json("log.json"))
log, curve = history.dropna(subset="loss"), history.dropna(subset="dev_pair_accuracy")
by_kind = [f"dev_{kind}" for kind in kinds(group.domain) if f"dev_{kind}" in curve]

figure, (left, right) = plt.subplots(1, 2, figsize=(2 * report.COLUMN_WIDTH, 2.8), width_ratios=(2, 3))
sns.lineplot(log, x="step", y="loss", ax=left)
left.set(title="training loss", ylim=(0, None))
for kind in by_kind:
    right.plot(curve["step"], curve[kind], marker=".", linewidth=1, label=kind.removeprefix("dev_"))
right.plot(curve["step"], curve["dev_pair_accuracy"], color="black", linewidth=2, label="all pairs")
right.axhline(0.5, color="0.6", linestyle=":", label="chance")
right.set(title="pair accuracy on dev groups", xlabel="step", ylim=(0.4, 1.02))
right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
data = log[["step", "loss"]].merge(curve[["step", "dev_pair_accuracy", *by_kind]], on="step", how="outer")
report.save_figure(run, figure, "rm_training", data, [files], n=f"{len(run.groups('train'))} train groups")

# %% [markdown]
# Look at the right panel before you trust the scores. A curve that still rises at the end says that training was too short
# for that kind of flaw, and that the accuracy below is a lower bound of what the method can do. Which kinds come first?

# %% [markdown]
# ## Does it rank held-out traces?
#
# Two numbers on groups of problems that no model has seen: **pair accuracy**, how often the reference scores above a
# flawed trace, and **group accuracy**, how often it scores above all of them. Intervals are bootstraps over problems,
# because the pairs of one problem are not independent.

# %%
scores_file = run.make("rm_scores")
scores = pd.read_parquet(scores_file.path / "scores.parquet")
test = scores[scores["split"] == "test"]
references = test[test["kind"] == "reference"].set_index("problem_id")["q"]
flawed = test[test["kind"] != "reference"]

by_group = flawed.groupby("problem_id")["q"].apply(np.array).reindex(references.index)
pairs, wins = ranking(references.to_numpy(), by_group.tolist())
resamples = run.preset.evaluation.bootstrap

# %%
error = test["q"] - test["gold_total"]
rows = []
for metric, values in {"pair accuracy": pairs, "group accuracy": wins}.items():
    mean, low, high = mean_interval(values, resamples, run.preset.seed)
    rows.append({"metric": metric, "value": mean, "low": low, "high": high})
for metric, value in {"total MAE": error.abs().mean(), "total RMSE": (error**2).mean() ** 0.5}.items():
    rows.append({"metric": metric, "value": value})
held_out = report.save_table(
    run, pd.DataFrame(rows), "rm_held_out", [scores_file, files], n=f"{len(references)} held-out groups")
held_out.round(3)

# %% [markdown]
# ## Against simple scores
#
# A number needs something to stand beside. Three scores that were not trained on any rubric: a coin, the length of the
# trace (longer is better), and the **log-likelihood** that the backbone itself gives to the trace, per token. The last is
# telling: the backbone learned to write reference traces, so a flawed step should surprise it. If its likelihood
# ranks better than the RM built on it, then what the RM needs is in the backbone, and the RM has not learned to bring it
# to the last token.

# %%
def pair_accuracy(score):
    """Share of flawed traces below their reference under `score` (a column), a value a group; ties count half."""
    best = test[test["kind"] == "reference"].set_index("problem_id")[score]
    rest = test[test["kind"] != "reference"].groupby("problem_id")[score].apply(np.array).reindex(best.index)
    return ranking(best.to_numpy(), rest.tolist())[0]


test = test.assign(coin=np.random.default_rng(run.preset.seed).random(len(test)))
names = {"q": "RM", "log_likelihood": "backbone log-likelihood", "characters": "length", "coin": "coin"}
baselines = pd.DataFrame(
    {"score": name, **dict(zip(("pair_accuracy", "low", "high"),
                               mean_interval(pair_accuracy(column), resamples, run.preset.seed)))}
    for column, name in names.items()
)
report.save_table(run, baselines, "rm_against_simple_scores", [scores_file, files], n=f"{len(references)} held-out groups")
baselines.round(3)

# %% [markdown]
# ## By kind of flaw
#
# One number hides which flaws are hard to see. Below, the share of flawed traces of each kind that score below their
# reference.

# %%
merged = flawed.merge(references.rename("q_reference"), left_on="problem_id", right_index=True)
merged["ranked_right"] = (merged["q"] < merged["q_reference"]).astype(float)
by_kind = pd.DataFrame(
    {"kind": kind, "traces": len(rows),
     **dict(zip(("accuracy", "low", "high"), mean_interval(rows["ranked_right"], resamples, run.preset.seed)))}
    for kind, rows in merged.groupby("kind")
).sort_values("accuracy")

# %%
figure, axis = plt.subplots()
spread = [by_kind["accuracy"] - by_kind["low"], by_kind["high"] - by_kind["accuracy"]]
axis.errorbar(by_kind["accuracy"], by_kind["kind"], xerr=spread, fmt="o", capsize=2)
axis.axvline(0.5, color="0.6", linestyle=":", label="chance")
axis.set(xlabel="share below the reference (95 %)", xlim=(0.4, 1.02), title="RM by kind of flaw")
axis.legend(loc="upper left")
report.save_figure(run, figure, "rm_by_kind", by_kind, [scores_file, files], n=f"{len(references)} held-out groups")

# %% [markdown]
# ## Is the score calibrated?
#
# Ranking is not enough: the reward multiplies $q$ with the uplift, so its scale matters. If traces with $q \approx 0.6$
# have a mean true total of 0.6, the point lies on the diagonal.

# %%
bins = pd.cut(test["q"], np.linspace(0, 1, 11))
curve = test.groupby(bins, observed=True).agg(q=("q", "mean"), gold=("gold_total", "mean"), traces=("q", "size"))
figure, axis = plt.subplots(figsize=(report.COLUMN_WIDTH, 3))
axis.plot([0, 1], [0, 1], color="0.6", linestyle=":")
axis.scatter(curve["q"], curve["gold"], s=10 + 100 * curve["traces"] / curve["traces"].max(), alpha=0.8)
axis.set(xlabel="RM score q (mean in bin)", ylabel="true total (mean in bin)", xlim=(0, 1.02), ylim=(0, 1.02),
         title="Calibration (area: traces in bin)")
report.save_figure(run, figure, "rm_calibration", curve.reset_index(drop=True), [scores_file, files],
                   n=f"{len(test)} held-out traces")

# %% [markdown]
# ## What we saw
#
# - Three losses train one score: labels, total, and the ranking inside a group.
# - The table above has the held-out ranking with its interval, the figures show where it is weak and how well its scale
#   can be trusted. In math, flaws that change the *number* of steps are seen at once. Flaws that need a comparison come
#   later, and each comparison on its own: first whether the sign fits the event, then whether a line goes on from the
#   result before it, later whether a sum is right, and hardly at all, in the time that `tiny` takes, whether a number is
#   the one that the story names. The row of the backbone's likelihood says that all of this was known to the backbone to
#   begin with: knowing what should stand there, and bringing a departure from it to the last token, are two skills.
# - These flaws were *made by us*, by the same seven makers as in training. Whether the RM also sees flaws that models
#   make on their own is a different question, and the paper does not test it.
#
# **Try it yourself.** `OVERRIDES = {"reward_model.departure_weight": 0.0}` leaves the paper's losses alone;
# `{"reward_model.epochs": 9}` trains three times as long; `{"reward_model.dimension_loss": "mse"}` changes how labels are
# learned. Compare ranking and calibration.
#
# **Next:** [03_executor_uplift](03_executor_uplift.ipynb).

# %%
display(Markdown("\n".join(f"- {a.cost()}" for a in (files, scores_file))))
