"""The command line: precedence of settings, one-line errors, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sterna

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "sterna", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cruate"], "did you mean 'curate'?"),
        (["plan"], "followed by one of: run, fit, sweep, explain"),
        (["curate", "--config", "missing.toml"], "missing.toml: no such file"),
        (["curate", "--set", "nonsense"], "expected KEY=VALUE"),
        (["curate", "--set", "thresold=0.7", "--output", "x"], "unknown key 'thresold'; did you mean 'threshold'?"),
        (["tokenize", "/no/such/corpus", "--output", "x"], "/no/such/corpus: no such folder; `sterna curate` makes it"),
        (["report"], "no folders given"),
        (["plan", "run", "--nope"], "sterna plan run: unrecognized arguments: --nope"),
        (["curate", "--config", "/"], "/: cannot be read"),
        (["journey", "--until", "lunch"], "no stage 'lunch'"),
        (["journey", "--set", "lunch.time=1"], "[lunch]"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sterna.main(arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == [], "a mistake leaves nothing behind"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_a_group_lists_its_verbs(flag, capsys):
    assert sterna.main(["plan", flag]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in shown] == [f"sterna {name}" for name in sterna.VERBS if name.startswith("plan ")]
    assert "what twice the budget would buy" in shown[-1]


def test_a_broken_toml_names_the_file(tmp_path, capsys):
    file = tmp_path / "bad.toml"
    file.write_text("[curate\n")
    assert sterna.main(["curate", "--config", str(file)]) == 2
    assert f"{file}: not valid TOML" in capsys.readouterr().err


def test_an_unknown_table_names_the_tables(tmp_path, capsys):
    file = tmp_path / "odd.toml"
    file.write_text("[curat]\nx = 1\n")
    assert sterna.main(["curate", "--config", str(file)]) == 2
    assert "unknown table [curat]" in capsys.readouterr().err


def test_flags_win_over_set_and_set_over_the_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('[curate]\nthreshold = 0.5\nngram = 3\nbands = 7\noutput = "from-file"\n')
    verb = sterna.VERBS["curate"]
    cls = sterna._load(verb.settings)
    options = sterna._parser("curate", verb, cls).parse_args(
        ["--config", str(file), "--set", "threshold=0.6", "--set", "ngram=4", "--ngram", "6"]
    )
    given = {k: v for k, v in vars(options).items() if k in cls.__dataclass_fields__ and v is not None}
    config = sterna.parse(cls, sterna._merge("curate", verb, options, given), where="test")
    assert (config.bands, config.threshold, config.ngram, config.output) == (7, 0.6, 6, "from-file")


@pytest.mark.parametrize(
    "given", [["a", "b", "--output", "x"], ["--output", "x", "--input", "a", "b"], ["--input", "a", "b", "--output", "x"]]
)
def test_what_has_a_place_may_be_spelt_out(given):
    verb = sterna.VERBS["curate"]
    cls = sterna._load(verb.settings)
    options = sterna._parser("curate", verb, cls).parse_args(given)
    config = sterna.parse(cls, sterna._merge("curate", verb, options, sterna._given(verb, cls, options)), where="test")
    assert (config.input, config.output) == (("a", "b"), "x")


def test_what_has_a_place_is_given_once(capsys):
    assert sterna.main(["curate", "a", "--input", "b", "--output", "x"]) == 2
    assert "--input: input is given without the flag too; give it once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("0.5", 0.5), ("true", True), ("[1, 2]", [1, 2]), ("plain", "plain"), ("s3://a/b", "s3://a/b")]
)
def test_set_reads_toml_values_and_plain_text(text, value):
    table = {}
    sterna._assign(table, f"a.b={text}")
    assert table == {"a": {"b": value}}


def test_overview_lists_every_verb_and_takes_no_time():
    shown = run("--help")
    assert shown.returncode == 0
    positions = [shown.stdout.index(f"  {name} ") for name in sterna.VERBS]
    assert positions == sorted(positions)


def test_help_says_more_than_names(capsys):
    with pytest.raises(SystemExit):
        sterna.main(["compress", "--help"])
    shown = capsys.readouterr().out
    assert "on prompts of this kind, of 100 tokens" in " ".join(shown.split())
    assert "--recover norms|lora|full" in shown, "the empty word is the default, not a choice to type"


def test_a_ray_wrapped_mistake_is_still_one_line():
    class Wrapped(Exception):
        cause = ValueError("line 3: broken;\n mend it")

    assert sterna._user_error(Wrapped()) == "line 3: broken; mend it"
    assert sterna._user_error(KeyError("bug")) is None


def test_json_is_the_only_thing_on_stdout(tmp_path):
    text = tmp_path / "in"
    text.mkdir()
    for index in range(3):
        lines = [f"def function_{index}_{n}(value):\n    return value * {n} + {index}\n" for n in range(30)]
        (text / f"{index}.py").write_text("\n".join(lines))
    shown = subprocess.run(
        [sys.executable, "-m", "sterna", "curate", str(text), "--output", str(tmp_path / "corpus"), "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env={**__import__("os").environ, "RAY_ADDRESS": "local"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    summary = json.loads(shown.stdout)
    assert summary["stage"] == "curate"
    assert summary["counts"]["documents_in"] == 3


def test_what_cannot_be_had_is_one_line_and_exit_code_3_and_the_best_is_told(monkeypatch, capsys):
    from cluster.artifact import Artifact, Manifest, Unmet

    def short(_):
        raise Unmet("budget: flips=0 cannot be kept to;\n raise it", Artifact("runs/x", Manifest(stage="compress", inputs={}, config={})))

    monkeypatch.setattr("train.compress.compress.compress", short)
    assert sterna.main(["compress", "m", "--prompts", "p", "--json"]) == 3
    shown = capsys.readouterr()
    assert shown.err == "sterna compress: budget: flips=0 cannot be kept to; raise it\n"
    assert json.loads(shown.out)["output"] == "runs/x"


def test_a_flag_of_many_values_may_be_repeated():
    verb = sterna.VERBS["compress"]
    options = sterna._parser("compress", verb, sterna._load(verb.settings)).parse_args(["--budget", "flips=0.02", "--budget", "kl=0.1"])
    assert options.budget == ["flips=0.02", "kl=0.1"]
