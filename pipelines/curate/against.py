"""Earlier corpora that a new batch is compared with: their documents stay, and only those that might be alike are read again.

Promise: a corpus takes part by its signatures, so what is kept of the new batch is what the rule gives when the old documents
come first; nothing of the old corpus is written again. Price: its signatures are read (some 200 bytes a document), and the row
groups that hold candidates; opening it checks its files against its manifest, which reads them once.
"""

from __future__ import annotations

from collections.abc import Collection

from cluster.artifact import Artifact, open_artifact
from pipelines.curate.bundle import Piece
from pipelines.curate.config import CurateConfig
from pipelines.curate.piece import count_rows
from pipelines.curate.signature import COMPARABLE_SETTINGS, SIGNATURE_FORM
from pipelines.curate.sources import real_folder

__all__ = ["earlier", "pieces_of"]


def earlier(config: CurateConfig) -> list[Artifact]:
    """The corpora of `against`, opened.

    Raises ValueError for a folder that is not a corpus, one whose signatures are not made as this run's, and for the output itself: it
    would be replaced by what it lacks, which is nothing.
    """
    for folder in config.against:
        if real_folder(folder) == real_folder(config.output):
            raise ValueError(f"against: {folder} is the output, which would be replaced; give another --output")
    corpora = [open_artifact(folder, made_by="curate") for folder in config.against]
    for corpus in corpora:
        _refuse_if_incomparable(corpus, config)
    return corpora


def pieces_of(corpus: Artifact) -> list[Piece]:
    """The files of a corpus as pieces, in order of their names."""
    names = [name.removeprefix("kept/") for name in sorted(corpus.manifest.files) if name.startswith("kept/")]
    chars = corpus.manifest.metrics["bytes_kept"] / max(corpus.manifest.counts["kept"], 1)
    found = []
    for name in names:
        signatures = f"{corpus.uri}/signatures/{name}"
        rows = count_rows([signatures])
        found.append(Piece(f"{corpus.uri}/kept/{name}", signatures, rows, round(rows * chars)))
    return found


def _refuse_if_incomparable(corpus: Artifact, config: CurateConfig) -> None:
    made = corpus.manifest.config
    if not _has_signatures(corpus.manifest.files):
        raise ValueError(f"against: {corpus.uri} has no signatures (an earlier Sterna made it); curate its input again")
    if corpus.manifest.metrics.get("signature_form") != SIGNATURE_FORM:
        raise ValueError(f"against: {corpus.uri} has signatures of another form (another Sterna made it); curate its input again")
    for name in COMPARABLE_SETTINGS:
        if made[name] != getattr(config, name):
            raise ValueError(f"against: {corpus.uri} was curated with {name} {made[name]}, not {getattr(config, name)}; give the same")


def _has_signatures(files: Collection[str]) -> bool:
    return all(name.replace("kept/", "signatures/", 1) in files for name in files if name.startswith("kept/"))
