"""Conversations out of files: a field `messages` in every row."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jaxchat.tasks.table import Row, Table
from jaxchat.tokenizer.chat_format import (
    REFUSED,
    WEIGHTS,
    Conversation,
    ConversationError,
    check_conversation,
)


class Conversations:
    """Conversations in the order of the files; nothing in them is right or wrong."""

    name = "conversations"

    def __init__(self, paths: Iterable[Path]) -> None:
        """Opens the files of one split. Raises as `Table` does."""
        self.table = Table(paths, ("messages",), optional=(*WEIGHTS, *REFUSED))

    def __len__(self) -> int:
        """The number of conversations."""
        return len(self.table)

    def conversation(self, index: int) -> Conversation:
        """A conversation.

        Raises IndexError outside, RowError (naming file, row and field) for a bad one.
        """
        row = self.table[index]
        try:
            return read_conversation(row)
        except ConversationError as error:
            row.fail(f"is no conversation: {str(error).removesuffix('.')}")


def read_conversation(row: Row) -> Conversation:
    """The conversation of a row. Raises ConversationError, naming the field."""
    value = row.value
    if isinstance(value, list):  # nanochat's files: the messages alone
        value = {"messages": value}
    conversation = check_conversation(value)
    if all(message["role"] != "assistant" for message in conversation["messages"]):
        raise ConversationError("messages holds no reply of the assistant to learn from.")
    return conversation
