"""vLLM's command line and environment as SfN starts it: for its own private server, and for one on another machine
(`sfn.engines.serve`). The one place that knows vLLM's options; starts nothing.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sfn
from sfn.checkpoints import text_config
from sfn.engines import asking, hardware, orders
from sfn.errors import EngineError

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan

MODEL = "sfn"  # the name under which the model is served
# Not the `vllm` command: that of the CPU build does not find its own version and dies.
COMMAND = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
# Longest context that is offered, so that one answer's keys and values fit: tokens, by device.
_CONTEXT = {"cpu": 8192, "cuda": 32768}


def given_options() -> list[str]:
    """The user's own options of `vllm serve`: SFN_VLLM_ARGS (`--tensor-parallel-size 2`); they win over SfN's."""
    return shlex.split(os.environ.get("SFN_VLLM_ARGS", ""))


def option(line: Sequence[str], *names: str) -> str | None:
    """The last value of an option in a command line, by any of its names, as `--name value` or `--name=value`."""
    found = None
    for word, following in pairwise([*line, ""]):
        name, given, value = word.partition("=")
        if name.replace("_", "-") in names:
            found = value if given else following
    return found


def context(pair: Pair, device: str, given: Sequence[str]) -> int:
    """Longest context offered, in tokens: the model's own, bounded; `--max-model-len` among `given` overrides it."""
    if (length := option(given, "--max-model-len") or "").isdigit():
        return int(length)
    bound = _CONTEXT.get(device, _CONTEXT["cuda"])
    return min(asking.context_limit(pair.a.config) or bound, bound)


def numbers(pair: Pair, *, device: str, dtype: str, length: int) -> dict[str, Any]:
    """The settings that decide an engine's numbers, by the names of `vllm.LLM`; `length`: of the context, in tokens."""
    settings = {
        "dtype": dtype,
        "max_model_len": length,
        "max_num_seqs": 8,
        # Graphs and compiled code are not used until hot-swapped weights are known to be right under them.
        "enforce_eager": True,
        # Without a prefix cache an answer does not depend on what was asked before.
        "enable_prefix_caching": False,
    }
    if device == "cpu":
        settings |= {"kv_cache_memory_bytes": kv_bytes(pair, length), "gpu_memory_utilization": 0.3}
    return settings


def kv_bytes(pair: Pair, length: int) -> int:
    """Memory for keys and values of two answers of full length, at least 128 MiB."""
    config = text_config(pair.a.config)
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or int(config.get("hidden_size") or config.get("n_embd") or 1024) // heads)
    return max(128 * 2**20, 2 * length * pair.n_layers * kv_heads * width * 2 * 4)


def arguments(pair: Pair, plan: Plan, *, device: str, dtype: str, given: Sequence[str]) -> list[str]:
    """Options of `vllm serve` for a server of `pair` that holds `plan` from the start; `given` come last and win.

    Raises EngineError for what vLLM would only die of later.
    """
    if device == "cpu" and _ranks(given)[1] > 1:
        raise EngineError(
            "vLLM's CPU build starts with --pipeline-parallel-size and dies of the first request; on a CPU take "
            "--tensor-parallel-size."
        )
    untied: dict[str, Any] = {"tie_word_embeddings": False}
    if isinstance(pair.a.config.get("text_config"), dict):
        untied["text_config"] = {"tie_word_embeddings": False}
    options = {
        "model": str(pair.a.folder),
        "served_model_name": MODEL,
        "load_format": "sfn",
        "model_loader_extra_config": json.dumps(orders.start_order(pair, plan)),
        "worker_extension_cls": "sfn.engines.vllm_worker.PairWorker",
        "hf_overrides": json.dumps(untied),
        "generation_config": "vllm",  # sampling comes from the request alone
        "uvicorn_log_level": "warning",
        "disable_uvicorn_access_log": True,
        **numbers(pair, device=device, dtype=dtype, length=context(pair, device, given)),
    }
    return [*(word for name, value in options.items() for word in words(name, value)), *given]


def words(name: str, value: object) -> list[str]:
    """A setting as words of a command line."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


def environment(given: Sequence[str]) -> dict[str, str]:
    """What SfN adds to the environment of a server that is started with the options `given`."""
    root = str(Path(sfn.__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    added = {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),  # vLLM's workers import sfn.engines.vllm_worker
        "PYTHONUNBUFFERED": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # pause, collective_rpc, reset_prefix_cache
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",  # both checkpoints are folders
        "NO_COLOR": "1",
    }
    if not _spans_machines(given):
        added["VLLM_HOST_IP"] = "127.0.0.1"  # its processes speak with each other over the loopback alone
    if hardware.vllm_is_cpu_build():
        # On a CPU two small functions of vLLM's sampler would be compiled with g++, which a machine may lack, in 15 s.
        added |= {"TORCH_COMPILE_DISABLE": "1"} | _cpu_binding(_ranks(given)[0])
    return added


def _spans_machines(given: Sequence[str]) -> bool:
    return option(given, "--distributed-executor-backend") == "ray" or (option(given, "--nnodes", "-n") or "1") != "1"


def _ranks(given: Sequence[str]) -> tuple[int, int]:
    """Workers that the options ask for: tensor parallel, pipeline parallel. What is no number is vLLM's to refuse."""
    tensor = option(given, "--tensor-parallel-size", "-tp") or ""
    pipeline = option(given, "--pipeline-parallel-size", "-pp") or ""
    return int(tensor) if tensor.isdigit() else 1, int(pipeline) if pipeline.isdigit() else 1


def _cpu_binding(ranks: int) -> dict[str, str]:
    """Which cores each of several CPU workers computes on. vLLM gives each a memory node of its own and refuses to
    start where there are fewer; SfN then shares out the cores evenly, or leaves that to the system where they are few.
    """
    if ranks == 1 or "VLLM_CPU_OMP_THREADS_BIND" in os.environ:
        return {}
    if len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) >= ranks:
        return {}
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // ranks
    if share == 0:
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    shares = [cores[rank * share : (rank + 1) * share] for rank in range(ranks)]
    return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, own)) for own in shares)}
