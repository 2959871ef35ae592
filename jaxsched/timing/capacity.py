"""How many KV blocks fit beside the weights: derived from memory, with the arithmetic as text."""

from __future__ import annotations

from dataclasses import dataclass

from jaxsched.errors import UserError
from jaxsched.timing.devices import DeviceSpec
from jaxsched.timing.models import ModelSpec

GIB = 1 << 30
#: Activations, CUDA graphs and communication buffers that an engine sets aside besides weights. An engineering
#: estimate (vLLM measures it at start-up; 1-4 GiB is usual); pass the measured value when it is known.
RESERVED_BYTES = 2 * GIB


@dataclass(frozen=True)
class KvCapacity:
    """KV pool of one engine instance."""

    num_blocks: int
    block_tokens: int
    explanation: str

    @property
    def num_tokens(self) -> int:
        """Tokens the pool holds."""
        return self.num_blocks * self.block_tokens


def kv_capacity(
    model: ModelSpec,
    device: DeviceSpec,
    *,
    tp: int = 1,
    pp: int = 1,
    block_size: int = 16,
    gpu_memory_utilization: float = 0.9,
    reserved_bytes: int = RESERVED_BYTES,
) -> KvCapacity:
    """Blocks of `block_size` tokens left after weights, as vLLM counts: memory x utilization - weights - reserve.

    Every GPU of the instance holds the same number of blocks (its layers, its KV heads), so the tightest GPU decides;
    the first and last pipeline stage also hold the embedding and the output head.

    Raises:
        UserError: a parameter is out of range, or no block fits.
    """
    where = f"KV capacity of {model.name} on {tp * pp} x {device.name}"
    if not 0.0 < gpu_memory_utilization <= 1.0:
        raise UserError(f"gpu_memory_utilization is {gpu_memory_utilization}", where=where, expected="in (0, 1]")
    if block_size < 1 or reserved_bytes < 0:
        raise UserError(f"block_size {block_size}, reserved_bytes {reserved_bytes}", where=where, expected=">= 1, >= 0")
    num_layers = -(-model.num_layers // pp)
    embeddings = 2 if pp == 1 else 1
    layer_bytes = model.layer_params * model.dtype_bytes * num_layers / model.num_layers / tp
    weight_bytes = layer_bytes + embeddings * model.head_params * model.dtype_bytes / tp
    usable_bytes = device.memory_bytes * gpu_memory_utilization
    token_bytes = 2 * num_layers * model.kv_heads_per_gpu(tp) * model.head_dim * model.dtype_bytes
    free_bytes = usable_bytes - weight_bytes - reserved_bytes
    num_blocks = int(free_bytes // (token_bytes * block_size)) if free_bytes > 0 else 0
    explanation = (
        f"per GPU: {device.memory_bytes / GIB:.1f} GiB x {gpu_memory_utilization:g} = {usable_bytes / GIB:.1f} GiB"
        f" - weights {weight_bytes / GIB:.1f} GiB - reserve {reserved_bytes / GIB:.1f} GiB = {free_bytes / GIB:.1f} GiB"
        f" for KV; {token_bytes} bytes/token x {block_size} tokens/block -> {num_blocks} blocks"
        f" ({num_blocks * block_size} tokens)"
    )
    if num_blocks < 1:
        raise UserError(
            "the model does not fit: no KV block is left",
            where=where,
            expected="memory for weights and at least one block",
            hint=f"Use a larger tp or pp, or a larger device. {explanation}",
        )
    return KvCapacity(num_blocks, block_size, explanation)
