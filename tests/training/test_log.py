import json

from tensorboardX.proto import event_pb2

from ddl_plugin.training.log import RunLog


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def scalars(folder):
    """(tag, step) of every scalar in the event files: records are length, crc, data, crc."""
    found = []
    for path in sorted((folder / "tensorboard").glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            found += [(value.tag, event.step) for value in event.summary.value]
            at += 16 + length
    return found


def test_every_row_is_a_json_line_and_a_scalar(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write("train", 0, {"ddl": 1 / 3, "lr": 0.01})
    log.write("validation", 1, {"accuracy_easy": 0.9})
    log.close()
    assert rows(tmp_path) == [
        {"kind": "train", "step": 0, "ddl": 0.3333333, "lr": 0.01},
        {"kind": "validation", "step": 1, "accuracy_easy": 0.9},
    ]
    assert scalars(tmp_path) == [("train/ddl", 0), ("train/lr", 0), ("validation/accuracy_easy", 1)]


def test_rows_can_be_read_while_the_run_goes_on(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write("train", 0, {"ddl": 1.0})
    assert rows(tmp_path)[0]["ddl"] == 1.0
    log.close()


def test_steps_that_are_trained_again_are_dropped(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in range(5):
        log.write("train", step, {"ddl": float(step)})
        log.write("validation", step + 1, {"accuracy": 0.5})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # the process was killed here
    log = RunLog(tmp_path, 3)
    log.write("train", 3, {"ddl": -3.0})
    log.close()
    assert [(r["kind"], r["step"]) for r in rows(tmp_path)] == [
        ("train", 0), ("validation", 1), ("train", 1), ("validation", 2), ("train", 2), ("train", 3),
    ]  # fmt: skip
    assert rows(tmp_path)[-1]["ddl"] == -3.0


def test_a_run_from_the_start_starts_its_log_anew(tmp_path):
    for value in (1.0, 2.0):
        log = RunLog(tmp_path, 0)
        log.write("train", 0, {"ddl": value})
        log.close()
    assert [row["ddl"] for row in rows(tmp_path)] == [2.0]
