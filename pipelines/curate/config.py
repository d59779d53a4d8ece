"""What `sterna curate` can be told; every field's docstring is its help text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from cluster.settings import settings
from pipelines.curate.rules import check_overrides

__all__ = ["CurateConfig"]

_MOST_WORDS = 1000  # in a row: every text of fewer is padded to as many
_MOST_VALUES = 10_000  # of MinHash, a document
_MOST_SEED = 2**63 - 1


@settings
class CurateConfig:
    """From raw text to a corpus: read, normalise, judge by named rules, drop exact and near duplicates."""

    output: str
    """Folder to write the corpus to: a local path or s3://bucket/folder."""
    input: tuple[str, ...] = ()
    """Directories, files or globs of text, .jsonl(.gz .zst), .parquet, .html, .warc(.gz) and source code, local or s3://; none: the
    text that this Python installation has, its standard library and its installed packages."""
    max_bytes: int | None = None
    """Read at most this many bytes (as stored): a sample of whole files, chosen by the hash of their names, so always the same one."""
    text_field: str = "text"
    """The key or column that holds the text in jsonl and parquet."""
    id_field: str = "id"
    """The key or column that holds the source's own id of a record in jsonl and parquet; it is kept in the column `source_id`."""
    profile: Literal["auto", "web", "gopher", "c4", "fineweb", "code", "none"] = "auto"
    """Quality rules: web (Gopher, C4 and FineWeb, or one of them alone) for prose, code for source code, none; auto takes web or code
    for each document by its format."""
    rules: Mapping[str, Any] = field(default_factory=dict)
    """Thresholds of single rules by their names: a number, [least, most] where a rule has both, or false for off
    (gopher.short_document=20, gopher.word_length=[2,12], c4.curly_bracket=false)."""
    languages: tuple[str, ...] = ()
    """Keep prose in these languages only, by ISO 639-1 (en, de, zh); none: any. The column `language` says which a document is in."""
    min_language_score: float = 0.5
    """Drop prose of whose language the identifier is less certain than this."""
    quality_labels: str | None = None
    """Train a quality classifier on this jsonl of examples (`text`, and `label`: 1 good, 0 bad), local or s3://; the column `quality`
    holds its probability of good. Prose is dropped by it only with `quality_threshold` or `quality_keep`."""
    quality_threshold: float | None = None
    """Drop prose of less `quality` than this."""
    quality_keep: float | None = None
    """Instead of a threshold: the one at which this share of the good examples stays, in cross-validation."""
    perplexity_reference: str | None = None
    """Train a small language model on the text of this file or folder, known to be good; prose that it finds strange is dropped."""
    max_perplexity: float | None = None
    """Drop prose of more perplexity per character than this under that model (English under English: about 6 to 10)."""
    perplexity_keep: float | None = None
    """Instead of a limit: the one at which this share of the reference's own pieces stays, in cross-validation."""
    threshold: float = 0.8
    """Drop a document whose word n-gram set has at least this Jaccard similarity with a kept one's; 1.0 drops equal sets only."""
    ngram: int = 5
    """Words in a shingle, for near-duplicates."""
    bands: int = 14
    """MinHash bands: with `rows`, a pair of similarity s becomes a candidate with probability 1 - (1 - s^rows)^bands."""
    rows: int = 8
    """MinHash values in a band; 14 bands of 8 find 92 % of the pairs of similarity 0.8 and 99 % of 0.85."""
    bucket_limit: int = 256
    """Of the documents that share a band a newcomer is compared with this many kept ones at most, the first: what giant buckets cost."""
    survivors: Literal["longest", "best", "oldest"] = "longest"
    """Which of several duplicates stays: the longest, the best (by `quality`) or the oldest (by `date_field`); ties by id."""
    date_field: str = "date"
    """The key or column that holds a record's date in jsonl and parquet (ISO 8601, or seconds since 1970); no date counts as newest."""
    against: tuple[str, ...] = ()
    """Corpora that `sterna curate` made before: their documents stay and go first, so that only what they lack is kept."""
    paragraphs: bool = False
    """Cut the paragraphs of prose that stand in more than `paragraph_documents` documents: the first in survivor order keep theirs."""
    paragraph_documents: int = 3
    """How many documents may keep the same paragraph."""
    task_bytes: int = 32 << 20
    """Text, or sets of shingles, that a task compares at a time: bounds its memory, however large the corpus."""
    driver_bytes: int = 1 << 30
    """Signatures that the driver may hold, some 200 bytes a document; more are grouped by shuffles on storage, to the same corpus."""
    decontaminate: tuple[str, ...] = ()
    """Evaluation sets to keep out: jsonl (.gz, .zst), parquet, txt or md files; what shares a passage with an item is dropped."""
    decontaminate_ngram: int = 13
    """Words of a shared passage, compared in lower case and without punctuation."""
    decontaminate_shortest: int = 8
    """Of an item without a field of `decontaminate_ngram` words, fields of at least this many are looked for whole."""
    decontaminate_fields: tuple[str, ...] = ()
    """Keys or columns of the evaluation sets to read; none: all that hold text."""
    decontaminate_common: int = 0
    """Ignore passages that more than this many documents hold, such as licences; 0: ignore none. Reads the input twice."""
    decontaminate_cut: bool = False
    """Cut the lines that hold a shared passage, and drop the document only if less than half of its words would be left."""
    select_target: tuple[str, ...] = ()
    """Documents like those that are wanted (folders, files or globs, as `input`): resample towards them by importance (DSIR)."""
    select_model: str = ""
    """Model folder: choose by how unsure this model is of a document."""
    select_by: Literal["loss", "margin"] = "loss"
    """loss: mean -log p per token; margin: 1 - the mean gap in probability between the two likeliest tokens."""
    select_prefer: Literal["high", "middle", "low"] = "high"
    """Which documents to take by `select_model`: those it is least sure of, those nearest the median, or those it is surest of."""
    select_documents: int | None = None
    """Keep this many documents."""
    select_share: float | None = None
    """Keep this share of the documents."""
    select_chars: int | None = None
    """Keep documents of this many characters in all."""
    select_tokens: int | None = None
    """Keep documents of this many tokens of `select_tokenizer` in all."""
    select_tokenizer: str = ""
    """Folder with the tokenizer that `select_tokens` counts by; by default that of `select_model`."""
    select_pool: float = 1.0
    """Above 1: take this many times the budget, and of that the documents that cover the rest best, so that they are diverse."""
    order: Literal["none", "length", "rarity", "loss"] = "none"
    """Train in an order, easiest first: short, of common words, or of low loss under `order_model`."""
    order_model: str = ""
    """Model folder that `order = loss` goes by; by default `select_model`."""
    order_pacing: Literal["sorted", "linear", "root"] = "root"
    """sorted: strictly by difficulty; else at random among what is admitted so far, a share of the corpus that grows like this."""
    order_start: float = 0.1
    """The share of the corpus, easiest first, that is admitted at the beginning."""
    order_full: float = 0.5
    """The share of training after which all is admitted."""
    order_reversed: bool = False
    """Hardest first."""
    model_tokens: int = 512
    """Tokens of a document that `select_model` and `order_model` read, from its beginning."""
    num_partitions: int = 0
    """Tasks the reading is cut into; 0: one for each 8 MB. The corpus holds the same documents whatever it is."""
    seed: int = 0
    """Of the MinHash functions, of the sample that `max_bytes` takes, and of what selection and order draw."""

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("output: is empty; name a folder, or s3://bucket/folder")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes: is {self.max_bytes}; give at least 1, or leave it out to read everything")
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold: is {self.threshold}; give a similarity above 0 and up to 1")
        for name, value in (("ngram", self.ngram), ("bands", self.bands), ("rows", self.rows), *self._bounds()):
            if value < 1:
                raise ValueError(f"{name}: is {value}; give at least 1")
        for name, value, most in (("ngram", self.ngram, _MOST_WORDS), ("bands x rows", self.bands * self.rows, _MOST_VALUES)):
            if value > most:
                raise ValueError(f"{name}: is {value}; give at most {most:,}")
        for name in ("input", "against", "decontaminate", "select_target", "quality_labels", "perplexity_reference"):
            given = getattr(self, name)
            if "" in ((given,) if isinstance(given, str) else given or ()):
                raise ValueError(f"{name}: holds an empty path; give a file or a folder")
        self._check_evaluations()
        self._check_selection()
        self._check_order()
        if not 0 <= self.seed <= _MOST_SEED:
            raise ValueError(f"seed: is {self.seed}; give 0 to 2^63 - 1")
        if self.num_partitions < 0:
            raise ValueError(f"num_partitions: is {self.num_partitions}; give 0 (automatic) or more")
        for name, key in (("text_field", self.text_field), ("id_field", self.id_field), ("date_field", self.date_field)):
            if not key:
                raise ValueError(f"{name}: is empty; name the key that holds the {name.removesuffix('_field')}")
        if self.survivors == "best" and self.quality_labels is None:
            raise ValueError("survivors: best needs quality_labels, a path to learn from")
        check_overrides(self.rules, self.profile)
        self._check_judges()

    def _check_judges(self) -> None:
        """The settings of what is learnt from examples: each needs them, and a threshold or a share, not both."""
        for examples, *limits in (
            ("quality_labels", "quality_threshold", "quality_keep"),
            ("perplexity_reference", "max_perplexity", "perplexity_keep"),
        ):
            given = [key for key in limits if getattr(self, key) is not None]
            if given and getattr(self, examples) is None:
                raise ValueError(f"{given[0]}: needs {examples}, a path to learn from")
            if len(given) > 1:
                raise ValueError(f"{given[1]}: {given[0]} is given too; give one of them")
        if self.perplexity_reference is not None and self.max_perplexity is None and self.perplexity_keep is None:
            raise ValueError("perplexity_reference: needs max_perplexity, or perplexity_keep such as 0.99")
        if self.max_perplexity is not None and not self.max_perplexity > 1.0:
            raise ValueError(f"max_perplexity: is {self.max_perplexity}; give more than 1")
        for key in ("min_language_score", "quality_threshold", "quality_keep", "perplexity_keep"):
            value = getattr(self, key)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{key}: is {value}; give a share from 0 to 1")

    def _bounds(self) -> tuple[tuple[str, int], ...]:
        """Settings that bound work and memory: each at least 1."""
        names = ("bucket_limit", "paragraph_documents", "task_bytes", "driver_bytes")
        return tuple((name, getattr(self, name)) for name in names)

    @property
    def selects(self) -> bool:
        """Whether only some of the documents are kept, to fit a budget."""
        return any(budget is not None for _, budget in self._budgets())

    @property
    def marks(self) -> bool:
        """Whether documents are selected, or put in order."""
        return self.selects or self.order != "none"

    @property
    def chosen_by(self) -> str:
        """What selection goes by: importance, loss, margin or chance."""
        return "importance" if self.select_target else self.select_by if self.select_model else "chance"

    def _budgets(self) -> tuple[tuple[str, float | None], ...]:
        return tuple((name, getattr(self, name)) for name in ("select_documents", "select_share", "select_chars", "select_tokens"))

    def _check_evaluations(self) -> None:
        if not 2 <= self.decontaminate_ngram <= _MOST_WORDS:
            raise ValueError(f"decontaminate_ngram: is {self.decontaminate_ngram}; give 2 to {_MOST_WORDS:,} words")
        if not 1 <= self.decontaminate_shortest <= self.decontaminate_ngram:
            raise ValueError(
                f"decontaminate_shortest: is {self.decontaminate_shortest}; give 1 to {self.decontaminate_ngram} (decontaminate_ngram)"
            )
        if not self.decontaminate:
            for name in ("decontaminate_cut", "decontaminate_common", "decontaminate_fields"):
                if getattr(self, name):
                    raise ValueError(f"{name}: needs decontaminate, the evaluation sets to keep out")
        if self.decontaminate_common < 0:
            raise ValueError(f"decontaminate_common: is {self.decontaminate_common}; give 0 (ignore none) or more")

    def _check_selection(self) -> None:
        given = [(name, value) for name, value in self._budgets() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{given[1][0]}: {given[0][0]} is given too; give one budget")
        for name, value in given:
            if not value > 0 or (name == "select_share" and value > 1):
                raise ValueError(f"{name}: is {value}; give {'a share above 0 and up to 1' if name == 'select_share' else 'at least 1'}")
        if self.select_target and self.select_model:
            raise ValueError("select_model: select_target is given too; choose by one of them")
        if not given:
            for name in ("select_target", "select_model"):
                if getattr(self, name):
                    raise ValueError(f"{name}: needs a budget; give select_documents, select_share, select_chars or select_tokens")
        if self.select_tokens and not (self.select_tokenizer or self.select_model):
            raise ValueError("select_tokens: needs select_tokenizer, the folder of the tokenizer to count by")
        if not 1 <= self.select_pool < math.inf:
            raise ValueError(f"select_pool: is {self.select_pool}; give 1 (no more than the budget) or more")
        if self.select_pool > 1 and not given:
            raise ValueError("select_pool: needs a budget; give select_documents, select_share, select_chars or select_tokens")
        if self.model_tokens < 2:
            raise ValueError(f"model_tokens: is {self.model_tokens}; give at least 2")

    def _check_order(self) -> None:
        if self.order == "loss" and not (self.order_model or self.select_model):
            raise ValueError("order_model: is needed for order = loss; name the folder of a model")
        if self.order == "none" and (self.order_reversed or self.order_model):
            name = "order_reversed" if self.order_reversed else "order_model"
            raise ValueError(f"{name}: needs an order; give order = length, rarity or loss")
        for name in ("order_start", "order_full"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: is {getattr(self, name)}; give a share above 0 and up to 1")
