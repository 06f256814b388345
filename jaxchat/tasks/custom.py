"""The user's own conversations: JSON lines, each checked before anything is trained on them.

A line is an object with `messages`, or the list of messages alone:

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}

The assistant's content may be a list of parts {"type": ..., "text": ...} of type text, python or
python_output. A message, and the object itself, may have a `weight` or `train` from 0 (it is not
learned) to 1 (`tokenizer.chat`). Fields that change what is said or learned, and are not known
here, are refused; others are not looked at, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from jaxchat.errors import ArtifactError
from jaxchat.tasks.conversations import Conversations, read_conversation
from jaxchat.tasks.table import RowError
from jaxchat.tokenizer.chat_format import ConversationError, unused_fields

MAX_TOLD = 10  # bad lines that the message names


class Custom(Conversations):
    """Conversations of files that the user names.

    Attributes:
        unused: of each field that nobody looks at, how many there are; (of what, name).
    """

    name = "custom"

    def __init__(self, paths: Iterable[Path]) -> None:
        """Reads all of the files once.

        Raises as `Table` does, and ArtifactError that names line and field of the first bad lines.
        """
        paths = [Path(path) for path in paths]
        super().__init__(paths)
        self._names = [path.name for path in paths]
        self.unused: Counter[tuple[str, str]] = Counter()
        for name, rows in self.table.unread:
            self.unused["conversation", name] += rows
        bad = [told for index in range(len(self)) if (told := self._wrong(index)) is not None]
        if bad:
            more = [f"... and {len(bad) - MAX_TOLD} more"] if len(bad) > MAX_TOLD else []
            raise ArtifactError(
                f"{len(bad)} of {len(self)} lines are no conversations; mend or remove them:\n"
                + "\n".join(f"  {told}" for told in (*bad[:MAX_TOLD], *more))
            )
        if not len(self):
            raise ArtifactError("the files hold no conversation; they are empty.")

    @property
    def told_unused(self) -> str:
        """A sentence with the fields that nobody looks at; empty where there are none."""
        if not self.unused:
            return ""
        told = [
            f"{name!r} ({count:,} {kind}{'s' if count > 1 else ''})"
            for (kind, name), count in sorted(self.unused.items())
        ]
        more = f" and {len(told) - MAX_TOLD} more" if len(told) > MAX_TOLD else ""
        fields = f"the field{'s' if len(told) > 1 else ''} {', '.join(told[:MAX_TOLD])}{more}"
        return f"{', '.join(self._names)}: {fields} {'are' if len(told) > 1 else 'is'} not used"

    def _wrong(self, index: int) -> str | None:
        """What is wrong with a line, or None."""
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
