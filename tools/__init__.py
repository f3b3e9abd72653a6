"""The project's own checks and set-up; standard library only."""
