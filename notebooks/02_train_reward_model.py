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
# $q(x, z) \in [0, 1]$. It never sees the executor. It is trained on the groups of notebook 01 with several losses at once:
# three of the paper's, and in the tiny presets a fourth of ours.
#
# **After this notebook you can** write down the RM's heads and losses, say what each loss is for, read a ranking result
# with its interval, by kind of flaw and by dimension, say whether a score is calibrated, load a checkpoint of the
# released layout, and put the RM behind a server.
#
# **You need** notebook 01, and what a cross-entropy is. **Words:** the *backbone* is the language model under the heads; *dev*
# groups are held out of training and watched during it, *test* groups are looked at once, at the end.
#
# **Time:** with `tiny`, about four minutes the first time.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
import json
import os

import httpx
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown, display
from safetensors import safe_open

# %%
from tracelift_lib.evaluation.intervals import mean_interval
from tracelift_lib.evaluation.natural_measures import LUCKY, SCORES, all_results, headlines, in_words
from tracelift_lib.groups.kinds import kinds_of
from tracelift_lib.problems.prompts import reward_model_text
from tracelift_lib.problems.records import MissingSet
from tracelift_lib.reward_model.losses import Scores, reward_model_loss
from tracelift_lib.reward_model.metrics import (
    calibration_curve,
    metrics_by_dimension,
    metrics_by_kind,
    pair_wins,
    ranking,
    reward_model_metrics,
)
from tracelift_lib.reward_model.remote import RemoteScorer
from tracelift_lib.reward_model.server import serving
from tracelift_lib.runs import report
from tracelift_lib.runs.pipeline import Run

# %%
report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
settings, public = run.preset.reward_model, run.preset.groups.seeds
print(run.need("groups").cost())
if public:  # of generated problems notebook 00 makes the backbone
    run.make(settings.backbone)

# %% [markdown]
# ## What the RM reads
#
# This text layout is a wire format: the checkpoints that the paper's authors released were trained on exactly it.

# %%
group = run.groups("train")[0]
reference = group.positive_pool[0].reasoning
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
# judging how hard the problem looks. Cross-entropy treats the labels as five names; with `dimension_loss: mse` the
# squared distance between expected and gold label takes its place, which knows that 3 is nearer to 4 than 0 is. Written
# out, and compared with the library:

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

mse = ((expected - gold_labels) ** 2).mean(0).sum()
assert torch.isclose(mse, reward_model_loss(Scores(logits, total, q), gold_labels, gold_total, 3, "mse")["dimensions"])

# %% [markdown]
# ### Bad, or worse?
#
# The ranking above says nothing about two flawed traces. A fourth term, with weight 0 in the paper's setting, orders them
# too: the mean of $-\log \sigma(q(z_a) - q(z_b))$ over those pairs of a group's negatives where the gold total of $z_a$ is
# higher by at least 0.15. Closer pairs do not count, as the judge's order of them is hardly more than noise. A policy in
# training writes mostly imperfect traces, so this order is what it would be paid by. `reward_model.negatives_weight`
# sets the weight. On a group of one reference and four negatives:

# %%
scores = Scores(torch.zeros(5, 5, 5), torch.zeros(5), torch.tensor([0.9, 0.6, 0.4, 0.7, 0.3]))
totals = torch.tensor([1.0, 0.8, 0.5, 0.45, 0.65])
costs = []
for a in range(1, 5):                      # the reference, 0, is not among them
    for b in range(1, 5):
        if totals[a] - totals[b] >= 0.15 - 1e-6:
            costs.append(-torch.log(torch.sigmoid(scores.q[a] - scores.q[b])))
            print(f"negative {a} (gold {totals[a]:.2f}) above {b} ({totals[b]:.2f}): cost {costs[-1]:.3f}")
by_hand = torch.stack(costs).mean()
library = reward_model_loss(scores, torch.zeros(5, 5, dtype=int), totals, group_size=5, negatives_weight=0.3)
assert torch.isclose(by_hand, library["negatives"])
paper_loss = library["dimensions"] + 0.5 * library["total"] + 0.7 * library["ranking"]
assert torch.isclose(library["loss"], paper_loss + 0.3 * by_hand)
print(f"neg-neg term: {by_hand:.3f}")

# %% [markdown]
# ## Help for a small backbone
#
# A large language model brings along the ability to *compare*: to notice that a number is not the one it would have
# expected. The backbone of the tiny presets has three layers and has only ever seen correct traces; nothing ever asked it
# to compare, and the label of a whole trace does not say where to look. It does know what should stand there: its
# likelihood, below, ranks nearly every pair right. Two additions bring that to the heads. Both are ours, and both are off
# in preset `paper` (`reward_model.new_layers`, `reward_model.lm_weight`):
#
# - the backbone keeps its language-model head, and at each token of the trace its **doubt** is written into the hidden
#   state: $1 - p$, where $p$ is the probability that it gave this token. A fourth loss, the cross-entropy of the
#   references, lets it get used to the text layout of the RM;
# - two new layers between the backbone and the heads read the doubt: what kind of token it is, in which line, and what
#   that means for each dimension. That is more than likelihood. A rare but harmless token is doubted too, and of two
#   flaws that surprise alike one can cost a trace much and the other little. Only the rubric can teach that.
#
# The references are what the backbone was trained to write, so its doubt is well founded in this world; where a problem has
# many good solutions it would be a weaker sign.

# %%
print(f"here: {settings.new_layers} new layers, weight of the language-model loss {settings.lm_weight}\n")
for flawed in group.negative_bank[:3]:
    shared = os.path.commonprefix([reference, flawed.reasoning])
    print(f"{flawed.negative_kind}:\n{shared}[departs here]{flawed.reasoning[len(shared):]}\n")

# %% [markdown]
# ## Training
#
# A step sees whole groups: one reference and four sampled flawed traces each, whose problem is read once for all five.
# The backbone of the tiny presets is the base model that the pipeline trained; in preset `paper` it is
# Qwen2.5-7B-Instruct with LoRA. The order of all steps is fixed beforehand, so a run that was killed goes on to the same
# weights. Ten times on the way, the ranking on dev groups is measured.

# %%
files = run.make("reward_model")
history = pd.DataFrame(files.json("log.json"))
log, curve = history.dropna(subset="loss"), history.dropna(subset="dev_pair_accuracy")
by_kind = [column for kind in kinds_of(group.domain) if (column := f"dev_{kind}") in curve]

figure, (left, right) = plt.subplots(1, 2, figsize=(2 * report.COLUMN_WIDTH, 2.8), width_ratios=(2, 3))
sns.lineplot(log, x="step", y="loss", ax=left)
left.set(title="training loss", ylim=(0, None))
for kind in by_kind:
    right.plot(curve["step"], curve[kind], marker=".", linewidth=1, label=kind.removeprefix("dev_"))
right.plot(curve["step"], curve["dev_pair_accuracy"], color="black", linewidth=2, label="all pairs")
right.axhline(0.5, color="0.6", linestyle=":", label="chance")
right.set(title="pair accuracy on dev groups", xlabel="step", ylim=(0, 1.02))
right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
data = log[["step", "loss"]].merge(curve[["step", "dev_pair_accuracy", *by_kind]], on="step", how="outer")
report.save_figure(run, figure, "rm_training", data, [files], n=f"{len(run.groups('train'))} train groups")

# %% [markdown]
# Look at the right panel before you trust the scores. A curve that still rises at the end says that training was too short
# for that kind of flaw, and that the accuracy below is a lower bound of what the method can do. Which kinds come first?

# %%
seen = {kind.removeprefix("dev_"): next((int(step) for step, value in zip(curve["step"], curve[kind]) if value >= 0.9), None)
        for kind in by_kind}
told = [f"{kind.replace('_', ' ')} " + ("never" if step is None else f"at step {step}") for kind, step in seen.items()]
rising = [k.removeprefix("dev_").replace("_", " ") for k in by_kind if curve[k].iloc[-1] - curve[k].iloc[-3:-1].mean() > 0.02]
first = curve["step"].min()
told = ["all of them, at the first measurement"] if set(seen.values()) == {first} else told
display(Markdown(f"First at 0.9 or more: {', '.join(told)} (measured from step {first:.0f} on). Still rising by more than 0.02 at the end: "
                 f"{', '.join(rising) or 'none'}. The loss on the left is the sum of all losses, also of those below the paper's three."))

# %% [markdown]
# ## Does it rank held-out traces?
#
# Two numbers on groups of problems that the RM has not seen: **pair accuracy**, how often the reference scores above a
# flawed trace, and **group accuracy**, how often it scores above all of them. A tie counts half in a pair, so that a score
# which says nothing gets one half, and is no win over the group. Intervals are over problems, because the pairs of one
# problem are not independent.

# %%
scores_file = run.make("rm_scores")
scores = pd.read_parquet(scores_file.path / "scores.parquet")
test = scores[scores["split"] == "test"]
references = test[test["kind"] == "reference"].set_index("problem_id")["q"]

ranked = ranking(test).reindex(references.index)   # of each problem

# %%
error = test["q"] - test["gold_total"]
rows = []
for column in ("pair_accuracy", "group_accuracy"):
    mean, low, high = mean_interval(ranked[column])
    rows.append({"metric": column.replace("_", " "), "value": mean, "low": low, "high": high})
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
# to the last token. But a reference above its flawed versions is the easy half: the last column has the rank correlation
# (Spearman) of each score with the gold total *among the flawed traces*, where a likelihood has no scale to offer.

# %%
def pair_accuracy(score):
    """Share of flawed traces below their reference under `score` (a column), one value for each group."""
    return ranking(test, score)["pair_accuracy"].reindex(references.index).to_numpy()


test = test.assign(coin=np.random.default_rng(run.preset.seed).random(len(test)))
names = {"q": "RM", "log_likelihood": "backbone log-likelihood", "characters": "length", "coin": "coin"}
flawed_traces = test[test["kind"] != "reference"]
baselines = pd.DataFrame(
    {"score": name, **dict(zip(("pair_accuracy", "low", "high"),
                               mean_interval(pair_accuracy(column)))),
     "rank_correlation": flawed_traces[column].corr(flawed_traces["gold_total"], method="spearman")}
    for column, name in names.items()
)
report.save_table(run, baselines, "rm_against_simple_scores", [scores_file, files], n=f"{len(references)} held-out groups")
baselines.round(3)

# %%
simple = baselines.set_index("score")
rm, likelihood = simple.loc["RM"], simple.loc["backbone log-likelihood"]
apart = rm["low"] > likelihood["high"] or likelihood["low"] > rm["high"]
display(Markdown(
    f"The RM ranks {rm['pair_accuracy']:.3f} of pairs right, the plain likelihood of its backbone {likelihood['pair_accuracy']:.3f}"
    + ("" if apart else " (their intervals overlap)") + f". Among flawed traces the RM's rank correlation with the gold total is "
    f"{rm['rank_correlation']:.2f}, the likelihood's {likelihood['rank_correlation']:.2f}. "
    + ("That second number is what training on rubrics has added." if rm["rank_correlation"] > likelihood["rank_correlation"] + 0.1
       else "So training on rubrics has added little to the order of flawed traces.")))

# %% [markdown]
# ## By kind of flaw
#
# One number hides which flaws are hard to see. For each kind: how many of its traces score below their reference, how far
# $q$ is from the gold total (MAE, RMSE), and in which direction (bias: mean of $q$ − gold). A kind with a large positive
# bias is one that the RM takes for better than it is.

# %%
errors_by_kind = metrics_by_kind(test)
report.save_table(run, errors_by_kind, "rm_errors_by_kind", [scores_file, files], n=f"{len(test)} held-out traces")
errors_by_kind.round(3)

# %%
by_kind = pd.DataFrame(
    {"kind": kind, "traces": len(rows),
     **dict(zip(("accuracy", "low", "high"), mean_interval(rows["win"])))}
    for kind, rows in pair_wins(test).groupby("kind")
).sort_values("accuracy")

# %%
figure, axis = plt.subplots()
spread = [by_kind["accuracy"] - by_kind["low"], by_kind["high"] - by_kind["accuracy"]]
axis.errorbar(by_kind["accuracy"], by_kind["kind"], xerr=spread, fmt="o", capsize=2)
axis.axvline(0.5, color="0.6", linestyle=":", label="chance")
axis.set(xlabel="share below the reference (95 %)", xlim=(0, 1.02), title="RM by kind of flaw")
axis.legend(loc="upper left")
report.save_figure(run, figure, "rm_by_kind", by_kind, [scores_file, files], n=f"{len(references)} held-out groups")

# %%
worst = by_kind.iloc[0]
overrated = errors_by_kind.loc[errors_by_kind["bias"].idxmax()]
display(Markdown(
    f"Hardest to see: *{worst['kind'].replace('_', ' ')}* ({worst['accuracy']:.3f} [{worst['low']:.3f}, {worst['high']:.3f}]). Most "
    f"overrated: *{overrated['kind'].replace('_', ' ')}*, by {overrated['bias']:+.2f} on average. These are figures of *one* trained RM: "
    "the intervals hold the choice of problems, not the luck of its training."))

# %% [markdown]
# ## By dimension
#
# The five heads can say *what* is wrong, if each has learned its own dimension. For each one: how often the nearest label
# is the gold one, and the error of the expected label on its scale from 0 to 4. The last column is the error of an RM
# that always gives the mean label of the test traces: a head must do better to have learned anything.

# %%
by_dimension = metrics_by_dimension(test)
by_dimension["rmse_of_the_mean"] = [test[f"gold_{name}"].std(ddof=0) for name in by_dimension["dimension"]]
overall = reward_model_metrics(test)
assert np.isclose(overall["rmse"], held_out.set_index("metric")["value"]["total RMSE"])
report.save_table(run, by_dimension, "rm_by_dimension", [scores_file, files], n=f"{len(test)} held-out traces")
by_dimension.round(3)

# %%
learned = by_dimension[by_dimension["rmse"] < by_dimension["rmse_of_the_mean"]]["dimension"]
weakest = by_dimension.loc[(by_dimension["rmse"] / by_dimension["rmse_of_the_mean"].clip(lower=1e-9)).idxmax()]
display(Markdown(
    f"{len(learned)} of {len(by_dimension)} heads beat the mean label. Weakest: *{weakest['dimension'].replace('_', ' ')}*, error "
    f"{weakest['rmse']:.2f} against {weakest['rmse_of_the_mean']:.2f} of the mean."))

# %% [markdown]
# ## Is the score calibrated?
#
# Ranking is not enough: the reward multiplies $q$ with the uplift, so its scale matters. If traces with $q \approx 0.6$
# have a mean gold total of 0.6, the point lies on the diagonal. (What is gold is said in notebook 01: the ground truth for
# generated problems, otherwise what a judge or the definition of the kind says.)

# %%
curve = calibration_curve(test)
figure, axis = plt.subplots(figsize=(report.COLUMN_WIDTH, 3))
axis.plot([0, 1], [0, 1], color="0.6", linestyle=":")
axis.scatter(curve["q"], curve["gold_total"], s=10 + 100 * curve["traces"] / curve["traces"].max(), alpha=0.8)
axis.set(xlabel="RM score q (mean in bin)", ylabel="gold total (mean in bin)", xlim=(0, 1.02), ylim=(0, 1.02),
         title="Calibration (area: traces in bin)")
report.save_figure(run, figure, "rm_calibration", curve, [scores_file, files],
                   n=f"{len(test)} held-out traces")

# %%
common = curve[curve["traces"] >= 0.01 * len(test)].sort_values("q")
gap = (common["q"] - common["gold_total"]).pipe(lambda d: common.loc[d.abs().idxmax()])
monotone = (common["gold_total"].diff().dropna() >= 0).all()
display(Markdown(
    f"In bins with at least 1 % of the traces the largest gap is at q = {gap['q']:.2f}, where the gold total is {gap['gold_total']:.2f}. "
    f"A higher q {'always means' if monotone else 'does not always mean'} a higher gold total here. Traces with the highest scores "
    f"(q = {common['q'].iloc[-1]:.2f}) have gold {common['gold_total'].iloc[-1]:.2f}: "
    + ("a high score can be trusted." if common["q"].iloc[-1] - common["gold_total"].iloc[-1] < 0.1
       else "a bonus would be paid for traces that are not that good.")))

# %% [markdown]
# ## The checkpoint
#
# What training leaves has the layout of the checkpoints that the authors released (`ScottHan/TraceLift`): the backbone's own
# config with four `rm_*` keys, and weights named `model.*`, `dimension_heads.N.*`, `total_head.*`; with doubt there are also
# `doubt.*` and two keys `rm_doubt_*`. So `ReasoningRewardModel.from_pretrained` loads either, a folder or a name on the
# hub, whole or as a LoRA adapter (we could not download the released ones; a test builds a checkpoint of that layout and
# compares every head with an independent computation).

# %%
checkpoint = files.path / "model"
config = json.loads((checkpoint / "config.json").read_text())
print({key: value for key, value in config.items() if key.startswith("rm_")})
shapes = {}
for path in sorted(checkpoint.glob("model*.safetensors")):
    with safe_open(path, "pt") as weights_file:
        shapes |= {name: list(weights_file.get_slice(name).get_shape()) for name in weights_file.keys()}
heads = {name: shape for name, shape in shapes.items() if not name.startswith("model.")}
print(f"{len(shapes) - len(heads)} tensors under model.*, and:", *heads.items(), sep="\n  ")

# %% [markdown]
# Loaded again, and $q$ of one trace computed by hand from the hidden state of its last token, which a hook on a head notes:

# %%
scorer = run.reward_model()                # ReasoningRewardModel.from_pretrained(checkpoint), with its tokenizer
model, states = scorer.model, []
hook = model.total_head.register_forward_pre_hook(lambda head, inputs: states.append(inputs[0]))
library, _ = scorer.score([group.as_problem()], [reference])
hook.remove()
with torch.inference_mode():
    last = states[0][0].float()
    of_label = torch.arange(5.0, device=model.device)
    labels = torch.stack([head(last).softmax(-1) @ of_label for head in model.dimension_heads])
    by_hand = (0.2 * labels / 4).sum() / 2 + torch.sigmoid(model.total_head(last)).squeeze() / 2
assert np.isclose(by_hand.item(), library[0], atol=1e-5)
said = ", ".join(f"{name} {label:.2f}" for name, label in zip(config["rm_dimension_names"], labels))
print(f"q = {by_hand:.4f}; expected labels: {said}")

# %% [markdown]
# ## Serving
#
# Training a planner asks for the score of every trace that it writes, so the RM can run as a service, on a GPU of its own.
# `POST /score` has the request and the answer of the public implementation, so either side can be swapped:
#
# ```sh
# tracelift serve-rm --model FOLDER_OR_HUB_NAME --port 8100
# ```
#
# and in a preset `execution: {scorer: {url: "http://localhost:8100", model: my-rm}}`. Here the server runs in this process:

# %%
some = run.groups("test")[:4]
pairs = [(g.as_problem(), c.reasoning) for g in some for c in g.candidates]
problems, traces = [p for p, _ in pairs], [z for _, z in pairs]
with serving(scorer) as url:
    item = {"problem": problems[0].problem, "reasoning": traces[0], "task_name": problems[0].domain,
            "task_type": problems[0].task_type}
    answer = httpx.post(f"{url}/score", json={"items": [item]}, trust_env=False, timeout=60)
    print(json.dumps(answer.json(), indent=1))
    remote, _ = RemoteScorer(url, scorer.max_length).score(problems, traces)
    refused = httpx.post(f"{url}/score", json={"items": [item | {"task_name": "poetry"}]}, trust_env=False, timeout=60)
    print(refused.status_code, refused.json()["error"])
local, _ = scorer.score(problems, traces)
assert np.abs(remote - local).max() < 1e-4
print(f"{len(traces)} traces: the largest difference between served and local scores is below 1e-4")

# %% [markdown]
# Scoring in batches, sorted by length and reading what traces of a problem share once, gives the same scores faster:
# 6.9 times the traces per second of scoring one by one with two threads, 3.9 to 4.7 times with one (`make bench`, row
# `rm_scoring`; docs/speed.md). A call that fails, or a score that cannot be right, is never turned into a score: the client
# raises an error, and in training the reward of these traces is None, counted by kind, which leaves them out.

# %% [markdown]
# ## Natural errors
#
# All flaws above were *made by us*, by the same seven makers as in training. Whether the RM also sees the errors that models
# make on their own is a different question, which the paper does not test. Four public sets ask it, each with somebody
# else's labels (`tracelift_lib/evaluation/natural_sets.py`):
#
# - `gsm8k_solutions`: several models' solutions of one GSM8K problem, right and wrong. Without their last line, from which
#   the label was computed: does a right one score higher?
# - `processbench_gsm8k`, `processbench_math`, `prmbench`: where is the first wrong step? The rule takes the first step whose *prefix*
#   scores below a threshold. F1 is the harmonic mean of the accuracies on erroneous and on correct traces.
# - `prmbench` has solutions, each with a version into which errors were put: which of the two is the original, and which
#   steps are wrong?
#
# The same is done with the mean **log-likelihood** of the model under the RM (of the whole prefix, and of its last step),
# with the length (shorter is better), and with a coin. Every score gets its own threshold, chosen on half of the problems
# and judged on the other half, in turn. Intervals are bootstraps over problems. **Right answer, wrong reason** are
# ProcessBench's traces whose final answer is right although a step is wrong: no check of answers finds those, so they stand
# in a table of their own. The problems are test problems of GSM8K and MATH, and are never trained on.

# %%
natural, natural_file = run.preset.natural_errors, None
if natural is None:
    display(Markdown(
        f"Preset {PRESET} has no such sets: its models know only the problems they were trained on. With a pretrained model "
        "and `TRACELIFT_DATA` set to a folder that has the sets (or a network), "
        '`OVERRIDES = {"natural_errors": {"sets": {"gsm8k_solutions": 100, "processbench_gsm8k": 100}}}` runs this.'))
else:
    try:
        natural_file = run.make("natural_errors")
    except MissingSet as missing:
        display(Markdown(f"**Not run**, for want of a set: {missing}. Or name other sets in `natural_errors.sets`."))
if natural_file:
    natural_rows = pd.read_parquet(natural_file.path / "scores.parquet")
    tables = all_results(natural_rows, natural.bootstrap, run.preset.seed)
    counts = natural_rows.groupby("set").agg(problems=("problem", "nunique"), prefixes=("step", "size"))
    n = ", ".join(f"{row.problems} problems of {row.Index}" for row in counts.itertuples())
    if "first_errors" in tables:
        lucky = tables["first_errors"]["metric"].str.startswith(LUCKY)
        tables["right_answer_wrong_reason"] = tables["first_errors"][lucky]
        tables["first_errors"] = tables["first_errors"][~lucky]
    for name, table in tables.items():
        display(Markdown(f"**{name.replace('_', ' ')}**"),
                report.save_table(run, table, f"natural_{name}", [natural_file, files], n=n).round(3))

# %%
if natural_file:
    headline = headlines(tables)
    tasks = headline["task"].unique()
    figure, axes = plt.subplots(1, len(tasks), figsize=(2 * report.COLUMN_WIDTH, 2.2), sharey=True, squeeze=False)
    for axis, task in zip(axes[0], tasks):
        part = headline[headline["task"] == task].iloc[::-1]
        spread = np.maximum([part["value"] - part["low"], part["high"] - part["value"]], 0)
        axis.errorbar(part["value"], part["score"], xerr=spread, fmt="o", capsize=2)
        axis.axvline(part["chance"].iloc[0], color="0.6", linestyle=":")
        axis.set(title=task.replace(": ", "\n"), xlim=(0, 1.02))
        axis.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axis.title.set_fontsize(5)
    report.save_figure(run, figure, "natural_errors", headline, [natural_file, files], n=n)
    told = [f"- {sentence}" for sentence in in_words(headline)]
    if "right_answer_wrong_reason" in tables:
        unseen = tables["right_answer_wrong_reason"].pipe(lambda t: t[t["score"] == SCORES["q"]])
        told += [f"- **{row.metric}**, {row.set}: RM {row.value:.2f} of {row.cases} traces." if row.cases else
                 f"- **{row.metric}**, {row.set}: the sample has no such trace." for row in unseen.itertuples()]
    display(Markdown("\n".join([f"On {n}:", "", *told, "", "Where a threshold is chosen on few problems, it, too, is "
                                "noise that the intervals do not hold. Dotted: what a coin gets."])))

# %% [markdown]
# ## What we saw

# %%
pairs, whole = (held_out.set_index("metric").loc[m] for m in ("pair accuracy", "group accuracy"))
display(Markdown(f"""
- One score is trained by labels, total and the ranking inside a group. On {len(references)} held-out groups {pairs['value']:.3f}
  [{pairs['low']:.3f}, {pairs['high']:.3f}] of pairs are in order, and {whole['value']:.3f} of references are above *all* of theirs.
- {'Every kind of flaw is seen' if worst['accuracy'] >= 0.85 else 'Not every kind of flaw is seen'}: the hardest, {worst['kind'].replace('_', ' ')},
  ranks at {worst['accuracy']:.2f}.
- Likelihood alone ranks {likelihood['pair_accuracy']:.3f} of pairs, and orders flawed traces with {likelihood['rank_correlation']:.2f} against
  {rm['rank_correlation']:.2f}: knowing what should stand there, and saying how much a departure costs, are two skills."""))

# %% [markdown]
# **Try it yourself.** `OVERRIDES = {"reward_model.lm_weight": 0.0}` takes the doubt away and leaves the paper's losses
# alone; `{"groups.leave_out": ["misread_quantity"]}` keeps one kind out of training: is it seen all the same?
# `{"reward_model.dimension_loss": "mse"}` changes how labels are learned. Compare ranking and calibration.
#
# ## Exercises
#
# 1. *A bounded loss.* $q$ lies in [0, 1]. What is the smallest value that the ranking term can take, and how large is its
#    gradient by $q(z^+) - q(z^-)$ there? Why does it matter that the ranking is not the only loss?
# 2. *Ties.* An RM gives every trace the same $q$. What pair accuracy does it get if ties count half, as in all tables
#    here, and if they are no win? Which one should a paper report?
# 3. *Which head does the work?* Score the test traces by the derived part alone, $\sum_i w_i \mathbb E[\text{label}_i] / 4$,
#    and by the total head alone. Which ranks better? Is their mean better than both?
#
# Solutions carry the tag `solution` and are folded.

# %% tags=["exercise"]
smallest = None  # your turn (exercise 1): the smallest value of the ranking term, to three digits
gradient = None  # and its gradient by q(z+) - q(z-) there
if smallest is not None:
    assert abs(np.exp(-smallest) - 1 / (1 + np.exp(-1))) < 1e-3, "put the largest difference that q allows into the term"
    assert abs(gradient - (np.exp(-smallest) - 1)) < 1e-3, "the derivative of -log sigmoid(d) is sigmoid(d) - 1"
    print("right")

# %% [markdown] tags=["solution"]
# <details><summary><b>Solutions</b></summary>
#
# **1.** The difference is at most 1, so the term is at least $-\log \sigma(1) = 0.313$, never 0, and its gradient there
# is $-(1 - \sigma(1)) = -0.27$: the ranking goes on pushing references to 1 and flawed traces to 0, however well they are
# ordered. Alone it would destroy the scale, and $q$ is multiplied with the uplift; labels and total hold the scale.
#
# **2.** One half, and 0. Half is right for comparing with chance; no win is right if the score is to be used, as a tie
# gives no preference. Exact ties hardly occur with real-valued heads, so for the RM the convention changes nothing; a judge
# that answers in whole numbers has many, and there a report must say which it takes.
#
# **3.** The cell below takes the expected labels from the stored scores, and the total head from $q$: total $= 2q -$ derived.
# The two parts make different errors, so their mean is usually at least as good as the weaker one; whether it beats both
# depends on the training.
#
# </details>

# %% tags=["solution"] jupyter={"source_hidden": true}
gap = torch.tensor(1.0, requires_grad=True)
(-torch.nn.functional.logsigmoid(gap)).backward()
print(f"exercise 1: at least {-torch.nn.functional.logsigmoid(torch.tensor(1.0)):.3f}, gradient {gap.grad:.3f}")
same = test.assign(q=0.5)
wins = pair_wins(same)["win"]
print(f"exercise 2: ties half {wins.mean()}, no win {(wins == 1).mean()}")
names_of = [column for column in test if column.startswith("expected_")]
parts = test.assign(derived=test[names_of].mean(axis=1) / 4)
parts = parts.assign(total_head=2 * parts["q"] - parts["derived"])
for part in ("derived", "total_head", "q"):
    print(f"exercise 3: {part:10} pair accuracy {pair_wins(parts.assign(q=parts[part]))['win'].mean():.3f}")

# %% [markdown]
# **Next:** [03_executor_uplift](03_executor_uplift.ipynb).

# %%
display(Markdown("\n".join(f"- {a.cost()}" for a in (files, scores_file))))
