"""vLLM without this package: ``python one_by_one.py MODEL PROMPT IMAGE…`` prints the replies, one call an image."""

import json
import os
import sys
from base64 import b64encode
from pathlib import Path


def main(model, prompt, *images):
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    mistral = dict.fromkeys(("tokenizer_mode", "config_format", "load_format"), "mistral")
    llm = LLM(model, **mistral, max_model_len=8192, enforce_eager=True, dtype="float32", seed=0)
    replies = []
    for image in images:
        url = f"data:image/jpeg;base64,{b64encode(Path(image).read_bytes()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
        outputs = llm.chat([{"role": "user", "content": content}], SamplingParams(temperature=0, max_tokens=12))
        replies.append(outputs[0].outputs[0].text)
    print(f"\n{json.dumps(replies)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
