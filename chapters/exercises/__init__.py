"""Exercises that check themselves: one module a chapter, one `check_...` function an exercise."""
