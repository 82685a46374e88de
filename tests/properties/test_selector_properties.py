"""Properties of the selection language, on drawn models, against oracles that share no code with it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from graphaug.errors import AmbiguousSite, GraphaugError, SiteCountMismatch, SiteNotFound
from graphaug.select.resolve import resolve
from graphaug.select.structure import StaticStructure

# An arbitrary regular expression may be one that Python warns about.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

NAMES = ["a", "b", "ab", "ba", "relu", "input", "stage", "0", "1", "A"]
CLASSES = ["A", "B", "ReLU"]
WILD = st.sampled_from(["**", "*", "a", "b", "a*", "*b", "*a*", "relu", "0", "1", "*u*"])


@st.composite
def outlines(
    draw: st.DrawFn, names: list[str] = NAMES, most_calls: int = 1, least: int = 1
) -> StaticStructure:
    """A tree of up to ten modules in definition order, with operations and numbers of calls."""

    def grow(path: str, depth: int) -> None:
        for child in draw(st.lists(st.sampled_from(names), unique=True, min_size=not depth, max_size=3)):
            if len(modules) > 10:
                return
            inner = f"{path}.{child}" if path else child
            modules[inner] = tuple(draw(st.lists(st.sampled_from(CLASSES), unique=True, max_size=2)))
            if depth < 3:
                grow(inner, depth + 1)

    modules: dict[str, tuple[str, ...]] = {"": ("Model",)}
    grow("", 0)
    operations = {path: draw(st.sampled_from([(), ("add",), ("add", "add_1")])) for path in modules}
    called = {path: draw(st.integers(least, most_calls)) for path in modules}
    return StaticStructure("Model", modules, operations=operations, called=called)


@st.composite
def outlines_and_globs(
    draw: st.DrawFn, most_calls: int = 1, least: int = 1
) -> tuple[StaticStructure, list[str]]:
    """A model, and a path of it of which some segments are made wild: mostly it matches something."""
    structure = draw(outlines(most_calls=most_calls, least=least))
    path = draw(st.sampled_from(paths_of(structure)))
    return structure, [
        draw(st.sampled_from([name, "*", "**", f"{name[0]}*"]) | WILD) for name in path.split(".")
    ]


def paths_of(structure: StaticStructure) -> list[str]:
    return [path for path in structure.modules if path]


def spelled(selector: object, structure: StaticStructure, **options: object) -> list[str]:
    """The canonical sites; no sites where nothing is found."""
    try:
        return [str(target) for target in resolve(selector, structure, **options)]  # type: ignore[arg-type]
    except SiteNotFound:
        return []


def segment_fits(pattern: str, name: str) -> bool:
    """Character by character: a star eats one character, or nothing more."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return segment_fits(pattern[1:], name) or (bool(name) and segment_fits(pattern, name[1:]))
    return bool(name) and pattern[0] == name[0] and segment_fits(pattern[1:], name[1:])


def path_fits(patterns: list[str], names: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return path_fits(patterns[1:], names) or (bool(names) and path_fits(patterns, names[1:]))
    return bool(names) and segment_fits(patterns[0], names[0]) and path_fits(patterns[1:], names[1:])


@given(outlines())
def test_every_path_selects_itself(structure: StaticStructure) -> None:
    for path in paths_of(structure):
        assert spelled(path, structure) == [path]


@given(outlines(names=["a*", "b[0]", "c@1", "d-e", " f", "re:g", "**", "a"]))
def test_so_does_every_path_with_odd_names(structure: StaticStructure) -> None:
    for path in paths_of(structure):
        assert [target.path for target in resolve(path, structure)] == [path]


@given(outlines(most_calls=3, least=0))
def test_every_site_selects_itself(structure: StaticStructure) -> None:
    for path in structure.modules:
        for op in (None, *structure.ops(path)):
            name = ".".join(part for part in (path, op) if part)
            calls = structure.called[path] if path else 1
            for call in range(calls if name else 0):
                site = f"{name}@{call}" if calls > 1 else name
                assert spelled(site, structure) == [site]


@given(outlines_and_globs(), st.booleans())
def test_what_is_found_is_found_again_by_its_spelling(
    drawn: tuple[StaticStructure, list[str]], twice: bool
) -> None:
    structure, segments = drawn
    structure = replace(structure, called=dict.fromkeys(structure.modules, 1 + twice))
    selector = ".".join(segments) + "@1" * twice
    assume(spelled(selector, structure))
    found = resolve(selector, structure)
    assert [target for site in found for target in resolve(str(site), structure)] == found
    assert resolve([str(site) for site in reversed(found)], structure) == found[::-1]


@given(outlines(), st.text(max_size=12) | st.text("ab.*[]@:-01 relunipt()\\", max_size=14))
@pytest.mark.long
def test_any_text_gives_sites_or_an_error_of_ours(structure: StaticStructure, text: str) -> None:
    for selector in (text, "re:" + text, f"{text}@1", f"a[{text}]", f"**.{text}"):
        with suppress(GraphaugError):
            assert resolve(selector, structure)


@given(st.sampled_from([None, 1.5, b"a", True, {}, {"a"}, [], [["a"]], ["a", None], object(), -7, 10**30]))
def test_any_object_gives_an_error_of_ours(at: object) -> None:
    with pytest.raises(GraphaugError):
        resolve(at, StaticStructure("Model", {"": ("Model",), "a": ("A",)}))  # type: ignore[arg-type]


@given(outlines_and_globs())
def test_globs_agree_with_brute_force(drawn: tuple[StaticStructure, list[str]]) -> None:
    structure, segments = drawn
    assume("*" in "".join(segments))
    assume(segments[-1] != "input")  # behind a module that has no child of that name, what enters it
    oracle = [path for path in paths_of(structure) if path_fits(segments, path.split("."))]
    assert spelled(".".join(segments), structure) == oracle  # no last segment here names an operation


@given(outlines_and_globs())
def test_operations_behind_globs_agree_with_brute_force(drawn: tuple[StaticStructure, list[str]]) -> None:
    structure, segments = drawn
    heads = [path for path in structure.modules if path_fits(segments, path.split(".") if path else [])]
    oracle = [f"{path}.add".lstrip(".") for path in heads if "add" in structure.ops(path)]
    assert spelled(".".join([*segments, "add"]), structure) == oracle


@given(st.data(), st.integers(1, 14))
def test_slices_agree_with_python(data: st.DataObject, size: int) -> None:
    modules = {"": ("Model",), "list": ("ModuleList",)} | {f"list.{i}": ("A",) for i in range(size)}
    structure = StaticStructure("Model", modules)
    bounds = st.none() | st.integers(-16, 16)
    start, stop = data.draw(bounds), data.draw(bounds)
    step = data.draw(bounds.filter(lambda step: step != 0))
    text = ":".join("" if part is None else str(part) for part in (start, stop, step))
    oracle = sorted(list(range(size))[start:stop:step])  # sites come in definition order
    assert spelled(f"list[{text}]", structure) == [f"list.{i}" for i in oracle]


@given(st.integers(-16, 16), st.integers(0, 12))
def test_an_index_agrees_with_python(index: int, size: int) -> None:
    children = [f"list.child{i}" for i in range(size)]
    structure = StaticStructure("Model", {"": (), "list": ()} | dict.fromkeys(children, ()))
    try:
        oracle = [children[index]]
    except IndexError:
        oracle = []
    assert spelled(f"list[{index}]", structure) == oracle


@given(outlines(), st.data())
def test_exclude_is_set_difference(structure: StaticStructure, data: st.DataObject) -> None:
    patterns = st.sampled_from(
        ["*", "**", "a*", "*.*", "**.*b*", "**.relu", "*.**.0", "re:.*[ab]", "A", "ReLU"]
    )
    some = st.sampled_from(paths_of(structure)) | patterns.filter(lambda one: spelled(one, structure))
    at, exclude = (data.draw(st.lists(some, min_size=1, max_size=3)) for _ in range(2))
    keep = [spelled(one, structure) for one in at]
    drop = [spelled(one, structure) for one in exclude]
    gone = {site for sites in drop for site in sites}
    oracle = [site for site in dict.fromkeys(site for sites in keep for site in sites) if site not in gone]
    assert spelled(at, structure, exclude=exclude) == oracle


@given(outlines_and_globs(most_calls=3, least=0))
def test_expect_takes_exactly_the_count(drawn: tuple[StaticStructure, list[str]]) -> None:
    structure, segments = drawn
    matched = [path for path in paths_of(structure) if path_fits(segments, path.split("."))]
    total = sum(structure.called[path] for path in matched)
    assume(total)
    selector = ".".join(segments)
    assert len(resolve(selector, structure, expect=total)) == total
    with pytest.raises((SiteCountMismatch, AmbiguousSite)):
        resolve(selector, structure, expect=total + 1)


@given(outlines_and_globs())
def test_before_is_the_input_of_the_same_sites(drawn: tuple[StaticStructure, list[str]]) -> None:
    structure, segments = drawn
    selector = ".".join(segments)
    after = spelled(selector, structure)
    assume(after and all(site in structure.modules for site in after))  # "a.input" is before already
    assert spelled(selector, structure, side="before") == [f"{site}.input" for site in after]


@given(
    outlines(), st.lists(st.sampled_from(["nope", "zip.zap", "a.nix", "Qux", "re:q+", "0.no"]), min_size=1)
)
def test_every_miss_is_named(structure: StaticStructure, misses: list[str]) -> None:
    with pytest.raises(SiteNotFound) as caught:
        resolve([*paths_of(structure), *misses], structure)
    assert all(repr(miss) in str(caught.value) for miss in misses)
