import pytest

from hcast_zoo.common.sample import spread


@pytest.mark.parametrize("length", [0, 3, 6, 7, 11, 12, 100])
def test_a_sample_is_spread_over_the_whole_list(length):
    """With 11 answers, a card's row of six once showed the first six."""
    items = list(range(length))
    sample = spread(items, 6)
    assert len(sample) == min(length, 6) and sample == sorted(set(sample))
    gaps = [after - before for before, after in zip(sample, [*sample[1:], length])]
    assert not items or (sample[0] == 0 and max(gaps) - min(gaps) <= 1)
