"""Stop strings end the text at the same place, however it is split into pieces."""

from hypothesis import given
from hypothesis import strategies as st

from streamlm.runtime.sampling import Stops, unescaped

TEXT = st.text("ab\n", max_size=30)


@given(TEXT, st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.data())
def test_the_text_ends_before_the_earliest_stop(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    # The earliest end of a whole stop string, and of those the earliest start.
    ends = [n for n in range(len(text) + 1) if any(stop in text[:n] for stop in stops)]
    pieces = []
    while text and (n := data.draw(st.integers(1, len(text)))):
        pieces.append(text[:n])
        text = text[n:]
    whole, given_out, seen, found = "".join(pieces), "", "", False
    watch = Stops(stops)
    for piece in pieces:
        ready, found = watch.push(piece)
        given_out, seen = given_out + ready, seen + piece
        if found:
            break
        assert seen == given_out + watch.held  # nothing is lost
        assert any(stop.startswith(watch.held) for stop in stops) or not watch.held
    assert found == bool(ends)
    if found:
        assert given_out == whole[: min(seen.find(stop) for stop in stops if stop in seen)]
        assert not any(stop in given_out for stop in stops) and not watch.held


def test_a_possible_stop_is_held_back() -> None:
    watch = Stops(["\n\n", "END"])
    assert watch.push("a\n") == ("a", False)
    assert watch.push("b E") == ("\nb ", False) and watch.held == "E"
    assert watch.push("NDless") == ("", True) and watch.held == ""


def test_escapes() -> None:
    assert unescaped(r"a\nb\t\\n\x") == "a\nb\t\\n\\x"
