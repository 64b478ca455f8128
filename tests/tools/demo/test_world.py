"""The demo world and its checker: what the checker says about the model is worth what these tests are worth."""

from dataclasses import replace

import numpy as np
import pytest

from tools.demo import checker, world

ATTRIBUTES = ("colour", "shape", "direction", "speed")
OTHER_COLOUR = dict(zip(world.COLOURS, [*list(world.COLOURS)[1:], *list(world.COLOURS)[:1]], strict=True))
OTHER_SHAPE = dict(zip(world.SHAPES, [*world.SHAPES[1:], world.SHAPES[0]], strict=True))
OTHER_DIRECTION = {"left": "up", "up": "left"}
OTHER_SPEED = {"slow": "fast", "fast": "slow"}
MOVING = [what for what in world.EVERYTHING if what.speed != "still"]


def test_captions_and_attributes_determine_each_other() -> None:
    captions = [world.caption(what) for what in world.EVERYTHING]
    assert [world.attributes(caption) for caption in captions] == list(world.EVERYTHING)
    assert len(set(captions)) == len(world.COLOURS) * len(world.SHAPES) * (1 + 2 * len(world.DIRECTIONS))


def test_examples() -> None:
    assert world.caption(world.Attributes("red", "circle", "left", "fast")) == "a red circle moves left fast"
    assert world.caption(world.Attributes("green", "square", "nowhere", "still")) == "a green square stays still"
    assert world.caption(world.Attributes("blue", "triangle", "up", "slow")) == "a blue triangle moves up slowly"


def test_unknown_caption_is_refused() -> None:
    with pytest.raises(KeyError):
        world.attributes("a purple circle moves left fast")


def test_prompts_depend_on_the_seed_only() -> None:
    assert world.prompts(50, seed=3) == world.prompts(50, seed=3)
    assert world.prompts(50, seed=3) != world.prompts(50, seed=4)
    assert world.prompts(50, seed=3)[:20] == world.prompts(50, seed=3)[:20]


def test_prompts_cover_all_values_and_speeds_evenly() -> None:
    drawn = [world.attributes(text) for text in world.prompts(3000, seed=0)]
    for name in ATTRIBUTES:
        assert {getattr(what, name) for what in drawn} == {getattr(what, name) for what in world.EVERYTHING}
    for speed in world.SPEEDS:
        assert sum(what.speed == speed for what in drawn) == pytest.approx(1000, abs=100)


def test_videos_depend_on_the_seed_only() -> None:
    what = list(world.EVERYTHING)
    first, again = (world.render(what, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (len(what), 3, world.FRAMES, world.SIZE, world.SIZE)
    assert first.dtype == np.float32
    assert first.min() >= -1 and first.max() <= 1
    assert not np.array_equal(first, world.render(what, np.random.default_rng(8)))


@pytest.mark.parametrize(("direction", "axis"), [("left", 1), ("up", 0)])
def test_directions_are_those_of_the_screen(direction: str, axis: int) -> None:
    """Without the checker: rows count downwards, columns to the right."""
    video = world.render([world.Attributes("red", "circle", direction, "fast")])[0]
    rows_columns = [np.argwhere(frame > 0).mean(axis=0) for frame in video[0]]
    assert np.all(np.diff(np.array(rows_columns)[:, axis]) < 0)


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.2])
def test_checker_reads_ground_truth(sigma: float) -> None:
    """With jitter, noise and values outside [-1, 1], which a sampler also produces."""
    rng = np.random.default_rng(1)
    what = list(world.EVERYTHING) * 2
    videos = 1.1 * world.render(what, rng)
    videos = (videos + sigma * rng.standard_normal(videos.shape)).astype(np.float32)
    read = [checker.read(video) == each for video, each in zip(videos, what, strict=True)]
    assert np.mean(read) >= 0.99


@pytest.mark.parametrize(
    ("attribute", "others"),
    [
        ("colour", OTHER_COLOUR),
        ("shape", OTHER_SHAPE),
        ("direction", OTHER_DIRECTION),
        ("speed", OTHER_SPEED),
    ],
)
def test_checker_notices_the_one_attribute_that_is_wrong(attribute: str, others: dict[str, str]) -> None:
    rng = np.random.default_rng(2)
    for said in MOVING:
        shown = replace(said, **{attribute: others[getattr(said, attribute)]})
        result = checker.agreement(world.render([shown], rng)[0], world.caption(said))
        assert result == {name: name != attribute for name in ATTRIBUTES}


def test_moving_where_stillness_was_asked_is_wrong_and_the_reverse() -> None:
    still, moving = (world.Attributes("red", "square", *motion) for motion in (("nowhere", "still"), ("up", "slow")))
    for said, shown in ((still, moving), (moving, still)):
        result = checker.agreement(world.render([shown])[0], world.caption(said))
        assert result == {"colour": True, "shape": True, "direction": False, "speed": False}


def test_nothing_is_read_where_nothing_is() -> None:
    shape = (3, world.FRAMES, world.SIZE, world.SIZE)
    empty = np.broadcast_to(world.ground(world.FRAMES)[:, None, None], shape)
    assert set(vars(checker.read(empty)).values()) == {checker.UNREADABLE}
    static = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    assert checker.read(static).shape == checker.UNREADABLE


def test_a_shape_that_flickers_about_has_no_motion() -> None:
    video = world.render([world.Attributes("red", "circle", "left", "fast")])[0]
    shuffled = video[:, [3, 7, 0, 5, 1, 6, 2, 4]]
    read = checker.read(shuffled)
    assert (read.direction, read.speed) == (checker.UNREADABLE, checker.UNREADABLE)


def test_a_video_backwards_is_not_its_own_caption() -> None:
    """The ground tells which end comes first, and the checker goes by the motion."""
    for what in MOVING:
        video = world.render([what])[0]
        assert not checker.agreement(video[:, ::-1], world.caption(what))["direction"]
        assert np.all(np.diff(video[0, :, 0, 0]) > 0)
