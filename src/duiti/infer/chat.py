"""Chat in the terminal: the tuned model, the base model, or both to the same question.

    chat_loop(model)        # reads stdin, writes stdout

Commands: /base /tuned /both choose who answers · /system TEXT · /reset · /help · /quit
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

from duiti.errors import RowError
from duiti.infer.generate import GREEDY, Sampling
from duiti.infer.model import Model
from duiti.types import Message

Voice = Literal["tuned", "base"]

HELP = """/base /tuned /both   who answers from now on
/system TEXT         set the system message and start anew
/reset               forget the conversation
/quit                leave (so does Ctrl-D)"""


@dataclass(slots=True)
class Chat:
    """A conversation, with one history for each of the two voices: each sees its own answers."""

    model: Model
    sampling: Sampling = GREEDY
    max_new_tokens: int = 512
    voices: tuple[Voice, ...] = ("tuned",)
    system: str = ""
    _history: dict[Voice, list[Message]] = field(default_factory=dict)

    def ask(self, question: str, voice: Voice) -> Iterator[str]:
        """The answer of one voice, streamed; it becomes part of that voice's history.

        Raises:
            RowError: the template refuses the conversation.
        """
        history = self._history.setdefault(voice, self._start())
        history.append(Message(role="user", content=question))
        pieces: list[str] = []
        try:
            with self.model.base() if voice == "base" else nullcontext():
                for piece in self.model.chat_stream(
                    history, max_new_tokens=self.max_new_tokens, sampling=self.sampling
                ):
                    pieces.append(piece)
                    yield piece
        finally:
            # Refused, interrupted or silent: a question without an answer would break the turns.
            if pieces:
                history.append(Message(role="assistant", content="".join(pieces)))
            else:
                history.pop()

    def reset(self, system: str | None = None) -> None:
        """Forget the conversation; with a new system message if given."""
        if system is not None:
            self.system = system
        self._history.clear()

    def _start(self) -> list[Message]:
        return [Message(role="system", content=self.system)] if self.system else []


def chat_loop(
    chat: Chat, *, read: Callable[[str], str] = input, write: Callable[[str], None] | None = None
) -> None:
    """Read questions until /quit or the end of the input."""
    say = write or (lambda text: print(text, end="", flush=True))
    say(f"{chat.model.name}: type a question, or /help\n")
    while True:
        try:
            line = read("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            say("\n")
            return
        if line in ("/quit", "/exit"):
            return
        if line.startswith("/"):
            say(_command(chat, line) + "\n")
        elif line:
            _answer(chat, line, say)


def _answer(chat: Chat, question: str, say: Callable[[str], None]) -> None:
    for voice in chat.voices:
        if len(chat.voices) > 1:
            say(f"[{voice}] ")
        try:
            for piece in chat.ask(question, voice):
                say(piece)
        except RowError as error:
            say(str(error))
        except KeyboardInterrupt:
            say(" …")  # the answer is cut short, the chat goes on
        say("\n")


def _command(chat: Chat, line: str) -> str:
    name, _, rest = line.partition(" ")
    if name in ("/base", "/tuned", "/both"):
        if not chat.model.is_tuned:
            return "this is a base model: there is no other"
        wanted: dict[str, tuple[Voice, ...]] = {"/base": ("base",), "/tuned": ("tuned",)}
        chat.voices = wanted.get(name, ("base", "tuned"))
        return f"answering: {' and '.join(chat.voices)}"
    if name == "/system":
        chat.reset(rest.strip())
        return "a new conversation" + (" with that system message" if rest.strip() else "")
    if name == "/reset":
        chat.reset()
        return "a new conversation"
    return HELP
