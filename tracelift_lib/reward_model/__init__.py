"""The Reasoning Reward Model: scores a trace by five rubric dimensions and a total, trained on groups of traces.

Read first:
    model.py        heads on any backbone, the checkpoint's layout, loading
    losses.py       labels, total, ranking within a group
    training.py     one training loop, over whole groups

Then:
    scorer.py       scores of traces by a model in this process; what texts have in common at their start is read once
    metrics.py      ranking, errors and calibration on held-out groups
    remote.py       scores of traces from a scoring service
    server.py       the scoring service
    settings.py     sections of a preset
"""
