"""Our quality rules beside datatrove's, on the same documents, rule by rule, with every disagreement: `make peers-curate` first.

    python -m benchmarks.filter_parity [--data FOLDER] [--json FILE]

Both judge the cleaned text. datatrove runs in .venv-datatrove (workers/datatrove_filters.py), one filter for each rule, so a
rule's verdict is not hidden by an earlier one's. Capitals are whole filters with all their rules. "same words": the agreement
once datatrove's filters are given our words, those between white space, instead of spaCy's. A second table says what each drops of
the documents that people labelled good and bad: where verdicts differ, that is what the difference is worth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.curate.measure import measure_prose
from pipelines.curate.normalize import clean
from pipelines.curate.records import Fields
from pipelines.curate.rules import PROFILES, Rule
from pipelines.curate.web import read_warc

PEER = Path(".venv-datatrove/bin/python")
GROUPS = {
    "GOPHER QUALITY": PROFILES["gopher"][:9],
    "GOPHER REPETITION": PROFILES["gopher"][9:],
    "C4": PROFILES["c4"],
    "FINEWEB": PROFILES["fineweb"],
}
RULES = {rule.name: [rule] for name in ("gopher", "c4", "fineweb") for rule in PROFILES[name]}
RULES["c4.few_sentences (web)"] = [rule for rule in PROFILES["web"] if rule.name == "c4.few_sentences"]
_TOKENS = "their words are spaCy's, with every punctuation mark a word; ours stand between white space, as in the paper's counts"
WHY = {
    "gopher.short_document": "they count words by spaCy, which parts don't and 5km in two, and none of punctuation alone",
    "gopher.word_length": "ours keep their punctuation; theirs are parted at hyphens and apostrophes, and none is of punctuation alone",
    "gopher.hashes": _TOKENS,
    "gopher.ellipses": _TOKENS,
    "gopher.bullet_lines": "they count blank lines among the lines, we do not",
    "gopher.ellipsis_lines": "they count blank lines among the lines, we do not",
    "gopher.words_without_letters": "they count punctuation marks among the words, and so drop prose with many; the paper says words",
    "gopher.stop_words": "punctuation is parted from their words, so `the,` is a stop word to them and not to us",
    "gopher.duplicate_lines": "we trim lines before we compare them",
    "gopher.duplicate_line_chars": "we trim lines before we compare them",
    "gopher.duplicate_paragraphs": "a line of spaces parts our paragraphs, not theirs",
    "gopher.duplicate_paragraph_chars": "a line of spaces parts our paragraphs, not theirs",
    "c4.few_sentences": "sentences are spaCy's there, which parts at abbreviations too; they take citation marks out first",
    "c4.few_sentences (web)": "sentences are spaCy's there, which parts at abbreviations too",
    "fineweb.punctuated_lines": "a closing quote or bracket after a full stop ends a line for us, as it does for C4, and not for them",
    "fineweb.duplicate_line_chars": "we trim lines before we compare them; they leave line breaks out of the characters",
    "fineweb.newlines": "spaCy's words are counted by a formula here: runs of letters and digits, and every other character",
}
WHY |= {
    f"gopher.top_{n}gram": "they part punctuation from words and put spaces between, and count n-grams that stand once" for n in (2, 3, 4)
}
WHY |= {
    f"gopher.duplicate_{n}gram": "theirs go on after a repeated n-gram and miss those that overlap it; we count every character in one once"
    for n in range(5, 11)
}


def documents(data: Path) -> Iterator[tuple[str, str]]:
    """Name and cleaned text of every sample document."""
    for name, key in (("c4-sample", "text"), ("quality-labels", "text"), ("pile-domains", "contents")):
        for number, line in enumerate((data / "docs" / f"{name}.jsonl").open()):
            yield f"{name}:{number}", clean(json.loads(line)[key])
    for number, line in enumerate((data / "docs" / "wiki-sample.txt").open()):
        yield f"wiki-sample:{number}", clean(line)
    for number, record in enumerate(read_warc(str(data / "web" / "sample-0000.warc.gz"), Fields())):
        if record.text is not None:
            yield f"warc:{number}", clean(record.text)


def theirs(texts: list[str], *options: str) -> list[dict[str, bool]]:
    """datatrove's verdicts, from its own environment."""
    if not PEER.exists():
        raise SystemExit("filter_parity: no .venv-datatrove; run `make peers-curate`")
    worker = Path(__file__).parent / "workers" / "datatrove_filters.py"
    asked = "".join(json.dumps(text) + "\n" for text in texts)
    ran = subprocess.run([str(PEER), str(worker), *options], input=asked, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"filter_parity: datatrove failed: {ran.stderr.strip().splitlines()[-1]}")
    return [json.loads(line) for line in ran.stdout.splitlines()]


def broken(measures: Any, rules: list[Rule] | tuple[Rule, ...]) -> np.ndarray:
    """Which documents break one of the rules."""
    return np.any([(measures[r.measure] < r.at_least) | (measures[r.measure] > r.at_most) for r in rules], axis=0)


def labels(data: Path) -> dict[str, int]:
    """The documents that people labelled, by name: 1 good, 0 bad."""
    lines = (data / "docs" / "quality-labels.jsonl").open()
    return {f"quality-labels:{number}": int(json.loads(line)["label"]) for number, line in enumerate(lines)}


def compare(names: list[str], texts: list[str], labelled: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row for each rule: how many each drops, the share of equal verdicts, and the documents of unequal ones."""
    known = np.array([labelled.get(name, -1) for name in names])
    measures, verdicts, same_words = measure_prose(texts), theirs(texts), theirs(texts, "--between-spaces")
    rows = []
    for rule, ours_by in {**RULES, **GROUPS}.items():
        ours, peer = broken(measures, ours_by), np.array([verdict[rule] for verdict in verdicts])
        apart = [
            {"document": names[i], "ours": bool(ours[i]), "measures": {r.measure: round(float(measures[r.measure][i]), 4) for r in ours_by}}
            for i in np.flatnonzero(ours != peer)
        ]
        row = {"rule": rule, "ours": int(ours.sum()), "datatrove": int(peer.sum()), "both": int((ours & peer).sum())}
        spaced = np.array([verdict[rule] for verdict in same_words])
        row |= {"agreement": float((ours == peer).mean()), "agreement_same_words": float((ours == spaced).mean())}
        for name, label in (("good", 1), ("bad", 0)):
            row[name] = [float(dropped[known == label].mean()) if (known == label).any() else 0.0 for dropped in (ours, peer)]
        rows.append(row | {"why": WHY.get(rule, ""), "disagreements": apart})
    return rows


def show(rows: list[dict[str, Any]], num_documents: int) -> None:
    """The table, and every disagreement of a rule below it."""
    print(f"{num_documents} documents\n{'rule':<34}{'ours':>6}{'theirs':>8}{'both':>6}{'agreement':>11}{'same words':>12}")
    for row in rows:
        print(
            f"{row['rule']:<34}{row['ours']:>6}{row['datatrove']:>8}{row['both']:>6}{row['agreement']:>11.4f}{row['agreement_same_words']:>12.4f}"
        )
    print(f"\n{'of those that people labelled':<34}{'good: ours':>12}{'theirs':>9}{'bad: ours':>12}{'theirs':>9}")
    for row in (row for row in rows if any(row["good"] + row["bad"])):
        (ours_good, their_good), (ours_bad, their_bad) = row["good"], row["bad"]
        print(f"{row['rule']:<34}{ours_good:>12.1%}{their_good:>9.1%}{ours_bad:>12.1%}{their_bad:>9.1%}")
    for row in rows:
        if row["disagreements"] and row["rule"] in RULES:
            print(f"\n{row['rule']}: {row['why'] or 'UNEXPLAINED'}")
            for one in row["disagreements"]:
                value = ", ".join(f"{name} {value}" for name, value in one["measures"].items())
                print(f"  {one['document']:<22} {'dropped by us' if one['ours'] else 'dropped by them'}: {value}")


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names, texts = zip(*((name, text) for name, text in documents(options.data) if text), strict=True)
    rows = compare(list(names), list(texts), labels(options.data))
    show(rows, len(texts))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"documents": len(texts), "rules": rows}, indent=1))
    if any(row["disagreements"] and not row["why"] for row in rows if row["rule"] in RULES):
        sys.exit("filter_parity: a disagreement has no reason")


if __name__ == "__main__":
    main()
