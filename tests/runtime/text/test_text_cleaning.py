import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adacache_runtime.text import cleaning as text_cleaning
from adacache_runtime.text.cleaning import CLEANINGS, DEFAULT_AESTHETIC_SCORE, clean, with_scores

VECTORS = json.loads((Path(__file__).parents[3] / "tests/data/open-sora/text_cleaning.json").read_text("utf-8"))

# Pieces that the rules look for, to be strung together at random: plain random text meets hardly any of them.
PIECES = """
https:// https:/// http:a www: www:foo.org example.com a.co@b -a.net/x_1/ .com a.com/b.x.com <person> <b> </b> <!-- <![x
<?xml?> <script> &amp; &quot; &lt &#65; @user @ 中文 ㈀ 一 – — ゠ ` « ” ‘ 192.168.0.1 4:20 \\n # #1 #1234 #12345 123456
ab.png x.jpg.mp4 .eps " "" ' . .. ® ™ ~ ( ] { | / * - _ a-b_c abc123 jc6640vc 6640vc231 a1b2 worldwide free shipping
download click for on page 12 png images 10x20 1.5х2 3×4 : ; , a,b 1.5 + % %20 %3Cb%3E â€™ Ã© ﬁ ß İ
"""
prompts = st.lists(st.sampled_from([*PIECES.split(), *[" "] * 20, "\n", "\t"]), max_size=20).map("".join)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["prompt"][:20])
def test_reference(vector):
    scored = with_scores(
        vector["prompt"], vector.get("aes", DEFAULT_AESTHETIC_SCORE), vector.get("flow"), vector.get("camera_motion")
    )
    assert scored == vector["with_score"]
    assert CLEANINGS["html-and-captions-trimmed"](scored) == vector["cleaned"]
    if "cleaned_noscore" in vector:
        assert CLEANINGS["html-and-captions-trimmed"](vector["prompt"]) == vector["cleaned_noscore"]


# outputs of diffusers' LattePipeline, which has DeepFloyd's cleaning as Latte and Open-Sora-Plan use it
DEEPFLOYD = {
    "  #12312345671.2.3.41.2.3.4": ". 2.3.4",
    "&amp;-#123“q”#12345": '"q"',
    "<person> foo.jpg-- : 1234567": "person -",
    '" : ..“q”..': ': "q',
    "A cat, running_fast... over https://x.com/a, twice!": "a cat, running_fast over , twice!",
}


@pytest.mark.parametrize("prompt", DEEPFLOYD)
def test_cleaning_without_the_extra_trim(prompt):
    assert CLEANINGS["html-and-captions"](prompt) == DEEPFLOYD[prompt]


def test_both_cleanings_agree_on_sentences_and_not_on_everything():
    differ = {prompt for prompt in DEEPFLOYD if CLEANINGS["html-and-captions-trimmed"](prompt) != DEEPFLOYD[prompt]}
    assert set(list(DEEPFLOYD)[:3]) <= differ
    assert list(DEEPFLOYD)[-1] not in differ


def test_scores_are_optional_and_added_once():
    assert with_scores("a dog") == "a dog"
    assert with_scores("dog", 5, 0, "pan") == "dog aesthetic score: 5.0. motion score: 0.0. camera motion: pan."
    assert with_scores("a dog, motion score: 2", motion=5.0) == "a dog, motion score: 2"
    scored = with_scores("a dog", 6.5, 5.0, "pan left")
    assert with_scores(scored, 1.0, 1.0, "pan right") == scored


# One pass over text in which one rule, named by what it is for, does the work.
ONE_RULE = {
    "percent escapes": ("a%20b+c", "a b c"),
    "placeholder": ("a <person> walks", "a person walks"),
    "scheme": ("see https:///", "see"),
    "scheme and one character": ("see https:x", "see"),
    "host": ("see x-1.example.org/a_b-c/ now", "see now"),
    "host: query stays": ("see example.com/a?b", "see ?b"),
    "host: domain inside a word": ("a.community", ""),
    "host: mail address stays": ("foo.gov@bar", "foo. gov"),
    "host: last domain of a run": ("go a.com.b.com.x", "go . x"),
    "host: domain after a path": ("a.com/b.x.com now", "now"),
    "host: starts inside a word": ("_-a.com now", "now"),
    "scheme inside a host's characters": ("a.b.https://x y", "a. b. x y"),
    "www with a colon": ("see www://x", "see x"),
    "tags": ("a <b>bold</b> word<br/>here", "a bold wordhere"),
    "escaped twice": ("a &amp;quot; &amp;ampb", "a b"),
    "entities": ("x &gt; y", "x > y"),
    "markup that is rejected": ("a <![b", "a <! b"),
    "XML": ("<?xml version='1.0'?><a>b</a>", "b"),
    "what looks like a file": ("index.html", "index. html"),
    "nickname": ("by @some_one1, now", "by , now"),
    "ideographs and their blocks": ("a㇀ㇰ㈀㌀㐀䷀一鿿b ひ", "ab ひ"),
    "dashes": ("a֊־᐀᠆‐―⸗⸚⸺⸻⹀〜〰゠︱︲﹘﹣－b", "a-b"),
    "double quotes": ("x ´a« b", 'x "a" b'),
    "single quotes": ("it’s ‘’", "it's \""),
    "address": ("at 10.0.0.1234 it", "at 4 it"),
    "time at the end": ("at 4:20&#32;", "at"),
    "time elsewhere": ("4:20 it is", "4:20 it is"),
    "two characters for a line break": (r"a\nb", "a b"),
    "short number": ("no #1 and #123 or #1a", "no and or 1a"),
    "four digits stay": ("#1234", "1234"),
    "long number": ("x #12345 123456 12345", "x 12345"),
    "long number in a word": ("#12345é 123456é", "12345é 123456é"),
    "file name": ("a (b).jpg.mp4! c", "a ! c"),
    "file suffix alone": ("a .png c", "a . c"),
    "quotes in a row": ("a \"'b", 'a "b'),
    "dots in a row": ("a..b", "a b"),
    "symbols": ("a#®•©™&@·º½¾¿¡§~()[]{}|\\/*b", "a b"),
    "lonely stop": ("a . b", "a b"),
    "three joiners": ("a-b_c-d", "a-b_c-d"),
    "four joiners": ("a-b_c-d_e", "a b c d e"),
    "mojibake": ("naÃ¯ve", "naã¯ve"),
    "letters and digits": ("x abc123 abcd123 ab12", "x abcd123 ab12"),
    "letters, digits, letters": ("x ab1c", "x"),
    "digits, letters, digits": ("x 1ab2", "x"),
    "identifier": ("x 1ab2c34de y", "x y"),
    "identifier with other letters": ("1ab2c34é", "1ab2c34é"),
    "shipping": ("x worldwide  free shipping y", "x y"),
    "download": ("x free download free y", "x y"),
    "click": ("x click on it y", "x y"),
    "click here": ("click here", "click here"),
    "file type": ("a png images and jpgs", "a and s"),
    "page": ("x page 3 y page", "x y page"),
    "size": ("x 10x20 1.5х2.5 3×4 5x y", "x 5x y"),
    "size of three": ("2×3×4", "×4"),
    "colon": ("a : b ! : c", "a: b ! : c"),
    "punctuation": ("a,b.c 1,2 ,a", "a, b. c 1,2 , a"),
    "quotes around": ("\"a b'", "a b"),
    "marks in front and behind": ("--", ""),
    "mark in front": (";a", "a"),
    "mark behind": ("a-:", "a-"),
    "suffix alone": (".5a", ""),
}


@pytest.mark.parametrize("case", ONE_RULE)
def test_rule(case):
    prompt, cleaned = ONE_RULE[case]
    assert clean(prompt) == cleaned


@pytest.mark.parametrize("stage", ["BEFORE_MARKUP", "BEFORE_REPAIR", "AFTER_REPAIR"])
def test_every_rule_is_tested(stage, monkeypatch):
    rules = getattr(text_cleaning, stage)
    for rule in rules:
        monkeypatch.setattr(text_cleaning, stage, tuple(other for other in rules if other is not rule))
        assert any(clean(prompt) != cleaned for prompt, cleaned in ONE_RULE.values()), rule


@given(st.text(max_size=60) | prompts)
@settings(max_examples=150)
def test_any_text(prompt):
    for text in (clean(prompt), CLEANINGS["html-and-captions-trimmed"](prompt)):
        assert text == text.strip()
        assert not re.search(r"\s\s|[\t\n]", text)


@given(prompts)
@settings(max_examples=100)
def test_lower_case(prompt):
    # percent escapes and entities are read after the text is lowered, so that they may still spell a capital
    text = clean(re.sub("[%&]", "", prompt).upper())
    assert text == text.lower()


@given(st.lists(st.sampled_from(["a", "cat", "runs", "over", "two", "hills", "café"]), min_size=1, max_size=12))
@settings(max_examples=50)
def test_plain_words_stay(words):
    sentence = " ".join(words) + "."
    assert clean(sentence) == CLEANINGS["html-and-captions-trimmed"](sentence) == sentence


HARD = """a. a.co@ -a. a- a1 1. 1 1x .png # " a.co/ https: é. &amp; free"""


@pytest.mark.parametrize("piece", [*HARD.split(), " ", ". "])
def test_linear_in_the_length(piece):
    """Four times the text takes about four times as long; a quadratic rule would take sixteen times as long."""

    def seconds(length):
        """Processor time of this thread alone, undisturbed by what else the machine does."""
        took = []
        for _ in range(3):
            start = time.thread_time()
            clean((piece * length)[:length])
            took.append(time.thread_time() - start)
        return min(took)

    assert seconds(20_000) < 9 * max(seconds(5_000), 1e-4)
