"""What counts as the collapse of a training run, on logs written by hand."""

import math
import re

import pytest

from tracelift_lib.planner.collapse import sign_of_collapse
from tracelift_lib.planner.settings import Collapse

WINDOW = Collapse(window=3)


def log(*rows, **same):
    """A trainer's log: a row for each (reward, share of completions without a trace, entropy)."""
    return [
        {"loss": 0.0, "grad_norm": 0.1, "step": i + 1, "reward": r, "format_errors": e, "entropy": h, **same}
        for i, (r, e, h) in enumerate(rows)
    ]


GOOD, BABBLE, FROZEN = (0.5, 0.0, 0.5), (0.0, 1.0, 5.0), (0.3, 0.0, 0.001)


@pytest.mark.parametrize(
    "rows, words",
    [
        (
            [GOOD] * 3 + [BABBLE] * 3,
            "100% of the completions contain no trace over the last 3 steps, and the mean reward is 0 "
            r"\(at the start 0.5\)",
        ),
        ([GOOD] + [BABBLE] * 5, "contain no trace"),  # the collapse lies in the first window
        ([GOOD] * 9 + [FROZEN] * 3, "the entropy is 0.001 nats per token"),
        ([GOOD] * 3 + [(0.2, 0.9, 1.0)] * 3, "90%"),
    ],
)
def test_a_collapse_is_seen(rows, words):
    assert re.match(f".*{words}", sign_of_collapse(log(*rows), WINDOW))
    assert sign_of_collapse(log(*rows), None) is None
    assert sign_of_collapse([*log(*rows), {"train_runtime": 3.0}], WINDOW)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [GOOD] * 2 + [BABBLE] * 3,  # too early for two windows
        [GOOD] * 4 + [BABBLE] * 2,  # a window is not full yet
        [GOOD] * 4 + [BABBLE, GOOD, BABBLE],  # it comes back
        [GOOD] * 3 + [(0.9, 0.0, 0.0)] * 3,  # sure of itself, and better: learned
        [GOOD] * 3 + [(0.5, 0.0, 0.0)] * 3,  # no worse than at the start
        [(0.0, 1.0, 5.0)] * 9,  # has never written a trace
        [(0.01, 0.95, 5.0)] * 3 + [(0.02, 0.92, 5.0)] * 3,  # few traces, but more and more
        [GOOD] * 3 + [(0.1, 0.5, 1.0)] * 3,  # worse, for another reason
    ],
    ids=len,
)
def test_what_is_no_collapse(rows):
    assert sign_of_collapse(log(*rows), WINDOW) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("settings", [None, WINDOW])
def test_a_loss_or_gradient_that_is_nan_or_infinite_is_one_at_once(value, settings):
    assert sign_of_collapse(log(GOOD, loss=value), settings) == f"loss is {value}"
    assert sign_of_collapse(log(GOOD, grad_norm=value), settings) == f"grad_norm is {value}"
    assert sign_of_collapse(log(GOOD, grad_norm=value), settings, scaled=True) is None  # the scaler skips this step
    assert sign_of_collapse(log(GOOD, loss=value), settings, scaled=True)


def test_missing_entries_show_nothing():
    """TRL logs no reward for a step whose rewards all failed."""
    rows = log(*[GOOD] * 3, *[BABBLE] * 3)
    assert sign_of_collapse([row | {"reward": None} for row in rows], WINDOW) is None
    assert sign_of_collapse([{k: v for k, v in row.items() if k != "format_errors"} for row in rows], WINDOW) is None
