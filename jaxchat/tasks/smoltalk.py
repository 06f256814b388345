"""SmolTalk (HuggingFaceTB/smol-smoltalk): general conversations, 460K to train on, 24K to test."""

from __future__ import annotations

from jaxchat.tasks.conversations import Conversations


class SmolTalk(Conversations):
    """Conversations of several turns in plain text, some after a system message."""

    name = "smoltalk"
