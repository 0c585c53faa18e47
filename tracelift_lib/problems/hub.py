"""The Hugging Face hub's errors in plain words: what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
from huggingface_hub import errors

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
    status = next((e.response.status_code for e in chain if isinstance(e, errors.HfHubHTTPError)), None)
    page = f"https://huggingface.co/{'datasets/' if kind == 'data set' else ''}{name}"
    refused = f"the hub refused your token or its rights ({status}): {LOGIN}"
    advice: dict[type[Exception], str] = {  # in this order: a GatedRepoError is a RepositoryNotFoundError too
        errors.GatedRepoError: (
            f"it is gated. Open {page} while logged in and accept its licence (some owners take a day to grant "
            f"access); then {LOGIN}"
        ),
        errors.RevisionNotFoundError: f"it has no such revision. {page}/commits/main lists them; correct the preset",
        errors.RepositoryNotFoundError: (
            f"the hub knows no such {kind}, or it is private, or your token is wrong. Check the name at {page}; if it "
            f"is private, {LOGIN}; if a token is set, `hf auth whoami` shows whether it is valid"
        ),
        errors.HfHubHTTPError: refused if status in (401, 403) else f"the hub answered with status {status}. Try later",
        errors.OfflineModeIsEnabled: (
            "offline mode is on (HF_HUB_OFFLINE), and it is not in the hub's cache. Unset that variable"
        ),
    }
    found = next((cause for cause in advice if any(isinstance(e, cause) for e in chain)), None)
    if found is None and errors.OfflineModeIsEnabled.__name__ in str(error):  # datasets has a class of its own
        found = errors.OfflineModeIsEnabled
    reason = advice.get(found, f"the hub cannot be reached ({error}). Try again with a network")
    what = f"{kind} {name}{f' at revision {revision}' if revision else ''}"
    return f"could not get {what} from the Hugging Face hub: {reason}. Or {local}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
