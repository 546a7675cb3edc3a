"""Whether a name that is no folder can be one of the hub's, and be asked for there, before a library tries for a minute."""

from __future__ import annotations

from pathlib import Path

from tutelage.errors import ConfigError

#: Seconds in which the hub must answer.
_PATIENCE = 10.0


def expect_hub(name: str, folder: Path) -> None:
    """Find out in one attempt, and in none for a path, that the hub can be reached for a name that is neither a folder nor in the cache.

    Args:
        name: a hub id, or what was meant for a folder.
        folder: beside what that folder was looked for.

    Raises:
        ConfigError: it is a path to no folder, or the hub cannot be reached; the folders that are there are named.
    """
    from huggingface_hub import constants, model_info, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if (folder / name).is_dir():
        return
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"there is no folder {name!r}{'' if Path(name).is_absolute() else _beside(folder)}, and no model of the hub can be called "
            "that (they are called name or owner/name); correct the path"
        ) from error
    if constants.HF_HUB_OFFLINE:
        return
    try:
        cached = any(
            isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "tokenizer_config.json")
        )
        if not cached:
            model_info(name, timeout=_PATIENCE)
    except HfHubHTTPError:
        return  # the hub has answered: what loads it says that better
    except Exception as error:  # whichever HTTP library the hub's client brings has errors of its own
        raise ConfigError(
            f"there is no folder {name!r}{_beside(folder)}, and the hub cannot be asked for a model of that name: "
            f"{error or type(error).__name__}; correct the name, or go online once to load it into the cache"
        ) from error


def _beside(folder: Path) -> str:
    there = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
    return f" beside the config (there {'are ' if there else 'is none'}{', '.join(there[:8])})"
