"""A conversation as a user gives it, to messages.

as_messages([{"role": "user", "content": "Hi"}])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from duiti.data.rows.messages import read_messages
from duiti.errors import RowError, UsageError
from duiti.types import Json, Message


def as_messages(messages: Sequence[Mapping[str, Any] | Message]) -> tuple[Message, ...]:
    """Dicts as rows hold them to messages: a conversation that waits for an answer.

    Raises:
        UsageError: it is none.
    """
    how = '[{"role": "user", "content": "…"}]'
    if isinstance(messages, str | Mapping):
        raise UsageError("a conversation is a list of messages", fix=how)
    found: list[Message] = []
    for number, message in enumerate(messages, start=1):
        if isinstance(message, Message):
            found.append(message)
            continue
        try:
            found += read_messages([cast(Json, message)], "messages", first=number)
        except RowError as error:
            raise UsageError(f"this is no conversation: {error}", fix=how) from None
    if not found or found[-1].role not in ("user", "tool"):
        raise UsageError(
            "there is nothing to answer: the last message must be the user's, or a tool's result"
        )
    return tuple(found)
