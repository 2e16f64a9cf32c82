"""The hub's refusals as one line for a person."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
from huggingface_hub import errors

from alpaca_rlhf.core.bases import offline


def hub_refusal(name: str, error: BaseException) -> str | None:
    """One line about a base that the hub does not provide, and what to do; None for other errors.

    Args:
        name: The hub id, as typed.
        error: The error of loading it; its causes are examined too.
    """
    causes = list(_causes(error))
    page = f"https://huggingface.co/{name}"
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        return (
            f"--base {name}: its owner asks you to accept a licence first; accept it at {page}, "
            "then log in with `hf auth login` and run the same command again"
        )
    if any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes):
        return (
            f"--base {name}: the hub has no such model, or it is private; check the spelling at "
            f"{page}, or log in with `hf auth login`"
        )
    unreachable = (
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        httpx.TransportError,
    )
    if any(isinstance(cause, unreachable) for cause in causes):
        if offline():
            remedy = "unset HF_HUB_OFFLINE to download it"
        else:
            remedy = "check the connection"
        return (
            f"--base {name}: is not on this machine and the hub cannot be reached; {remedy}, or "
            "give the folder of a downloaded model"
        )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
