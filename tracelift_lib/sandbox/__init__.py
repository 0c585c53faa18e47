"""Where model-written programs run: isolated from this machine, within limits, apart from the expected results.

Then:

    running.py       one program on its tests, with the outcome of each
    assert_plans.py  simple test code becomes calls and comparisons, so that it need not run
    values.py        what travels between test code and program
    calls.py         function calls between test code and program, which are in two processes
    host.py          tiers of isolation, and the warm worker in them, seen from outside
    control_groups.py  counts and ends what a worker's tests start, where the machine lets us
    worker.py        inside the sandbox: isolates itself, then forks one process for each test
    program.py       in the process of a test: compile and run the program
    usage.py         what a running test uses: CPU time, memory, disk
    system_calls.py  the filter of system calls, from the lists in system_calls.yaml
    tiers.py         which tiers this machine offers
"""
