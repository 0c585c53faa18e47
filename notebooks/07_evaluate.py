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
# # 07 · Evaluation: did it work, what did it change, and why?
#
# Three questions, in this order. Did training work at all, that is, is each trained planner better than the start? Does
# TraceLift differ from exec-only, which is the paper's claim? And *why*: which ways of reasoning could the outcome not
# see, and what became of them?
#
# **After this notebook you can** evaluate a planner in two stages, say which faults a reward on outcomes is blind to,
# compute an interval that counts problems and seeds, and tell "no difference found" from "no difference".
#
# **Time:** what the stages took here stands at the end.

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

from tracelift_lib.evaluation import benchmark_tables, intervals
from tracelift_lib.evaluation.intervals import crossed_interval, holm, newcombe, verdict
from tracelift_lib.runs import evaluate, report
from tracelift_lib.runs.pipeline import WARM_START, Run

report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
settings = run.preset.evaluation
arms, seeds = run.preset.planner_training.arms, run.preset.planner_training.seeds
everyone = ["warm_start", *arms]
names = {policy: report.LABELS.get(policy, policy) for policy in everyone}
palette = dict(zip(everyone, sns.color_palette("colorblind", len(everyone)))) | report.PALETTE

# %% [markdown]
# ## Two stages, as at training time
#
# For every held-out problem the planner draws several traces, at the temperature of training, and the executor answers
# each once. Greedy decoding would hide what we want to see: a planner that reasons badly a quarter of the time may look
# perfect when only its favourite trace counts.

# %%
SPLITS = {
    "test": "new problems like those of training",
    "in_distribution": "new problems like those of training: a gain or loss comes first and second, so their order "
                       "does not matter to the answer",
    "off_distribution": "new problems in which it does matter: who takes the first two events in the wrong order fails",
    "long": "one event more than the planner has ever seen",
}
first = settings.splits[0]
off = "off_distribution" if "off_distribution" in settings.splits else None
if run.preset.second_executor:
    run.make("second_executor")
policies = [WARM_START, *run.policies()]
evaluated = {(p["arm"], p["seed"]): files for p, files in zip(policies, run.make_all("evaluation", policies))}
rows = pd.concat([pd.read_parquet(f.path / "rows.parquet") for f in evaluated.values()], ignore_index=True)
sources, sizes = list(evaluated.values()), rows.groupby("split")["problem_id"].nunique()
n, n_panels = (" + ".join(f"{sizes[s]} {s}" for s in splits) + f" problems x {settings.traces} traces"
               for splits in (settings.splits, [s for s in (first, off) if s]))
n_first = f"{sizes[first]} {first} problems x {settings.traces} traces"
for split in settings.splits:
    print(f"{split}, {sizes[split]} problems: {SPLITS.get(split, '')}")

# %% [markdown]
# For each trace we record what this table defines. The lower half comes from two papers on how to measure reasoning:
# *Outcome Rewards Do Not Guarantee Verifiable or Causally Important Reasoning* ([arXiv
# 2604.22074](https://arxiv.org/abs/2604.22074)) and *Faithfulness as Information Flow* ([arXiv
# 2605.24286](https://arxiv.org/abs/2605.24286)); docs/method.md section 10 has more.
#
# | measure | meaning |
# | --- | --- |
# | success | the executor's answer with the trace is right (end to end) |
# | faithful | the trace makes exactly the true calculations for the true reasons (code: and states the true plan) |
# | quality | the RM's score $q$; biased in favour of an arm that was trained on it |
# | tokens | length of a trace, of well-formed ones only |
# | malformed | share of completions without a well-formed trace: no success, and no length |
# | sufficient | who follows the trace to the letter, without the problem, gets it right (sufficiency, both papers) |
# | causal | success, less the success once one step of the trace is falsified (causal importance, 2604.22074; one falsified step, 2605.24286) |
# | second | success of a second executor, of another seed and size, for which no planner was ever trained |
# | intermediate | success of that second executor when it is asked for the quantity after the *first* event (stories only) |
#
# The last two are readers that no reward has ever paid. A trace that only works for the executor it was trained with, or
# only for the one question, fails them. Without known true steps (public problems) only some of this can be measured.

# %%
truth = "faithful" in rows
if "corrupted" in rows:
    rows["causal"] = rows["success"] - rows["corrupted"]
rows["malformed"], rows["tokens"] = 1 - rows["well_formed"], rows["tokens"].where(rows["well_formed"] == 1)
SHARES = ("success", "faithful", "quality", "malformed", "sufficient", "second", "intermediate")
measures = [m for m in ("success", "faithful", "quality", "tokens", "malformed", "sufficient", "causal", "second", "intermediate")
            if m in rows and rows[m].notna().any()]
if not truth:
    display(Markdown("**The true steps of these problems are not known, so faithfulness is not measured.**"))
rows.groupby(["split", "arm", "seed"])[measures].mean().round(3)

# %% [markdown]
# ## What can the outcome see?
#
# Before any comparison of arms, look at the warm start, from which they all began. Its traces show several *habits*
# (notebook 00 has an example of each). One `groupby`, success by habit, says what a reward on success can possibly teach:

# %%
habits = pd.DataFrame()
if truth:
    start = rows[(rows["arm"] == "warm_start") & (rows["split"] == first)]
    habits = start.groupby("habit")[["success", "quality", "faithful"]].mean()
    habits.insert(0, "share", start["habit"].value_counts(normalize=True))
    habits.insert(0, "problems", start.groupby("habit")["problem_id"].nunique())
    habits = habits.sort_values("share", ascending=False).reset_index()
    display(habits.round(2))

# %% [markdown]
# Is a habit's success the same as that of the full trace? Equal is not the same as "no difference found": we call a habit
# **invisible** to the outcome if the 95 % interval of the difference holds 0 and lies within $\pm 0.10$, *nearly*
# invisible if it lies within $\pm 0.10$ without 0, **visible** if it lies beyond 0, and say *cannot tell* otherwise. Several
# traces of one problem are no independent trials, so the interval counts problems.

# %%
EQUAL = 0.10
SEEN = {"invisible": "the outcome cannot see it", "nearly invisible": "the outcome hardly sees it",
        "visible": "the outcome sees it", "cannot tell": "cannot tell whether the outcome sees it"}


def seen_by_outcome(habit, full):
    """One habit's success against that of the full trace, and the verdict."""
    trials = [(round(r["success"] * r["problems"]), int(r["problems"])) for r in (habit, full)]
    difference, low, high = newcombe(*trials[0], *trials[1])
    small, apart = -EQUAL < low and high < EQUAL, low > 0 or high < 0
    verdict = ("nearly invisible" if apart else "invisible") if small else "visible" if apart else "cannot tell"
    return {"difference": difference, "low": low, "high": high, "outcome": verdict}

# %%
lines = ["- Not measured: the true steps of these problems are not known." if not truth else
         "- The warm start wrote no full trace here, so there is nothing to compare its habits with."]
seen = []
if truth and (habits["habit"] == "full").any():
    by_name = habits.set_index("habit", drop=False)
    others = by_name.drop(index="full")
    seen = [{**r, **seen_by_outcome(r, by_name.loc["full"])} for _, r in others.iterrows()]
    report.save_table(run, pd.DataFrame(seen or [dict(by_name.loc["full"])]), "habits_seen_by_outcome", sources[:1], n_first, [0])
    lines = [f"- **{r['habit']}** ({r['share']:.0%} of the traces, {r['problems']} problems): success {r['success']:.2f} "
             f"against {by_name.loc['full', 'success']:.2f} of the full trace, "
             f"{report.with_interval(r['difference'], r['low'], r['high'], 2)}: **{SEEN[r['outcome']]}**. "
             f"The RM gives it {r['quality']:.2f}, the full trace {by_name.loc['full', 'quality']:.2f}." for r in seen if r["share"] >= 0.02]
display(Markdown("\n".join(lines)))

# %% [markdown]
# An invisible habit is what the paper's title is about: `exec_only` pays it exactly as it pays the full trace, so the reward
# gives no reason to unlearn it. It may still grow or shrink, by chance, or together with habits that share its weights in the
# network. If the RM tells it from the full trace, TraceLift has a reason.
#
# ## Intervals
#
# Problems differ in difficulty, and so do seeds in luck; both are samples of what might have been. `crossed_interval`
# takes the table of seeds by problems and adds up both kinds of variance, each with the $t$ quantile of its own number. A
# bootstrap over three seeds is too narrow (it can only repeat the three it has: tests in `tests/evaluation` count how
# often each kind of interval misses), and five are little better. Comparisons are *paired*: the same problems and seeds on both sides, so
# that what is common to both cancels. The intervals are for one comparison at a time; of twenty, one misses: `p_holm` is
# corrected for the whole table. Beside each difference stands the smallest one that so many problems and seeds would have
# found in four of five such experiments (`detectable`): that is what "no difference found" leaves open. A planner without
# a gradient at any step is the warm start itself; comparing the two is *not run*.

# %%
def matrix(values, part):
    """Mean of `values` a problem: one row a seed, problems in a fixed order."""
    table = values.groupby([part["seed"], part["problem_id"]]).mean().unstack().sort_index()
    return table.to_numpy(float)


def linear(arm, measure, split):
    """(seeds, problems) of values whose mean is the measure. Of a ratio, such as tokens a well-formed trace, they are
    its linear approximation: estimate + (numerator - estimate * denominator) / mean denominator."""
    part = rows[(rows["arm"] == arm) & (rows["split"] == split)]
    whole = {"tokens": "well_formed", "unfaithful": "success"}.get(measure)
    among = part[whole] if whole in part else pd.Series(1.0, part.index)
    value = (1 - part["faithful"] if measure == "unfaithful"
             else (part["habit"] == measure.removeprefix("habit ")).astype(float) if measure.startswith("habit ")
             else part[measure])
    above, below = matrix(value.where(among > 0, 0.0) * among, part), matrix(among, part)
    if not below.any():
        return np.full_like(above, np.nan)  # no success, or no trace, at all
    estimate = above.mean() / below.mean()
    return estimate + (above - estimate * below) / below.mean()

# %%
def level(arm, measure, split):
    """One row of a table of levels: the mean with its interval; a share stays within 0 and 1."""
    mean, low, high = crossed_interval(linear(arm, measure, split))
    if measure in SHARES or measure == "unfaithful" or measure.startswith("habit "):
        low, high = np.clip([low, high], 0, 1)
    return {"split": split, "policy": arm, "measure": measure, "mean": mean, "low": low, "high": high}


def compare(treated, control, measure, split):
    """One row of a comparison: the mean difference with its interval, paired over problems and seeds."""
    found = intervals.compare(linear(treated, measure, split), linear(control, measure, split))
    return {"split": split, "comparison": f"{treated} - {control}", "measure": measure, **found._asdict(),
            "verdict": verdict(found, same=not {treated, control} & with_gradient)}


def adjusted(table):
    """The table with p values corrected for all its rows (Holm); a row without a comparison does not count."""
    return table.assign(p_holm=holm(table["p"].where(~table["verdict"].str.startswith("not")))) if len(table) else table


# %%
with_gradient = {arm for arm in arms if run.moved(arm)}
levels = pd.DataFrame(level(arm, m, split) for split in settings.splits for arm in everyone for m in measures)
report.save_table(run, levels, "evaluation_levels", sources, n, seeds)
shown = levels.assign(value=[report.with_interval(r.mean, r.low, r.high, 2) for r in levels.itertuples()])
main = [m for m in ("success", "faithful", "quality", "tokens", "malformed") if m in measures]
shown.pivot(index=["split", "policy"], columns="measure", values="value")[main]

# %% [markdown]
# ## Did training work?
#
# The gain of each arm over the common start. Training worked if the interval of the success gain lies above 0.

# %%
gains = adjusted(pd.DataFrame(
    compare(arm, "warm_start", m, split) for split in settings.splits for arm in arms for m in measures))
report.save_table(run, gains, "gain_over_warm_start", sources, n, seeds)
gains[gains["measure"].isin(["success", "faithful"])].round(3)

# %% [markdown]
# ## TraceLift against exec-only
#
# The comparison that the paper is about. An interval that includes 0 means that this run cannot tell the arms apart in
# that measure; it does not mean that they are the same.

# %%
contrast = adjusted(pd.DataFrame(
    compare(arm, "exec_only", m, split) for split in settings.splits for arm in arms if arm != "exec_only" for m in measures))
if len(contrast):
    contrast["excludes 0"] = (contrast["low"] > 0) | (contrast["high"] < 0)
    report.save_table(run, contrast, "tracelift_against_exec_only", sources, n, seeds)
contrast.round(3)

# %% [markdown]
# ## The picture
#
# Success and faithfulness of the start and of each arm. Where there is a split on which the shortcut of training fails, it
# is the right panel: what the same planners are worth there.

# %%
SAME = 0.05  # a difference that lies within this on both sides counts as "same"


def found(measure, split):
    """What the comparison of TraceLift with exec-only says: 'more', 'less', 'same' or 'unclear'."""
    pick = contrast[(contrast["split"] == split) & (contrast["measure"] == measure)] if len(contrast) else contrast
    pick = pick[pick["comparison"] == "tracelift - exec_only"] if len(pick) else pick
    if not len(pick):
        return "unclear"
    low, high = pick[["low", "high"]].iloc[0]
    return ("same" if -SAME < low and high < SAME else "more" if low > 0 else "less" if high < 0 else "unclear")


title = "Held-out success and faithfulness"
if found("success", first) == "same" and found("faithful", first) == "more":
    title = "Same success, different reasoning"
    if off and found("success", off) == "more":
        title += ",\nand what that costs where the shortcut fails"
print(title.replace("\n", " "))

# %%
ticks = {"success": "executor\nsuccess", "faithful": "faithful\ntrace"}
ticks = {measure: tick for measure, tick in ticks.items() if measure in measures}
panels = {first: first.replace("_", " "), **({off: off.replace("_", " ")} if off else {})}
points = levels[levels["split"].isin(panels) & levels["measure"].isin(ticks)]
figure, axes = plt.subplots(1, len(panels), figsize=(report.COLUMN_WIDTH, 2.9), sharey=True, squeeze=False)
for axis, (split, panel) in zip(axes[0], panels.items()):
    for i, policy in enumerate(everyone):
        part = points[(points["split"] == split) & (points["policy"] == policy)].set_index("measure").loc[[*ticks]]
        place = np.arange(len(part)) + (i - (len(everyone) - 1) / 2) * 0.6 / len(everyone)
        axis.errorbar(place, part["mean"], yerr=[part["mean"] - part["low"], part["high"] - part["mean"]], fmt="osD^v"[i % 5],
                      ms=4, capsize=2, color=palette[policy], label=names[policy])
    axis.set_xticks(range(len(ticks)), ticks.values())
    axis.set(xlim=(-0.5, len(ticks) - 0.5), ylim=(-0.02, 1.04), title=panel)
axes[0][0].set_ylabel("share of traces (95 % interval)")
figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize="small",
              title=title, title_fontsize="medium")
report.save_figure(run, figure, "headline", points, sources, n_panels, seeds)

# %% [markdown]
# ## What became of the habits
#
# The share of each habit before training and after, by arm. Rare habits are added up.

# %%
rare = []
if truth:
    top = rows[rows["split"].isin(panels)].groupby(["split", "arm"])["habit"].value_counts(normalize=True).groupby("habit").max()
    common, rare = sorted(top.index[top >= 0.03], key=lambda h: (h != "full", -top[h])), [*top.index[top < 0.03]]
    shares = pd.DataFrame(level(arm, f"habit {h}", split) for split in panels for arm in everyone for h in [*common, *rare])
    shares["habit"] = shares.pop("measure").str.removeprefix("habit ")
    text = [report.with_interval(r.mean, r.low, r.high, 2) for r in shares.itertuples()]
    display(shares.assign(text=text)[shares["habit"].isin(common)]
            .pivot(index=["split", "policy"], columns="habit", values="text")[common])

# %%
if truth:
    drawn = shares.assign(habit=shares["habit"].where(shares["habit"].isin(common), "rarer ones"))
    drawn = drawn.groupby(["split", "policy", "habit"])["mean"].sum().unstack(fill_value=0.0)
    drawn = drawn[[*common, *(["rarer ones"] if rare else [])]]
    figure, axes = plt.subplots(len(panels), 1, figsize=(report.COLUMN_WIDTH, 0.9 + (0.35 + 0.26 * len(everyone)) * len(panels)),
                                sharex=True, squeeze=False)
    colours = [*sns.color_palette("colorblind")[2:3], *sns.color_palette("muted")[1:2], *sns.color_palette("pastel")[3:]]
    for axis, (split, panel) in zip(axes[:, 0], panels.items()):
        part = drawn.loc[split].loc[everyone[::-1]].rename(index=names)
        part.plot.barh(stacked=True, ax=axis, color=colours, width=0.75, legend=False, lw=0)
        axis.set(ylabel="", xlim=(0, 1), title=panel, xlabel="share of traces" if split == [*panels][-1] else "")
        axis.grid(axis="y", visible=False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, [label.replace("_", " ") for label in labels], loc="outside upper center",
                  ncols=3, frameon=False, fontsize="small")
    report.save_figure(run, figure, "habit_shares", shares, sources, n_panels, seeds)

# %% [markdown]
# ## Right answer, unfaithful trace
#
# The title of the paper is "Correct is not enough". Three examples first, chosen by a rule and not by us: of `exec_only`
# with its first seed, the first three problems (by id) with a successful trace that is not faithful.

# %%
if truth:
    wrong = rows[(rows["success"] == 1) & (rows["faithful"] == 0) & (rows["split"] == first)]
    pool = wrong[(wrong["arm"] == "exec_only") & (wrong["seed"] == seeds[0])].sort_values(["problem_id", "sample"])
    examples = pool.drop_duplicates("problem_id").head(3)
    told = {p.problem_id: p for p in run.problems(first)}
    print(f"{len(pool)} successful traces of exec_only, seed {seeds[0]}, are not faithful ({pool['problem_id'].nunique()} problems)")
    for r in examples.itertuples():
        problem = told[r.problem_id]
        print(f"\n{problem.problem_id}: {problem.problem}\n\nreference, answer {problem.answer}:\n{problem.reference_solution}\n"
              f"\nthe planner's trace, habit {r.habit}, q = {r.quality:.2f}, the executor is right:\n{r.trace}\n{'-' * 60}")

# %% [markdown]
# How many of the *successful* traces are not faithful? The share has a denominator of its own, the number of successes, which
# differs between policies; it stands at each point.

# %%
def of_successes(arm, split):
    """Share of unfaithful ones among an arm's successes, with interval and counts."""
    part = rows[(rows["arm"] == arm) & (rows["split"] == split) & (rows["success"] == 1)]
    return {**level(arm, "unfaithful", split), "unfaithful": int((part["faithful"] == 0).sum()), "successes": len(part)}


if truth:
    won = rows[(rows["success"] == 1) & (rows["split"] == first)]
    every = rows.groupby(["arm", "seed"]).size().index  # a policy without any success stays in the table, without a share
    by_seed = won.assign(unfaithful=1 - won["faithful"]).groupby(["arm", "seed"])["unfaithful"].agg(["mean", "size"])
    unfaithful = by_seed.reindex(every).rename(columns={"mean": "unfaithful", "size": "successes"}).reset_index()
    unfaithful["successes"] = unfaithful["successes"].fillna(0).astype(int)
    report.save_table(run, unfaithful, "unfaithful_successes", sources, n_first, seeds)
    pooled = pd.DataFrame(of_successes(arm, split) for split in panels for arm in everyone).drop(columns="measure")
    display(pooled.round(3))

# %%
if truth:
    here = pooled[pooled["split"] == first].set_index("policy").loc[everyone]
    figure, axis = plt.subplots(figsize=(report.COLUMN_WIDTH, 2.4))
    axis.errorbar(range(len(everyone)), here["mean"], yerr=[here["mean"] - here["low"], here["high"] - here["mean"]],
                  fmt="_", ms=14, capsize=3, color="0.2", zorder=3)
    for i, arm in enumerate(everyone):
        seed_points = unfaithful.loc[unfaithful["arm"] == arm, "unfaithful"]
        axis.scatter(i + np.linspace(-0.12, 0.12, len(seed_points)), seed_points, color=palette[arm], s=16, zorder=2)
    axis.set_xticks(range(len(everyone)), [f"{names[a]}\n{r['unfaithful']:.0f} of {r['successes']:.0f}" for a, r in here.iterrows()])
    axis.set(ylabel="share of successes", ylim=(-0.02, 1.02), xlim=(-0.5, len(everyone) - 0.5),
             title=f"Successes with an unfaithful trace\n({first.replace('_', ' ')}; a point a seed)")
    report.save_figure(run, figure, "unfaithful_successes_by_arm", pooled, sources, n_panels, seeds)
else:
    print("not measured: the true steps of these problems are not known")

# %% [markdown]
# ## What other readers say
#
# The measures of the lower half of the table above. For an executor that the planner was not trained with, and for a question that
# was not asked, a trace must hold the true steps, not only lead this executor to this answer. Causal importance says how
# much the executor leans on the trace at all: near 0, it would have got there without.

# %%
readers = [m for m in ("sufficient", "causal", "second", "intermediate", "tokens") if m in measures]
report.save_table(run, levels[levels["measure"].isin(readers)], "other_readers", sources, n, seeds)
display(shown[shown["measure"].isin(readers)].pivot(index=["split", "policy"], columns="measure", values="value")[readers])
against = contrast[contrast["measure"].isin(readers)] if len(contrast) else contrast
against.round(3)

# %% [markdown]
# ## What we saw
#
# The sentences below are made from the tables, so they hold for whatever run you are looking at.

# %%
def say(row):
    """A comparison as a sentence: what differs, or that this run cannot tell."""
    size = report.with_interval(row.difference, row.low, row.high)
    treated, control = row.comparison.split(" - ")
    if np.isnan(row.difference):
        return f"{row.measure}, {row.split}: nothing to compare {names[treated]} and {names[control]} by"
    if row.verdict in ("more", "less"):
        return f"{row.measure}, {row.split}: {names[treated]} has {row.verdict} than {names[control]}, {size}"
    return f"{row.measure}, {row.split}, {names[treated]} and {names[control]}: {row.verdict}, {size}"


def lines_of(table, wanted, splits):
    """Sentences for some measures, split by split."""
    return [f"- {say(r)}." for r in table.itertuples() if r.measure in wanted and r.split in splits]


if not run.preset.is_result:
    display(Markdown("**This preset only checks that everything runs. Its numbers are not a result.**"))
parts = {"Did training work?": lines_of(gains, ("success", "faithful"), panels),
         "TraceLift against exec-only": lines_of(contrast, ("success", "faithful"), panels),
         "Other readers": lines_of(contrast, readers, [first])}
display(Markdown("\n\n".join(f"**{name}**\n\n" + ("\n".join(text) or "- Not measured.") for name, text in parts.items())))

# %% [markdown]
# **Why?** If the arms differ, it should be in the habits that the outcome cannot see and the RM can:

# %%
lines = []
for r in seen:
    by_arm = {arm: level(arm, f"habit {r['habit']}", first) for arm in everyone}
    moved = ", ".join(f"{names[a]} {v['mean']:.2f}" for a, v in by_arm.items())
    told = [compare(arm, "warm_start", f"habit {r['habit']}", first) for arm in arms]
    went = [f"under {names[arm]} it " + ("shrank" if c["high"] < 0 else "grew" if c["low"] > 0 else "did not move that we can tell")
            for arm, c in zip(arms, told)]
    if r["share"] >= 0.03:
        lines.append(f"- *{r['habit'].replace('_', ' ')}* ({SEEN[r['outcome']]}; q {r['quality']:.2f} against "
                     f"{by_name.loc['full', 'quality']:.2f}): share {moved}; {', '.join(went)}.")
display(Markdown("\n".join(lines) or "- No habit beside the full trace is frequent enough at the start, or none is known."))

# %% [markdown]
# **Does the RM's score still mean something?** A planner trained on $q$ can learn to please it. The sign is a score that
# rises where faithfulness does not:

# %%
def direction(treated, measure, split):
    """'up', 'down' or 'no change found', against the start."""
    row = gains[(gains["comparison"] == f"{treated} - warm_start") & (gains["measure"] == measure) & (gains["split"] == split)].iloc[0]
    return "up" if row["low"] > 0 else "down" if row["high"] < 0 else "no change found"


lines = []
for split in settings.splits if truth else []:
    for arm in arms:
        score, faith = direction(arm, "quality", split), direction(arm, "faithful", split)
        warning = ": **the score rises and faithfulness does not**" if score == "up" and faith != "up" else ""
        lines.append(f"- {names[arm]}, {split}: RM score {score}, faithful traces {faith}{warning}.")
display(Markdown("\n".join(lines) or "- Not measured: the true steps of these problems are not known."))

# %% [markdown]
# - With the tiny presets these are models with under a million weights in a generated world, and the shortcut was put into
#   that world on purpose. What holds there need not hold for 7B models on MATH500; what that scale offers instead is the
#   exact truth about every trace.
# - "Cannot tell apart" is about this number of problems and seeds. It is not evidence that two policies are equal.
#
# **Try it yourself.** (1) How many seeds would you need before a difference of 0.02 in success shows? Use the spread between
# seeds in the first table. (2) Take the three examples above: for each, write the shortest change to the *problem* after
# which the same reasoning gives a wrong answer.
#
# ## Second half: the sets that people publish on
#
# The section `benchmarks` of a preset names sets, planners and sampling; `tracelift evaluate` does the same for any planner
# and any executor (docs/add_a_benchmark.md). Every output is kept, so this goes on where it was, and another answer rule
# needs no new answer. A set that is not there is *not testable here*.

# %%
from types import SimpleNamespace

bench, absent = pd.DataFrame(), {}
if run.preset.benchmarks:
    bench, sets, absent, folder = evaluate.evaluate_preset(run)
    evaluate.write_tables(bench, sets, [1], folder)
    made_by = [SimpleNamespace(revision=r) for r in bench["code_revision"].unique()]
    n_bench = ", ".join(f"{len(s.problems)} {s.set.name}" for s in sets) + f" problems x {run.preset.benchmarks.samples}"
    for name, why in absent.items():
        print(f"{name}: not testable here ({why})")
else:
    print("this preset has no section `benchmarks`: its models know only the generated worlds (see preset smol)")

# %% [markdown]
# Success in each condition, with a Wilson interval of problems (0 of 16 is not the interval from 0 to 0); micro counts
# problems alike, macro sets. Lengths are those of well-formed traces, and the share of malformed ones stands beside them.

# %%
shares = benchmark_tables.shares(bench) if len(bench) else bench
if len(bench):
    kept = shares.drop(columns="seconds", errors="ignore").rename(columns={"seeds": "planner seeds"})  # tables repeat, times do not
    report.save_table(run, kept, "benchmarks", made_by, n_bench)
    shown = shares.assign(value=[report.with_interval(r.success, r.low, r.high, 2) for r in shares.itertuples()])
    display(shown.pivot(index="set", columns="policy", values="value"))
    display(shares[["policy", "set", "malformed", "trace_tokens", "answer_tokens", "cut"]][shares["cut"].notna()].round(2))

# %%
control, same = evaluate.control_and_same(bench) if len(bench) else ("", [])
against_control = benchmark_tables.comparisons(bench, control, same) if len(bench) else bench
if len(against_control):
    report.save_table(run, against_control.rename(columns={"seeds": "planner seeds"}), "benchmarks_compared", made_by, n_bench)
    display(against_control.round(3))

# %% [markdown]
# How much of a difference between two papers is only the rule by which a final answer is read? The same outputs, judged by each:

# %%
rules = benchmark_tables.by_rule(bench) if len(bench) else bench
if len(rules):
    report.save_table(run, rules, "benchmarks_by_rule", made_by, n_bench)
    display(rules.pivot(index=["set", "policy"], columns="rule", values="success").round(3))

# %% [markdown]
# **Next:** [08_ablations](08_ablations.ipynb).

# %%
display(Markdown("\n".join(f"- {a.cost()}" for a in sources[:1])))
