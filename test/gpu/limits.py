"""What the card allows by PyTorch's own kernels, as JSON lines: python3 limits.py [--device cuda|cpu] [--seconds N]

Copy and read bandwidth of the card's memory, bf16 products (torch.matmul), and scaled_dot_product_attention by its flash
and cuDNN backends at Sigma's attention shapes. SDPA has one head count for K and V, so K is copied up to V's heads before
the timing. All inputs are random. On a GPU the time is that of CUDA events around a graph of many calls, which take their
inputs in turn from more memory than the L2 cache holds. --device cpu shows that the script runs, at small sizes.

A line has "limit", "value", "unit", and "us" for a call. A limit that cannot be measured has "skipped" with the reason.
"""

import argparse
import json
import math
import statistics
import sys
import time

STARTED = time.monotonic()  # importing PyTorch takes seconds, which count

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

parser = argparse.ArgumentParser()
parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
parser.add_argument("--seconds", type=float, default=30)
args = parser.parse_args()
GPU = args.device == "cuda"
DEADLINE = STARTED + args.seconds
ROTATED_BYTES = 256 * 2**20 if GPU else 2**20
ROUNDS = 7


def emit(limit, **fields):
    print(json.dumps({"limit": limit, **fields}), flush=True)


def copies(bytes_of_one):
    """How many input sets exceed the L2 cache together."""
    return max(2, min(64, math.ceil(ROTATED_BYTES / bytes_of_one)))


def microseconds(call, inputs):
    """The median time of one call. `inputs`: argument tuples, taken in turn."""

    def run():
        for values in inputs:
            call(*values)

    if not GPU:
        run()
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e6)
        return statistics.median(times) / len(inputs)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which has made the inputs
    with torch.cuda.stream(stream):  # warms up outside of the capture: libraries create their handles and plans
        for values in inputs[:3]:
            call(*values)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    graph.replay()
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times) / len(inputs)


def measure(limit, unit, amount, make, headline=False):
    """Times make()'s (call, inputs). The value is `amount` (bytes or FLOPs) per second, in GB/s or TFLOP/s."""
    if time.monotonic() > DEADLINE:
        emit(limit, skipped="no time left")
        return
    try:
        us = microseconds(*make())
        value = amount / us / (1e3 if unit == "GB/s" else 1e6)
        emit(limit, value=round(value, 1), unit=unit, us=round(us, 2), headline=headline)
    except Exception as error:  # one limit that fails must not hide the others
        emit(limit, skipped=f"{type(error).__name__}: {error}".splitlines()[0][:200])
    if GPU:
        torch.cuda.empty_cache()


def random(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device=args.device, dtype=dtype)


def memory():
    size = 2**32 if GPU else 2**22

    def copy():
        source = random(size // 4, dtype=torch.float32)
        return torch.Tensor.copy_, [(torch.empty_like(source), source)] * 2

    def read():
        source = random(size // 4, dtype=torch.float32)
        out = torch.empty((), device=args.device)
        return lambda: torch.sum(source, 0, out=out), [()] * 2

    measure("device copy", "GB/s", 2 * size, copy, headline=True)
    measure("device read", "GB/s", size, read, headline=True)


def product(m, k, n, headline=False):
    def make():
        x = random(m, k)
        out = torch.empty(m, n, device=args.device, dtype=torch.bfloat16)
        weights = [random(n, k) for _ in range(copies(2 * n * k))]
        return lambda w: torch.matmul(x, w.T, out=out), [(w,) for w in weights]

    bound_by_memory = m <= 16
    amount = 2 * k * n if bound_by_memory else 2 * m * k * n
    measure(f"matmul {m} x {k} -> {n}", "GB/s" if bound_by_memory else "TFLOP/s", amount, make, headline)


def attention(heads, dim, batch, q_len, kv_len, backend, headline=False):
    num_q_heads, num_k_heads, num_v_heads = heads

    def spread(x, num_heads):
        return x.repeat_interleave(num_heads // x.shape[1], dim=1)

    def call(q, k, v):
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(q, k, v, is_causal=q_len > 1, enable_gqa=q.shape[1] != k.shape[1])

    def inputs(num_kv_heads):
        k = random(batch, num_k_heads, kv_len, dim)
        v = random(batch, num_v_heads, kv_len, dim)
        return random(batch, num_q_heads, q_len, dim), spread(k, num_kv_heads), spread(v, num_kv_heads)

    # A backend that wants as many K and V heads as Q heads gets them.
    num_kv_heads = num_v_heads
    try:
        if time.monotonic() < DEADLINE:
            call(*inputs(num_kv_heads))
    except RuntimeError:
        num_kv_heads = num_q_heads
    short = {"FLASH_ATTENTION": "flash", "CUDNN_ATTENTION": "cuDNN", "MATH": "math"}[backend.name]
    what = "decode" if q_len == 1 else "prefill"
    name = f"{short} {what} {num_q_heads}/{num_kv_heads}/{num_kv_heads} x {dim}, {kv_len} tokens, batch {batch}"
    cache_bytes = 2 * batch * kv_len * 2 * num_kv_heads * dim
    flops = 4 * batch * num_q_heads * dim * q_len * (q_len + 1) / 2
    make = lambda: (call, [inputs(num_kv_heads) for _ in range(copies(cache_bytes))])
    measure(name, *(("GB/s", cache_bytes) if q_len == 1 else ("TFLOP/s", flops)), make, headline)


def on_gpu():
    """The most telling first: time may run out."""
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    heads = (32, 4, 16)
    product(8192, 8192, 8192, headline=True)
    for dim in (64, 128):
        for backend in backends:
            attention(heads, dim, 1, 4096, 4096, backend, headline=True)
            attention(heads, dim, 1, 1, 32768, backend, headline=True)
    for size in (2048, 4096):
        product(size, size, size)
    for m in (1, 8, 16, 512, 4096):
        for k, n in ((2048, 6144), (6144, 2048), (4096, 14336), (14336, 4096), (4096, 128256)):
            if n < 100000 or m <= 16:
                product(m, k, n)
    for dim in (64, 128):
        for backend in backends:
            for kv_len in (512, 16384, 32768):
                attention(heads, dim, 1, kv_len, kv_len, backend)
            for batch, kv_len in ((1, 2048), (1, 8192), (1, 131072), (8, 32768), (32, 8192)):
                attention(heads, dim, batch, 1, kv_len, backend)


def on_cpu():
    product(64, 64, 64)
    product(1, 64, 128)
    attention((8, 2, 4), 64, 1, 1, 128, SDPBackend.MATH)
    attention((8, 2, 4), 64, 1, 64, 64, SDPBackend.MATH)


if GPU and not torch.cuda.is_available():
    sys.exit("limits.py: PyTorch sees no GPU")
emit("PyTorch", version=torch.__version__, device=torch.cuda.get_device_name() if GPU else "cpu")
torch.manual_seed(0)
if not GPU:
    torch.set_num_threads(1)
memory()
if GPU:
    on_gpu()
else:
    on_cpu()
