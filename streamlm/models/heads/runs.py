"""Runs of tokens of one type, and rows of slots that each move on by a number of their own."""

import torch
from torch import Tensor


def runs(types: Tensor, *, longest: int) -> Tensor:
    """Which tokens make up which run: [B, T] → [B, T runs, T tokens] bool, the first run first.

    A run ends where the type changes, and after `longest` tokens. There may be fewer runs than
    tokens: the last ones are then empty.
    """
    at = torch.arange(types.shape[1], device=types.device)
    changes = types != types.roll(1, dims=1)  # of the first, either will do
    since = at - (at * changes).cummax(dim=1).values  # tokens of this type before, in a row
    begins = changes | (since % longest == 0)
    of_token = begins.cumsum(dim=1) - 1  # [B, T]
    return of_token[:, None] == at[:, None]


def pushed(old: Tensor, new: Tensor, counts: Tensor) -> Tensor:
    """Old columns with the first few new ones behind, as many columns as there were.

    Args:
        old: [N, B, C, ...], right-aligned.
        new: [N, B, T, ...], of which row b takes the first counts[b]; counts: [B], 0 to T.

    Returns:
        [N, B, C, ...]; the oldest columns go.
    """
    row = torch.arange(old.shape[1], device=old.device)[:, None]
    column = counts[:, None] + torch.arange(old.shape[2], device=old.device)
    return torch.cat([old, new], dim=2)[:, row, column]
