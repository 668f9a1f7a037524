"""The peak of tensors' bytes, beside sums by hand."""

import torch

from streamlm.lab.tensor_memory import peak_tensor_bytes


def test_what_is_let_go_does_not_count_any_more() -> None:
    def work() -> None:
        a = torch.zeros(1000)
        b = a + 1  # 8,000 bytes now
        del a
        c = b * 2  # 8,000 again
        del b, c

    assert peak_tensor_bytes(work) == 8000


def test_views_hold_what_they_show_and_cost_nothing() -> None:
    weights = torch.ones(50, 50)

    def work() -> torch.Tensor:
        a = torch.zeros(1000)
        view = a[:10]
        del a
        other = torch.zeros(500)
        return weights.t()[0] + view[0] + other[0]

    # 4,000 that the view holds, 2,000, and two sums of 50 numbers.
    assert peak_tensor_bytes(work) == 4000 + 2000 + 400


def test_changes_in_place_cost_nothing() -> None:
    given = torch.zeros(1000)

    def work() -> None:
        given.add_(1).mul_(2)

    assert peak_tensor_bytes(work) == 0
    assert given[0] == 2
