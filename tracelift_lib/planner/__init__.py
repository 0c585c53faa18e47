"""The planner: rewards, GRPO training, and where a planner starts from.

Read first:
    rewards.py          the rewards of the paper and of its released code
    reward_engine.py    rewards of a batch of sampled completions while training
    training.py         GRPO with TRL

Then:
    log.py              what training leaves as tables: every completion, every step
    collapse.py         when a run is stopped
    unsloth.py          the same training with Unsloth and vLLM
    warm_start.py       a planner fine-tuned on traces, to start from
    judges.py           judges that stand in for an LLM's, and a random control
    prediction.py       what a training will do to a planner's habits, said before it starts
    theory.py           what notebook 09 proves about the rewards
    memory.py           bytes of weights, optimizer and activations
    settings.py         sections of a preset
"""
