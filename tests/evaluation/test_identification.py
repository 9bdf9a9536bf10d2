import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.evidence import ACCEPTED, REJECTED
from ddl_plugin.evaluation.faces import RecordFaces
from ddl_plugin.evaluation.identification import FARS, embed_faces, examine, identify, lines_of, title_of
from ddl_plugin.evaluation.protocols import Protocol, first_others
from ddl_plugin.evaluation.subsets import Subset
from ddl_plugin.evaluation.verification import summarise


def colour(label, k=0):
    """Images of one identity: a block pattern of its own, image k a little brighter."""
    pattern = np.random.default_rng(label).integers(0, 200, (14, 14, 3), dtype=np.uint8)
    image = np.kron(pattern, np.ones((8, 8, 1), np.uint8)) + np.uint8(10 * k)
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


@pytest.fixture
def records(tmp_path):
    """Identities 0..4 with 3, 1, 2, 2, 1 images: records 1-3, 4, 5-6, 7-8, 9."""
    with RecordWriter(tmp_path, "val") as writer:
        for label, count in enumerate((3, 1, 2, 2, 1)):
            for k in range(count):
                writer.add(colour(label, k), label)
    return Records(tmp_path / "val.rec")


def embed(images):
    return images[:, ::8, ::8].reshape(len(images), -1).astype(np.float32) - 100


def test_first_against_second_image_of_each_identity(records):
    protocol = first_others(records)
    assert protocol.gallery.tolist() == [0, 4, 6]
    assert protocol.probes.tolist() == [1, 5, 7]


def test_more_images_of_an_identity_may_be_probes(records):
    protocol = first_others(records, probes=5)
    assert protocol.gallery.tolist() == [0, 4, 6]
    assert protocol.probes.tolist() == [1, 2, 5, 7]


def test_first_others_needs_two_identities_with_two_images(tmp_path):
    with RecordWriter(tmp_path, "val") as writer:
        for label, count in enumerate((2, 1, 1)):
            for k in range(count):
                writer.add(colour(label, k), label)
    with pytest.raises(UserError, match=r"val\.rec: expected two identities or more .* got 1"):
        first_others(Records(tmp_path / "val.rec"))


def at_8_pixels(records, position):
    small = cv2.resize(records.image(position), (8, 8), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC)


def test_probes_are_degraded_and_the_gallery_is_not(records):
    seen = []

    def spy(images):
        seen.append(images)
        return embed(images)

    identify(spy, records, first_others(records), sizes=(8,))
    gallery, probes = seen
    np.testing.assert_array_equal(gallery, records.images(np.array([0, 4, 6])))
    for position, probe in zip((1, 5, 7), probes, strict=True):
        np.testing.assert_array_equal(probe, at_8_pixels(records, position))


def test_both_sizes_degrade_the_gallery_as_the_probes(records):
    """One embedding of the gallery for each of its sizes, one of the probes for each of theirs."""
    seen = []

    def spy(images):
        seen.append(images)
        return embed(images)

    protocol = first_others(records)
    result = identify(spy, records, protocol, sizes=(None, 8), both_sizes=(8, 6))
    shown = [(entry["size"], entry["gallery_size"]) for entry in result["results"]]
    assert shown == [("full", "full"), (8, "full"), (8, 8), (6, 6)]
    titles = ["full size", "8 x 8 pixels", "8 x 8 pixels, gallery too", "6 x 6 pixels, gallery too"]
    assert [title_of(entry) for entry in result["results"]] == titles
    assert len(seen) == 6  # the gallery at full size, 8 and 6, the probes at full size, 8 and 6
    np.testing.assert_array_equal(seen[0], records.images(np.array([0, 4, 6])))
    for images, positions in ((seen[2], (1, 5, 7)), (seen[3], (0, 4, 6))):
        for position, image in zip(positions, images, strict=True):
            np.testing.assert_array_equal(image, at_8_pixels(records, position))
    (alone,) = identify(embed, records, protocol, sizes=(), both_sizes=(8,))["results"]
    assert alone == result["results"][2]
    assert alone != result["results"][1]


def test_averages_are_of_one_size_of_the_gallery(records):
    people = np.eye(3, dtype=np.float32)
    embeddings = iter((people, people, np.roll(people, 1, axis=0)))  # gallery, probes, the small gallery
    protocol = replace(first_others(records), conditions=np.array(["d1", "d2", "d2"]))
    result = identify(lambda images: next(embeddings), records, protocol, sizes=(8,), both_sizes=(8,))
    shown = [(average["size"], average["gallery_size"], average["rank1"]) for average in result["averages"]]
    assert shown == [(8, "full", 1.0), (8, 8, 0.0)]


def test_evidence_shows_the_gallery_as_it_was_compared(records):
    def everyone_alike(images):
        return np.repeat(embed(records.images(np.array([4]))), len(images), axis=0)

    _, (line,) = examine(everyone_alike, records, first_others(records), (), both_sizes=(8,))
    shown = zip(
        (*line.failures[0].images(), *line.genuine.images(0)),
        (*line.failures[0].names, *line.genuine.names(0)),
        strict=True,
    )
    for image, name in shown:
        np.testing.assert_array_equal(image, at_8_pixels(records, int(name.split()[1]) - 1))


def test_the_result_by_size_is_plain_json(records):
    result = identify(embed, records, first_others(records), sizes=(None, 8))
    assert (result["gallery"], result["gallery_identities"], result["probes"]) == (3, 3, 3)
    full, small = result["results"]
    assert (full["size"], small["size"]) == ("full", 8)
    assert (full["rank1"], full["rank5"], full["outside_gallery"]) == (1.0, 1.0, 0)
    assert (full["negatives"], full["positives"]) == (6, 3)
    assert full["margin"] > small["margin"]
    assert json.loads(json.dumps(result)) == result


def test_probes_of_nobody_in_the_gallery_are_counted_and_left_out_of_rank_k(records):
    # Records 2 and 6 are in the gallery's identities 0 and 2; record 9 is of identity 4.
    protocol = Protocol(np.array([0, 4]), np.array([1, 8, 5]))
    (entry,) = identify(embed, records, protocol, sizes=(None,))["results"]
    assert (entry["probes"], entry["outside_gallery"], entry["rank1"]) == (3, 1, 1.0)
    assert (entry["negatives"], entry["positives"]) == (4, 2)
    with pytest.raises(UserError, match="condition 'all': expected identities of the gallery, got 1 probes"):
        identify(embed, records, Protocol(np.array([0, 4]), np.array([8])), sizes=(None,))


def test_each_condition_has_its_own_entry(records):
    protocol = Protocol(np.array([0, 4, 6]), np.array([1, 5, 7]), np.array(["d2", "d1", "d2"]))
    result = identify(embed, records, protocol, sizes=(None,))
    assert [(e["condition"], e["probes"]) for e in result["results"]] == [("all", 3), ("d1", 1), ("d2", 2)]


def test_mirror_images_are_added_on_request_only(records):
    calls = []

    def spy(images):
        calls.append(images)
        return embed(images)

    positions = np.array([0, 4])
    embed_faces(spy, RecordFaces(records), positions)
    assert len(calls) == 1
    embed_faces(spy, RecordFaces(records), positions, flip=True)
    np.testing.assert_array_equal(calls[2], calls[1][:, :, ::-1])


def test_a_broken_embedding_is_named_by_its_record(records):
    with pytest.raises(UserError, match=r"record 5 of val\.rec: expected a finite, non-zero embedding"):
        embed_faces(lambda x: embed(x) * np.nan, RecordFaces(records), np.array([4, 6]))


def test_images_of_another_size_are_named(tmp_path):
    with RecordWriter(tmp_path, "val") as writer:
        for label in (0, 0, 1, 1):
            writer.add(np.zeros((96, 90, 3), np.uint8), label)
    records = Records(tmp_path / "val.rec")
    with pytest.raises(UserError, match=r"record 1 of val\.rec: expected 112x112 pixels, got 90x96"):
        identify(embed, records, first_others(records))


def noisy(images):
    """An embedding by which some identities are taken for others."""
    rows = embed(images)
    rng = np.random.default_rng(int(images.astype(np.int64).sum() % 1000))
    return rows + rng.normal(0, 900, rows.shape).astype(np.float32)


def test_results_are_those_of_the_arrays_of_all_scores(records):
    """The way it was before scores came in blocks."""
    protocol = Protocol(np.array([0, 4, 6, 8]), np.array([1, 2, 5, 7]), np.array(["a", "b", "b", "a"]))
    result = identify(noisy, records, protocol, sizes=(None,), batch=1)
    gallery, probes = (
        np.stack([noisy(records.images(np.array([i])))[0] for i in p])
        for p in (protocol.gallery, protocol.probes)
    )
    gallery, probes = (
        (rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)).astype(
            np.float32
        )
        for rows in (gallery, probes)
    )
    for entry, chosen in zip(result["results"], ([0, 1, 2, 3], [0, 3], [1, 2]), strict=True):
        scores = probes[chosen] @ gallery.T
        same = records.labels[protocol.probes[chosen]][:, None] == records.labels[protocol.gallery]
        expected = summarise(scores[~same], scores[same], FARS)
        for key, value in expected.items():
            if key == "tar_at_far":
                for got, wanted in zip(entry[key], value, strict=True):
                    assert got == pytest.approx(wanted, abs=1e-6)
            else:
                assert entry[key] == pytest.approx(value, abs=1e-6)
        right = [np.argmax(row) == np.argmax(own) for row, own in zip(scores, same, strict=True)]
        assert entry["rank1"] == np.mean(right)


def batch_free(images):
    """An embedding whose rows do not depend on the batch that they are in."""
    return np.stack([embed(image[None])[0] for image in images])


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_batch_size_changes_no_figure(records, batch):
    protocol = first_others(records)
    expected = identify(batch_free, records, protocol, sizes=(None, 8), batch=3)
    assert identify(batch_free, records, protocol, sizes=(None, 8), batch=batch) == expected


def test_missing_probes_count_as_not_found(records):
    missing = (("d1", ""), ("d1", ""), ("d2", ""))
    protocol = Protocol(
        np.array([0, 4, 6]), np.array([1, 5, 7]), np.array(["d1", "d2", "d2"]), missing=missing
    )
    result = identify(embed, records, protocol, sizes=(None,))
    entries = result["results"]
    assert [(e["probes"], e["missing"]) for e in entries] == [(3, 3), (1, 2), (2, 1)]
    assert [e["rank1"] for e in entries] == pytest.approx([3 / 6, 1 / 3, 2 / 3])
    (average,) = result["averages"]
    assert average["over"] == ["d1", "d2"]
    assert average["rank1"] == pytest.approx((1 / 3 + 2 / 3) / 2)


def test_a_condition_whose_probes_are_all_missing_is_not_left_out(records):
    protocol = first_others(records)
    near = np.full(len(protocol.probes), "near")
    protocol = replace(protocol, conditions=near, missing=(("far", ""),))
    with pytest.raises(
        UserError, match="condition 'far': expected one probe or more, got none, and 1 missing"
    ):
        lines_of(protocol, records.labels)
    groups = tuple(np.full(len(x), "a") for x in (protocol.gallery, protocol.probes))
    protocol = replace(protocol, conditions=None, groups=groups, missing=(("", "b"),))
    with pytest.raises(UserError, match="condition 'b': expected one probe or more, got none, and 1 missing"):
        lines_of(protocol, records.labels)


def test_a_probe_without_a_condition_is_among_all_alone(records):
    protocol = first_others(records)
    conditions = np.array(["near"] * (len(protocol.probes) - 1) + [""])
    lines = lines_of(replace(protocol, conditions=conditions), records.labels)
    assert [(line.condition, line.probes.size) for line in lines] == [
        ("all", len(protocol.probes)),
        ("near", len(protocol.probes) - 1),
    ]


def test_groups_are_searched_apart(records):
    """A probe is compared with the gallery of its own group alone."""
    groups = np.array(["x", "x", "y", "y"]), np.array(["x", "x", "y"])
    protocol = Protocol(np.array([0, 4, 6, 8]), np.array([1, 5, 7]), groups=groups)
    entries = identify(embed, records, protocol, sizes=(None,))["results"]
    assert [(e["condition"], e["probes"], e["negatives"], e["positives"]) for e in entries] == [
        ("x", 2, 2, 2),
        ("y", 1, 1, 1),
    ]


def test_missing_probes_belong_to_their_group(records):
    groups = np.array(["x", "x", "y", "y"]), np.array(["x", "x", "y"])
    missing = (("c", "x"), ("c", "x"), ("c", "y"))
    conditions = np.array(["c", "c", "c"])
    protocol = Protocol(np.array([0, 4, 6, 8]), np.array([1, 5, 7]), conditions, groups, missing)
    lines = [(line.condition, line.missing) for line in lines_of(protocol, records.labels)]
    assert lines == [("x", 2), ("x, c", 2), ("y", 1), ("y, c", 1)]


def test_groups_and_conditions_are_named_together(records):
    groups = np.array(["x", "x", "y", "y"]), np.array(["x", "x", "y"])
    protocol = Protocol(np.array([0, 4, 6, 8]), np.array([1, 5, 7]), np.array(["c1", "c2", "c1"]), groups)
    with pytest.raises(UserError, match=r"condition 'y, c2': expected one probe or more, got none$"):
        identify(None, records, protocol)  # before anything is embedded
    conditions = np.array(["c1", "c2", "c1"])
    protocol = Protocol(np.array([0, 4, 6, 8]), np.array([1, 5, 2]), conditions)
    names = [line.condition for line in lines_of(protocol, records.labels)]
    assert names == ["all", "c1", "c2"]


def test_a_group_with_one_gallery_identity_is_refused(records):
    groups = np.array(["x", "x", "y"]), np.array(["x", "y"])
    protocol = Protocol(np.array([0, 4, 6]), np.array([1, 7]), groups=groups)
    with pytest.raises(UserError, match="gallery, condition 'y': expected two identities or more, got 1"):
        identify(None, records, protocol)


def test_easy_and_hard_probes_have_entries_of_their_own(records):
    subsets = [
        Subset("easy", "yaw < 9", np.array([True, False, True])),
        Subset("hard", "yaw > 30", np.array([False, True, False])),
    ]
    result, evidence = examine(embed, records, first_others(records), (None,), subsets=subsets)
    assert [(e["condition"], e["probes"]) for e in result["results"]] == [
        ("all", 3),
        ("easy (yaw < 9)", 2),
        ("hard (yaw > 30)", 1),
    ]
    assert [line.title for line in evidence] == [
        "full size",
        "full size, easy (yaw < 9)",
        "full size, hard (yaw > 30)",
    ]
    assert "averages" not in result


def test_evidence_shows_where_the_search_fails(records):
    calls = []

    def network(images):
        calls.append(len(images))
        if len(calls) == 1:  # the gallery
            return embed(images)
        return np.repeat(embed(records.images(np.array([4]))), len(images), axis=0)

    protocol = first_others(records)  # gallery 0, 4, 6; probes 1, 5, 7: all found to be 4
    result, (line,) = examine(network, records, protocol, (8,))
    assert result["results"][0]["rank1"] == pytest.approx(1 / 3)
    assert line.title == "8 x 8 pixels"
    assert [failure.kind for failure in line.failures] == [REJECTED, REJECTED, ACCEPTED, ACCEPTED]
    rejected = {failure.names for failure in line.failures if failure.kind == REJECTED}
    accepted = {failure.names for failure in line.failures if failure.kind == ACCEPTED}
    assert rejected == {
        ("record 2 of val.rec", "record 1 of val.rec"),
        ("record 8 of val.rec", "record 7 of val.rec"),
    }
    assert accepted == {
        ("record 2 of val.rec", "record 5 of val.rec"),
        ("record 8 of val.rec", "record 5 of val.rec"),
    }
    scores = [failure.similarity for failure in line.failures]
    assert scores[0] <= scores[1]
    assert scores[2] >= scores[3]
    assert all((f.similarity < f.threshold) == (f.kind == REJECTED) for f in line.failures)
    probe, own = line.failures[0].images()
    np.testing.assert_array_equal(probe, at_8_pixels(records, int(line.failures[0].names[0].split()[1]) - 1))
    np.testing.assert_array_equal(own, records.image(int(line.failures[0].names[1].split()[1]) - 1))
    ranks, found = line.cmc
    assert ranks.tolist() == [1, 2, 3]
    assert found[0] == pytest.approx(1 / 3)
    assert found[-1] == 1.0
    assert line.genuine.right.tolist() == [False, True, False]
    assert all(line.genuine.right == (line.genuine.score > line.genuine.bar))
    with_one_missing = replace(protocol, missing=(("", ""),))
    calls.clear()
    _, (line,) = examine(network, records, with_one_missing, (8,))
    assert line.cmc[1][[0, -1]] == pytest.approx([1 / 4, 3 / 4])  # who is missing is never found
