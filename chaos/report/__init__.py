"""What a run leaves behind: a folder with the verdict, the timeline, the logs and the file that plays it again."""

from __future__ import annotations

from chaos.report.folder import folder_name, write
from chaos.report.verdict import headline, run_json

__all__ = ["folder_name", "headline", "run_json", "write"]
