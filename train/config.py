"""What a training configuration may say: fields, units, defaults and ranges. The only module here with pydantic.

Read, extended (``extends:``) and overridden (``--set algo.lr=1e-3``) by the same machinery as scenarios, with the same
messages (`jaxsched.config`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from jaxsched.config import RootConfig, Section, load_as
from jaxsched.config.overrides import Overrides

Share = Annotated[float, Field(ge=0, le=1)]
ScheduleName = Literal["constant", "linear", "cosine", "rex", "uba"]


class EnvConfig(Section):
    """The environment, as ``js.make(id, **options)`` takes it."""

    id: str
    options: dict[str, JsonValue] = Field(default_factory=dict)


class NetworkConfig(Section):
    """Shape of the set network (`jaxsched.networks.SetNetworkConfig`)."""

    width: PositiveInt = 64
    num_layers: PositiveInt = 1
    num_attention: NonNegativeInt = 0
    num_attention_heads: PositiveInt = 4
    recurrent: bool = False
    #: Head -> kind, where the action space does not tell: "instance" or "pair" among instances, "per_instance".
    head_kinds: dict[str, str] = Field(default_factory=dict)


class ConstraintConfig(Section):
    """``cost / per <= limit``, kept by a PID-controlled multiplier."""

    cost: str  # a name in the environment's `cost_names`
    per: str = ""  # another one, or empty: per second of simulated time
    limit: PositiveFloat


class PidConfig(Section):
    """Gains on the error relative to the limit."""

    kp: NonNegativeFloat = 1.0
    ki: NonNegativeFloat = 0.02
    kd: NonNegativeFloat = 0.0
    cap: PositiveFloat = 50.0
    warmup: NonNegativeInt = 10  # iterations with multipliers of 0
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of the moving averages of the measured rates


class EntropyConfig(Section):
    """Target of each head's entropy relative to that of a uniform choice, and the controller that keeps it."""

    start: Share = 0.5
    end: Share = 0.05
    rate: NonNegativeFloat = 0.02  # step of the log weight of the bonus; 0: the weight stays
    temperature: PositiveFloat = 0.1  # first weight of the bonus


class _Clipped(Section):
    """What PPO and RLOO share."""

    lr: PositiveFloat = 3e-4
    schedule: ScheduleName = "linear"
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clip_high: PositiveFloat = 0.2
    max_grad_norm: PositiveFloat = 0.5
    entropy: EntropyConfig = Field(default_factory=EntropyConfig)


class PpoConfig(_Clipped):
    """Proximal policy optimisation (`train.ppo`)."""

    kind: Literal["ppo"]
    num_lanes: PositiveInt = 64
    num_steps: PositiveInt = 128
    num_minibatches: PositiveInt = 4
    num_epochs: PositiveInt = 3
    sequence_length: NonNegativeInt = 0
    half_life_s: PositiveFloat = 60.0  # of the discount
    lambda_s: PositiveFloat = 20.0  # time constant of GAE
    value_weight: NonNegativeFloat = 0.5
    kl_limit: PositiveFloat = 0.02
    constraints: list[ConstraintConfig] = Field(default_factory=list)
    pid: PidConfig = Field(default_factory=PidConfig)

    def beta(self) -> float:
        """Discount rate, 1/s."""
        return math.log(2.0) / self.half_life_s


class RlooConfig(_Clipped):
    """Critic-free groups (`train.rloo`)."""

    kind: Literal["rloo"]
    num_groups: PositiveInt = 8
    group_size: PositiveInt = 8
    num_steps: PositiveInt = 512
    num_epochs: PositiveInt = 1
    half_life_s: PositiveFloat | None = None  # None: no discount
    baseline: Literal["time_aligned", "episode", "remax", "none"] = "time_aligned"


class BcConfig(Section):
    """Imitation (`train.bc`)."""

    kind: Literal["bc"]
    expert: str  # "module:function" with the signature of `train.bc.Expert`
    lr: PositiveFloat = 1e-3
    schedule: ScheduleName = "linear"
    num_lanes: PositiveInt = 64
    num_steps: PositiveInt = 64
    num_minibatches: PositiveInt = 4
    num_epochs: PositiveInt = 1
    num_picks: NonNegativeInt = 0  # of the expert's order that count; 0: all
    share_start: Share = 1.0  # probability that the expert acts; 1 and 1: behaviour cloning
    share_end: Share = 0.0
    max_grad_norm: PositiveFloat = 1.0


AlgoConfig = Annotated[PpoConfig | RlooConfig | BcConfig, Field(discriminator="kind")]


class RunConfig(Section):
    """How long, where to, and what is written. Only `seed` and `num_iterations` change what is learned."""

    num_iterations: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    folder: str = "runs"  # the run goes to <folder>/<name>
    checkpoint_every: NonNegativeInt = 10  # iterations; 0: only at the end
    keep: PositiveInt = 2  # checkpoints
    track: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)
    native_loops: bool = False  # on a CPU: compile loops to native functions (environments that run the machine)
    num_devices: PositiveInt = 1  # CPU devices or GPUs that the lanes are split over (ppo)


class TrainConfig(RootConfig):
    """A training run."""

    env: EnvConfig
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    algo: AlgoConfig
    run: RunConfig

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        devices = self.run.num_devices
        if devices > 1 and self.algo.kind != "ppo":
            raise ValueError(
                f"`run.num_devices` {devices} goes with algo kind ppo; {self.algo.kind} runs on one device"
            )
        if devices > 1 and isinstance(self.algo, PpoConfig) and self.algo.num_lanes % devices:
            raise ValueError(
                f"`algo.num_lanes` {self.algo.num_lanes} must be a multiple of `run.num_devices` {devices}"
            )
        return self

    def what_is_learned(self) -> str:
        """Hash of everything that changes the result: a checkpoint of another one is refused."""
        data = self.to_dict()
        data["run"] = {key: data["run"][key] for key in ("seed", "num_iterations", "num_devices", "native_loops")}
        return type(self).model_validate(data).config_hash()


def load(path: str | Path, overrides: Overrides = ()) -> TrainConfig:
    """Read a training configuration.

    Raises:
        UserError: anything in the file or the overrides that is not usable, with file, line and field.
    """
    return load_as(path, overrides, TrainConfig)
