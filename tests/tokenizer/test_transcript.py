"""Messages found in the token ids of a chat, for templates of several kinds."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.vocabularies import CHATML, byte_level_gguf, llama_gguf, llama_model
from tokenizer.chat import ChatTemplate
from tokenizer.gguf import from_gguf
from tokenizer.transcript import messages_of

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BOS_FIRST = "{{ bos_token }}" + CHATML
TURNS = (("Who?\n", "A whale."), ("<|im_end|>Why?", " So. "), ("When?", ""))


def of_source(source: str) -> ChatTemplate:
    bos = {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.add_bos_token": True}
    return ChatTemplate(
        from_gguf({**byte_level_gguf("qwen2"), **bos, "tokenizer.chat_template": source})
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    folder: Path = tmp_path_factory.mktemp("llama")
    return ChatTemplate(from_gguf(llama_gguf(llama_model(folder))))


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def ids_of(
    template: ChatTemplate, *, between: str = "", system: str | None = None, end: bool = True
) -> list[int]:
    """What a stream reads of TURNS, with a text before the chat and one before the last message."""
    tokenizer = template.tokenizer
    messages = [] if system is None else [said("system", system)]
    ids = tokenizer.encode("Once upon a time. ").tolist()
    for n, (message, reply) in enumerate(TURNS):
        if n == 2:
            ids += tokenizer.encode(between).tolist()
        ids += template.turn_ids(messages, said("user", message)).tolist()
        ids += tokenizer.encode(reply).tolist()
        ids += [template.reply_end] if end or n < 2 else []
        messages += [said("user", message), said("assistant", reply)]
    return ids


@pytest.mark.parametrize("source", [CHATML, NO_SYSTEM, BOS_FIRST])
@pytest.mark.parametrize("end", [True, False])
def test_turns_of_templates_with_special_tokens(source: str, end: bool) -> None:
    template = of_source(source)
    found = messages_of(template, ids_of(template, between="So it goes.", end=end))
    turns = [said(*one) for m, r in TURNS for one in (("user", m), ("assistant", r))]
    default = [] if source == NO_SYSTEM else [said("system", "Be brief.")]
    text = said("text", "Once upon a time."), said("text", "So it goes.")
    assert found == [text[0], *default, *turns[:4], text[1], *turns[4:]]
    if source != NO_SYSTEM:
        ids = ids_of(template, system="Be <|im_end|>.")
        assert messages_of(template, ids)[1] == said("system", "Be <|im_end|>.")


def test_turns_without_special_tokens_before_a_message(llama: ChatTemplate) -> None:
    found = messages_of(llama, ids_of(llama))
    assert [(one["role"], one["content"].strip()) for one in found] == [
        ("text", "Once upon a time."),
        *(("user", "Who?"), ("assistant", "A whale.")),
        *(("user", "<|im_end|>Why?"), ("assistant", "So."), ("user", "When?"), ("assistant", "")),
    ]


@given(start=st.integers(0, 60), stop=st.integers(0, 60))
def test_parts_of_a_chat(start: int, stop: int) -> None:
    """Whatever is cut, messages are whole, or the beginning of one at the end."""
    template = of_source(CHATML)
    ids = ids_of(template)
    whole = [one for one in messages_of(template, ids) if one["role"] in ("user", "assistant")]
    found = messages_of(template, ids[start : len(ids) - stop])
    turns = [one for one in found if one["role"] in ("user", "assistant")]
    for one in turns[:-1]:
        assert one in whole
    if turns:
        assert any(one["content"].startswith(turns[-1]["content"]) for one in whole)


def test_nothing_and_no_chat() -> None:
    template = of_source(CHATML)
    assert messages_of(template, []) == []
    ids = template.tokenizer.encode("It was the whale.")
    assert messages_of(template, ids) == [said("text", "It was the whale.")]
