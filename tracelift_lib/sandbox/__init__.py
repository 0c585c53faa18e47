"""Where model-written programs run: isolated from this machine, within limits, apart from the expected results.

Then:

    running.py       one program on its tests, with the outcome of each
    assert_plans.py  simple test code becomes calls and comparisons, so that it need not run
    calls.py         function calls between test code and program, which are in two processes
    host.py          tiers of isolation, and the warm worker in them, seen from outside
    worker.py        the program inside the sandbox, which forks one process for each test
    system_calls.py  the filter of system calls, from the lists in system_calls.yaml
    tiers.py         which tiers this machine offers
"""
