"""Randomness from names."""

import numpy as np

from fedsim.seeds import generator, keyed_generator, torch_generator


def test_the_same_names_give_the_same_numbers() -> None:
    a = generator(1, "select", 3).random(5)
    b = generator(1, "select", 3).random(5)
    assert (a == b).all()
    assert torch_generator(1, "x").initial_seed() == torch_generator(1, "x").initial_seed()


def test_other_names_give_other_numbers() -> None:
    names = [(1, "a", 1), (1, "a", "1"), (1, "a1"), (2, "a", 1), (1, "b", 1), (1,), (1, "a", 1, "")]
    drawn = {generator(*n).integers(2**62) for n in names}
    assert len(drawn) == len(names)


def test_streams_of_neighbouring_names_do_not_correlate() -> None:
    # 2,000 streams of 50: the largest |mean| of standard normals over 2,000 stays under 5 /
    # sqrt(50) with a false alarm rate under 2e-3.
    means = [generator(0, "noise", i).standard_normal(50).mean() for i in range(2000)]
    assert np.abs(means).max() < 5 / np.sqrt(50)


def test_a_key_gives_the_stream_that_numpy_gives_it() -> None:
    for key in (bytes(16), bytes(range(16)), b"\xff" * 16):
        wanted = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        assert (keyed_generator(key).random(9) == wanted.random(9)).all()
