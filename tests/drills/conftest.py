"""The study's fixtures, for the drills."""

from tests.study.conftest import cluster, workplace

__all__ = ["cluster", "workplace"]
