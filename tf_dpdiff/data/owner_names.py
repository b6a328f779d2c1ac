"""Whether a text names one person: what programs write where nobody is named, and two spellings of one name.

The guarantee holds for an owner with all of their images. Where the images of several people stand under one name, each
of these people is only a part of what is protected as a whole; where those of one person stand under two names, each
half is protected and the whole is not. Nothing here guesses who is meant: a name in doubt is refused, since only those
who keep the data can tell.
"""

import collections
from collections.abc import Sequence
import re
import unicodedata

# What pandas, NumPy, R, Excel, SQL and JSON write, and words for an owner who is not known: to a person it is plain
# that 'unknown' names nobody, so the guarantee must not be one for somebody of that name. Without signs and in lower
# case: 'N/A', '<NA>' and 'n.a.' are 'na'.
_NOBODY = frozenset(
    (
        'nan',
        'none',
        'null',
        'nil',
        'na',
        'nat',
        'qnan',
        'snan',
        'nanind',
        'inf',
        'undefined',
        'unknown',
        'missing',
        'unspecified',
        'unassigned',
        'anonymous',
        'nobody',
        'notavailable',
        'notapplicable',
    )
)
# Without their signs, these would be other words.
_NOBODY_WITH_SIGNS = re.compile(r'\\n|-?1\.#(qnan|snan|ind|inf)|#n/an/a|#nv|#n/d|#.*[!?]')
_NOBODY_BEHIND_A_PREFIX = (*_NOBODY, '<na>', '-1')
_NUMBER = re.compile(r'(-?)0*([0-9]+)([.,]0*)?')
_ROUNDED = re.compile(r'[0-9]([.,][0-9]*)?e\+[0-9]+')
_EXACT_IN_A_FLOAT = 2**53
_PREFIX_SHARE = 0.1  # Of the names; below it, a name that begins with another's prefix is a coincidence.


def key(name: str) -> str:
    """Returns the form that all spellings of a name share.

    They may differ in white space, in characters that are not seen, in case, in how Unicode composes a letter, and in
    how a whole number is written: 7, 007 and 7.0.
    """
    folded = unicodedata.normalize('NFKC', unicodedata.normalize('NFKC', name).casefold())
    seen = ''.join(character for character in folded if not _is_unseen(character))
    number = _NUMBER.fullmatch(seen)
    return number.group(1) + number.group(2) if number else seen


def prefixes(keys: Sequence[str]) -> frozenset[str]:
    """Returns the word before a number in many names: 'patient' where there are 'Patient 12' and 'patient 13'.

    Args:
      keys: From `key`, of all names of the data, each once.
    """
    matches = [re.fullmatch(r'(.*?)([0-9]+([.,]0*)?)?', name, re.DOTALL) for name in keys]
    counts = collections.Counter(match.group(1) for match in matches if match and match.group(1) and match.group(2))
    return frozenset(prefix for prefix, count in counts.items() if count >= _PREFIX_SHARE * len(keys))


def is_nobody(name_key: str, numbered: frozenset[str]) -> bool:
    """Returns whether a name is a placeholder for a missing one.

    Args:
      name_key: From `key`.
      numbered: From `prefixes`: where there is a 'patient 12', 'patient nan' is nobody.
    """
    letters, bare = ''.join(filter(str.isalnum, name_key)), name_key.strip('\'"()[]{}<>')
    is_negative = bare.startswith('-') and _NUMBER.fullmatch(bare)
    if not letters or letters in _NOBODY or is_negative or _NOBODY_WITH_SIGNS.fullmatch(bare):
        return True
    return any(name_key.endswith(word) and name_key[: -len(word)] in numbered for word in _NOBODY_BEHIND_A_PREFIX)


def doubt(name: str) -> str | None:
    """Returns why a name may be that of several people, or of one who has another name as well, and what to do.

    Returns:
      Words that follow the name in a sentence, or None.
    """
    if name != name.strip() or _is_unseen(name[0]) or _is_unseen(name[-1]):
        return (
            "has white space or unseen characters at an end: strip all names, if those that become one are one person's"
        )
    seen = unicodedata.normalize('NFKC', name).casefold()
    number = _NUMBER.fullmatch(seen)
    if _ROUNDED.fullmatch(seen) or (number and number.group(3) and int(number.group(2)) >= _EXACT_IN_A_FLOAT):
        return (
            'is a rounded number, to which those of several people may be rounded: take the owners from where they '
            'are whole numbers or texts'
        )
    return None


def _is_unseen(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ('Cc', 'Cf')
