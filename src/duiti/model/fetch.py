"""A hub id to a folder: exactly the files that are used, and nothing else, from where it is named.

    folder = fetch("Qwen/Qwen3-0.6B", small_files(trusts_code=False))

Called for a hub id only; a folder, or the embedded model, never comes here. Where the hub does not
answer, what was fetched before is taken; else the error says so within seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)

from duiti.errors import UsageError

WAIT_S = 5.0
"""For an answer."""

SMALL_FILES = (
    *("config.json", "generation_config.json", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json"),
    *("sentencepiece.bpe.model", "tiktoken.model", "chat_template.jinja"),
    "additional_chat_templates/*.jinja",
)
"""What is needed to prepare data."""


def small_files(*, trusts_code: bool) -> tuple[str, ...]:
    """Patterns of everything but the weights; Python files only where they may run."""
    return (*SMALL_FILES, "*.py") if trusts_code else SMALL_FILES


def fetch(repo: str, patterns: Sequence[str]) -> Path:
    """The folder of the hub's cache that holds these files of a model, as far as it has them.

    Raises:
        UsageError: there is no such model, or no way to reach the hub.
    """
    try:
        HfApi().model_info(repo, timeout=WAIT_S)  # the download itself would wait for ever
        return Path(snapshot_download(repo, allow_patterns=list(patterns), etag_timeout=WAIT_S))
    except HFValidationError:
        raise UsageError(f"{repo} is no hub id", fix="it reads owner/name") from None
    except GatedRepoError:
        raise UsageError(
            f"{repo} is given only to those who have agreed to its terms",
            fix=f"agree at {constants.ENDPOINT}/{repo}, then log in: hf auth login",
        ) from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"{repo}: the hub has no such model, or shows it to others only",
            fix="check the name; for a private one: hf auth login",
        ) from None
    except Exception as error:  # of several libraries, some without a common base
        reason = error
    kept = try_to_load_from_cache(repo, "config.json")
    if isinstance(kept, str):
        return Path(kept).parent
    raise _unreachable(repo, reason)


def _unreachable(repo: str, error: Exception) -> UsageError:
    if constants.is_offline_mode():
        what, why = "the hub must not be asked", "HF_HUB_OFFLINE is set"
    elif isinstance(error, HfHubHTTPError):
        what, why = f"{constants.ENDPOINT} cannot give it", str(error).splitlines()[0]
    else:
        cause = error.__cause__ or error
        what, why = f"{constants.ENDPOINT} cannot be reached", type(cause).__name__
    return UsageError(
        f"{repo} is a hub id that is not on this machine, and {what}",
        why=why,
        fix="with a network the same command fetches it; without one: a folder, or tiny",
    )
