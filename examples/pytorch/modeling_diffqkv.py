"""Sigma (DiffQKV) for Hugging Face transformers: loads, trains and saves the checkpoints that
`diffqkv` loads as `sigma` and that `diffqkv convert` writes. Needs transformers 5.

    from modeling_diffqkv import SigmaForCausalLM
    model = SigmaForCausalLM.from_pretrained("FEWER-K", dtype=torch.float32)
    loss = model(input_ids, labels=input_ids).loss
    model.save_pretrained("TRAINED")  # then: diffqkv generate --model TRAINED

One layer, with RMSNorm before attention and before the FFN, and no biases (arXiv 2501.13629):

    q = q_proj(h)
    q = q_down_proj(silu(q_gate_proj(q)) * q_up_proj(q))      # augmented Q, if aug_q_dim > 0
    k = k_proj(h);  v = v_proj(h)                             # num_key_heads, num_value_heads
    q, k = rope(q), rope(k)
    k = k_lift_proj(k)                                        # half K dim, if there is a key_lift
    h += o_proj(softmax(q k^T / sqrt(head_dim)) v)            # q head i: K head i * n_k // n_q
    h += down_proj(silu(gate_proj(h)) * up_proj(h))
"""

import copy

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, rotate_half


class SigmaConfig(PreTrainedConfig):
    """The fields of config.json. RoPE is in rope_parameters, or in rope_theta and rope_scaling."""

    model_type = "sigma"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_heads: int = 32
    num_value_heads: int = 32
    head_dim: int | None = None  # of Q, and of K in attention; hidden_size / num_attention_heads
    key_head_dim: int | None = None  # of K in the cache; head_dim unless there is a key_lift
    value_head_dim: int | None = None  # head_dim
    key_lift: dict | None = None
    aug_q_dim: int | None = None  # 0 or None: without augmented Q
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_parameters: dict | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if kwargs.pop("attention_bias", False) or kwargs.pop("mlp_bias", False):
            raise ValueError("Sigma has no biases, but attention_bias or mlp_bias is true")
        kwargs.pop("num_key_value_heads", None)  # has no effect beside the other two counts
        super().__post_init__(**kwargs)
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.key_head_dim = self.key_head_dim or self.head_dim
        self.value_head_dim = self.value_head_dim or self.head_dim
        if self.key_lift is None and self.key_head_dim != self.head_dim:
            raise ValueError(f"key_head_dim is {self.key_head_dim}, but key_lift is missing")


class SigmaRotaryEmbedding(LlamaRotaryEmbedding):
    """cos and sin for heads of `head_dim` elements."""

    def __init__(self, config: SigmaConfig, head_dim: int):
        sized = copy.copy(config)
        sized.head_dim = head_dim
        super().__init__(sized)


def rotate(x, cos, sin):
    """Applies RoPE to x [batch, heads, tokens, head size]."""
    return x * cos.unsqueeze(1) + rotate_half(x) * sin.unsqueeze(1)


def swiglu(x, gate, up, down):
    """Augmented Q and lifts of K. hidden_act is only the activation of the FFN."""
    return down(nn.functional.silu(gate(x)) * up(x))


def linear(in_features, out_features):
    return nn.Linear(in_features, out_features, bias=False)


class SigmaAttention(nn.Module):
    def __init__(self, config: SigmaConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        q_size = config.num_attention_heads * config.head_dim
        self.q_proj = linear(config.hidden_size, q_size)
        if config.aug_q_dim:
            self.q_gate_proj = linear(q_size, config.aug_q_dim)
            self.q_up_proj = linear(q_size, config.aug_q_dim)
            self.q_down_proj = linear(config.aug_q_dim, q_size)
        self.k_proj = linear(config.hidden_size, config.num_key_heads * config.key_head_dim)
        self.v_proj = linear(config.hidden_size, config.num_value_heads * config.value_head_dim)
        self.o_proj = linear(config.num_attention_heads * config.value_head_dim, config.hidden_size)
        lift = config.key_lift or {"kind": None}
        if lift["kind"] == "linear":
            self.k_lift_proj = linear(config.key_head_dim, config.head_dim)
        elif lift["kind"] == "swiglu":
            self.k_lift_gate_proj = linear(config.key_head_dim, lift["intermediate_size"])
            self.k_lift_up_proj = linear(config.key_head_dim, lift["intermediate_size"])
            self.k_lift_down_proj = linear(lift["intermediate_size"], config.head_dim)

    def lift(self, k):
        if self.config.key_lift["kind"] == "linear":
            return self.k_lift_proj(k)
        return swiglu(k, self.k_lift_gate_proj, self.k_lift_up_proj, self.k_lift_down_proj)

    def forward(self, hidden_states, mask, q_rope, k_rope, cache):
        config = self.config

        def heads(x, count):
            return x.unflatten(-1, (count, -1)).transpose(1, 2)

        q = self.q_proj(hidden_states)
        if config.aug_q_dim:
            q = swiglu(q, self.q_gate_proj, self.q_up_proj, self.q_down_proj)
        q = rotate(heads(q, config.num_attention_heads), *q_rope)
        k = heads(self.k_proj(hidden_states), config.num_key_heads)
        v = heads(self.v_proj(hidden_states), config.num_value_heads)
        position = (config.key_lift or {}).get("position")
        if position == "before_rope":
            k = self.lift(k)
        k = rotate(k, *k_rope)
        if position == "after_rope":
            k = self.lift(k)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        k = k.repeat_interleave(config.num_attention_heads // config.num_key_heads, dim=1)
        v = v.repeat_interleave(config.num_attention_heads // config.num_value_heads, dim=1)
        causal = mask is None and q.shape[2] > 1
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class SigmaMLP(nn.Module):
    def __init__(self, config: SigmaConfig):
        super().__init__()
        self.gate_proj = linear(config.hidden_size, config.intermediate_size)
        self.up_proj = linear(config.hidden_size, config.intermediate_size)
        self.down_proj = linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x):
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class SigmaDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: SigmaConfig, layer_idx: int):
        super().__init__()
        self.self_attn = SigmaAttention(config, layer_idx)
        self.mlp = SigmaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, mask, q_rope, k_rope, cache):
        normed = self.input_layernorm(hidden_states)
        hidden_states = hidden_states + self.self_attn(normed, mask, q_rope, k_rope, cache)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class SigmaPreTrainedModel(PreTrainedModel):
    config_class = SigmaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SigmaDecoderLayer"]
    _supports_sdpa = True


class SigmaModel(SigmaPreTrainedModel):
    def __init__(self, config: SigmaConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList([SigmaDecoderLayer(config, layer_idx) for layer_idx in layers])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        lifted_first = (config.key_lift or {}).get("position") == "before_rope"
        self.q_rotary_emb = SigmaRotaryEmbedding(config, config.head_dim)
        self.k_rotary_emb = SigmaRotaryEmbedding(config, config.head_dim if lifted_first else config.key_head_dim)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if position_ids is None:
            first = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + first)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        q_rope = self.q_rotary_emb(inputs_embeds, position_ids)
        k_rope = self.k_rotary_emb(inputs_embeds, position_ids)
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, q_rope, k_rope, past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )


class SigmaForCausalLM(SigmaPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SigmaConfig):
        super().__init__(config)
        self.model = SigmaModel(config)
        self.lm_head = linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_ids=None, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)


AutoConfig.register("sigma", SigmaConfig)
AutoModelForCausalLM.register(SigmaConfig, SigmaForCausalLM)
