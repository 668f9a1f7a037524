"""Does the memory report know what will be recalled? Its score against right and wrong answers."""

from typing import Any

import numpy as np
import torch

from streamlm.lab.tasks import Answers, Questions
from streamlm.lab.tasks.questions import REGIONS
from streamlm.models.base import Model
from streamlm.runtime.memory_report import observe


def foresight(
    model: Model, questions: Questions, answers: Answers, *, bos: int, most: int, seed: int = 0
) -> dict[str, Any]:
    """How well `MemoryReport.kept` of what was told, just before it is asked, foretells success.

    Args:
        most: questions to look at, drawn at random; each is read up to where it is asked.

    Returns:
        `auc` over all of them, and over those that lie in compressed memory: the probability that a
        question answered right scores higher than one answered wrong, ties counting half; None
        where all are right, or all wrong.
    """
    random = np.random.default_rng(seed)
    drawn = random.permutation(len(questions))[:most]
    scores = np.zeros(len(drawn))
    for i, which in enumerate(drawn):
        place, cue = int(questions.query[which, 0]), questions.cue[which]
        row = questions.tokens[questions.row[which], :place].astype(np.int64)
        inputs = torch.from_numpy(np.concatenate([[bos], row]))[None].to(model.device)
        report = observe(model, inputs, model.init_state(1))
        scores[i] = np.mean([report.kept(int(at), int(at) + 1) for at in cue])
    right, region = answers.right[drawn], answers.region[drawn]
    compressed = region == REGIONS.index("compressed memory")
    return {
        "questions": len(drawn),
        "auc": area(scores, right),
        "compressed": {
            "questions": int(compressed.sum()),
            "right": int(right[compressed].sum()),
            "auc": area(scores[compressed], right[compressed]),
        },
    }


def area(scores: np.ndarray, right: np.ndarray) -> float | None:
    """Area under the ROC curve; None without both kinds."""
    good, bad = scores[right], scores[~right]
    if not len(good) or not len(bad):
        return None
    above = (good[:, None] > bad[None]).mean() + 0.5 * (good[:, None] == bad[None]).mean()
    return float(above)
