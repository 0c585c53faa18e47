"""The one fitted constant of a prediction: prediction.step_size of a preset, from a pilot that is in no result.

    python -m bench.step_size [PRESET]

Trains `tracelift` from seed 100 (or finds that training), reads the habits of its completions step by step, and prints
the candidate whose predicted path is nearest. Dials are fixed by it before other trainings.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd

from tracelift_lib.groups.habits import habit_of
from tracelift_lib.planner.prediction import fit_step_size
from tracelift_lib.runs.pipeline import Run
from tracelift_lib.runs.stages import simulation_of

ARM, PILOT_SEED = "tracelift", 100
CANDIDATES = np.arange(0.05, 0.65, 0.05).round(2).tolist()


def observed_shares(run: Run, rollouts: pd.DataFrame) -> pd.DataFrame:
    """Share of each habit among a step's completions, (steps, habits)."""
    problems = {p.problem_id: p for p in run.problems(run.preset.planner_training.split)}
    habits = [habit_of(problems[i], z) for i, z in zip(rollouts["problem_id"], rollouts["trace"])]
    return pd.crosstab(rollouts["step"], pd.Series(habits, rollouts.index), normalize="index")


def main(preset: str = "tiny") -> None:
    run = Run(preset)
    rows = pd.read_parquet(run.make("habits").path / "habits.parquet").query("split == 'rl'")
    pilot = run.make("planner_training", arm=ARM, seed=PILOT_SEED)
    observed = observed_shares(run, pd.read_parquet(pilot.path / "rollouts.parquet"))
    best = fit_step_size(rows, observed, simulation_of(run.preset, ARM), CANDIDATES, run.preset.seed)
    print(f"{preset}: of {CANDIDATES} nearest to the pilot of seed {PILOT_SEED}: {best}")


if __name__ == "__main__":
    main(*sys.argv[1:])
