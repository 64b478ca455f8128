"""Cleaning of prompts, as the models' pipelines do it before the tokenizer sees them.

The encoder's inputs in training went through this cleaning, so a prompt that skips it is text that the model has never
seen. The rules come from a crawl of image captions (shop pages, file names, links); most leave a sentence alone.

Source: hpcaitech/Open-Sora v1.2.0, ``opensora/models/text_encoder/t5.py`` (text) and
``opensora/utils/inference_utils.py`` (scores). The rules are DeepFloyd IF's; Latte and Open-Sora-Plan have them as they
are, Open-Sora with the text trimmed once more.
"""

import html
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import unquote_plus

DEFAULT_AESTHETIC_SCORE = 6.5


class Rule(NamedTuple):
    """A rule of the cleaning: text that matches ``pattern`` becomes ``replacement``."""

    pattern: re.Pattern[str]
    replacement: str
    why: str


def _rule(pattern: str, replacement: str, why: str) -> Rule:
    return Rule(re.compile(pattern), replacement, why)


def _links(scheme: str, why: str) -> Rule:
    # A host's name is any run of these characters that ends in a known domain. Where a run holds no such end, no later
    # start in it finds one either, so the rest of the run is matched as "kept": the search stays linear in its length.
    host = "[a-zA-Z0-9.-]"
    start = rf"{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])"
    name = rf"{host}+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
    return _rule(rf"\b(?:{start}|{name})|(?P<kept>\b(?:(?!\b{start}){host})+)", r"\g<kept>", why)


FILE_TYPE = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
LETTER = "[a-zA-Z]"

BEFORE_MARKUP = (
    _rule("<person>", "person", "a placeholder of the captions that looks like a tag"),
    _links("https?", "links"),
    _links("www", "links with the scheme left out"),
)

BEFORE_REPAIR = (
    _rule(r"@\w+", "", "nicknames"),
    # strokes, Katakana extensions, enclosed and compatibility forms, extension A, hexagrams, unified ideographs
    _rule("[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]", "", "CJK"),
    _rule(
        "[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58"
        "\ufe63\uff0d]+",
        "-",
        "one kind of dash",
    ),
    _rule("[`´«»“”¨]", '"', "one kind of double quote"),
    _rule("[‘’]", "'", "one kind of single quote"),
    _rule("&quot;?", "", "an escaped quote"),
    _rule("&amp", "", "an escaped ampersand"),
    _rule(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " ", "IPv4 addresses"),
    _rule(r"\d:\d\d\s+$", "", "an article's number at the end"),
    _rule(r"\\n", " ", "a line break written as two characters"),
    _rule(r"#\d{1,3}\b", "", "short numbers: #12"),
    _rule(r"#\d{5,}\b", "", "long numbers: #12345"),
    _rule(r"\b\d{6,}\b", "", "long numbers: 123456"),
    _rule(rf"(?<!\S)\S+\.{FILE_TYPE}", "", "file names, with everything before them up to a space"),
    _rule("[\"']{2,}", '"', "repeated quotes"),
    _rule(r"\.{2,}", " ", "ellipses"),
    _rule(r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " ", "symbols"),
    _rule(r"(?<!\s)\s+\.\s+", " ", "a full stop on its own"),
)

JOINERS = re.compile("[-_]")
MAX_JOINERS = 3

AFTER_REPAIR = (
    _rule(rf"\b{LETTER}{{1,3}}\d{{3,15}}\b", "", "article numbers: jc6640"),
    _rule(rf"\b{LETTER}+\d+{LETTER}+\b", "", "article numbers: jc6640vc"),
    _rule(rf"\b\d+{LETTER}+\d+\b", "", "article numbers: 6640vc231"),
    _rule(r"(?:worldwide\s+)?(?:free\s+)?shipping", "", "shop talk"),
    _rule(r"(?:free\s)?download(?:\sfree)?", "", "shop talk"),
    _rule(r"\bclick\b\s(?:for|on)\s\w+", "", "shop talk"),
    _rule(rf"\b{FILE_TYPE}(?:\simages?)?", "", "file types"),
    _rule(r"\bpage\s+\d+\b", "", "page numbers"),
    _rule(rf"\b\d*{LETTER}+\d+{LETTER}+\d[a-zA-Z\d]*\b", " ", "identifiers: j2d1a2a"),
    _rule(r"\b\d+(?:\.\d*)?[xх×]\d+(?:\.\d*)?\b", "", "sizes: 1920x1080, with a Latin or Cyrillic x or a times sign"),
    _rule(r"\b\s+:\s+", ": ", "a colon set off from its word"),
    _rule(r"(?<=\D[,./])\b", " ", "punctuation without its space"),
    _rule(r"\s+", " ", "white space"),
    _rule(r"""^["']([\w\W]+)["']$""", r"\1", "quotes around everything"),
    _rule(r"^['_,\-:;]", "", "one dangling mark in front"),
    _rule(r"['_,\-:+]$", "", "one dangling mark behind"),
    _rule(r"^\.\S+$", "", "nothing but a file suffix"),
)


def _apply(rules: tuple[Rule, ...], text: str) -> str:
    for rule in rules:
        text = rule.pattern.sub(rule.replacement, text)
    return text


def _without_markup(text: str) -> str:
    from bs4 import BeautifulSoup  # only here, so that who gives captions needs no such library
    from bs4.builder import ParserRejectedMarkup

    try:
        # Behind an empty tag, because the parser warns about strings that begin like a link, a file name or XML.
        return BeautifulSoup("<hr>" + text, features="html.parser").text
    except ParserRejectedMarkup:  # such as "<![x"; the original fails here
        return text


def _repaired(text: str) -> str:
    import ftfy  # only here, as above

    return html.unescape(html.unescape(ftfy.fix_text(text)))


def with_scores(
    prompt: str, aesthetic: float | None = None, motion: float | None = None, camera: str | None = None
) -> str:
    """Return a prompt with the scores that the model was trained to read, not yet cleaned.

    Args:
        prompt: the prompt as the user wrote it; a score that it names already stays as it is.
        aesthetic: score of beauty, about 4 to 7; Open-Sora uses :data:`DEFAULT_AESTHETIC_SCORE`.
        motion: score of the amount of motion.
        camera: camera motion, such as ``pan left``.
    """
    parts = [prompt]
    for name, value in (("aesthetic score", aesthetic), ("motion score", motion), ("camera motion", camera)):
        if value is not None and f"{name}:" not in prompt:
            parts.append(f"{name}: {value if isinstance(value, str) else format(value, '.1f')}.")
    return " ".join(parts)


def clean(prompt: str, trims: bool = True) -> str:
    """Clean a prompt once, in lower case. A second pass can change the text again: see :data:`CLEANINGS`.

    Args:
        prompt: the prompt with its scores.
        trims: whether the white space at both ends goes before the last group of rules, too.
    """
    text = _apply(BEFORE_MARKUP, unquote_plus(prompt).strip().lower())
    text = _apply(BEFORE_REPAIR, _without_markup(text))
    if len(JOINERS.findall(text)) > MAX_JOINERS:  # this-is-my-cute-cat
        text = JOINERS.sub(" ", text)
    text = _repaired(text)
    return _apply(AFTER_REPAIR, text.strip() if trims else text).strip()


def repair(prompt: str) -> str:
    """Return a prompt with broken Unicode and escaped characters repaired, and runs of white space folded to a space.

    Source: diffusers, ``pipelines/wan/pipeline_wan.py`` (``prompt_clean``).
    """
    return " ".join(_repaired(prompt).split())


# what the tokenizer gets; the cleaning of captions is applied to its own result
CLEANINGS: Mapping[str, Callable[[str], str]] = {
    "plain": lambda prompt: prompt,
    "repaired": repair,
    "html-and-captions-trimmed": lambda prompt: clean(clean(prompt)),
    "html-and-captions": lambda prompt: clean(clean(prompt, trims=False), trims=False),
}
