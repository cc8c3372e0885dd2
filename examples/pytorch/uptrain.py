"""Trains what `diffqkv convert` wrote, on a CPU or GPU:

    python uptrain.py FEWER-K TRAINED --text train.txt --held-out held-out.txt --teacher models/sigma-tldr

Blank lines separate the documents of a text. With --teacher the loss is the cross-entropy with the
probabilities of that model (distillation), else with the text's tokens. Prints the mean loss per
token of the held-out text before and after. TRAINED gets the tokenizer of FEWER-K.
"""

import argparse
import math
import random
import re
import shutil
import time
from pathlib import Path

import torch
import transformers
from modeling_diffqkv import SigmaForCausalLM
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy


def read_documents(path, tokenizer, config):
    """One list of tokens for each document: <begin of text> document <end of text>."""
    texts = re.split(r"\n{2,}", Path(path).read_text(encoding="utf-8").rstrip())
    documents = [tokenizer.encode(text + "\n", add_special_tokens=False).ids for text in texts]
    return [[config.bos_token_id, *tokens, config.eos_token_id] for tokens in documents]


def windows_of(documents, size):
    """The documents in a row, cut into [windows, size]. The rest is left out."""
    stream = torch.tensor([token for document in documents for token in document])
    if len(stream) < size:
        raise SystemExit(f"the text has {len(stream)} tokens, less than one window of {size}")
    return stream[: len(stream) // size * size].view(-1, size)


@torch.no_grad()
def mean_loss(model, documents):
    """Nats per token, without the first token of each document."""
    model.eval()
    total = count = 0
    for document in documents:
        tokens = torch.tensor([document], device=model.device)
        total += model(tokens, labels=tokens).loss.item() * (len(document) - 1)
        count += len(document) - 1
    return total / count


def batch_loss(model, teacher, tokens):
    if teacher is None:
        return model(tokens, labels=tokens).loss
    with torch.no_grad():
        targets = teacher(tokens, use_cache=False).logits.softmax(-1)
    return cross_entropy(model(tokens).logits.flatten(0, 1), targets.flatten(0, 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("--text", required=True, help="what to train on")
    parser.add_argument("--held-out", required=True, help="what to measure on")
    parser.add_argument("--teacher", help="the model before the conversion")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4, help="windows per step (default: 4)")
    parser.add_argument("--window", type=int, default=256, help="tokens of a window (default: 256)")
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate (default: 5e-4)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    shuffler = random.Random(args.seed)
    transformers.logging.disable_progress_bar()

    load = lambda directory: SigmaForCausalLM.from_pretrained(directory, dtype=torch.float32).to(args.device)
    model = load(args.model)
    teacher = load(args.teacher).eval() if args.teacher else None
    tokenizer = Tokenizer.from_file(str(Path(args.model) / "tokenizer.json"))
    windows = windows_of(read_documents(args.text, tokenizer, model.config), args.window)
    held_out = read_documents(args.held_out, tokenizer, model.config)
    print(f"held-out loss before: {mean_loss(model, held_out):.4f}", flush=True)

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    warmup = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
    )
    model.train()
    queue, start = [], time.time()
    for step in range(args.steps):
        while len(queue) < args.batch:
            queue += shuffler.sample(range(len(windows)), len(windows))
        loss = batch_loss(model, teacher, windows[queue[: args.batch]].to(args.device))
        queue = queue[args.batch :]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            print(f"step {step + 1}: training loss {loss.item():.4f}, {time.time() - start:.0f} s", flush=True)
    num_tokens = args.steps * args.batch * args.window
    print(f"{args.steps} steps, {num_tokens} tokens, {time.time() - start:.0f} s, {time.process_time():.0f} s of CPU")
    print(f"held-out loss after: {mean_loss(model, held_out):.4f}")

    model.save_pretrained(args.output)
    for path in Path(args.model).glob("tokenizer*.json"):
        shutil.copy(path, args.output)


if __name__ == "__main__":
    main()
