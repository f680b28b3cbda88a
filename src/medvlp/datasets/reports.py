"""Options and text rules that corpora with reports share."""

from pathlib import Path
from typing import ClassVar

from medvlp.datasets.base import OnError
from medvlp.datasets.corpus import Corpus
from medvlp.errors import DataError, check_choice
from medvlp.io.paths import folder_path
from medvlp.io.reports import CLEANINGS, POLICIES, Sections, count_tokens, report_text


class ReportCorpus(Corpus):
    """A corpus with reports; ``report_policy``, one of :attr:`policies`, selects the sections of the text."""

    policies: ClassVar[tuple[str, ...]] = POLICIES
    either: ClassVar[tuple[str, ...]] = ("both",)
    """Policies for which a report without text is said to lack impression and findings."""

    def __init__(
        self,
        root: str | Path,
        on_error: OnError,
        report_policy: str,
        cleaning: str,
        min_tokens: int,
        reports_root: str | Path | None = None,
    ) -> None:
        super().__init__(root, on_error=on_error)
        check_choice("report_policy", report_policy, self.policies)
        check_choice("cleaning", cleaning, CLEANINGS)
        self.report_policy = report_policy
        self.cleaning = cleaning
        self.min_tokens = min_tokens
        self.reports_root = folder_path(reports_root) if reports_root is not None else None

    def require_reports(self, remedy: str) -> None:
        """Raise a :class:`DataError` if ``reports_root`` is given and does not exist."""
        if self.reports_root is not None and not self.reports_root.is_dir():
            raise DataError(f"the reports folder {self.reports_root} does not exist; {remedy}")

    def text_of(self, sections: Sections) -> tuple[str, str]:
        """Return the text of a report and "", or "" and why it is unusable."""
        text = report_text(sections, self.report_policy, self.cleaning)
        if not text:
            sought = "impression or findings" if self.report_policy in self.either else f"{self.report_policy} text"
            return "", f"no {sought}"
        return (text, "") if count_tokens(text) >= self.min_tokens else ("", f"fewer than {self.min_tokens} tokens")
