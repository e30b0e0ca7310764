"""The little bilingual world behind `tiny`: its facts, its running text, its questions and its
pretraining.

    python -m examples.tiny_world.build       # tokenizer and data files; a minute, no torch
    python -m examples.tiny_world.pretrain    # the weights
    python -m examples.tiny_world.measure     # base, LoRA, held-out, unseen, control

One sample's way: `world` (who exists) -> `text` (what is written about them) -> `pretrain`; and
`world` -> `questions` (what is asked) -> `split` (who may be asked about in training) -> `build`.
"""
