"""The command line: one verb per stage, in the order of the journey. It alone reads argv, the environment and TOML.

Promise: every verb has `--help` that teaches, `--config FILE.toml`, `--set key=value` and `--json`; a user's mistake is
one line on stderr and exit code 2, an interrupted verb goes on where it stopped when it is run again.
Price: `sterna --help` imports neither ray nor torch; `sterna VERB --help` imports that verb's settings only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import errno
import importlib
import inspect
import json
import logging
import os
import signal
import sys
import textwrap
import tomllib
import types
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.settings import field_help, parse

__all__ = ["VERBS", "Verb", "main"]

USER_ERROR, UNMET, INTERRUPTED = 2, 3, 130
_HERE = Path(__file__).resolve().parent
_SPELT_OUT = "spelt_out"  # where the flag of a field that has a place is parsed to


@dataclass(frozen=True, slots=True)
class Verb:
    """One entry of the command line."""

    settings: str
    """`module:Class` of its settings, in a module that imports neither ray nor torch."""
    function: str
    """`module:function` that does the work, imported when it runs."""
    help: str
    """One line for `sterna --help`."""
    positional: str = ""
    """The field that may be given without a flag."""
    example: str = ""
    """A command line that works, for the verb's own help."""

    @property
    def table(self) -> str:
        """The verb's table in a TOML file: the function's name, or the group's for `plan run`."""
        return {"plan_run": "plan", "plan_fit": "fit", "plan_explain": "explain", "plan_sweep": "sweep"}.get(
            self.function.split(":")[1], self.function.split(":")[1]
        )


VERBS: dict[str, Verb] = {
    "curate": Verb("pipelines.curate.config:CurateConfig", "pipelines.curate.flow:curate",
                   "text from anywhere -> a filtered, deduplicated corpus", "input",
                   "sterna curate 'docs/**/*.md' s3://bucket/crawl/ --output runs/corpus"),
    "tokenize": Verb("pipelines.config:TokenizeConfig", "pipelines.tokens:tokenize",
                     "a corpus -> a tokenizer and packed token shards", "corpus",
                     "sterna tokenize runs/corpus --vocab-size 8192 --output runs/tokens"),
    "plan run": Verb("train.plan.config:PlanConfig", "train.plan.run:plan_run",
                     "tokens and a budget -> what to train, and the loss to expect", "",
                     "sterna plan run --tokens runs/tokens --budget minutes=10 --output runs/plan"),
    "plan fit": Verb("train.plan.config:FitConfig", "train.plan.fit_run:plan_fit",
                     "a table of runs -> the scaling law they follow, with intervals, tested on its largest runs", "runs",
                     "sterna plan fit runs.csv --predict 1e9:20e9 --plot fit.png"),
    "plan sweep": Verb("train.plan.config:SweepConfig", "train.plan.sweep:plan_sweep",
                       "tokens and a budget -> a ladder of small models, and the scaling law of this text", "tokens",
                       "sterna plan sweep runs/tokens --budget minutes=12 --output runs/law"),
    "plan explain": Verb("train.plan.config:ExplainConfig", "train.plan.explain:plan_explain",
                         "a plan -> why it is what it is, term by term, and what twice the budget would buy", "plan",
                         "sterna plan explain runs/plan"),
    "pretrain": Verb("train.config:PretrainConfig", "train.pretrain:pretrain",
                     "a plan -> a trained model (Ray Train, DeepSpeed ZeRO; resumes)", "plan",
                     "sterna pretrain runs/plan --output runs/base"),
    "tune": Verb("train.tuning.config:TuneConfig", "train.tune:tune",
                 "a model and conversations, or preferences -> a tuned model, or an adapter", "model",
                 "sterna tune runs/base --data runs/corpus --output runs/tuned"),
    "distill": Verb("train.compress.distill_config:DistillConfig", "train.compress.distill:distill",
                    "a teacher and a student -> a student that says what the teacher would", "teacher",
                    "sterna distill runs/base --plan runs/plan --tokens runs/tokens --output runs/student"),
    "compress": Verb("train.compress.config:CompressConfig", "train.compress.compress:compress",
                     "a model -> a smaller one, judged by diverging tokens", "model",
                     "sterna compress runs/tuned --budget flips=0.02 --prompts prompts.jsonl --output runs/small"),
    "diverge": Verb("train.compress.config:DivergeConfig", "train.compress.diverge:diverge",
                    "two models -> how far the tokens of one differ from the other's", "models",
                    "sterna diverge runs/tuned runs/small --prompts prompts.jsonl"),
    "evaluate": Verb("train.config:EvaluateConfig", "train.evaluate:evaluate",
                     "models, held-out text and questions -> bits per byte, accuracy", "models",
                     "sterna evaluate runs/base runs/tuned runs/int8 --data runs/tokens --output runs/evaluation"),
    "serve": Verb("serve.config:ServeConfig", "serve.app:serve",
                  "a model -> an OpenAI API on Ray Serve, until Ctrl-C", "model",
                  "sterna serve runs/int8 --port 8000"),
    "trial": Verb("pipelines.config:TrialConfig", "pipelines.trial:trial",
                  "serve a model for a minute and measure it over HTTP, with and without drafts", "model",
                  "sterna trial runs/int8 --prompts runs/prompts.jsonl --output runs/trial"),
    "generate": Verb("pipelines.config:GenerateConfig", "pipelines.generate:generate",
                     "a table of prompts -> a table of completions, each row exactly once", "model",
                     "sterna generate runs/int8 --input prompts.jsonl --output runs/rows"),
    "drill": Verb("pipelines.config:DrillConfig", "pipelines.drill:drill",
                  "take machines away under live streams, and count what is lost (nothing)", "model",
                  "sterna drill runs/tuned --output runs/drill"),
    "report": Verb("pipelines.config:ReportConfig", "pipelines.report:report",
                   "stage folders -> one page with plots", "folders",
                   "sterna report runs/journey/* --output report.html"),
    "journey": Verb("pipelines.config:JourneyConfig", "pipelines.journey:journey",
                    "all of the above, one after the other, on real text", "",
                    "sterna journey --config configs/tiny.toml"),
    "cluster simulate": Verb("cluster.simulate:SimulateConfig", "cluster.simulate:simulate",
                             "recorded spot markets and load -> what placement policies cost and lose", "traces",
                             "sterna cluster simulate traces/us-west-2*.json --load requests.csv --nodes 100 --plot spot.png"),
    "cluster watch": Verb("cluster.notices:WatchConfig", "cluster.notices:watch",
                          "on a spot node: turn the cloud's interruption notice into a Ray drain", "",
                          "sterna cluster watch --cloud aws"),
    "cluster prices": Verb("cluster.prices:PricesConfig", "cluster.prices:prices",
                           "what machines cost: AWS's spot history by zone beside on demand", "types",
                           "sterna cluster prices m7i.4xlarge c7i.4xlarge --region us-west-2"),
    "cluster ledger": Verb("cluster.ledger_file:LedgerConfig", "cluster.ledger_file:ledger",
                           "what a service cost per million tokens, against all on demand", "path",
                           "sterna cluster ledger costs.jsonl"),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 done, 2 a user's mistake, 3 done but short of what was asked for, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[1:] in (["-h"], ["--help"]) and (group := _group(arguments[0])):
        print("\n".join(f"  sterna {name:<18}{VERBS[name].help}" for name in group))
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"sterna {version('sterna')}")
        return 0
    name, show_traceback = arguments[0], "--traceback" in arguments
    try:
        name, rest = _split_verb(arguments)
        return _run(name, VERBS[name], rest)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != signal.SIGTERM:  # argparse's own exits; Ray turns SIGTERM into one
            raise
        print("sterna: interrupted; run the same command again to go on where it stopped", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        mistake = _user_error(error)
        if mistake is None or show_traceback:
            raise
        print(f"sterna {name}: {mistake}", file=sys.stderr)
        return USER_ERROR


def _user_error(error: BaseException) -> str | None:
    """One line of the ValueError, or the storage that fails, at the bottom of `error` (Ray wraps what a task raises)."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "cause", None)
        if isinstance(cause, BaseException) and cause is not seen:
            seen = cause
        elif isinstance(seen, ValueError):
            return " ".join(str(seen).split())
        elif isinstance(seen, OSError) and (told := _of_storage(seen)):
            return f"{told} and run the same command again to go on where it stopped"
        else:
            seen = seen.__cause__
    return None


def _overview() -> str:
    lines = ["usage: sterna VERB [options]        (sterna VERB --help explains each)", "",
             "From raw text to a served language model on machines that may vanish. In the order of the journey:", ""]  # fmt: skip
    lines += [f"  {name:<17}{verb.help}" for name, verb in VERBS.items()]
    lines += ["", "Every verb: --config FILE.toml, --set key=value, --json (summary on stdout), --traceback.",
              "On a laptop it starts Ray, on a cluster it attaches, and it runs as a job:",
              "  ray job submit --working-dir . -- python -m sterna VERB …"]  # fmt: skip
    return "\n".join(lines)


def _of_storage(error: OSError) -> str | None:
    """What is wrong with a disk or a bucket, and what to do."""
    from cluster.storage import is_unavailable

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space is left on a disk that it writes to; make room"
    return f"storage does not answer ({str(error).splitlines()[0]}); see to it" if is_unavailable(error) else None


def _split_verb(arguments: list[str]) -> tuple[str, list[str]]:
    two = " ".join(arguments[:2])
    if two in VERBS:
        return two, arguments[2:]
    if arguments[0] in VERBS:
        return arguments[0], arguments[1:]
    if group := _group(arguments[0]):
        raise ValueError(f"{arguments[0]} is followed by one of: {', '.join(name.split()[1] for name in group)}")
    close = difflib.get_close_matches(arguments[0], VERBS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "`sterna --help` lists the verbs"
    raise ValueError(f"no such verb; {hint}")


def _group(word: str) -> list[str]:
    """The verbs of two words that begin with this one."""
    return [name for name in VERBS if name.startswith(f"{word} ")]


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _run(name: str, verb: Verb, arguments: list[str]) -> int:
    cls = _load(verb.settings)
    options = _parser(name, verb, cls).parse_args(arguments)
    given = _given(verb, cls, options)
    config = parse(cls, _merge(name, verb, options, given), where=f"{options.config or 'command line'}")
    _quieten()
    code = 0
    with contextlib.redirect_stdout(sys.stderr):  # third parties print; stdout is for the result
        try:
            result = _load(verb.function)(config)
        except ValueError as error:
            if not hasattr(error, "best"):  # cluster.artifact.Unmet, which is not imported before a verb needs it
                raise
            print(f"sterna {name}: {_user_error(error)}", file=sys.stderr)
            result, code = error.best, UNMET
    if result is None:
        return 0
    if options.json:
        print(json.dumps(result.summary() if hasattr(result, "summary") else {"output": str(result)}))
    else:
        print(result)
    return code


def _given(verb: Verb, cls: type[Any], options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags or by their place; what has a place may be spelt out as a flag instead."""
    given = {k: v for k, v in vars(options).items() if k in {f.name for f in dataclasses.fields(cls)} and v is not None}
    spelt_out = getattr(options, _SPELT_OUT, None)
    if spelt_out is None:
        return given
    if given.get(verb.positional):
        raise ValueError(f"--{verb.positional.replace('_', '-')}: {verb.positional} is given without the flag too; give it once")
    return given | {verb.positional: spelt_out}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        """One line instead of the usage text."""
        raise ValueError(f"{message}; `{self.prog} --help` lists the options")


def _parser(name: str, verb: Verb, cls: type[Any]) -> argparse.ArgumentParser:
    epilog = f"example:\n  {verb.example}\n\nThe same settings in TOML, in a table [{verb.table}], with --config."
    described = "\n\n".join([verb.help, *_paragraphs(cls)])
    parser = _Parser(f"sterna {name}", description=described, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE.toml", help="settings from the file's tables; flags and --set win over it")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="any setting, nested ones by dotted key")
    parser.add_argument("--json", action="store_true", help="print one JSON summary on stdout")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    docs, hints = field_help(cls), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        _add_option(parser, field, hints[field.name], docs.get(field.name, ""), positional=field.name == verb.positional)
    return parser


def _paragraphs(cls: type[Any]) -> list[str]:
    """What the docstring of the settings says beyond its first line, for the verb's help."""
    return [textwrap.fill(paragraph, 100) for paragraph in (inspect.getdoc(cls) or "").split("\n\n")[1:]]


def _add_option(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any, doc: str, *, positional: bool) -> None:
    many = typing.get_origin(hint) is tuple
    text = (doc + _default(field.default)).replace("%", "%%")
    flag = "--" + field.name.replace("_", "-")
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) in (dict, Mapping):
        lines = [textwrap.fill(f"{doc} Use --set {field.name}.KEY=VALUE or a TOML table.", 100)]
        if dataclasses.is_dataclass(hint):
            given = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            lines += _nested(field.name, typing.cast(type, hint), given)
        parser.add_argument_group(f"nested settings {field.name}", "\n".join(lines))
    elif positional:
        parser.add_argument(field.name, nargs="*" if many else "?", default=None, help=text)
        parser.add_argument(flag, nargs="+" if many else None, dest=_SPELT_OUT, metavar="TEXT", help=f"{field.name}, spelt out")
    elif hint is bool or set(typing.get_args(hint)) == {bool, type(None)}:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    else:
        repeated: dict[str, Any] = {"nargs": "+", "action": "extend"} if many else {}
        parser.add_argument(flag, **repeated, default=None, metavar=_metavar(typing.get_args(hint)[0] if many else hint), help=text)


def _nested(name: str, cls: type[Any], given: Any) -> list[str]:
    """Help for each setting of a nested class; `given` holds the defaults."""
    docs, hints = field_help(cls), typing.get_type_hints(cls)
    lines = []
    for field in dataclasses.fields(cls):
        text = docs.get(field.name, "") + _default(getattr(given, field.name))
        lines += [f"{name}.{field.name}={_metavar(hints[field.name])}", textwrap.indent(textwrap.fill(text, 92), "        ")]
    return lines


def _default(value: Any) -> str:
    return "" if value in (dataclasses.MISSING, (), None, "") else f" (default: {value})"


def _metavar(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(str(word) for word in typing.get_args(hint) if word != "")
    if typing.get_origin(hint) is tuple:
        return '["TEXT", …]' if str in typing.get_args(hint) else "[N, …]"
    return {int: "N", float: "X", str: "TEXT", bool: "true|false"}.get(hint, "VALUE")


def _merge(name: str, verb: Verb, options: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """Settings of this verb: the TOML file's, overridden by `--set`, overridden by flags."""
    given = {k: v for k, v in given.items() if v != []}
    tables = _read_toml(options.config or (str(_HERE / "configs" / "tiny.toml") if name == "journey" else ""))
    for assignment in options.set:
        _assign(tables if name == "journey" else tables.setdefault(verb.table, {}), assignment)
    if name != "journey":
        return {**tables.get(verb.table, {}), **given}
    return {**tables.pop("journey", {}), "stages": tables, **given}


def _read_toml(path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; --config takes a TOML file such as configs/tiny.toml") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); --config takes a TOML file such as configs/tiny.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    known = {verb.table for verb in VERBS.values()}
    for key, value in tables.items():
        if key not in known or not isinstance(value, dict):
            raise ValueError(f"{path}: unknown table [{key}]; tables are named for verbs: {', '.join(sorted(known))}")
    return tables


def _assign(table: dict[str, Any], assignment: str) -> None:
    """Put `a.b=value` into nested dicts; the value is TOML where it parses as TOML, else the text itself."""
    key, equals, raw = assignment.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {assignment}: expected KEY=VALUE")
    try:
        value: Any = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    *path, last = key.split(".")
    for part in path:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ValueError(f"--set {assignment}: {part!r} is not a table")
        table = inner
    table[last] = value


def _quieten() -> None:
    """Third parties' chatter off before they are imported; what a person set stays."""
    for variable, value in {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1",
                            "RAY_DEDUP_LOGS": "1",
        "GRPC_VERBOSITY": "ERROR", "PYTHONWARNINGS": "ignore"}.items():  # fmt: skip
        os.environ.setdefault(variable, value)
    warnings.simplefilter("ignore")
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
