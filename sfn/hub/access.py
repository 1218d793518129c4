"""Who asks the Hub, and what its refusals mean. Owns the token, which leaves this module in a request's header alone,
and the sentence for everything that can go wrong between here and a model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from sfn.errors import HubError

LOGIN = "log in with `hf auth login`, or set HF_TOKEN, and try again"

_offered: list[str] = []  # a token that the app's owner gave by other means, the last one counts
_UNREACHABLE = ("offline", "network", "certificate", "server")


def offer_token(token: str | None) -> None:
    """Use `token` where neither the environment nor `hf auth login` has one; it is kept in memory only."""
    _offered[:] = [token.strip()] if token and token.strip() else []


def token() -> str | None:
    """The token in use: of the environment, of `hf auth login`, or offered; None without one."""
    from huggingface_hub import get_token

    return get_token() or (_offered[-1] if _offered else None)


def has_token() -> bool:
    """Whether requests to the Hub are made in somebody's name."""
    return token() is not None


def endpoint() -> str:
    """Address of the Hub: HF_ENDPOINT, or huggingface_hub's own."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids any request."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def headers() -> dict[str, str]:
    """Headers of a request to the Hub, the token's among them: only for the Hub's own host."""
    from huggingface_hub.utils import build_hf_headers

    import sfn

    return build_hf_headers(token=token() or False, library_name="sfn", library_version=sfn.__version__)


def unreachable(error: HubError) -> bool:
    """Whether the Hub could not be asked at all, so that what is on this machine has to do."""
    return error.kind in _UNREACHABLE


def refusal(
    repo: str, status: int, headers: Mapping[str, str], *, revision: str | None = None, file: str | None = None
) -> HubError:
    """The sentence for an answer of the Hub that is none. headers: the answer's; case does not matter."""
    given = {key.lower(): value for key, value in headers.items()}
    code, message = given.get("x-error-code", ""), given.get("x-error-message", "")
    page = f"{endpoint()}/{repo}"
    if code == "GatedRepo":
        return HubError(_gated(repo, page, status), "gated", page)
    if message == "Access to this resource is disabled.":
        return HubError(
            f"The Hub has disabled {repo}: nobody can read it at present. {page} may say why; take another copy of "
            "the model.",
            "disabled",
        )
    if status == 401 and "Invalid credentials" in message:
        return HubError(
            "The Hub does not accept the token in use: it has expired, or was revoked. Make a new one at "
            f"{endpoint()}/settings/tokens, then {LOGIN}.",
            "token",
            f"{endpoint()}/settings/tokens",
        )
    if code == "RevisionNotFound":
        return HubError(
            f"{repo} has no revision {revision!r}. Give a branch, a tag or a commit of {page}/commits/main.", "revision"
        )
    if code == "EntryNotFound":
        return HubError(f"{repo} has no file {file!r} at this revision.", "file")
    if code == "RepoNotFound" or status in (401, 404):
        hint = "" if token() else f" If it is private, {LOGIN}."
        return HubError(
            f"There is no model {repo} on the Hub that this machine may read. Check the spelling at {endpoint()}."
            f"{hint}",
            "missing",
        )
    if status == 403:
        return HubError(
            f"The Hub does not let this machine read {repo}: the token in use has no right to. Give it read access to "
            f"this model at {endpoint()}/settings/tokens.",
            "forbidden",
            f"{endpoint()}/settings/tokens",
        )
    if status == 429:
        return HubError(_limited(given), "rate limit")
    if status >= 500:
        return HubError(
            f"The Hub answers for {repo} with an error of its own ({status}), and kept doing so. Try again later; "
            "https://status.huggingface.co tells whether it is known. Nothing finished is lost.",
            "server",
        )
    return HubError(f"The Hub answers for {repo} with {status}, which SfN cannot make sense of. Try again.", "server")


def _gated(repo: str, page: str, status: int) -> str:
    who = (
        f"no token was sent; then {LOGIN}" if status == 401 and not token() else "your account has not been let in yet"
    )
    return (
        f"{repo} is gated: its authors want to know who reads it, and {who}. Open {page} while logged in, accept the "
        "licence, and try again."
    )


def _limited(headers: Mapping[str, str]) -> str:
    wait = wait_asked_s(headers)
    when = f"in {wait:.0f} s" if wait else "in some minutes"
    hint = "" if token() else f" Whoever is logged in may ask more often: {LOGIN}."
    return f"The Hub takes no more requests from here for now (429). Go on {when}; nothing finished is lost.{hint}"


def wait_asked_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait: `Retry-After` (seconds, or a date), or the `ratelimit` header's `t=`."""
    import time
    from email.utils import parsedate_to_datetime

    given = {key.lower(): value.strip() for key, value in headers.items()}
    after = given.get("retry-after", "")
    if after.isdigit():
        return float(after)
    if after:
        try:
            return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
        except ValueError:
            return None
    if match := re.search(r"\br=0\b.*?\bt=(\d+)", given.get("ratelimit", "")):
        return float(match[1])
    return None


def failure(error: BaseException, repo: str, *, revision: str | None = None, file: str | None = None) -> HubError:
    """The sentence for an exception of huggingface_hub or of its HTTP client.

    The exception's own words are left out: they may hold a signed link.
    """
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, HubError):
        return error
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
        chain.append(cause)
    for found in chain:
        if isinstance(found, errors.OfflineModeIsEnabled):
            return unreached(repo, "offline")
        response = getattr(found, "response", None)
        if response is not None:
            return refusal(repo, response.status_code, response.headers, revision=revision, file=file)
    if any("CERTIFICATE_VERIFY_FAILED" in str(found) or "SSLCertVerification" in repr(found) for found in chain):
        return unreached(repo, "certificate")
    if any(isinstance(found, httpx2.TransportError | ConnectionError | TimeoutError) for found in chain):
        return unreached(repo, "network")
    if any(isinstance(found, errors.HFValidationError) for found in chain):
        return HubError(
            f"{repo!r} cannot be the name of a model on the Hub. Names look like organisation/model, of letters, "
            "digits, “-”, “_” and “.”.",
            "address",
        )
    if any(isinstance(found, errors.FileMetadataError) for found in chain):
        return HubError(f"What answers at {endpoint()} is not a Hugging Face Hub: check HF_ENDPOINT.", "server")
    if (disk := next((found for found in chain if isinstance(found, OSError) and found.errno), None)) is not None:
        return HubError(f"A file of {repo} could not be written on this machine: {disk.strerror}.", "disk")
    return HubError(f"{repo} could not be read from the Hub ({type(error).__name__}). Try again.", "server")


def unreached(repo: str, why: str) -> HubError:
    """The sentence where nothing answers: why is "offline", "certificate" or "network"."""
    kept = "What was fetched or computed before can still be opened."
    if why == "offline":
        return HubError(f"{repo} is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub. {kept}", "offline")
    if why == "certificate":
        return HubError(
            f"The certificate of {endpoint()} cannot be verified, so nothing was sent. Behind a company's proxy, set "
            f"SSL_CERT_FILE to its certificates; also check this machine's clock. {kept}",
            "certificate",
        )
    return HubError(
        f"{endpoint()} cannot be reached from here, and {repo} is not on this machine. Check the network, and "
        f"HTTPS_PROXY if there is a proxy. {kept}",
        "network",
    )
