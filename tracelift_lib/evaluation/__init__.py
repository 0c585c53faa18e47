"""Evaluation of planners and reward models, with intervals.

Read first:
    planner_evaluation.py   planner, then executor
    intervals.py            intervals for few seeds and for shares near 0 or 1, tests, verdicts

Then:
    natural_sets.py         traces with natural errors: public sets, files of one's own
    natural_measures.py     whether a score finds these errors
    settings.py             sections of a preset
"""
