"""Training with two threads, alone and beside one other busy process: how far does it slow down?

    python -m bench.busy_core

Two OpenMP threads that spin while they wait for each other lose a shared core to their waiting. The Makefile and the
notebook runner tell them to sleep instead (OMP_WAIT_POLICY=passive); here both ways are measured side by side.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

SECONDS = 12
SLEEPING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def train() -> float:
    """Steps a second of a model of preset tiny's shape: 16 sequences of 150 tokens, two threads."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tracelift_lib.runs.presets import load_preset

    torch.set_num_threads(2)
    source = load_preset("tiny").executor
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=source.vocab_size, **source.shape.model_dump()))
    optimizer, ids = torch.optim.AdamW(model.parameters(), 1e-3), torch.randint(0, source.vocab_size, (16, 150))
    steps, start = 0, None
    while start is None or time.monotonic() - start < SECONDS:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if steps == 3:  # the first ones allocate
            start = time.monotonic()
    return (steps - 3) / (time.monotonic() - start)


def measured(settings: dict[str, str], busy: bool) -> float:
    """Steps a second in a fresh process with these variables, beside a busy one or not."""
    environment = {k: v for k, v in os.environ.items() if k not in SLEEPING} | settings
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        out = subprocess.run(
            [sys.executable, "-m", "bench.busy_core", "train"], env=environment, capture_output=True, check=True
        )
    finally:
        if other:
            other.kill()
            other.wait()
    return float(out.stdout)


def run() -> list[dict]:
    """Rows for build/bench.json: name, ours and other (steps a second), ratio, unit, note."""
    rows = []
    for name, settings in (("spinning", {}), ("sleeping", SLEEPING)):
        alone, beside = measured(settings, False), measured(settings, True)
        note = f"two {name} threads, alone against beside one busy process, {os.cpu_count()} cores"
        rows.append(
            {
                "name": f"busy_core_{name}",
                "ours": beside,
                "other": alone,
                "ratio": alone / beside,
                "unit": "steps/s",
                "note": note,
            }
        )
    return rows


if __name__ == "__main__":
    print(train()) if sys.argv[1:] == ["train"] else print(*run(), sep="\n")
