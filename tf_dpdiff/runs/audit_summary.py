"""What may be shown of an audit: where it read no private image, or images that say of themselves that they are public.

Apart from what an audit writes to non_private/, which stays.
"""

import json
import pathlib
from typing import Any

from tf_dpdiff import files
from tf_dpdiff import version
from tf_dpdiff.runs import folder

_KEYS = {'note', 'is_public', 'version', 'what', 'summary', 'settings', 'audit'}


def write(
    workdir: pathlib.Path, *, note: str, what: str, summary: str, settings: dict[str, Any], audit: dict[str, Any]
) -> None:
    """Writes the summary as JSON and as a line of text.

    Call it only of an audit that no private image was read for, or whose images are public.

    Args:
      workdir: The audit's folder.
      note: Why it may be shown.
      what: What was tested, in words.
      summary: The result in a sentence or two.
      settings: What it was tested with, plain JSON values.
      audit: The findings, plain JSON values.
    """
    fields = {
        'note': note,
        'is_public': True,
        'version': version.__version__,
        'what': what,
        'summary': summary,
        'settings': settings,
        'audit': audit,
    }
    files.write_text(workdir / folder.AUDIT_SUMMARY, json.dumps(fields, indent=2) + '\n')
    files.write_text(workdir / folder.AUDIT_SUMMARY_TEXT, f'{summary}\n')


def read(path: pathlib.Path) -> str:
    """Returns the summary of an audit as JSON; refuses what is none, what is not public, and what tells of faults.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: says what is wrong.
    """
    fields = files.read_json(path)
    if not isinstance(fields, dict) or set(fields) != _KEYS or not isinstance(fields['audit'], dict):
        raise ValueError(f'{path} is no {folder.AUDIT_SUMMARY} of bin/audit; nothing else of an audit may go out.')
    if fields['is_public'] is not True:
        raise ValueError(f'{path} does not say that it is public: nothing of such an audit may go out.')
    if fields['audit'].get('is_violation') is not False:
        raise ValueError(f'{path} tells of faults in the implementation or the accounting: do not release.')
    return json.dumps(fields, indent=2) + '\n'
