"""``python scripts/hand_fair.py``: rules of tenants by hand, as weights of their network, for docs/results/tenants.md.

Writes docs/results/tenants/by_hand/: VTC and vtc-predict that take requests of tenants who are so many weighted tokens
ahead back out of the batch, the network's own rule (weights 0), and the best of a grid over the same features.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from jaxsched.checkpoint import save_policy
from jaxsched.networks.fair import ADVANCE, HOLD, FairShape
from jaxsched.policies.learned import FAIR_KIND, describe

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "tenants" / "by_hand"
#: In thousands of weighted tokens.
AHEAD = (1, 2, 4)


def weights(prompt: float, outstanding: float, ahead: float, known: float = 0.0) -> dict[str, float]:
    """Share of the prompt and of the predicted outputs that is charged in advance, and when requests are taken out."""
    return {
        "order.prompt": prompt - ADVANCE, "order.outstanding": outstanding,
        "hold.one": math.log(ahead / HOLD), "hold.known": known,
    }  # fmt: skip


def main() -> None:
    """Write them."""
    rules = {f"vtc_out_at_{ahead}000": weights(0.0, 0.0, ahead) for ahead in AHEAD}
    rules |= {f"vtc_predict_out_at_{ahead}000": weights(0.0, 1.0, ahead) for ahead in AHEAD}
    rules |= {"weights_0": {}, "grid": weights(0.3, 0.3, 4 * math.exp(-1), 0.5)}
    names = FairShape().names()
    for name, values in rules.items():
        vector = np.array([values.get(field, 0.0) for field in names], np.float32)
        save_policy(FOLDER / name, {"weights": vector}, network=describe(0, FAIR_KIND), training={"algo": "by hand"})
        print(FOLDER / name, dict(zip(names, np.round(vector, 3).tolist(), strict=True)))


if __name__ == "__main__":
    main()
