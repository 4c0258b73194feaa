"""The noise is Philox4x32-10 through Box-Muller: the right bits, the right distribution, the same everywhere."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from updates import same_bits

from deeprelax.kernels import Draw, noise

pytestmark = pytest.mark.usefixtures("one_thread")
MASK = 0xFFFFFFFF
SEED = 20170612
ERROR = 1.5e-6  # absolute, of one normal; the largest met in 2^24 places with radii up to the last is 1.33e-6


def philox_of_integers(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Salmon et al. 2011, section 4.3, on Python's integers."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) ^ b ^ k0, right & MASK, (left >> 32) ^ d ^ k1, left & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return a, b, c, d


def word_of_element(draw: Draw, index: int, element: int, rounding: bool = False) -> int:
    """Section 5 of the design."""
    block = element // 4
    counter = (block & MASK, (block >> 32) | rounding << 31, index, draw.step)
    key = (draw.seed & MASK, (draw.seed >> 32) ^ draw.replica)
    return philox_of_integers(counter, key)[element % 4]


def box_muller_in_float64(w0: np.ndarray, w1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cosine, sine) with u = the upper 31 bits of w0, made odd and rounded to float32, over 2^31; the angle is
    w1's upper two bits quarter turns plus its other thirty bits, signed, as a fraction of an eighth of a turn."""
    u = ((w0 >> 1) | 1).astype(np.float32).astype(np.float64) / 2**31
    rest = w1 & (2**30 - 1)
    eighths = np.where(rest < 2**29, rest, rest - 2**30) / 2**29
    angle = math.pi / 2 * (w1 >> 30) + math.pi / 4 * eighths
    radius = np.sqrt(-2 * np.log(u))
    return radius * np.cos(angle), radius * np.sin(angle)


def largest_error(w0: np.ndarray, w1: np.ndarray) -> float:
    found = noise.box_muller(torch.from_numpy(w0), torch.from_numpy(w1))
    expected = box_muller_in_float64(w0, w1)
    return max(float(np.abs(f.double().numpy() - e).max()) for f, e in zip(found, expected))


def native(instruction_set: str | None = None):
    module = pytest.importorskip("deeprelax._cpu")
    from deeprelax.kernels.cpu import NativeCPU

    return NativeCPU(module, instruction_set)


def normal(draw: Draw, index: int, start: int, count: int) -> Tensor:
    return noise.normal(draw, index, start, (count,), "cpu")


def many(step: int, count: int, start: int = 0) -> Tensor:
    """Normals from the fast generator; other tests compare it with the reference bit by bit."""
    return native().normal(Draw(SEED, step), 0, start, count).double()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_returns_the_published_words_of_random123(counter: str, key: str, expected: str) -> None:
    counter_, key_, expected_ = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
    found = noise.philox(tuple(torch.tensor([c]) for c in counter_), tuple(key_))
    assert [int(word) for word in found] == expected_
    assert list(philox_of_integers(tuple(counter_), tuple(key_))) == expected_


@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("start", [0, 1, 6, 4 * 2**32 - 5, 2**40 + 3])
def test_an_element_takes_the_word_that_the_design_says(start: int, rounding: bool) -> None:
    for draw, index in [(Draw(SEED, 0), 0), (Draw(0xFEDCBA9876543210, 0xFFFFFFFE, 0x89ABCDEF), 77)]:
        found = noise.words(draw, index, start, (11,), "cpu", rounding=rounding)
        assert found.tolist() == [word_of_element(draw, index, start + i, rounding) for i in range(11)]


@pytest.mark.parametrize("start", [0, 3, 2**34 - 2])
def test_words_0_and_1_make_the_first_two_normals_of_four(start: int) -> None:
    draw, count = Draw(SEED, 5, 2), 21
    first = start // 4 * 4
    words = np.array([word_of_element(draw, 3, first + i) for i in range(count + 7)]).reshape(-1, 4)
    pairs = [*box_muller_in_float64(words[:, 0], words[:, 1]), *box_muller_in_float64(words[:, 2], words[:, 3])]
    expected = np.stack(pairs, axis=1).reshape(-1)[start - first :][:count]
    assert np.abs(normal(draw, 3, start, count).double().numpy() - expected).max() < ERROR


def test_normals_are_within_a_stated_error_of_float64() -> None:
    rng = np.random.default_rng(2)
    assert largest_error(*rng.integers(0, 2**32, (2, 2**20))) < ERROR
    radii = np.concatenate([rng.integers(2**e, 2 ** (e + 1), 2**14) for e in range(32)] + [np.arange(4096)])
    edges = np.concatenate([q * 2**29 + np.arange(-64, 64) for q in range(9)]) & MASK
    extremes = np.array([0, 1, 2, 3, 2**31 - 1, 2**31, 2**32 - 512, 2**32 - 257, 2**32 - 1])
    assert largest_error(radii, rng.integers(0, 2**32, len(radii))) < ERROR
    assert largest_error(*(a.ravel() for a in np.meshgrid(extremes, edges))) < ERROR
    assert largest_error(rng.integers(0, 2**10, 2**16), rng.integers(0, 2**32, 2**16)) < ERROR


def test_the_first_four_moments_are_those_of_a_standard_normal() -> None:
    x = many(1, 2**21)
    n = len(x)
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(float((x**power).mean()) - mean) < 4 * math.sqrt(variance / n), power


def test_the_distribution_passes_kolmogorov_smirnov() -> None:
    x = many(2, 2**20).numpy()
    for part in (x, x[0::4], x[1::4], x[2::4], x[3::4]):  # each place in a Philox call on its own as well
        assert stats.kstest(part, "norm").pvalue > 1e-3


def test_neighbours_and_their_squares_are_uncorrelated() -> None:
    x = many(3, 2**20)
    squares = (x * x - 1) / math.sqrt(2)
    for lag, v in itertools.product(range(1, 9), (x, squares)):
        assert abs(float((v[:-lag] * v[lag:]).mean())) < 4.5 / math.sqrt(len(x) - lag), lag


@pytest.mark.parametrize("places", list(itertools.combinations(range(4), 2)))
def test_the_four_normals_of_one_philox_call_are_independent_in_pairs(places: tuple[int, int]) -> None:
    four = many(4, 2**19).reshape(-1, 4)
    a, b = four[:, places[0]], four[:, places[1]]
    square = lambda v: (v * v - 1) / math.sqrt(2)  # noqa: E731
    for f, g in [(a, b), (square(a), square(b)), (a, square(b)), (square(a), b)]:
        assert abs(float((f * g).mean())) < 4.5 / math.sqrt(len(a))
    counts = np.histogram2d(*(stats.norm.cdf(v.numpy()) for v in (a, b)), bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_tails_hold_as_many_values_beyond_3_4_and_5_sigma_as_they_should() -> None:
    n, part = 2**26, 2**22
    x = torch.cat([x[x.abs() > 3] for x in (many(6, part, start) for start in range(0, n, part))])
    for sigma, sign in itertools.product((3, 4, 5), (-1, 1)):
        count = int((sign * x > sigma).sum())
        low, high = stats.poisson.interval(1 - 1e-4, n * stats.norm.sf(sigma))
        assert low <= count <= high, f"{count} beyond {sign * sigma}"


def test_the_native_generators_return_the_bits_of_the_reference() -> None:
    draw = Draw(0xFEDCBA9876543210, 0xFFFFFFFE, 0x89ABCDEF)
    starts = [0, 1, 2, 3, 5, 123, 2**34 - 130, 2**34 + 1, 2**35 + 2, 2**40 + 3]
    generators = {name: native(name) for name in native().module.instruction_sets()}
    for start, count in [*itertools.product(starts, [0, 1, 3, 4, 5, 31, 64, 65, 1027]), (7, 2**20)]:
        expected = normal(draw, 0xABCDEF, start, count)
        for name, cpu in generators.items():
            assert same_bits(cpu.normal(draw, 0xABCDEF, start, count), expected), (name, start, count)


OTHERS = {
    "seed": (Draw(SEED + 1, 7, 0), 0, 0),
    "upper half of the seed": (Draw(SEED + 2**33, 7, 0), 0, 0),
    "replica": (Draw(SEED, 7, 1), 0, 0),
    "step": (Draw(SEED, 8, 0), 0, 0),
    "parameter": (Draw(SEED, 7, 0), 1, 0),
    "element beyond 2^34": (Draw(SEED, 7, 0), 0, 2**34),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_seed_replica_step_or_parameter_draws_other_noise(other: str) -> None:
    n = 2**16
    a = normal(Draw(SEED, 7, 0), 0, 0, n).double()
    draw, index, start = OTHERS[other]
    b = normal(draw, index, start, n).double()
    assert int((a == b).sum()) < 10
    for lag in range(-4, 5):
        assert abs(float((a * b.roll(lag)).mean())) < 4.5 / math.sqrt(n)
    assert abs(float(((a * a - 1) * (b * b - 1)).mean()) / 2) < 4.5 / math.sqrt(n)


def test_stochastic_rounding_gives_neighbours_with_an_exact_expectation() -> None:
    every_word = torch.arange(2**16)
    generator = torch.Generator().manual_seed(3)
    edges = [1.0, -1.0, 0.0, 1 + 2**-23, -1 - 2**-9, 1e-40, -3e-39, 2.0**-133, 3.3e38, 0.1, 1.9999999]
    values = torch.cat((torch.tensor(edges), torch.randn(8, generator=generator)))
    v = values[:, None].repeat(1, 2**16)
    found = noise.round_stochastically(v, every_word).double()
    assert torch.equal(found.mean(1), values.double())
    toward_zero = v.view(torch.int32) & -0x10000
    neighbours = [bits.view(torch.float32).double() for bits in (toward_zero, toward_zero + 0x10000)]
    assert bool(((found == neighbours[0]) | (found == neighbours[1])).all())
    assert torch.equal(found, noise.round_stochastically(v, every_word | 0xABCD0000).double())


def test_stochastic_rounding_keeps_infinities_nans_and_signs_of_zero() -> None:
    bits = torch.tensor([0x7F800000, -0x800000, 0x7F800001, 0x7FFFFFFF, -1, 0, -0x80000000], dtype=torch.int64)
    v = bits.to(torch.int32).view(torch.float32)
    for word in (0, 1, 0x7FFF, 0xFFFF, MASK):
        found = noise.round_stochastically(v, torch.full((7,), word))
        assert found[:2].tolist() == [math.inf, -math.inf]
        assert bool(found[2:5].isnan().all())
        assert found[5:].tolist() == [0, 0]
        assert found[5:].signbit().tolist() == [False, True]
