"""Verifier V(x, y): whether an executor's answer is right, and the execution reward s.

Read first:

    verdicts.py     one interface for both domains
    verify_math.py  the final answer in a text, compared with the expected one

Then:

    statements.py   where a text states its final answer, and where that statement ends
    answers.py      what counts as equal
    expressions.py  equality of expressions, relations and matrices
    compare.py      expressions compared in a process of its own, with limits
    verify_code.py  programs run on their tests in the sandbox
"""
