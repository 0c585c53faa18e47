"""Plumbing that no lesson needs: presets, stages and their results on disk, notebooks run headlessly, commands, report.

Read first:
    presets.py         a preset read, its keys checked, and whether it has what its notebooks will ask for
    lessons.yaml       what each notebook asks for
    pipeline.py        a run of a preset: stages made, resumed or found, and what they hold loaded

Then:
    settings.py        the sections of a preset together
    stages.py          what each stage makes, from what, and which notebook makes it; the graph of all of them
    store.py           results on disk: found again, resumed, never half read
    base_models.py     base models taken from files of the repository
    code_hash.py       hashes of the code that made a result
    parallel.py        runs side by side, one core each
    launch.py          planner training in several processes
    gpu_budget.py      whether planner training fits the GPU
    plan.py            what a preset will take: calls, tokens, GPU hours, memory, disk
    report.py          tables and figures with what they came from; figures.mplstyle is their look
    cases.py           groups of rollouts chosen by a rule, with the executor's texts and the RM's rubric drawn again
    viewer.py          the trace viewer; viewer.html and viewer.css are its page
    run_notebooks.py   notebooks converted, run, and not run again while nothing has changed
    course.py          copies for students, their grades, and the website; course.html and course.css are its pages
    evaluate.py        the command `tracelift evaluate`: any planner and executor on benchmark sets
    colab.py           the first cell of every notebook
    cli.py             the command `tracelift`
"""
