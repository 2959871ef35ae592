"""Routers of published systems, one file each. The simple ones, by load only, are in `jaxsched/policies/routers.py`.

What they see of the prefix caches, live or late, is docs/semantics.md, section 7.
"""

from __future__ import annotations

from jaxsched.policies.routing.conductor import CONDUCTOR
from jaxsched.policies.routing.disaggregated import DISAGGREGATED
from jaxsched.policies.routing.dynamo import DYNAMO
from jaxsched.policies.routing.llmd import LLMD
from jaxsched.policies.routing.preble import PREBLE
from jaxsched.policies.routing.sglang import SGLANG

CACHE_AWARE = (SGLANG, PREBLE, CONDUCTOR, DYNAMO, LLMD)

__all__ = ["CACHE_AWARE", "CONDUCTOR", "DISAGGREGATED", "DYNAMO", "LLMD", "PREBLE", "SGLANG"]
