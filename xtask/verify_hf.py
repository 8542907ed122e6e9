"""The other side of `cargo xtask verify-hf`: what transformers and PyTorch make of what gpas writes, and models for gpas to read.

    verify_hf.py load DIR TEXT LOGITS TOKENS PROMPT CONTINUED [--stock]
                            loads DIR; writes its logits of the text's first TOKENS tokens, and goes on from the first PROMPT of them
    verify_hf.py stock DIR TOKENIZER TEXT LOGITS TOKENS
                            writes a random grouped-query LLaMA with a tied head, and its logits
    verify_hf.py authors SCHEME DIR TOKENIZER TEXT LOGITS TOKENS
                            writes a random checkpoint in the GPAS authors' format, and its logits by the code below
    verify_hf.py scaled SCALING DIR TOKENIZER TEXT LOGITS TOKENS [--old]
                            writes a random LLaMA with one of the rotary scalings below, and its logits; --old spells config.json as
                            transformers 4 did
    verify_hf.py again DIR TEXT LOGITS TOKENS PROMPT CONTINUED
                            loads DIR; writes its logits of the text's first TOKENS tokens, and goes on from the first PROMPT of them with the
                            cache of keys and values
    verify_hf.py rope FILE  writes the rotary frequencies of each scaling
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
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


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


# Rotary scalings, with the base and the positions of the model. The positions before scaling are few, so that a short text goes beyond them.
SCALINGS = {
    "default": (10000.0, 256, dict(rope_type="default")),
    "linear": (10000.0, 64, dict(rope_type="linear", factor=4.0)),
    "dynamic": (10000.0, 64, dict(rope_type="dynamic", factor=4.0)),
    # Llama-3.2's.
    "llama3": (
        500000.0, 256,
        dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    ),
    "yarn": (10000.0, 256, dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
    # Of the kind that DeepSeek's models have.
    "yarn-mscale": (
        10000.0, 256,
        dict(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=16.0, beta_slow=2.0, mscale=0.707, mscale_all_dim=1.0,
            truncate=False,
        ),
    ),
    "yarn-attention": (10000.0, 64, dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.3)),
}  # fmt: skip


def scaled_config(scaling, **sizes):
    theta, positions, parameters = SCALINGS[scaling]
    sizes = dict(hidden_size=128, intermediate_size=172, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2) | sizes
    return LlamaConfig(
        **sizes, max_position_embeddings=positions, initializer_range=0.1, rope_parameters=parameters | {"rope_theta": theta},
        bos_token_id=None, eos_token_id=0,
    )  # fmt: skip


@torch.no_grad()
def scaled(scaling, directory, tokenizer_file, text, logits_file, tokens, *options):
    torch.manual_seed(3)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file)
    ids = first_ids(tokenizer, text, tokens)
    model = LlamaForCausalLM(scaled_config(scaling, vocab_size=len(tokenizer))).eval()
    model.save_pretrained(directory)
    if "--old" in options:
        file = os.path.join(directory, "config.json")
        with open(file) as found:
            config = json.load(found)
        parameters = config.pop("rope_parameters")
        config["rope_theta"] = parameters.pop("rope_theta")
        config["rope_scaling"] = parameters
        parameters["type"] = parameters.pop("rope_type")
        if "original_max_position_embeddings" in parameters:
            config["original_max_position_embeddings"] = parameters.pop("original_max_position_embeddings")
        with open(file, "w") as written:
            json.dump(config, written)
    save_logits(model(torch.tensor([ids])).logits[0], logits_file)
    return {"ids": ids}


@torch.no_grad()
def again(directory, text, logits_file, tokens, prompt, continued):
    stock = not os.path.exists(os.path.join(directory, "modeling_gpas.py"))
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=not stock)
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=not stock).eval()
    ids = first_ids(tokenizer, text, tokens)
    words = tokenizer.decode(ids[: int(prompt)])
    given = torch.tensor([tokenizer(words)["input_ids"]])
    # Before the whole text: `dynamic` remembers the longest sequence that it has seen.
    whole = model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=int(continued), pad_token_id=0)
    fresh = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=not stock).eval()
    save_logits(fresh(torch.tensor([ids]), use_cache=False).logits[0], logits_file)
    return {
        "architecture": type(model).__name__,
        "ids": ids,
        "prompt": words,
        "prompt_tokens": given.shape[1],
        "continued": whole.shape[1] - given.shape[1],
        "text": tokenizer.decode(whole[0, given.shape[1] :], skip_special_tokens=True),
    }


def rope(file):
    """The golden file of the rotary frequencies, which the tests of gpas-model read."""
    cases = []
    real = {
        "Llama-3.2-1B": (64, 500000.0, 131072, SCALINGS["llama3"][2] | {"original_max_position_embeddings": 8192}),
        "DeepSeek-V2": (64, 10000.0, 163840, dict(
            rope_type="yarn", factor=40.0, original_max_position_embeddings=4096, beta_fast=32.0, beta_slow=1.0, mscale=0.707,
            mscale_all_dim=0.707,
        )),
    }  # fmt: skip
    small = {name: (32, *values) for name, values in SCALINGS.items()}
    for name, (head_dim, theta, positions, parameters) in (small | real).items():
        for length in (64, 65, 200) if parameters["rope_type"] == "dynamic" else (64,):
            config = LlamaConfig(
                hidden_size=2 * head_dim, num_attention_heads=2, max_position_embeddings=positions,
                rope_parameters=parameters | {"rope_theta": theta},
            )  # fmt: skip
            rotary = LlamaRotaryEmbedding(config)
            rotary(torch.zeros(1), torch.arange(length)[None])
            # Our own field for what `dynamic` takes from the model.
            original = {"original_max_position_embeddings": positions} if parameters["rope_type"] == "dynamic" else {}
            cases.append({
                "name": name, "rope_theta": theta, "head_dim": head_dim, "length": length, "rope_scaling": parameters | original,
                "frequencies": rotary.inv_freq.tolist(), "attention_factor": float(rotary.attention_scaling),
            })  # fmt: skip
    with open(file, "w") as written:
        lines = ",\n".join("    " + json.dumps(case) for case in cases)
        written.write(f'{{\n  "transformers": "{transformers.__version__}",\n  "cases": [\n{lines}\n  ]\n}}\n')
    return {"cases": len(cases)}


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
    commands = {
        "load": load, "stock": stock, "scaled": scaled, "again": again, "rope": rope, "authors": authors, "versions": versions,
    }  # fmt: skip
    print(json.dumps(commands[sys.argv[1]](*sys.argv[2:])))
