"""Run by mergekit's own Python: merge every CONFIG.yml of a folder into the folder CONFIG beside it, as mergekit-yaml
does with its default options; where one fails, CONFIG.error says why. One process, as mergekit loads for seconds."""

import sys
import traceback
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

for file in sorted(Path(sys.argv[1]).glob("*.yml")):
    text = file.read_text(encoding="utf-8")
    try:
        config = MergeConfiguration.model_validate(yaml.safe_load(text))
        run_merge(config, str(file.with_suffix("")), MergeOptions(quiet=True), config_source=text)
    except Exception:
        file.with_suffix(".error").write_text(traceback.format_exc())
