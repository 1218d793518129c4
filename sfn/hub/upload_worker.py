"""The process that sends a folder to the Hub, run by `upload`: an order on stdin, news on stdout, JSON line by line.

Reports bytes through the progress bars that huggingface_hub draws: it offers no other way to follow an upload.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path

from sfn.errors import HubError

_EVERY_S = 0.2


def main() -> None:
    """Read the order, send, say how it went."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_owner, daemon=True).start()
    # Before huggingface_hub reads them: bars drawn (to nowhere), and its own traces quiet.
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        _tell(**_send(order))
    except HubError as error:
        _tell(error=str(error), kind=error.kind)


def _end_with_owner() -> None:
    """End at once when the owner closes the pipe, or is gone."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdin.read()
    os._exit(1)


def _tell(**news: object) -> None:
    print(json.dumps(news), flush=True)


def _send(order: dict[str, object]) -> dict[str, object]:
    """Create the repo and commit the folder; raises HubError."""
    from huggingface_hub import HfApi

    import sfn
    from sfn.hub.upload_refusals import refusal

    repo, folder = str(order["repo"]), Path(str(order["folder"]))
    api = HfApi(str(order["endpoint"]), token=str(order["token"]), library_name="sfn", library_version=sfn.__version__)
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    step = "create"
    try:
        _tell(done=0, total=total, detail="creating the repo")
        if "/" not in repo:
            repo = f"{api.whoami()['name']}/{repo}"
        made = api.create_repo(repo, private=bool(order["private"]), exist_ok=False)
        step = "send"
        _follow_bars(total)
        done = api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Add merged checkpoint")
    except Exception as error:
        raise refusal(error, repo, step) from error
    return {"repo": made.repo_id, "url": str(made), "commit": done.oid}


def _follow_bars(total: int) -> None:
    """Tell the bytes of huggingface_hub's bars: of all files where it draws one for them, else of each file's."""
    from huggingface_hub.utils import tqdm

    draw, counted, told = tqdm.update, dict[int, tuple[str, float]](), [0.0]

    def update(bar: tqdm, n: float | None = 1) -> bool | None:
        result = draw(bar, n)
        if getattr(bar, "unit", "") == "B":
            counted[id(bar)] = (str(bar.desc), float(bar.n))
            if time.monotonic() - told[0] > _EVERY_S:
                told[0] = time.monotonic()
                of_all = [done for name, done in counted.values() if name.startswith("Processing Files")]
                done = of_all[0] if of_all else sum(done for _, done in counted.values())
                _tell(done=min(int(done), total), total=total, detail="sending")
        return result

    tqdm.update = update


if __name__ == "__main__":
    main()
