"""What do all addresses share, and how is one refused?"""

import re
from typing import NoReturn

ESCAPED = "write %25 for %, %23 for #, %2F for /, %3F for ?, %40 for @ in a user or password"
"""What to do about a character that has a meaning in a URL."""


class BadAddress(ValueError):  # noqa: N818 -- it names the problem, as UnusableSetup does
    """An address cannot be used. The message is one line that says what to do. It repeats nothing of the address."""


def refuse(variable: str, problem: str) -> NoReturn:
    """Raise BadAddress. The error that led here is left out, because it may repeat a password."""
    raise BadAddress(f"{variable} is not a valid address: {problem}.") from None


def require_readable(text: str, variable: str) -> str:
    """Return an address without the blanks and line ends around it.

    Args:
        text: The address.
        variable: The setting that it comes from, for the error message.

    Raises:
        BadAddress: It is in quotation marks, or holds a character that a URL must escape.
    """
    text = text.strip()
    if text[:1] in {'"', "'"} or text[-1:] in {'"', "'"}:
        refuse(variable, "it is in quotation marks: remove them")
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        refuse(variable, "it holds a blank or a line end: remove it, or write %20 for a blank in a password")
    if re.search("%(?![0-9a-fA-F]{2})", text):
        refuse(variable, f"it holds a % that escapes nothing: {ESCAPED}")
    return text
