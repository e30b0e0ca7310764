"""Look at data without training: what would be trained, what would not, and why.

report = run_check(Config(data=["my.jsonl"], model="tiny"))
report.as_dict(); report.refusal; report.mask(0); report.write_page(Path("check.html"))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from duiti.config import Config
from duiti.data.ledger import SourceLedger
from duiti.data.meter import Report
from duiti.data.prepare import Say
from duiti.data.repeats.duplicates import Duplicates, Leaks
from duiti.data.showing.page import LedgerLine, PageData, Pairs, write_page
from duiti.data.showing.preview import mask_text, print_mask
from duiti.data.showing.views import show_example
from duiti.errors import DataError, DuitiError, UsageError
from duiti.fit import Fit, fit_memory
from duiti.material import Material, check_ids, raise_refusals, read_material
from duiti.plan import settle
from duiti.types import Example, Json

PAGE_EXAMPLES = 200
"""Examples that the page lets one leaf through."""


@dataclass(frozen=True, slots=True)
class Check:
    """What was found. `examples` are exactly what training would use."""

    material: Material
    refusal: DataError | None
    """Why training would refuse these rows, or None."""
    memory: Fit
    """What training would need."""

    @property
    def examples(self) -> Sequence[Example]:
        """What would be trained on (validation rows apart)."""
        return self.material.train

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable report (`duiti check --json`)."""
        data = self.material.data
        return {
            **data.ledger.as_dict(),
            "val_examples": len(data.val),
            "val_data": None if data.val_ledger is None else data.val_ledger.as_dict(),
            "template": self.material.template.name,
            "date": self.material.options.date,
            "max_length": data.max_length,
            "longest": data.longest,
            "duplicates": data.duplicates.as_dict(),
            "leaks": None if data.leaks is None else data.leaks.as_dict(),
            "memory": self.memory.as_dict(),
            "warnings": list(data.warnings),
            "refused": None if self.refusal is None else self.refusal.what,
        }

    def mask(self, index: int) -> str:
        """One example as text, its trained part between ⟦ and ⟧."""
        return mask_text(self.examples[index], self.material.tokenizer, colour=False).plain

    def print_masks(self, count: int, console: Console) -> None:
        """Print the first examples with their trained part tinted."""
        for example in self.examples[:count]:
            print_mask(example, self.material.tokenizer, console)

    def dump(self, path: Path) -> None:
        """A line per example: `{"origin", "input_ids", "labels"}`, and `weights` where a row gives
        any."""
        self._spare_sources(path)
        with _writing(path), path.open("w", encoding="utf-8") as file:
            for example in self.examples:
                line = {
                    "origin": str(example.origin),
                    "input_ids": example.input_ids.tolist(),
                    "labels": example.labels.tolist(),
                }
                if example.weights is not None:
                    line["weights"] = example.weights.tolist()
                file.write(json.dumps(line) + "\n")

    def _spare_sources(self, path: Path) -> None:
        files = (file for prepared in self.material.prepared for file in prepared.files)
        if any(path.exists() and path.samefile(file.path) for file in files):
            raise UsageError(f"{path} is the data itself: it would be overwritten")

    def write_page(self, path: Path) -> None:
        """All of it as one HTML file that needs nothing else.

        Raises:
            UsageError: it cannot be written.
        """
        self._spare_sources(path)
        with _writing(path):
            write_page(path, _page(self))


def run_check(
    config: Config,
    *,
    rows: Iterable[Mapping[str, Json]] | None = None,
    say: Say = lambda line: None,
    report: Report = lambda progress: None,
) -> Check:
    """Read, render and encode everything, as training would.

    Raises:
        UsageError: a name, path or setting that cannot be meant as given.
    """
    material = read_material(config, rows=rows, say=say, report=report)
    try:
        raise_refusals(material, config)
        # Nothing has more embeddings than this; whether it has as many, training looks.
        check_ids(material, material.model_config.get_text_config().vocab_size)
    except DataError as error:
        return Check(material, error, Fit(unknown="the rows are refused"))
    return Check(material, None, _memory(config, material))


def _memory(config: Config, material: Material) -> Fit:
    """A look at data never ends over what is not the data's fault."""
    try:
        settled, reasons = settle(config, material)
        return fit_memory(settled, material, reasons)[1]
    except DuitiError as error:
        return Fit(unknown=error.what)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def _page(check: Check) -> PageData:
    material, data = check.material, check.material.data
    files = tuple(source.file for source in data.ledger.sources)
    shown = data.train[:PAGE_EXAMPLES]
    return PageData(
        title=f"{material.name}: what would be trained",
        files=files,
        model=material.source.name,
        template=material.template.name,
        max_length=data.max_length,
        ledger=[_line(source) for source in data.ledger.sources],
        lengths=material.prepared[0].store.lengths,
        num_examples=len(data.train),
        examples=[show_example(example, material.tokenizer) for example in shown],
        rejected=[(str(row.origin), row.reason) for row in data.ledger.rejected],
        refusal="" if check.refusal is None else check.refusal.what,
        warnings=data.warnings,
        duplicates=_pairs(data.duplicates, data.leaks),
        summary=_summary(material),
    )


def _line(source: SourceLedger) -> LedgerLine:
    return LedgerLine(
        source=source.file,
        rows=source.rows,
        kept=source.kept,
        dropped=source.dropped,
        rejected=source.rejected,
        not_selected=source.filtered,
        held_out=source.val + source.leaked,
        tokens=source.total,
        supervised=source.supervised,
        context=source.context,
        cut=source.cut_tokens,
        dropped_tokens=source.dropped_tokens,
        held_out_tokens=source.val_tokens + source.leaked_tokens,
    )


def _pairs(found: Duplicates, leaks: Leaks | None) -> dict[str, Pairs]:
    kinds = {
        "same conversation": (found.exact_rows, found.exact),
        "nearly the same": (found.near_rows, found.near),
        "same prompt, different answer": (found.contradictions, found.contradicting),
    }
    if leaks is not None:
        kinds["in the validation data as well"] = (
            leaks.num_rows,
            (*leaks.exact, *leaks.prompt, *leaks.near),
        )
    return {
        name: Pairs(count=count, pairs=[(str(a), str(b)) for a, b in pairs])
        for name, (count, pairs) in kinds.items()
    }


def _summary(material: Material) -> dict[str, int | str]:
    options, data = material.options, material.data
    values: dict[str, int | str] = {
        "trained on": options.train_on,
        "control tokens in messages": options.special_tokens,
        "examples to measure on": len(data.val),
        "longest": data.longest,
    }
    if "strftime_now" in material.template.source:
        values["date in the template"] = options.date
    return values
