"""The numerics: torch and the standard library only. Start reading at ``assembly.py``."""
