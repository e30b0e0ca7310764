"""Two-layer random models of many architectures, documents to run them on, and the loss that one
writes without a library.

    model = make("gemma2-capped")
    loss = plain_loss(model, document(23, seed=0))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import transformers as hf
from torch import Tensor
from torch.nn.functional import cross_entropy

from duiti.types import Example, Origin

VOCAB = 97


def shape(**more: object) -> dict[str, object]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


SLIDING = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**shape()),
    "qwen2-biased": lambda: hf.Qwen2Config(**shape()),
    "qwen2-sliding": lambda: hf.Qwen2Config(
        **shape(use_sliding_window=True, sliding_window=4, layer_types=SLIDING)
    ),
    "qwen3-tied": lambda: hf.Qwen3Config(**shape(tie_word_embeddings=True)),
    "gemma": lambda: hf.GemmaConfig(**shape()),
    "gemma2-capped": lambda: hf.Gemma2Config(
        **shape(
            sliding_window=4,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        )
    ),
    "gemma3-sliding": lambda: hf.Gemma3TextConfig(
        **shape(sliding_window=4, layer_types=SLIDING, query_pre_attn_scalar=8)
    ),
    "mistral-sliding": lambda: hf.MistralConfig(**shape(sliding_window=4)),
    "phi3-fused": lambda: hf.Phi3Config(**shape(sliding_window=6)),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128,
        initializer_range=0.2, bos_token_id=1, eos_token_id=2,
    ),
    "gpt-oss-sinks": lambda: hf.GptOssConfig(
        **shape(sliding_window=4, num_local_experts=2, num_experts_per_tok=1)
    ),
    "granite": lambda: hf.GraniteConfig(**shape(logits_scaling=3.0, residual_multiplier=0.5)),
    "cohere": lambda: hf.CohereConfig(**shape(logit_scale=0.25)),
    "olmo2": lambda: hf.Olmo2Config(**shape()),
    "mamba": lambda: hf.MambaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "llama4-chunked": lambda: hf.Llama4TextConfig(
        **shape(
            attention_chunk_size=8, num_local_experts=2, interleave_moe_layer_step=2,
            intermediate_size_mlp=48, use_qk_norm=False,
            layer_types=["chunked_attention", "full_attention"],
        )
    ),
    "mixtral": lambda: hf.MixtralConfig(**shape(num_local_experts=4, num_experts_per_tok=2)),
    "qwen3-moe": lambda: hf.Qwen3MoeConfig(
        **shape(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                norm_topk_prob=True)
    ),
    "qwen2-moe-sliding": lambda: hf.Qwen2MoeConfig(
        **shape(
            use_sliding_window=True, sliding_window=8, layer_types=SLIDING, num_experts=2,
            num_experts_per_tok=1, moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        )
    ),
}  # fmt: skip


def make(name: str) -> hf.PreTrainedModel:
    """The same model every time."""
    torch.manual_seed(0)
    model: hf.PreTrainedModel = hf.AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():  # biases and norms start at 0 and 1, where a test would not see them
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1 and "A_log" not in key:
                parameter += 0.2 * torch.randn(parameter.shape)
    return model.eval()


def document(length: int, seed: int) -> Example:
    """Of random ids; the second half is trained."""
    ids = np.random.default_rng(seed).integers(3, VOCAB, length).astype(np.int32)
    labels = ids.copy()
    labels[: length // 2] = -100
    return Example(input_ids=ids, labels=labels, origin=Origin("test", seed))


def documents(lengths: Sequence[int]) -> list[Example]:
    return [document(length, seed) for seed, length in enumerate(lengths)]


def plain_loss(model: torch.nn.Module, example: Example) -> Tensor:
    """As in any textbook: logits[:-1] against labels[1:], from the model's own head."""
    ids = torch.tensor(example.input_ids.astype(np.int64))[None]
    labels = torch.tensor(example.labels.astype(np.int64))
    logits = model(input_ids=ids, use_cache=False).logits[0]
    return cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
