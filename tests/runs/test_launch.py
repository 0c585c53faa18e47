"""Planner training in two real processes under `accelerate launch`, and the configurations for more of them."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import forks
import pandas as pd
import pytest
import same_completions
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from common import PROJECT, UPSTREAM
from safetensors.torch import load_file

from tracelift_lib.models.loading import load_model
from tracelift_lib.planner.log import collect_log
from tracelift_lib.planner.training import grpo_config
from tracelift_lib.problems.files import WORK, InputError, write_json
from tracelift_lib.runs import launch, store
from tracelift_lib.runs.pipeline import Run
from tracelift_lib.runs.presets import load_preset, read_override

TWO = {"planner_training.processes": 2, "planner_training.parameters": "full"}
CONFIGS = sorted(launch.CONFIGS.glob("*.yaml"))


@pytest.fixture(scope="module")
def upstream(trained_home, tmp_path_factory):
    """A home with all that planner training needs."""
    return shutil.copytree(trained_home, tmp_path_factory.mktemp("upstream"), dirs_exist_ok=True)


@pytest.fixture(scope="module")
def trained(upstream):
    """Two runs of one launch, and the first once more, which it finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACELIFT_HOME", str(upstream))
        run = Run("check", overrides={**UPSTREAM, **TWO, "planner_training.steps": 4})
        runs = launch.train_in_processes(run, [{"arm": "no_uplift", "seed": s} for s in (0, 1, 0)])
        assert runs[2].digest == runs[0].digest
        return run, runs[:2], load_model(run.need("planner").path).state_dict()


def test_two_processes_make_one_artifact_with_the_completions_of_both(trained):
    run, runs, start = trained
    t = run.preset.planner_training
    for artifact in runs:
        assert not (artifact.path / WORK).exists()
        rows, steps = pd.read_parquet(artifact.path / "rollouts.parquet"), pd.read_csv(artifact.path / "steps.csv")
        assert (rows.groupby("step").size() == t.problems_per_step * t.generations).all()
        assert (rows.groupby(["step", "problem_id"]).size() == t.generations).all()
        assert (rows.groupby("step")["problem_id"].nunique() == t.problems_per_step).all()
        assert steps["step"].tolist() == [0, 1, 2, 3]
        assert not steps[["loss", "seconds", "update_seconds"]].isna().any(axis=None)
        assert steps["reward"].tolist() == pytest.approx(rows.groupby("step")["reward"].mean().tolist())
        assert steps["tokens"].tolist() == pytest.approx(rows.groupby("step")["tokens"].mean().tolist())
        weights = load_file(artifact.path / "model" / "model.safetensors")
        assert all(not torch.equal(weights[name], start[name]) for name in weights)


def test_the_processes_draw_different_completions(trained):
    """The halves of a step are of different processes; equal random numbers would show in equal lengths."""
    rows = pd.concat(pd.read_parquet(a.path / "rollouts.parquet") for a in trained[1])
    halves = rows.groupby("problem_id")["tokens"].apply(list).tolist()
    assert len({tuple(lengths) for lengths in halves}) == len(halves)


def in_forks(work, log):
    """In place of launch._run: `work(arguments)` in the processes that accelerate's launcher would start, as forks.

    Two tests have the launcher itself.
    """

    def run(command):
        parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(command[3:]))
        environment = prepare_multi_gpu_env(parsed)
        environment |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": parsed.master_port,
            "WORLD_SIZE": parsed.nproc_per_node,
        }
        processes = [
            forks.start(
                work,
                parsed.training_script_args,
                log=log,
                environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(parsed.num_processes)
        ]
        for process in processes:
            process.join(600)  # it may wait for one that has failed
            process.kill()
        assert [process.exitcode for process in processes] == [0] * len(processes), log.read_text()[-4000:]

    return run


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo"])
def test_on_the_same_completions_two_processes_have_the_gradients_of_one(upstream, monkeypatch, tmp_path, loss):
    """Three steps, ranks with unequally many tokens: gradients before each step of the optimizer, and weights after."""
    gradients, weights, tokens = {}, {}, {}
    for n in (1, 2):
        home, out = tmp_path / f"home{n}", tmp_path / f"gradients{n}"
        shutil.copytree(upstream, home, ignore=shutil.ignore_patterns("planner_training"))
        out.mkdir()
        monkeypatch.setenv("TRACELIFT_HOME", str(home))
        overrides = {
            **UPSTREAM,
            "planner_training.parameters": "full",
            "planner_training.processes": n,
            "planner_training.loss_type": loss,
            "planner_training.steps": 3,
            "planner_training.problems_per_step": 4,
            "planner_training.collapse": None,
        }
        run, instance = Run("check", overrides=overrides), {"arm": "exec_only", "seed": 0}
        with monkeypatch.context() as patch:
            if n == 1:
                same_completions.put_in(out, functools.partial(patch.setattr, raising=False))
                run.make(launch.STAGE, **instance)
            else:
                work = functools.partial(same_completions.train, out)
                patch.setattr(launch, "_run", in_forks(work, tmp_path / "log"))
                launch.train_in_processes(run, [instance])
        folder = run.need(launch.STAGE, **instance).path
        gradients[n] = [load_file(out / f"{step}.safetensors") for step in range(3)]
        weights[n] = load_file(folder / "model" / "model.safetensors")
        tokens[n] = pd.read_parquet(folder / "rollouts.parquet")[["step", "problem_id", "tokens"]]
    halves = tokens[2].groupby("step")["tokens"].apply(lambda t: t.to_numpy().reshape(2, -1).sum(1).tolist()).tolist()
    assert all(max(half) > 1.1 * min(half) for half in halves)
    assert sorted(map(tuple, tokens[1].to_numpy())) == sorted(map(tuple, tokens[2].to_numpy()))
    for one, two in zip(gradients[1], gradients[2], strict=True):
        whole = sum(g.square().sum() for g in one.values()) ** 0.5
        assert whole > 1e-3 and one.keys() == two.keys()
        assert sum((one[name] - two[name]).square().sum() for name in one) ** 0.5 < 1e-4 * whole
    for name, weight in weights[1].items():
        torch.testing.assert_close(
            weights[2][name], weight, rtol=0, atol=0.02 * 3 * run.preset.planner_training.learning_rate
        )


def test_found_runs_are_not_made_again(trained, upstream, monkeypatch):
    monkeypatch.setenv("TRACELIFT_HOME", str(upstream))
    run, runs, _ = trained
    monkeypatch.setattr(launch, "_run", lambda command: pytest.fail("launched"))
    assert launch.train_in_processes(run, [{"arm": "no_uplift", "seed": 1}]) == runs[1:]


def test_a_launch_that_was_killed_goes_on(upstream, monkeypatch, tmp_path):
    """SIGINT to the launcher saves in all processes after the same step; the next launch takes the rest."""
    monkeypatch.setenv("TRACELIFT_HOME", str(upstream))
    overrides = {**UPSTREAM, **TWO, "planner_training.steps": 24, "planner_training.collapse": None}
    run, commands = Run("check", overrides=overrides), []
    instance = {"arm": "exec_only", "seed": 0}
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_run", commands.append)
        with pytest.raises(store.MissingArtifact):
            launch.train_in_processes(run, [instance])
    work = run.folder_of(launch.STAGE, **instance) / WORK
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            commands[0],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        )
        for _ in range(1200):
            if len(list((work / "rollouts").glob("*.json"))) >= 5 or process.poll() is not None:
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) != 0
    saved = [p.name for p in (work / "trainer").glob("checkpoint-*")]
    assert len(saved) == 1, (tmp_path / "log").read_text()[-3000:]
    assert {p.name for p in (work / "trainer" / saved[0]).glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    done = int(saved[0].removeprefix("checkpoint-"))
    logs = [work / "rollouts" / rank / "000000.json" for rank in ("", "rank-1")]
    first = [row for path in logs for row in json.loads(path.read_text())]
    monkeypatch.setattr(launch, "_run", in_forks(launch.main, tmp_path / "log of the next"))
    launch.train_in_processes(run, [instance])
    folder = run.need(launch.STAGE, **instance).path
    steps, rows = pd.read_csv(folder / "steps.csv"), pd.read_parquet(folder / "rollouts.parquet")
    assert 5 <= done < 24 and steps["step"].tolist() == list(range(24)) and steps["loss"].notna().all()
    assert rows[rows["step"] == 0]["problem_id"].tolist() == [row["problem_id"] for row in first]


# --- refusals and keys --------------------------------------------------------------------------


def test_a_run_for_two_processes_is_refused_in_one(upstream, monkeypatch):
    monkeypatch.setenv("TRACELIFT_HOME", str(upstream))
    with pytest.raises(InputError, match="processes is 2, but 1 run: start them with `accelerate launch"):
        Run("check", overrides=UPSTREAM | TWO).make("planner_training", arm="exec_only", seed=5)


def test_a_launch_shows_what_its_processes_say_and_keeps_the_end_for_its_error(capfd):
    program = "import sys; [print('line', i) for i in range(100)]; print('trouble', file=sys.stderr); sys.exit(3)"
    with pytest.raises(RuntimeError, match="status 3") as caught:
        launch._run([sys.executable, "-c", program])
    shown = capfd.readouterr().out
    assert "line 0\n" in shown and "line 99\n" in shown and "trouble" in shown
    assert "trouble" in str(caught.value) and "line 99" in str(caught.value) and "line 1\n" not in str(caught.value)


def test_a_learning_rate_reaches_the_launch_as_the_number_that_it_is(monkeypatch):
    commands = []
    monkeypatch.setattr(launch, "_run", commands.append)
    rates = {"planner_training.learning_rate": 5e-6, "planner_training.collapse": {"entropy": 1e-7}}
    run = SimpleNamespace(
        preset=SimpleNamespace(planner_training=SimpleNamespace(processes=2)),
        arguments=("check", None, rates, None),
        has=lambda *_, **__: False,
        need=lambda *_, **__: None,
    )
    launch.train_in_processes(run, [{"arm": "exec_only", "seed": 0}])
    given = [text for flag, text in zip(commands[0], commands[0][1:]) if flag == "--override"]
    assert dict(map(read_override, given)) == rates


@pytest.mark.parametrize("text, value", [("5e-6", 5e-6), ("0.5", 0.5), ("1E-3", 1e-3)])
def test_the_launcher_reads_numbers_as_the_runner_does(monkeypatch, text, value):
    """YAML 1.1 takes 5e-6 for a text."""
    seen = []
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    monkeypatch.setattr(launch, "PartialState", lambda **_: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(launch, "Run", lambda preset, seed, overrides: seen.append((preset, seed, overrides)) or {}[0])
    arguments = ["--preset", "check", "--run", "exec_only:0", "--preset-seed", "3"]
    with pytest.raises(KeyError):
        launch.main([*arguments, "--override", f"planner_training.learning_rate={text}"])
    assert seen == [("check", 3, {"planner_training.learning_rate": value, "planner_training.processes": 2})]


@pytest.mark.parametrize(
    "arguments, word", [(["--override", "execution.k"], "KEY=VALUE"), (["--override", "evaluation.splits=[x]"], "'x'")]
)
def test_bad_input_of_the_launcher_is_told(monkeypatch, capsys, arguments, word):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    monkeypatch.setattr(launch, "PartialState", lambda **_: SimpleNamespace(num_processes=1))
    assert launch.main(["--preset", "check", "--run", "exec_only:0", *arguments]) == 2
    assert word in capsys.readouterr().err


def test_groups_stay_whole():
    with pytest.raises(InputError, match="problems_per_step = 2 must be a multiple of processes = 3"):
        load_preset("check", overrides={"planner_training.processes": 3})


def test_one_process_is_what_it_was():
    from tracelift_lib.runs.pipeline import STAGES

    one, two = (
        STAGES["planner_training"].config(load_preset("check", overrides={"planner_training.processes": n}))
        for n in (1, 2)
    )
    assert "processes" not in one["planner_training"] and two["planner_training"]["processes"] == 2
    assert one == STAGES["planner_training"].config(load_preset("check"))


def test_a_step_has_the_same_completions_in_any_number_of_processes(tmp_path):
    for n in (1, 2):
        t = load_preset("check", overrides={"planner_training.processes": n}).planner_training
        assert grpo_config(t, 0, tmp_path).per_device_train_batch_size * n == t.problems_per_step * t.generations


def test_logs_of_processes_become_one(tmp_path):
    """By hand: two processes, one step, two completions of one problem each."""
    for rank, folder in enumerate((tmp_path, tmp_path / "rank-1")):
        (folder / "steps").mkdir(parents=True)
        part = dict.fromkeys(("s", "q", "u", "j", "c", "baseline_success"), 0.5 * rank)
        rows = [
            {
                "step": 0,
                "problem_id": f"p{rank}",
                "trace": "z" if rank else None,
                "reward": float(rank * i),
                "failure": "executor" if i <= rank else None,
                **part,
            }
            for i in range(2)
        ]
        write_json(folder / "000000.json", rows)
        write_json(
            folder / "steps" / "000000.json",
            {
                "step": 0,
                "seconds": 1.0 + rank,
                "executor_seconds": 0.5,
                "verifier_seconds": 0.25,
                "rm_seconds": 0.1,
                "repeated_traces": rank / 2,
                "baseline": "cached",
            },
        )
    rollouts, steps = collect_log(tmp_path, [])
    assert rollouts["problem_id"].tolist() == ["p0", "p0", "p1", "p1"]
    assert steps.loc[0, ["reward", "s", "format_errors", "zero_variance"]].tolist() == [0.25, 0.25, 0.5, 0.5]
    figures = ["seconds", "executor_seconds", "verifier_seconds", "rm_seconds", "repeated_traces", "failures"]
    assert steps.loc[0, figures].tolist() == [2.0, 0.5, 0.5, 0.1, 0.25, '{"executor": 3}']


# --- configurations -----------------------------------------------------------------------------


def test_there_is_a_configuration_for_every_size():
    sizes = ("1gpu", "2gpu", "8gpu", "2nodes")
    assert {p.stem for p in CONFIGS} == {"cpu_2processes"} | {f"zero{s}_{n}" for s in (2, 3) for n in sizes}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_reads_the_configuration(path, tmp_path):
    """With its own parser, and as its launcher puts it together; what it holds fits what the trainer does."""
    config = load_config_from_file(str(path))
    parsed = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    arguments, _, _ = _validate_launch_command(parsed)
    assert arguments.num_processes == config.num_processes and arguments.num_machines == config.num_machines
    if path.stem.startswith("cpu"):
        assert arguments.multi_gpu and not arguments.use_deepspeed and config.num_processes == 2
        return
    stage, size = int(path.stem[4]), path.stem.partition("_")[2]
    assert arguments.use_deepspeed and arguments.zero_stage == stage and arguments.mixed_precision == "bf16"
    of_size = {"1gpu": (1, 1), "2gpu": (2, 1), "8gpu": (8, 1), "2nodes": (16, 2)}
    assert (config.num_processes, config.num_machines) == of_size[size]
    expected = grpo_config(load_preset("paper").planner_training, 0, tmp_path)
    assert float(arguments.gradient_clipping) == expected.max_grad_norm
    assert arguments.gradient_accumulation_steps == expected.gradient_accumulation_steps
    offload = "cpu" if size == "1gpu" else "none"
    assert arguments.offload_optimizer_device == offload
    assert arguments.offload_param_device == (offload if stage == 3 else "none")
    if stage == 3:
        assert (arguments.zero3_init_flag, arguments.zero3_save_16bit_model) == (True, True)


@pytest.mark.parametrize("text", ["tracelift", "tracelift:", "tracelift:a", ":0", "fastest:0"])
def test_a_run_that_is_no_arm_and_seed_is_refused_with_what_to_write(text, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    assert launch.main(["--preset", "check", "--run", "exec_only:0", text]) == 2
    said = capsys.readouterr().err
    assert f"--run {text!r}: write ARM:SEED, e.g. tracelift:0; arms are " in said and "no_uplift" in said
