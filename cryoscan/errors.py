"""The errors a user can act on: each says what was expected, what came, and what to do."""

from pathlib import Path


class CryoscanError(ValueError):
    """A mistake in the input that the user can mend.

    Parameters
    ----------
    expected : str
        What was expected, as the start of a sentence.
    got : str
        What came instead.
    hint : str
        What to do about it, as a sentence.
    """

    def __init__(self, expected: str, *, got: str, hint: str) -> None:
        super().__init__(f"{expected}; got {got}. {hint}")
        self.expected, self.got, self.hint = expected, got, hint

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders; the three parts must survive."""
        return _rebuild, (type(self), self.expected, self.got, self.hint)


class FormatError(CryoscanError):
    """A file is not what its name or its reader says, or is damaged."""


class GeometryError(CryoscanError):
    """Voxel sizes, shapes, boxes or coordinates do not fit each other."""


class ConfigError(CryoscanError):
    """A configuration holds an unknown key or an impossible value."""


class MismatchError(CryoscanError):
    """Two things that must come from the same source do not."""


class ResourceError(CryoscanError):
    """The work does not fit the memory, the disk or the permissions at hand."""


class MissingFileError(CryoscanError, FileNotFoundError):
    """A file or folder is not there."""


class ExistingOutputError(CryoscanError, FileExistsError):
    """An output is there already and would be lost."""


def require_file(path: Path, *, what: str = "a file") -> Path:
    """Return `path` if it is a readable file, else say clearly what it is."""
    if path.is_dir():
        raise FormatError(f"expected {what}", got=f"the folder {path}", hint="Give the path of a file.")
    if not path.exists():
        raise MissingFileError(f"expected {what}", got=f"no such file: {path}", hint="Check the spelling of the path.")
    return path


def refuse_existing(path: Path, *, overwrite: bool) -> Path:
    """Return `path` if it may be written, else say how to allow it."""
    if path.exists() and not overwrite:
        raise ExistingOutputError(
            "expected an output that does not exist yet",
            got=str(path),
            hint="Choose another name, or pass --overwrite (overwrite=True) to replace it.",
        )
    if not path.parent.is_dir():
        raise MissingFileError(
            "expected an existing folder for the output",
            got=str(path.parent),
            hint="Create the folder, or check the spelling.",
        )
    return path


def _rebuild(cls: type[CryoscanError], expected: str, got: str, hint: str) -> CryoscanError:
    return cls(expected, got=got, hint=hint)
