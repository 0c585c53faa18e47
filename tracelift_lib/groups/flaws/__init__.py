"""Makers of flawed traces: of a sound trace versions with exactly one flaw, of a kind that groups/kinds.yaml names.

In the modules of exact makers each public function before `MAKERS` is named after the kind that it makes; `MAKERS`
holds them in the order of groups/kinds.yaml, in which kinds are drawn.

    tiny_math.py    flaws in traces of the generated stories, whose true steps are known
    tiny_code.py    flaws in plans of the generated programs, whose true reasoning is known
    calculations.py  the calculations of a solution in prose, such as GSM8K's, and which result each number quotes;
                    one change, carried through those that follow
    math_makers.py  flaws in solutions in prose
    plans.py        the reference trace of a program, a line for each statement, in the words of plan_words.yaml
    code_makers.py  flaws in a program's syntax tree, and so in its plan; what replaces what is in replacements.yaml
"""
