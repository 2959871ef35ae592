"""What to keep in memory, what to let in: the published rules as pure functions on small arrays (docs/retention.md).

Nothing here knows the machine. State is a pytree, every update is O(history) vector work, times are int32 (or float32)
microseconds and memory is in tokens.
"""
