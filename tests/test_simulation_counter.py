"""Random numbers from a key and a counter: the right distributions, independent streams, and no state."""

import math

import numpy as np
import pytest

from csst_dask.simulation.counter import bits, make_key, mix64, normal, poisson, uniform
from csst_dask.simulation.counter import substream as compiled_substream

KEY = make_key(1, 2)
N = 20_000


def substream(key, index):
    """Compiled functions hand plain integers back; a key is an unsigned one."""
    return np.uint64(compiled_substream(key, index))


def counters(n=N, start=0):
    return np.arange(start, start + n, dtype=np.uint64)


def uniforms(key, n=N):
    return np.array([uniform(key, k) for k in counters(n)])


def first_of_streams(key, n=N):
    return np.array([uniform(substream(key, k), np.uint64(0)) for k in counters(n)])


def poissons(mean, key, n=N):
    return np.array([poisson(mean, substream(key, k)) for k in counters(n)], float)


def test_bits_are_those_of_splitmix64():
    # reference implementation of S. Vigna, seed 1234567
    found = [int(bits(np.uint64(1234567), k)) for k in counters(5)]
    assert found == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


def test_one_bit_of_the_input_changes_half_of_the_bits():
    flips = np.zeros((64, 64))
    for n in range(100):
        x = np.uint64(bits(KEY, np.uint64(n)))
        for k in range(64):
            change = int(mix64(x)) ^ int(mix64(np.uint64(int(x) ^ (1 << k))))
            flips[k] += [(change >> b) & 1 for b in range(64)]
    assert np.abs(flips / 100 - 0.5).max() < 0.27  # 5.4 sigma of 100 coins
    assert flips.mean() / 100 == pytest.approx(0.5, abs=0.005)


def test_uniforms_fill_the_open_interval_evenly():
    u = uniforms(KEY)
    assert u.min() > 0
    assert u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=4 / np.sqrt(12 * N))
    assert u.var() == pytest.approx(1 / 12, abs=4 / np.sqrt(180 * N))
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) at a chance of 1e-3
    assert np.abs(np.sort(u) - (np.arange(N) + 0.5) / N).max() < 1.95 / np.sqrt(N)


def test_normals_have_the_moments_of_a_normal():
    z = np.array([normal(KEY, k) for k in counters()])
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (z**power).mean() == pytest.approx(moment, abs=4 * np.sqrt(variance / N))
    assert np.corrcoef(z[:-1], z[1:])[0, 1] == pytest.approx(0, abs=4 / np.sqrt(N))


@pytest.mark.parametrize("mean", [0.02, 0.7, 4.0, 9.99, 10.0, 10.5, 30.0, 600.0, 2e5])
def test_poisson_numbers_have_their_mean_as_variance(mean):
    n = poissons(mean, make_key(5, round(100 * mean)))
    assert (n >= 0).all()
    assert n.mean() == pytest.approx(mean, abs=4 * np.sqrt(mean / N))
    assert n.var() == pytest.approx(mean, abs=4 * np.sqrt((mean + 2 * mean**2) / N))


@pytest.mark.parametrize("mean", [3.0, 9.9, 10.1, 40.0])
def test_poisson_numbers_are_as_frequent_as_the_law_says(mean):
    n = poissons(mean, make_key(6, round(10 * mean)))
    k = np.arange(int(mean + 8 * np.sqrt(mean)))
    expected = N * np.exp(k * np.log(mean) - mean - [math.lgamma(j + 1) for j in k])
    found = np.bincount(n.astype(int), minlength=len(k))[: len(k)]
    usual = expected > 10
    chi2 = ((found - expected)[usual] ** 2 / expected[usual]).sum()
    assert abs(chi2 - usual.sum()) < 4.5 * np.sqrt(2 * usual.sum())


@pytest.mark.parametrize("mean", [0.0, -3.0, float("nan")])
def test_no_mean_gives_no_events(mean):
    assert poisson(mean, KEY) == 0


def test_streams_under_a_key_are_uncorrelated():
    first, bound = first_of_streams(KEY), 4 / np.sqrt(N)
    others = (
        first_of_streams(np.uint64(int(KEY) + 1)),
        first_of_streams(make_key(1, 3)),
        first_of_streams(make_key(2, 2)),
        uniforms(KEY),
        uniforms(substream(KEY, np.uint64(0))),
        np.array([uniform(substream(KEY, k), np.uint64(1)) for k in counters()]),
    )
    for other in (first[1:], first[2:], first[16:], *others):
        pair = first[: len(other)]
        assert abs(np.corrcoef(pair, other)[0, 1]) < 1.1 * bound
        assert not np.intersect1d(pair[:1000], other[1000:2000]).size


def test_numbers_do_not_depend_on_the_order_they_are_asked_for():
    keys = [substream(KEY, k) for k in counters(200)]
    forward = [(uniform(k, np.uint64(3)), normal(k, np.uint64(4)), poisson(25.0, k)) for k in keys]
    order = np.random.default_rng(0).permutation(200)
    backward = {int(j): (poisson(25.0, keys[j]), normal(keys[j], np.uint64(4)), keys[j]) for j in order}
    for j, (u, z, n) in enumerate(forward):
        assert backward[j][:2] == (n, z)
        assert uniform(backward[j][2], np.uint64(3)) == u


def test_every_word_of_a_name_counts():
    names = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (-1,), (2**64 - 2,), (2**63,)]
    assert len({int(make_key(*name)) for name in names}) == len(names)
    assert make_key(-1) == make_key(2**64 - 1)
