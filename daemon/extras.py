"""The optional parts of the package: recalcd[metrics], recalcd[otel]."""

from importlib.util import find_spec


def need_extra(extra: str, *modules: str) -> None:
    """Refuse a setting whose libraries are not installed. Raises ValueError, whose text is for people.

    Asked when the settings are read, since nothing else would tell before the first use.
    """
    if not all(_is_installed(each) for each in modules):
        raise ValueError(f"needs libraries that are not installed: pip install 'recalcd[{extra}]'")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent of it is missing
        return False
