import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from ijb_sets import small_set

from ddl_plugin.data.records import RecordWriter
from ddl_plugin.evaluate import examples
from ddl_plugin.evaluate.examples import compared, wrong
from ddl_plugin.evaluation.bins import write_bin
from ddl_plugin.evaluation.evidence import ACCEPTED, FAILURES, REJECTED, Evidence, Failure, Genuine
from ddl_plugin.evaluation.tally import Tally
from ddl_plugin.files import sha256

EVIL = "<script>alert(1)<&amp;.onnx"
PAIRS = 40


class Reader(HTMLParser):
    """Elements, headings and all text of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(" ".join(texts) for texts in self.texts.values()).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def face(label, k, noise):
    """Image k of an identity: a block pattern of its own with noise of its own."""
    pattern = np.random.default_rng(label).integers(0, 256, (14, 14, 3)).astype(np.int16)
    own = np.random.default_rng([label, k]).integers(-noise, noise + 1, pattern.shape)
    blocks = (pattern + own).clip(0, 255).astype(np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))


def encoded(label, k, noise):
    return cv2.imencode(".png", face(label, k, noise)[..., ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_pooling_model):
    """Models good and bad, a set with hard pairs that even the good one fails, and records."""
    folder = tmp_path_factory.mktemp("report")
    save_pooling_model(folder / "good.onnx", 127.5)
    save_pooling_model(folder / "bad.onnx", -400.0)
    save_pooling_model(folder / EVIL, 20.0)
    images, issame, rows = [], [], ["record,yaw"]
    for pair in range(PAIRS):
        same, hard = pair % 2 == 0, pair % 4 >= 2
        noise = 250 if hard else 60
        images += [encoded(pair, 0, noise), encoded(pair if same else 100 + pair, 1, noise)]
        issame.append(same)
        rows += [f"{2 * pair},{60 if hard else 0}", f"{2 * pair + 1},0"]
    write_bin(folder / "lfw.bin", images, issame)
    (folder / "yaw.csv").write_text("\n".join(rows) + "\n")
    with RecordWriter(folder, "val") as writer:
        for label in range(12):
            for k in range(2):
                # The probe of person 0 is really another image of person 1.
                writer.add(encoded(1, 7, 100) if (label, k) == (0, 1) else encoded(label, k, 100), label)
    return folder


def command(folder, *arguments):
    line = [sys.executable, "-m", "ddl_plugin.evaluate", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True)


VERIFICATION = ("verification", "--model", "good.onnx", "--model", "bad.onnx", "--bin", "lfw.bin",
                "--attributes", "yaw.csv", "--hard", "abs(yaw) > 45")  # fmt: skip
IDENTIFICATION = ("identification", "--model", "good.onnx", "--model", "bad.onnx", "--rec", "val.rec",
                  "--size", "full", "8")  # fmt: skip


@pytest.fixture(scope="module")
def verification(folder):
    result = command(
        folder, *VERIFICATION, "--report", "out/verification.html", "--json", "verification.json"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("\nreport: out/verification.html\n")
    return (folder / "out" / "verification.html").read_text()


@pytest.fixture(scope="module")
def identification(folder):
    result = command(
        folder, *IDENTIFICATION, "--report", "identification.html", "--json", "identification.json"
    )
    assert (result.returncode, result.stderr) == (0, "")
    return (folder / "identification.html").read_text()


@pytest.mark.parametrize("page", ["verification", "identification"])
def test_a_page_needs_nothing_else(page, request):
    text = request.getfixturevalue(page)
    assert not re.search(r"https?:|url\(|@import|<link|<script|<iframe", text)
    reader = Reader(text)
    for _, attributes in reader.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    assert all(attributes["alt"] for attributes in reader.all("img"))


def test_a_verification_page_has_what_a_reader_asks_for(folder, verification):
    reader = Reader(verification)
    assert reader.texts["h1"] == ["Face verification"]
    for title in ("Summary", "Models", "What is computed", "Set lfw", "How to read the figures"):
        assert title in reader.texts["h2"]
    assert reader.texts["h3"] == ["lfw", "lfw, easy", "lfw, hard"]
    for model in ("good.onnx", "bad.onnx"):
        assert sha256(folder / model) in reader.texts["code"]
    assert "InsightFace's ten folds" in reader.text
    assert "'at most'" in reader.text
    # Its rules, and that 1e-3 cannot be had of 20 negatives.
    assert "either of the images: abs(yaw) > 45" in reader.text
    assert "below one in 20: cannot be measured here" in reader.text
    assert "FAR 0.01, 0.001 cannot be measured with 20 comparisons" in reader.text
    figures = [a["alt"] for a in reader.all("img") if a["src"].startswith("data:image/svg+xml")]
    assert sum("ROC curve" in alt for alt in figures) == 3
    assert sum("Distributions of the cosines" in alt for alt in figures) == 1


def test_the_figures_are_those_of_the_json(folder, verification):
    reader = Reader(verification)
    results = json.loads((folder / "verification.json").read_text())["results"]
    cells = " ".join(reader.texts["td"] + reader.texts["strong"])
    for (entry,) in results.values():
        for some in (entry, *entry["subsets"]):
            assert f"{some['accuracy']:.2%}" in cells
            assert f"{some['margin']:.3f}" in cells
            assert all(f"{point['tar']:.2%}" in cells for point in some["tar_at_far"])


def test_hard_pairs_that_failed_are_shown_with_their_scores(folder, verification):
    reader = Reader(verification)
    results = json.loads((folder / "verification.json").read_text())["results"]
    faces = [a["alt"] for a in reader.all("img") if a["src"].startswith("data:image/jpeg")]
    assert faces
    assert set(reader.texts["b"]) == {"first", "second"}
    # Which pairs: of those shown each is there with both images, and in the hard set.
    pairs = {int(pair) for alt in faces for pair in re.findall(r"pair (\d+),", alt)}
    for pair in pairs:
        assert sum(f"pair {pair}, first" in alt for alt in faces) == sum(
            f"pair {pair}, second" in alt for alt in faces
        )
    hard = reader.text.split("abs(yaw) > 45")[-1]
    assert "the same person, rejected" in verification
    assert hard
    # The bad model rejects what the good one accepts.
    (good,), (bad,) = (results[name] for name in ("good.onnx", "bad.onnx"))
    assert good["accuracy"] > bad["accuracy"]
    assert "Right with bad.onnx, wrong with good.onnx" in reader.texts["h4"]
    assert re.search(
        r"Of \d+ comparisons of the same person both models get \d+ right and \d+ wrong", reader.text
    )


def test_an_identification_page_shows_probe_mate_and_rival(folder, identification):
    reader = Reader(identification)
    assert reader.texts["h1"] == ["Face identification"]
    assert reader.texts["h3"] == ["full size", "8 x 8 pixels"]
    figures = [a["alt"] for a in reader.all("img") if a["src"].startswith("data:image/svg+xml")]
    assert sum("CMC curve" in alt for alt in figures) == 2
    roles = {"probe", "mate in the gallery", "another person, the most alike"}
    assert set(reader.texts["b"]) == roles
    results = json.loads((folder / "identification.json").read_text())["results"]
    for model, result in results.items():
        for entry in result["results"]:
            lost = round((1 - entry["rank1"]) * entry["probes"])
            assert f"{model}: probes not found first" in reader.texts["h4"]
            assert f"another person of the gallery: {lost} of {entry['probes']} probes." in reader.text


def test_an_ijb_page_has_both_protocols_in_their_conventions(folder):
    small_set(20).write(folder / "IJBC")
    result = command(
        folder, "ijb", "--model", "good.onnx", "--model", "bad.onnx", "--root", "IJBC", "--target", "IJBC",
        "--features", "kept", "--report", "ijb.html", "--json", "ijb.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    text = (folder / "ijb.html").read_text()
    reader = Reader(text)
    assert not re.search(r"https?:|<link|<script", text)
    assert {"1:1 verification", "1:N identification"} <= set(reader.texts["h2"])
    assert "F1 N1 D1" in reader.texts["dd"]
    captions = reader.texts["caption"]
    for words in (
        "insightface: at the point",
        "at most",
        "insightface: both galleries",
        "insightface-evals",
        "benchmark",
    ):
        assert sum(words in caption for caption in captions) == 1
    cells = " ".join(reader.texts["td"] + reader.texts["strong"])
    for found in json.loads((folder / "ijb.json").read_text())["results"].values():
        for convention in found["verification"]["conventions"].values():
            assert all(f"{point['tar']:.2%}" in cells for point in convention["tar_at_far"])
        for convention in found["identification"]["conventions"].values():
            rates = [convention["rank1"], *(point["tpir"] for point in convention["tpir_at_fpir"])]
            assert all(f"{rate:.2%}" in cells for rate in rates)
    assert "FAR 1e-06" in reader.text
    assert "below one in" in reader.text
    figures = [a["alt"] for a in reader.all("img") if a["src"].startswith("data:image/svg+xml")]
    assert [alt.split()[0] for alt in figures] == ["Distributions", "ROC", "CMC", "DET"]
    assert any(alt["alt"].startswith("first: template ") for alt in reader.all("img"))
    assert "Right with good.onnx, wrong with bad.onnx" in reader.texts["h3"]


def test_figures_are_files_too(folder):
    result = command(folder, *IDENTIFICATION, "--figures", "figures")
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["val", "val.png"]
    names = {path.name for path in (folder / "figures" / "val").iterdir()}
    curves = {f"{size}_{kind}.png" for size in ("full_size", "8_x_8_pixels") for kind in ("roc", "cmc")}
    assert curves <= names
    assert "full_size_good.onnx_probes_not_found_first.png" in names
    assert all(cv2.imread(str(folder / "figures" / "val" / name)) is not None for name in names)


@pytest.mark.parametrize("line, page", [(VERIFICATION, "verification"), (IDENTIFICATION, "identification")])
def test_the_same_inputs_give_the_same_bytes(folder, line, page, request):
    text = request.getfixturevalue(page)
    assert command(folder, *line, "--report", "again.html").returncode == 0
    assert (folder / "again.html").read_text() == text


def test_a_model_may_be_called_anything(folder):
    result = command(folder, "verification", "--model", EVIL, "--bin", "lfw.bin", "--report", "evil.htm")
    assert (result.returncode, result.stderr) == (0, "")
    text = (folder / "evil.htm").read_text()
    assert "<script" not in text
    reader = Reader(text)
    assert EVIL in reader.texts["dd"]
    assert EVIL in reader.texts["code"]
    # One model alone: nothing is compared, nothing is best.
    assert "Right with" not in reader.text
    assert not [row for row in re.findall(r"<td[^>]*>(.*?)</td>", text) if "<strong>" in row]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--report", "report.pdf"), "report.pdf: expected a page's suffix, one of .html, .htm, got '.pdf'"),
        (("--report", "same.html", "--json", "same.html"),
         "--report: expected a file of its own, got same.html, which is what --json writes"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("line", [VERIFICATION, IDENTIFICATION])
def test_a_wrong_place_is_refused_before_any_work(folder, line, arguments, message):
    result = command(folder, *line, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr.replace("--json: expected a file of its own, got same.html, which is what --report writes",
                                            "--report: expected a file of its own, got same.html, which is what --json writes")  # fmt: skip
    assert not list(folder.glob("same.*"))


def test_a_place_that_cannot_be_written_is_refused_before_any_work(folder):
    (folder / "file").write_text("x")
    result = command(folder, *VERIFICATION, "--report", "file/report.html")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: file/report.html: cannot be written (file is no folder)\n"


def test_without_matplotlib_the_message_is_the_pip_line(folder):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from ddl_plugin.evaluate.__main__ import main\n"
        f"sys.exit(main({[*VERIFICATION, '--report', 'a.html']!r}))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 2
    assert "pip install 'ddl_plugin[plot]'" in result.stderr
    assert not (folder / "a.html").exists()


# Examples


def picture(value):
    return np.full((112, 112, 3), value, np.uint8)


def failure(kind, similarity, values, threshold=0.3):
    names = tuple(f"image {value}" for value in values)
    return Failure(kind, similarity, threshold, names, lambda: tuple(map(picture, values)))


def line(failures=(), genuine=None):
    tally = Tally(np.array([0.1, 0.2]))
    return Evidence(
        "set",
        tally,
        tally,
        (np.array([0, 1.0]), np.array([0, 1.0])),
        failures=tuple(failures),
        genuine=genuine,
    )


def genuine(score, bar, right, roles=("first", "second")):
    def images(i):
        return tuple(picture(10 * i + k) for k in range(len(roles)))

    names = {i: tuple(f"face {i}.{k}" for k in range(len(roles))) for i in range(len(score))}
    return Genuine(np.array(score), np.array(bar), np.array(right), roles, names.__getitem__, images)


def test_the_same_two_faces_are_shown_once_whichever_comes_first():
    failures = [
        failure(REJECTED, 0.01, (1, 2)),
        failure(REJECTED, 0.01, (2, 1)),
        failure(REJECTED, 0.2, (1, 3)),
    ]
    rejected, accepted = wrong("m", line(failures), "the threshold")
    assert [example.title for example in rejected.examples] == ["cosine 0.010", "cosine 0.200"]
    assert rejected.examples[0].lines == ("0.290 below the threshold 0.300",)
    assert "below the threshold: 3." in rejected.text
    assert (list(accepted.examples), accepted.text) == (
        [],
        "Comparisons of different persons above the threshold: 0.",
    )


def test_examples_are_few_and_that_there_are_more_is_said():
    failures = [failure(ACCEPTED, 0.9 - i / 100, (i, 100 + i)) for i in range(FAILURES)]
    _, accepted = wrong("m", line(failures), "it")
    assert len(accepted.examples) == examples.SHOWN
    assert f"{FAILURES} or more" in accepted.text
    assert accepted.examples[0].lines == ("0.600 above the threshold 0.300",)


def test_a_face_that_cannot_be_read_any_more_is_left_blank():
    def gone():
        raise examples.UserError("gone")

    broken = Failure(REJECTED, 0.1, 0.3, ("a", "b"), gone)
    rejected, _ = wrong("m", line([broken, broken]), "it")
    assert [[face.image for face in example.faces] for example in rejected.examples] == [[None] * 2] * 2
    assert [face.name for face in rejected.examples[0].faces] == ["a", "b"]


def test_models_are_compared_both_ways():
    before = genuine([0.1, 0.5, 0.2, 0.4], [0.3] * 4, [False, True, False, True])
    after = genuine([0.5, 0.1, 0.6, 0.4], [0.4] * 4, [True, False, True, True])
    better, worse = compared({"base": line(genuine=before), "ddl": line(genuine=after)})
    assert better.title == "Right with ddl, wrong with base"
    assert "both models get 1 right and 0 wrong; ddl alone is right in 2." in better.text
    # Pair 2 rose by 0.3 and pair 0 too: (0.6 - 0.4) - (0.2 - 0.3) = 0.3, (0.5 - 0.4) - (0.1 - 0.3) = 0.3
    assert {example.faces[0].name for example in better.examples} == {"face 0.0", "face 2.0"}
    assert [example.faces[0].name for example in worse.examples] == ["face 1.0"]
    assert worse.examples[0].title == "cosine 0.100 and 0.500"
    assert worse.examples[0].lines == (
        "ddl: 0.300 below the threshold 0.400",
        "base: 0.200 above the threshold 0.300",
    )
    assert "base alone is right in 1 of 4" in worse.text
    assert compared({"base": line(genuine=before)}) == []


def test_a_search_shows_probes_that_are_not_found_first_the_worst_first():
    roles = ("probe", "mate", "other")
    searched = genuine([0.3, 0.5, 0.2], [0.4, 0.5, 0.6], [False, False, False], roles)
    (found,) = wrong("m", line([failure(ACCEPTED, 0.4, (1, 2))], searched), "unused")
    assert "3 of 3 probes" in found.text
    assert [example.faces[0].name for example in found.examples] == ["face 2.0", "face 0.0", "face 1.0"]
    assert [example.lines for example in found.examples] == [
        ("0.400 below another person's 0.600",),
        ("0.100 below another person's 0.400",),
        ("as high as another person's 0.500",),
    ]
    assert [face.role for face in found.examples[0].faces] == list(roles)
