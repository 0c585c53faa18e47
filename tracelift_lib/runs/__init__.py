"""Plumbing that no lesson needs: presets, stages and their results on disk, notebooks run headlessly, commands, report.

Read first:
    presets.py         a preset read, its keys checked, and whether it has what its notebooks will ask for
    lessons.yaml       what each notebook asks for
    pipeline.py        a run of a preset: stages made, resumed or found, and what they hold loaded

Then:
    settings.py        the sections of a preset together
    stages.py          what each stage makes, from what, and which notebook makes it; the graph of all of them
    store.py           results on disk: found again, resumed, never half read
    code_hash.py       hashes of the code that made a result
    parallel.py        runs side by side, one core each
    launch.py          planner training in several processes
    gpu_budget.py      whether planner training fits the GPU
    report.py          tables and figures with what they came from; figures.mplstyle is their look
    run_notebooks.py   notebooks converted, run, and not run again while nothing has changed
    evaluate.py        the command `tracelift evaluate`: any planner and executor on benchmark sets
    colab.py           the first cell of every notebook
    cli.py             the command `tracelift`
"""
