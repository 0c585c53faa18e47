"""Where model-written programs run: isolated from this machine, within limits, apart from the expected results.

running: one program on its tests, with the outcome of each
assert_plans: simple test code becomes calls and comparisons, so that it need not run
calls: function calls between test code and program, which are in two processes
host: tiers of isolation, and the warm worker in them, seen from outside
worker: the program inside the sandbox, which forks one process for each test
tiers: which tiers this machine offers
"""
