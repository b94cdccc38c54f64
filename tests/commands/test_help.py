"""The command line: bad input is one line and status 2, a spent budget 3, and nothing paid for is ever lost."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from certibox.cli import COMMANDS, GROUPS, STATUSES, main
from certibox.commands.arguments import in_flags, parse
from certibox.commands.fields import require_effect
from certibox.records.certificates import read_rows
from command_line import SIGMA
from places import ROOT


def squeezed(text: str) -> str:
    """Without white space: help breaks lines where it likes."""
    return "".join(text.split())


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_explains_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    usage, _, body = shown.partition("\n\n")
    for item in fields(COMMANDS[name].load()[0]):
        place = {"files": "FILE", "table": "TABLE"}.get(item.name)
        flag = place or f"--{item.name.replace('_', '-')}"
        assert re.search(rf"^  {re.escape(flag)}\b", body, re.MULTILINE), flag
        assert squeezed(item.metadata["help"]) in squeezed(body)
        assert (flag in usage) == (item.default is MISSING)
    assert "Literal" not in shown
    assert "null" not in shown.replace("A null class", "")


def test_help_begins_with_what_is_required_and_ends_with_what_few_need(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["certify", "--help"])
    shown = capsys.readouterr().out
    places = [shown.index(f"\n{title}:\n") for title in ("required", "the black box and its meter", "advanced")]
    assert places == sorted(places)
    required = shown[places[0] : places[1]]
    assert re.findall(r"^  (--[\w-]+)", required, re.M)[:4] == ["--model", "--outputs", "--data", "--out"]
    assert shown.index("--sigma X") < places[2] < shown.index("--noise-batch-size N")


def test_a_beginning_of_a_flag_is_no_flag(run) -> None:
    ran = run("query-cost --certify-image 3")
    assert (ran.status, "did you mean --certify-images?" in ran.message) == (2, True)


def test_the_statuses_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"{status} {meaning}" in shown for status, meaning in STATUSES.items())
    assert set(STATUSES) == {0, 2, 3, 4, 5, 130, 141}


def test_messages_name_flags_where_python_names_parameters() -> None:
    kind = COMMANDS["certify"].load()[0]
    for text, shown in (
        ("num_classes is 1; wanted 2", "--num-classes is 1; wanted 2"),
        ("runs/batch_size/x is 'batch_size'", "runs/batch_size/x is 'batch_size'"),
        ("train_batch_size is 1", "train_batch_size is 1"),
        ("give image_shape=(8, 8, 1) if", "give --image-shape [8, 8, 1] if"),
    ):
        assert in_flags(text, kind) == shown


def test_help_lists_every_command_with_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for arguments in ([], ["-h"], ["--help"]):
        assert main(arguments) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    alone = {name: command.purpose for name, command in COMMANDS.items() if " " not in name}
    assert not [line for line in shown[0].splitlines() if line.startswith("  paper") and len(line) > 100]
    for name, purpose in (alone | GROUPS).items():
        assert re.search(rf"^  {name} +{re.escape(purpose)}$", shown[0], re.M)
    assert main(["--version"]) == 0
    assert re.fullmatch(r"certibox \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_help_of_the_group_lists_its_commands_with_their_purposes(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for arguments in (["paper"], ["paper", "-h"], ["paper", "--help"]):
        assert main(arguments) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    assert shown[0].startswith("usage: certibox paper COMMAND [OPTIONS]\n")
    assert max(map(len, shown[0].splitlines())) <= 100
    for name in ("paper list", "paper run", "paper report"):
        assert squeezed(name + COMMANDS[name].purpose) in squeezed(shown[0])
        assert name.removeprefix("paper ") in GROUPS["paper"]


@pytest.mark.parametrize("word", ["nonsense", "--scale", "list run"])
def test_a_word_that_the_group_does_not_know_is_one_line_with_those_it_does(
    capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert main(["paper", word, "more"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    wanted = "wanted one of paper list, paper run, paper report"
    assert printed.err == f"certibox paper {word}: there is no command 'paper {word}'; {wanted}\n"


def test_a_slip_of_a_command_of_the_group_is_answered_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "reprot"]) == 2
    assert capsys.readouterr().err.endswith("wanted one of paper list, paper run, paper report; did you mean report?\n")


def test_words_of_a_group_reach_its_command(run) -> None:
    ran = run("paper list --experiments nowhere")
    assert (ran.status, ran.out) == (2, "")
    assert ran.message.startswith("certibox paper list: nowhere holds no setups.yaml")
    ran = run("paper run")
    assert (ran.status, ran.out) == (2, "")
    assert ran.message.startswith("certibox paper run: table not given")


def command_lines(text: str) -> list[list[str]]:
    """The `certibox ...` commands of a text, each as argv without the program."""
    text = text.replace("\\\n", " ").replace("$SLURM_ARRAY_TASK_ID", "3")
    found = re.findall(r"^(?:example: )?certibox (\S.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


def published(page: str) -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return [argv for block in blocks for argv in command_lines(block)]


NEWCOMERS = (
    *("README.md", "docs/quickstart.md", "docs/models-and-data.md", "docs/extending.md", "examples/README.md"),
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs" / "how-to").glob("*.md"))),
)


def examples() -> list[list[str]]:
    """Every command line that the help and the pages for newcomers show."""
    helped = [argv for command in COMMANDS.values() for argv in command_lines(inspect.getdoc(command.load()[0]) or "")]
    return helped + [argv for page in NEWCOMERS for argv in published(page)]


@pytest.mark.parametrize("argv", examples(), ids=" ".join)
def test_published_command_lines_are_understood(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.chdir(ROOT)
    words = 2 if argv[0] in GROUPS else 1
    name = " ".join(argv[:words])
    options = COMMANDS[name].load()[0]
    made = parse(name, options, argv[words:])
    given = {word[2:].replace("-", "_") for word in argv if word.startswith("--")} - {"config"}
    assert given <= {item.name for item in fields(options)}
    assert all(getattr(made, name) is not None for name in given)
    require_effect(made, given)


def test_the_worked_example_runs(place: Path, run) -> None:
    """The commands of examples/README.md in their order, with less of everything."""
    shutil.copytree(ROOT / "examples", place / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    smaller = {
        "train": "--limit 30 --autoencoder-epochs 1 --denoise-epochs 1 --epochs 1 --train-batch-size 16",
        "certify": "--limit 4 --n0 10 --n 40",
    }
    lines = published("examples/README.md")
    assert [argv[0] for argv in lines] == ["query-cost", "train", "certify", "certify", "report", "query-cost"]
    printed = []
    for argv in lines:
        ran = run(f"{shlex.join(argv)} {smaller.get(argv[0], '')}")
        assert (ran.status, ran.err.count("certibox")) == (0, 0)
        printed.append(ran.out)
    # 1,000 targets; 256 for mu, 80 for each of 3 probes; 900 images, 3 epochs; 100 held out, 4 votes, 4 scores;
    # 100 certificates of 1,025
    assert re.search(r"total .* 108,296 .* 108\.30", printed[0])
    assert "worst case" in printed[0]
    for out in ("bare", "certified"):
        rows = read_rows(f"runs/example/{out}/certificates.jsonl")
        assert [(row.queries <= 50, row.cap) for row in rows] == [(True, 40)] * 4
    assert (place / "runs/example/report/report.html").is_file()
    assert "estimation votes an image (standard error" in printed[-1]


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(place: Path) -> None:
    line = f"predict --model box.py:logits --outputs logits --data images.npz --split train --sigma {SIGMA} --n 20000"
    command = [sys.executable, "-m", "certibox.cli", *shlex.split(line)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=place, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["idx"] == 0
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141
