import math

import numpy as np
import pytest
from ijb_sets import slow_cosine

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.ijb import identification
from ddl_plugin.evaluation.ijb.lists import Members
from ddl_plugin.evaluation.ijb.templates import Templates

RANKS = (1, 5, 10)


def random_case(seed, *, ties=False, unknown=0.0, strangers=True):
    """Templates of both galleries and of the probes, in shuffled numbers."""
    rng = np.random.default_rng(seed)
    subjects = int(rng.integers(14, 40))
    in_gallery = rng.permutation(subjects)[: subjects - (3 if strangers else 0)]
    probes = rng.integers(0, subjects, int(rng.integers(20, 90)))
    if not strangers:
        probes = rng.choice(in_gallery, len(probes))
    owners = np.concatenate([in_gallery, probes])
    place = rng.permutation(len(owners))  # row of each member
    size = int(rng.choice([3, 12]))
    centres = rng.standard_normal((subjects, size))
    features = np.empty((len(owners), size))
    features[place] = centres[owners] + rng.uniform(0.1, 2) * rng.standard_normal((len(owners), size))
    if ties:
        features = features[rng.integers(0, 4, len(features))]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    known = rng.random(len(owners)) >= unknown
    features[~known] = 0
    numbers = np.arange(len(owners)) * 2 + 5
    half = len(in_gallery) // 2

    def members(name, some):
        rows = np.sort(place[some])
        owner = np.empty(len(owners), int)
        owner[place] = owners
        rows_known = np.where(rng.random(len(rows)) < unknown / 2, -1, rows).astype(np.int32)
        return Members(name, numbers[rows], owner[rows], rows_known)

    parts = (slice(0, half), slice(half, len(in_gallery)), slice(len(in_gallery), None))
    first, second, mixed = (members(name, part) for name, part in zip("12p", parts, strict=True))
    return Templates(numbers, features, known), mixed, (first, second)


def slow_score(templates, one, other):
    if min(one, other) < 0 or not (templates.known[one] and templates.known[other]):
        return -2.0
    return slow_cosine(templates.features[one], templates.features[other])


def slow_search(templates, probes, gallery):
    """[(scores by gallery template in the order of numbers, index of the mate or None)] of every probe."""
    result = []
    order = sorted(range(len(gallery)), key=lambda i: gallery[i][0])
    for row, subject in zip(probes.rows, probes.subjects, strict=True):
        scores = [slow_score(templates, row, gallery[i][2]) for i in order]
        mates = [k for k, i in enumerate(order) if gallery[i][1] == subject]
        result.append((scores, mates[0] if mates else None))
    return result


def slow_rank(scores, mate, before):
    """before(k): whether template k of the same score as the mate comes before it; None for no comparable mate."""
    if mate is None or scores[mate] == -2:
        return None
    return 1 + sum(
        s > scores[mate] or (s == scores[mate] and k != mate and before(k, mate))
        for k, s in enumerate(scores)
    )


def columns(*galleries):
    return [
        row
        for g in galleries
        for row in zip(g.templates.tolist(), g.subjects.tolist(), g.rows.tolist(), strict=True)
    ]


def slow_insightface(templates, probes, galleries):
    searched = slow_search(templates, probes, columns(*galleries))
    ranks = [slow_rank(scores, mate, lambda k, m: k < m) for scores, mate in searched]
    own = [scores[mate] for scores, mate in searched if mate is not None]
    others = [s for scores, mate in searched for k, s in enumerate(scores) if k != mate and s > -2]
    others.sort(reverse=True)
    tpir = []
    for fpir in (0.01, 0.1):
        place = math.ceil(len(searched) * fpir)
        threshold = others[place - 1] if place <= len(others) else -2
        tpir.append(sum(s > threshold for s in own) / len(searched))
    return [sum(r is not None and r <= k for r in ranks) / len(searched) for k in RANKS], tpir


def slow_evals(templates, probes, galleries):
    ranks, tpir = [0, 0, 0], [0.0, 0.0]
    for gallery in galleries:
        searched = slow_search(templates, probes, columns(gallery))
        for scores, mate in searched:
            rank = slow_rank(scores, mate, lambda k, m: k > m)
            for i, k in enumerate(RANKS):
                ranks[i] += rank is not None and rank <= k
        alarms = sorted((max(scores) for scores, mate in searched if mate is None), reverse=True)
        mated = [(scores, mate) for scores, mate in searched if mate is not None]
        for i, fpir in enumerate((0.01, 0.1)):
            threshold = alarms[max(int(len(alarms) * fpir) - 1, 0)]
            found = sum(
                scores[mate] > threshold and all(scores[mate] > s for k, s in enumerate(scores) if k != mate)
                for scores, mate in mated
            )
            tpir[i] += found / len(mated) / 2
    return [count / len(probes) for count in ranks], tpir


def slow_benchmark(templates, probes, galleries):
    ranks, tpir = [0.0, 0.0, 0.0], [0.0, 0.0]
    for gallery in galleries:
        searched = slow_search(templates, probes, columns(gallery))
        mated = [(scores, mate) for scores, mate in searched if mate is not None]
        alarms = [max(scores) for scores, mate in searched if mate is None]
        for i, k in enumerate(RANKS):
            found = [slow_rank(scores, mate, lambda a, b: True) for scores, mate in mated]
            ranks[i] += sum(r is not None and r <= k for r in found) / len(mated) / 2
        first = [
            scores[mate] for scores, mate in mated
            if scores[mate] > -2 and all(scores[mate] > s for k, s in enumerate(scores) if k != mate)
        ]  # fmt: skip
        for i, fpir in enumerate((0.01, 0.1)):
            best = 0.0
            for threshold in {*alarms, *first, 9.0}:
                for limit in (threshold, np.nextafter(threshold, 9)):
                    if sum(a >= limit for a in alarms) / len(alarms) <= fpir:
                        best = max(best, sum(s >= limit for s in first) / len(mated))
            tpir[i] += best / 2
    return ranks, tpir


def figures(found):
    return [found[f"rank{k}"] for k in RANKS], [point["tpir"] for point in found["tpir_at_fpir"]]


CASES = [
    pytest.param({}, id="plain"),
    pytest.param({"ties": True}, id="ties"),
    pytest.param({"unknown": 0.15}, id="templates without features"),
    pytest.param({"ties": True, "unknown": 0.3}, id="both"),
    pytest.param({"strangers": False}, id="every subject in a gallery"),
]


@pytest.mark.parametrize("case", CASES)
def test_the_conventions_are_their_definitions(case, monkeypatch):
    monkeypatch.setattr(identification, "_BLOCK_VALUES", 200)
    for seed in range(12):
        templates, probes, galleries = random_case(seed, **case)
        both, *each = identification.search(templates, probes, galleries)
        for found, slow in (
            (identification.insightface(both), slow_insightface),
            (identification.insightface_evals(each), slow_evals),
            (identification.benchmark(each), slow_benchmark),
        ):
            expected = slow(templates, probes, galleries)
            assert figures(found)[0] == pytest.approx(expected[0], abs=1e-9), (seed, slow.__name__)
            assert figures(found)[1] == pytest.approx(expected[1], abs=1e-9), (seed, slow.__name__)


@pytest.mark.parametrize("block", [1, 77, 1 << 20])
def test_the_size_of_the_blocks_changes_nothing(monkeypatch, block):
    templates, probes, galleries = random_case(3)
    whole = identification.search(templates, probes, galleries)
    monkeypatch.setattr(identification, "_BLOCK_VALUES", block)
    for one, other in zip(identification.search(templates, probes, galleries), whole, strict=True):
        for name in ("mated", "mate", "other", "above", "before", "after", "alarms"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_obtained_fpirs_are_not_above_those_asked_for():
    for seed in range(8):
        templates, probes, galleries = random_case(seed, ties=seed % 2 == 1)
        _, *each = identification.search(templates, probes, galleries)
        for point in identification.benchmark(each)["tpir_at_fpir"]:
            for obtained, threshold, one in zip(
                point["obtained_fpirs"], point["thresholds"], each, strict=True
            ):
                assert obtained <= point["fpir"]
                assert obtained == np.mean(one.other[~one.mated] >= threshold)


def test_a_mate_that_ties_with_another_is_not_found_in_the_open_set():
    """The probes' mates score 1, as another template does in the second gallery; strangers score 0."""
    features = np.eye(6)[[0, 1, 2, 2, 0, 1, 2, 5]]
    owners = np.array([0, 1, 2, 3, 0, 1, 2, 9])  # the last four are probes
    numbers, rows = np.arange(8) + 10, np.arange(8, dtype=np.int32)

    def members(name, part):
        return Members(name, numbers[part], owners[part], rows[part])

    templates = Templates(numbers, features, np.ones(8, bool))
    galleries = members("1", slice(0, 2)), members("2", slice(2, 4))
    both, *each = identification.search(templates, members("p", slice(4, 8)), galleries)
    found = identification.benchmark(each)
    assert figures(found) == ([0.5, 1.0, 1.0], [0.5, 0.5])
    assert found["tpir_at_fpir"][0]["obtained_fpirs"] == [0.0, 0.0]
    assert identification.insightface(both)["rank1"] == 0.75  # the lower number is the mate
    assert identification.insightface_evals(each)["rank1"] == 0.5  # the higher one is not


def test_a_subject_with_two_templates_is_refused():
    templates, probes, (first, second) = random_case(0)
    twice = Members("2", second.templates, np.append(second.subjects[:-1], first.subjects[0]), second.rows)
    with pytest.raises(UserError, match=rf"several for 1 of .*subject {first.subjects[0]} "):
        identification.search(templates, probes, (first, twice))


def test_a_gallery_with_everyone_has_no_open_set():
    templates, probes, (first, second) = random_case(1, strangers=False)
    mine = np.isin(probes.subjects, first.subjects)
    probes = Members("p", probes.templates[mine], probes.subjects[mine], probes.rows[mine])
    _, *each = identification.search(templates, probes, (first, second))
    found = identification.benchmark(each)
    assert [point["tpir"] for point in found["tpir_at_fpir"]] == [None, None]
    assert found["rank1"] is None  # nobody has a mate in the second gallery
    assert identification.insightface_evals(each)["tpir_at_fpir"][0]["tpir"] is None
    assert identification.rank_curve(each) is None
    assert identification.error_curve(each) is None


def test_curves_pass_through_the_figures():
    templates, probes, galleries = random_case(5)
    _, *each = identification.search(templates, probes, galleries)
    found = identification.benchmark(each)
    rank, rate = identification.rank_curve(each)
    assert [rate[k - 1] for k in RANKS] == [found[f"rank{k}"] for k in RANKS]
    assert (np.diff(rate) >= 0).all()
    fpir, fnir = identification.error_curve(each, 300)
    assert (np.diff(fnir) <= 0).all()
    at = np.searchsorted(fpir, 0.1, side="right") - 1
    assert fnir[at] >= 1 - found["tpir_at_fpir"][1]["tpir"]
    assert fnir[at + 1] <= 1 - found["tpir_at_fpir"][1]["tpir"]
    assert len(rank) == identification.LONGEST
