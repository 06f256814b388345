"""Text to token ids and back (`bpe`), and conversations to token ids and back (`chat_format`)."""

from jaxchat.errors import TokenizerError
from jaxchat.tokenizer.bpe import Tokenizer, TrainingReport, train_tokenizer
from jaxchat.tokenizer.chat_format import (
    Conversation,
    ConversationError,
    Message,
    Part,
    check_conversation,
    parse_completion,
    render,
    render_batch,
    render_prompt,
)
from jaxchat.tokenizer.patterns import PATTERNS, SPECIAL_TOKENS, SPLIT_PATTERN, find_pattern

__all__ = [
    "PATTERNS",
    "SPECIAL_TOKENS",
    "SPLIT_PATTERN",
    "Conversation",
    "ConversationError",
    "Message",
    "Part",
    "Tokenizer",
    "TokenizerError",
    "TrainingReport",
    "check_conversation",
    "find_pattern",
    "parse_completion",
    "render",
    "render_batch",
    "render_prompt",
    "train_tokenizer",
]
