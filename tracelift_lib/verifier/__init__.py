"""Verifier V(x, y): whether an executor's answer is right, and the execution reward s.

- verdicts.py: one interface for both domains (read first)
- verify_math.py: the final answer in a text, compared with the expected one (read first)
- answers.py: what counts as equal
- compare.py: expressions compared in a process of its own, with limits
- verify_code.py: programs run on their tests in the sandbox
"""
