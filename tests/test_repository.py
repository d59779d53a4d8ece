"""The promises of the repository itself: layers, purity, sizes, docstrings, the command line, the README's commands."""

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest

import sterna

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "serve", "train", "pipelines")
SOURCES = [ROOT / "sterna.py", *sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
MODULES = [path for path in SOURCES if path.name != "__init__.py"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PURE = PROJECT["tool"]["mypy"]["files"]
README = (ROOT / "README.md").read_text()


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def loaded_by(modules: list[str]) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after importing `modules`."""
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nprint(*({{'ray', 'torch'}} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_imports_point_down():
    run = subprocess.run([str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_nothing_imports_the_command_line():
    for path in MODULES:
        assert path.name == "sterna.py" or not re.search(r"^\s*(import|from) sterna\b", path.read_text(), flags=re.M), path


def test_pure_files_load_neither_ray_nor_torch():
    assert loaded_by([name_of(ROOT / path) for path in PURE]) == set()


def test_packages_are_free_to_import():
    assert loaded_by([*PACKAGES, "serve.engine", "train.plan", "train.compress", "pipelines.curate"]) == set()


def test_the_engine_loads_no_ray():
    assert "ray" not in loaded_by(["serve.engine.engine"])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_a_room_one_can_see_across(path):
    text = path.read_text()
    assert text.count("\n") <= 400, "no file over 400 lines"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module opens with what it promises"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is longer than 60 lines"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_what_a_module_offers_is_documented(path):
    tree = ast.parse(path.read_text())
    public = next(
        (ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"), None
    )
    assert public is not None, "no __all__"
    defined = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    for name in public:
        if name in defined:
            assert ast.get_docstring(defined[name]), f"{name} has no docstring"


def test_most_files_and_functions_are_small():
    lengths = sorted(path.read_text().count("\n") for path in MODULES)
    assert lengths[len(lengths) // 2] <= 170
    functions = [n for p in MODULES for n in ast.walk(ast.parse(p.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    small = sum(n.end_lineno - n.lineno < 25 for n in functions)
    assert small >= 0.9 * len(functions)


def test_every_module_has_its_mirror():
    missing = []
    for path in MODULES:
        relative = path.relative_to(ROOT)
        if path.stem.endswith("config") or path.stem == "report_page":
            continue  # settings are tested where they are used, and by the command line's tests below
        mirrors = (ROOT / "tests" / relative.parent, ROOT / "tests" / "chaos")  # what kills machines is tested there
        if not any((folder / f"test_{path.stem}.py").exists() for folder in mirrors):
            missing.append(str(relative))
    assert missing == []


@pytest.mark.parametrize("name", sterna.VERBS)
def test_a_verb_explains_itself_quickly(name, capsys):
    verb = sterna.VERBS[name]
    assert loaded_by(["sterna", verb.settings.split(":")[0]]) == set(), "its help would wait for ray or torch"
    with pytest.raises(SystemExit) as stop:
        sterna.main([*name.split(), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert verb.example in shown
    cls = sterna._load(verb.settings)
    undocumented = [f for f in cls.__dataclass_fields__ if f not in sterna.field_help(cls)]
    assert undocumented == []
    nested = [(f.name, inner) for f in dataclasses.fields(cls) if dataclasses.is_dataclass(inner := typing.get_type_hints(cls)[f.name])]
    for outer, inner in nested:
        documented = sterna.field_help(inner)
        assert set(documented) == set(inner.__dataclass_fields__)
        assert all(f"{outer}.{key}=" in shown and text.split()[-1] in shown for key, text in documented.items())


def test_verbs_lead_somewhere():
    for verb in sterna.VERBS.values():
        module, _, function = verb.function.partition(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, f"{verb.function} does not exist"


def commands() -> list[str]:
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", README, flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def check(arguments: list[str]) -> None:
    name, rest = sterna._split_verb(arguments)
    sterna._parser(name, sterna.VERBS[name], sterna._load(sterna.VERBS[name].settings)).parse_args(rest)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_documents_name_only_commands_that_exist(path):
    text = path.read_text()
    for command in re.findall(r"^    sterna (.+)", text, flags=re.M) + re.findall(r"`sterna ([^`]+ --(?!help)[^`]+)`", text):
        check(shlex.split(command, comments=True))


def test_readme_names_only_commands_that_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    seen = 0
    for command in commands():
        words = shlex.split(command)
        if words[0] == "make":
            assert set(words[1:]) <= targets, command
            seen += 1
        if "sterna" in words[:1] or ("-m" in words and "sterna" in words):
            check(words[words.index("sterna") + 1 :])
            seen += 1
    assert seen >= 4
    assert {"make journey", "make test"} <= set(commands())


def test_readme_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_nothing_is_left_undone():
    for path in MODULES:
        assert not re.search(r"#\s*(TODO|FIXME|XXX|HACK)\b", path.read_text()), path


def test_our_serve_is_never_hidden_by_rays():
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py")]:
        assert not re.search(r"^\s*from ray import .*\bserve\b", path.read_text(), flags=re.M), f"{path}: write `import ray.serve`"
