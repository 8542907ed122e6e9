"""The `transformers` peer of `gpas bench --generate`: a LLaMA of the same size with random weights that generates with its cache.

    python generation_peer.py --preset 20m --length 64 --tokens 64 [--vocab 32000]

Prints one JSON object with the keys of `gpas bench --generate`. A prompt of random tokens goes through the model, then one token at a time
follows it, greedily: the loop of `generate` without what that does besides.
"""
import argparse
import inspect
import json
import statistics
import time

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from peer import SIZES


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="20m")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=32000)
    args = parser.parse_args()
    hidden, intermediate, heads, layers = SIZES[args.preset]
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        max_position_embeddings=args.length + args.tokens,
    )
    # Newer releases have another name for it.
    known = inspect.signature(LlamaForCausalLM.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, args.vocab, (1, args.length))

    def run():
        cache = DynamicCache(config=config)
        begin = time.perf_counter()
        logits = model(ids, **{name: cache}, use_cache=True, logits_to_keep=1).logits
        last = logits[:, -1].argmax(-1, keepdim=True)
        prompt, times = time.perf_counter() - begin, []
        for _ in range(args.tokens):
            begin = time.perf_counter()
            logits = model(last, **{name: cache}, use_cache=True).logits
            last = logits[:, -1].argmax(-1, keepdim=True)
            last.item()
            times.append(time.perf_counter() - begin)
        return prompt, times

    run()
    prompt, times = run()
    print(
        json.dumps(
            {
                "peer": f"transformers-{transformers.__version__}-torch-{torch.__version__}",
                "preset": args.preset,
                "length": args.length,
                "tokens": args.tokens,
                "prompt_tokens_per_s": round(args.length / prompt, 1),
                "tokens_per_s": round(1 / statistics.median(times), 1),
            }
        )
    )


main()
