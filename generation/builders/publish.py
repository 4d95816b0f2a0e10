"""A built directory on the Hub: one commit, then a tag that is never moved."""

import json
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from ..errors import PublishError


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
    hub = HfApi()
    try:
        hub.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if tag in {ref.name for ref in hub.list_repo_refs(repo_id, repo_type="dataset").tags}:
            raise PublishError(
                f"{repo_id} already has a tag {tag}, and a tag is never moved: build with a higher --version"
            )
        commit = hub.upload_folder(
            repo_id=repo_id,
            folder_path=directory,
            repo_type="dataset",
            commit_message=f"Version {tag[1:]}",
            delete_patterns="*",
        )
        hub.create_tag(repo_id, tag=tag, revision=commit.oid, repo_type="dataset")
    except HfHubHTTPError as error:
        raise PublishError(f"the Hub refused {repo_id}: {error}; give the same command again to go on") from error
    return tag
