import pytest

from adacache_engines.bundle.manifest import TextRule
from adacache_engines.errors import InputError
from adacache_runtime.checking import loop_prompts
from adacache_runtime.conditioning.prompt_loops import prompts_by_loop
from adacache_runtime.request import Request


def test_each_text_holds_until_the_next() -> None:
    text = "|0|a beautiful day|2| a sunny day |3|a rainy day"
    assert prompts_by_loop(text, 5) == ["a beautiful day"] * 2 + ["a sunny day"] + ["a rainy day"] * 2
    assert prompts_by_loop(text, 1) == ["a beautiful day"]
    assert prompts_by_loop("|0|all", 3) == ["all"] * 3


@pytest.mark.parametrize("text", ["a boat", "", "a | b", "left |0| right", "|x|y"])
def test_a_plain_prompt_is_that_of_all_loops(text: str) -> None:
    assert prompts_by_loop(text, 2) == [text, text]


def test_the_original() -> None:
    """``extract_prompts_loop``, by its rule: text i from its loop to the one before the next text's."""
    starts, texts = [0, 3, 4, 9], ["a", "b c", "d", "e"]
    marked = "".join(f"|{start}|{text}" for start, text in zip(starts, texts, strict=True))
    expected = ["a"] * 3 + ["b c"] + ["d"] * 5 + ["e"] * 3
    assert prompts_by_loop(marked, 12) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("|1|a", "first text is for loop 1; begin with |0|"),
        ("|0|a|3|b|2|c", "0, 3, 2; expected numbers that go up"),
        ("|0|a|0|b", "0, 0; expected"),
        ("|0|a|4| |6|c", "no text for loop 4"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        prompts_by_loop(text, 2)
    assert message in str(raised.value)
    assert repr(text) in str(raised.value)


def test_each_clip_gets_its_text_and_scores() -> None:
    rule = TextRule(max_length=9, width=3, scores=("motion",))
    request = Request(prompts=("|0|rain|2|sun", "a boat"), motion=3)
    score = " motion score: 3.0."
    assert loop_prompts(rule, request, 0) == (f"rain{score}", f"a boat{score}")
    assert [loop_prompts(rule, request, loop)[0] for loop in range(4)] == [f"rain{score}"] * 2 + [f"sun{score}"] * 2


def test_a_score_that_the_model_does_not_read() -> None:
    rule = TextRule(max_length=9, width=3, scores=("motion",))
    with pytest.raises(InputError, match=r"aesthetic 6\.5: this model was not trained to read that score; it reads mo"):
        loop_prompts(rule, Request(prompts=("rain",), aesthetic=6.5), 0)
