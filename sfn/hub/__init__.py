"""Models on the Hugging Face Hub: found by name, known from their headers, read by byte ranges.

`address(text)` says whether a text means the Hub, `find(repo, revision)` what is there at which commit, and `open_repo`
gives what `sfn.checkpoints` makes a checkpoint of; `upload` sends a folder to a new repo. Everything goes through
huggingface_hub's own client, so that its variables (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE) mean what they
always do; it is imported when first needed.
"""

from sfn.hub.access import has_token, offer_token
from sfn.hub.addresses import Address, address, meant
from sfn.hub.files import HubFiles
from sfn.hub.finding import Found, Here, Weights, children, on_this_machine, search, weights
from sfn.hub.listing import HubFile, Listing, find
from sfn.hub.opening import Opened, open_repo
from sfn.hub.upload import Uploaded, check_name, upload

__all__ = [
    "Address", "Found", "Here", "HubFile", "HubFiles", "Listing", "Opened", "Uploaded", "Weights", "address",
    "check_name", "children", "find", "has_token", "meant", "offer_token", "on_this_machine", "open_repo", "search",
    "upload", "weights",
]  # fmt: skip
