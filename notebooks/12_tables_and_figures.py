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
# # 12 · Tables, figures, and the ledger of claims
#
# This notebook computes nothing new. It reads what the others have left in `runs/` and in the folder of tables, and holds
# it against what the paper claims. It fails rather than guesses: a table that is missing is an error that names the notebook.
#
# **After this notebook you can** say for each claim what the paper reports, what this run measured, at which scale, and
# what was not tested.
#
# **Time:** seconds.

# %% tags=["parameters"]
PRESET = "tiny"
SEED = None
OVERRIDES = {}

# %%
import pandas as pd
from IPython.display import Markdown, display

from tracelift_lib.evaluation.intervals import Comparison, verdict
from tracelift_lib.runs import report
from tracelift_lib.runs.pipeline import WARM_START, Run

report.set_theme()
run = Run(PRESET, SEED, OVERRIDES)
tables = report.read_tables(run, {
    "executor_success": "03", "uplift_of_reference": "03", "rm_held_out": "02", "rm_by_kind": "02",
    "evaluation_levels": "07", "gain_over_warm_start": "07", "tracelift_against_exec_only": "07",
})
truth = "faithful" in set(tables["evaluation_levels"]["measure"])  # else the true steps of the problems are not known
first, *others = run.preset.evaluation.splits  # the first is the main one
print("tables in", report.figures_folder(run).name + ":", ", ".join(tables))

# %% [markdown]
# ## The main table
#
# Held-out problems, sampled traces, mean with 95 % interval over problems and seeds: all measures on the first split of the
# preset, then success and faithfulness on the others. Where training has a shortcut, `off_distribution` is where it
# fails.

# %%
levels = tables["evaluation_levels"]
levels["value"] = [report.with_interval(r.mean, r.low, r.high, 2) for r in levels.itertuples()]
values = levels.pivot(index="policy", columns=["measure", "split"], values="value")
sound = ["success"] + ["faithful"] * truth
columns = [(m, first) for m in sound] + [(m, split) for split in others for m in sound] + [(m, first) for m in ("quality", "tokens", "malformed")]
columns = [c for c in columns if c in values]
main = values[columns].set_axis([f"{m}, {split.replace('_', ' ')}" for m, split in columns], axis=1)
main = main.loc[["warm_start", *run.preset.planner_training.arms]].reset_index()
main["policy"] = main["policy"].map(lambda p: report.LABELS.get(p, p))
main

# %% [markdown]
# ## The executor and the reward model
#
# The bounds are those that this companion sets for its own tiny world: without a trace the executor must be weak, with the reference
# strong, with a flawed trace misled; otherwise there would be no uplift to learn from. Of a pretrained model on public
# problems we ask no such bounds: its figures stand here without a verdict.

# %%
success = tables["executor_success"].set_index("condition")["success"]
BOUNDS = {"none": ("without a trace", "at most", 0.40), "reference": ("with the reference trace", "at least", 0.95),
          "any flaw": ("with a flawed trace", "at most", 0.40)}
held_out = tables["rm_held_out"].set_index("metric")["value"]
rows = [(f"executor {what}", side, bound, success[condition])
        for condition, (what, side, bound) in BOUNDS.items() if condition in success]
rows.append(("RM pair accuracy on held-out groups", "at least", 0.95, held_out["pair accuracy"]))
bounds = pd.DataFrame({"what": what, "value": value} if not truth else {
    "what": what, "bound": f"{side} {bound:.2f}", "value": value,
    "met": value <= bound if side == "at most" else value >= bound} for what, side, bound, value in rows)
bounds.round(3)

# %% [markdown]
# ## The ledger
#
# What the paper says (only figures that we can source), what this run says, and a verdict that is computed from
# the tables. One run is one domain: preset `tiny` speaks of math, `tiny_code` of code. Claims of ours about the
# shortcut stand below the paper's. "Not tested" is a verdict too, and so is "not run": planners without a gradient at any step
# are the warm start itself, and a model compared with itself has no difference to find.

# %%
NOT_RUN = "not run: no step of these trainings had a gradient"


trained = {arm for arm in run.preset.planner_training.arms if run.moved(arm)}


def judged(row, up=True):
    """(what this run measured, verdict) of a claim that `row.difference` is positive (or negative)."""
    found = Comparison(*row[list(Comparison._fields)])
    return report.with_interval(*found[:3]), verdict(found, "more" if up else "less")

# %%
def compared(name, treated, control, measure, split, up=True):
    """The same for `treated - control` in a table of comparisons."""
    table = tables[name]
    row = table[(table["split"] == split) & (table["comparison"] == f"{treated} - {control}") & (table["measure"] == measure)]
    if not len(row):
        return "", "not tested at this size"
    if not {treated, control} & trained:
        return "", NOT_RUN
    return judged(row.iloc[0], up)


def arms_compared(measure, split=first, up=True):
    return compared("tracelift_against_exec_only", "tracelift", "exec_only", measure, split, up)


unknown = ("", "not tested: the true steps of these problems are not known")
ours = {
    "gain_over_exec_only": arms_compared("success"),
    "shorter_traces": arms_compared("tokens", up=False),
    "better_reasoning": arms_compared("faithful") if truth else unknown,
    "rm_held_out": (f"pair accuracy {held_out['pair accuracy']:.3f}, group accuracy {held_out['group accuracy']:.3f}",
                    "cannot be compared: the paper's figures are not available to us"),
    "shortcut_off": arms_compared("success", "off_distribution"),
    "outcome_alone": compared("gain_over_warm_start", "exec_only", "warm_start", "faithful", first) if truth else unknown,
}

# %% [markdown]
# Some claims rest on tables that not every preset has: of notebook 08 (rewards that lack a part), and of 09 (the
# prediction; where it is left out, the shares that notebook 05 has followed through training).

# %%
def optional(name):
    """A table that only some presets have; empty if it is not there."""
    path = report.figures_folder(run) / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


cells, score = optional("ablations"), optional("theory_prediction_score")
score = score if len(score) else optional("prediction_check").rename(columns={"observed": "trained"})
control = cells[(cells["arm"] == "random_bonus") & (cells["measure"] == "faithful")] if len(cells) else cells
if len(control):
    row = control.iloc[0]
    ours["judgement_needed"] = (report.with_interval(row["difference"], row["low"], row["high"]),
                                NOT_RUN if not row["moved"] else "disagrees" if row["low"] > 0 else "no gain found")

# %%
without = optional("ablations_parts")
if len(without) and truth:
    both = without[(without["measure"] == "faithful") & without["without it"].isin(["random_bonus", "no_uplift"])]
    said = [f"{r['part']} {report.with_interval(r['difference'], r['low'], r['high'])}" for _, r in both.iterrows()]
    ours["ablations"] = ("; ".join(said), NOT_RUN if not both["moved"].all() else "agrees" if (both["low"] > 0).all() else
                         "disagrees" if (both["high"] < 0).any() else "no gain found of " + " and ".join(both["part"][both["low"] <= 0]))
if len(score):
    errors = {name: (score[name] - score["trained"]).abs().mean() for name in ("predicted", "start")}
    ours["prediction"] = (f"mean error of a share {errors['predicted']:.3f}, of 'nothing changes' {errors['start']:.3f}",
                          "agrees" if errors["predicted"] < errors["start"] else "disagrees")

# %%
ledger = pd.DataFrame(
    {"claim": c["claim"], "paper": c["figure"], "source": c["source"],
     f"this run ({run.variant})": ours.get(c["id"], ("", ""))[0],
     "verdict": ours.get(c["id"], ("", c.get("not_tested", "not tested")))[1]}
    for c in report.claims()
)
sources = [run.need("evaluation", **p) for p in [WARM_START, *run.policies()]] + [run.need("rm_scores")]
report.save_table(run, ledger, "claims_ledger", sources, "see each row", run.preset.planner_training.seeds)
display(ledger.style.hide(axis="index").set_properties(**{"white-space": "pre-wrap", "text-align": "left"}))

# %% [markdown]
# The same for what is committed: each claim with its best evidence, whatever run you look at here. A table that is missing, or
# of a preset that is no result, is an error; `tracelift readme --check` names what is older than its code.

# %%
committed = report.ledger(report.claims())
display(committed.style.hide(axis="index").set_properties(**{"white-space": "pre-wrap", "text-align": "left"}))

# %% [markdown]
# ## What it cost
#
# From the manifests of the stages, so these are the times of the runs that made them, not of this notebook. On a CPU the
# runs of planner training go side by side, one core each: a wall clock shows less than their sum.

# %%
single = ("problems", "executor", "planner", "groups", "reward_model", "rm_scores", "uplift")
stages = [run.need(s) for s in (*single, *["baseline"] * run.has("baseline"))]
stages += [run.need("planner_training", **p) for p in run.policies()]
stages += [run.need("evaluation", **p) for p in [WARM_START, *run.policies()]]
cost = report.cost_table(stages)
total = cost.groupby("stage", sort=False).agg(
    runs=("seconds", "size"), seconds=("seconds", "sum"), peak_memory_gb=("peak_memory_gb", "max")).reset_index()
print(f"{total['seconds'].sum() / 60:.1f} minutes, summed over the runs, on {stages[1].manifest['hardware']}")
total

# %% [markdown]
# ## The summary

# %%
costs = report.notebook_costs(stages)
summary = report.write_summary(run, main, bounds, ledger, stages[1].manifest["hardware"], sources, costs)
display(Markdown(summary))

# %% [markdown]
# ## What we saw
#
# - "Not run" and "not tested" are as much part of the result as the other verdicts: they say what nobody has looked at yet.
# - Each number above stands in a CSV file of the same folder, with preset, n, seeds and revision in its last columns.
# - "Agrees" means that the direction is the paper's and the interval excludes 0, with models far smaller than the paper's. It
#   is evidence about the method's mechanism, not about its size at scale.
#
# **Try it yourself.** Run `make reproduce SEED=1` and compare the two ledgers: which verdicts survive another seed?
