"""Evaluation of planners and reward models, with intervals.

Read first:
    planner_evaluation.py   planner, then executor
    intervals.py            intervals for few seeds and for shares near 0 or 1, tests, verdicts

Then:
    natural_sets.py         traces with natural errors: public sets, files of one's own
    benchmark_sets.py       benchmark sets as data: one YAML file each in sets/, or a user's own file
    benchmarks.py           planner and executor on them; every output kept, a killed run goes on
    benchmark_tables.py     shares, pass@k, averages, comparisons, answer rules, all from what was kept
    natural_measures.py     whether a score finds these errors
    settings.py             sections of a preset
"""
