"""Writes test/model/architectures: small checkpoints of public architectures with random weights,
and the answers of Hugging Face transformers in float64.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors
    venv/bin/python test/tools/make_architecture_fixtures.py [FOLDER...]

A folder has config.json, model.safetensors (bf16) and expected.json, which has the variants of the
checkpoint: fields that replace those of config.json, with the answers for them. Biases, norms and
factors are random, so that a part that is left out changes the answers.
"""

import json
import pathlib
import sys
import tempfile

import torch
import transformers
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent.parent / "model" / "architectures"
LENGTHS = (5, 40)
GREEDY = 6

COMMON = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
    dtype="bfloat16",
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)


def new_rope(**fields):
    """The spelling of transformers 5."""
    return dict(rope_parameters=dict(rope_theta=100.0, **fields))


def old_rope(**fields):
    """The spelling before it."""
    return dict(rope_parameters=None, rope_theta=100.0, rope_scaling=fields)


def layers(*kinds):
    """layer_types: s for a layer with a window, f for one without."""
    names = {"s": "sliding_attention", "f": "full_attention"}
    return dict(layer_types=[names[kind] for kind in kinds])


WINDOW = dict(sliding_window=8)
ONE_LAYER = {**COMMON, "num_hidden_layers": 1}
LONGROPE = dict(
    rope_type="longrope",
    short_factor=[1.0, 1.3, 1.7, 2.2],
    long_factor=[1.5, 3.0, 5.0, 8.0],
)
SCALES = dict(query_pre_attn_scalar=5)


MHA = {**COMMON, "num_key_value_heads": 4}
LATENT = dict(kv_lora_rank=16, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=10)


def per_layer(full, sliding):
    return dict(rope_parameters=dict(full_attention=full, sliding_attention=sliding))


# Folder: the configuration, its variants, and the lengths of the prompts.
FIXTURES = {
    "llama-bias": (
        transformers.LlamaConfig(**COMMON, head_dim=8, attention_bias=True, mlp_bias=True),
        {"": {}, "gelu": dict(hidden_act="gelu"), "relu2": dict(hidden_act="relu2")},
    ),
    "llama-rope": (
        transformers.LlamaConfig(**ONE_LAYER, head_dim=8),
        {
            "default": new_rope(rope_type="default"),
            "linear": new_rope(rope_type="linear", factor=4.0),
            "linear, old spelling": old_rope(type="linear", factor=2.5),
            "llama3": new_rope(**LLAMA3),
            "yarn": new_rope(**YARN),
            "yarn, old spelling": old_rope(**{**YARN, "beta_fast": 2, "beta_slow": 0.2}),
            "yarn, attention_factor": new_rope(**YARN, attention_factor=0.6),
            "yarn, mscale": new_rope(**YARN, mscale=2.0, mscale_all_dim=0.5),
            "yarn, not truncated": new_rope(**YARN, beta_fast=2, beta_slow=0.2, truncate=False),
            "yarn, original length not given": new_rope(rope_type="yarn", factor=2.0),
            "dynamic": {**new_rope(rope_type="dynamic", factor=2.0), "max_position_embeddings": 24},
            "dynamic, old spelling": {**old_rope(type="dynamic", factor=4.0), "max_position_embeddings": 36},
            "gelu": dict(hidden_act="gelu"),
            "gelu_pytorch_tanh": dict(hidden_act="gelu_pytorch_tanh"),
            "relu": dict(hidden_act="relu"),
            "relu2": dict(hidden_act="relu2"),
        },
    ),
    "qwen2": (
        transformers.Qwen2Config(**COMMON),
        {"": {}, "window": dict(use_sliding_window=True, max_window_layers=1, layer_types=None, **WINDOW)},
    ),
    "qwen3": (
        transformers.Qwen3Config(**COMMON, head_dim=8, attention_bias=True, rms_norm_eps=1e-2),
        {
            "": {},
            "yarn": new_rope(**YARN),
            "window": dict(use_sliding_window=True, **WINDOW, **layers("s", "f")),
        },
    ),
    "mistral": (
        transformers.MistralConfig(**COMMON, head_dim=8),
        {"": dict(sliding_window=None), "window": WINDOW, "window 1": dict(sliding_window=1)},
    ),
    "ministral": (
        transformers.MinistralConfig(**COMMON, head_dim=8, **WINDOW, **layers("f", "s")),
        {"": {}, "every layer": layers("s", "s")},
    ),
    "phi3": (
        transformers.Phi3Config(**{**COMMON, "pad_token_id": 0}, original_max_position_embeddings=32),
        {
            "": {},
            "window": WINDOW,
            "partial": new_rope(rope_type="default", partial_rotary_factor=0.5),
            "longrope": new_rope(**LONGROPE, original_max_position_embeddings=32),
            "longrope, old spelling": old_rope(type="longrope", short_factor=LONGROPE["long_factor"], long_factor=LONGROPE["short_factor"]),
            "longrope, partial": new_rope(
                rope_type="longrope",
                short_factor=[1.0, 1.7],
                long_factor=[2.0, 6.0],
                original_max_position_embeddings=32,
                partial_rotary_factor=0.5,
            ),
            "longrope, factors": new_rope(
                **LONGROPE, original_max_position_embeddings=32, attention_factor=1.4, factor=3.0
            ),
        },
        (5, 29, 40),
    ),
    "gemma": (
        transformers.GemmaConfig(**COMMON, head_dim=8, attention_bias=True),
        {"": {}, "gelu": dict(hidden_act="gelu")},
    ),
    "gemma2": (
        transformers.Gemma2Config(**COMMON, head_dim=8, **WINDOW, **SCALES, attn_logit_softcapping=3.0,
                                  final_logit_softcapping=4.0, attention_bias=True),
        {"": {}, "without caps": dict(attn_logit_softcapping=None, final_logit_softcapping=None), "relu": dict(hidden_activation="relu")},
    ),
    "gemma3": (
        transformers.Gemma3TextConfig(**COMMON, head_dim=8, **WINDOW, **SCALES, **layers("s", "f"), attention_bias=True),
        {
            "": {},
            "other bases": per_layer(
                dict(rope_type="linear", factor=4.0, rope_theta=1000.0), dict(rope_type="default", rope_theta=50.0)
            ),
            "old spelling": dict(
                rope_parameters=None,
                rope_theta=500.0,
                rope_local_base_freq=20.0,
                rope_scaling=dict(rope_type="linear", factor=8.0),
            ),
            "cap": dict(final_logit_softcapping=5.0),
        },
    ),
    "olmo2": (transformers.Olmo2Config(**{**COMMON, "pad_token_id": 0}, attention_bias=True), {"": {}}),
    "olmo3": (
        transformers.Olmo3Config(**{**COMMON, "pad_token_id": 0}, **WINDOW, **layers("s", "f"), attention_bias=True),
        {"": {}, "yarn": per_layer(dict(rope_theta=100.0, **YARN), dict(rope_theta=100.0, rope_type="default"))},
    ),
    "granite": (
        transformers.GraniteConfig(
            **COMMON,
            embedding_multiplier=3.0,
            attention_multiplier=0.7,
            residual_multiplier=0.4,
            logits_scaling=2.5,
            rms_norm_eps=1e-2,
            attention_bias=True,
            mlp_bias=True,
        ),
        {"": {}},
    ),
    "smollm3": (
        transformers.SmolLM3Config(**{**COMMON, "pad_token_id": 0}, no_rope_layers=[1, 0], attention_bias=True, mlp_bias=True),
        {"": {}, "window": dict(use_sliding_window=True, layer_types=None, **WINDOW)},
    ),
    "exaone4": (
        transformers.Exaone4Config(**COMMON, **WINDOW, **layers("s", "f"), sliding_window_pattern=2),
        {"": {}, "without a window": dict(sliding_window=None, **layers("f", "f"))},
    ),
    "glm4": (
        transformers.Glm4Config(**{**COMMON, "pad_token_id": 0, "eos_token_id": 1}, head_dim=8, attention_bias=True),
        {"": {}, "whole": new_rope(rope_type="default", partial_rotary_factor=1.0)},
    ),
    "helium": (
        transformers.HeliumConfig(**{**COMMON, "pad_token_id": 0}, head_dim=8, attention_bias=True, mlp_bias=True),
        {"": {}},
    ),
    "seed_oss": (
        transformers.SeedOssConfig(**{**COMMON, "pad_token_id": 0}, head_dim=8, attention_out_bias=True),
        {"": {}},
    ),
    "ernie4_5": (transformers.Ernie4_5Config(**COMMON, head_dim=8, use_bias=True), {"": {}}),
    "arcee": (transformers.ArceeConfig(**COMMON, mlp_bias=True, attention_bias=True), {"": {}}),
    "arcee-plain": (transformers.ArceeConfig(**ONE_LAYER), {"": {}}),
    "diffllama": (
        transformers.DiffLlamaConfig(
            **{**COMMON, "num_attention_heads": 8, "num_key_value_heads": 4}, head_dim=8, attention_bias=True
        ),
        {"": {}},
    ),
    "minicpm3": (
        transformers.MiniCPM3Config(**MHA, **LATENT, q_lora_rank=12, attention_bias=True, rms_norm_eps=1e-2),
        {"": {}, "linear": new_rope(rope_type="linear", factor=4.0, mscale_all_dim=0.5), "other scales": dict(scale_emb=3, scale_depth=2.5, dim_model_base=8)},
    ),
    "youtu": (
        transformers.YoutuConfig(**MHA, **LATENT, q_lora_rank=12),
        {
            "": {},
            "not interleaved": dict(rope_interleave=False),
            "yarn": new_rope(**YARN, mscale=1.0, mscale_all_dim=0.7),
        },
    ),
    "youtu-plain": (
        transformers.YoutuConfig(**{**MHA, "num_hidden_layers": 1}, **LATENT, q_lora_rank=None, attention_bias=True),
        {"": {}},
    ),
}


def random_model(config, seed):
    """In float64, with values that bf16 represents."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            values = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if name.endswith("bias") or "lambda" in name:
                values = 0.5 * values
            elif "norm" in name:
                values = 1 + 0.3 * values
            elif "embed" not in name:
                values = 1.5 * values / p.shape[1] ** 0.5
            p.copy_(values.bfloat16().double())
    return model.eval()


def digits(values):
    return [float(f"{x:.7g}") for x in values.tolist()]


def answers(model, tokens, cached):
    """The last logits, and greedy tokens, with a KV cache or without."""
    cache = transformers.DynamicCache() if cached else None

    def logits(ids):
        new = ids[cache.get_seq_length() :] if cached else ids
        return model(torch.tensor([new]), past_key_values=cache, use_cache=cached).logits[0, -1]

    last = logits(tokens)
    ids, greedy, margins = list(tokens), [], []
    final = last
    for _ in range(GREEDY):
        best = final.topk(2)
        greedy.append(int(best.indices[0]))
        margins.append(float(f"{float(best.values[0] - best.values[1]):.4g}"))
        ids.append(greedy[-1])
        final = logits(ids)
    return dict(
        tokens=tokens,
        last_logits=digits(last),
        greedy=greedy,
        greedy_margin=margins,
        final_logits_after_greedy=digits(final),
    )


def changed_model(model, fields, changes, dtype):
    """The model with other fields of config.json."""
    with tempfile.TemporaryDirectory() as directory:
        merged = {**fields, **changes}
        for key in ("rope_parameters", "layer_types"):  # no null in old files
            if merged.get(key, 0) is None:
                del merged[key]
        (pathlib.Path(directory) / "config.json").write_text(json.dumps(merged))
        config = transformers.AutoConfig.from_pretrained(directory)
    other = type(model)._from_config(config, attn_implementation="eager", dtype=dtype)
    other.load_state_dict(model.state_dict())
    return other.eval()


def difference(a, b):
    a, b = torch.tensor(a), torch.tensor(b)
    return float((a - b).abs().max() / b.abs().max())


def make(name, config, variants, lengths, seed):
    """Answers of each variant, or None if rounding to bf16 changes them by more than 1.5 %."""
    model = random_model(config, seed)
    config.architectures = [type(model).__name__]
    fields = json.loads(config.to_json_string(use_diff=False))
    del fields["transformers_version"]
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(0, 64, (length,), generator=generator).tolist() for length in lengths]
    expected = []
    with torch.no_grad():
        for variant, changes in variants.items():
            exact = changed_model(model, fields, changes, torch.float64)
            rounded = changed_model(model, fields, changes, torch.bfloat16)
            # Keys in a cache keep the frequencies of dynamic RoPE for the length that they were made at.
            cases = [answers(exact, tokens, cached=variant.startswith("dynamic")) for tokens in prompts]
            for case in cases:
                ids = torch.tensor([case["tokens"]])
                if difference(rounded(ids).logits[0, -1].tolist(), case["last_logits"]) > 0.015:
                    return None
            expected.append(dict(name=variant, config=changes, cases=cases))
    return model, fields, expected


def write(name, config, variants, lengths, seed):
    result = None
    while not result:
        result = make(name, config, variants, lengths, seed)
        seed += 100
    model, fields, expected = result
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.bfloat16().contiguous() for key, value in model.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")
    (folder / "expected.json").write_text(json.dumps(dict(variants=expected)) + "\n")
    # Every variant has answers of its own.
    for i, a in enumerate(expected):
        for b in expected[:i]:
            if name == "gemma" and {a["name"], b["name"]} == {"", "gelu"}:  # both are the tanh form
                continue
            error = difference(a["cases"][-1]["last_logits"], b["cases"][-1]["last_logits"])
            limit = 1e-4 if {a["name"], b["name"]} == {"gelu", "gelu_pytorch_tanh"} else 0.02
            assert error > limit, (name, a["name"], b["name"], error)


for index, (name, (config, variants, *lengths)) in enumerate(FIXTURES.items()):
    if len(sys.argv) > 1 and name not in sys.argv[1:]:
        continue
    write(name, config, variants, lengths[0] if lengths else LENGTHS if len(variants) < 3 else LENGTHS[1:], seed=index + 1)
    print(name, sum(f.stat().st_size for f in (OUT / name).iterdir()), "bytes")


DEFAULT_KEYS = (
    "attention_bias attention_out_bias mlp_bias use_bias hidden_act hidden_activation query_pre_attn_scalar "
    "attn_logit_softcapping final_logit_softcapping embedding_multiplier attention_multiplier residual_multiplier "
    "logits_scaling scale_emb scale_depth dim_model_base q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim "
    "v_head_dim rope_interleave"
).split()


def defaults(name, **fields):
    """A config.json with few keys, and what transformers adds to it."""
    given = dict(
        **dict(model_type=name, hidden_size=192, intermediate_size=64, num_hidden_layers=30, vocab_size=100),
        **dict(num_attention_heads=4, num_key_value_heads=4 if name in ("minicpm3", "youtu") else 2, **fields),
    )
    config = transformers.AutoConfig.for_model(name, **{k: v for k, v in given.items() if k != "model_type"})
    ropes = config.rope_parameters.get("full_attention", config.rope_parameters)
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    latent = getattr(config, "kv_lora_rank", None)
    head_dim = latent + config.qk_rope_head_dim if latent else getattr(config, "head_dim", None) or 48
    # A model without layer_types has the window in every layer.
    windowed = types.count("sliding_attention") if types else 30 if window else 0
    expected = dict(
        rmsNormEps=config.rms_norm_eps,
        ropeTheta=ropes["rope_theta"],
        headDimK=head_dim,
        numWindowLayers=windowed,
        **(dict(slidingWindow=window) if windowed else {}),
    )
    keys = {}
    for key in DEFAULT_KEYS:
        # transformers does not read the first, and computes the second.
        unread = (("gemma3_text", "attn_logit_softcapping"), ("minicpm3", "logits_scaling"))
        if (name, key) not in unread and hasattr(config, key):
            keys[key] = getattr(config, key)
    if "hidden_activation" in keys:
        keys.pop("hidden_act", None)
    if ropes.get("partial_rotary_factor", 1) != 1:
        keys["partial_rotary_factor"] = ropes["partial_rotary_factor"]
    return dict(config=given, expected=expected, keys=keys)


if len(sys.argv) == 1 or "defaults" in sys.argv[1:]:
    names = "llama qwen2 qwen3 mistral ministral phi3 gemma gemma2 gemma3_text olmo2 olmo3 granite smollm3 exaone4 glm4 helium"
    rows = [defaults(name) for name in (names + " seed_oss ernie4_5 arcee diffllama minicpm3 youtu").split()]
    rows += [defaults(name, use_sliding_window=True) for name in ("qwen2", "qwen3", "smollm3")]
    (OUT.parent / "architecture_defaults.json").write_text(json.dumps(rows, indent=1) + "\n")
