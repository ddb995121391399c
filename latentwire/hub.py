"""Folders of the Hugging Face hub, from the network or its local cache."""

from collections.abc import Sequence
from pathlib import Path

from latentwire.errors import UserError


def download(repo_id: str, revision: str | None, files: Sequence[str]) -> Path:
    """The local folder of a repository at a revision, named after its commit.

    Args:
        repo_id: `owner/name`.
        revision: commit, tag or branch; none is the main branch.
        files: the files to fetch, of which those that are there come.

    Raises:
        UserError: if the repository cannot be reached and is not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(files)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        at = f" --revision {revision}" if revision else ""
        raise UserError(
            f"cannot reach {repo_id} at revision {revision or 'main'!r} on the hub: {error}\n"
            "Online, check the names, and for gated repositories accept the licence and run "
            f"`hf auth login`; offline, run `hf download {repo_id}{at}` beforehand, or give the "
            "path of a folder"
        ) from error
