"""A LLaMA with any residual normalisation scheme and with GPAS (arXiv 2506.22049), for `trust_remote_code=True`.

Every sub-layer F (attention or MLP) is wired onto the residual stream x by one formula:

    y = post_norm?( scale * [G?](x) + [G?]( branch_scale? * branch_norm?( F( [G?]( pre_norm?(x) ) ) ) ) )        x <- [G?](y)

with G(x) = x - act(gate) * detach(x) at one of its places. The rows of `config.gpas["wiring"]` say which of these each layer has.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

ACTIVATIONS = {
    "silu": F.silu,
    "identity": lambda gate: gate,
    "relu": F.relu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "scale_silu": lambda gate: torch.sigmoid(8 * gate) * gate,
}

# transformers 5.2x calls `past_key_values` `cache`.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class GpasConfig(PretrainedConfig):
    model_type = "gpas"

    def __init__(
        self,
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=None,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        initializer_range=0.02,
        use_cache=True,
        rope_scaling=None,
        gpas=None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.gpas = gpas or {"gate": {"act": "silu", "stop_gradient": True}, "wiring": []}
        if rope_scaling:
            # transformers 5 asks for the base in the same table.
            kwargs["rope_scaling"] = {"rope_theta": rope_theta, **rope_scaling}
        super().__init__(**kwargs)


class RmsNorm(nn.Module):
    def __init__(self, config, factor=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps, self.factor = config.rms_norm_eps, factor

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * (self.weight.float() * self.factor)).to(x.dtype)


class Gpas(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))
        self.act, self.stop_gradient = ACTIVATIONS[config.gpas["gate"]["act"]], config.gpas["gate"]["stop_gradient"]

    def forward(self, x):
        return x - self.act(self.gate) * (x.detach() if self.stop_gradient else x)


class BranchScale(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * self.weight


class Attention(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.index, self.heads, self.kv_heads = index, config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.heads
        kv_size = self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, rotary, mask, cache):
        batch, seq, hidden = x.shape
        q, k, v = (
            project(x).view(batch, seq, heads, self.head_dim).transpose(1, 2)
            for project, heads in ((self.q_proj, self.heads), (self.k_proj, self.kv_heads), (self.v_proj, self.kv_heads))
        )
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.update(k, v, self.index)
        group = self.heads // self.kv_heads
        k, v = (z.repeat_interleave(group, dim=1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).reshape(batch, seq, hidden))


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention, then MLP, each with its row of the wiring; norms and gates stand under the names that the rows give."""

    def __init__(self, config, index):
        super().__init__()
        self.self_attn, self.mlp = Attention(config, index), Mlp(config)
        self.rows = config.gpas["wiring"][index]
        for row in self.rows:
            for place in ("pre_norm", "branch_norm", "post_norm"):
                if row[place]:
                    self.add_module(row[place], RmsNorm(config, row["norm_factor"] if place == "pre_norm" else 1.0))
            if row["branch_scale"]:
                self.add_module(row["branch_scale"]["name"], BranchScale(row["branch_scale"]["size"]))
            if row["gate"] and not hasattr(self, row["gate"]):
                self.add_module(row["gate"], Gpas(config))

    def forward(self, x, rotary, mask, cache):
        x = self.residual(self.rows[0], x, lambda z: self.self_attn(z, rotary, mask, cache))
        return self.residual(self.rows[1], x, self.mlp)

    def residual(self, row, x, sub_layer):
        def norm(place, z):
            return getattr(self, row[place])(z) if row[place] else z

        def gate(place, z):
            return getattr(self, row["gate"])(z) if row["gate"] and row["gate_place"] == place else z

        x = gate("before", x)
        seen = gate("after_norm", norm("pre_norm", x))
        branch = norm("branch_norm", sub_layer(seen))
        if row["branch_scale"]:
            branch = getattr(self, row["branch_scale"]["name"])(branch)
        branch = gate("after_module", row["branch_factor"] * branch)
        return gate("stream", norm("post_norm", row["residual_scale"] * gate("residual", x) + branch))


class Body(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embedding_norm = config.gpas.get("embedding_norm")
        if self.embedding_norm:
            self.add_module(self.embedding_norm, RmsNorm(config))
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RmsNorm(config)

    def stream(self, embeddings):
        """The stream before the first layer."""
        return getattr(self, self.embedding_norm)(embeddings) if self.embedding_norm else embeddings


class GpasForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = GpasConfig
    base_model_prefix = "model"
    _no_split_modules = ["Layer"]
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = Body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_hidden_states=None,
        logits_to_keep=0,
        cache=None,
        **kwargs,
    ):
        """Logits [batch, seq, vocab]; with `labels` (aligned with the ids, -100 is not scored) the mean next-token loss too."""
        cache = past_key_values if cache is None else cache
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x = self.model.stream(x)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if cache is None and use_cache and labels is None:
            cache = DynamicCache()
        past = cache.get_seq_length() if cache is not None else 0
        places = torch.arange(past, past + x.shape[1], device=x.device)
        rotary = self.rotary(places[None] if position_ids is None else position_ids, x.dtype)
        mask = causal_mask(places, attention_mask)

        states = []
        for layer in self.model.layers:
            states.append(x)
            x = layer(x, rotary, mask, cache)
        x = self.model.norm(x)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep > 0 else slice(None)
        kept = kept if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(x[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        hidden_states = (*states, x) if output_hidden_states else None
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=hidden_states, **{CACHE: cache if use_cache else None})

    def rotary(self, positions, dtype):
        """Cosines and sines [batch, 1, seq, head_dim] of half-rotated heads, in f32 until the end."""
        size = self.config.hidden_size // self.config.num_attention_heads
        # Scaled ones are given as numbers, and what multiplies their cosines and sines.
        scaled = self.config.gpas.get("rope") or {"attention_factor": 1.0}
        base, grows, length = self.config.rope_theta, scaled.get("by_length"), int(positions.max()) + 1
        grown = grows and length > grows["positions"]
        if grown:
            base *= (grows["factor"] * length / grows["positions"] - grows["factor"] + 1) ** (size / (size - 2))
        if "frequencies" in scaled and not grown:
            frequencies = torch.tensor(scaled["frequencies"], device=positions.device)
        else:
            frequencies = 1.0 / base ** (torch.arange(0, size, 2, device=positions.device).float() / size)
        angles = positions[:, None, :, None].float() * frequencies.repeat(2)
        factor = scaled["attention_factor"]
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def causal_mask(places, attention_mask):
    """What a query [seq] may see of all keys so far, as booleans [batch or 1, 1, seq, keys]; keys that are padding are hidden."""
    keys = torch.arange(places[-1] + 1, device=places.device)
    mask = (keys[None] <= places[:, None])[None, None]
    if attention_mask is None:
        return mask
    if attention_mask.dim() == 4:
        return attention_mask
    mask = mask & attention_mask[:, None, None, :].bool()
    # A row of padding sees itself, so that its softmax is defined.
    return mask | (keys[None] == places[:, None])[None, None]
