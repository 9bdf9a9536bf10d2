from pathlib import Path

import numpy as np
import pytest
from ijb_sets import Set, small_set

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.ijb.layout import find_layout
from ddl_plugin.evaluation.ijb.lists import read_images, read_members, read_pairs
from ddl_plugin.evaluation.ijb.problems import Problem, Problems


def problems(limit=1.0):
    return Problems(limit)


def images(tmp_path, made, noted=None):
    return read_images(find_layout(made.write(tmp_path), made.target), noted or problems())


def kinds(noted):
    return {problem.kind: (problem.count, problem.of) for problem in noted.found}


def pair_file(tmp_path, text):
    path = tmp_path / "pairs.txt"
    path.write_bytes(text.encode())
    return path


# -- layout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["IJBB", "IJBC"])
def test_the_folder_itself_or_the_one_above(tmp_path, target):
    small_set(target=target).write(tmp_path / target)
    assert find_layout(tmp_path, target) == find_layout(tmp_path / target, target)
    names = [path.name for path in find_layout(tmp_path, target).galleries]
    assert names == [
        f"{target.lower()}_1N_gallery_{g}.csv" for g in (("S1", "S2") if target == "IJBB" else ("G1", "G2"))
    ]


def test_every_missing_file_is_named_that_is_needed(tmp_path):
    small_set().write(tmp_path)
    (tmp_path / "meta" / "ijbc_1N_gallery_G2.csv").unlink()
    (tmp_path / "meta" / "ijbc_template_pair_label.txt").unlink()
    with pytest.raises(UserError, match=r"pair_label\.txt and no .*gallery_G2\.csv"):
        find_layout(tmp_path, "IJBC")
    with pytest.raises(UserError, match="gallery_G2"):
        find_layout(tmp_path, "IJBC", ("1n",))
    (tmp_path / "meta" / "ijbc_template_pair_label.txt").write_text("")
    assert find_layout(tmp_path, "IJBC", ("11",))
    with pytest.raises(UserError, match=r"IJBB files .*no .*ijbb_face_tid_mid\.txt"):
        find_layout(tmp_path, "IJBB")
    with pytest.raises(UserError, match=r"got neither .*nowhere/meta nor .*nowhere/IJBC/meta$"):
        find_layout(tmp_path / "nowhere", "IJBC")


# -- images ----------------------------------------------------------------------------------------------


def test_images_in_the_order_of_template_medium_and_name(tmp_path):
    made = small_set(seed=3)
    found = images(tmp_path, made)
    expected = sorted((int(t), int(m), name) for name, t, m in (line.split() for line in made.media))
    got = [
        (int(t), int(m), n.decode())
        for t, m, n in zip(found.templates, found.media, found.names, strict=True)
    ]
    assert got == expected
    points = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in made.landmarks}
    for i in range(len(found)):
        np.testing.assert_array_equal(found.landmarks[i].ravel(), np.float32(points[found.name(i)][:-1]))
        assert found.scores[i] == np.float32(points[found.name(i)][-1])


def test_the_order_of_the_lines_of_either_list_means_nothing(tmp_path):
    made = small_set(seed=4)
    first = images(tmp_path / "a", made)
    rng = np.random.default_rng(0)
    for name in ("media", "landmarks"):
        setattr(made, name, [getattr(made, name)[i] for i in rng.permutation(len(made.media))])
    second = images(tmp_path / "b", made)
    assert first.digest() == second.digest()
    for name in ("names", "templates", "media", "landmarks", "scores"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_an_image_of_two_templates_is_in_both(tmp_path):
    made = small_set()
    name = made.media[0].split()[0]
    made.media.append(f"{name} 9999 1")
    noted = problems()
    found = images(tmp_path, made, noted)
    rows = [i for i in range(len(found)) if found.name(i) == name]
    assert sorted(found.templates[rows])[-1] == 9999
    np.testing.assert_array_equal(found.landmarks[rows[0]], found.landmarks[rows[1]])
    assert noted.found == []


def test_repeated_lines_are_counted_and_kept(tmp_path):
    made = small_set()
    made.media.append(made.media[5])
    made.landmarks += made.landmarks[:2]
    noted = problems()
    found = images(tmp_path, made, noted)
    assert len(found) == len(made.media)
    assert kinds(noted) == {
        "images repeated in ijbc_name_5pts_score.txt": (2, len(made.landmarks)),
        "repeated lines in ijbc_face_tid_mid.txt": (1, len(made.media)),
    }
    assert made.media[5].split()[0] in noted.found[1].first


@pytest.mark.parametrize("score", ["-0.01", "1.01", "998"])
def test_scores_of_the_detector_that_are_no_shares_are_counted_and_used(tmp_path, score):
    made = small_set()
    for line, value in ((7, score), (8, "0"), (9, "1")):
        made.landmarks[line] = " ".join([*made.landmarks[line].split()[:-1], value])
    noted = problems()
    found = images(tmp_path, made, noted)
    assert kinds(noted) == {"images with a detector's score outside 0..1": (1, len(made.media))}
    assert noted.found[0].first == (made.landmarks[7].split()[0],)
    assert np.float32(score) in found.scores


@pytest.mark.parametrize("field", ["nan", "inf", "-", "x"])
def test_landmarks_that_are_no_numbers_are_counted(tmp_path, field):
    made = small_set()
    cells = made.landmarks[7].split()
    cells[3] = field
    made.landmarks[7] = " ".join(cells)
    noted = problems()
    images(tmp_path, made, noted)
    assert kinds(noted) == {"images without usable landmarks and score": (1, len(made.media))}
    assert noted.found[0].first == (cells[0],)


def test_an_image_without_a_line_of_landmarks(tmp_path):
    made = small_set()
    gone = made.landmarks.pop(4).split()[0]
    with pytest.raises(UserError, match=rf"none for 1 of {len(made.media)}, the first is {gone}"):
        images(tmp_path, made)


def test_more_than_the_limit_is_refused(tmp_path):
    made = small_set()
    made.media += made.media[:3]
    with pytest.raises(UserError, match=r"at most 1.00% repeated lines .*got 3 of .*--max-problems"):
        images(tmp_path, made, problems(0.01))


# -- pairs -----------------------------------------------------------------------------------------------

NUMBERS = np.array([3, 5, 8, 1200], np.int64)


def test_pairs_become_rows(tmp_path):
    found = read_pairs(pair_file(tmp_path, "3 5 0\n8 8 1\n1200 3 0\n"), NUMBERS, problems())
    assert found.first.tolist() == [0, 2, 3]
    assert found.second.tolist() == [1, 2, 0]
    assert found.same.tolist() == [False, True, False]


@pytest.mark.parametrize(
    "text",
    ["3 5 0\r\n8 8 1\r\n", "3 5 0\n8 8 1", "\n3 5 0\n\n8 8 1\n", "3 5 0\n8 8 1\n\n"],
)
def test_line_ends_and_blank_lines(tmp_path, text):
    found = read_pairs(pair_file(tmp_path, text), NUMBERS, problems())
    assert (found.first.tolist(), found.second.tolist(), found.same.tolist()) == (
        [0, 2],
        [1, 2],
        [False, True],
    )


def test_long_lists_block_by_block(tmp_path, monkeypatch):
    from ddl_plugin.evaluation.ijb import lists

    monkeypatch.setattr(lists, "_BLOCK", 64)
    rng = np.random.default_rng(0)
    rows = np.column_stack((rng.choice(NUMBERS, (500, 2)), rng.integers(0, 2, 500)))
    lines = [" ".join(map(str, row)) for row in rows.tolist()]
    for text in ("\n".join(lines), "\n".join(lines) + "\n", "\n".join([*lines[:300], "", *lines[300:]])):
        found = read_pairs(pair_file(tmp_path, text), NUMBERS, problems())
        np.testing.assert_array_equal(NUMBERS[found.first], rows[:, 0])
        np.testing.assert_array_equal(NUMBERS[found.second], rows[:, 1])
        np.testing.assert_array_equal(found.same, rows[:, 2] == 1)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("3 5 0\n3 5\n8 8 8 1\n", "line 2: expected 3 cells"),
        ("3 5 0\n3 x 1\n", "line 2.*other template.*'x'"),
        ("3 5 0\n3 5 2\n", "line 2.*label 0 or 1, got 2"),
        ("3 -5 0\n", "line 1.*'-5'"),
        ("3.5 5 0\n", "line 1.*'3.5'"),
        ("", "got none"),
    ],
)
def test_what_is_no_pair_is_named_by_its_line(tmp_path, text, match):
    with pytest.raises(UserError, match=match):
        read_pairs(pair_file(tmp_path, text), NUMBERS, problems())


def test_unknown_templates_are_counted_not_dropped(tmp_path):
    noted = problems()
    found = read_pairs(pair_file(tmp_path, "3 5 0\n3 7 1\n99999 5 0\n8 8 1\n"), NUMBERS, noted)
    assert found.first.tolist() == [0, 0, -1, 2]
    assert found.second.tolist() == [1, -1, 1, 2]
    assert kinds(noted) == {"pairs of templates without images": (2, 4)}
    assert noted.found[0].first == ("3 7", "99999 5")


def test_numbers_of_templates_may_be_large(tmp_path):
    numbers = np.array([7, 10**12], np.int64)
    found = read_pairs(
        pair_file(tmp_path, "7 1000000000000 1\n8 7 0\n999999999999 7 0\n"), numbers, problems()
    )
    assert found.first.tolist() == [0, -1, -1]
    assert found.second.tolist() == [1, 0, 0]


def test_repeated_pairs_are_counted_and_kept(tmp_path):
    noted = problems()
    found = read_pairs(pair_file(tmp_path, "3 5 0\n8 8 1\n3 5 0\n5 3 0\n3 5 1\n"), NUMBERS, noted)
    assert len(found) == 5
    assert kinds(noted) == {"repeated pairs": (2, 5)}
    assert noted.found[0].first == ("3 5",)


# -- galleries and probes --------------------------------------------------------------------------------


def members(tmp_path, text, noted=None):
    path = tmp_path / "members.csv"
    path.write_text(text)
    return read_members(path, "G1", NUMBERS, noted or problems())


def test_a_line_a_template_or_a_line_an_image(tmp_path):
    short = members(tmp_path, "TEMPLATE_ID,SUBJECT_ID\n8,70\n3,60\n")
    long = members(tmp_path, "TEMPLATE_ID,SUBJECT_ID,FILENAME\n8,70,a.jpg\n3,60,b.jpg\n8,70,c.jpg\n")
    for found in (short, long):
        assert found.templates.tolist() == [3, 8]
        assert found.subjects.tolist() == [60, 70]
        assert found.rows.tolist() == [0, 2]


def test_troubles_of_members_are_counted(tmp_path):
    noted = problems()
    found = members(tmp_path, "T,S\n8,70\n3,60\n8,70\n77,1\n3,61\n", noted)
    assert found.templates.tolist() == [3, 8, 77]
    assert found.subjects.tolist() == [60, 70, 1]
    assert found.rows.tolist() == [0, 2, -1]
    assert kinds(noted) == {
        "templates of several subjects in members.csv": (1, 3),
        "repeated lines in members.csv": (2, 5),
        "templates of members.csv without images": (1, 3),
    }


@pytest.mark.parametrize(
    ("text", "match"), [("8,70\n3,60\n", "header"), ("T,S\n", "got none"), ("T\n1\n", "header")]
)
def test_what_is_no_gallery(tmp_path, text, match):
    with pytest.raises(UserError, match=match):
        members(tmp_path, text)


# -- problems --------------------------------------------------------------------------------------------


def test_problems_name_the_first_few():
    noted = Problems(0.5)
    noted.add("odd ones", 7, 20, iter(range(7)), "left out")
    noted.add("nothing", 0, 20, (), "left out")
    assert noted.found == [Problem("odd ones", 7, 20, ("0", "1", "2", "3", "4"), "left out")]
    assert noted.found[0].in_words() == "7 of 20 odd ones (0, 1, 2, 3, 4, ..): left out"
    with pytest.raises(UserError, match=r"at most 50\.00% odd ones, got 11 of 20"):
        noted.add("odd ones", 11, 20, range(11), "left out")
    Problems(0.55).add("odd ones", 11, 20, range(11), "left out")


def test_a_set_without_lines(tmp_path: Path):
    with pytest.raises(UserError, match="got none"):
        images(tmp_path, Set())
