"""Conversations from files: a field `messages` in every row.

Files of the user's own are checked, every line, before anything is trained on them. A line is an
object with `messages`, or the list of messages alone:

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}

The assistant's content may be a list of parts {"type": ..., "text": ...} of type text, python or
python_output. A message, and the object itself, may have a `weight` or `train` from 0 (it is not
learned) to 1 (`tokenizer.chat_format`). Unknown fields that change what is said or learned are
refused; others are ignored, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from jaxchat.data.files.table import Row, RowError
from jaxchat.errors import ArtifactError
from jaxchat.tasks.dataset import FileData
from jaxchat.tokenizer.chat_format import (
    REFUSED,
    WEIGHTS,
    Conversation,
    ConversationError,
    check_conversation,
    unused_fields,
)

MAX_REPORTED = 10  # bad lines that the message names


class Conversations(FileData):
    """Conversations in the order of the files; nothing in them is right or wrong."""

    name = "conversations"
    columns = ("messages",)
    optional = (*WEIGHTS, *REFUSED)

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


class SmolTalk(Conversations):
    """Conversations of several turns in plain text, some after a system message."""

    name = "smoltalk"


class Custom(Conversations):
    """Conversations of files that the user names."""

    name = "custom"

    def __init__(self, paths: Iterable[Path]) -> None:
        """Reads all of the files once.

        Raises as `Table` does, and ArtifactError that names line and field of the first bad lines.
        """
        paths = [Path(path) for path in paths]
        super().__init__(paths)
        self._names = [path.name for path in paths]
        self.unused: Counter[tuple[str, str]] = Counter()  # (of what, ignored field) -> how many
        for name, rows in self.table.unread:
            self.unused["conversation", name] += rows
        bad = [error for index in range(len(self)) if (error := self._error(index)) is not None]
        if bad:
            more = [f"... and {len(bad) - MAX_REPORTED} more"] if len(bad) > MAX_REPORTED else []
            raise ArtifactError(
                f"{len(bad)} of {len(self)} lines are no conversations; mend or remove them:\n"
                + "\n".join(f"  {error}" for error in (*bad[:MAX_REPORTED], *more))
            )
        if not len(self):
            raise ArtifactError("the files hold no conversation; they are empty.")

    @property
    def unused_message(self) -> str:
        """A sentence with the fields that are ignored; "" where there are none."""
        if not self.unused:
            return ""
        shown = [
            f"{name!r} ({count:,} {kind}{'s' if count > 1 else ''})"
            for (kind, name), count in sorted(self.unused.items())
        ]
        more = f" and {len(shown) - MAX_REPORTED} more" if len(shown) > MAX_REPORTED else ""
        plural, fields = len(shown) > 1, ", ".join(shown[:MAX_REPORTED])
        fields = f"the field{'s' if plural else ''} {fields}{more}"
        return f"{', '.join(self._names)}: {fields} {'are' if plural else 'is'} not used"

    def _error(self, index: int) -> str | None:
        """The error of a line, or None."""
        try:
            row = self.table[index]
        except RowError as error:
            return error.what
        try:
            read_conversation(row)
            self.unused.update(unused_fields(row.value))
        except ConversationError as error:
            return f"{row.where()}: {error}"
        return None
