"""What takes the place of the source."""

import pytest

from latentwire.evaluation.methods import derangement, head_ids


@pytest.mark.parametrize("seed", range(20))
def test_strangers_come_from_other_passages_and_each_once(seed):
    owners = ["a", "a", "a", "b", "c", "c", "d", "e"]
    strangers = derangement(owners, seed)
    assert sorted(strangers) == list(range(len(owners)))
    assert all(owners[own] != owners[other] for own, other in enumerate(strangers))


def test_no_derangement_where_one_passage_holds_most():
    with pytest.raises(ValueError, match="3 of 5"):
        derangement(["a", "a", "a", "b", "c"], seed=1)


def test_the_head_never_exceeds_the_ratio_and_is_never_empty():
    assert head_ids([[*range(11)], [7]], 4) == [[0, 1], [7]]
