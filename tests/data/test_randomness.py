"""Random numbers of rows: those of freshly made generators, whatever was drawn before and by whichever thread."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ddl_plugin.data.randomness import RowRandom


def fresh(seed, step, row, stream=0):
    key = np.random.SeedSequence([seed, 0x6175676D]).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, stream, row, step]))


def test_a_row_has_the_numbers_of_its_own_generator():
    random = RowRandom(5, first_row=0, whole_rows=48)
    for step, row in [(0, 0), (3, 7), (3, 8), (10**9, 47), (3, 7)]:
        generator = random.pixels(step, row)
        expected = fresh(5, step, row)
        assert np.array_equal(generator.random(5), expected.random(5))
        generator.integers(7, dtype=np.int32)  # leaves half of a word behind
        generator.standard_normal()


def test_a_share_has_the_numbers_of_its_rows_in_the_whole():
    whole, share = RowRandom(5, 0, 48), RowRandom(5, 16, 48)
    assert whole.pixels(3, 20).random() == share.pixels(3, 4).random()
    assert whole.spare(3, 20, 1).random() == share.spare(3, 4, 1).random()
    assert np.array_equal(whole.mirrored(3, 48)[16:32], share.mirrored(3, 16))
    assert np.array_equal(whole.mirrored(3, 48), fresh(5, 3, 48).random(48) < 0.5)


def test_spares_and_their_tries_are_streams_of_their_own():
    random = RowRandom(5, 0, 48)
    drawn = [random.pixels(3, 4).random(4)] + [random.spare(3, 4, attempt).random(4) for attempt in range(3)]
    assert len(np.unique(drawn)) == 16
    assert np.array_equal(drawn[2], fresh(5, 3, 4, stream=2).random(4))


def test_threads_do_not_disturb_each_other():
    random = RowRandom(1, 0, 8)

    def draw(row):
        return [random.pixels(step, row).random(3).tolist() for step in range(200)]

    with ThreadPoolExecutor(4) as pool:
        for row, found in enumerate(pool.map(draw, range(4))):
            assert found == [fresh(1, step, row).random(3).tolist() for step in range(200)]
