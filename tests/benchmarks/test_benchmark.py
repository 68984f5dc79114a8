"""benchmarks/benchmark.py train: real trainings as processes, and what its rounds make of what they measure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import BENCHMARK, NARROW, run_tool
from ours.rounds import compare_rates, compare_times, failures, table


@pytest.mark.slow
def test_rates_of_two_trainings_and_the_error_of_a_third(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    longer = ("--cfg-options", "train_cfg.max_epochs=3", *NARROW)
    with_worker = f"{tiny_config} --seed 1 --cfg-options train_dataloader.num_workers=1"
    result = run_tool(
        *(
            BENCHMARK,
            "train",
            tiny_config,
            f"{tiny_config} --faster",
            with_worker,
            "--data",
            dataset,
        ),
        *("--repeats", 1, "--warmup", 1, "--iterations", 6, "--threads", 1, "--json", "rates.json", *longer),
        cwd=tmp_path,
    )
    assert result.returncode == 2, result.stderr
    assert f"error: {tiny_config} --faster: unrecognized arguments: --faster" in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "rates.json"]
    got = json.loads((tmp_path / "rates.json").read_text())
    assert got["machine"]["versions"]["torch"] == torch.__version__ and got["machine"]["memory_gb"] > 0
    own, failed, other = got["results"]
    assert failed["error"] and not failed["rounds"]
    for training in (own, other):
        (rates,) = training["rounds"]
        assert training["error"] is None and training["median"]["images_per_second"] == rates["images_per_second"]
        # 40 photos are epochs of 5 batches of 8: an epoch ends among the timed iterations.
        assert (rates["images"], rates["input_shape"]) == (48, [8, 3, 48, 48])
        assert rates["images_per_second"] == pytest.approx(48 / rates["seconds"])
        assert rates["waiting_share"] == pytest.approx(rates["waiting_seconds"] / rates["seconds"])
        assert 0 < rates["waiting_share"] < 1
        assert rates["of_ceiling"] == pytest.approx(rates["images_per_second"] / rates["ceiling_images_per_second"])
        assert rates["eval_images"] == 10 and len(rates["eval_seconds"]) == 2
        assert rates["syncs_per_iteration"] >= 1  # the loss is looked at for being finite
        # torch alone takes longer to be imported
        assert 1 < rates["seconds_to_first_batch"] < rates["seconds_to_first_iteration"]
        assert rates["host_peak_mb"] > 100 and rates["threads"] == 1
    ratio = other["rounds"][0]["images_per_second"] / own["rounds"][0]["images_per_second"]
    assert other["rounds"][0]["against_first"] == pytest.approx(ratio)
    assert f"| `{tiny_config}` | `{tiny_config} --faster` | `{with_worker}` |" in result.stdout
    rate = own["median"]["images_per_second"]
    assert f"| training, images/s | {rate:,.1f} | – | " in result.stdout


@pytest.mark.slow
def test_a_training_is_timed_to_an_accuracy_and_to_its_end(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    result = run_tool(
        *(
            BENCHMARK,
            "train",
            tiny_config,
            "--to-accuracy",
            0,
            "--weights",
            "none",
            "--data",
            dataset,
        ),
        *("--repeats", 1, "--json", "times.json", "--cfg-options", *NARROW),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    (run,) = json.loads((tmp_path / "times.json").read_text())["results"][0]["rounds"]
    assert 1 < run["seconds_to_accuracy"] < run["seconds"]
    assert len(run["accuracies"]) == 2 and run["last_accuracy"] == run["accuracies"][1]
    assert run["best_accuracy"] == max(run["accuracies"])
    assert f"| process start to 0 %, s | {run['seconds_to_accuracy']:.1f} |" in result.stdout


@pytest.mark.slow
def test_a_training_too_short_says_what_to_do(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    options = ("--data", dataset, "--repeats", 2, "--cfg-options", *NARROW)
    result = run_tool(BENCHMARK, "train", tiny_config, *options, cwd=tmp_path)
    assert result.returncode == 2
    assert "the training ends after 10 iterations, 28 are needed" in result.stderr
    assert "fewer --iterations" in result.stderr


# Measures what the test knows: "fine" is quicker in each round, "flaky" twice as quick and fails in the second.
MEASURED = """
import json, pathlib, sys
task = json.loads(sys.argv[1])
name = next(word for word in task["training"] if word in ("fine", "flaky"))
calls = pathlib.Path("calls.txt")
number = calls.read_text().count(name) if calls.exists() else 0
with calls.open("a") as file:
    file.write(name + " ")
if name == "flaky" and number:
    sys.exit("something\\nerror: gone · hint: none")
rate = 10.0 * (number + 1) * (1 + (name == "flaky"))
pathlib.Path(task["out"]).write_text(json.dumps({"images_per_second": rate, "device_peak_mb": None}))
"""


def test_rounds_alternate_and_a_failure_ends_its_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    got = compare_rates((sys.executable, "-c", MEASURED), ["fine", "flaky --x"], options=["--data", "d"], repeats=3)
    assert Path("calls.txt").read_text().split() == ["fine", "flaky", "flaky", "fine", "fine"]
    fine, flaky = got["results"]
    assert [measured["images_per_second"] for measured in fine["rounds"]] == [10, 20, 30]
    assert fine["median"]["images_per_second"] == 20 and "device_peak_mb" not in fine["median"]
    assert flaky["error"] == "gone · hint: none" and flaky["rounds"][0]["against_first"] == 2
    assert [problem.what for problem in failures(got)] == ["flaky --x: gone · hint: none"]
    lines = table(got).splitlines()
    assert "| training, images/s | 20.0 (10.0–30.0) | 20.0 |" in lines
    assert lines[-1] == "`flaky --x`: gone · hint: none"


# A training whose one validation, as its log has it, is 90 % for an even seed and 70 % for an odd one.
TRAINED = """
import json, pathlib, sys, time
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
log = pathlib.Path(options["--work-dir"], "20260101", "vis_data", "scalars.json")
log.parent.mkdir(parents=True)
log.write_text(json.dumps({"accuracy/top1": 70.0 if int(options["--seed"]) % 2 else 90.0, "step": 1}) + "\\n")
time.sleep(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accuracy", "repeats", "median"), [(80, 3, "least"), (80, 2, "never"), (95, 1, "none"), (60, 1, "least")]
)
def test_a_run_that_never_gets_there_counts_as_the_slowest(accuracy: float, repeats: int, median: str) -> None:
    got = compare_times((sys.executable, "-c", TRAINED), ["a.py"], accuracy, options=[], repeats=repeats)
    (result,) = got["results"]
    assert [run["best_accuracy"] for run in result["rounds"]] == [90.0, 70.0, 90.0][:repeats]
    reached = [run["seconds_to_accuracy"] for run in result["rounds"]]
    assert [seconds is not None for seconds in reached] == [best >= accuracy for best in (90, 70, 90)][:repeats]
    assert all(
        seconds + 0.5 < run["seconds"] for seconds, run in zip(reached, result["rounds"], strict=True) if seconds
    )
    row = next((line for line in table(got).splitlines() if line.startswith(f"| process start to {accuracy} %")), "")
    assert row.count("never") == {"least": int(repeats == 3), "never": 2, "none": 0}[median]
    assert ("seconds_to_accuracy" in result["median"]) == (median == "least")
