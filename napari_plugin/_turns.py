"""Work that only the window's thread can do, in pieces: one per turn of the event loop, and the window answers between.

napari takes a third of a second to add a layer, and no other process can do that for it. Four at once would be felt.
"""

from collections.abc import Callable, Iterator


class Turns:
    """Pieces of work that wait for their turn; the oldest work is finished first.

    Parameters
    ----------
    complain : function
        Told what goes wrong in a piece; the rest of that work is dropped.
    """

    def __init__(self, complain: Callable[[Exception], None]) -> None:
        self._complain = complain
        self._waiting: dict[str, Iterator[None]] = {}

    @property
    def busy(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    def take(self, kind: str, pieces: Iterator[None]) -> None:
        """Do something piece by piece, from the next turn on; what is left of earlier work of its kind is dropped.

        Parameters
        ----------
        kind : str
        pieces : iterator
            Does a piece each time that it is asked for the next.
        """
        self.drop(kind)
        self._waiting[kind] = pieces

    def drop(self, kind: str) -> None:
        """Leave the rest of some work undone."""
        self._waiting.pop(kind, None)

    def clear(self) -> None:
        """Leave everything undone."""
        self._waiting.clear()

    def step(self) -> None:
        """Do one piece."""
        if not self._waiting:
            return
        kind, pieces = next(iter(self._waiting.items()))
        try:
            next(pieces)
        except StopIteration:
            done = True
        except Exception as error:  # whatever goes wrong is for the user to know
            self._complain(error)
            done = True
        else:
            done = False
        if done and self._waiting.get(kind) is pieces:  # it may have been replaced by what the piece did
            del self._waiting[kind]
