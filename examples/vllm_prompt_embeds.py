"""Soft tokens as prompt embeddings of vLLM; needs vLLM and a GPU.

    python examples/vllm_prompt_embeds.py passage.txt "Where was she born?" --wire WIRE

vLLM takes embeddings at consecutive positions and nothing else. That is all there is of a wire with
`wire.adapter.deep_layers: 0` and `wire.adapter.positions: consecutive`, such as that of
`config/squad-original.yaml`; other wires are refused.
"""

import argparse
from pathlib import Path

from latentwire import UserError, Wire


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("question")
    parser.add_argument("--wire", required=True, help="folder or hub repository")
    parser.add_argument("--receiver", help="default: the first of the wire")
    options = parser.parse_args()
    wire = Wire.from_pretrained(options.wire)
    name = options.receiver or next(iter(wire.receivers))
    text, question = options.text.read_text().strip(), options.question
    in_latents = wire.config.source_mode == "prompt"
    latents = wire.encode([text], min(wire.widths), [question] if in_latents else None)
    receiver = wire.receiver(name)
    prompt = receiver.inputs_embeds(latents, None if in_latents else [question])
    if not prompt.is_plain:
        raise UserError(
            "this wire adds to keys and values or spreads positions, which vLLM's prompt "
            "embeddings do not carry; train one with wire.adapter.deep_layers 0 and positions "
            "consecutive"
        )
    from vllm import LLM, SamplingParams

    facts = wire.receivers[name]
    model = LLM(
        str(facts.location), revision=facts.revision, dtype=facts.dtype, enable_prompt_embeds=True
    )
    settings = SamplingParams(temperature=0, max_tokens=32)
    outputs = model.generate({"prompt_embeds": prompt.inputs_embeds[0]}, settings)
    print(outputs[0].outputs[0].text.strip())


if __name__ == "__main__":
    main()
