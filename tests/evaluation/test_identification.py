import json

import cv2
import numpy as np
import pytest

from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.identification import (
    Protocol,
    embed_records,
    first_second,
    identify,
    load_protocol,
    match,
)


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_match(gallery, gallery_labels, probes, probe_labels):
    ranks, negatives, positives = [], [], []
    for probe, label in zip(probes, probe_labels, strict=True):
        best = {}
        for image, other in zip(gallery, gallery_labels, strict=True):
            score = float(np.dot(image, probe))
            (positives if other == label else negatives).append(score)
            best[other] = max(best.get(other, -9), score)
        if label not in best:
            ranks.append(0)
            continue
        ranks.append(1 + sum(s >= best[label] for other, s in best.items() if other != label))
    return ranks, sorted(negatives), sorted(positives)


@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
@pytest.mark.parametrize("seed", range(4))
def test_match_equals_plain_loops(seed, chunk, monkeypatch):
    monkeypatch.setattr("ddl_plugin.evaluation.identification._CHUNK_SCORES", chunk)
    rng = np.random.default_rng(seed)
    gallery, probes = unit(rng.normal(size=(25, 4))), unit(rng.normal(size=(17, 4)))
    # Several gallery images per identity, in no order; some probes of nobody in the gallery.
    gallery_labels, probe_labels = rng.integers(0, 9, 25) * 10, rng.integers(-1, 11, 17) * 10
    ranks, negatives, positives = match(gallery, gallery_labels, probes, probe_labels)
    expected = slow_match(gallery, gallery_labels, probes, probe_labels)
    assert ranks.tolist() == expected[0]
    np.testing.assert_allclose(np.sort(negatives), expected[1], atol=1e-6)
    np.testing.assert_allclose(np.sort(positives), expected[2], atol=1e-6)


def test_a_tie_with_another_identity_is_wrong_and_within_the_identity_is_not():
    gallery = unit([[1, 0], [1, 0], [0, 1], [0, 1]])
    ranks, _, _ = match(gallery, np.array([1, 2, 3, 3]), unit([[1, 0], [0, 1]]), np.array([1, 3]))
    assert ranks.tolist() == [2, 1]


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


def protocol_file(tmp_path, text):
    path = tmp_path / "protocol.csv"
    path.write_text(text)
    return path


def test_first_against_second_image_of_each_identity(records):
    protocol = first_second(records)
    assert protocol.gallery.tolist() == [0, 4, 6]
    assert protocol.probes.tolist() == [1, 5, 7]


def test_first_second_needs_two_identities_with_two_images(tmp_path):
    with RecordWriter(tmp_path, "val") as writer:
        for label, count in enumerate((2, 1, 1)):
            for k in range(count):
                writer.add(colour(label, k), label)
    with pytest.raises(UserError, match=r"val\.rec: expected two identities or more .* got 1"):
        first_second(Records(tmp_path / "val.rec"))


def test_a_protocol_is_read_by_record_number(records, tmp_path):
    text = "record,role,condition\n1,gallery,\n7,gallery,\n2,probe,d1\n8,probe,d2\n3,probe,d1\n"
    protocol = load_protocol(protocol_file(tmp_path, text), records)
    assert protocol.gallery.tolist() == [0, 6]
    assert protocol.probes.tolist() == [1, 7, 2]
    assert protocol.conditions.tolist() == ["d1", "d2", "d1"]
    plain = load_protocol(protocol_file(tmp_path, "role,record\ngallery,1\ngallery,5\nprobe,6\n"), records)
    assert plain.conditions is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("record,rolle\n1,gallery\n", "unknown key 'rolle'; did you mean 'role'"),
        ("record,condition\n1,a\n", "got no 'role'"),
        ("", "got no 'record'"),
        ("record,role\n1,gallery\n2,prob\n", "line 3: role: expected gallery or probe, got 'prob'"),
        ("record,role\nx,gallery\n", "line 2: record: expected a record number, got 'x'"),
        ("record,role\n-1,gallery\n", "got '-1'"),
        ("record,role\n1\n", "role: expected gallery or probe, got ''"),
        (
            "record,role\n1,gallery\n99,probe\n98,probe\n",
            r"record numbers of val\.rec .* got 2 others, the first is 99",
        ),
        ("record,role\n1,gallery\n5,gallery\n1,probe\n", "got record 1 2 times"),
        ("record,role\n1,gallery\n2,gallery\n3,probe\n", "two gallery identities or more .* got 1 and 1"),
        ("record,role\n1,gallery\n5,gallery\n", "got 2 and 0"),
    ],
)
def test_mistakes_in_a_protocol_are_named(records, tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_protocol(protocol_file(tmp_path, text), records)


def test_a_protocol_that_is_not_there(records, tmp_path):
    with pytest.raises(UserError, match="cannot be read as a protocol"):
        load_protocol(tmp_path / "none.csv", records)


def test_probes_are_degraded_and_the_gallery_is_not(records):
    seen = []

    def spy(images):
        seen.append(images)
        return embed(images)

    identify(spy, records, first_second(records), sizes=(8,))
    gallery, probes = seen
    np.testing.assert_array_equal(gallery, records.images(np.array([0, 4, 6])))
    for position, probe in zip((1, 5, 7), probes, strict=True):
        small = cv2.resize(records.image(position), (8, 8), interpolation=cv2.INTER_AREA)
        expected = cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC)
        np.testing.assert_array_equal(probe, expected)


def test_the_result_by_size_is_plain_json(records):
    result = identify(embed, records, first_second(records), sizes=(None, 8))
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
    embed_records(spy, records, positions)
    assert len(calls) == 1
    embed_records(spy, records, positions, flip=True)
    np.testing.assert_array_equal(calls[2], calls[1][:, :, ::-1])


def test_a_broken_embedding_is_named_by_its_record(records):
    with pytest.raises(UserError, match=r"record 5 of val\.rec: expected a finite, non-zero embedding"):
        embed_records(lambda x: embed(x) * np.nan, records, np.array([4, 6]))


def test_images_of_another_size_are_named(tmp_path):
    with RecordWriter(tmp_path, "val") as writer:
        for label in (0, 0, 1, 1):
            writer.add(np.zeros((96, 90, 3), np.uint8), label)
    records = Records(tmp_path / "val.rec")
    with pytest.raises(UserError, match=r"record 1 of val\.rec: expected 112x112 pixels, got 90x96"):
        identify(embed, records, first_second(records))
