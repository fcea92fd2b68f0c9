"""Stop strings: found wherever the pieces are cut, held back only as long as needed."""

import pytest

from adder.errors import UsageError
from adder.generation.stop import StopText


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    """What comes out for each piece and at the end, and the stop string found."""
    stop = StopText(stops)
    return [*(stop.feed(piece) for piece in pieces), stop.finish()], stop.found


def cuttings(text: str) -> list[list[str]]:
    """Every way to cut a text into pieces."""
    if len(text) < 2:
        return [[text]]
    rest = cuttings(text[1:])
    return [[text[0], *cut] for cut in rest] + [[text[0] + cut[0], *cut[1:]] for cut in rest]


def test_without_stops_everything_comes_out_at_once() -> None:
    assert run([], ["ab", "", "c"]) == (["ab", "", "c", ""], None)


def test_a_possible_beginning_is_held_back_and_then_let_go() -> None:
    assert run(["END"], ["xE", "N", "x", "E"]) == (["x", "", "ENx", "", "E"], None)


def test_nothing_comes_out_after_a_stop() -> None:
    assert run(["END"], ["aEN", "Db", "c"]) == (["a", "", "", ""], "END")


def test_a_beginning_within_a_beginning_is_not_lost() -> None:
    assert run(["aab"], ["a", "a", "a", "b"]) == (["", "", "a", "", ""], "aab")


def test_the_stop_that_is_complete_first_wins() -> None:
    assert run(["abcd", "bc"], ["abcd"]) == (["a", ""], "bc")


def test_of_two_that_end_together_the_longer_wins() -> None:
    assert run(["bc", "abc"], ["xabc"]) == (["x", ""], "abc")


@pytest.mark.parametrize("text", ["aababcab", "abababab", "xxabcxab", "bcabcabc"])
def test_the_cutting_does_not_matter(text: str) -> None:
    stops = ["abc", "babab", "cc"]
    whole, found = run(stops, [text])
    for pieces in cuttings(text):
        out, found_in_pieces = run(stops, pieces)
        assert "".join(out) == "".join(whole)
        assert found_in_pieces == found


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        StopText(["a", ""])
