"""The other side of `cargo xtask verify-hf`: what transformers and PyTorch make of what gpas writes, and models for gpas to read.

    verify_hf.py load DIR TEXT LOGITS TOKENS PROMPT CONTINUED [--stock]
                            loads DIR; writes its logits of the text's first TOKENS tokens, and goes on from the first PROMPT of them
    verify_hf.py stock DIR TOKENIZER TEXT LOGITS TOKENS
                            writes a random grouped-query LLaMA with a tied head, and its logits
    verify_hf.py authors SCHEME DIR TOKENIZER TEXT LOGITS TOKENS
                            writes a random checkpoint in the GPAS authors' format, and its logits by the code below
    verify_hf.py versions   of torch and transformers

Every command prints one JSON object.
"""

import json
import math
import os
import sys

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def versions():
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def first_ids(tokenizer, text, count):
    with open(text) as file:
        found = tokenizer(file.read(), add_special_tokens=False)["input_ids"]
    assert len(found) >= int(count), f"{text} has {len(found)} tokens"
    return found[: int(count)]


def save_logits(logits, file):
    save_file({"logits": logits.float().contiguous()}, file)


@torch.no_grad()
def load(directory, text, logits_file, tokens, prompt, continued, *options):
    stock = "--stock" in options
    if stock:
        assert not [name for name in os.listdir(directory) if name.endswith(".py")], "a stock model has no code of its own"
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=not stock)
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=not stock).eval()
    assert type(model) is LlamaForCausalLM or not stock, type(model)
    ids = first_ids(tokenizer, text, tokens)
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    save_logits(logits, logits_file)
    given = torch.tensor([ids])
    loss = model(given, labels=given).loss.item() - F.cross_entropy(logits[:-1], given[0, 1:]).item()
    assert abs(loss) < 1e-4, f"the loss differs by {loss}"

    # Three times: the whole sequence for each token, with the cache of keys and values, and with a shorter prompt beside it that is
    # padded on the left and goes on as it does alone.
    words = tokenizer.decode(ids[: int(prompt)])
    prompt, count = torch.tensor([tokenizer(words)["input_ids"]]), int(continued)
    whole = prompt
    for _ in range(count):
        whole = torch.cat((whole, model(whole, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    continued = whole[0, prompt.shape[1] :].tolist()
    settings = dict(do_sample=False, max_new_tokens=count, min_new_tokens=count, eos_token_id=None, pad_token_id=0)
    cached = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    short = prompt[:, : prompt.shape[1] // 2]
    missing = prompt.shape[1] - short.shape[1]
    padded = torch.cat((torch.zeros_like(prompt[:, :missing]), short), 1)
    mask = torch.ones_like(prompt)
    mask[:, :missing] = 0
    alone = model.generate(short, attention_mask=torch.ones_like(short), **settings)[0, short.shape[1] :]
    beside = model.generate(torch.cat((prompt, padded)), attention_mask=torch.cat((torch.ones_like(prompt), mask)), **settings)

    # What a reader is shown ends with the text.
    end = model.generation_config.eos_token_id
    shown = continued[: continued.index(end)] if end in continued else continued
    return {
        "architecture": type(model).__name__,
        "ids": ids,
        "prompt": words,
        "prompt_ids": prompt[0].tolist(),
        "continued": continued,
        "text": tokenizer.decode(shown, skip_special_tokens=True),
        "same_cached": cached[0, prompt.shape[1] :].tolist() == continued,
        "same_padded": beside[1, prompt.shape[1] :].tolist() == alone.tolist(),
    }


@torch.no_grad()
def stock(directory, tokenizer_file, text, logits_file, tokens):
    torch.manual_seed(1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file)
    ids = first_ids(tokenizer, text, tokens)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=172, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    save_logits(model(torch.tensor([ids])).logits[0], logits_file)
    return {"ids": ids}


def norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def attend(p, x, heads):
    seq, hidden = x.shape
    size = hidden // heads
    angles = torch.outer(torch.arange(seq).float(), 10000.0 ** (-torch.arange(0, size, 2).float() / size)).repeat(1, 2)

    def turned(x):
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()

    q, k, v = ((x @ p[f"self_attn.{name}_proj.weight"].T).view(seq, heads, size).transpose(0, 1) for name in "qkv")
    scores = turned(q) @ turned(k).transpose(1, 2) / math.sqrt(size)
    scores = scores.masked_fill(torch.ones(seq, seq).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(seq, hidden) @ p["self_attn.o_proj.weight"].T


def feed_forward(p, x):
    return (F.silu(x @ p["mlp.gate_proj.weight"].T) * (x @ p["mlp.up_proj.weight"].T)) @ p["mlp.down_proj.weight"].T


# Norms of attention and of the MLP, in the layers of each scheme: before, on the branch, on the sum.
PRE = (("input_layernorm", None, None), ("post_attention_layernorm", None, None))
POST = ((None, None, "post_attention_layernorm"), (None, None, "post_feedforward_layernorm"))
SANDWICH = (
    ("input_layernorm", "post_attention_layernorm", None),
    ("pre_feedforward_layernorm", "post_feedforward_layernorm", None),
)
AUTHORS = {"pre_gpas": 4 * [PRE], "sandwich_gpas": 4 * [SANDWICH], "post_pre_gpas": [POST, PRE, PRE, PRE], "deeppost_gpas": 4 * [POST]}


def authors(scheme, directory, tokenizer_file, text, logits_file, tokens):
    """The published forward pass: `x - silu(gate) * x` on the stream after a Pre-LN or Sandwich-LN sub-layer, on the residual of a Post-LN one."""
    torch.manual_seed(2)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file)
    ids = first_ids(tokenizer, text, tokens)
    hidden, inner, heads, vocab, layers = 48, 128, 4, len(tokenizer), AUTHORS[scheme]
    residual_scale = (2 * len(layers)) ** 0.25 if scheme == "deeppost_gpas" else 1.0
    state = {"model.embed_tokens.weight": 0.6 * torch.randn(vocab, hidden)}
    for index, rows in enumerate(layers):
        shapes = {f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")} | {"mlp.down_proj.weight": (hidden, inner)}
        p = {name: 0.12 * torch.randn(shape) for name, shape in shapes.items()}
        p |= {f"{name}.weight": 1 + 0.3 * torch.randn(hidden) for row in rows for name in row if name}
        p["gpas_block.gate"] = torch.tensor([0.4, -0.3, 0.8, 1.6][index])
        p["self_attn.rotary_emb.inv_freq"] = 1.0 / 10000 ** (torch.arange(0, hidden // heads, 2).float() / (hidden // heads))
        state |= {f"model.layers.{index}.{name}": value for name, value in p.items()}
    state |= {"model.norm.weight": 1 + 0.3 * torch.randn(hidden), "lm_head.weight": 0.12 * torch.randn(vocab, hidden)}

    x = state["model.embed_tokens.weight"][ids]
    for index, rows in enumerate(layers):
        start = f"model.layers.{index}."
        p = {name[len(start) :]: value for name, value in state.items() if name.startswith(start)}
        scale = 1 - F.silu(p["gpas_block.gate"])
        for (before, branch, total), sub_layer in zip(rows, (lambda z: attend(p, z, heads), lambda z: feed_forward(p, z))):
            y = sub_layer(norm(x, p[f"{before}.weight"]) if before else x)
            y = norm(y, p[f"{branch}.weight"]) if branch else y
            x = norm(residual_scale * scale * x + y, p[f"{total}.weight"]) if total else scale * (x + y)
    logits = norm(x, state["model.norm.weight"]) @ state["lm_head.weight"].T

    os.makedirs(directory)
    torch.save(state, os.path.join(directory, "pytorch_model.bin"))
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", hidden_size=hidden, intermediate_size=inner,
        initializer_range=0.02, max_sequence_length=1024, num_attention_heads=heads, num_hidden_layers=len(layers), pad_token_id=-1,
        bos_token_id=0, eos_token_id=1, rms_norm_eps=1e-6, vocab_size=vocab,
    )  # fmt: skip
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file)
    save_logits(logits, logits_file)
    return {"ids": ids}


if __name__ == "__main__":
    commands = {"load": load, "stock": stock, "authors": authors, "versions": versions}
    print(json.dumps(commands[sys.argv[1]](*sys.argv[2:])))
