"""The user's own conversations: JSON lines, each checked before anything is trained on them.

A line is an object with `messages`, or the list of messages alone:

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}

The assistant's content may be a list of parts {"type": ..., "text": ...} of type text, python or
python_output. A message, and the object itself, may have a `weight` or `train` from 0 (it is not
learned) to 1 (`tokenizer.chat`). Other fields are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jaxchat.home import ArtifactError
from jaxchat.tasks.conversations import Conversations, read_conversation
from jaxchat.tasks.table import RowError
from jaxchat.tokenizer.chat import ConversationError

MAX_TOLD = 10  # bad lines that the message names


class Custom(Conversations):
    """Conversations of files that the user names."""

    name = "custom"

    def __init__(self, paths: Iterable[Path]) -> None:
        """Reads all of the files once.

        Raises as `Table` does, and ArtifactError that names line and field of the first bad lines.
        """
        super().__init__(paths)
        bad = [told for index in range(len(self)) if (told := self._wrong(index)) is not None]
        if bad:
            more = [f"... and {len(bad) - MAX_TOLD} more"] if len(bad) > MAX_TOLD else []
            raise ArtifactError(
                f"{len(bad)} of {len(self)} lines are no conversations; mend or remove them:\n"
                + "\n".join(f"  {told}" for told in (*bad[:MAX_TOLD], *more))
            )
        if not len(self):
            raise ArtifactError("the files hold no conversation; they are empty.")

    def _wrong(self, index: int) -> str | None:
        """What is wrong with a line, or None."""
        try:
            row = self.table[index]
        except RowError as error:
            return error.what
        try:
            read_conversation(row)
        except ConversationError as error:
            return f"{row.where()}: {error}"
        return None
