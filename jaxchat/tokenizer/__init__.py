"""Text to token ids and back (`bpe`), and conversations to token ids and back (`chat`)."""

from jaxchat.tokenizer.bpe import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer, TokenizerError
from jaxchat.tokenizer.chat import (
    Conversation,
    ConversationError,
    Message,
    Part,
    parse_completion,
    render,
    render_prompt,
)

__all__ = [
    "SPECIAL_TOKENS",
    "SPLIT_PATTERN",
    "Conversation",
    "ConversationError",
    "Message",
    "Part",
    "Tokenizer",
    "TokenizerError",
    "parse_completion",
    "render",
    "render_prompt",
]
