"""Speculative decoding outside the machine: the draft model of a scenario, and the theory of draft lengths."""

from jaxsched.speculation.process import DraftModel

__all__ = ["DraftModel"]
