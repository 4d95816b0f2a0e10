"""How files come into the test hub: preupload, LFS objects whole or in parts, and the commit that names them."""

from __future__ import annotations

import base64
import json
import math
import secrets
from typing import Any

from tests.fake_hub_requests import Access, Answer, Asked, Upload
from tests.fake_hub_store import Change, Refusal, Repo, is_large


class PushRoutes(Access):
    """The steps of a push, in their order."""

    def _preupload(self, asked: Asked) -> Answer:
        """Which files are large ones, and what is there already under their names. No ``.gitignore`` is heeded."""
        repo = self.own(asked)
        there = repo.at(asked.parts["revision"]).files
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs"
                if is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
                else "regular",
                "shouldIgnore": False,
                "oid": there[file["path"]].key if file["path"] in there else None,
            }
            for file in asked.data["files"]
        ]
        return Answer({"files": files, "commitOid": repo.at(asked.parts["revision"]).sha})

    def _lfs_batch(self, asked: Asked) -> Answer:
        """Where each object is to be sent (git-lfs/docs/api/batch.md); nothing is asked of one that is there."""
        repo, data = self.own(asked), asked.data
        parts = "multipart" in data.get("transfers", [])
        objects = [
            {"oid": one["oid"], "size": one["size"]}
            | ({} if one["oid"] in repo.content else {"actions": self._actions(repo, one, parts)})
            for one in data["objects"]
        ]
        return Answer({"transfer": "multipart" if parts else "basic", "objects": objects})

    def _actions(self, repo: Repo, wanted: dict[str, Any], parts: bool) -> dict[str, Any]:
        key = secrets.token_hex(16)
        self.uploads[key] = Upload(repo, wanted["oid"])
        upload: dict[str, Any] = {"href": f"{self.url}/lfs/{key}"}
        if parts and wanted["size"] > self.part_bytes:
            count = math.ceil(wanted["size"] / self.part_bytes)
            numbered = {str(part): f"{upload['href']}/{part}" for part in range(1, count + 1)}
            upload["header"] = {"chunk_size": str(self.part_bytes), **numbered}
        return {"upload": upload, "verify": {"href": f"{self.url}/{repo.path}.git/info/lfs/objects/verify"}}

    def _upload(self, asked: Asked) -> Upload:
        upload = self.uploads.get(asked.parts["key"])
        if upload is None:
            raise Refusal(403, "this link for an upload is not, or no longer, good")
        return upload

    def _lfs_upload(self, asked: Asked) -> Answer:
        upload = self._upload(asked)
        if "part" in asked.parts:
            upload.parts[int(asked.parts["part"])] = asked.body
            return Answer(b"", headers={"ETag": f'"part-{asked.parts["part"]}"'})
        upload.repo.store(upload.sha256, asked.body)
        return Answer(b"")

    def _lfs_complete(self, asked: Asked) -> Answer:
        upload = self._upload(asked)
        named = [part["partNumber"] for part in asked.data["parts"]]
        if named != sorted(upload.parts):
            raise Refusal(400, f"parts {named} are named, but {sorted(upload.parts)} have arrived")
        upload.repo.store(upload.sha256, b"".join(upload.parts[number] for number in named))
        return Answer({"success": True})

    def _lfs_verify(self, asked: Asked) -> Answer:
        found = self.own(asked).content.get(asked.data["oid"])
        if found is None or len(found) != asked.data["size"]:
            raise Refusal(404, f"no object {asked.data['oid']} of {asked.data['size']} bytes")
        return Answer({})

    def _commit(self, asked: Asked) -> Answer:
        repo = self.own(asked)
        if "create_pr" in asked.query:
            raise Refusal(400, "the test hub has no pull requests")
        commit = repo.apply(asked.parts["revision"], _change(asked.body))
        url = f"{self.url}/{repo.path}/commit/{commit.sha}"
        return Answer({"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})


def _change(lines: bytes) -> Change:
    """A commit's ndjson: a header, then a line for each file.

    Raises:
        Refusal: 400, a line that is none of these.
    """
    change = Change()
    for line in lines.splitlines():
        try:
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    change.title, change.message = value["summary"], value["description"]
                    change.parent = value.get("parentCommit")
                case "file":
                    change.added[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    change.large[value["path"]] = value["oid"]
                case "deletedFile":
                    change.deleted.append(value["path"])
                case "deletedFolder":
                    change.deleted_folders.append(value["path"])
                case other:
                    raise Refusal(400, f"a commit has no line of the kind {other!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(400, f"a line of the commit cannot be read: {line[:80]!r}: {error!r}") from None
    return change
