"""The estimate of what a preset takes: against a measured GPU, and against counts by hand."""

import pandas as pd
import pytest

from tracelift_lib.planner.memory import CONFIGS, SMALLER
from tracelift_lib.problems.files import PROJECT, InputError
from tracelift_lib.runs import plan
from tracelift_lib.runs.plan import GPUS, Estimate, Lengths
from tracelift_lib.runs.presets import load_preset
from tracelift_lib.runs.stages import STAGES

STEP = {  # that of bench/gpu_check.sh
    "planner_training.problems_per_step": 16,
    "planner_training.generations": 8,
    "planner_training.steps": 1,
    "execution.batch_tokens": 262_144,
    "planner_training.backend": "transformers",
}
MEASURED = pd.read_csv(PROJECT / "paper_figures" / "gpu" / "gpu_check.csv")


@pytest.mark.parametrize("shape", ["0.5B", "1.5B"])
@pytest.mark.parametrize("parameters", ["lora", "full"])
def test_a_step_takes_what_it_took_on_an_h200(shape, parameters):
    """Within a factor of 1.6, and its parts within a factor of 2."""
    model = {f"{role}.model_id": f"Qwen/Qwen2.5-{shape}" for role in ("planner", "executor")}
    preset = load_preset("colab", overrides=STEP | model | {"planner_training.parameters": parameters})
    estimate = Estimate(preset, GPUS["H200"], Lengths(130, 128, 128))
    seen = MEASURED[MEASURED["part"] == f"step-{shape}-{parameters}"].set_index("quantity")["value"]
    seen = {name: float(seen[name]) for name in ("step", "generation", "executor", "update")}
    assert 1 / 1.6 < estimate.training("tracelift").seconds / seen["step"] < 1.6
    assert 1 / 2 < estimate.traces(128, 128).seconds / seen["generation"] < 2
    assert 1 / 2 < estimate.answers(512).seconds / seen["executor"] < 2
    assert 1 / 2 < estimate.learn(estimate.planner, 128 * 258, parameters == "full").seconds / seen["update"] < 2


def test_the_calls_of_a_training_counted_by_hand():
    """The paper's way: 600 steps of 8 x 4 completions; a run for s; for the uplift K with and K without."""
    papers = {"execution.baseline": "fresh", "execution.s_run": "separate"}
    estimate = Estimate(load_preset("paper", overrides=papers), GPUS["H100"], Lengths(100, 50, 10))
    completions = 600 * 8 * 4
    assert estimate.training("exec_only").calls == completions * (1 + 1)
    assert estimate.training("tracelift").calls == completions * (1 + 1 + 3 + 3)
    assert estimate.training("no_uplift").calls == completions * (1 + 1)
    assert estimate.training("tracelift").learned == completions * 150
    assert estimate.training("tracelift").written == completions * 50 + completions * 7 * 10
    default = Estimate(
        load_preset("paper"), GPUS["H100"], Lengths(100, 50, 10)
    )  # K with a trace, of which s is the mean
    assert default.training("tracelift").calls == completions * (1 + 3)
    assert default.training("exec_only").calls == completions * (1 + 1)


def test_every_stage_that_needs_a_model_takes_time():
    preset = load_preset("colab")
    table = plan.plan(preset, GPUS["T4"], Lengths()).set_index("stage")
    assert set(table.index) - {"all"} <= set(STAGES)
    hours = table["GPU hours"].astype(float)
    free = {"problems", "groups", "executor", "planner"}
    assert all((hours[name] == 0) == (name in free) for name in hours.index)
    assert hours["all"] == pytest.approx(hours.drop("all").sum(), abs=0.03)
    slower = plan.plan(preset, GPUS["T4"], Lengths.at_most(preset)).set_index("stage")["GPU hours"].astype(float)
    assert (slower >= hours).all()


@pytest.mark.parametrize(
    "preset", ["check", "tiny_code", "smol", "colab", "paper", "paper_llama", "paper_qwen3", "paper_released"]
)
def test_the_command_plans_every_kind_of_preset(preset, capsys):
    assert plan.main(["--preset", preset, "--gpu", "H100"]) == 0
    assert "| all |" in (text := capsys.readouterr().out) and "this GPU has 80.0 GB" in text


def test_shapes_are_those_of_the_models_cards():
    """Billions of parameters, as their cards say."""
    sizes = {name: plan.parameter_count(config) / 1e9 for name, config in SMALLER.items()}
    assert sizes == pytest.approx({"SmolLM2-135M": 0.1345, "Qwen2.5-0.5B": 0.494, "Qwen2.5-1.5B": 1.544}, rel=0.002)


def test_a_model_of_unknown_shape_is_named():
    with pytest.raises(InputError, match="Qwen3-235B.*planner/memory.py.*" + next(iter(CONFIGS))):
        plan.main(["--preset", "colab", "--override", "planner.model_id=Qwen/Qwen3-235B"])
