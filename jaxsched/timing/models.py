"""Language models as a step-time description needs them: shapes only.

Source: each model's public ``config.json`` (Hugging Face id in `hf_id`). Norms, biases and rotary tables are left out
of the parameter counts (below 0.1 %).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxsched.errors import UserError
from jaxsched.timing.names import lookup


@dataclass(frozen=True)
class ModelSpec:
    """Shapes of a decoder-only transformer."""

    name: str
    hf_id: str
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int  # intermediate size of one MLP, or of one expert
    vocab: int
    gated_mlp: bool = True  # gate, up and down matrices; False: up and down only
    num_experts: int = 1
    experts_per_token: int = 1
    dtype_bytes: int = 2  # bfloat16 weights and KV

    def __post_init__(self) -> None:
        """Refuse shapes that cannot exist, whatever their origin."""
        sizes = ("num_layers", "hidden", "num_heads", "num_kv_heads", "head_dim", "ffn", "dtype_bytes", "num_experts")
        for field in sizes:
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}", where=f"model {self.name}", expected="at least 1")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"{self.num_heads} heads over {self.num_kv_heads} KV heads",
                where=f"model {self.name}",
                expected="a multiple",
            )
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise UserError(
                f"{self.experts_per_token} of {self.num_experts} experts per token", where=f"model {self.name}"
            )

    @property
    def attention_params(self) -> int:
        """Query, key, value and output projections of all layers."""
        q_dim, kv_dim = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.num_layers * self.hidden * (2 * q_dim + 2 * kv_dim)

    @property
    def expert_params(self) -> int:
        """One MLP (one expert) of every layer."""
        return self.num_layers * (3 if self.gated_mlp else 2) * self.hidden * self.ffn

    @property
    def router_params(self) -> int:
        """Expert routers of all layers; 0 for a dense model."""
        return self.num_layers * self.hidden * self.num_experts if self.num_experts > 1 else 0

    @property
    def layer_params(self) -> int:
        """All layers, without embeddings and output head."""
        return self.attention_params + self.router_params + self.num_experts * self.expert_params

    @property
    def active_layer_params(self) -> int:
        """Parameters of the layers that one token multiplies with."""
        return self.attention_params + self.router_params + self.experts_per_token * self.expert_params

    @property
    def head_params(self) -> int:
        """Output head (the input embedding has as many)."""
        return self.vocab * self.hidden

    @property
    def total_params(self) -> int:
        """Layers, input embedding and output head."""
        return self.layer_params + 2 * self.head_params

    def kv_heads_per_gpu(self, tp: int) -> int:
        """KV heads one GPU keeps: split over `tp`, replicated when there are fewer heads than GPUs (as vLLM does)."""
        return max(1, self.num_kv_heads // tp)


_MODELS = [
    #         name             hf_id                              L   hidden  H   KV  hd   ffn    vocab
    ModelSpec("llama-2-7b", "meta-llama/Llama-2-7b-hf", 32, 4096, 32, 32, 128, 11008, 32000),
    ModelSpec("llama-2-13b", "meta-llama/Llama-2-13b-hf", 40, 5120, 40, 40, 128, 13824, 32000),
    ModelSpec("llama-2-70b", "meta-llama/Llama-2-70b-hf", 80, 8192, 64, 8, 128, 28672, 32000),
    ModelSpec("llama-3-8b", "meta-llama/Meta-Llama-3-8B", 32, 4096, 32, 8, 128, 14336, 128256),
    ModelSpec("llama-3-70b", "meta-llama/Meta-Llama-3-70B", 80, 8192, 64, 8, 128, 28672, 128256),
    ModelSpec("codellama-34b", "codellama/CodeLlama-34b-Instruct-hf", 48, 8192, 64, 8, 128, 22016, 32000),
    ModelSpec("qwen2.5-7b", "Qwen/Qwen2.5-7B", 28, 3584, 28, 4, 128, 18944, 152064),
    ModelSpec("qwen2.5-14b", "Qwen/Qwen2.5-14B", 48, 5120, 40, 8, 128, 13824, 152064),
    ModelSpec("qwen2.5-32b", "Qwen/Qwen2.5-32B", 64, 5120, 40, 8, 128, 27648, 152064),
    ModelSpec("qwen2.5-72b", "Qwen/Qwen2.5-72B", 80, 8192, 64, 8, 128, 29568, 152064),
    # Qwen-72B: intermediate_size 49152 in config.json is the sum of gate and up; each is half.
    ModelSpec("qwen-72b", "Qwen/Qwen-72B", 80, 8192, 64, 64, 128, 24576, 152064),
    ModelSpec("mistral-7b", "mistralai/Mistral-7B-v0.1", 32, 4096, 32, 8, 128, 14336, 32000),
    ModelSpec(
        "mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1", 32, 4096, 32, 8, 128, 14336, 32000,
        num_experts=8, experts_per_token=2,
    ),
    ModelSpec(
        "qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", 48, 2048, 32, 4, 128, 768, 151936, num_experts=128, experts_per_token=8
    ),
    ModelSpec("phi-2", "microsoft/phi-2", 32, 2560, 32, 32, 80, 10240, 51200, gated_mlp=False),
    ModelSpec("internlm-20b", "internlm/internlm-20b", 60, 5120, 40, 40, 128, 13824, 103168),
]  # fmt: skip

MODELS = {model.name: model for model in _MODELS}

#: Other spellings, and later releases of the same shapes.
_ALIASES = {
    "llama2-7b": "llama-2-7b",
    "llama2-13b": "llama-2-13b",
    "llama2-70b": "llama-2-70b",
    "llama3-8b": "llama-3-8b",
    "llama3-70b": "llama-3-70b",
    "llama-3.1-8b": "llama-3-8b",
    "llama-3.1-70b": "llama-3-70b",
    "llama-3.3-70b": "llama-3-70b",
    "mistral-7b-v0.1": "mistral-7b",
    "mixtral-8x7b-v0.1": "mixtral-8x7b",
    "mixtral": "mixtral-8x7b",
}


def find_model(name: str) -> ModelSpec:
    """The model `name` means: canonical name, Hugging Face id or alias.

    Raises:
        UserError: unknown, with the nearest known names.
    """
    return lookup("model", name, MODELS, _ALIASES)


def list_models() -> list[str]:
    """Canonical names of the described models."""
    return list(MODELS)
