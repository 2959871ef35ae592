"""Routers: which instance an arriving request goes to.

Each sees the cluster live or with a configurable delay (docs/semantics.md, 7).
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Router
from jaxsched.policies.routing import CACHE_AWARE, DISAGGREGATED
from jaxsched.sim.event import first_smallest
from jaxsched.sim.views import RouterView


def round_robin(view: RouterView):
    """Arrival number modulo the number of instances."""
    return view.arrival_count % view.num_waiting.shape[0]


def random(view: RouterView):
    """A hash of (seed, request): the same request goes to the same instance whatever the policy."""
    return view.hash0 % view.num_waiting.shape[0]


def least_outstanding(view: RouterView):
    """Fewest waiting + running requests; ties to the lowest index."""
    return first_smallest(view.num_waiting + view.num_running)


def least_kv(view: RouterView):
    """Fewest KV blocks used or about to be (prompts that wait); ties to the lowest index."""
    return first_smallest(view.used_blocks + view.waiting_blocks)


def power_of_two(view: RouterView):
    """Two distinct instances at random; the one with fewer outstanding requests (Mitzenmacher 2001).

    One instance: that one.
    """
    num_instances = view.num_waiting.shape[0]
    first = view.hash0 % num_instances
    if num_instances == 1:
        return first
    second = view.hash1 % (num_instances - 1)
    second = second + (second >= first)
    load = view.num_waiting + view.num_running
    return jnp.where(load[second] < load[first], second, first)


def least_work(view: RouterView):
    """Join the instance with the fewest predicted tokens of unfinished requests; ties to the lowest index."""
    return first_smallest(view.work_tokens)


def program_sticky(view: RouterView):
    """The instance of the program's previous turn, whose prefix cache may hold the context; a new program goes to the
    instance with the fewest outstanding requests.

    Session affinity as of vLLM production-stack's and SGLang's session routers; no rebalancing.
    """
    return jnp.where(view.home >= 0, view.home, least_outstanding(view))


ROUTERS = {
    router.name: router
    for router in (
        Router("round_robin", round_robin, "in turn", "vLLM, NVIDIA Dynamo"),
        Router("random", random, "uniformly, by a hash of the request", "baseline"),
        Router("least_outstanding", least_outstanding, "fewest waiting + running requests", "join the shortest queue"),
        Router(
            "least_kv", least_kv, "fewest KV blocks used or promised", "llm-d kv-utilisation scorer", reads_blocks=True
        ),
        Router(
            "program_sticky",
            program_sticky,
            "where the program's previous turn ran; new programs: fewest outstanding",
            "session affinity (vLLM production-stack, SGLang router)",
        ),
        Router("power_of_two", power_of_two, "the less loaded of two at random", "Mitzenmacher, IEEE TPDS 2001"),
        Router(
            "least_work",
            least_work,
            "fewest predicted tokens left",
            "join the shortest queue by predicted work",
            reads_work=True,
        ),
        *CACHE_AWARE,
        DISAGGREGATED,
    )
}
