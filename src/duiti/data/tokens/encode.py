"""Turns to examples: ids and labels, born together.

    encoder = Encoder(spec, tokenizers.Tokenizer.from_str(…), EncodeOptions())
    encoded = encoder.encode(sample)            # raises RowError
    ids = encoder.prompt_ids(messages)          # what serving sends

Ids of a turn are `ids(prompt) + ids(answer)`: the border is where serving cuts, so prompt ids in
training are those of serving by construction. A later turn of a conversation joins the example of
the turn before where the ids of its prompt begin with that example's ids; where they do not (a
template that rewrites history, a tokenizer that merges across the border) the conversation is
*unrolled*: the turn gets its own example, in exactly the context in which it will be served.

Works on the tokenizer's Rust core alone: no transformers, so that a child process starts fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from duiti.data.templates.control import OPEN, AddedToken, Control, Mode, split_marked
from duiti.data.templates.render import Renderer, TemplateFault, TemplateSpec
from duiti.data.templates.spans import TrainOn, TurnFinder
from duiti.data.tokens.text_encoder import TextEncoder
from duiti.errors import RowError
from duiti.types import IGNORE_INDEX, Example, Json, Message, Origin, Sample, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """What a user may choose about encoding."""

    train_on: TrainOn = "assistant"
    special_tokens: Mode = "reject"
    truncate_to: int | None = None
    """Longer examples are cut to this many tokens; None: nothing is cut."""
    is_fast: bool = True
    """Whether the fast path for tokens may be taken, where the tokenizer allows it."""
    bos_token: str | None = None
    eos_token: str | None = None


@dataclass(slots=True)
class Piece:
    """One example as plain lists."""

    ids: list[int]
    spans: list[tuple[int, int, float]]
    """Start, end and weight of each trained part."""

    @property
    def num_supervised(self) -> int:
        return sum(end - start for start, end, _ in self.spans)

    def example(self, origin: Origin) -> Example:
        """The same as arrays."""
        input_ids = np.array(self.ids, dtype=np.int32)
        labels = np.full(len(input_ids), IGNORE_INDEX, dtype=np.int32)
        weights = np.ones(len(input_ids), dtype=np.float32)
        for start, end, weight in self.spans:
            labels[start:end] = input_ids[start:end]
            weights[start:end] = weight
        is_weighted = any(weight != 1 for _, _, weight in self.spans)
        return Example(
            input_ids=input_ids,
            labels=labels,
            origin=origin,
            weights=weights if is_weighted else None,
        )


@dataclass(slots=True)
class Encoded:
    """The examples of one sample, and what was cut from them."""

    pieces: list[Piece] = field(default_factory=list)
    """Empty where nothing trained was left."""
    notes: set[str] = field(default_factory=set)
    stops: set[int] = field(default_factory=set)
    """Tokens that end its answers."""
    num_tokens: int = 0
    """Of all examples, before anything was cut."""
    cut_answer: int = 0
    """Trained tokens that were cut."""
    cut_context: int = 0


class Encoder:
    """A template and a tokenizer, ready to turn samples into examples and chats into prompts."""

    def __init__(self, spec: TemplateSpec, tokenizer: Tokenizer, options: EncodeOptions) -> None:
        """Compile the template and look at the tokenizer.

        Raises:
            TemplateFault: the template is not valid Jinja.
        """
        added = tokenizer.get_added_tokens_decoder().values()
        tokens = [AddedToken(t.content, t.special) for t in added]
        self.renderer = Renderer(spec)
        self._options = options
        self._control = Control(
            tokens, self.renderer.literals, mode=options.special_tokens, stop=spec.stop
        )
        self._finder = TurnFinder(self.renderer, self._control, train_on=options.train_on)
        self._hard_ids: frozenset[int] = frozenset()
        if options.special_tokens != "allow" and _can_arise(tokenizer):
            self._hard_ids = frozenset(
                number
                for number, token in tokenizer.get_added_tokens_decoder().items()
                if self._control.is_control(token.content)
            )
        self._texts = TextEncoder(tokenizer, is_fast=options.is_fast)
        self._eos = options.eos_token
        bos = options.bos_token
        self._bos = tokenizer.token_to_id(bos) if bos and bos != options.eos_token else None

    @property
    def has_disagreed(self) -> bool:
        """Whether the fast path for tokens has ever differed from the library."""
        return self._texts.has_disagreed

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> list[int]:
        """The ids that serving sends: those on which training conditioned. Control tokens that
        somebody typed are ordinary text, unless they are allowed.

        Raises:
            RowError: the template refuses the conversation.
        """
        messages = self._control.treat(messages, is_served=True)
        tools = self._control.treat_tools(tools, is_served=True)
        return self._texts.encode(self.renderer.prompt(messages, tools))

    def encode(self, sample: Sample) -> Encoded:
        """The examples of a sample.

        Raises:
            RowError: it cannot be trained on, with the reason.
            TemplateFault: the template must not be used at all.
        """
        found = self._finder.find(sample)
        turns = []
        for turn in found.turns:
            prompt = self._texts.encode(turn.prompt)
            answer = self._answer_ids(turn, prompt)
            if self._bos is not None and prompt[:2] == [self._bos, self._bos]:
                raise TemplateFault("writes the start token twice")
            if self._hard_ids:
                self._refuse_arisen(turn, prompt + answer)
            turns.append((prompt, answer, turn.weight))
        if self._options.train_on == "all":
            prompt, answer, weight = turns[0]
            ids = prompt + answer
            pieces = [Piece(ids, [(1, len(ids), weight)])]
        else:
            pieces = _join(turns)
        return self._cut(pieces, found.notes)

    def _refuse_arisen(self, turn: Turn, ids: Sequence[int]) -> None:
        """A normalizer can make a control token of what is none (`<|IM_END|>` in small letters)."""
        pattern = self._control.pattern
        assert pattern is not None
        parts = split_marked(turn.prompt + turn.answer)
        written = sum(len(pattern.findall(part)) for part, is_text in parts if not is_text)
        if sum(token in self._hard_ids for token in ids) > written:
            raise RowError("the tokenizer makes a control token of a message's text")

    def _answer_ids(self, turn: Turn, prompt: list[int]) -> list[int]:
        texts = self._texts
        if not texts.adds_space or OPEN in turn.answer:
            return texts.encode_behind(turn.answer)
        whole = texts.encode(turn.prompt + turn.answer)
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        found = texts.behind_break(turn.answer, prompt, whole, anchors=[self._eos or "", "\n", ""])
        if found is None:
            raise RowError("the tokenizer cannot cut an answer from its prompt")
        return found

    def _cut(self, pieces: list[Piece], notes: set[str]) -> Encoded:
        encoded = Encoded(notes=notes, num_tokens=sum(len(piece.ids) for piece in pieces))
        encoded.stops = {piece.ids[end - 1] for piece in pieces for _, end, _ in piece.spans}
        limit = self._options.truncate_to
        for piece in pieces:
            kept = piece
            if limit is not None and len(piece.ids) > limit:
                kept = self._truncated(piece, limit)
                lost = piece.num_supervised - kept.num_supervised
                encoded.cut_answer += lost
                encoded.cut_context += len(piece.ids) - len(kept.ids) - lost
            if kept.spans:
                encoded.pieces.append(kept)
        return encoded

    def _truncated(self, piece: Piece, limit: int) -> Piece:
        """The longest beginning that ends inside or behind an answer: a cut answer has no stop
        token, and no question is left whose answer is gone."""
        spans = [(s, min(e, limit), w) for s, e, w in piece.spans if s < limit]
        if not spans:
            return Piece([], [])
        start, end, weight = spans[-1]
        while end < len(piece.ids) and end > start and self._texts.splits_character(piece.ids, end):
            end -= 1
        spans[-1:] = [(start, end, weight)] if end > start else []
        end = spans[-1][1] if spans else 0
        return Piece(piece.ids[:end], spans)


def _can_arise(tokenizer: Tokenizer) -> bool:
    """Whether added tokens are looked for in normalized text, which may have become one."""
    added = tokenizer.get_added_tokens_decoder().values()
    return tokenizer.normalizer is not None and any(token.normalized for token in added)


def _join(turns: Sequence[tuple[list[int], list[int], float]]) -> list[Piece]:
    """Lay the turns of one conversation into as few examples as their prompts allow."""
    pieces: list[Piece] = []
    for prompt, answer, weight in turns:
        if not pieces or prompt[: len(pieces[-1].ids)] != pieces[-1].ids:
            pieces.append(Piece([], []))
        piece = pieces[-1]
        piece.spans.append((len(prompt), len(prompt) + len(answer), weight))
        piece.ids = prompt + answer
    return pieces
