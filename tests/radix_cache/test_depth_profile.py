"""Depth profiles: look-up, rounding, built-in tables, files, and what is refused."""

import json

import pytest

from shoal.radix_cache.depth_profile import DepthProfile
from shoal.radix_cache.errors import ProfileError, RadixCacheError

PROFILE = DepthProfile(
    32,
    ((0.1, 3), (0.5, 11), (0.9, 18)),
    capture="alone",
    refresh_interval=16,
    tolerance=0.97,
    metric="cosine",
    data_digest="d",
    model_digest="m",
    versions={"shoal": "0.1"},
    source="test",
)


@pytest.mark.parametrize(
    ("ratio", "depth"), [(0.0, 0), (0.0999, 0), (0.1, 3), (0.3, 3), (0.5, 11), (0.9, 18), (1.0, 18), (7.0, 18)]
)
def test_depth_of_the_largest_ratio_not_above(ratio, depth):
    assert PROFILE.depth(ratio) == depth


def test_an_empty_table_never_reuses():
    empty = DepthProfile(4, ())
    assert (empty.depth(1.0), empty.max_depth, empty.depths) == (0, 0, ())


def test_depths_and_floor():
    assert (PROFILE.max_depth, PROFILE.depths) == (18, (3, 11, 18))
    whole = PROFILE.floor_to(4)
    assert whole.table == ((0.5, 8), (0.9, 16))
    assert whole.depths == (8, 16)
    assert whole.model_digest == "m"
    # Rounded down everywhere, never up.
    assert all(whole.depth(r / 100) == PROFILE.depth(r / 100) // 4 * 4 for r in range(101))


def test_constant_and_all_layers():
    everything = DepthProfile.constant(30, 30, capture="final")
    assert (everything.depth(0.0), everything.depths, everything.capture) == (30, (), "final")
    assert everything.floor_to(4).max_depth == 30
    assert DepthProfile.constant(8, 30).depths == (8,)


@pytest.mark.parametrize(("name", "layers", "top"), [("llada", 32, 22), ("dream", 28, 18)])
def test_builtin_is_the_published_table_and_scales_down(name, layers, top):
    published = DepthProfile.builtin(name, layers)
    assert published.max_depth == top
    half = DepthProfile.builtin(name, layers // 2)
    for percent in range(101):
        assert half.depth(percent / 100) == published.depth(percent / 100) // 2


def test_builtin_values():
    assert DepthProfile.builtin("llada", 32).depth(0.5) == 11
    assert DepthProfile.builtin("dream", 28).depth(0.5) == 7
    assert DepthProfile.builtin("llada", 32).depth(0.04) == 0
    text = DepthProfile.builtin("a2d", 30)
    assert [text.depth(ratio) for ratio in (0.05, 0.15, 0.29, 0.3, 0.95)] == [0, 2, 4, 6, 6]
    assert text.tolerance is None


@pytest.mark.parametrize("layers", [16, 24, 28, 32, 36])
def test_an_unknown_model_starts_below_every_table(layers):
    unknown = DepthProfile.conservative(layers)
    assert f"{layers // 7} of {layers} layers" in unknown.source
    for percent in range(101):
        own = unknown.depth(percent / 100)
        assert own == (layers // 7 if percent >= 30 else 0)
        assert all(own <= DepthProfile.builtin(name, layers).depth(percent / 100) for name in ("llada", "dream", "a2d"))


def test_file_round_trip(tmp_path):
    path = tmp_path / "depth_profile.json"
    PROFILE.save(path)
    data = json.loads(path.read_text())
    assert (data["format"], data["version"]) == ("shoal-depth-profile", 2)
    assert DepthProfile.load(path, num_layers=32, model_digest="m") == PROFILE
    with pytest.raises(ProfileError, match="num_layers"):
        DepthProfile.load(path, num_layers=16)
    with pytest.raises(ProfileError, match="model_digest"):
        DepthProfile.load(path, model_digest="other")
    path.write_text("{")
    with pytest.raises(ProfileError, match="not JSON"):
        DepthProfile.load(path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": "x"}, "format"),
        ({"version": 3}, "version"),
        ({"version": True}, "version"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_layers": "32"}, "num_layers"),
        ({"table": {"0.1": 3}}, "table"),
        ({"table": [[0.5, 3]]}, "table"),
        ({"table": [[1.5, 3, None]]}, "table"),
        ({"table": [[-0.1, 3, None]]}, "table"),
        ({"table": [[float("nan"), 3, None]]}, "table"),
        ({"table": [[0.5, 33, None]]}, "table"),
        ({"table": [[0.5, 2.5, None]]}, "table"),
        ({"table": [[0.5, 3, None], [0.5, 4, None]]}, "table"),
        ({"table": [[0.5, 5, None], [0.6, 4, None]]}, "table"),
        ({"table": [[0.5, 5, 0]]}, "refresh_interval"),
        ({"table": [[0.5, 5, 8], [0.6, 5, "16"]]}, "refresh_interval"),
        ({"capture": "last"}, "capture"),
        ({"refresh_interval": 8}, "refresh_interval"),
        ({"reuse_margin": -1}, "reuse_margin"),
        ({"reuse_margin": None}, "reuse_margin"),
        ({"max_drift": -0.1}, "max_drift"),
        ({"max_drift": "little"}, "max_drift"),
        ({"tolerance": "low"}, "tolerance"),
        ({"metric": 3}, "metric"),
        ({"versions": {"a": 1}}, "versions"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_is_refused_names_the_field(change, field):
    with pytest.raises(ProfileError) as caught:
        DepthProfile.from_json({**PROFILE.to_json(), **change})
    assert caught.value.field == field
    assert isinstance(caught.value, RadixCacheError)


def test_missing_fields_and_other_types_are_refused():
    data = PROFILE.to_json()
    del data["table"]
    with pytest.raises(ProfileError, match="table: is missing"):
        DepthProfile.from_json(data)
    with pytest.raises(ProfileError, match="JSON object"):
        DepthProfile.from_json([])
    with pytest.raises(ProfileError, match="architecture"):
        DepthProfile.builtin("gpt", 12)


def test_profiles_are_hashable():
    assert len({PROFILE, DepthProfile.from_json(PROFILE.to_json())}) == 1


def test_each_row_may_have_its_refresh_interval(tmp_path):
    profile = DepthProfile(
        16, ((0.2, 4), (0.5, 8), (0.7, 8), (0.9, 12)), intervals=(None, 16, 8, 8), reuse_margin=24, max_drift=0.1
    )
    assert [profile.interval(ratio) for ratio in (0.1, 0.2, 0.5, 0.75, 1.0)] == [None, None, 16, 8, 8]
    assert profile.refreshes
    path = tmp_path / "depth_profile.json"
    profile.save(path)
    assert json.loads(path.read_text())["table"][1] == [0.5, 8, 16]
    assert DepthProfile.load(path) == profile
    # Rows whose depth repeats stay when their interval differs.
    assert profile.floor_to(8).table == ((0.5, 8), (0.7, 8))
    assert [profile.floor_to(8).interval(ratio) for ratio in (0.5, 0.8)] == [16, 8]


def test_one_interval_for_all_rows_is_the_same_however_it_is_said():
    rows = ((0.2, 4), (0.5, 8))
    assert DepthProfile(16, rows, intervals=(8, 8)) == DepthProfile(16, rows, refresh_interval=8)
    assert not DepthProfile(16, rows).refreshes
    with pytest.raises(ProfileError, match="intervals: must have one entry for each of 2 rows, got 1"):
        DepthProfile(16, rows, intervals=(8,))


def test_a_cap_lowers_depths_and_nothing_else():
    capped = PROFILE.capped(11)
    assert [capped.depth(ratio) for ratio in (0.05, 0.1, 0.6, 0.95)] == [0, 3, 11, 11]
    assert capped.model_digest == "m"
    assert PROFILE.capped(32) == PROFILE


def test_files_of_version_1_are_still_read():
    data = {
        "format": "shoal-depth-profile", "version": 1, "num_layers": 16, "table": [[0.4, 8]], "capture": "first",
        "refresh_interval": 8, "tolerance": 0.99, "metric": "agreement",
    }  # fmt: skip
    profile = DepthProfile.from_json(data)
    assert (profile.table, profile.interval(0.5), profile.reuse_margin, profile.max_drift) == (((0.4, 8),), 8, 16, None)
    with pytest.raises(ProfileError, match="reuse_margin"):
        DepthProfile.from_json({**data, "reuse_margin": 3})
