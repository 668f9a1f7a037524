"""Runs of equal types, and rows of slots that move on each by a number of its own."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from streamlm.models.heads.sketch import pushed, runs
from tests.reference.sketch import runs as literal


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 5))
def test_runs_end_where_the_type_changes_or_they_are_long_enough(
    types: list[int], longest: int
) -> None:
    member = runs(torch.tensor([types, [0] * len(types)]), longest=longest)
    for row, of_row in enumerate((types, [0] * len(types))):
        found = [each.nonzero().flatten().tolist() for each in member[row] if bool(each.any())]
        assert found == literal(of_row, longest)
        assert not bool(member[row, len(found) :].any())


def test_rows_are_pushed_by_a_number_of_their_own() -> None:
    old = torch.tensor([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]])
    new = torch.arange(10, 70, 10).view(1, 3, 2)
    wanted = [[1, 2, 3], [5, 6, 30], [9, 50, 60]]
    assert pushed(old, new, torch.tensor([0, 1, 2])).tolist() == [wanted]
    longer = torch.arange(10, 60, 10).view(1, 1, 5)
    assert pushed(old[:, :1], longer, torch.tensor([5])).tolist() == [[[30, 40, 50]]]
