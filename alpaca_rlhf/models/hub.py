"""What the hub's refusals mean for a person, in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
from huggingface_hub import errors


def hub_refusal(name: str, error: BaseException) -> str | None:
    """One line about a base that the hub does not give, and what to do; None for other errors.

    Args:
        name: The hub id, as typed.
        error: What loading it raised; its causes are looked at too.
    """
    causes = list(_causes(error))
    page = f"https://huggingface.co/{name}"
    if any(isinstance(one, errors.GatedRepoError) for one in causes):
        return (
            f"--base {name}: its owner asks you to accept a licence first; accept it at {page}, "
            "then log in with `hf auth login` and run the same command again"
        )
    if any(isinstance(one, errors.RepositoryNotFoundError) for one in causes):
        return (
            f"--base {name}: the hub has no such model, or it is private; check the spelling at "
            f"{page}, or log in with `hf auth login`"
        )
    away = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, httpx.TransportError)
    if any(isinstance(one, away) for one in causes):
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            how = "unset HF_HUB_OFFLINE to download it"
        else:
            how = "see to the connection"
        return (
            f"--base {name}: is not on this machine and the hub cannot be reached; {how}, or give "
            "the folder of a downloaded model"
        )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
