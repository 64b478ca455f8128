"""Prompts of videos that are made in loops, clip after clip: which text a loop gets.

Source: hpcaitech/Open-Sora v1.2.0, ``opensora/utils/inference_utils.py``.
"""

import itertools
import re

from adacache_engines.errors import InputError

MARK = re.compile(r"\|\s*(\d+)\s*\|")


def prompts_by_loop(text: str, loops: int) -> list[str]:
    """Return the text of each loop: of ``|0|rain|8|sun`` it is ``rain`` in loops 0 to 7 and ``sun`` from then on.

    Args:
        text: a prompt; one that does not begin with a mark is the text of all loops, as it is.
        loops: how many there are; texts for later ones are not used.

    Raises:
        InputError: the first text is not that of loop 0, the loops do not go up, or a text is empty.
    """
    if not MARK.match(text.lstrip()):
        return [text] * loops
    _, *marked = MARK.split(text)
    starts, texts = [int(number) for number in marked[::2]], [part.strip() for part in marked[1::2]]
    problem = None
    if starts[0] != 0:
        problem = f"its first text is for loop {starts[0]}; begin with |0|"
    elif any(later <= earlier for earlier, later in itertools.pairwise(starts)):
        problem = f"its loops are {', '.join(map(str, starts))}; expected numbers that go up"
    elif not all(texts):
        problem = f"it has no text for loop {starts[texts.index('')]}"
    if problem:
        raise InputError(f"prompt {text!r:.80} cannot be split by loop: {problem}")
    return [texts[sum(start <= loop for start in starts) - 1] for loop in range(loops)]
