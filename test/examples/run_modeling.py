"""Runs examples/pytorch/modeling_diffqkv.py for pytorch.test.ts: a JSON list of jobs on stdin, one
line of JSON for each on stdout."""

import json
import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "pytorch"))
from modeling_diffqkv import SigmaForCausalLM  # noqa: E402

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()


def last_logits(model, tokens):
    """At once, and in two parts with a KV cache."""
    model.eval()
    with torch.no_grad():
        whole = model(torch.tensor([tokens])).logits[0, -1]
        first = model(torch.tensor([tokens[:-3]]), use_cache=True)
        rest = model(torch.tensor([tokens[-3:]]), past_key_values=first.past_key_values, use_cache=True)
    return {"logits": whole.tolist(), "cached": rest.logits[0, -1].tolist()}


def run(directory, tokens, output=None, train=False, generate=0):
    model, info = SigmaForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    result = {"missing": sorted(info["missing_keys"]), "unexpected": sorted(info["unexpected_keys"])}
    result.update(last_logits(model, tokens))
    if generate:
        out = model.generate(torch.tensor([tokens]), max_new_tokens=generate, do_sample=False, eos_token_id=-1)
        result["generated"] = out[0, len(tokens) :].tolist()
    if train:
        batch = torch.tensor([tokens])
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        result["loss"] = loss.item()
        result["lossAfter"] = model(batch, labels=batch).loss.item()
        result["trained"] = last_logits(model, tokens)["logits"]
        result["unchanged"] = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    if output:
        model.save_pretrained(output)
    return result


for job in json.load(sys.stdin):
    print(json.dumps(run(**job)), flush=True)
