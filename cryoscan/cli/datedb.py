"""`cryoscan datedb …`: build, change, look into and check databases."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryoscan.cli import options as o
from cryoscan.cli import show

if TYPE_CHECKING:
    from cryoscan.datedb import DateDB
    from cryoscan.datedb.build import DomainEmbedded

app = typer.Typer(help="Build, change, look into and check databases of domains.", no_args_is_help=True)

_Structures = Annotated[
    list[Path], typer.Argument(metavar="STRUCTURE…", help="PDB or mmCIF files.", show_default=False)
]
_Table = Annotated[
    Path | None,
    typer.Option(
        "--labels", metavar="TSV", help="Table with id, type, and optionally ranges, file …", show_default=False
    ),
]
_DB = Annotated[Path, typer.Argument(metavar="DB", help="DateDB folder.", show_default=False)]
_AnyDB = Annotated[
    Path | None, typer.Argument(metavar="[DB]", help="DateDB folder; the one that ships otherwise.", show_default=False)
]


@app.command("build")
def build(
    path: Annotated[Path, typer.Argument(metavar="OUT.datedb", help="Folder to write.", show_default=False)],
    structures: Annotated[
        list[Path] | None, typer.Argument(metavar="[STRUCTURE…]", help="PDB or mmCIF files.", show_default=False)
    ] = None,
    labels: _Table = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FOLDER", help="Instead: a folder with structures/ and labels/.", show_default=False
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="YAML", help="Settings of the database.", show_default=False)
    ] = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Build a database of structures: simulate each domain, embed it, write it.

    Example: cryoscan datedb build ours.datedb a.cif b.pdb --labels domains.tsv
    """
    from cryoscan.datedb.config import DateDBConfig
    from cryoscan.datedb.own import build_from_files
    from cryoscan.errors import ConfigError
    from cryoscan.workflows import build_from_store

    settings = DateDBConfig() if config is None else DateDBConfig.read(config)
    if bool(structures) == (data is not None):
        raise ConfigError(
            "expected structure files or --data FOLDER",
            got="both" if structures else "neither",
            hint="Build from the folder first, then add files with `cryoscan datedb add`.",
        )
    if data is not None:
        events = build_from_store(data, path, config=settings, overwrite=overwrite)
    else:
        events = build_from_files(structures or [], path, labels=labels, config=settings, overwrite=overwrite)
    _finish(events, path, as_json=as_json)


@app.command("add")
def add(
    path: _DB,
    structures: _Structures,
    labels: _Table = None,
    empty: Annotated[bool, typer.Option("--empty", help="A new DB starts empty, not from the shipped one.")] = False,
    as_json: o.Json = False,
) -> None:
    """Add structures to a database; one that does not exist yet starts as a copy of the shipped one.

    Example: cryoscan datedb add ours.datedb new.cif
    """
    from cryoscan.datedb import open_datedb
    from cryoscan.datedb.config import DateDBConfig
    from cryoscan.datedb.own import add_structures, build_from_files
    from cryoscan.errors import refuse_existing

    if path.exists():
        events = add_structures(open_datedb(path), structures, path, labels=labels)
    elif empty:
        show.note(f"{path} is new and starts empty.")
        events = build_from_files(structures, path, labels=labels, config=DateDBConfig())
    else:
        refuse_existing(path, overwrite=False)
        shipped = open_datedb(None)
        show.note(f"{path} is new: it starts as a copy of the shipped database ({len(shipped):,} entries).")
        events = add_structures(shipped, structures, path, labels=labels)
    _finish(events, path, as_json=as_json)


@app.command("remove")
def remove(
    path: _DB,
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Ids of entries.", show_default=False)],
    as_json: o.Json = False,
) -> None:
    """Remove entries from a database.

    Example: cryoscan datedb remove ours.datedb my1 my2
    """
    from cryoscan.datedb import open_datedb
    from cryoscan.datedb.own import stored_dtype

    db = open_datedb(path)
    left = db.without_entries(ids).write(path, overwrite=True, dtype=stored_dtype(db))
    if as_json:
        show.print_json({"path": str(path), "removed": sorted(set(ids)), "entries": len(left)})
    else:
        show.line(f"{path}: {len(db) - len(left)} removed, {len(left):,} entries left")


@app.command("info")
def info(
    path: _AnyDB = None,
    entries: Annotated[bool, typer.Option("--entries", help="List every entry.")] = False,
    as_json: o.Json = False,
) -> None:
    """Say what a database holds and what wrote it.

    Example: cryoscan datedb info ours.datedb --entries
    """
    from dataclasses import asdict

    from cryoscan.datedb import open_datedb

    db = open_datedb(path)
    about = {"path": str(db.path), **about_datedb(db)}
    if as_json:
        listed = {"entry_list": [asdict(entry) for entry in db.entries]} if entries else {}
        show.print_json({**about, **listed})
        return
    show.facts((key.replace("_", " "), value) for key, value in about.items() if not isinstance(value, dict))
    show.facts(
        (f"  {scheme}", f"{counts['entries']:,} entries of {counts['types']:,} types")
        for scheme, counts in about["schemes"].items()
    )
    if entries:
        rows = ((e.id, e.scheme, e.type, db.name(e.scheme, e.type), e.pdb, e.ranges, e.length) for e in db.entries)
        show.table(("id", "scheme", "type", "name", "PDB", "residues", "length"), rows)


@app.command("search")
def search(
    path: _DB,
    queries: Annotated[
        list[Path], typer.Argument(metavar="STRUCTURE|VOLUME…", help="What to look for.", show_default=False)
    ],
    top: o.Top = 10,
    voxel_size: o.VoxelSize = None,
    contrast: o.ContrastOption = o.Contrast.bright,
    resolution: o.Resolution = None,
    as_json: o.Json = False,
) -> None:
    """Find the entries most similar to structures or whole volumes.

    Example: cryoscan datedb search ours.datedb 1abc.cif --top 5
    """
    from cryoscan.cli.answers import print_candidates
    from cryoscan.cli.inputs import search_query
    from cryoscan.datedb import open_datedb

    db = open_datedb(path)
    answers = []
    for query in queries:
        found = search_query(db, query, top=top, voxel_size=voxel_size, contrast=contrast, resolution=resolution)
        answers.append({"query": str(query), "candidates": [candidate.to_json() for candidate in found]})
        if not as_json:
            show.line(f"{query}")
            print_candidates(found)
    if as_json:
        show.print_json({"queries": answers})


@app.command("verify")
def verify(path: _AnyDB = None, as_json: o.Json = False) -> None:
    """Check a database: sound files, unit vectors, and every entry finds itself first; exit code 1 if not.

    Example: cryoscan datedb verify ours.datedb
    """
    from cryoscan.datedb import open_datedb

    db = open_datedb(path)
    problems = db.verify()
    if as_json:
        show.print_json({"path": str(db.path), "entries": len(db), "problems": problems})
    else:
        for problem in problems:
            show.line(problem)
        show.line(f"{db.path}: {len(db):,} entries, {'no' if not problems else len(problems)} problems")
    raise typer.Exit(1 if problems else 0)


def about_datedb(db: "DateDB") -> dict[str, Any]:
    """A database in numbers, JSON-able."""
    schemes: dict[str, dict[str, int]] = {}
    for name in sorted({entry.scheme for entry in db.entries}):
        mine = [entry for entry in db.entries if entry.scheme == name]
        schemes[name] = {"entries": len(mine), "types": len({entry.type for entry in mine})}
    return {
        "entries": len(db),
        "types": len(db.types),
        "vectors": len(next(iter(db.banks.values()))),
        "resolutions_A": ", ".join(f"{resolution:g}" for resolution in db.banks),
        "embedder": f"{db.embedder.get('kind')}, {db.embedder.get('dim')} numbers, {db.embedder.get('voxel_size_A')} Å",
        "entries_embedded_by": db.embedder.get("entries", db.embedder.get("kind")),
        "shapes": "none" if db.shapes is None else f"{len(db.shapes):,}, for a closer look",
        "embedder_fingerprint": db.embedder["fingerprint"],
        "made": f"{db.provenance.time} by {db.provenance.command}, cryoscan {db.provenance.version}",
        "schemes": schemes,
    }


def _finish(events: "Iterable[DomainEmbedded]", path: Path, *, as_json: bool) -> None:
    """Show progress, then say what is in the database and what is not."""
    last = show.to_the_end(events, "domains embedded")
    assert last.result is not None
    skipped = [{"id": id_, "reason": why} for id_, why in last.skipped]
    show.warn(f"{item['id']} is not in the database: {item['reason']}" for item in skipped)
    if as_json:
        about = about_datedb(last.result)
        show.print_json({"path": str(path), **about, "added": last.done - len(skipped), "skipped": skipped})
    else:
        show.line(f"{path}: {last.done - len(skipped)} domains embedded, {len(last.result):,} entries")
