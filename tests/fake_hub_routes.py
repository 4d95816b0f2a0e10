"""What the test hub answers on each route, told from `huggingface_hub` 2.4's source and requests."""

from __future__ import annotations

from typing import Any

import yaml

from tests.fake_hub_files import FileRoutes, blob_facts
from tests.fake_hub_push import PushRoutes
from tests.fake_hub_requests import Answer, Asked
from tests.fake_hub_store import Refusal, Repo


class Routes(FileRoutes, PushRoutes):
    """Accounts, repositories, tags and branches, beside what the base classes serve; for one thread at a time."""

    def answer(self, asked: Asked) -> Answer:
        """What the Hub answers.

        Raises:
            Refusal: an error of the Hub.
        """
        if asked.route == "unknown":
            raise Refusal(404, "the test hub has no such route")
        answer: Answer = getattr(self, f"_{asked.route}")(asked)
        return answer

    # -- accounts and repositories

    def _whoami(self, asked: Asked) -> Answer:
        if not asked.authorized:
            raise Refusal(401, "Invalid username or password.")
        token = {"displayName": "test", "role": "write"}
        return Answer({"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": token}})

    def _create(self, asked: Asked) -> Answer:
        data = asked.data
        kind, name = data.get("type", "model"), f"{data.get('organization') or self.user}/{data['name']}"
        self.may_write(asked, name)
        url = {"url": f"{self.url}/{Repo(kind, name, False).path}"}
        if (kind, name) in self.repos:
            return Answer({"error": f"You already created this {kind} repo: {name}", **url}, 409)
        self.repos[kind, name] = Repo(kind, name, data.get("visibility") == "private")
        return Answer(url)

    def _validate_yaml(self, asked: Asked) -> Answer:
        try:
            card = _front_matter(asked.data["content"])
        except yaml.YAMLError as error:
            return Answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
        warnings = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
        return Answer({"errors": [], "warnings": warnings})

    def _info(self, asked: Asked) -> Answer:
        repo, commit = self.at(asked)
        siblings = [
            {"rfilename": path} | (blob_facts(blob) if asked.query.get("blobs") else {})
            for path, blob in sorted(commit.files.items())
        ]
        readme = commit.files.get("README.md")
        facts = {
            "id": repo.name,
            "author": repo.name.split("/")[0],
            "sha": commit.sha,
            "lastModified": commit.date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
            "cardData": _front_matter(repo.content[readme.key].decode()) if readme else {},
        }
        return Answer(facts)

    def _refs(self, asked: Asked) -> Answer:
        repo = self.repo(asked)
        groups = {
            group: [{"name": name, "ref": f"refs/{ref}/{name}", "targetCommit": sha} for name, sha in names.items()]
            for group, ref, names in (("branches", "heads", repo.branches), ("tags", "tags", repo.tags))
        }
        return Answer({**groups, "converts": [], "pullRequests": []})

    def _commits(self, asked: Asked) -> Answer:
        repo, commit = self.at(asked)
        found = [commit]
        while (parent := found[-1].parent) is not None:
            found.append(repo.commits[parent])
        authors = [{"user": self.user}]
        return Answer(
            [
                {"id": one.sha, "authors": authors, "date": one.date, "title": one.title, "message": one.message}
                for one in found
            ]
        )

    # -- tags and branches

    def _tag(self, asked: Asked) -> Answer:
        repo, name = self.own(asked), asked.data["tag"]
        sha = repo.at(asked.parts["revision"]).sha
        if name in repo.tags:
            raise Refusal(409, f"Tag reference exists already: {name}")
        repo.tags[name] = sha
        return Answer({})

    def _delete_tag(self, asked: Asked) -> Answer:
        if self.own(asked).tags.pop(asked.parts["revision"], None) is None:
            raise Refusal(404, f"Invalid rev id: {asked.parts['revision']}", "RevisionNotFound")
        return Answer({})

    def _branch(self, asked: Asked) -> Answer:
        repo, name = self.own(asked), asked.parts["revision"]
        if name in repo.branches:
            raise Refusal(409, f"Reference already exists: {name}")
        repo.branches[name] = repo.at(asked.data.get("startingPoint", "main")).sha
        return Answer({})

    def _delete_branch(self, asked: Asked) -> Answer:
        repo, name = self.own(asked), asked.parts["revision"]
        if name == "main":
            raise Refusal(403, "Cannot delete refs/heads/main: it is protected")
        if repo.branches.pop(name, None) is None:
            raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return Answer({})


def _front_matter(card: str) -> dict[str, Any]:
    """The YAML between the first two lines of dashes of a card."""
    parts = card.split("---\n", 2)
    return yaml.safe_load(parts[1]) or {} if len(parts) == 3 and not parts[0] else {}
