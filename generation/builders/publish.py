"""A built directory on the Hub: one commit, then a tag that is never moved."""

import json
from pathlib import Path

from httpx2 import HTTPError  # what huggingface_hub raises; HfHubHTTPError is one
from huggingface_hub import HfApi, get_token
from huggingface_hub.utils.tqdm import disable_progress_bars

from .. import events
from ..errors import PublishError
from ..progress import progress


def check_token() -> None:
    """Looks for a token before any work is done for a push.

    Raises:
        PublishError: there is none.
    """
    if not get_token():
        raise PublishError("no token of the Hub: set $HF_TOKEN to one that may write (nothing was built yet)")


def publish(directory: Path, repo_id: str, private: bool = False) -> str:
    """Uploads a built directory and tags it with its version. The token is huggingface_hub's (``$HF_TOKEN``).

    Interrupted, the same call goes on: files that the Hub holds already are not sent again. The repository then holds
    the directory's files and no others; earlier versions stay under their tags.

    Args:
        directory: made by ``build``.
        repo_id: ``USER/NAME``.
        private: a repository that is made anew is private.

    Returns:
        The tag, ``v<version>``.

    Raises:
        PublishError: the tag exists already, or the Hub refuses.
    """
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    tag = f"v{manifest['built']['version']}"
    if events.on_stderr():
        disable_progress_bars()  # those of the bytes, which are no JSON
    hub = HfApi()
    try:
        hub.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if tag in {ref.name for ref in hub.list_repo_refs(repo_id, repo_type="dataset").tags}:
            raise PublishError(
                f"{repo_id} already has a tag {tag}, and a tag is never moved: build with a higher --version. (If an "
                "earlier call of this command made the tag, the data set is published.)"
            )
        with progress(f"publish {repo_id}", 1, 0, "commit") as bar:
            commit = hub.upload_folder(
                repo_id=repo_id,
                folder_path=directory,
                repo_type="dataset",
                commit_message=f"Version {tag[1:]}",
                delete_patterns="*",
            )
            bar.update()
        hub.create_tag(repo_id, tag=tag, revision=commit.oid, repo_type="dataset")
    except (HTTPError, RuntimeError, OSError) as error:  # RuntimeError: a file that did not go through
        raise PublishError(
            f"{repo_id} could not be published at {hub.endpoint}: {error.__cause__ or error}. Nothing is tagged; the "
            "same command goes on where it was"
        ) from error
    return tag
