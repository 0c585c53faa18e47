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
# # 04 · GRPO from scratch
#
# Notebook 05 trains planners with TRL's `GRPOTrainer`. This one opens the box: the whole algorithm in about sixty lines
# of torch, on a planner so small that a training run takes a second. The lines are not a sketch. A test takes the cells
# tagged `grpo` out of this notebook and checks that loss and gradients equal TRL's on the same batch
# (`tests/test_grpo_notebook.py`).
#
# **After this notebook you can** write GRPO down from memory, say what the clip, the KL term and the three ways of
# averaging do to a gradient, and predict what happens when you change the group size, rescale the reward, or let all
# completions of a group earn the same.
#
# **Time:** about a minute and a half; it needs no model and none of the other notebooks. You should know the policy
# gradient $\nabla \mathbb E[r] = \mathbb E[r\,\nabla \log \pi]$.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
import copy
import functools
import itertools
import time
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy import stats

from tracelift_lib.planner import theory
from tracelift_lib.planner.rewards import ARMS
from tracelift_lib.runs import report
from tracelift_lib.runs.pipeline import Run

# %%
begin = time.monotonic()
torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other
report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
K, K_0, n = run.preset.execution.k, run.preset.execution.baseline_samples, run.preset.simulated_groups
STEPS = min(40, n // 1000)  # of one training run
SEEDS = [1000 * run.preset.seed + i for i in range(5 if n >= 10_000 else 2)]
print(f"{len(SEEDS)} seeds x {STEPS} steps a training run; {n} groups a simulation")

# %% [markdown]
# ## A toy world with known truth
#
# A problem names three calculations, say `acb`, and a good trace makes them in that order. The planner writes a trace
# from six tokens: the end `.`, a filler `~` ("let me think"), and the calculations `a` to `d`. At most eight tokens;
# a trace that has not ended by then is unfinished.
#
# The executor and the reward model are replaced by a table. It says how often the executor succeeds with a trace
# ($p_z$) and how good the trace reads ($q$). The executor can fill *one* gap by itself, so a trace with a gap is as
# useful as a complete one; only quality tells them apart. Fillers change neither.

# %%
VOCABULARY = ".~abcd"
END, FILLER, LENGTH, P_0 = 0, 1, 8, 0.3  # P_0: success of the executor without a trace
HABITS = pd.DataFrame({"complete": (0.95, 1.0), "gap": (0.95, 0.6), "bare": (0.3, 0.2), "wrong": (0.05, 0.3),
                       "unfinished": (0.0, 0.0)}, index=["p_z", "q"]).T
PROBLEMS = torch.tensor(list(itertools.permutations(range(2, 6), 3)))


@functools.cache
def habit(problem, trace):
    """What kind of trace this is: the number of its row in HABITS."""
    if END not in trace:
        return 4
    steps = [t for t in trace[:trace.index(END)] if t != FILLER]
    if len(steps) == 3:
        return 0 if steps == list(problem) else 3
    if tuple(steps) not in itertools.combinations(problem, len(steps)):
        return 3
    return 1 if len(steps) == 2 else 2


HABITS

# %% [markdown]
# ## The planner, with mixed habits
#
# The planner is a real language model, only small: embedding, GRU, output layer; about eleven thousand weights. It
# reads the problem, then writes token by token. As in the tiny world, a short supervised warm start gives it mixed
# habits: it can write complete traces, but often does not.

# %%
class Planner(torch.nn.Module):
    """tokens (N, T) -> logits of the next token at every place (N, T, 6)."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(6, 24)
        self.gru = torch.nn.GRU(24, 48, batch_first=True)
        self.head = torch.nn.Linear(48, 6)

    def forward(self, tokens):
        return self.head(self.gru(self.embedding(tokens))[0])


def habitual_trace(problem, rng):
    """A trace as the warm start shows it: complete, with a gap, with one wrong step, or bare; fillers anywhere."""
    steps, kind = list(problem), rng.choice(4, p=[0.3, 0.35, 0.2, 0.15])
    if kind == 1:
        del steps[rng.integers(3)]
    if kind == 2:
        steps[rng.integers(3)] = int(rng.integers(2, 6))
    padded = [t for step in (steps if kind < 3 else []) for t in [FILLER] * (rng.geometric(0.75) - 1) + [step]]
    return (padded + [END] * LENGTH)[:LENGTH]

# %% [markdown]
# ## GRPO, line by line
#
# **1. Sample.** For each of $B$ problems the planner writes a *group* of $G$ completions, $N = BG$ in all. They differ
# in length, so a mask $m_{i,t}$ marks the tokens that count: everything up to and including the first end token. What
# the sampler draws after the end is never looked at.

# %% tags=["grpo"]
def completion_mask(completions, end):
    """1 up to and including the first `end` token, 0 after it: (N, L)."""
    ended = completions == end
    return (ended.cumsum(1) - ended.long() == 0).float()


@torch.no_grad()
def sample(model, prompts, generations, length, end):
    """Prompts (B, P) -> tokens with the prompt (B*G, P + L), and the mask of the completions (B*G, L)."""
    tokens = prompts.repeat_interleave(generations, dim=0)
    for _ in range(length):
        chances = model(tokens)[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1)], dim=1)
    return tokens, completion_mask(tokens[:, -length:], end)

# %% [markdown]
# **2. Log-probabilities.** $\log \pi_\theta(o_{i,t} \mid x, o_{i,<t})$ of every completion token. The model's output at
# one place is its prediction for the *next*, hence the shift by one.

# %% tags=["grpo"]
def token_logps(model, tokens, length):
    """Log-probability of each of the last `length` tokens, given all before it: (N, L)."""
    logits = model(tokens)[:, -length - 1:-1]
    return logits.log_softmax(-1).gather(-1, tokens[:, -length:, None]).squeeze(-1)

# %% [markdown]
# **3. Advantages.** A completion is compared with its own group and nothing else:
#
# $$A_i = \frac{r_i - \operatorname{mean}(r_1, \dots, r_G)}{\operatorname{std}(r_1, \dots, r_G) + \epsilon},
# \qquad \epsilon = 10^{-4},$$
#
# where the standard deviation has $G - 1$ in its denominator (torch's default, and TRL's). With `scale=False` the
# division is left out, as Dr. GRPO recommends and TRL offers as `scale_rewards="none"`. All tokens of a completion
# share its advantage.

# %% tags=["grpo"]
def group_advantages(rewards, scale=True):
    """Rewards (B, G) -> advantages (B, G)."""
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + 1e-4) if scale else centred

# %% [markdown]
# **4. Clipped ratio.** Sampling is the expensive part, so a batch may serve several gradient steps ("inner epochs").
# From the second on, the policy is no longer the one that sampled. The ratio corrects for that, and the clip keeps it
# from being trusted too far:
#
# $$\rho_{i,t} = \frac{\pi_\theta(o_{i,t} \mid \cdot)}{\pi_\text{old}(o_{i,t} \mid \cdot)}, \qquad
# \ell_{i,t} = \min\big(\rho_{i,t} A_i,\; \operatorname{clip}(\rho_{i,t},\, 1 - \varepsilon_\text{low},\, 1 +
# \varepsilon_\text{high})\, A_i\big).$$

# %% tags=["grpo"]
def clipped_objective(ratio, advantages, low=0.2, high=0.2):
    """Per-token objective (N, L), to be maximised; ratio (N, L), advantages (N, 1)."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)

# %% [markdown]
# **5. KL, if wanted.** A penalty $\beta$ holds the policy near a reference (usually the start). The KL divergence is
# estimated per token by Schulman's "k3",
#
# $$\hat k_{i,t} = \frac{\pi_\text{ref}}{\pi_\theta} - \log \frac{\pi_\text{ref}}{\pi_\theta} - 1 \;\ge\; 0 .$$
#
# TRL multiplies it with the ratio $\rho$ by default. That looks like a detail; a check below shows what it is for.

# %% tags=["grpo"]
def k3(logps, ref_logps):
    """Per-token estimate of KL(policy || reference) from tokens that the policy drew: (N, L)."""
    difference = ref_logps - logps
    return difference.exp() - difference - 1

# %% [markdown]
# **6. Averaging.** Three ways to make one number of $N$ completions with lengths $L_i = \sum_t m_{i,t}$:
#
# $$\texttt{grpo}: \frac1N \sum_i \frac1{L_i} \sum_t m_{i,t}\,\ell_{i,t} \qquad
#   \texttt{dapo}: \frac{1}{\sum_i L_i} \sum_{i,t} m_{i,t}\,\ell_{i,t} \qquad
#   \texttt{dr\_grpo}: \frac{1}{N L_\text{max}} \sum_{i,t} m_{i,t}\,\ell_{i,t} .$$
#
# They differ only in what a *token* weighs: in `grpo` one over its own completion's length, in `dapo` the same for all
# tokens of this batch, in `dr_grpo` the same for all tokens of all batches.

# %% tags=["grpo"]
def average(values, mask, form, longest):
    """Per-token values (N, L) -> one number; `longest` is the largest allowed length, used by dr_grpo only."""
    if form == "grpo":
        return ((values * mask).sum(1) / mask.sum(1)).mean()
    if form == "dapo":
        return (values * mask).sum() / mask.sum()
    if form == "dr_grpo":
        return (values * mask).sum() / (len(values) * longest)
    raise ValueError(f"unknown loss form {form!r}: grpo, dapo or dr_grpo")

# %% [markdown]
# **7. The loss** puts 4, 5 and 6 together. Minus, because optimisers minimise.

# %% tags=["grpo"]
def grpo_loss(logps, old_logps, mask, advantages, form, longest, low=0.2, high=0.2,
              ref_logps=None, beta=0.0, corrected=True):
    """The loss of N completions; logps, old_logps, ref_logps, mask: (N, L), advantages: (N,)."""
    ratio = (logps - old_logps).exp()
    objective = clipped_objective(ratio, advantages[:, None], low, high)
    if beta:
        kl = k3(logps, ref_logps)
        objective = objective - beta * (kl * ratio if corrected else kl)
    return -average(objective, mask, form, longest)

# %% [markdown]
# **8. One step.** Sample, ask for rewards, then `epochs` gradient steps on the same batch. In the first of them
# $\pi_\theta = \pi_\text{old}$, all ratios are 1 and nothing is clipped, but the *gradient* of $\rho$ is that of
# $\log \pi$: the plain policy gradient.

# %% tags=["grpo"]
def grpo_step(model, optimizer, prompts, reward, *, generations, length, end, epochs=1, scale=True, form="grpo",
              reference=None, **loss_settings):
    """One GRPO step; `reward` takes tokens and mask and returns (B*G,). Returns the batch for logging."""
    tokens, mask = sample(model, prompts, generations, length, end)
    rewards = reward(tokens, mask).view(-1, generations)
    advantages = group_advantages(rewards, scale).flatten()
    with torch.no_grad():
        old_logps = token_logps(model, tokens, length)
        ref_logps = token_logps(reference, tokens, length) if reference else None
    for _ in range(epochs):
        loss = grpo_loss(token_logps(model, tokens, length), old_logps, mask, advantages, form, length,
                         ref_logps=ref_logps, **loss_settings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tokens, mask, rewards

# %% [markdown]
# That is all of GRPO: no value network, no replay buffer, no bootstrapping. What TRL adds is for large models: prompts
# of different length (padded on the left), a sampling temperature (it divides the logits here and there), generation by
# a server, many devices, and batches that are computed in parts (for `dapo`, $\sum_i L_i$ then runs over all parts).
#
# ## The reward
#
# Rewards are those of `tracelift_lib.rewards`: one executor run gives $s$, $K$ further ones against a baseline of $K_0$
# runs without a trace give $\hat u$. As in training, an unfinished trace earns 0.

# %%
def kinds(tokens):
    """Habit of each completion: (N,) numbers of rows of HABITS."""
    return np.array([habit(tuple(row[:3]), tuple(row[3:])) for row in tokens.tolist()])


def toy_reward(arm, generations, rng, factor=1.0):
    """A reward function for `grpo_step` that draws the executor's runs anew at every call."""
    def reward(tokens, mask):
        kind = kinds(tokens).reshape(-1, generations)
        p, q = HABITS["p_z"].to_numpy()[kind], HABITS["q"].to_numpy()[kind]
        s, u = theory.simulate(rng, len(kind), p, P_0, K, K_0, shared=True)
        return torch.tensor(factor * (kind != 4) * ARMS[arm](s, q, u, q), dtype=torch.float32).flatten()
    return reward

# %% [markdown]
# Warm start: supervised learning on habitual traces, then eight samples. Read them: which would the executor manage
# with?

# %%
rng = np.random.default_rng(run.preset.seed)
torch.manual_seed(run.preset.seed)
start = Planner()
optimizer = torch.optim.Adam(start.parameters(), lr=1e-2)
for _ in range(300):
    prompts = PROBLEMS[rng.integers(len(PROBLEMS), size=64)]
    traces = torch.tensor([habitual_trace(p, rng) for p in prompts.tolist()])
    logps = token_logps(start, torch.cat([prompts, traces], 1), LENGTH)
    loss = -average(logps, completion_mask(traces, END), "dapo", LENGTH)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

tokens, mask = sample(start, PROBLEMS[:8], 1, LENGTH, END)
for row, length, kind in zip(tokens.tolist(), mask.sum(1).int().tolist(), kinds(tokens)):
    text = "".join(VOCABULARY[t] for t in row)
    print(f"{text[:3]} -> {text[3:3 + length]:8}  {HABITS.index[kind]}")

# %% [markdown]
# ## Training
#
# A run repeats `grpo_step` and logs what the samples look like: expected success, share of complete traces, length,
# share of groups whose rewards are all equal, and the KL divergence from the start.

# %%
def drift(model, other, tokens, mask):
    """KL(model || other) of the next token, exact, averaged over the places that the completions visit."""
    with torch.no_grad():
        p, q = (m(tokens)[:, -LENGTH - 1:-1].log_softmax(-1) for m in (model, other))
    return average((p.exp() * (p - q)).sum(-1), mask, "dapo", LENGTH).item()


# %%
DEFAULTS = {"generations": 8, "completions": 64, "lr": 5e-3, "optimizer": "Adam", "arm": "tracelift", "factor": 1.0}


def train(seed, steps=STEPS, **settings):
    """One run from the warm start: a row of the log a step."""
    o = SimpleNamespace(**{key: settings.pop(key, value) for key, value in DEFAULTS.items()})
    torch.manual_seed(seed)
    rng, model, rows = np.random.default_rng(seed), copy.deepcopy(start), []
    optimizer = getattr(torch.optim, o.optimizer)(model.parameters(), lr=o.lr)
    reward = toy_reward(o.arm, o.generations, rng, o.factor)
    for step in range(steps):
        prompts = PROBLEMS[rng.choice(len(PROBLEMS), o.completions // o.generations)]
        tokens, mask, rewards = grpo_step(model, optimizer, prompts, reward, generations=o.generations, length=LENGTH,
                                          end=END, **settings)
        kind = kinds(tokens)
        rows.append({"seed": seed, "step": step, "success": HABITS["p_z"].to_numpy()[kind].mean(),
                     "complete": (kind == 0).mean(), "length": mask.sum(1).mean().item(),
                     "kl": drift(model, start, tokens, mask),
                     "zero variance": (rewards.amax(1) == rewards.amin(1)).float().mean().item()})
    return rows


# %%
def train_all(label, value, **settings):
    """`train` with every seed; the log with a column `label` = `value`."""
    return pd.DataFrame([row for seed in SEEDS for row in train(seed, **settings)]).assign(**{label: value})


def mean_and_half(values):
    """Mean and half a 95 % interval over axis 0, the seeds (Student's t)."""
    return values.mean(0), stats.t.ppf(0.975, len(values) - 1) * values.std(0, ddof=1) / len(values) ** 0.5


def curves(axis, log, y, by, colors=None, x="step", ylim=(0, 1)):
    """Mean over seeds against `x`, one line for each value of column `by`, with 95 % intervals as bands."""
    for i, (name, rows) in enumerate(log.groupby(by, sort=False)):
        table = rows.pivot(index=x, columns="seed", values=y)
        mean, half = mean_and_half(table.T.to_numpy())
        color = (colors or {}).get(name, f"C{i}")
        axis.plot(table.index, mean, color=color, label=report.LABELS.get(name, name))
        axis.fill_between(table.index, mean - half, mean + half, color=color, alpha=0.2, lw=0)
    axis.set(xlabel=x, ylim=ylim)


def save(figure, name, data, n_words=f"{STEPS} steps of 64 completions"):
    report.save_figure(run, figure, name, data, [], n_words, SEEDS)

# %% [markdown]
# First the question of the whole companion, in the small: the same planner trained with `exec_only` and with
# `tracelift`.

# %%
arms = pd.concat([train_all("arm", arm, arm=arm) for arm in ("exec_only", "tracelift")])
figure, axes = plt.subplots(1, 3, figsize=(2 * report.COLUMN_WIDTH, 2.4))
for axis, y in zip(axes, ("success", "complete", "zero variance")):
    curves(axis, arms, y, "arm", report.PALETTE)
axes[0].set(ylabel="share", title="expected success")
axes[1].set(title="complete traces")
axes[2].set(title="groups without variance")
axes[0].legend(loc="lower right")
save(figure, "grpo_arms", arms)

# %% [markdown]
# Bands are 95 % intervals over seeds, here and below. Both rewards teach the planner to succeed. Under `exec_only` a
# gap costs nothing, so nothing moves the share of complete traces but chance; `tracelift` pays for the difference. (The
# table of habits was made to show this. Whether real executors fill gaps so well is a question for notebooks 03 and
# 07.)
#
# The right panel is the topic of experiment 3: as the planner gets good, more and more groups have equal rewards.
#
# ## What the clip does
#
# Left: the objective of one token as a function of the ratio. For $A > 0$ it is flat above $1 + \varepsilon$: a token
# that has become likely enough gets no further push. For $A < 0$ it is flat below $1 - \varepsilon$. In the other two
# corners nothing is cut: a step in the *wrong* direction can always be undone.
#
# Right: one batch, many gradient steps on it. The drift is the KL divergence from the policy that sampled.

# %%
def inner_epochs(seed, clip, epochs=16):
    """Repeated gradient steps on one batch: share of tokens without gradient, and drift, after each."""
    torch.manual_seed(seed)
    rng, model = np.random.default_rng(seed), copy.deepcopy(start)
    optimizer = torch.optim.Adam(model.parameters(), lr=DEFAULTS["lr"])
    tokens, mask = sample(model, PROBLEMS[rng.choice(len(PROBLEMS), 8)], 8, LENGTH, END)
    advantages = group_advantages(toy_reward("tracelift", 8, rng)(tokens, mask).view(-1, 8)).flatten()
    old, rows = token_logps(start, tokens, LENGTH).detach(), []
    for epoch in range(1, epochs + 1):
        logps = token_logps(model, tokens, LENGTH)
        loss = grpo_loss(logps, old, mask, advantages, "grpo", LENGTH, low=clip, high=clip)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ratio, a = (token_logps(model, tokens, LENGTH) - old).exp().detach(), advantages[:, None]
        cut = ((ratio > 1 + clip) & (a > 0)) | ((ratio < 1 - clip) & (a < 0))
        rows.append({"seed": seed, "epoch": epoch, "clip": f"clip {clip}" if clip < 10 else "no clip",
                     "cut": average(cut.float(), mask, "dapo", LENGTH).item(),
                     "drift": drift(model, start, tokens, mask)})
    return rows


inner = pd.DataFrame([row for clip in (0.2, 1e9) for seed in SEEDS for row in inner_epochs(seed, clip)])

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(2 * report.COLUMN_WIDTH, 2.5))
ratio = torch.linspace(0.4, 1.8, 141)
for advantage, color in ((1.0, "C2"), (-1.0, "C3")):
    left.plot(ratio, clipped_objective(ratio, torch.tensor(advantage)), color=color, label=f"A = {advantage:.0f}")
left.set(xlabel="ratio ρ", ylabel="objective of one token", title="the clip")
left.legend()
for axis, y, title in ((middle, "cut", "tokens without gradient"), (right, "drift", "KL from the sampler")):
    curves(axis, inner, y, "clip", x="epoch", ylim=(0, None))
    axis.set(xlabel="gradient steps on one batch", title=title)
right.legend()
save(figure, "grpo_clip", inner, "64 completions a batch")

# %% [markdown]
# The clip does not hold the ratio inside its interval. It only stops *pushing* a token that has left it; momentum and
# the other tokens, which share the same weights, carry it on. So the drift still grows, but slower.
#
# Does it matter for learning? Eight gradient steps a batch, with the clip and without:

# %%
reuse = pd.concat([train_all("clip", name, steps=STEPS // 2, epochs=8, low=clip, high=clip)
                   for name, clip in (("clip 0.2", 0.2), ("no clip", 1e9))])
figure, axis = plt.subplots()
curves(axis, reuse, "success", "clip")
axis.set(ylabel="expected success", title="Eight gradient steps a batch")
axis.legend(loc="lower right")
save(figure, "grpo_clip_training", reuse, f"{STEPS // 2} steps of 64 completions")

# %% [markdown]
# ## What the KL term does
#
# Averaged over tokens that $\pi_\theta$ draws, k3 *is* the KL divergence: $\mathbb E[\hat k] = \mathbb E[\pi_\text{ref}
# / \pi_\theta] - 1 + \operatorname{KL}(\pi_\theta \Vert \pi_\text{ref})$, and the first two cancel. But the expectation
# of its *gradient* is not the gradient of that divergence. The tokens come from $\pi_\theta$, and differentiating the
# samples' value alone ignores that. What one gets instead is the gradient of $\operatorname{KL}(\pi_\text{ref} \Vert
# \pi_\theta)$, the divergence the other way round. The factor $\rho$ (value 1, gradient $\nabla \log \pi_\theta$)
# repairs it. Exactly, for one token:

# %%
torch.manual_seed(run.preset.seed)
logits, ref = torch.randn(6, dtype=torch.double, requires_grad=True), torch.randn(6, dtype=torch.double).log_softmax(0)
logps = logits.log_softmax(0)
old = logps.detach()  # the sampler is the policy itself
gradients = {
    "k3": (old.exp() * k3(logps, ref)).sum(),
    "k3 times ratio": (old.exp() * k3(logps, ref) * (logps - old).exp()).sum(),
    "KL(policy || reference)": (logps.exp() * (logps - ref)).sum(),
    "KL(reference || policy)": (ref.exp() * (ref - logps)).sum(),
}
kl = pd.DataFrame({name: torch.autograd.grad(value, logits, retain_graph=True)[0].numpy()
                   for name, value in gradients.items()}).T
assert np.allclose(kl.loc["k3"], kl.loc["KL(reference || policy)"])
assert np.allclose(kl.loc["k3 times ratio"], kl.loc["KL(policy || reference)"])
assert np.isclose(gradients["k3"].item(), gradients["KL(policy || reference)"].item())
report.save_table(run, kl.rename_axis("gradient of").reset_index(), "grpo_kl_gradient", [], "exact, one token").round(3)

# %% [markdown]
# In training, the term holds the planner back, whether it moves in a good direction or a bad one:

# %%
held = pd.concat([arms[arms["arm"] == "tracelift"].assign(beta="β = 0"),
                  train_all("beta", "β = 1", beta=1.0, reference=start)])
figure, axes = plt.subplots(1, 2, figsize=(2 * report.COLUMN_WIDTH, 2.4))
curves(axes[0], held, "kl", "beta", ylim=(0, None))
curves(axes[1], held, "complete", "beta")
axes[0].set(title="KL from the warm start (a token)")
axes[1].set(title="complete traces")
axes[0].legend()
save(figure, "grpo_kl", held)

# %% [markdown]
# ## The three averages
#
# Left: what one token weighs in the loss, against the length of its completion (64 completions of 4 tokens on average).
# With `grpo`, a long completion's tokens weigh little. So a long *wrong* trace is punished less per token than a short
# wrong one, and a short *right* one is pushed up more than a long right one. `dapo` and `dr_grpo` weigh all tokens
# alike; they differ by one factor, which changes from batch to batch with the mean length.

# %%
forms = pd.concat([arms[arms["arm"] == "tracelift"].assign(form="grpo"),
                   *(train_all("form", form, form=form) for form in ("dapo", "dr_grpo"))])
lengths = np.arange(1, LENGTH + 1)
weights = {"grpo": 1 / lengths, "dapo": np.full(LENGTH, 1 / 4), "dr_grpo": np.full(LENGTH, 1 / LENGTH)}
figure, axes = plt.subplots(1, 3, figsize=(2 * report.COLUMN_WIDTH, 2.4))
for form, weight in weights.items():
    axes[0].plot(lengths, weight / 64, ".-", label=form)
axes[0].set(xlabel="length of the completion", ylabel="weight of one token", title="token weight", ylim=(0, None))
axes[0].legend()
curves(axes[1], forms, "complete", "form")
curves(axes[2], forms, "length", "form")
axes[1].set(title="complete traces")
axes[2].set(title="mean length (tokens)", ylim=(3, 5))
save(figure, "grpo_loss_forms", forms)

# %% [markdown]
# In this world little depends on the choice: traces are short, and length has little to do with reward. Where completions
# run from ten to a thousand tokens, the factor between token weights is a hundred, not eight.
#
# ## Experiment 1: group size
#
# A step has 64 completions. Shall they be 32 groups of 2 or 2 groups of 32? Two things change.
#
# *Groups without variance.* For a binary reward with success $p$, all $G$ rewards are equal with probability
# $p^G + (1 - p)^G$. Such a group has zero advantage throughout.
#
# *Noise.* A group's mean is a noisy baseline, and every completion is in its own baseline: the expected centred update
# is $(1 - 1/G)$ times the policy gradient. Large groups have better baselines, but fewer problems fit into a step, and
# problems differ.
#
# To measure the noise we take, at the warm start, a pool of completions with the gradient of each, draw many groups
# from it and compare the update's mean with its spread.

# %%
per_problem = max(4, STEPS)
torch.manual_seed(run.preset.seed)
pool, pool_mask = sample(start, PROBLEMS, per_problem, LENGTH, END)
pool_kind, rows = kinds(pool), []
for one, m in zip(pool.split(1), pool_mask.split(1)):
    gradient = torch.autograd.grad((token_logps(start, one, LENGTH) * m).sum(), start.parameters())
    rows.append(torch.cat([g.flatten() for g in gradient]))
products = torch.stack(rows) @ torch.stack(rows).T  # inner products of all pairs of gradients

# %%
def update_snr(generations, scale, groups, problems=len(PROBLEMS)):
    """|mean| / sqrt(total variance) of the update of 64 completions in groups of `generations`."""
    problem = rng.integers(problems, size=(groups, 1))
    chosen = problem * per_problem + rng.integers(per_problem, size=(groups, generations))
    p, q = HABITS["p_z"].to_numpy()[pool_kind[chosen]], HABITS["q"].to_numpy()[pool_kind[chosen]]
    s, u = theory.simulate(rng, groups, p, P_0, K, K_0, shared=True)
    r = torch.tensor((pool_kind[chosen] != 4) * ARMS["tracelift"](s, q, u, q), dtype=torch.float32)
    weight = torch.zeros(groups, len(pool)).scatter_add_(1, torch.tensor(chosen), group_advantages(r, scale))
    weight /= generations
    squares = ((weight @ products) * weight).sum(1).mean()  # E |g|^2 of one group
    mean = weight.mean(0)
    total = mean @ products @ mean  # |mean g|^2, with 1 / groups of the variance in it
    signal = (groups * total - squares) / (groups - 1)
    return (signal / ((squares - signal) / (64 / generations))).clamp(min=0).sqrt().item()


# %%
sizes = (2, 4, 8, 16, 32)
cases = {"÷ std": (True, len(PROBLEMS)), "centred": (False, len(PROBLEMS)), "÷ std, one problem": (True, 1)}
noise = []
for g, (name, (scale, problems)) in itertools.product(sizes, cases.items()):
    mean, half = mean_and_half(np.array([update_snr(g, scale, n // 100, problems) for _ in range(5)]))
    noise.append({"case": name, "G": g, "snr": mean, "low": mean - half, "high": mean + half})
noise = pd.DataFrame(noise)
zero = []
for g, p in itertools.product(sizes, np.linspace(0.05, 0.95, 10)):
    formula, equal = p**g + (1 - p) ** g, np.isin(rng.binomial(g, p, n), (0, g)).sum()
    zero.append({"G": g, "p": p, "simulated": equal / n, "formula": formula,
                 "tail": min(stats.binom.cdf(equal, n, formula), stats.binom.sf(equal - 1, n, formula))})
zero = pd.DataFrame(zero)
assert (zero["tail"] > theory.FALSE_ALARM / (2 * len(zero))).all()  # chance explains the differences
by_size = pd.concat([arms[arms["arm"] == "tracelift"].assign(G=8) if g == 8 else train_all("G", g, generations=g)
                     for g in sizes])

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(2 * report.COLUMN_WIDTH, 2.5))
p = np.linspace(0, 1, 101)
for i, (g, rows) in enumerate(zero.groupby("G")):
    left.plot(p, p**g + (1 - p) ** g, color=f"C{i}", label=f"G = {g}")
    left.plot(rows["p"], rows["simulated"], ".", color=f"C{i}", ms=4)
left.set(xlabel="success p", ylabel="share of groups", title="no variance (binary)", ylim=(0, 1))
left.legend(fontsize=6)
whole, places = by_size.groupby(["seed", "G"])["complete"].mean(), range(len(sizes))
for name, rows in noise.groupby("case", sort=False):
    bars = [rows["snr"] - rows["low"], rows["high"] - rows["snr"]]
    middle.errorbar(places, rows["snr"], bars, fmt=".-", label=name)
middle.set(title="SNR of a step of 64", ylabel="signal to noise")
middle.legend(fontsize=6)
mean, half = mean_and_half(whole.unstack("G").to_numpy())
right.errorbar(places, mean, half, fmt=".-", color="C4")
right.set(title="complete, mean of a run", ylabel="share")
for axis in (middle, right):
    axis.set(xticks=places, xticklabels=sizes, xlabel="group size G", ylim=(0, None))
report.save_table(run, zero.drop(columns="tail"), "grpo_zero_variance_formula", [], f"{n} simulated groups a point")
report.save_table(run, noise, "grpo_update_noise", [], f"5 x {n // 100} simulated groups a point")
save(figure, "grpo_group_size", whole.reset_index(),
     f"left {n} groups a point, middle 5 x {n // 100}, right {STEPS} steps of 64 completions")

# %% [markdown]
# Small groups have poor baselines and are often all equal; large ones leave few problems for a step. The third line,
# where all completions of a step belong to one problem, shows the baseline alone: there larger groups are better.
#
# ## Experiment 2: the scale of the reward
#
# Multiply all rewards by $c$. With the division by the standard deviation, $c$ cancels, except for $\epsilon$: once $c$
# times the spread is near $10^{-4}$, the advantages shrink. Without it, the gradient grows with $c$, and with plain
# gradient descent $c$ acts exactly like a learning rate. Adam divides the gradient by its own running size, so under
# Adam the scale cancels once more. (Not with a KL term: its gradient does not grow with $c$, so $c$ and $\beta$ pull
# against each other.)

# %%
def gradient_norm(factor, scale):
    """Norm of the loss gradient at the warm start, on one fixed batch."""
    torch.manual_seed(run.preset.seed)
    tokens, mask = sample(start, PROBLEMS, 8, LENGTH, END)
    rewards = toy_reward("tracelift", 8, np.random.default_rng(run.preset.seed), factor)(tokens, mask).view(-1, 8)
    logps = token_logps(start, tokens, LENGTH)
    loss = grpo_loss(logps, logps.detach(), mask, group_advantages(rewards, scale).flatten(), "grpo", LENGTH)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, start.parameters())]).norm().item()


norms = pd.DataFrame([{"c": c, "divided by std": scale, "norm": gradient_norm(c, scale)}
                      for c in np.logspace(-5, 2, 22) for scale in (True, False)])
plans = {"SGD, ÷ std": ("SGD", 0.5, True), "SGD, centred": ("SGD", 0.5, False), "Adam, centred": ("Adam", 5e-3, False)}
scales = pd.concat([
    train_all("plan", name, steps=STEPS // 2, optimizer=optimizer, lr=lr, scale=scale, factor=c).assign(c=c)
    for name, (optimizer, lr, scale) in plans.items() for c in (0.1, 1.0, 10.0)])
ends = scales[scales["step"] >= STEPS // 2 - 3].groupby(["plan", "c", "seed"], sort=False)["complete"].mean()

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(2 * report.COLUMN_WIDTH, 2.5))
for i, (scale, rows) in enumerate(norms.groupby("divided by std")):
    left.loglog(rows["c"], rows["norm"], color=f"C{i}", label="÷ std" if scale else "centred")
left.set(xlabel="reward scale c", title="norm of the gradient, one batch")
left.legend()
for i, (plan, rows) in enumerate(ends.groupby("plan", sort=False)):
    mean, half = mean_and_half(rows.unstack("seed").T.to_numpy())
    right.errorbar(np.array([0.1, 1.0, 10.0]) * 1.08 ** (i - 1), mean, half, fmt=".-", color=f"C{2 + i}", label=plan)
right.set(xscale="log", xlabel="reward scale c", title="complete traces at the end", ylim=(0, 1.02))
right.legend()
report.save_table(run, norms, "grpo_gradient_norm", [], "one batch of 192 completions")
save(figure, "grpo_reward_scale", ends.reset_index(), f"{STEPS // 2} steps of 64 completions")

# %% [markdown]
# **The paper's weights.** $r = \tfrac12 s + \tfrac12 q\,\hat u$: with the division, only the *ratio* of the two weights
# matters, not that they are halves. Four traces as in notebook 05, with $(s, q, \hat u)$:

# %%
parts = torch.tensor([(1, 0.95, 0.9), (1, 0.60, 0.9), (0, 0.35, -0.1), (1, 0.95, 0.9)])
names = ["complete", "gap, right answer", "wrong", "complete"]
s, bonus = parts[:, 0], parts[:, 1] * parts[:, 2]
assert torch.allclose(0.5 * s + 0.5 * bonus, ARMS["tracelift"](s, parts[:, 1], parts[:, 2], 0.0))
mixes = {"½, ½ (paper)": (0.5, 0.5), "1, 1": (1.0, 1.0), "0.9, 0.1": (0.9, 0.1), "0.1, 0.9": (0.1, 0.9)}
mixed = pd.DataFrame({name: group_advantages((a * s + b * bonus)[None])[0].numpy() for name, (a, b) in mixes.items()},
                     index=names)
assert np.allclose(mixed["½, ½ (paper)"], mixed["1, 1"], atol=1e-3)  # they differ through epsilon alone
mixed.round(3)

# %% [markdown]
# ## Experiment 3: groups without variance
#
# **What they cost.** A group with equal rewards was sampled, executed and scored, and adds nothing to the gradient. But
# it counts in the denominator: with `grpo` and `dr_grpo`, a share $w$ of such groups makes the gradient exactly $1 - w$
# times that of the other groups alone. (With `dapo`, $w$ is their share of the tokens.)

# %%
torch.manual_seed(run.preset.seed)
tokens, mask = sample(start, PROBLEMS, 4, LENGTH, END)
rewards = toy_reward("exec_only", 4, np.random.default_rng(run.preset.seed))(tokens, mask).view(-1, 4)
alive = (rewards.amax(1) > rewards.amin(1)).repeat_interleave(4)
advantages, gradients = group_advantages(rewards).flatten(), {}
for form, rows in itertools.product(("grpo", "dr_grpo"), (torch.ones_like(alive), alive)):
    logps = token_logps(start, tokens[rows], LENGTH)
    loss = grpo_loss(logps, logps.detach(), mask[rows], advantages[rows], form, LENGTH)
    flat = [g.flatten() for g in torch.autograd.grad(loss, start.parameters())]
    gradients.setdefault(form, []).append(torch.cat(flat))
w = 1 - alive.float().mean()
for whole, part in gradients.values():
    assert torch.allclose(whole, (1 - w) * part, atol=1e-6)
print(f"{w:.0%} of the groups without variance at the warm start (G = 4, exec_only)")

# %% [markdown]
# **What TraceLift's bonus changes.** $s$ is 0 or 1, but $q\,\hat u$ takes many values, so fewer groups are all equal.
# Is that a gain? Take policies on the way from the warm start (0) to complete traces only (1). Left: the share of
# groups without variance. Right: how much of the advantages' variance the kind of trace explains,
# $\operatorname{Var}(\mathbb E[A \mid \text{kind}]) / \mathbb E[A^2]$. The rest is the noise of the executor's runs and
# of the group.

# %%
warm = np.bincount(pool_kind, minlength=5) / len(pool_kind)
rows = []
for done, arm in itertools.product(np.linspace(0, 1, 11), ("exec_only", "tracelift")):
    shares = (1 - done) * warm + done * np.eye(5)[0]
    z = rng.choice(5, size=(n // 10, 8), p=shares)
    p, q = HABITS["p_z"].to_numpy()[z], HABITS["q"].to_numpy()[z]
    s, u = theory.simulate(rng, len(z), p, P_0, K, K_0, shared=True)
    r = ARMS[arm](s, q, u, q) * (z != 4)
    a = group_advantages(torch.tensor(r)).numpy()
    means = np.array([a[z == kind].mean() if (z == kind).any() else 0 for kind in range(5)])
    rows.append({"arm": arm, "on the way": done, "zero variance": (r.max(1) == r.min(1)).mean(),
                 "explained": (means[z] ** 2).mean() / (a**2).mean()})
way = pd.DataFrame(rows)

# %%
figure, axes = plt.subplots(1, 2, figsize=(2 * report.COLUMN_WIDTH, 2.5))
for axis, y, title in zip(axes, ("zero variance", "explained"), ("groups without variance", "explained by the trace")):
    for arm, points in way.groupby("arm", sort=False):
        axis.plot(points["on the way"], points[y], ".-", color=report.PALETTE[arm], label=report.LABELS[arm])
    axis.set(xlabel="from warm start to complete traces only", ylabel="share", title=title, ylim=(0, 1))
axes[0].legend()
report.save_figure(run, figure, "grpo_zero_variance", way, [], f"{n // 10} simulated groups of 8 a point")

# %% [markdown]
# Alive is not the same as informative. At the right end all traces are equal, so whatever advantage there is comes from
# the executor's runs. `exec_only` stops pushing in most groups there; `tracelift` goes on, and the division by a small
# standard deviation blows the noise up to advantages of the usual size.

# %%
def end(log, column, **where):
    """`0.91 [0.88, 0.94]`: mean over the last quarter of the steps, with the interval over seeds."""
    for key, value in where.items():
        log = log[log[key] == value]
    mean, half = mean_and_half(log[log["step"] >= 0.75 * log["step"].max()].groupby("seed")[column].mean().to_numpy())
    return report.with_interval(mean, mean - half, mean + half, 2)


last = inner[inner["epoch"] == inner["epoch"].max()].groupby("clip")[["cut", "drift"]].mean()
best = noise[noise["case"] == "÷ std"].set_index("G")["snr"]
done = way[way["on the way"] == 1].set_index("arm")["zero variance"]
display(Markdown(f"""## What we saw

Means over the last quarter of a run, with 95 % intervals over {len(SEEDS)} seeds:

- **The two rewards.** Success {end(arms, "success", arm="exec_only")} with `exec_only` and
  {end(arms, "success", arm="tracelift")} with `tracelift`; complete traces {end(arms, "complete", arm="exec_only")} and
  {end(arms, "complete", arm="tracelift")}.
- **The clip.** After 16 gradient steps on one batch it has taken the gradient from {last.loc["clip 0.2", "cut"]:.0%} of
  the tokens, and the planner is at a KL of {last.loc["clip 0.2", "drift"]:.2f} from the sampler, against
  {last.loc["no clip", "drift"]:.2f} without. With eight steps a batch: success {end(reuse, "success", clip="clip 0.2")}
  with the clip, {end(reuse, "success", clip="no clip")} without.
- **KL.** Distance from the start {end(held, "kl", beta="β = 0")} for β = 0 and {end(held, "kl", beta="β = 1")} for
  β = 1; complete traces {end(held, "complete", beta="β = 0")} and {end(held, "complete", beta="β = 1")}."""))

# %%
display(Markdown(f"""
- **Averages.** Complete traces {", ".join(f"`{f}` {end(forms, 'complete', form=f)}" for f in weights)}; length
  {", ".join(f"`{f}` {end(forms, 'length', form=f)}" for f in weights)} tokens.
- **Group size.** The least noisy step of 64 completions has G = {best.idxmax()} (SNR {best.max():.2f}; G = 2:
  {best[2]:.2f}, G = 32: {best[32]:.2f}).
- **Reward scale.** It cancels with the division by the standard deviation, and under Adam; with plain gradient descent
  and centred advantages it is a learning rate: complete traces {ends["SGD, centred", 0.1].mean():.2f} at c = 0.1,
  {ends["SGD, centred", 10.0].mean():.2f} at c = 10.
- **Groups without variance.** With complete traces only, {done["exec_only"]:.0%} of the groups have none under
  `exec_only` and {done["tracelift"]:.0%} under `tracelift`, and what is left is noise in both.

All of it holds for a toy of eleven thousand weights, known truth and short traces.

**Try it yourself.** `OVERRIDES = {{"execution.k": 1}}`: what happens to the groups without variance under `tracelift`,
and which figures cannot change? Then give the executor no talent for gaps (success 0.6 in `HABITS`): does `exec_only`
now learn complete traces, too?

**Next:** [05_train_planner_lora](05_train_planner_lora.ipynb) does the same with language models, an executor and a
reward model that are not tables."""))

# %% [markdown]
# ## Exercises
#
# 1. *The open corner.* Let $A = -1$ and $\rho = 10$. What is the token's objective, and is its gradient cut? Why could
# a    single token like this spoil a step, and what would you add? (TRL's option is called `delta`.) 2. *Groups of
# two.* Show that for $G = 2$ the divided advantages are $\pm 1/\sqrt 2$ whatever the rewards are, as long    as they
# differ. What does the planner no longer learn from? 3. *Noise at the end.* Repeat experiment 3 with `scale=False` for
# a planner that writes complete traces only. How large    are the advantages of `tracelift`, compared with the warm
# start?
#
# Solutions carry the tag `solution` and are folded.

# %% [markdown] tags=["solution"]
# <details><summary><b>Solutions</b></summary>
#
# **1.** $\min(10 \cdot (-1), 1.2 \cdot (-1)) = -10$, and its gradient is $-10\,\nabla \log \pi$: not cut. The token has
# become ten times likelier though it should become rarer, and pulls with ten times the usual force. `delta` is an upper
# bound of the ratio in the unclipped term, too.
#
# **2.** The mean is half way between, so the deviations are $\pm d/2$, and the standard deviation (with $G - 1 = 1$) is
# $d/\sqrt2$. How *much* better the better one is no longer counts: a difference in quality of 0.01 pushes like one
# between success and failure.
#
# **3.** Below. Without the division the noise stays as small as it is: at the end the advantages are a fraction of
# those at the start, and steps become smaller by themselves.
#
# </details>

# %% tags=["solution"] jupyter={"source_hidden": true}
ratio = torch.tensor([10.0], requires_grad=True)
clipped_objective(ratio, torch.tensor([-1.0])).backward()
print("exercise 1: derivative by the ratio", ratio.grad.item())
pairs = torch.tensor([[0.1, 0.9], [0.4, 0.6], [-3.0, 7.0]])
print("exercise 2:", *(f"{a:+.3f}" for a in group_advantages(pairs).flatten()))
for name, shares in (("warm start", warm), ("complete only", np.eye(5)[0])):
    z = rng.choice(5, size=(n // 10, 8), p=shares)
    p, q = HABITS["p_z"].to_numpy()[z], HABITS["q"].to_numpy()[z]
    s, u = theory.simulate(rng, len(z), p, P_0, K, K_0, shared=True)
    rewards = torch.tensor(ARMS["tracelift"](s, q, u, q) * (z != 4))
    rms = [group_advantages(rewards, scale).square().mean().sqrt().item() for scale in (True, False)]
    print(f"exercise 3: {name}: root mean square advantage {rms[0]:.2f} divided, {rms[1]:.2f} centred")

# %%
print(f"{time.monotonic() - begin:.0f} s for this notebook")
