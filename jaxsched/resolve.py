"""Parts of a configuration resolved for a scenario: step times and KV pool, memory tiers, workload.

Separate from `jaxsched.scenario`, which puts them together; messages name file, line and field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxsched.errors import UserError
from jaxsched.tiering import ClusterTiers, Tier
from jaxsched.timing import StepTimeParams
from jaxsched.workloads import Preset, Workload

if TYPE_CHECKING:
    from jaxsched.config import ScenarioConfig


def timing_of(config: ScenarioConfig) -> tuple[StepTimeParams, int, list[str], int]:
    """Step times, KV blocks of an instance, how they came about, GPUs of an instance."""
    from jaxsched import timing as models

    t, cluster = config.timing, config.cluster
    if t.kind == "affine":
        return models.affine(t.a_us, t.b_us_per_token, t.c_ns_per_ctx), int(cluster.kv_blocks or 0), [], 1
    if t.kind == "coefficients":
        step, gpus, utilisation = models.load_coefficients(t.path), 1, 0.9
        gpus = step.tp * step.pp
    else:
        overhead: dict[str, Any] = {} if t.host_overhead_us is None else {"host_overhead_us": t.host_overhead_us}
        step = models.describe(t.model, t.device, t.tp, t.pp, **overhead)
        gpus, utilisation = t.tp * t.pp, t.gpu_memory_utilization
    if cluster.kv_blocks is not None:
        return step.params, cluster.kv_blocks, [f"KV pool: {cluster.kv_blocks} blocks per instance (given)"], gpus
    capacity = step.capacity(cluster.block_size, utilisation)
    return step.params, capacity.num_blocks, [f"KV pool: {capacity.explanation}"], gpus


def tiers_of(config: ScenarioConfig) -> ClusterTiers | None:
    """Memory below HBM, in blocks."""
    from jaxsched.timing import find_model

    tiers, timing = config.cluster.tiers, config.timing
    if tiers is None:
        return None
    token_bytes = tiers.kv_bytes_per_token
    if token_bytes is None:
        assert timing.kind == "description"  # the schema asks for the number otherwise
        model = find_model(timing.model)
        token_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * model.dtype_bytes
    block_bytes = token_bytes * config.cluster.block_size

    def tier(section, write_gbps: float, read_gbps: float) -> Tier:
        blocks = section.blocks if section.blocks is not None else int(section.capacity_gib * 2**30 // block_bytes)
        return Tier(blocks, write_gbps, read_gbps, section.launch_us, section.block_group)

    host, remote = tiers.host, tiers.remote
    return ClusterTiers(
        host=tier(host, host.d2h_gbps, host.h2d_gbps),
        block_bytes=block_bytes,
        remote=None if remote is None else tier(remote, remote.write_gbps, remote.read_gbps),
        overlap=host.overlap,
    )


def workload_of(config: ScenarioConfig) -> tuple[Preset | Workload, int, float]:
    """A generator or a trace, programs per lane, programs per second."""
    from jaxsched.config import check_name
    from jaxsched.workloads import get_preset, list_formats, list_presets, read

    w = config.workload
    if w.tenants:
        preset = _mixture(config)
        preset = preset.as_job_list() if w.offline else preset
        return preset, int(w.num_requests or 0), (w.rate_per_s or preset.rate_per_s) * w.load
    if w.preset is not None:
        check_name(config, "workload.preset", w.preset, list(list_presets()), "workload preset")
        preset = get_preset(w.preset).with_options(**w.options)
        preset = preset.as_job_list() if w.offline else preset
        return preset, int(w.num_requests or 0), (w.rate_per_s or preset.rate_per_s) * w.load
    if w.format != "auto":
        check_name(config, "workload.format", w.format, list(list_formats()), "trace format")
    trace = read(str(w.path), format=w.format, **w.options)
    if w.slice_s is not None:
        trace = trace.slice_time(*w.slice_s)
    if w.thin < 1.0:
        trace = trace.thin(w.thin, config.seed)
    if w.prediction_error > 0:
        trace = trace.with_predictions(w.prediction_error, config.seed)
    if w.rate_per_s is not None:
        trace = trace.to_rate(w.rate_per_s)
    trace = trace.scale_load(w.load) if w.load != 1.0 else trace
    trace = trace.as_job_list() if w.offline else trace
    rate = trace.rate_per_s if trace.span_s > 0 else float(trace.num_programs)  # one instant has no rate of its own
    return trace, min(w.num_requests or trace.num_programs, trace.num_programs), rate


def _mixture(config: ScenarioConfig) -> Preset:
    """The workload of several tenants."""
    from jaxsched.config import check_name
    from jaxsched.workloads import get_preset, list_presets
    from jaxsched.workloads.renewal import RenewalSpec
    from jaxsched.workloads.split import SplitSpec
    from jaxsched.workloads.tenants import SPECS, TenantMix, TenantPart

    parts = []
    for i, tenant in enumerate(config.workload.tenants):
        field = f"workload.tenants.{i}.preset" if tenant.preset else "workload.preset"
        name = str(tenant.preset or config.workload.preset)
        check_name(config, field, name, list(list_presets()), "workload preset")
        preset = get_preset(name).with_options(**tenant.options)
        spec = preset.spec.requests() if isinstance(preset.spec, RenewalSpec) else preset.spec
        if not isinstance(spec, SPECS) or isinstance(spec, SplitSpec):
            raise UserError(
                f"preset {name} cannot be one of several tenants", where=config.where(field),
                expected="a preset of requests or of sessions (no graphs of turns, no split requests)",
            )  # fmt: skip
        parts.append(TenantPart(tenant.name, spec, tenant.rate_per_s, tenant.begin, tenant.end, tenant.priority))
    mix = TenantMix(tuple(parts))
    names = ", ".join(part.name for part in parts)
    return Preset("tenants", f"tenants {names}", "configuration", mix, mix.rate_per_s)
