"""Generation against plain transformers' `generate(do_sample=False)`, token for token."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from made_models import make
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from duiti.infer.generate import Answer, Sampling, generate, stream

LENGTHS = (3, 17, 1, 8, 30, 8)


def prompts() -> list[list[int]]:
    return [
        np.random.default_rng(number).integers(4, 440, length).tolist()
        for number, length in enumerate(LENGTHS)
    ]


def mistral() -> PreTrainedModel:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=447, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=5, initializer_range=0.2,
        pad_token_id=1, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


@pytest.fixture(params=["llama_dir", "qwen3_dir", "mistral-sliding"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    if request.param == "mistral-sliding":
        return mistral()
    return AutoModelForCausalLM.from_pretrained(request.getfixturevalue(request.param)).eval()


def plain(model: PreTrainedModel, prompt: list[int], stop_ids: set[int], limit: int) -> Answer:
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=sorted(stop_ids),
        pad_token_id=1,
    )[0, len(prompt) :].tolist()
    is_stopped = found[-1] in stop_ids
    return Answer(tuple(found[:-1] if is_stopped else found), is_stopped)


def test_greedy_batches_are_one_by_one_and_plain_transformers(model: PreTrainedModel) -> None:
    expected = [plain(model, prompt, {0}, 24) for prompt in prompts()]
    one_by_one = [
        generate(model, [prompt], stop_ids={0}, max_new_tokens=24)[0] for prompt in prompts()
    ]
    assert one_by_one == expected
    for batch_size in (64, 4, 1):
        found = generate(model, prompts(), stop_ids={0}, max_new_tokens=24, batch_size=batch_size)
        assert found == expected
    streamed = [
        tuple(stream(model, prompt, stop_ids={0}, max_new_tokens=24)) for prompt in prompts()
    ]
    assert streamed == [answer.ids for answer in expected]


def test_every_stop_id_stops_and_none_is_in_the_answer(model: PreTrainedModel) -> None:
    free = [plain(model, prompt, {0}, 24).ids for prompt in prompts()]
    # Stop ids at different places of different answers.
    stops = {free[0][2], free[1][9], free[4][5]}
    found = generate(model, prompts(), stop_ids=stops, max_new_tokens=24)
    assert found == [plain(model, prompt, stops, 24) for prompt in prompts()]
    for answer, unstopped in zip(found, free, strict=True):
        places = [k for k, token in enumerate(unstopped) if token in stops]
        assert answer.ids == unstopped[: places[0] if places else None]
        assert answer.stopped == bool(places)
        assert not stops & set(answer.ids)
    assert sum(answer.stopped for answer in found) >= 3


def test_an_answer_that_stops_at_once_is_empty(model: PreTrainedModel) -> None:
    first = generate(model, prompts()[:1], stop_ids=set(), max_new_tokens=1)[0].ids[0]
    assert generate(model, prompts()[:1], stop_ids={first}, max_new_tokens=9) == [Answer((), True)]
    assert list(stream(model, prompts()[0], stop_ids={first}, max_new_tokens=9)) == []


def test_at_the_limit_an_answer_did_not_stop(model: PreTrainedModel) -> None:
    for answer in generate(model, prompts(), stop_ids=set(), max_new_tokens=5):
        assert len(answer.ids) == 5
        assert not answer.stopped


def test_no_prompts_no_answers(model: PreTrainedModel) -> None:
    assert generate(model, [], stop_ids={0}, max_new_tokens=5) == []


def test_sampling_is_a_function_of_its_seed(model: PreTrainedModel) -> None:
    def sample(seed: int) -> list[Answer]:
        sampling = Sampling(temperature=1.0, seed=seed)
        return generate(model, prompts(), stop_ids=set(), max_new_tokens=12, sampling=sampling)

    torch.manual_seed(1)
    one = sample(5)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert sample(5) == one
    assert sample(6) != one
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # the global stream is not used


def test_samples_follow_the_softmax_of_the_logits(llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_dir).eval()
    prompt = prompts()[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    expected = (logits / 2.0).softmax(-1)
    n = 4000
    found = generate(
        model, [prompt] * n, stop_ids=set(), max_new_tokens=1, batch_size=n,
        sampling=Sampling(temperature=2.0, seed=0),
    )  # fmt: skip
    counts = Counter(answer.ids[0] for answer in found)
    shares = torch.tensor([counts[token] / n for token in range(len(expected))])
    # Five standard errors of a share of n draws, and one draw for the rarest.
    assert bool(
        ((shares - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt() + 1 / n).all()
    )


def test_top_p_draws_from_the_fewest_tokens_whose_mass_reaches_it(llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_dir).eval()
    prompt = prompts()[0]
    with torch.no_grad():
        p = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    mass, nucleus = 0.0, set()
    for token in p.argsort(descending=True).tolist():
        nucleus.add(token)
        mass += p[token].item()
        if mass >= 0.5:
            break
    found = generate(
        model, [prompt] * 2000, stop_ids=set(), max_new_tokens=1, batch_size=2000,
        sampling=Sampling(temperature=1.0, top_p=0.5, seed=0),
    )  # fmt: skip
    drawn = {answer.ids[0] for answer in found}
    assert drawn <= nucleus
    assert len(drawn) > len(nucleus) / 2
    tiny = Sampling(temperature=1.0, top_p=1e-9, seed=0)
    greedy = generate(model, [prompt], stop_ids=set(), max_new_tokens=6)
    assert generate(model, [prompt], stop_ids=set(), max_new_tokens=6, sampling=tiny) == greedy


def test_the_mode_of_the_model_is_restored(model: PreTrainedModel) -> None:
    model.train()
    generate(model, prompts(), stop_ids={0}, max_new_tokens=3)
    assert model.training
    pieces = stream(model, prompts()[0], stop_ids={0}, max_new_tokens=9)
    next(pieces)
    pieces.close()  # an answer that nobody reads to its end
    assert model.training


ARCHITECTURES = [
    "llama", "qwen2-biased", "qwen2-sliding", "qwen3-tied", "gemma", "gemma2-capped",
    "gemma3-sliding", "mistral-sliding", "phi3-fused", "gpt2", "mamba",
]  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore")
def test_batches_of_every_architecture_are_plain_transformers(name: str) -> None:
    """In float32: lower precision rounds otherwise in other shapes, and a tie may fall."""
    model = make(name)
    given = [[token % 90 + 3 for token in prompt] for prompt in prompts()]
    free = [plain(model, prompt, {10_000}, 12).ids for prompt in given]  # no token is that
    # Rows that stop at different steps leave the batch one by one.
    stops = {free[0][2], free[1][7]}
    found = generate(model, given, stop_ids=stops, max_new_tokens=12)
    assert found == [plain(model, prompt, stops, 12) for prompt in given]
    assert any(answer.stopped for answer in found)
    assert [generate(model, [p], stop_ids=stops, max_new_tokens=12)[0] for p in given] == found


def shapes_of(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """[rows, tokens] of every pass that the model makes from now on."""
    seen: list[tuple[int, int]] = []
    forward = model.forward

    def watched(input_ids: torch.Tensor, **others: object) -> object:
        seen.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **others)

    monkeypatch.setattr(model, "forward", watched)
    return seen


def test_a_finished_row_leaves_its_batch(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [plain(model, prompt, {0}, 12).ids for prompt in prompts()]
    stops = {free[0][2], free[1][5]}
    expected = [plain(model, prompt, stops, 12) for prompt in prompts()]
    monkeypatch.setattr("duiti.infer.generate._takes_a_cache", lambda model: True)
    seen = shapes_of(model, monkeypatch)
    assert generate(model, prompts(), stop_ids=stops, max_new_tokens=12) == expected
    # A row takes part until it has stopped: its tokens, and the stop token.
    passes = [len(answer.ids) + answer.stopped for answer in expected]
    assert [rows for rows, _ in seen] == [
        sum(count > step for count in passes) for step in range(max(passes))
    ]
    assert seen[0][0] == 6 > seen[-1][0]


def test_a_batch_holds_no_more_tokens_than_it_may(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(model, prompts(), stop_ids={0}, max_new_tokens=10)
    monkeypatch.setattr("duiti.infer.generate._takes_a_cache", lambda model: True)
    seen = shapes_of(model, monkeypatch)
    assert generate(model, prompts(), stop_ids={0}, max_new_tokens=10, batch_tokens=60) == expected
    begun = [(rows, width) for rows, width in seen if width > 1 or (rows, width) == (1, 1)]
    assert all(rows == 1 or rows * (width + 10) <= 60 for rows, width in begun)
    assert max(rows for rows, _ in begun) > 1


def test_an_answer_ends_where_the_models_positions_do(model: PreTrainedModel) -> None:
    found = generate(model, prompts(), stop_ids=set(), max_new_tokens=9, positions=20)
    assert [len(answer.ids) for answer in found] == [9, 3, 9, 9, 0, 9]
    free = generate(model, prompts(), stop_ids=set(), max_new_tokens=9)
    for answer, longer in zip(found, free, strict=True):
        assert not answer.stopped
        assert answer.ids == longer.ids[: len(answer.ids)]


def test_modules_are_left_in_the_mode_that_each_was_in(model: PreTrainedModel) -> None:
    model.train()
    next(iter(model.children())).eval()
    modes = [module.training for module in model.modules()]
    generate(model, prompts(), stop_ids={0}, max_new_tokens=3)
    assert [module.training for module in model.modules()] == modes
