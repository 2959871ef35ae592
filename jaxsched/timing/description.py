"""Step times from first principles: a model, a device, how they are split, the fractions of peak that kernels reach.

One step of `T` tokens on a TP x PP instance takes::

    host overhead + floors of the layers' kernels
    + max(matmul time of T, reading the weights T touches) + elementwise traffic of T + reading the output head
    + prefill attention (quadratic) + reading the decode rows' KV + all-reduce of T (TP > 1) + stage hand-over (PP > 1)
    + output head of the rows that sample

Mixture of experts: a step multiplies with the active parameters and reads the experts that at least one token chose,
``E * (1 - (1 - k/E)**T)`` of them under uniform routing.

Pipeline stages: the batch is taken as `pp` equal micro-batches, one in each stage (the full pipeline of a loaded
engine). A step is the time in which every micro-batch passes all stages once, so that every row gets its token: the
whole model's time at T / pp tokens plus pp - 1 hand-overs. A lone long prompt on an idle pipeline is therefore
estimated too fast.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxsched.errors import UserError
from jaxsched.timing.capacity import RESERVED_BYTES, KvCapacity, kv_capacity
from jaxsched.timing.devices import DeviceSpec, find_device
from jaxsched.timing.models import ModelSpec, find_model
from jaxsched.timing.names import nearest_hint
from jaxsched.timing.reference import StepFeatures, prefill_quad, step_time_us_reference
from jaxsched.timing.step_time import StepTimeParams
from jaxsched.timing.terms import Terms, table_from_curve

#: Host work per step that the device waits for: about 1 ms (scheduler overhead reported in the Continuum paper).
HOST_OVERHEAD_US = 1000.0
#: Hidden vectors read or written per token and layer by norms, rotary embedding, activation and residual adds: the
#: slope of `norm_rope_add_ms` in Vidur's profiles is 16-22 of them on A100 and H100.
ELEMENTWISE_VECTORS = 20
#: Largest token count the table is made for; beyond it the last slope goes on.
MAX_TABLE_TOKENS = 65536
#: Causal (query, key) pairs in one unit of prefill_quad: n * (2 * before + n) / 64 of n * (before + n / 2).
PAIRS_PER_QUAD = 32

_OVERRIDES = [field.name for field in dataclasses.fields(DeviceSpec) if field.type == "float"]


@dataclass(frozen=True)
class StepTime:
    """A step-time model ready for use, however it was made."""

    terms: Terms
    source: str  # where the coefficients come from, one line
    model: ModelSpec | None = None
    device: DeviceSpec | None = None
    tp: int = 1
    pp: int = 1

    @cached_property
    def params(self) -> StepTimeParams:
        """The int32 coefficients the simulator runs on."""
        return self.terms.quantise()

    def capacity(
        self, block_size: int = 16, gpu_memory_utilization: float = 0.9, reserved_bytes: int = RESERVED_BYTES
    ) -> KvCapacity:
        """The KV pool beside the weights.

        Raises:
            UserError: the model or device is not described, or nothing fits.
        """
        if self.model is None or self.device is None:
            raise UserError(
                "the KV capacity cannot be derived: the coefficients do not name a described model and device",
                where=self.source,
                hint="Give the number of KV blocks explicitly.",
            )
        return kv_capacity(
            self.model, self.device, tp=self.tp, pp=self.pp, block_size=block_size,
            gpu_memory_utilization=gpu_memory_utilization, reserved_bytes=reserved_bytes,
        )  # fmt: skip

    def kv_blocks(self, block_size: int = 16, gpu_memory_utilization: float = 0.9) -> int:
        """Number of KV blocks; see `capacity` for the arithmetic."""
        return self.capacity(block_size, gpu_memory_utilization).num_blocks

    def with_host_overhead(self, extra_us: float) -> StepTime:
        """The same with `extra_us` more per step (recorded kernel times usually exclude the host's work)."""
        terms = dataclasses.replace(self.terms, base_us=self.terms.base_us + extra_us)
        return dataclasses.replace(self, terms=terms, source=f"{self.source}, + {extra_us:g} us host overhead")

    def duration_us(self, features: StepFeatures) -> int:
        """Duration of one step in microseconds, as the simulator computes it."""
        return step_time_us_reference(self.params, features)

    def explain(self) -> str:
        """What the model is, its terms and a few step times, as text."""
        terms = self.terms
        lines = [
            f"step time: {self.source}",
            f"  fixed {terms.base_us / 1e3:.2f} ms; table over total tokens, {len(terms.token_start)} segments,"
            f" {terms.token_tile_us / 1e3:.3g} ms per further tile of 128",
            f"  per prefill row {terms.prefill_row_us:.2f} us, per decode row {terms.decode_row_us:.2f} us,"
            f" per prefill token {terms.prefill_token_us:.2f} us",
            f"  prefill attention {terms.quad_us / PAIRS_PER_QUAD * 1e3:.3g} ns per causal pair,"
            f" KV read {terms.ctx_us:.3g} us per context token",
        ]
        for label, features in _EXAMPLES.items():
            lines.append(f"  {label}: {self.duration_us(features) / 1e3:.2f} ms")
        if self.model is not None and self.device is not None:
            try:
                lines.append(f"  KV capacity {self.capacity().explanation}")
            except UserError as error:
                lines.append(f"  KV capacity: {error}")
        return "\n".join(lines)


_EXAMPLES = {
    "1 decode at 1024 context": StepFeatures(1, num_decode=1, decode_ctx=1025),
    "64 decodes at 1024 context": StepFeatures(64, num_decode=64, decode_ctx=64 * 1025),
    "512-token prefill": StepFeatures(512, num_prefill=1, prefill_tokens=512, prefill_quad=prefill_quad(512, 0)),
    "2048-token prefill": StepFeatures(2048, num_prefill=1, prefill_tokens=2048, prefill_quad=prefill_quad(2048, 0)),
}


def describe(
    model: str | ModelSpec,
    device: str | DeviceSpec,
    tp: int = 1,
    pp: int = 1,
    *,
    host_overhead_us: float = HOST_OVERHEAD_US,
    overrides: dict[str, float] | None = None,
) -> StepTime:
    """Step-time model of `model` on `tp` x `pp` of `device`.

    Args:
        model: a name of `list_models()` (or alias, or Hugging Face id), or shapes of your own.
        device: a name of `list_devices()`, or a specification of your own.
        tp: tensor-parallel GPUs per stage; must divide the attention heads.
        pp: pipeline stages; at most the number of layers.
        host_overhead_us: added to every step.
        overrides: numbers of `DeviceSpec` to replace, e.g. ``{"weight_read_fraction": 0.7}``.

    Raises:
        UserError: an unknown name, an impossible split, or a bad override.
    """
    spec = find_model(model) if isinstance(model, str) else model
    dev = _overridden(find_device(device) if isinstance(device, str) else device, overrides or {})
    where = f"{spec.name} on {dev.name}"
    if tp < 1 or spec.num_heads % tp:
        raise UserError(f"tp is {tp}", where=where, expected=f"a divisor of the {spec.num_heads} attention heads")
    if not 1 <= pp <= spec.num_layers:
        raise UserError(f"pp is {pp}", where=where, expected=f"1 to {spec.num_layers} (the layers)")
    if not host_overhead_us >= 0:
        raise UserError(f"host_overhead_us is {host_overhead_us}", where=where, expected="a number >= 0")
    tokens = np.unique(np.round(np.geomspace(1, MAX_TABLE_TOKENS, 129)).astype(np.int64))
    base_us, start, slope = table_from_curve(tokens, token_curve_us(spec, dev, tp, pp, tokens))
    matmul = dev.peak_flops * dev.matmul_fraction * tp
    row_us = 2 * spec.head_params / matmul / pp * 1e6
    attention_flops = 4 * spec.num_layers * spec.num_heads * spec.head_dim
    kv_bytes = 2 * spec.num_layers * spec.kv_heads_per_gpu(tp) * spec.head_dim * spec.dtype_bytes
    terms = Terms(
        base_us=base_us + host_overhead_us,
        token_start=start,
        token_slope_us=slope,
        prefill_row_us=row_us,
        decode_row_us=row_us,
        quad_us=PAIRS_PER_QUAD * attention_flops / (dev.peak_flops * dev.prefill_attention_fraction * tp) / pp * 1e6,
        ctx_us=kv_bytes / (dev.bandwidth * dev.kv_read_fraction) / pp * 1e6,
    )
    source = (
        f"{spec.name} on {dev.name}, tp {tp}, pp {pp}: described ({dev.source} datasheet, achieved fractions"
        f" measured on {dev.measured}), host overhead {host_overhead_us:g} us"
    )
    return StepTime(terms, source, spec, dev, tp, pp)


def token_curve_us(spec: ModelSpec, dev: DeviceSpec, tp: int, pp: int, tokens: np.ndarray) -> np.ndarray:
    """The part of a step that depends on its total tokens only (and the fixed part, less host work), microseconds."""
    per_stage = np.maximum(tokens / pp, 1.0)
    weight_bw = dev.bandwidth * dev.weight_read_fraction
    shared = spec.attention_params + spec.router_params
    touched = spec.num_experts * (1.0 - (1.0 - spec.experts_per_token / spec.num_experts) ** per_stage)
    weight_s = (shared + touched * spec.expert_params) * spec.dtype_bytes / tp / weight_bw
    # A matmul of n rows takes as long as n + matmul_half_tokens rows at full speed; an expert sees only its own rows.
    half = dev.matmul_half_tokens
    rows = shared * (per_stage + half) + spec.expert_params * (spec.experts_per_token * per_stage + touched * half)
    compute_s = 2 * rows / (dev.peak_flops * dev.matmul_fraction * tp)
    hidden_bytes = spec.hidden * spec.dtype_bytes
    elementwise_s = ELEMENTWISE_VECTORS * spec.num_layers * hidden_bytes * per_stage / dev.bandwidth
    head_s = spec.head_params * spec.dtype_bytes / tp / weight_bw
    link = dev.link_bandwidth * dev.link_fraction
    total_us = (np.maximum(weight_s, compute_s) + elementwise_s + head_s) * 1e6
    total_us += spec.num_layers * (dev.layer_overhead_us + dev.attention_overhead_us)
    if tp > 1:
        ring_s = 2 * (tp - 1) / tp * per_stage * hidden_bytes / link
        total_us += 2 * spec.num_layers * (dev.link_latency_us + ring_s * 1e6)
    total_us += (pp - 1) * (dev.link_latency_us + per_stage * hidden_bytes / link * 1e6)
    return total_us


def _overridden(dev: DeviceSpec, overrides: dict[str, float]) -> DeviceSpec:
    for name, value in overrides.items():
        if name not in _OVERRIDES:
            raise UserError(
                f"unknown override {name!r}",
                where=f"device {dev.name}",
                expected=f"one of {', '.join(_OVERRIDES)}",
                hint=nearest_hint(name, _OVERRIDES),
            )
        number = value if isinstance(value, int | float) and math.isfinite(value) else -1.0
        largest = 1.0 if name.endswith("_fraction") else number
        smallest_ok = number >= 0 if name.endswith(("_us", "_tokens")) else number > 0
        if not (smallest_ok and number <= largest):
            raise UserError(
                f"{name} is {value!r}", where=f"device {dev.name}", expected="a positive number, fractions <= 1"
            )
    return dataclasses.replace(dev, **overrides)
