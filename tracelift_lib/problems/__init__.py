"""Problems of both generated worlds and of public sets, and every text that a model reads about them.

Read first:

    problem.py     a problem, whatever its source; GSM8K
    tinyworld.py   generated arithmetic stories, with the truth about every step
    prompts.py     what planner, executor and reward model read (prompts.yaml); how a trace is taken out of a completion

Then:

    tinycode.py    generated small programs, with the truth about every step
    code_tests.py  tests of a program
    code_sets.py   HumanEval, MBPP, code_contests
    records.py     records of data sets, from local files or the Hugging Face hub
    hub.py         the hub's errors in plain words
    files.py       the project's folders, JSON Lines, wheels, hashes; the error for bad input
    settings.py    sections of a preset that say where problems come from
"""
