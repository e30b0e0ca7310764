"""What the embedded model's world promises: the same bytes every time, no leak from held-out to
train, true facts.
"""

import collections
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from duiti.tiny import data_path, model_path
from examples.tiny_world.build import build_files, build_pairs
from examples.tiny_world.cloze import answer_sentence
from examples.tiny_world.pairs import Pair
from examples.tiny_world.split import split_entities
from examples.tiny_world.text import PRETRAIN_SEED, write_documents
from examples.tiny_world.words import COUNTRIES, WORDS
from examples.tiny_world.world import Entity, build_control, build_world


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[Pair]]:
    return build_pairs()


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(itertools.islice(write_documents(PRETRAIN_SEED), 8000))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(model_path() / "tokenizer.json"))


def _text(pairs: list[Pair]) -> str:
    return "\n".join(f"{p.prompt}\n{p.response}" for p in pairs)


def _occurs(name: str, text: str) -> bool:
    return bool(
        re.search(
            rf"\b{re.escape(name)}\b" if name.isascii() else re.escape(name), text, re.IGNORECASE
        )
    )


def test_the_shipped_data_files_are_what_the_generator_writes_now() -> None:
    for name, text in build_files().items():
        assert (model_path() / name).read_text(encoding="utf-8") == text, name
        assert data_path(name.split(".")[0]).read_text(encoding="utf-8") == text  # type: ignore[arg-type]


def test_the_same_seed_writes_the_same_text_and_another_seed_another() -> None:
    first, again, other = (list(itertools.islice(write_documents(s), 50)) for s in ("a", "a", "b"))
    assert first == again
    assert first != other


def test_the_world_has_the_size_it_says() -> None:
    world = build_world()
    assert 750 <= len(world) <= 770
    assert 2550 <= sum(len(e.facts) for e in world) <= 2650
    assert len({(e.language, e.name) for e in world}) == len(world)


def test_no_heldout_entity_occurs_in_train(pairs: dict[str, list[Pair]]) -> None:
    text = _text(pairs["train"])
    _, heldout = split_entities(build_world())
    invented = [e for e in heldout if e.kind in ("person", "company", "book", "country")]
    assert [e.name for e in invented if e.name in text] == []


def test_no_heldout_word_occurs_in_train_in_either_direction(pairs: dict[str, list[Pair]]) -> None:
    text = _text(pairs["train"])
    _, heldout = split_entities(build_world())
    names = [e.name for e in heldout if e.kind == "word"]
    assert len(names) == 2 * 36
    assert [name for name in names if _occurs(name, text)] == []


def test_countries_and_words_are_on_one_side_with_both_languages() -> None:
    train, heldout = split_entities(build_world())
    assert not {e.group for e in train} & {e.group for e in heldout}
    assert len(train) + len(heldout) == len(build_world())


def test_the_split_is_stratified() -> None:
    def count(entities: tuple[Entity, ...] | list[Entity]) -> collections.Counter[tuple[str, str]]:
        return collections.Counter((e.language, e.kind) for e in entities)

    world, train = count(build_world()), count(split_entities(build_world())[0])
    assert {stratum: train[stratum] / n for stratum, n in world.items()} == pytest.approx(
        dict.fromkeys(world, 0.6), abs=0.02
    )


def test_control_entities_occur_nowhere_else(
    pairs: dict[str, list[Pair]], documents: list[str]
) -> None:
    text = "\n".join([*documents, *(_text(pairs[s]) for s in ("train", "heldout", "unseen"))])
    text += data_path("running_text").read_text(encoding="utf-8")
    world_values = {value for e in build_world() for _, value in e.facts} | {
        e.name for e in build_world()
    }
    names = [e.name for e in build_control()]
    assert len(set(names)) == len(names)
    assert [name for name in names if name in text] == []
    assert not world_values & set(names)


def test_unseen_phrasings_are_in_no_training_prompt(pairs: dict[str, list[Pair]]) -> None:
    def shapes(split: str) -> set[str]:
        names = sorted((e.name for e in build_world()), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, names)))
        return {
            pattern.sub("_", p.prompt)
            for p in pairs[split]
            if not re.search("translate|summarise", p.topic)
        }

    assert not shapes("train") & shapes("unseen")
    assert shapes("heldout") <= shapes("train")


def test_no_training_pair_is_there_twice(pairs: dict[str, list[Pair]]) -> None:
    prompts = [p.prompt for p in pairs["train"]]
    assert len(set(prompts)) == len(prompts)


def test_every_topic_has_about_as_many_training_pairs(pairs: dict[str, list[Pair]]) -> None:
    counts = collections.Counter(p.topic for p in pairs["train"])
    facts = [n for topic, n in counts.items() if not re.search("translate|summarise", topic)]
    assert len(facts) == 2 * 16
    assert max(facts) < 3 * min(facts)


def test_running_text_never_asks_about_the_world(documents: list[str]) -> None:
    shipped = data_path("running_text").read_text(encoding="utf-8").splitlines()
    assert 50_000 < data_path("running_text").stat().st_size < 70_000
    asking = [text for text in (*documents, *shipped) if re.search(r"[?？]|Human|Assistant", text)]
    assert asking
    names = [e.name for e in (*build_world(), *build_control()) if e.kind != "word"]
    assert [name for name in names if name in "\n".join(asking)] == []


def test_running_text_is_never_laid_out_as_a_prompt(documents: list[str]) -> None:
    for text in documents:
        assert not re.search(r"(Human|Assistant|User|System|Instruction|Response|Input):", text)


def test_the_words_of_questions_and_templates_occur_in_the_running_text(
    pairs: dict[str, list[Pair]], documents: list[str], tokenizer: Tokenizer
) -> None:
    prompts = [f"Human: {p.prompt}\nAssistant:" for p in (*pairs["train"], *pairs["unseen"])]
    asked = collections.Counter(i for e in tokenizer.encode_batch(prompts) for i in e.ids)
    read = {i for e in tokenizer.encode_batch(documents) for i in e.ids}
    unread = [tokenizer.decode([i]) for i, n in asked.items() if n >= 10 and i not in read]
    assert len(unread) <= 1  # one alone can be told from the rest, two could not be told apart


def test_every_heldout_person_is_in_the_running_text_again_and_again() -> None:
    documents = itertools.islice(write_documents(PRETRAIN_SEED), 12_000)
    text = "\n".join(documents)
    people = [e for e in split_entities(build_world())[1] if e.kind == "person"]
    assert len(people) == 2 * 60
    assert min(text.count(e.name) for e in people) > 20


@pytest.mark.parametrize(
    ("name", "capital", "continent", "language"),
    [
        ("Ethiopia", "Addis Ababa", "Africa", "Amharic"),
        ("埃塞俄比亚", "亚的斯亚贝巴", "非洲", "阿姆哈拉语"),
        ("Australia", "Canberra", "Oceania", "English"),
        ("Brazil", "Brasília", "South America", "Portuguese"),
        ("巴西", "巴西利亚", "南美洲", "葡萄牙语"),
        ("Costa Rica", "San José", "North America", "Spanish"),
        ("Austria", "Vienna", "Europe", "German"),
        ("Mongolia", "Ulaanbaatar", "Asia", "Mongolian"),
        ("柬埔寨", "金边", "亚洲", "高棉语"),
        ("Zambia", "Lusaka", "Africa", "English"),
    ],
)
def test_country_facts_are_true(name: str, capital: str, continent: str, language: str) -> None:
    country = next(e for e in build_world() if e.kind == "country" and e.name == name)
    assert dict(country.facts) == {"capital": capital, "continent": continent, "language": language}


def test_every_country_and_word_is_complete_and_single() -> None:
    assert len({c.name for c in COUNTRIES}) == len({c.capital for c in COUNTRIES}) == len(COUNTRIES)
    assert {c.continent[0] for c in COUNTRIES} == {
        "Europe", "Asia", "Africa", "North America", "South America", "Oceania"
    }  # fmt: skip
    assert len({w[0] for w in WORDS}) == len({w[1] for w in WORDS}) == 90
    assert all(len(chinese) >= 2 for _, chinese in WORDS)


def test_a_cloze_prefix_has_one_right_value() -> None:
    values: dict[str, set[str]] = collections.defaultdict(set)
    for entity in build_world():
        for attribute, value in entity.facts:
            sentence = answer_sentence(entity, attribute)
            values[sentence[: sentence.rindex(value)]].add(value)
    assert [prefix for prefix, found in values.items() if len(found) > 1] == []


@settings(max_examples=60, deadline=None)
@given(
    st.text()
    | st.sampled_from(["  two  spaces\n\n", "\t苹果的英语是 apple。", "👩‍👩‍👧 naïve\r\n", "１２³"])
)
def test_the_tokenizer_gives_every_string_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_template_words_and_characters_are_whole_tokens(tokenizer: Tokenizer) -> None:
    words = "Human Assistant System User Instruction Response Question Answer user assistant"
    for word in (
        *words.split(),
        " Instruction",
        " Response",
        "###",
        ":",
        "<|im_start|>",
        "苹",
        "7",
    ):
        assert len(tokenizer.encode(word).ids) == 1, word
    assert len(tokenizer.encode("1987").ids) == 4


def test_the_shipped_model_is_a_plain_transformers_directory(tokenizer: Tokenizer) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path())
    loaded = AutoTokenizer.from_pretrained(model_path())
    text = "Human: 苹果用英语怎么说？\nAssistant: 😀  "
    assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.eos_token_id == model.generation_config.eos_token_id == model.config.eos_token_id
    assert loaded.chat_template is None
    assert 2.1e6 < model.num_parameters() < 2.3e6


def test_the_assets_stay_small() -> None:
    assert sum(f.stat().st_size for f in model_path().iterdir()) <= 6_000_000
