"""The frozen executor, whose success with and without a trace is what the trace is worth; other models that are asked.

Read first:
    frozen.py       from (problem, trace or none) to sampled answers and their verdicts

Then:
    backends.py     where the executor runs: in this process, or behind servers
    client.py       the one client for OpenAI-compatible servers
    structured.py   answers that fit a JSON schema, for makers of flawed traces and judges
    settings.py     sections of a preset
"""
