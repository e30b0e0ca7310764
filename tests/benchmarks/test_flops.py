"""The formula of necessary FLOPs against torch's own count of what plain models multiply."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.speed.flops import Method, Shape, necessary_flops

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")
SHAPE = Shape(hidden=32, intermediate=48, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=96)
LENGTH, RANK = 24, 4


def model_of(shape: Shape) -> Qwen3ForCausalLM:
    """With eager attention: its products are plain ones, which the counter sees."""
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    return Qwen3ForCausalLM(config)


def counted(model: nn.Module) -> int:
    """FLOPs of the products of one forward and backward pass over one document."""
    ids = torch.arange(LENGTH)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    return counter.get_total_flops()


def upper_half() -> int:
    """Plain attention multiplies whole squares; what lies above the diagonal is not necessary."""
    above = LENGTH * LENGTH - LENGTH * (LENGTH + 1) // 2
    return 12 * SHAPE.layers * SHAPE.heads * SHAPE.head_dim * above


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_formula_counts_what_a_plain_model_multiplies(method: Method) -> None:
    """Every position goes through the plain head: so it is compared with all tokens supervised."""
    model: nn.Module = model_of(SHAPE)
    if method == "lora":
        adapted = LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapted)  # type: ignore[arg-type]
    expected = necessary_flops(
        SHAPE, method=method, rank=RANK, lengths=[LENGTH], num_supervised=LENGTH
    )
    assert counted(model) == expected + upper_half()


def test_documents_are_added_and_prompts_cost_no_head() -> None:
    def flops(lengths: list[int], supervised: int) -> int:
        return necessary_flops(
            SHAPE, method="lora", rank=RANK, lengths=lengths, num_supervised=supervised
        )

    assert flops([5, 9], 6) == flops([5], 2) + flops([9], 4)
    assert flops([9], 4) - flops([9], 3) == 4 * SHAPE.vocab * SHAPE.hidden


def test_two_documents_cost_less_than_one_of_the_same_length() -> None:
    def flops(lengths: list[int]) -> int:
        return necessary_flops(SHAPE, method="full", rank=0, lengths=lengths, num_supervised=1)

    assert flops([8, 8]) < flops([16])
