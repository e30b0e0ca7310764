"""Does the anchor tell what was forgotten, and can forgetting be bounded? Writes the tables of
docs/forgetting.md.

    python -m benchmarks.forgetting [--part ranks|bounded] [--write]

`ranks`: the embedded model is fine-tuned in five ways: LoRA at three learning rates, the last two
layers, and whole. For each: exact answers on held-out entities; KL(base ‖ tuned) and NLL change on
the anchor, text that the base itself wrote (`duiti.eval.anchor`); and what these figures are there
to foretell, perplexity on held-out text of its pretraining: whole documents of all kinds as it read
them (paragraphs, stories, talk), written by examples/tiny_world with another seed, and scored with
plain transformers. The three have to put the five in the same order.

`bounded`: LoRA as it is, with `replay`, with `max_drift`, and with both. At the same accuracy
within two points the drift has to be a third or less.

Results go to `benchmarks/results/forgetting.json`, a part at a time; `--write` puts the tables of
all that is there into docs/forgetting.md and docs/forgetting.zh-CN.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import kl_div

import duiti
from benchmarks.speed.machine import processor
from benchmarks.tiny_figures import exact, perplexity, versions
from duiti import tiny
from duiti.eval.anchor import make_anchor
from duiti.infer.model import Model, load

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "forgetting.json"
PAGES = ("docs/forgetting.md", "docs/forgetting.zh-CN.md")
NUM_ROWS = 2000
"""Of the 5,638 to train on, for the ranks; what is bounded is trained on all, as in the demo."""
RECIPE: dict[str, Any] = {"epochs": 1, "batch_size": 8, "proof": False, "quiet": True}
"""Small updates, as in the demo."""
WAYS = {
    "lora 1e-3": {"method": "lora", "learning_rate": 1e-3},
    "lora 4e-3": {"method": "lora", "learning_rate": 4e-3},
    "lora 1.2e-2": {"method": "lora", "learning_rate": 1.2e-2},
    "last-n 1e-3": {"method": "last-n", "learning_rate": 1e-3},
    "full 1e-3": {"method": "full", "learning_rate": 1e-3},
}
PLAIN = "lora 4e-3"
HELD_SHARE = 0.25
"""Of the drift of the plain run: what `max_drift` is set to."""
MOST_DRIFT, MOST_POINTS = 1 / 3, 0.02
"""What a bounded run may keep of the plain run's drift, and lose of its accuracy."""


def main() -> None:
    """Measure a part, or both, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=["ranks", "bounded"], help="default: both")
    parser.add_argument("--write", action="store_true", help="put the tables into the docs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to gain from a second
    found: dict[str, Any] = {}
    if RESULTS.exists():
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.part in (None, "ranks"):
            found["ranks"] = measure_ranks(Path(folder))
            save(found)
        if arguments.part in (None, "bounded"):
            found["bounded"] = measure_bounded(Path(folder))
            save(found)
    if arguments.write:
        for part in PARTS:
            for number, page in enumerate(PAGES if part in found else ()):
                write_table(ROOT / page, part, found[part], number)


def measure_ranks(folder: Path) -> dict[str, Any]:
    """Every way, in the order of perplexity."""
    base = load("tiny")
    rows: list[dict[str, Any]] = [
        {
            "way": "base",
            "heldout": exact(base, "heldout"),
            "kl": 0.0,
            "nll_change": 0.0,
            "perplexity": perplexity(base),
        }
    ]
    print(rank_line(rows[0]), flush=True)
    for way, settings in WAYS.items():
        rows.append(measure(way, settings, folder / f"ranks {way}", num_rows=NUM_ROWS))
        print(rank_line(rows[-1]), flush=True)
    orders = {
        key: [row["way"] for row in sorted(rows[1:], key=lambda row: row[key])]
        for key in ("kl", "nll_change", "perplexity")
    }
    agree = orders["kl"] == orders["nll_change"] == orders["perplexity"]
    print("the anchor's order is that of perplexity" if agree else f"orders differ: {orders}")
    rows.sort(key=lambda row: row["perplexity"])
    return {"rows": rows, "orders": orders, "agree": agree}


def measure_bounded(folder: Path) -> dict[str, Any]:
    """LoRA as it is, and with its drift bounded."""
    plain = measure("as it is", WAYS[PLAIN], folder / "plain")
    rows = [{**plain, "drift": 1.0}]
    print(bounded_line(rows[0]), flush=True)
    limit = float(f"{HELD_SHARE * plain['kl']:.2g}")
    ways: dict[str, dict[str, Any]] = {
        "`--replay 5%`": {"replay": "5%"},
        f"`--max-drift {limit}`": {"max_drift": limit},
        f"`--replay 5% --max-drift {limit}`": {"replay": "5%", "max_drift": limit},
    }
    for number, (way, settings) in enumerate(ways.items()):
        row = measure(way, {**WAYS[PLAIN], **settings}, folder / f"bounded {number}")
        row["drift"] = row["kl"] / plain["kl"]
        row["holds"] = (
            row["drift"] <= MOST_DRIFT and plain["heldout"] - row["heldout"] <= MOST_POINTS
        )
        rows.append(row)
        print(bounded_line(row), "holds" if row["holds"] else "does not hold", flush=True)
    return {"rows": rows, "any_holds": any(row.get("holds", False) for row in rows)}


def measure(
    way: str, settings: dict[str, Any], folder: Path, *, num_rows: int | None = None
) -> dict[str, Any]:
    """Train in one way; then everything that is known of the result.

    Args:
        num_rows: of the data; None: all.
    """
    data = str(tiny.data_path("train")) + (f"#{num_rows}" if num_rows else "")
    run = duiti.train(data, model="tiny", output=str(folder), **RECIPE, **settings)
    anchor = json.loads((run.path / "anchor.json").read_text(encoding="utf-8"))
    tuned = load(run)
    return {
        "way": way,
        **settings,
        "heldout": exact(tuned, "heldout"),
        "kl": anchor["kl"],
        "nll_change": anchor["nll_change"],
        "kl_plain": kl_of_two(tuned, anchor["num_tokens"]),
        "perplexity": perplexity(tuned),
    }


@torch.no_grad()
def kl_of_two(tuned: Model, num_tokens: int) -> float:
    """KL(base ‖ tuned) on the anchor of a run, from the logits of two plain models in float64: to
    see by how much the figure of a run is rounded, or, without adapters, too low."""
    with tuned.base():
        anchor = make_anchor(tuned.hf, tuned.tokenizer, seed=0)
    assert anchor.num_tokens == num_tokens
    total = 0.0
    for example in anchor.examples:
        ids = torch.tensor(example.input_ids).long()[None]
        with tuned.base():
            log_p = tuned.hf(input_ids=ids).logits[0, :-1].double().log_softmax(dim=-1)
        log_q = tuned.hf(input_ids=ids).logits[0, :-1].double().log_softmax(dim=-1)
        total += kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    return total / num_tokens


def rank_line(row: dict[str, Any]) -> str:
    """One row of the first table."""
    return (
        f"| {row['way']} | {100 * row['heldout']:.1f} % | {row['kl']:.4f} |"
        f" {row['nll_change']:+.4f} | {row['perplexity']:.3f} |"
    )


def bounded_line(row: dict[str, Any]) -> str:
    """One row of the second table."""
    return (
        f"| {row['way']} | {100 * row['heldout']:.1f} % | {row['kl']:.4f} |"
        f" {100 * row['drift']:.0f} % | {row['perplexity']:.3f} |"
    )


def ranks_say(found: dict[str, Any]) -> tuple[str, str]:
    """What the first table shows, in English and in Chinese."""
    adapted = [row for row in found["rows"] if row.get("method") == "lora"]
    others = [row for row in found["rows"] if row.get("method") not in (None, "lora")]
    off = max(abs(row["kl"] / row["kl_plain"] - 1) for row in adapted)
    low = max(1 - row["kl"] / row["kl_plain"] for row in others)
    plain = (
        f"Against the logits of two whole models in float64, the KL is off by {100 * off:.2g} % at"
        f" most with LoRA, and {100 * low:.2g} % too low at most without.",
        f"与两个完整模型的 float64 logits 相比，LoRA 的 KL 最多相差 {100 * off:.2g} %，"
        f"其余方式最多偏低 {100 * low:.2g} %。",
    )
    if found["agree"]:
        return (
            f"The three columns put the five in the same order. {plain[0]}",
            f"三列给出的五种方式的顺序相同。{plain[1]}",
        )
    orders = "; ".join(f"{key}: {', '.join(order)}" for key, order in found["orders"].items())
    return f"The orders differ ({orders}). {plain[0]}", f"顺序不同（{orders}）。{plain[1]}"


def bounded_says(found: dict[str, Any]) -> tuple[str, str]:
    """What the second table shows, in English and in Chinese."""
    good = [row["way"] for row in found["rows"] if row.get("holds")]
    if not good:
        return (
            "None has the plain run's accuracy within two points at a third of its drift or less.",
            "没有一种能在准确率相差两个百分点以内的同时，把漂移降到三分之一以下。",
        )
    return (
        "The plain run's accuracy within two points, at a third of its drift or less, have: "
        + ", ".join(good) + ".",
        "准确率相差在两个百分点以内、漂移不超过三分之一的有：" + "、".join(good) + "。",
    )  # fmt: skip


def write_table(path: Path, part: str, found: dict[str, Any], language: int) -> None:
    """Replace what stands between the part's marks; the titles are the page's own language."""
    begin = f"<!-- {part}: made by benchmarks/forgetting.py -->"
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    head, end, after = rest.partition(f"<!-- /{part} -->")
    assert end, f"{path} has no place for {part}"
    line, say = PARTS[part]
    titles = head.strip("\n").splitlines()[:2]
    table = "\n".join([*titles, *map(line, found["rows"]), "", say(found)[language]])
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def save(found: dict[str, Any]) -> None:
    """Keep what was measured, with machine and versions."""
    found["machine"] = {"cpu": processor(), "threads": torch.get_num_threads()}
    found["versions"] = versions()
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


PARTS = {"ranks": (rank_line, ranks_say), "bounded": (bounded_line, bounded_says)}

if __name__ == "__main__":
    main()
