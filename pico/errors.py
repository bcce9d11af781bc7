"""The one exception for what a user can correct: it says what was wrong, where, and what to do."""

from functools import partial


class PicoError(Exception):
    """An error with its place (file, key, row) and its remedy, shown to the user without a traceback."""

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__("\n".join(filter(None, [what, where and f"  where: {where}", mend and f"  mend:  {mend}"])))

    def __reduce__(self) -> tuple:  # keyword-only arguments do not survive the default pickling between Ray processes
        return partial(PicoError, where=self.where, mend=self.mend), (self.what,)
