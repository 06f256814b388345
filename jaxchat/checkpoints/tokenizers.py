"""The tokenizer of a folder, in whichever of the safe formats it is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxchat.checkpoints import pickled_tokenizer
from jaxchat.errors import ArtifactError
from jaxchat.tokenizer import Tokenizer
from jaxchat.tokenizer.huggingface import OWN_FILE

JSON = "tokenizer.json"


def find_tokenizer(folders: Sequence[Path]) -> tuple[Tokenizer, Path]:
    """The tokenizer of the first folder that has one, and its file.

    Raises ArtifactError when none has, TokenizerError when it cannot be used.
    """
    for folder in folders:
        if (folder / OWN_FILE).is_file():
            return Tokenizer.load(folder), folder / OWN_FILE
        if (folder / JSON).is_file():
            return Tokenizer.from_huggingface(folder / JSON), folder / JSON
        pickled = folder / pickled_tokenizer.FILE
        if pickled.is_file():
            return pickled_tokenizer.read_pickled_tokenizer(pickled), pickled
    raise ArtifactError(
        f"there is no tokenizer in {' or '.join(map(str, folders))} ({OWN_FILE}, {JSON} or "
        f"{pickled_tokenizer.FILE}); name the folder that has it with --tokenizer."
    )
