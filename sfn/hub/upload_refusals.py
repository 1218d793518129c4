"""What the Hub's refusals mean to somebody who uploads: one sentence for each, and never the exception's own words."""

from __future__ import annotations

from sfn.errors import HubError
from sfn.hub import access


def refusal(error: BaseException, repo: str, step: str) -> HubError:
    """The sentence for an exception of huggingface_hub; step: "create" (the repo) or "send" (the files)."""
    found = access.failure(error, repo)  # it follows the chain of causes
    status = _status(error)
    if found.kind in ("offline", "network", "certificate"):
        nothing = "Nothing was sent." if step == "create" else "What was sent is not visible; the repo stays empty."
        return HubError(f"The Hub at {access.endpoint()} cannot be reached: check the network. {nothing}", found.kind)
    if status is None:
        return found
    kind, sentence = _SENTENCES.get(
        status, ("server", "The Hub answers with {status} to the upload of {repo}. {later}")
    )
    owner = repo.partition("/")[0] if "/" in repo else "your account"
    later = f"Try again later, or with `hf upload {repo} FOLDER`."
    if status == 404 and step == "send":
        kind, sentence = "missing", "The repo {repo} was there a moment ago and is gone: somebody deleted or moved it."
    return HubError(
        sentence.format(
            status=status,
            repo=repo,
            owner=owner,
            later=later,
            login=access.LOGIN,
            tokens=f"{access.endpoint()}/settings/tokens",
        ),
        kind,
    )


_SENTENCES = {
    400: ("server", "The Hub finds something wrong in what was sent for {repo} (400), the model card perhaps. {later}"),
    401: (
        "token",
        "The Hub does not accept the token in use: it has expired, or was revoked. Make a new one with the right to "
        "write at {tokens}, then {login}.",
    ),
    402: (
        "forbidden",
        "{owner} has no room left for private models on the Hub (402): make room there, or upload publicly.",
    ),
    403: (
        "forbidden",
        "The token in use may not write to {owner}: it needs the right to write (and you the membership, where {owner} "
        "is an organisation). Make such a token at {tokens}, or choose a name of your own.",
    ),
    404: ("missing", "There is no account or organisation {owner} on the Hub. Check the spelling of {repo}."),
    409: ("exists", "{repo} is there already. SfN writes into no repo that it did not create: choose another name."),
    413: ("server", "The Hub finds the upload of {repo} too large (413): it takes files of at most 50 GB."),
    429: ("rate limit", "The Hub takes no more requests from here for now (429). {later}"),
}


def _status(error: BaseException) -> int | None:
    """The HTTP status in the chain of causes."""
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return None
        if (response := getattr(seen, "response", None)) is not None:
            return int(response.status_code)
        seen = seen.__cause__ or seen.__context__
    return None
