"""Writes test/model/architectures: small checkpoints of public architectures with random weights,
and the answers of Hugging Face transformers in float64.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors
    venv/bin/python test/tools/make_architecture_fixtures.py

A folder has config.json, model.safetensors (bf16) and expected.json, which has the variants of the
checkpoint: fields that replace those of config.json, with the answers for them. Biases, norms and
factors are random, so that a part that is left out changes the answers.
"""

import json
import pathlib
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


FIXTURES = {
    "llama-bias": (
        transformers.LlamaConfig(**COMMON, head_dim=8, attention_bias=True, mlp_bias=True),
        {"": {}},
    ),
    "llama-rope": (
        transformers.LlamaConfig(**{**COMMON, "num_hidden_layers": 1}, head_dim=8),
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
        },
    ),
    "qwen2": (transformers.Qwen2Config(**COMMON), {"": {}}),
    "qwen3": (
        transformers.Qwen3Config(**COMMON, head_dim=8, attention_bias=True, rms_norm_eps=1e-2),
        {"": {}, "yarn": new_rope(**YARN)},
    ),
}


def random_model(config, seed):
    """In float64, with values that bf16 represents."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            values = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if name.endswith("bias"):
                values = 0.5 * values
            elif "norm" in name:
                values = 1 + 0.3 * values
            elif "embed" not in name:
                values = 1.5 * values / p.shape[1] ** 0.5
            p.copy_(values.bfloat16().double())
    return model.eval()


def digits(values):
    return [float(f"{x:.7g}") for x in values.tolist()]


def answers(model, tokens):
    logits = lambda ids: model(torch.tensor([ids])).logits[0, -1]
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


def write(name, config, variants, seed):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    model = random_model(config, seed)
    save_file(
        {key: value.bfloat16().contiguous() for key, value in model.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config.architectures = [type(model).__name__]
    fields = json.loads(config.to_json_string(use_diff=False))
    del fields["transformers_version"]
    (folder / "config.json").write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(0, 64, (length,), generator=generator).tolist() for length in LENGTHS[-1 if len(variants) > 2 else 0 :]]
    expected = []
    for variant, changes in variants.items():
        with tempfile.TemporaryDirectory() as directory:
            merged = {**fields, **changes}
            merged = {key: value for key, value in merged.items() if value is not None}
            (pathlib.Path(directory) / "config.json").write_text(json.dumps(merged))
            changed = transformers.AutoConfig.from_pretrained(directory)
        other = type(model)._from_config(changed, attn_implementation="eager").double()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            cases = [answers(other.eval(), tokens) for tokens in prompts]
        expected.append(dict(name=variant, config=changes, cases=cases))
    (folder / "expected.json").write_text(json.dumps(dict(variants=expected)) + "\n")
    # Every variant has answers of its own.
    longest = [torch.tensor(e["cases"][-1]["last_logits"]) for e in expected]
    for i, a in enumerate(longest):
        for j, b in enumerate(longest[:i]):
            difference = float((a - b).abs().max() / b.abs().max())
            assert difference > 0.02, (name, expected[i]["name"], expected[j]["name"], difference)


for index, (name, (config, variants)) in enumerate(FIXTURES.items()):
    write(name, config, variants, seed=index + 1)
    print(name, sum(f.stat().st_size for f in (OUT / name).iterdir()), "bytes")
