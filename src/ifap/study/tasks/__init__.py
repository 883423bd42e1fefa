"""Tasks: one file an entry."""

from __future__ import annotations

from ifap.study.tasks.base import TASKS, Task

__all__ = ["TASKS", "Task"]
