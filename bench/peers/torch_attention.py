"""Attention by PyTorch, as JSON figures of this bench on stdout: python torch_attention.py [--quick | --tiny]

Decode and causal prefill at 32/4/16 and 32/16/16 heads by
  - scaled_dot_product_attention, its flash and its cuDNN backend. They know one head count for K and V: K is copied up
    to V's heads beforehand, outside the timing, so they read a larger cache than DiffQKV does;
  - FlexAttention, compiled, with K copied up in the same way;
  - FlexHeadFA (pip install flex-head-fa --no-build-isolation), the paper's kernel, with K as it is.
On a GPU by CUDA events, with inputs rotated over more memory than the L2 cache holds. Without a GPU it measures the CPU:
that shows that it runs, and no more.
"""
import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

ROTATED_BYTES = 512 * 2**20
HEADS = [(32, 4, 16), (32, 16, 16)]
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
missing = {}


def spread_heads(x, num_heads):
    """[batch, heads, length, dim] with each head repeated, so that there are num_heads."""
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)


def reference(q, k, v, causal):
    """In float32, over [batch, heads, length, dim]."""
    q, k, v = q.float(), spread_heads(k, q.shape[1]).float(), spread_heads(v, q.shape[1]).float()
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(k.shape[-2] - q.shape[-2])
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


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
        if self.shapes != (q.shape, k.shape, v.shape):  # past a number of shapes, an old one would be left uncompiled
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
    """K and V with head counts of their own, as [batch, length, heads, dim]."""

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
    """Whatever scaled_dot_product_attention picks, for a run without a GPU."""

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
    """A sample is the mean of `calls` calls queued together, each on the next of the inputs."""
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


def measure(name, peer, heads, dim, batch, q_len, kv_len, rounds, calls):
    num_q_heads, num_k_heads, num_v_heads = heads
    is_decode = q_len == 1
    element_bytes = 2
    made = lambda num_heads, length: torch.randn(batch, num_heads, length, dim, device=DEVICE).to(torch.bfloat16)
    cache_bytes = batch * kv_len * (num_k_heads + num_v_heads) * dim * element_bytes
    copies = max(1, min(16, ROTATED_BYTES // cache_bytes)) if is_decode and ON_GPU else 1
    sets = []
    for i in range(copies):
        q, k, v = made(num_q_heads, q_len), made(num_k_heads, kv_len), made(num_v_heads, kv_len)
        prepared = peer.prepare(q, k, v)
        sets.append(prepared)
        if i == 0 and kv_len <= 4096:  # beyond it, the reference's scores would be too large
            got = peer(*prepared, causal=not is_decode).float()
            error = (got - reference(q, k, v, not is_decode)).abs().max().item()
            if not error < 0.05:
                raise RuntimeError(f"its output is wrong by {error}")
    ms = stats(milliseconds(lambda *args: peer(*args, causal=not is_decode), sets, rounds, calls))
    flops = 4 * batch * num_q_heads * dim * (kv_len if is_decode else q_len * (q_len + 1) / 2)
    heads_name = "/".join(map(str, heads))
    amount = cache_bytes if is_decode else flops
    rate = lambda value: amount / value / (1e6 if is_decode else 1e9)
    return {
        "name": f"{'decode' if is_decode else 'prefill'} attention {heads_name} x {dim}, "
        f"{kv_len} tokens, batch {batch}: {name}",
        "value": rate(ms["median"]),
        "unit": "GB/s" if is_decode else "TFLOP/s",
        "better": "more",
        "limit": None,
        "limitName": "",
        "share": None,
        "target": None,
        "met": None,
        "samples": {"ms": ms, "rate": {**ms, "median": rate(ms["median"]), "min": rate(ms["max"]), "max": rate(ms["min"])}},
        "group": f"peers: attention {'decode' if is_decode else 'prefill'}",
        "at": {"who": name, "heads": heads_name, "dim": dim, "prefix": kv_len, "batch": batch},
        # The bytes that DiffQKV must read, whatever the peer reads.
        **({"bytes": cache_bytes} if is_decode else {"flops": flops}),
    }


def cases(size):
    """(q_len, kv_len, batch)."""
    if size == "tiny":
        return [(1, 256, 1), (1, 512, 2), (128, 128, 1)]
    lengths = [2048, 4096, 16384, 32768, 65536, 131072]
    if size == "quick":
        return [(1, 2048, 1), (1, 32768, 1), (1, 4096, 16), (2048, 2048, 1)]
    # As many sequences as keep the cache of 32/16/16 x 128 below 16 GiB, in two copies.
    decode = [(1, n, batch) for n in lengths for batch in (1, 4, 16, 32) if n * batch <= 2**21]
    return decode + [(n, n, 1) for n in (512, 2048, 8192, 32768)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    figures, failures = [], {}
    with torch.inference_mode():
        for q_len, kv_len, batch in cases(size):
            for dim in (64, 128):
                for heads in HEADS:
                    for name, peer in peers.items():
                        where = f"{heads} x {dim}, {q_len} on {kv_len}, batch {batch}"
                        try:
                            figures.append(measure(name, peer, heads, dim, batch, q_len, kv_len, rounds, 1 if q_len > 1 else calls))
                            print(f"{name}: {where}", file=sys.stderr)
                        except Exception as error:  # one case that a backend refuses is no reason to lose the others
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
    print(json.dumps({"version": torch.__version__, "device": device, "peers": states, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
