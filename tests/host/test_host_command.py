"""The command on a trainer nobody edited: its log, its checkpoints, other losses untouched, what is refused."""

import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin.backbone.checkpoint import load_backbone
from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records
from ddl_plugin.export.params import load_params
from ddl_plugin.mxnet_setup import mx

DDL = ("--loss", "ddl")
SEEDED = Path(__file__).parent / "seeded.py"


def append(folder, text):
    with (folder / "config.py").open("a") as file:
        file.write(textwrap.dedent(text) + "\n")


def losses(text, name):
    return [float(value) for value in re.findall(rf"\b{name}=(-?[\d.]+|nan)", text)]


@pytest.mark.parametrize("trainer", ["train.py", "train_parall.py"])
def test_the_trainers_log_shows_the_terms_and_its_checkpoint_is_a_backbone(
    run_host, tmp_path, small_checkpoint, trainer
):
    done = run_host("--trainer", trainer, its=(*DDL, "--verbose", 2))
    assert done.returncode == 0, done.stderr
    log = done.stdout + done.stderr
    for name in ("ddl", "kl_pos", "kl_neg", "order", "margin_easy", "margin_hard"):
        values = losses(log, name)
        assert len(values) >= 2, name
        assert np.isfinite(values).all()
    if trainer == "train.py":
        assert len(losses(log, "acc")) == len(losses(log, "lossvalue")) == len(losses(log, "ddl")) == 2
    (length,) = re.findall(r"\[2\]XNorm: ([\d.]+)", log)  # verification forwards labels of ones
    assert float(length) > 0
    assert "name hard, label darken 0.2-0.5, images 72, identities 12, pairs " in done.stderr

    prefix = tmp_path / "models" / "small-ddl-small" / "model"
    before, after = load_backbone(f"{small_checkpoint},0"), load_backbone(f"{prefix},2")
    assert after.arg.keys() == before.arg.keys()
    assert not np.array_equal(after.arg["pre_fc1_weight"], before.arg["pre_fc1_weight"])
    assert after.symbol.list_inputs() == before.symbol.list_inputs()
    symbol, arg, _ = mx.model.load_checkpoint(str(prefix), 2)
    assert symbol.list_outputs() == ["fc1_output"]
    assert not any(name.startswith("fc7") for name in arg)


def test_both_trainers_train_alike(run_host, tmp_path):
    """Their scales differ (1/devices on means, 1/batch on sums); the parameters must not."""
    arrays, log = [], []
    for trainer in ("train.py", "train_parall.py"):
        out = tmp_path / trainer
        done = run_host("--trainer", trainer, its=(*DDL, "--verbose", 2, "--models-root", out))
        assert done.returncode == 0, done.stderr
        arrays.append(load_params(out / "small-ddl-small" / "model-0002.params")[0])
        log.append(losses(done.stdout + done.stderr, "ddl"))
    assert arrays[0].keys() == arrays[1].keys()
    for name, array in arrays[0].items():
        assert arrays[1][name] == pytest.approx(array, rel=1e-4, abs=1e-5), name
    # The Speedometer's first line is of two steps, its second of the third alone.
    assert log[0] == pytest.approx([sum(log[1][:2]) / 2, log[1][2]], abs=2e-5)


@pytest.mark.parametrize("devices", ["", "0,1"])
@pytest.mark.parametrize("loss", ["arcface", "softmax"])
def test_any_other_loss_trains_to_the_same_bits(run_python, small_host, tmp_path, loss, devices):
    append(small_host, "config.val_targets = dataset.small.val_targets = []\nloss.ddl = 'not even a dict'")
    arguments = ("--loss", loss, "--pretrained", "", "--verbose", 5, "--lr", 0.05)
    append(small_host, "config.max_steps = 5")
    if devices:  # where the trainer alone needs GPUs
        append(small_host, "import mxnet\nmxnet.gpu = mxnet.cpu")
    params = []
    for name in ("alone", "through_us"):
        done = run_python(
            SEEDED, name, small_host, *arguments, "--models-root", tmp_path / name, CUDA_VISIBLE_DEVICES=devices
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        params.append((tmp_path / name / f"small-{loss}-small" / "model-0005.params").read_bytes())
    assert params[0] == params[1]


UNTOUCHED = """
import os, random, signal, sys, warnings
import mxnet as mx, numpy, scipy.interpolate

def state():
    return (
        dict(os.environ), random.getstate(), repr(numpy.random.get_state()), list(warnings.filters),
        [signal.getsignal(number) for number in signal.valid_signals()], dir(numpy), mx.gpu, mx.mod.Module,
        mx.io.PrefetchingIter, mx.model.load_checkpoint, mx.model.save_checkpoint,
    )

sys.path.insert(0, sys.argv.pop(1))
before = state()
import ddl_plugin
ddl_plugin.register()
import train, image_iter, metric
modules = [dict(vars(module)) for module in (train, image_iter, metric)]
train.parse_args()
assert state() == before
assert [vars(module) for module in (train, image_iter, metric)] == modules
assert "ddl_plugin.mxnet_setup" not in sys.modules
print("untouched")
"""


def test_nothing_is_replaced_or_set_for_another_loss(run_python, small_host):
    done = run_python("-c", UNTOUCHED, small_host, "--loss", "arcface")
    assert done.stdout.splitlines() == ["untouched"], done.stderr
    done = run_python("-c", UNTOUCHED, small_host, *DDL)
    assert "AssertionError" in done.stderr  # it would show


def test_register_in_config_py_is_enough_for_the_trainer_itself(run_python, small_host, tmp_path):
    append(small_host, "import ddl_plugin\nddl_plugin.register()\nddl_plugin.register()")
    done = run_python(small_host / "train.py", *DDL, "--verbose", 2, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert len(losses(done.stderr, "margin_hard")) == 2
    assert (tmp_path / "models/small-ddl-small/model-0002.params").is_file()

    refused = run_python(small_host / "train.py", *DDL, "--per-batch-size", 20, CUDA_VISIBLE_DEVICES="")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: --per-batch-size: expected 3b(K+1) = 18")


def test_register_before_the_trainer_is_imported(run_python, small_host):
    script = (
        f"import sys; sys.path.insert(0, {str(small_host)!r})\n"
        "import ddl_plugin; ddl_plugin.register()\n"
        "import train; train.main()"
    )
    done = run_python("-c", script, *DDL, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert losses(done.stderr, "ddl")


def test_a_version_without_get_face_image_iter_is_joined_too(run_host, small_host):
    images = small_host / "image_iter.py"
    images.write_text(images.read_text().partition("\n\ndef get_face_image_iter")[0] + "\n")
    trainer = small_host / "train.py"
    text = trainer.read_text()
    text = text.replace("from image_iter import get_face_image_iter", "from image_iter import FaceImageIter")
    call = (
        "mx.io.PrefetchingIter("
        "FaceImageIter(batch_size=args.batch_size, data_shape=data_shape, path_imgrec='train.rec', shuffle=True))"
    )
    text, count = re.subn(
        r"get_face_image_iter\(\n?[^\n]*\n?[^\n]*\"train.rec\"\)\)\n?\s*\)?\n", call + "\n", text
    )
    assert count == 1, text
    trainer.write_text(text)
    done = run_host(its=DDL)
    assert done.returncode == 0, done.stderr
    assert losses(done.stderr, "margin_hard")


def test_an_epochs_end_goes_on(run_host, small_host):
    """Where the trainers synchronise their devices' statistics and reset batches and metrics."""
    append(small_host, "loss.ddl.b, loss.ddl.max_pairs_per_identity, config.max_steps = 6, 3, 7")
    append(small_host, "loss.ddl.scope = 'global'")
    for trainer in ("train.py", "train_parall.py"):
        done = run_host("--trainer", trainer, its=DDL)
        assert done.returncode == 0, done.stderr
        log = done.stdout + done.stderr
        assert "Epoch[0] Train-ddl=" in log or trainer == "train_parall.py"
        found = losses(log.replace("Train-ddl", ""), "ddl")
        assert len(found) >= 5
        assert len(set(found)) == len(found)  # other images in each epoch
        assert np.isfinite(found).all()


def test_other_switches_of_config_py_and_a_whole_checkpoint_to_go_on_from(run_host, small_host, tmp_path):
    append(small_host, "config.ce_loss, config.ckpt_embedding, config.is_shuffled_rec = False, False, True")
    done = run_host(its=(*DDL, "--verbose", 2))
    assert done.returncode == 0, done.stderr
    assert len(losses(done.stderr, "margin_hard")) == 2
    assert not losses(done.stderr, "lossvalue")
    prefix = tmp_path / "models/small-ddl-small/model"
    trained = load_backbone(f"{prefix},2")
    assert trained.fc7.shape == (12, 16)

    append(small_host, "loss.ddl.fc7_init = 'checkpoint'\nloss.ddl.scope = 'global'")
    done = run_host(
        its=(*DDL, "--pretrained", prefix, "--pretrained-epoch", 2, "--lr", 0, "--verbose", 1, "--models-root", tmp_path / "on")
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    unchanged = load_backbone(f"{tmp_path / 'on/small-ddl-small/model'},1")
    assert np.array_equal(unchanged.fc7, trained.fc7)
    assert np.array_equal(unchanged.arg["pre_fc1_weight"], trained.arg["pre_fc1_weight"])

    append(small_host, "loss.ddl.fc7_init = 'random'")
    done = run_host(
        its=(*DDL, "--pretrained", prefix, "--pretrained-epoch", 2, "--lr", 0, "--verbose", 1, "--models-root", tmp_path / "on")
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = load_backbone(f"{tmp_path / 'on/small-ddl-small/model'},1")
    assert np.abs(drawn.fc7).max() < 0.1  # the trainer's own start, not the checkpoint's rows of length 1


def test_classes_without_images_start_at_random(run_host, small_host, tmp_path):
    append(small_host, "dataset.small.num_classes = 14\nconfig.ckpt_embedding = False")
    done = run_host(its=(*DDL, "--lr", 0, "--verbose", 1))
    assert done.returncode == 0, done.stderr
    fc7 = load_backbone(f"{tmp_path / 'models/small-ddl-small/model'},1").fc7
    assert np.linalg.norm(fc7[:12], axis=1) == pytest.approx(1)
    assert (np.linalg.norm(fc7[12:], axis=1) < 0.2).all()
    done = run_host("--trainer", "train_parall.py", "--devices", "cpu:0,1,2,3,4,5", its=DDL)  # 18 rows for 14
    assert done.returncode == 0, done.stderr


def test_a_recipe_gives_the_entry_and_says_what_it_does_not(run_host, small_host, tmp_path, small_records):
    append(small_host, "del loss.ddl")
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from easydict import EasyDict\n"
        "config = EasyDict(loss='ddl', dataset_path='elsewhere', pretrained='p,0', max_steps=77, lr=0.5, seed=4,\n"
        "    loss_s=16.0, ddl=EasyDict(b=2, hard=[{'size': (20, 30)}, {'darken': (0.2, 0.5)}]))\n"
    )
    done = run_host("--recipe", recipe, its=DDL)
    assert done.returncode == 0, done.stderr
    assert "label size 20-30" in done.stderr
    left = re.search(r"mine.py: left to the trainer's own config and arguments: (.*)", done.stderr)[1]
    assert set(left.split(", ")) == {"dataset_path", "pretrained", "max_steps", "lr", "lr_steps"}
    assert len(losses(done.stderr, "margin_hard2")) == 2


def test_classifier_starts_from_mean_embeddings_unless_told_otherwise(run_host, small_host):
    accuracy = {}
    for start in ("mean", "random"):
        append(small_host, f"loss.ddl.fc7_init = {start!r}\nloss.ddl.loss_m2 = 0.0")
        done = run_host(its=(*DDL, "--lr", 0))
        assert done.returncode == 0, done.stderr
        accuracy[start] = losses(done.stderr, "lossvalue")[0]
    assert accuracy["mean"] < accuracy["random"] - 0.5


def test_scope_global_pools_the_devices(run_host, small_host, tmp_path):
    append(small_host, "loss.ddl.scope = 'global'")
    done = run_host(its=(*DDL, "--verbose", 2))
    assert done.returncode == 0, done.stderr
    assert len(losses(done.stderr, "margin_hard")) == 2
    assert (tmp_path / "models/small-ddl-small/model-0002.params").is_file()


def test_other_augmentations_of_the_trainer_are_named(run_host, small_host):
    append(small_host, "config.data_cutoff = 20\nconfig.data_color = 1")
    done = run_host(its=DDL)
    assert done.returncode == 0, done.stderr
    assert "data_cutoff, data_color: not applied with loss 'ddl'" in done.stderr


NO_HARD = r"config.py: loss.ddl.hard: expected the hard distributions"
REFUSED = {
    "per_batch_size": ("", ("--per-batch-size", 20), r"--per-batch-size: expected 3b\(K\+1\) = 18 for b = 3, K = 1, got 20; give --per-batch-size 18, or set loss.ddl.b: 18 \(b = 3\) or 24 \(b = 4\)"),
    "size_without_b": ("del loss.ddl['b']", ("--per-batch-size", 128), r"a multiple of 6 for K = 1, got 128; give 126 \(b = 21\) or 132 \(b = 22\)"),
    "size_too_small": ("del loss.ddl['b']", ("--per-batch-size", 6), r"got 6; give 12 \(b = 2\)$"),
    "no_checkpoint": ("", ("--pretrained", ""), r"--pretrained: expected a checkpoint's prefix with --loss ddl, got none"),
    "no_such_checkpoint": ("", ("--pretrained", "nowhere/model"), r"--pretrained, --pretrained-epoch: nowhere/model-symbol.json: no such symbol file"),
    "no_such_epoch": ("", ("--pretrained-epoch", 3), r"small-0003.params: no such .params file; epochs of this prefix: 0"),
    "no_data": ("dataset.small.dataset_path = '/nowhere'", (), r"config.py: dataset_path: expected a folder with train.rec, found none in '/nowhere'"),
    "no_table": ("loss.ddl = None", (), r"config.py: loss.ddl: expected a table such as"),
    "classes_as_text": ("dataset.small.num_classes = '12'", (), r"config.py: num_classes: expected a whole number >= 1, got '12'"),
    "fc7_that_is_not_there": ("loss.ddl.fc7_init = 'checkpoint'", (), r"fc7_init 'checkpoint': expected fc7_weight of shape \(12, 16\) .*, got none; use fc7_init = 'mean'"),
    "loss": ("", ("--loss", "dll"), r"--loss: .*config.py has no loss.dll; did you mean 'ddl'\?"),
    "network": ("", ("--network", "smal"), r"--network: .*has no network.smal; did you mean 'small'\?"),
    "dataset": ("", ("--dataset", "smal"), r"--dataset: .*has no dataset.smal; did you mean 'small'\?"),
    "unknown_key": ("loss.ddl.lambda_ordr = 1", (), r"config.py: loss.ddl: unknown key 'lambda_ordr'; did you mean 'lambda_order'"),
    "no_hard": ("del loss.ddl['hard']", (), NO_HARD),
    "no_entry": ("del loss['ddl']", (), NO_HARD),
    "bad_value": ("loss.ddl.bins = 1", (), r"config.py: loss.ddl: ddl.bins: expected a whole number >= 2, got 1"),
    "singles": ("loss.ddl.identity_rows = 'singles'", (), r"loss.ddl.identity_rows: expected 'all'"),
    "image_shape": ("dataset.small.image_shape = (96, 96, 3)", (), r"config.py: image_shape: expected \(112, 112, 3\)"),
    "emb_size": ("network.small.emb_size = 32", (), r"config.py: emb_size: expected 16, .* got 32"),
    "classes": ("dataset.small.num_classes = 5", (), r"config.py: num_classes: expected 12 at least, .* got 5"),
    "rename": ("loss.ddl.rename = {'a': 'b'}", (), r"rename: .* has no array that would become 'b'"),
    "no_kvstore_environment": ("", ("--kvstore", "dist_sync"), r"DMLC_"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(run_host, small_host, case):
    entry, arguments, message = REFUSED[case]
    append(small_host, entry)
    done = run_host(its=(*DDL, *arguments))
    assert done.returncode == 2, done.stderr
    last = [line for line in done.stderr.splitlines() if not line.startswith("ddl_plugin:")]
    assert len(last) == 1, done.stderr
    assert last[0].startswith("error: ")
    assert re.search(message, last[0]), last[0]


@pytest.mark.parametrize("trainer", ["train.py", "train_parall.py"])
def test_a_layer_that_would_stay_random_is_refused(run_host, small_host, small_checkpoint, tmp_path, trainer):
    """The published y1 calls its last layer fc1_weight; the trainer's graph, pre_fc1_weight."""
    symbol, arg, aux = mx.model.load_checkpoint(str(small_checkpoint), 0)
    renamed = {name.replace("pre_fc1", "fc1"): array for name, array in arg.items()}
    text = symbol.tojson().replace("pre_fc1", "fc1_inner").replace("fc1_inner_", "fc1_")
    mx.model.save_checkpoint(str(tmp_path / "old"), 0, mx.sym.load_json(text), renamed, aux)
    arguments = (*DDL, "--pretrained", tmp_path / "old")
    done = run_host("--trainer", trainer, its=arguments)
    assert done.returncode == 2
    assert (
        "no array for 'pre_fc1_bias' (16,) of the graph (and 1 more); likely match 'fc1_bias'" in done.stderr
    )
    append(small_host, "loss.ddl.rename = {'fc1_weight': 'pre_fc1_weight', 'fc1_bias': 'pre_fc1_bias'}")
    done = run_host("--trainer", trainer, its=(*arguments, "--verbose", 2))
    assert done.returncode == 0, done.stderr
    saved = load_backbone(f"{tmp_path / 'models/small-ddl-small/model'},2")
    assert "pre_fc1_weight" in saved.arg


def test_a_checkpoint_that_mxnet_cannot_read_is_one_line(run_host, small_checkpoint, tmp_path):
    for suffix in ("-symbol.json", "-0000.params"):
        (tmp_path / f"cut{suffix}").write_bytes(Path(f"{small_checkpoint}{suffix}").read_bytes()[:500])
    done = run_host(its=(*DDL, "--pretrained", tmp_path / "cut"))
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: --pretrained: .*cut-0000.params or .* cannot be read by MXNet .*\n", done.stderr
    )


def test_class_parallel_on_several_machines_is_refused(run_python, small_host):
    done = run_python(
        "-m", "ddl_plugin.host", small_host, "--trainer", "train_parall.py", "--", *DDL, DMLC_NUM_WORKER="2"
    )
    assert done.returncode == 2
    refusal = "InsightFace has no parall_module_dist; use train.py --kvstore dist_sync"
    assert f"error: DMLC_NUM_WORKER: expected 1, got 2: {refusal}" in done.stderr
    done = run_python(
        "-m", "ddl_plugin.host", small_host, "--trainer", "train_parall.py", "--devices", "cpu", "--", *DDL,
        "--kvstore", "dist_sync",
    )  # fmt: skip
    assert done.returncode == 2
    assert f"error: --kvstore: expected one of one machine, got dist_sync: {refusal}" in done.stderr


def test_folders_that_are_no_trainer_are_refused(run_host, small_host, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "train_softmax.py").write_text("def main():\n    pass\n")
    cases = (
        (tmp_path / "nowhere", (), "got no folder"),
        (empty, (), r"expected train.py in .*, got train_softmax.py"),
        (
            empty,
            ("--trainer", "train_softmax.py"),
            r"is no trainer that is known: looked for the functions get_symbol",
        ),
        (small_host, ("--devices", "tpu"), r"--devices: expected cpu, cpu:0,1, gpu or gpu:0,1, got 'tpu'"),
        (small_host, ("--recipe", "nowhere.py"), r"recipe: no file 'nowhere.py'"),
    )
    for folder, ours, message in cases:
        done = run_host(*ours, folder=folder, its=DDL)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert re.search(message, done.stderr), done.stderr


def test_arguments_of_the_trainer_before_the_dashes_are_said_to_be(run_python, small_host):
    done = run_python("-m", "ddl_plugin.host", small_host, "--network", "small", *DDL)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: unrecognized arguments: --network small --loss ddl; what is the trainer's stands after '--'"
    )


def test_a_config_that_fails_is_named(run_host, small_host):
    append(small_host, "raise RuntimeError('no data')")
    done = run_host(its=DDL)
    assert done.returncode == 2
    assert re.search(r"config.py cannot be read: RuntimeError: no data", done.stderr)


def test_without_config_py_the_sample_is_used(run_host, small_host):
    (small_host / "config.py").unlink()
    done = run_host(its=("--loss", "arcface", "--network", "x"))
    assert done.returncode == 2
    assert "its sample_config.py is used" in done.stderr
    assert "sample_config.py has no network.x" in done.stderr


def test_nothing_is_written_into_the_checkout(run_host, small_host):
    shutil.rmtree(small_host / "__pycache__", ignore_errors=True)
    before = {path.name: path.read_bytes() for path in small_host.glob("*.py")}
    done = run_host(its=DDL)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in small_host.glob("*.py")} == before
    assert {path.name for path in small_host.iterdir()} - {"__pycache__"} == set(before)


def test_pairs_that_were_prepared_are_taken_by_both_trainers(
    run_host, run_python, small_host, small_records, small_checkpoint
):
    made = small_host.parent / "prepared.npz"
    done = run_python(
        "-m", "ddl_plugin.prepare", "pairs", small_records, "--easy", "label >= 0", "--hard", "{'darken': (0.2, 0.5)}",
        "--attributes", labels_of(small_records, small_host.parent), "--model", f"{small_checkpoint},0", "--output", made,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    append(small_host, f"loss.ddl.positive_pairs = {str(made)!r}\nloss.ddl.easy = 'label >= 0'")
    append(small_host, f"loss.ddl.attributes = {str(labels_of(small_records, small_host.parent))!r}")
    for trainer in ("train.py", "train_parall.py"):
        done = run_host("--trainer", trainer, its=DDL)
        assert done.returncode == 0, done.stderr
        assert "positive pairs: building" not in done.stderr


def labels_of(folder, output):
    records = Records(folder)
    table = AttributeTable(records.keys, {"label": records.labels.astype(float)})
    table.save(output / "labels.npz")
    return output / "labels.npz"
