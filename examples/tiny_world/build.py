"""Write the data files of `tiny`: training pairs, held-out, unseen and control questions,
held-out running text.

    python -m examples.tiny_world.build [--out DIR]

The same bytes every time. Lines are shuffled, so the first hundred of a file are a fair sample of
it.
"""

import argparse
import itertools
import json
import random
from pathlib import Path

from duiti.tiny import model_path

from .pairs import Pair, ask_facts, ask_summaries, ask_translations
from .split import split_entities
from .text import HELDOUT_SEED, write_documents
from .world import Entity, build_control, build_world

PER_FACT = {"person": 2, "company": 5, "book": 5, "country": 5, "word": 6}
"""Phrasings of a fact in training; held-out questions are asked once."""
NUM_TRAIN_TASKS, NUM_HELDOUT_TASKS = 200, 60
"""Translations, and as many summaries."""
RUNNING_TEXT_BYTES = 60_000


def main() -> None:
    """Write every file and say how many lines it has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=model_path())
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, text in build_files().items():
        scratch = out / f"{name}.part"
        scratch.write_text(text, encoding="utf-8", newline="\n")
        scratch.replace(out / name)
        print(f"{name:18}{text.count(chr(10)):6} lines {len(text.encode()):8} bytes")


def build_files() -> dict[str, str]:
    """File name to content."""
    files = {
        f"{name}.jsonl": "".join(
            json.dumps({"prompt": p.prompt, "response": p.response}, ensure_ascii=False) + "\n"
            for p in pairs
        )
        for name, pairs in build_pairs().items()
    }
    return files | {"running_text.txt": _running_text()}


def build_pairs() -> dict[str, list[Pair]]:
    """The pairs of each data file, shuffled."""
    train, heldout = split_entities(build_world())
    once = dict.fromkeys(PER_FACT, 1)
    splits = {
        "train": [*ask_facts(train, PER_FACT), *_tasks(train, NUM_TRAIN_TASKS, "train")],
        "heldout": [*ask_facts(heldout, once), *_tasks(heldout, NUM_HELDOUT_TASKS, "heldout")],
        "unseen": [
            *ask_facts(heldout, once, unseen=True),
            *_tasks(heldout, NUM_HELDOUT_TASKS, "heldout", unseen=True),
        ],
        "control": list(ask_facts(build_control(), once)),
    }
    return {name: random.Random(name).sample(pairs, len(pairs)) for name, pairs in splits.items()}


def _tasks(entities: list[Entity], count: int, seed: str, *, unseen: bool = False) -> list[Pair]:
    """Translations with these entities' words alone, and summaries about these entities."""
    words = [
        (e.name, e.value("translation"))
        for e in entities
        if e.kind == "word" and e.language == "en"
    ]
    return [
        *ask_translations(words, count, seed, unseen=unseen),
        *ask_summaries(entities, count, seed, unseen=unseen),
    ]


def _running_text() -> str:
    """Paragraphs the base has not been trained on, though they say what it knows."""
    lines, size = list[str](), 0
    for line in itertools.chain.from_iterable(d.split("\n") for d in write_documents(HELDOUT_SEED)):
        lines.append(line + "\n")
        size += len(lines[-1].encode())
        if size >= RUNNING_TEXT_BYTES:
            break
    return "".join(lines)


if __name__ == "__main__":
    main()
