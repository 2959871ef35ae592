"""Rounds of rollouts: programs are released in rounds, and the end of a round takes out what is not done.

The generation phase of reinforcement learning (docs/semantics.md, section 15). A round ends when `target` programs are
done; then the weights are updated, which empties the KV caches, and the next one begins with `in_flight` programs in
the system: those left from before, then new ones. Compiled only where `SimStatic.rounds`.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.sim.arrivals import step_ends_from
from jaxsched.sim.clock import EPOCH_BITS, EPOCH_US, NEVER_US, relative_us
from jaxsched.sim.event import Event, count, slot_with
from jaxsched.sim.running import preempt
from jaxsched.sim.state import Count, Instance, State

_ROWS = {name: i for i, name in enumerate(Instance.__dataclass_fields__)}
#: Longest update of the weights: what may follow an event without leaving int32.
MOST_UPDATE_US = 2**28


class RoundParams(struct.PyTreeNode):
    """What makes a round."""

    target: Int[Array, ""]  # programs that end it
    in_flight: Int[Array, ""]  # programs in the system when it begins, >= target
    update_us: Int[Array, ""]  # from its end to the beginning of the next, 1 to `MOST_UPDATE_US`


def end_round(event: Event, active: Bool[Array, ""]) -> None:
    """After the outputs of a step: whether so many programs are done that the round is over.

    Every other instance stops at the end of the engine step under way; one that is idle wakes when the next round
    begins. (The instance of this event sees `rounds.seen` behind and stops here.)
    """
    static, state = event.static, event.state
    params, rounds = event.params.rounds, state.rounds
    settled = rounds.settled + event.tally.counted(Count.PROGRAMS_DONE)
    begun = relative_us(rounds.epoch, rounds.us, state.epoch) <= event.now
    over = active & begun & (settled >= (rounds.number + 1) * params.target)
    over &= settled < event.requests.num_programs
    us = event.now + params.update_us
    epoch, us_in = state.epoch + (us >> EPOCH_BITS), us & (EPOCH_US - 1)
    event.state = state.replace(
        rounds=rounds.replace(
            number=rounds.number + over,
            released=jnp.where(over, settled + params.in_flight, rounds.released),
            epoch=jnp.where(over, epoch, rounds.epoch),
            us=jnp.where(over, us_in, rounds.us),
        )
    )
    m = jnp.arange(static.num_instances, dtype=jnp.int32)
    busy = state.instance[_ROWS["in_flight"]] > 0
    ends = jnp.where(state.run_ends >= step_ends_from(static, state, event.now, m)[:, None], state.run_ends, NEVER_US)
    cut = jnp.minimum(jnp.min(ends, axis=1), state.next_event)
    wake = jnp.where(busy, cut, jnp.where(state.next_event == NEVER_US, us, state.next_event))
    others = over & (m != event.m)
    event.state = event.state.replace(next_event=jnp.where(others, wake, state.next_event))


def is_behind(event: Event) -> Bool[Array, ""]:
    """Whether a round has ended since the instance last stopped for one."""
    rounds = event.state.rounds
    return jnp.sum(jnp.where(jnp.arange(rounds.seen.shape[0]) == event.m, rounds.seen, 0)) < rounds.number


def stop(event: Event, active: Bool[Array, ""]) -> Bool[Array, ""]:
    """Take out the last admitted running request; once none is left, empty the cache and wait for the next round.

    Returns whether more must be taken out.
    """
    running = event.running_mask
    preempt(event, slot_with(running, event.slots.order, largest=True), active & jnp.any(running), memory=False)
    left = count(event.running_mask)
    stopped = active & (left == 0)
    event.kv.flush(stopped, event.params.usable_blocks[event.m])
    state, rounds = event.state, event.state.rounds
    at = jnp.where(stopped, event.m, event.static.num_instances)
    begin = jnp.maximum(relative_us(rounds.epoch, rounds.us, state.epoch), event.now)
    event.state = state.replace(
        next_event=state.next_event.at[at].set(begin, mode="drop"),
        run_ends=state.run_ends.at[at].set(NEVER_US, mode="drop"),
        rounds=rounds.replace(
            seen=rounds.seen.at[at].set(rounds.number, mode="drop"),
            stopped=rounds.stopped + (active & jnp.any(running)),
        ),
    )
    return active & (left > 0)


def settle(state: State, done: Int[Array, ""]) -> State:
    """At the end of a micro-step: programs that are done."""
    return state.replace(rounds=state.rounds.replace(settled=state.rounds.settled + done))
