"""The Hugging Face hub's errors in plain words: what is wrong, and what to do."""

from __future__ import annotations

import httpx
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

HUB_ERRORS = (OSError, httpx.HTTPError)  # a refused connection comes as httpx's own, all else is an OSError
LOGIN = (
    "make a token that may read at https://huggingface.co/settings/tokens, then run `hf auth login` or set the "
    "environment variable HF_TOKEN (on Colab: the key symbol on the left, a secret named HF_TOKEN)"
)


def explain(error: Exception, name: str, revision: str | None, kind: str, local: str) -> str:
    """A sentence or two about a failed download of a `kind` ("model", "data set"); `local`: how to do without the hub.

    datasets and transformers wrap the hub's error in one of their own: the chain of causes is searched for it.
    """
    chain = list(_causes(error))
    page = f"https://huggingface.co/{'datasets/' if kind == 'data set' else ''}{name}"
    what = f"could not get {kind} {name}{f' at revision {revision}' if revision else ''} from the Hugging Face hub"

    def is_a(*types: type[Exception]) -> bool:
        return any(isinstance(e, types) for e in chain)

    if is_a(GatedRepoError):  # is a RepositoryNotFoundError too
        return (
            f"{what}: it is gated. Open {page} while logged in and accept its licence (some owners take a day to "
            f"grant access); then {LOGIN}. Or {local}"
        )
    if is_a(RevisionNotFoundError):
        return f"{what}: it has no such revision. {page}/commits/main lists them; correct the preset. Or {local}"
    if is_a(RepositoryNotFoundError):
        return (
            f"{what}: the hub knows no such {kind}, or it is private, or your token is wrong. Check the name at "
            f"{page}; if it is private, {LOGIN}; if a token is set, `hf auth whoami` shows whether it is valid. "
            f"Or {local}"
        )
    status = next((e.response.status_code for e in chain if isinstance(e, HfHubHTTPError)), None)
    if status in (401, 403):
        return f"{what}: the hub refused your token or its rights ({status}): {LOGIN}. Or {local}"
    if status is not None:
        return f"{what}: the hub answered with status {status}. Try again later, or {local}"
    if is_a(OfflineModeIsEnabled) or OfflineModeIsEnabled.__name__ in str(error):  # datasets has a class of its own
        return f"{what}: offline mode is on (HF_HUB_OFFLINE). Unset that variable, or {local}"
    return f"{what}: the hub cannot be reached ({error}). Try again with a network, or {local}"


def _causes(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
