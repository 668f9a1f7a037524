"""Adaptive input embedding and adaptive softmax: rare tokens are narrow, and looked at when needed.

The vocabulary, most frequent first, is cut into bins at `cutoffs`. Bin i has its own table E_i of
width d_i = embed_dim / div_val^i and a projection P_i to the model's width:

    input    x = P_i E_i[token]
    head     softmax over the tokens of bin 0 and one cluster row per further bin
    output   log p(token) = head[cluster i] + log softmax((h P_i) E_iᵀ + b_i)[token]

Tables are tied between input and output, and so are P_1, P_2, …; the head has a P_0 of its own.
With div_val 1 there is one table that the bins are slices of, and one input projection, or none at
all if embed_dim is the model's width (Transformer-XL, the authors' wt103 models; after Baevski &
Auli 2018 and Grave et al. 2016).

Shapes: D model width, V vocabulary, n_0 tokens of bin 0, n clusters.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig
from streamlm.transfer import send

PROJECTION_STD = 0.01  # as the authors'


class AdaptiveEmbedding(nn.Module):
    """Both ends of a model with `cutoffs`, but for the output's bias, which every model has."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, div, d_model = config.embed_width, config.div_val, config.d_model
        self.bins = list(pairwise((0, *config.cutoffs, config.vocab_size)))  # (start, stop)
        self.one_table = div == 1
        if self.one_table:
            shapes = [(config.vocab_size, width)]
        else:
            shapes = [(stop - start, width // div**i) for i, (start, stop) in enumerate(self.bins)]
        self.projected = not self.one_table or width != d_model
        self.tables = nn.ParameterList(torch.empty(n, d) for n, d in shapes)
        self.projections = nn.ParameterList(
            torch.empty(d_model, d) for _, d in (shapes if self.projected else [])
        )
        self.head_projection = nn.Parameter(torch.empty(d_model, width)) if self.projected else None
        self.cluster_weight = nn.Parameter(torch.empty(len(config.cutoffs), width))
        self.cluster_bias = nn.Parameter(torch.empty(len(config.cutoffs)))

    def reset(self, std: float) -> None:
        """Initial weights: tables and clusters N(0, std), projections N(0, 0.01), biases 0."""
        for weight in (*self.tables, self.cluster_weight):
            nn.init.normal_(weight, std=std)
        for weight in self.projections:
            nn.init.normal_(weight, std=PROJECTION_STD)
        if self.head_projection is not None:
            nn.init.normal_(self.head_projection, std=PROJECTION_STD)
        nn.init.zeros_(self.cluster_bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed ids: [...] → [..., D], not yet scaled by √D.

        Every bin looks at every token, and what is not its own counts as zero. That costs little,
        the rarer bins being narrow, keeps shapes static, and no token's last bits depend on what
        stands beside it.

        Raises:
            IndexError: an id outside the vocabulary.
        """
        if self.one_table:
            x = F.embedding(tokens, self.tables[0])
            return F.linear(x, self.projections[0]) if self.projected else x
        parts = []
        last = len(self.bins) - 1
        for i, (start, stop) in enumerate(self.bins):
            # Not clamped at the two ends of the vocabulary, so that a wrong id is an error.
            own = tokens.clamp(min=start if i > 0 else None, max=stop - 1 if i < last else None)
            inside = (tokens >= start) & (tokens < stop)
            rows = F.embedding(own - start, self.tables[i]) * inside[..., None]
            parts.append(F.linear(rows, self.projections[i]))
        return torch.stack(parts).sum(dim=0)

    def log_probs(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Log-probabilities of the whole vocabulary: hidden [..., D], bias [V] → [..., V]."""
        head = self._head(hidden, bias)
        n_0 = self.bins[0][1]
        parts = [head[..., :n_0]]
        for i in range(1, len(self.bins)):
            parts.append(self._tail(i, hidden, bias) + head[..., n_0 + i - 1, None])
        return torch.cat(parts, dim=-1)

    def log_prob(self, hidden: Tensor, targets: Tensor, bias: Tensor) -> Tensor:
        """Log-probabilities of the targets; a bin's tokens are looked at only where one is meant.

        The number of targets in each bin determines shapes: with targets on CUDA the host
        synchronizes once per bin, with targets on the host it does not.

        Args:
            hidden: [N, D]; targets: [N] ids, on the device of `hidden` or on the host; bias: [V].

        Returns:
            [N], at least float32.
        """
        n_0 = self.bins[0][1]
        bins = torch.zeros_like(targets)  # [N]
        for start, _ in self.bins[1:]:
            bins = bins + (targets >= start)
        parts = [torch.where(bins > 0, n_0 - 1 + bins, targets)]
        for i, (start, _) in enumerate(self.bins[1:], start=1):
            rows = (bins == i).nonzero()[:, 0]
            parts += [rows, targets[rows] - start]
        # One copy for all of them.
        column, *tails = send(torch.cat(parts), hidden.device).split([len(each) for each in parts])
        found = self._head(hidden, bias).gather(1, column[:, None])[:, 0]
        for i, (rows, own) in enumerate(zip(tails[::2], tails[1::2], strict=True), start=1):
            if len(rows):
                tail = self._tail(i, hidden[rows], bias).gather(1, own[:, None])[:, 0]
                found = found.index_add(0, rows, tail)
        return found

    def _head(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Bin 0 and the clusters: [..., D] → [..., n_0 + n]."""
        n_0 = self.bins[0][1]
        if self.head_projection is not None:
            hidden = hidden @ self.head_projection
        words = F.linear(hidden, self.tables[0][:n_0], bias[:n_0])
        clusters = F.linear(hidden, self.cluster_weight, self.cluster_bias)
        return _log_softmax(torch.cat([words, clusters], dim=-1))

    def _tail(self, i: int, hidden: Tensor, bias: Tensor) -> Tensor:
        """Bin i on its own: [..., D] → [..., n_i]."""
        start, stop = self.bins[i]
        if self.projected:
            hidden = hidden @ self.projections[0 if self.one_table else i]
        table = self.tables[0][start:stop] if self.one_table else self.tables[i]
        return _log_softmax(F.linear(hidden, table, bias[start:stop]))


def _log_softmax(scores: Tensor) -> Tensor:
    return scores.log_softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
