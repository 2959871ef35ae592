"""Accelerators as a step-time description needs them: peaks from datasheets, achieved fractions from measurements.

Peaks. NVIDIA datasheets of the product named in `source`: dense (not sparse) bfloat16 tensor throughput, memory
bandwidth, and one direction of the GPU-to-GPU link (half the quoted bidirectional figure). Memory is what
``nvidia-smi --query-gpu=memory.total`` reports for the part, since that is what an engine divides up.

Achieved fractions for A100, H100 and A40 are fitted to 1010 profiled kernel medians of Microsoft Vidur (MIT licence;
``vidur_linear_times.csv`` of the reference data, summarised in its research sheet, section 3): all linear layers of 8
models at TP 1-8 and 1-16384 tokens, mean error 3.5 %, 3.5 % and 4.4 %. All-reduce: the same node profiles. KV-read and
prefill attention fractions: the A100 attention profiles (8B: KV at 1.67 TB/s, FlashInfer prefill at 142 TFLOP/s). Every
other device takes the fractions of the nearest measured one; `measured` says which. PCIe links have the fraction and
latency of NVLink: an assumption.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxsched.timing.names import lookup

MIB = 1 << 20


@dataclass(frozen=True)
class DeviceSpec:
    """One accelerator and what fraction of its peaks serving kernels reach."""

    name: str
    source: str
    measured: str  # which device's measurements the achieved fractions come from
    peak_flops: float  # dense bfloat16, FLOP/s
    bandwidth: float  # HBM, bytes/s
    memory_bytes: int
    link_bandwidth: float  # to another GPU of the node, one direction, bytes/s
    weight_read_fraction: float  # of bandwidth, streaming weights
    matmul_fraction: float  # of peak_flops, at many tokens
    matmul_half_tokens: float  # tokens at which matmuls reach half of that: time ~ tokens + this
    layer_overhead_us: float  # per layer and step: kernel floors of linear layers and norms
    kv_read_fraction: float = 0.78  # of bandwidth, decode attention
    attention_overhead_us: float = 24.0  # per layer and step: floor of the attention kernels (A100, 8B: 0.77 ms / 32)
    prefill_attention_fraction: float = 0.45  # of peak_flops, causal attention of a long prompt
    link_fraction: float = 0.58  # of link_bandwidth, ring all-reduce of large messages
    link_latency_us: float = 50.0  # one all-reduce or send, launch included


_A100: dict[str, Any] = dict(
    measured="A100", weight_read_fraction=0.761, matmul_fraction=0.749, matmul_half_tokens=58.0, layer_overhead_us=36.0
)
_H100: dict[str, Any] = dict(
    measured="H100", weight_read_fraction=0.857, matmul_fraction=0.739, matmul_half_tokens=58.0, layer_overhead_us=31.0,
    link_fraction=0.75,
)  # fmt: skip
_A40: dict[str, Any] = dict(
    measured="A40", weight_read_fraction=0.756, matmul_fraction=0.793, matmul_half_tokens=73.0, layer_overhead_us=23.0
)

_DEVICES = [
    DeviceSpec("a100-80g", "A100 80GB SXM", peak_flops=312e12, bandwidth=2039e9, memory_bytes=81920 * MIB,
               link_bandwidth=300e9, **_A100),
    DeviceSpec("a100-40g", "A100 40GB SXM", peak_flops=312e12, bandwidth=1555e9, memory_bytes=40960 * MIB,
               link_bandwidth=300e9, **_A100),
    DeviceSpec("h100", "H100 80GB SXM", peak_flops=989e12, bandwidth=3350e9, memory_bytes=81559 * MIB,
               link_bandwidth=450e9, **_H100),
    DeviceSpec("h200", "H200 141GB SXM", peak_flops=989e12, bandwidth=4800e9, memory_bytes=143771 * MIB,
               link_bandwidth=450e9, **_H100),
    DeviceSpec("a10", "A10 24GB PCIe", peak_flops=125e12, bandwidth=600e9, memory_bytes=23028 * MIB,
               link_bandwidth=32e9, **_A40),
    DeviceSpec("l40s", "L40S 48GB PCIe", peak_flops=362e12, bandwidth=864e9, memory_bytes=46068 * MIB,
               link_bandwidth=32e9, **_A40),
    DeviceSpec("a40", "A40 48GB PCIe", peak_flops=149.7e12, bandwidth=696e9, memory_bytes=46068 * MIB,
               link_bandwidth=32e9, **_A40),
    DeviceSpec("b200", "HGX B200 180GB, 1000 W", peak_flops=2250e12, bandwidth=8000e9, memory_bytes=183359 * MIB,
               link_bandwidth=900e9, **_H100),
]  # fmt: skip

DEVICES = {device.name: device for device in _DEVICES}

_ALIASES = {
    "a100": "a100-80g",
    "a100-80gb": "a100-80g",
    "a100-sxm": "a100-80g",
    "a100-40gb": "a100-40g",
    "h100-sxm": "h100",
    "h100-80gb": "h100",
    "h200-sxm": "h200",
}


def find_device(name: str) -> DeviceSpec:
    """The device `name` means.

    Raises:
        UserError: unknown, with the nearest known names.
    """
    return lookup("device", name, DEVICES, _ALIASES)


def list_devices() -> list[str]:
    """Canonical names of the described devices."""
    return list(DEVICES)
