"""Random structure on the sky: one mean and one variance everywhere, no seams, a field of its own for every key."""

import numpy as np
import pytest

from csst_dask.simulation.counter import make_key
from csst_dask.simulation.structure import SCALES, structure

KEYS = [make_key(9, k) for k in range(2000)]


def directions(n, seed=0):
    found = np.random.default_rng(seed).standard_normal((n, 3))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def values(key, places):
    return np.array([structure(key, *map(float, place)) for place in places])


def unit(ra, dec):
    ra, dec = np.deg2rad([ra, dec])
    return np.array([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


NODE = SCALES[0] * np.array([8.0, 9.0, np.sqrt(SCALES[0] ** -2 - 145.0)])
PLACES = {
    "node": NODE,
    "half-way": NODE + 0.5 * SCALES[0],
    "pole": unit(0, 90),
    "origin of ra": unit(0, 0),
    "elsewhere": unit(123.4, -56.7),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_every_place_has_mean_0_and_variance_1_over_the_keys(place):
    x = values_of_keys(place)
    assert x.mean() == pytest.approx(0, abs=4 / np.sqrt(x.size))
    assert x.var() == pytest.approx(1, abs=4 * np.sqrt(2 / x.size))


def values_of_keys(place):
    return np.array([structure(key, *map(float, place)) for key in KEYS])


def test_one_field_has_mean_0_and_variance_1_over_the_sky():
    places = directions(3000)
    fields = np.array([values(key, places) for key in KEYS[:12]])
    # scales of 4 and 2 deg, with half and a quarter of the variance, cut the sky into some 2600 and 10 000 patches
    error = np.sqrt((0.5 / 2600 + 0.25 / 10_000 + 1 / 3000) / 12)
    assert fields.mean() == pytest.approx(0, abs=4 * error)
    assert fields.var() == pytest.approx(1, abs=4 * np.sqrt(2) * error)
    between = np.corrcoef(fields)[np.triu_indices(12, 1)]
    assert np.abs(between).max() < 4.5 * error * np.sqrt(12)


def test_it_is_continuous_everywhere():
    step, key = 1e-8, KEYS[3]
    rng = np.random.default_rng(1)
    crossings = []
    for scale in SCALES:
        for axis in range(3):
            # just before and behind a face of a lattice that cuts the sphere
            at = scale * rng.integers(-int(0.6 / scale), int(0.6 / scale) + 1, 6)
            rest = np.sqrt(1 - at**2)
            angle = rng.uniform(0, 2 * np.pi, 6)
            both = np.stack([rest * np.cos(angle), rest * np.sin(angle)], 1)
            crossings += [
                (np.insert(b, axis, a - step), np.insert(b, axis, a + step)) for a, b in zip(at, both, strict=True)
            ]
    crossings += [(unit(360 - 1e-6, dec), unit(1e-6, dec)) for dec in (-89.9999, -30, 0, 70)]
    crossings += [(unit(0, 90 - 1e-6), unit(180, 90 - 1e-6)), (unit(90, -90 + 1e-6), unit(270, -90 + 1e-6))]
    crossings += [(p - step, p + step) for p in directions(200, 4)]
    before, behind = (values(key, side) for side in zip(*crossings, strict=True))
    # the steepest slope: a few times 1 in an eighth of a degree
    assert np.abs(before - behind).max() < 30 / SCALES[-1] * 4e-8
    assert before.std() > 0.5


def test_near_places_are_alike_and_far_ones_are_not():
    places = directions(4000, 7)
    east = np.cross(places, [0.0, 0.0, 1.0])
    east /= np.linalg.norm(east, axis=1, keepdims=True)

    def correlation(degrees):
        moved = places * np.cos(np.deg2rad(degrees)) + east * np.sin(np.deg2rad(degrees))
        return np.mean([np.mean(values(k, places) * values(k, moved)) for k in KEYS[:3]])

    found = [correlation(angle) for angle in (0.01, 0.1, 0.5, 2.0, 12.0)]
    assert (np.diff(found) < 0).all()
    assert found[0] > 0.99
    assert found[1] < 0.985  # there is structure of an eighth of a degree
    assert abs(found[-1]) < 0.06
