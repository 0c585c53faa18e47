"""Makers of flawed traces: from a sound trace to versions that have exactly one flaw of one kind of groups/kinds.py.

Every module of exact makers names its functions after the kinds they make. In reading order:

tiny_math.py: flaws in traces of the generated stories, whose true steps are known (read first).
tiny_code.py: flaws in plans of the generated programs, whose true reasoning is known.
calculations.py: the calculations in a solution in prose, such as GSM8K's, and what each number quotes.
recompute.py: one change carried through the calculations that follow.
math_makers.py: flaws in solutions in prose.
plan_words.py: Python expressions in plain words.
plans.py: the reference trace of a program, one line for each statement.
code_makers.py: flaws put into a program's syntax tree, and so into its plan.
by_model.py: flaws by a language model, for any reference.
"""
