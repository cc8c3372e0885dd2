"""Attention by PyTorch, as JSON figures of this bench on stdout: python torch_attention.py --folder FOLDER --bound BOUND [--quick | --tiny]

Decode and causal prefill at 32/4/16 and 32/16/16 heads by
  - scaled_dot_product_attention with its flash and cuDNN backends. They have one head count for K and V. K is copied to
    the heads of V before the timing, so they read a larger cache than DiffQKV;
  - FlexAttention, compiled, with K copied in the same way;
  - FlexHeadFA (pip install flex-head-fa --no-build-isolation), the kernel of the paper, with K unchanged.
Times on a GPU are from CUDA events. Inputs are rotated over more memory than the L2 cache holds. Without a GPU it runs on
the CPU, only to show that it works.

At every shape the output of each peer is compared with a float32 reference before the timing. The inputs are the bf16
numbers of the files q, k and v in FOLDER, repeated over [batch, length, heads, dim]. The reference is also written to
FOLDER, to be compared with the output of diffqkv for the same inputs. Of a prefill, 64 queries are compared.
"""
import argparse
import json
import math
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

ROTATED_BYTES = 512 * 2**20
HEADS = [(32, 4, 16), (32, 16, 16)]
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
COMPARED_ROWS = 64
missing = {}


def spread_heads(x, num_heads):
    """[batch, heads, length, dim] with each head repeated to num_heads heads."""
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)


def repeated(numbers, shape):
    """Repeats the numbers over [batch, length, heads, dim] and returns them as [batch, heads, length, dim]."""
    count = math.prod(shape)
    return numbers.repeat(-(-count // len(numbers)))[:count].view(shape).transpose(1, 2).contiguous()


def reference(q, k, v, rows, causal):
    """The outputs of some queries in float32: [batch, rows, heads, dim]. One head at a time, to save memory."""
    (batch, num_heads, q_len, dim), kv_len = q.shape, k.shape[2]
    out = torch.empty(batch, len(rows), num_heads, dim, device=q.device)
    last_seen = kv_len - q_len + torch.tensor(rows, device=q.device)
    hidden = torch.arange(kv_len, device=q.device) > last_seen[:, None]
    for i in range(batch):
        for head in range(num_heads):
            keys, values = (x[i, head * x.shape[1] // num_heads].float() for x in (k, v))
            scores = q[i, head, rows].float() @ keys.T / dim**0.5
            if causal:
                scores = scores.masked_fill(hidden, float("-inf"))
            out[i, :, head] = scores.softmax(-1) @ values
    return out


def vector_error(got, expected):
    """The largest error of an output vector (of one head of one query), relative to its length."""
    return ((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


class Sdpa:
    def __init__(self, backend):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        self.context = lambda: sdpa_kernel(getattr(SDPBackend, backend))

    def prepare(self, q, k, v):
        return q, spread_heads(k, v.shape[1]).contiguous(), v

    def __call__(self, q, k, v, causal):
        with self.context():
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


class Flex:
    shapes = None

    def __init__(self):
        from torch.nn.attention import flex_attention as module

        self.module = module

    def prepare(self, q, k, v):
        if self.shapes != (q.shape, k.shape, v.shape):  # beyond a number of shapes, it would run uncompiled
            torch._dynamo.reset()
            flex_attention = self.module.flex_attention
            self.compiled = torch.compile(flex_attention, dynamic=False) if ON_GPU else flex_attention
            self.masks = {}
            self.shapes = (q.shape, k.shape, v.shape)
        return q, spread_heads(k, v.shape[1]).contiguous(), v

    def __call__(self, q, k, v, causal):
        mask = self.causal_mask(q.shape[2], k.shape[2]) if causal else None
        return self.compiled(q, k, v, block_mask=mask, enable_gqa=True)

    def causal_mask(self, q_len, kv_len):
        if (q_len, kv_len) not in self.masks:
            rule = lambda batch, head, q_idx, kv_idx: q_idx >= kv_idx
            self.masks[q_len, kv_len] = self.module.create_block_mask(rule, None, None, q_len, kv_len, device=DEVICE)
        return self.masks[q_len, kv_len]


class FlexHeadFa:
    """K and V with different head counts, as [batch, length, heads, dim]."""

    def __init__(self):
        import flex_head_fa

        self.module = flex_head_fa

    def prepare(self, q, k, v):
        return tuple(x.transpose(1, 2).contiguous() for x in (q, k, v))

    def __call__(self, q, k, v, causal):
        if q.shape[1] == 1:  # the kernel that splits the keys
            out = self.module.flash_attn_with_kvcache(q, k, v, causal=False)
        else:
            out = self.module.flash_attn_func(q, k, v, causal=causal)
        return out.transpose(1, 2)


class Plain:
    """The default backend of scaled_dot_product_attention, for a run without a GPU."""

    def prepare(self, q, k, v):
        return tuple(spread_heads(x, q.shape[1]).contiguous() for x in (q, k, v))

    def __call__(self, q, k, v, causal):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


PEERS = {
    "PyTorch SDPA flash": lambda: Sdpa("FLASH_ATTENTION"),
    "PyTorch SDPA cuDNN": lambda: Sdpa("CUDNN_ATTENTION"),
    "PyTorch FlexAttention": Flex,
    "FlexHeadFA": FlexHeadFa,
    **({} if ON_GPU else {"PyTorch SDPA on the CPU": Plain}),
}


def milliseconds(call, sets, rounds, calls):
    """A sample is the mean of `calls` calls that are queued together and alternate between the inputs."""
    samples = []
    for number in range(rounds + 2):
        if ON_GPU:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for i in range(calls):
                call(*sets[(number * calls + i) % len(sets)])
            end.record()
            end.synchronize()
            ms = start.elapsed_time(end)
        else:
            since = time.perf_counter()
            for i in range(calls):
                call(*sets[(number * calls + i) % len(sets)])
            ms = (time.perf_counter() - since) * 1e3
        if number >= 2:
            samples.append(ms / calls)
    return samples


def stats(samples):
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples), "count": len(samples)}


class Case:
    """One shape: its bytes and FLOPs, the inputs of the comparison, and the reference output."""

    def __init__(self, heads, dim, batch, q_len, kv_len, numbers):
        self.heads, self.dim, self.batch, self.q_len, self.kv_len = heads, dim, batch, q_len, kv_len
        self.is_decode = q_len == 1
        num_q_heads, num_k_heads, num_v_heads = heads
        self.cache_bytes = batch * kv_len * (num_k_heads + num_v_heads) * dim * 2
        self.flops = 4 * batch * num_q_heads * dim * (kv_len if self.is_decode else q_len * (q_len + 1) / 2)
        shapes = zip("qkv", (q_len, kv_len, kv_len), heads)
        self.inputs = [repeated(numbers[name], (batch, length, count, dim)) for name, length, count in shapes]
        steps = min(COMPARED_ROWS, q_len)
        self.rows = [round(i * (q_len - 1) / max(1, steps - 1)) for i in range(steps)]
        self.expected = reference(*self.inputs, self.rows, not self.is_decode)

    def description(self):
        what, heads_name = "decode" if self.is_decode else "prefill", "/".join(map(str, self.heads))
        return {
            "name": f"{what} attention {heads_name} x {self.dim}, {self.kv_len} tokens, batch {self.batch}",
            "group": f"peers: attention {what}",
            "at": {"heads": heads_name, "dim": self.dim, "prefix": self.kv_len, "batch": self.batch},
            # The bytes that DiffQKV must read. A peer can read more.
            **({"bytes": self.cache_bytes} if self.is_decode else {"flops": self.flops}),
        }

    def random_inputs(self):
        for length, count in zip((self.q_len, self.kv_len, self.kv_len), self.heads):
            yield torch.randn(self.batch, count, length, self.dim, device=DEVICE).to(torch.bfloat16)


def measure(name, peer, case, bound, rounds, calls):
    """Its figure, and the error of its output."""
    is_decode = case.is_decode
    call = lambda *args: peer(*args, causal=not is_decode)
    sets = [peer.prepare(*case.inputs)]
    error = vector_error(call(*sets[0])[:, :, case.rows].transpose(1, 2).float(), case.expected)
    if not error <= bound:
        raise RuntimeError(f"its output is wrong by {error}")
    if is_decode and ON_GPU:
        copies = min(16, ROTATED_BYTES // case.cache_bytes)
        sets += [peer.prepare(*case.random_inputs()) for _ in range(copies - 1)]
    ms = stats(milliseconds(call, sets, rounds, calls))
    amount = case.cache_bytes if is_decode else case.flops
    rate = lambda value: amount / value / (1e6 if is_decode else 1e9)
    about = case.description()
    return {
        **about,
        "name": f"{about['name']}: {name}",
        "value": rate(ms["median"]),
        "unit": "GB/s" if is_decode else "TFLOP/s",
        "better": "more",
        "limit": None,
        "limitName": "not measured",
        "share": None,
        "target": None,
        "met": None,
        "samples": {"ms": ms, "rate": {**ms, "median": rate(ms["median"]), "min": rate(ms["max"]), "max": rate(ms["min"])}},
        "at": {"who": name, **about["at"]},
    }, error


def cases(size):
    """(q_len, kv_len, batch)."""
    if size == "tiny":
        return [(1, 256, 1), (1, 512, 2), (128, 128, 1)]
    lengths = [2048, 4096, 16384, 32768, 65536, 131072]
    if size == "quick":
        return [(1, 2048, 1), (1, 32768, 1), (1, 4096, 16), (2048, 2048, 1)]
    # The largest batch with two copies of the 32/16/16 x 128 cache below 16 GiB.
    decode = [(1, n, batch) for n in lengths for batch in (1, 4, 16, 32) if n * batch <= 2**21]
    return decode + [(n, n, 1) for n in (512, 2048, 8192, 32768)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--bound", type=float, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    size = "tiny" if args.tiny else "quick" if args.quick else "all"
    rounds, calls = (2, 1) if size == "tiny" else (7, 5 if size == "quick" else 20)
    if not ON_GPU and size != "tiny":
        print("no GPU: --tiny is all that makes sense here", file=sys.stderr)
        return 1
    torch.manual_seed(1)
    peers = {}
    for name, make in PEERS.items():
        try:
            peers[name] = make()
        except Exception as error:  # not installed, not built, or not in this version
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    read = lambda name: torch.frombuffer(bytearray(open(os.path.join(args.folder, name), "rb").read()), dtype=torch.int16)
    numbers = {name: read(name).view(torch.bfloat16).to(DEVICE) for name in "qkv"}
    figures, failures, compared, errors = [], {}, [], {}
    with torch.inference_mode():
        for q_len, kv_len, batch in cases(size):
            for dim in (64, 128):
                for heads in HEADS:
                    case = Case(heads, dim, batch, q_len, kv_len, numbers)
                    file = f"expected-{len(compared)}"
                    with open(os.path.join(args.folder, file), "wb") as out:
                        out.write(case.expected.cpu().numpy().tobytes())
                    compared.append({**case.description(), "qLen": q_len, "rows": case.rows, "file": file})
                    for name, peer in peers.items():
                        where = f"{heads} x {dim}, {q_len} on {kv_len}, batch {batch}"
                        try:
                            figure, error = measure(name, peer, case, args.bound, rounds, 1 if q_len > 1 else calls)
                            figures.append(figure)
                            errors[name] = max(error, errors.get(name, 0))
                            print(f"{name}: {where}", file=sys.stderr)
                        except Exception as error:  # measure the other cases if a backend rejects one
                            reason = (str(error) or type(error).__name__).splitlines()[0]
                            failures.setdefault(name, f"{where}: {reason}")
                            print(f"{name} fails at {where}: {reason}", file=sys.stderr)
                        if ON_GPU:
                            torch.cuda.empty_cache()
    measured = {figure["at"]["who"] for figure in figures}
    states = []
    for name in PEERS:
        reason = missing.get(name) or failures.get(name)
        state = {"name": name, "version": torch.__version__, "status": "measured" if name in measured else "missing"}
        states.append({**state, "reason": reason} if reason else state)
    device = torch.cuda.get_device_name() if ON_GPU else "CPU"
    answer = {"version": torch.__version__, "device": device, "peers": states, "figures": figures}
    print(json.dumps({**answer, "cases": compared, "errors": errors}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
