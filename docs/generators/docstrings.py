"""What mkdocs is told of our docstrings, whose sections are not all those that it knows."""

import re

import griffe


class Sections(griffe.Extension):
    """Shows an `Example:` as code, and `Guarantee:` and `References:` as paragraphs."""

    def on_object(self, *, obj: griffe.Object, **unused) -> None:
        """Rewrites a docstring before it is parsed."""
        if obj.docstring:
            text = re.sub(r'^Example:$', 'Examples:', obj.docstring.value, flags=re.M)
            obj.docstring.value = re.sub(r'^(Guarantee|References):(?=\s)', r'**\1:**', text, flags=re.M)
