"""Random numbers from a key and a counter: no state, so any part of the sky can be drawn on its own.

A key names a stream (the survey, a cell of the sky, a purpose); a counter names a number in it. Equal key and counter
give equal numbers on every machine, in every order and from every thread.
"""

from __future__ import annotations

import math

import numba
import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S12 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(12)
_ONE = np.uint64(1)
_SCALE = 2.0**-52


@numba.njit(cache=True, inline="always")
def mix64(x):
    """A bijection of uint64 with good avalanche (D. Stafford, 2011, variant 13; the finaliser of SplitMix64)."""
    x = (x ^ (x >> _S30)) * _A
    x = (x ^ (x >> _S27)) * _B
    return x ^ (x >> _S31)


@numba.njit(cache=True, inline="always")
def substream(key, index):
    """Key of the stream ``index`` under a key; both uint64."""
    return mix64(mix64(key) + _GOLDEN * (np.uint64(index) + _ONE))


@numba.njit(cache=True, inline="always")
def bits(key, counter):
    """64 random bits; key and counter are uint64."""
    return mix64(key + _GOLDEN * (np.uint64(counter) + _ONE))


@numba.njit(cache=True, inline="always")
def uniform(key, counter):
    """Uniform float64 in the open interval (0, 1)."""
    return (np.float64(bits(key, counter) >> _S12) + 0.5) * _SCALE


@numba.njit(cache=True, inline="always")
def normal(key, counter):
    """Standard normal float64 (Box & Muller 1958, Ann. Math. Stat. 29, 610); uses counters 2c and 2c + 1."""
    first = np.uint64(counter) * np.uint64(2)
    return np.sqrt(-2.0 * np.log(uniform(key, first))) * np.cos(2.0 * np.pi * uniform(key, first + _ONE))


@numba.njit(cache=True)
def poisson(mean, key):
    """Poisson deviate from one stream.

    Inversion below a mean of 10, transformed rejection with squeeze above (W. Hoermann 1993, Insurance: Math. and
    Econ. 12, 39: PTRS).

    Parameters
    ----------
    mean : float
    key : uint64

    Returns
    -------
    int
    """
    if not mean > 0.0:
        return 0
    if mean < 10.0:
        u, p, k = uniform(key, np.uint64(0)), np.exp(-mean), 0
        total = p
        while u > total and k < 200:
            k += 1
            p *= mean / k
            total += p
        return k
    b = 0.931 + 2.53 * np.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inv_alpha = 1.1239 + 1.1328 / (b - 3.4)
    v_r = 0.9277 - 3.6224 / (b - 2.0)
    counter = np.uint64(0)
    while True:
        u = uniform(key, counter) - 0.5
        v = uniform(key, counter + _ONE)
        counter += np.uint64(2)
        us = 0.5 - abs(u)
        k = np.floor((2.0 * a / us + b) * u + mean + 0.43)
        if us >= 0.07 and v <= v_r:
            return int(k)
        if k < 0.0 or (us < 0.013 and v > us):
            continue
        accept = np.log(v * inv_alpha / (a / (us * us) + b))
        if accept <= -mean + k * np.log(mean) - math.lgamma(k + 1.0):
            return int(k)


def make_key(*words: int) -> np.uint64:
    """Key of a stream that is named by whole numbers.

    Parameters
    ----------
    *words : int
        Such as a seed and the number of a purpose; each is taken modulo 2**64.

    Returns
    -------
    numpy.uint64
    """
    key = np.uint64(0x243F6A8885A308D3)
    for word in words:
        key = np.uint64(substream(key, np.uint64(int(word) % 2**64)))
    return key
