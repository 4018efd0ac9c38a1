"""What to say when an optional package is missing."""

from importlib.util import find_spec

from nanovllm.utils.checks import check


def require(extra: str, what: str, *packages: str) -> None:
    """Raise ValueError, with the command that installs them, unless all packages can be imported."""
    missing = [package for package in packages if find_spec(package) is None]
    check(not missing, what, f"needs {', '.join(missing)}", "used where that is installed",
          f"pip install 'nano-vllm-course[{extra}]'")
