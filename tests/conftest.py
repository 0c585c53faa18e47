"""What all tests share: repeatable hypothesis runs, one thread, no network, and a home outside the project."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the network must fail, everywhere
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # test_store forks

import pytest
import torch
from hypothesis import HealthCheck, settings

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
settings.register_profile(
    "project",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("project")
torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


SLOWEST = [  # begun first, the longest before the others, so that no process is left with them
    "tests/notebooks/test_notebooks.py",
    "tests/runs/test_launch.py",
    "tests/sandbox/",
    "tests/planner/",
    "tests/reward_model/",
    "tests/problems/",
]


def pytest_collection_modifyitems(items):
    items.sort(
        key=lambda item: next((i for i, place in enumerate(SLOWEST) if item.nodeid.startswith(place)), len(SLOWEST))
    )


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """No test reads or writes the project's own runs/."""
    monkeypatch.setenv("TRACELIFT_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory):
    """A home with all that planner training needs, made once for all tests, which copy it."""
    from common import UPSTREAM

    from tracelift_lib.runs.pipeline import Run

    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACELIFT_HOME", str(home))
        run = Run("check", overrides=UPSTREAM)
        for stage in ("problems", "executor", "planner", "groups", "reward_model", "baseline"):
            run.make(stage)
    return home


@pytest.fixture(scope="session")
def sandbox():
    """For tests that run programs: they skip where this machine offers no safe place."""
    from tracelift_lib.sandbox.host import SandboxError
    from tracelift_lib.sandbox.tiers import choose_tier

    try:
        choose_tier()
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium; tests that use it are marked `browser.needs_browser`."""
    from browser import open_browser

    with open_browser() as window:
        yield window
