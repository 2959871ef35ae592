"""What a learner has set, and the machine's heads that read it: tables by program, in the scheduler's parameters.

Controls persist: the machine applies them event by event, until the next decision replaces them. The tables of an
episode have one entry per program; their first element is the row of the episode's first program.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxsched.envs.features import Items
from jaxsched.sim.compress import WHOLE
from jaxsched.sim.event import first_smallest
from jaxsched.sim.params import SimParams
from jaxsched.sim.retain import FOREVER_US, ContextView, PauseView, RetainHead
from jaxsched.sim.views import QueueView, RouterView

#: Key of a turn without a score: behind all that have one, in order of arrival.
UNSCORED = 2**31 - 2
#: Times to live that the retention head chooses from, seconds; the last keeps until the program returns.
TTL_S = (0.0, 0.25, 1.0, 4.0, 16.0, 64.0, 256.0, float("inf"))
#: What programs are kept for before anything was decided about them.
DEFAULT_TTL = 2
#: Shares of the KV pool that contexts of begun programs may fill before new programs wait.
GATE_FRACTIONS = (0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.6, 1e6)
#: Tokens per engine step.
TOKEN_BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
#: Levels of an item for who is evicted or preempted: the lowest goes first; of equal ones whom the engine would take.
LEVELS = 8
#: Level of a program before anything was decided about it.
DEFAULT_LEVEL = 3
#: Most tokens that a request drafts in a step.
DRAFTS = (0, 1, 2, 3, 4, 6, 8)
#: Shares of its context that a request keeps.
RATIOS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)

#: Heads that are one choice for the whole, except among instances: name -> number of choices.
CHOICES = {"gate": len(GATE_FRACTIONS), "batch": len(TOKEN_BUDGETS), "draft": len(DRAFTS), "ratio": len(RATIOS)}
#: ... and with as many choices as there are instances.
INSTANCE_CHOICES = ("route", "scale")
#: Heads that are a choice for each item.
ITEM_CHOICES = {"retain": len(TTL_S), "evict": LEVELS, "preempt": LEVELS}


class Controls(struct.PyTreeNode):
    """Settings in force; None where the head is not learned."""

    order: Int[Array, " p"] | None = None  # key per program, the smallest goes first
    retain: Int[Array, " p"] | None = None  # index into `TTL_S` per program
    gate: Int[Array, ""] | None = None  # index into `GATE_FRACTIONS`
    batch: Int[Array, ""] | None = None  # index into `TOKEN_BUDGETS`
    route: Int[Array, ""] | None = None  # instance of the next arrival
    evict: Int[Array, " p"] | None = None  # level of each program's context
    preempt: Int[Array, " p"] | None = None  # level of each program among those that run
    draft: Int[Array, ""] | None = None  # index into `DRAFTS`
    ratio: Int[Array, ""] | None = None  # index into `RATIOS`
    scale: Int[Array, ""] | None = None  # instances that are on, less one


def first_controls(learned: tuple[str, ...], num_programs: int, num_instances: int) -> Controls:
    """What is in force before the first decision."""
    p = num_programs
    return Controls(
        order=jnp.full(p, UNSCORED, jnp.int32) if "order" in learned else None,
        retain=jnp.full(p, DEFAULT_TTL, jnp.int32) if "retain" in learned else None,
        gate=jnp.int32(GATE_FRACTIONS.index(0.8)) if "gate" in learned else None,
        batch=jnp.int32(TOKEN_BUDGETS.index(2048)) if "batch" in learned else None,
        route=jnp.int32(0) if "route" in learned else None,
        evict=jnp.full(p, DEFAULT_LEVEL, jnp.int32) if "evict" in learned else None,
        preempt=jnp.full(p, DEFAULT_LEVEL, jnp.int32) if "preempt" in learned else None,
        draft=jnp.int32(DRAFTS.index(4)) if "draft" in learned else None,
        ratio=jnp.int32(RATIOS.index(1.0)) if "ratio" in learned else None,
        scale=jnp.int32(num_instances - 1) if "scale" in learned else None,
    )


def after_action(controls: Controls, items: Items, action) -> Controls:
    """The controls after an action."""
    changes: dict[str, Array] = {}
    if controls.order is not None:
        keys = key_of(action["order"])
        blank = jnp.full_like(controls.order, UNSCORED)
        changes["order"] = put_by_program(blank, keys, items.program, items.present)
    for head in ITEM_CHOICES:
        if (table := getattr(controls, head)) is not None:
            changes[head] = put_by_program(table, action[head], items.program, who_decides(head, items))
    for head in (*CHOICES, *INSTANCE_CHOICES):
        if getattr(controls, head) is not None:
            changes[head] = action[head]
    return controls.replace(**changes)


def who_decides(head: str, items: Items) -> Bool[Array, " n"]:
    """Items that take a decision of a head: those that can be admitted, preempted, or pause soon."""
    if head == "order":
        return items.waiting
    return items.running if head == "preempt" else items.running | items.paused


def had_choice(learned: tuple[str, ...], items: Items) -> list[Bool[Array, ""]]:
    """Which of the heads had something to choose."""
    choices = [jnp.bool_(False)]
    for head in learned:
        if head in ("order", "preempt"):
            choices.append(jnp.sum(who_decides(head, items).astype(jnp.int32)) >= 2)
        elif head in ITEM_CHOICES:
            choices.append(jnp.any(who_decides(head, items)))
    if {*CHOICES, *INSTANCE_CHOICES} & set(learned):
        choices.append(jnp.bool_(True))
    return choices


def key_of(score: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """Integers in the opposite order of the scores: the highest score has the smallest key. NaN goes last."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(score, jnp.float32) + 0.0, jnp.int32)  # (-0 becomes 0)
    rising = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return jnp.where(jnp.isnan(score), UNSCORED, jnp.minimum(~rising, UNSCORED - 1))


def ttl_us(bucket: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Microseconds of a time to live by its index."""
    values = [FOREVER_US if s == float("inf") else round(s * 1e6) for s in TTL_S]
    return jnp.asarray(values, jnp.int32)[bucket]


def _entry(params: Array, program: Int[Array, "*n"]) -> Int[Array, "*n"]:
    first = params[0].astype(jnp.int32)
    return jnp.clip(program - first, 0, params.shape[0] - 2) + 1


def scored_order(params: Int[Array, " k"], view: QueueView) -> Int[Array, " s"]:
    """Order head: the key of the turn's program. params = first program, then keys."""
    return params[_entry(params, view.program)]


def _chosen_ttl(params: Float[Array, " k"], known: None, view: PauseView) -> Int[Array, ""]:
    """Retention head: params = first program, then indices into `TTL_S` (small whole numbers, exact in float32)."""
    del known
    assert view.program is not None
    return ttl_us(params[_entry(params, view.program)].astype(jnp.int32))


def _never_kept(params: Float[Array, " k"], known: None, view: PauseView) -> Int[Array, ""]:
    del params, known, view
    return jnp.int32(0)


CHOSEN_RETENTION = RetainHead(_chosen_ttl)
#: Nothing is pinned; with a rule of eviction contexts are still told apart.
NO_RETENTION = RetainHead(_never_kept)


def chosen_eviction(params: Int[Array, " k"], known, view: ContextView) -> Int[Array, " r"]:
    """Rule of eviction: the level of the program. params = first program, then levels."""
    del known
    assert view.program is not None
    return params[_entry(params, view.program)]


def chosen_victim(params: Int[Array, " k"], program: Int[Array, " s"]) -> Int[Array, " s"]:
    """Victim head: the level of the program. params = first program, then levels."""
    return params[_entry(params, program)]


def chosen_route(view: RouterView) -> Int[Array, ""]:
    """Route head: the instance that was chosen."""
    assert view.params is not None
    return view.params[0].astype(jnp.int32)


def route_among_open(view: RouterView) -> Int[Array, ""]:
    """Fewest waiting + running requests of the instances that take new ones; ties to the lowest index.

    params = 1 for each instance that does.
    """
    assert view.params is not None
    return first_smallest(jnp.where(view.params > 0, view.num_waiting + view.num_running, 2**30))


def in_force(sim: SimParams, controls: Controls, first: Int[Array, ""]) -> SimParams:
    """The machine's parameters under the controls of an episode whose programs begin at row `first`."""
    base, changes = sim.scheduler, {}
    if controls.order is not None:
        changes["order"] = jnp.concatenate([first[None], controls.order])
    if controls.retain is not None:
        changes["retain"] = jnp.concatenate([first[None], controls.retain]).astype(jnp.float32)
    if controls.gate is not None:
        changes["gate_fraction"] = jnp.asarray(GATE_FRACTIONS, jnp.float32)[controls.gate]
    if controls.batch is not None:
        changes["token_budget"] = jnp.asarray(TOKEN_BUDGETS, jnp.int32)[controls.batch]
    if controls.evict is not None:
        changes["evict"] = jnp.concatenate([first[None], controls.evict])
    if controls.preempt is not None:
        changes["victim"] = jnp.concatenate([first[None], controls.preempt])
    if controls.draft is not None:
        most = jnp.asarray(DRAFTS, jnp.int32)[controls.draft]
        changes["draft"] = base.draft.replace(most=most, ever=jnp.int32(max(DRAFTS)))
    sim = sim.replace(scheduler=base.replace(**changes))
    if controls.route is not None:
        sim = sim.replace(route=controls.route.astype(jnp.float32)[None])
    if controls.ratio is not None:
        ratios = jnp.asarray([round(r * WHOLE) for r in RATIOS], jnp.int32)
        sim = sim.replace(compress=sim.compress.replace(head=sim.compress.head.at[0].set(ratios[controls.ratio])))
    return sim


def put_by_program(
    table: Int[Array, " p"], values: Int[Array, " n"], program: Int[Array, " n"], where: Bool[Array, " n"]
) -> Int[Array, " p"]:
    """`table` with the values of some items written at their programs (relative to the episode's first)."""
    at = jnp.where(where, program, table.shape[0])
    return table.at[at].set(values, mode="drop")
