"""Language models: where they come from, how they learn from given texts, and how completions are sampled from them.

Read first:
    generation.py   n sampled completions for each prompt; log-likelihoods of given completions

Then:
    contract.py     which tokens a model reads, how it is sampled, where a completion ends: in training and everywhere
    base.py         small Qwen2 models, trained here from random weights
    loading.py      models and tokenizers from a wheel on PyPI, the Hugging Face hub or a folder
    supervised.py   supervised training that can be interrupted and resumed
    settings.py     sections of a preset
"""
