"""A verification set whose faces a detector finds: insightface's code around a network that finds bright spots."""

import cv2
import face_detector
import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import load_bin
from ddl_plugin.evaluation.packing import Packing, pack
from ddl_plugin.evaluation.pair_lists import PairList
from ddl_plugin.ingest.align import crop, open_detector


def test_faces_are_found_and_aligned_and_those_not_found_are_counted(tmp_path):
    detector = str(face_detector.save(tmp_path / "spots.onnx"))
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(4)]
    for i, name in enumerate(names):
        picture = cv2.resize(rng.integers(0, 90, (4, 4, 3), dtype=np.uint8), (256, 256))
        if i != 3:  # no face on the last one
            picture[64:96, 64 + 32 * i : 96 + 32 * i] = 255
        cv2.imwrite(str(tmp_path / name), picture)
    pairs = PairList(tmp_path, names, np.array([0, 2]), np.array([1, 3]), np.array([True, False]))
    with pytest.raises(UserError, match=r"expected a face in every image, got 1 no face found \(3\.png\)"):
        pack(pairs, tmp_path / "set.bin", Packing(detector=detector, workers=1), lambda r, total: r)
    packing = Packing(detector=detector, max_fallback=1, workers=1)
    report = pack(pairs, tmp_path / "set.bin", packing, lambda r, total: r)
    assert report["fallback"] == ["3.png"]
    images = load_bin(tmp_path / "set.bin").images(0, 4)
    picture = cv2.imread(str(tmp_path / "0.png"))
    _, landmarks = open_detector(detector)(picture)
    expected, _ = crop(picture, landmarks[0])
    assert np.abs(images[0].astype(float) - expected[..., ::-1]).mean() < 4
