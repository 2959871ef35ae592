"""Laws and arrival processes against their closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as reference

from jaxsched.sim.clock import EPOCH_US, join_us
from jaxsched.workloads import keyed
from jaxsched.workloads.arrivals import DriftingRenewal, Renewal, TickBatches, accumulate, split_gap
from jaxsched.workloads.laws import (
    Constant,
    Discrete,
    Exponential,
    Gamma,
    Hyperexponential,
    LogNormalMixture,
    QuantileTable,
    zipf,
)

NUM = 200_000


def sample(law, num: int = NUM) -> np.ndarray:
    words = keyed.draw(keyed.stream_key(jax.random.key(1), 0), jnp.arange(num, dtype=jnp.int32))
    return np.asarray(jax.jit(law.sample)(words), np.float64)


def ks(values: np.ndarray, cdf) -> float:
    """Kolmogorov-Smirnov distance of a sample from a continuous distribution function."""
    values = np.sort(values)
    return float(np.abs(cdf(values) - (np.arange(len(values)) + 0.5) / len(values)).max())


@pytest.mark.parametrize("cv", [0.3, 0.7, 1.07, 1.19, 2.0, 4.0])
def test_gamma_tables_follow_the_gamma_law(cv):
    values = sample(Gamma(cv))
    shape = cv**-2
    above = values[values > 1e-4]  # of a very bursty law half the gaps are practically zero
    share = reference.gamma.cdf(1e-4, shape, scale=1 / shape)
    assert len(above) / NUM == pytest.approx(1 - share, abs=0.004)
    conditional = lambda x: (reference.gamma.cdf(x, shape, scale=1 / shape) - share) / (1 - share)
    assert ks(above, conditional) < 0.002 + 1.63 / np.sqrt(len(above))
    assert values.mean() == pytest.approx(1.0, abs=4 * cv / np.sqrt(NUM))
    assert values.std() == pytest.approx(cv, rel=0.03)


@pytest.mark.parametrize("scv", [1.5, 4.0, 16.0])
def test_hyperexponential_has_its_mean_and_variance(scv):
    values = sample(Hyperexponential(scv, scale=100.0))
    assert values.mean() == pytest.approx(100.0, abs=4 * 100 * np.sqrt(scv / NUM))
    assert values.var() / 1e4 == pytest.approx(scv, rel=0.08)


def test_exponential_and_constant():
    assert ks(sample(Exponential(3.0)), lambda x: 1 - np.exp(-x / 3)) < 1.63 / np.sqrt(NUM)
    assert (sample(Constant(2.5), 10) == 2.5).all()


def test_mixture_and_table_means_are_those_of_their_samples():
    mixture = LogNormalMixture(((0.3, 1.0, 0.5), (0.7, 3.0, 0.8)), low=2.0, high=80.0)
    table = QuantileTable((-3.0, -1.0, 0.5, 3.0), (1.0, 2.0, 2.5, 6.0))
    for law in (mixture, table, Discrete((0.5, 0.25, 0.25))):
        values = sample(law)
        assert values.mean() == pytest.approx(law.mean, abs=4 * values.std() / np.sqrt(NUM))
    assert sample(mixture).min() >= 2.0 and sample(mixture).max() <= 80.0


def test_quantile_table_reproduces_its_knots():
    table = QuantileTable((-3.0, -1.0, 0.5, 3.0), (1.0, 2.0, 2.5, 6.0))
    values = sample(table)
    for score, log_value in ((-1.0, 2.0), (0.5, 2.5)):
        assert np.quantile(values, reference.norm.cdf(score)) == pytest.approx(np.exp(log_value), rel=0.01)
        assert table.quantile(reference.norm.cdf(score)) == pytest.approx(np.exp(log_value), rel=1e-6)


def test_zipf_popularity_has_its_exponent():
    counts = np.bincount(sample(zipf(27, 1.5)).astype(int))[1:]
    assert counts[0] / counts[7] == pytest.approx(8**1.5, rel=0.06)
    assert len(counts) == 27


def test_accumulate_is_exact_across_epochs_and_wraps():
    random = np.random.default_rng(0)
    us = random.integers(0, 2**31 - 1, 5000).astype(np.int32)
    us[:3] = [0, 2**31 - 1, 2**31 - 1]
    epoch = random.integers(0, 1000, 5000).astype(np.int32)
    total = accumulate((jnp.asarray(epoch), jnp.asarray(us)))
    assert total[0].dtype == total[1].dtype == jnp.int32
    assert int(total[1].max()) < EPOCH_US
    np.testing.assert_array_equal(join_us(*total), np.cumsum(epoch.astype(np.int64) * EPOCH_US + us))


def test_gaps_of_any_length_are_split_without_loss():
    gap = np.array([0.0, 0.6, 1.0, 2**30 - 64, 2**30, 2**31, 3.0e12, 1.5e15], np.float32)
    epoch, us = split_gap(jnp.asarray(gap))
    np.testing.assert_array_equal(join_us(epoch, us), np.rint(gap.astype(np.float64)).astype(np.int64))


def test_drift_keeps_the_mean_gap():
    process = DriftingRenewal(Exponential(), sigma=0.4, memory_requests=100.0)
    make = jax.jit(jax.vmap(lambda k: process.gaps(k, 20_000)))
    gaps = make(jax.random.split(jax.random.key(0), 32))
    assert float(gaps.mean()) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("mean_gap_us", [305_810.4, 7.0e8])
def test_tick_batches_are_the_inner_process_rounded_down_to_ticks(mean_gap_us):
    key, mean = jax.random.key(3), jnp.float32(mean_gap_us)
    unit = np.asarray(Renewal(Exponential()).gaps(key, 4000))
    fine = np.cumsum(np.rint(unit * np.float32(2**24 / 9.81)).astype(np.int64))
    tick_us = int(np.rint(np.float32(9.81) * np.float32(mean_gap_us)))
    batched = join_us(*accumulate(TickBatches(Renewal(Exponential()), 9.81).gap_times(key, 4000, mean)))
    np.testing.assert_array_equal(batched, (fine >> 24) * tick_us)
