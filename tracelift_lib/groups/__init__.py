"""TraceLift-Groups: for each problem a reference trace and flawed ones, each with a rubric; their making and checking.

Read first:
    schema.py       the rubric (its dimensions are in rubric.yaml), a group, the split into train and dev
    truth.py        the rubric that an infallible judge would give in the generated worlds
    flaws/tiny_math.py  the seven kinds of flaw in stories

Then:
    kinds.py        the fourteen kinds of flaw; their definitions are in kinds.yaml
    seeds.py        seed problems of every source; no test problem of a benchmark may be among them
    group_maker.py  one group: proposals, checks, rubrics
    checks.py       what a flawed trace must pass
    judge.py        who scores a trace, and how far a judge can be trusted
    by_model.py     a language model as maker and as judge
    habits.py       habits of planners, written and read: what the outcome sees of a trace, and what not
    builder.py      all groups of a source, with their files; can be interrupted and resumed
    group_files.py  group files: read, validated, written as parquet
    data_card.py    the README of built groups, after the template in data_card.yaml
    cli.py          the command `tracelift groups`
    settings.py     sections of a preset
"""
