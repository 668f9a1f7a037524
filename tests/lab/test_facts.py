"""Facts that no model can know: different people for calibration and evaluation, once each."""

from collections.abc import Callable

import pytest

from streamlm.lab.tasks.facts import FIRST, KINDS, LAST, NUMBER, Use, facts, planted
from tokenizer import Tokenizer

USES: tuple[Use, ...] = ("calibration", "evaluation")


@pytest.mark.parametrize("use", USES)
def test_facts_state_their_answers(use: Use) -> None:
    some = list(facts(100, use=use, seed=3))
    assert len({fact.person for fact in some}) == 100
    for at, fact in enumerate(some):
        assert fact.statement == f"{fact.cue} {fact.answer}."
        for text in (fact.cue, fact.question, fact.told):
            assert fact.person in text and fact.answer not in text and "{" not in text
        assert (fact.kind == NUMBER) == (at % 2 == 0)
        assert fact.kind != NUMBER or (len(fact.answer) == 5 and fact.answer.isdigit())
    assert {fact.kind for fact in some} == {kind.name for kind in KINDS[use]}
    assert some == list(facts(100, use=use, seed=3)) != list(facts(100, use=use, seed=4))


def test_calibration_and_evaluation_share_nothing() -> None:
    for words in (FIRST, LAST):
        assert not set(words["calibration"].split()) & set(words["evaluation"].split())
    for kind in KINDS["calibration"]:
        for other in KINDS["evaluation"]:
            assert kind.cue != other.cue and not set(kind.answers) & set(other.answers)


def test_no_more_facts_than_people() -> None:
    with pytest.raises(ValueError, match="1000 facts for calibration; allowed: at most 192"):
        list(facts(1000, use="calibration"))


def test_planted_facts_stand_where_it_is_said(
    books_tokenizer: Tokenizer, prose: Callable[..., str]
) -> None:
    tokenizer = books_tokenizer
    text = tokenizer.encode(prose(200))
    some = list(facts(5, use="evaluation"))
    at = [0, 10, 10, 50, len(text)]
    stream, spans = planted(text, some, at, tokenizer)
    for fact, (start, stop) in zip(some, spans, strict=True):
        assert tokenizer.decode(stream[start:stop]).strip() == fact.statement
    kept = [i for i in range(len(stream)) if not any(a <= i < b for a, b in spans)]
    assert stream[kept].tolist() == text.tolist()
