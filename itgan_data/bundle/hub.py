"""A folder's files to and from the Hugging Face Hub; the only module that talks to it.

The client is imported on first use. What goes wrong is a `HubError`: one line that says what to do.
"""

import errno
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"\w[\w.+/-]*")  # the client makes a path of it
_LOG_IN = "log in with `hf auth login` or pass token="


class HubError(RuntimeError):
    """The Hub, the network or the disk did not let a request through."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The files of one commit, in the client's cache or fetched into it. Made by `resolve`."""

    repo_id: str
    commit: str
    local_files_only: bool
    api: "HfApi"

    def fetch(self, name: str, *, max_bytes: int) -> Path:
        """The path of a file in the client's cache, where all files of a commit share a folder.

        What is cached makes no request; what is larger than `max_bytes` is not downloaded.

        Raises:
            HubError: the commit has no such file, it is too large, or it cannot be had.
        """
        with _explained(self.api, self.repo_id, self.commit, name):
            size = self.api.hf_hub_download(
                self.repo_id, name, revision=self.commit, local_files_only=self.local_files_only, dry_run=True
            ).file_size
            if size is None or size > max_bytes:
                raise HubError(f"{name} of {self.repo_id} has {size} bytes, expected at most {max_bytes}")
            return Path(
                self.api.hf_hub_download(
                    self.repo_id, name, revision=self.commit, local_files_only=self.local_files_only
                )
            )

    def fetch_if_any(self, name: str, *, max_bytes: int) -> Path | None:
        """As `fetch`; None where the commit has no such file, or where that cannot be asked."""
        from huggingface_hub import errors, try_to_load_from_cache

        known = try_to_load_from_cache(self.repo_id, name, revision=self.commit)
        if known is not None and not isinstance(known, str):
            return None  # the client keeps in mind that there is none
        try:
            return self.fetch(name, max_bytes=max_bytes)
        except HubError as error:
            if isinstance(error.__cause__, errors.EntryNotFoundError):
                return None
            raise


def resolve(
    repo_id: str,
    revision: str | None = None,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    local_files_only: bool = False,
) -> Snapshot:
    """The commit that a branch, tag or full commit id stands for now; without an answer, what it last stood for.

    Args:
        repo_id: "org/name".
        revision: by default the main branch. A full commit id makes no request.
        token: by default the one that the user has logged in with.
        endpoint: another Hub than the client's (HF_ENDPOINT).
        local_files_only: make no requests.

    Raises:
        HubError: no such repository or revision, no access, no connection.
    """
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise HubError(f"{revision!r} is not a revision; expected a branch, a tag or a full commit id")
    api = _client(token, endpoint)
    with _explained(api, repo_id, revision):
        commit = api.resolve_revision(repo_id, revision=revision, local_files_only=local_files_only).resolved
    if not _COMMIT.fullmatch(commit):
        raise HubError(f"{api.endpoint} resolves {repo_id} to {commit[:80]!r}, expected a commit id")
    return Snapshot(repo_id=repo_id, commit=commit, local_files_only=local_files_only, api=api)


def push_files(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    *,
    keep: Collection[str] = (),
    remove: re.Pattern[str] | None = None,
    message: str,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Bring a branch of a repository to hold these files, in one commit; returns its URL.

    The repository and the branch are made where there are none. Files that the branch has already are not sent; if
    it has all, there is no new commit.

    Args:
        repo_id: "org/name".
        files: name in the repository to content.
        keep: names of `files` that are not replaced where the branch has them.
        remove: names in the branch, not in `files`, that the commit removes.
        message: of the commit.
        private: of a new repository; an existing one must be private already.
        revision: the branch, by default the main one.
        token, endpoint: see `resolve`.

    Raises:
        HubError: no right to write, a public repository where a private one was asked for, another commit in the
            meantime, no connection.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = _client(token, endpoint)
    with _explained(api, repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        head = _head(api, repo_id, revision)
        if private and not head.private:
            raise HubError(f"{repo_id} exists and is public; make it private in its settings before pushing to it")
        there = {sibling.rfilename for sibling in head.siblings or ()}
        added = [name for name in files if not (name in keep and name in there)]
        removed = [name for name in sorted(there - files.keys()) if remove and remove.fullmatch(name)]
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, files[name]) for name in added),
                *(CommitOperationDelete(name) for name in removed),
            ],
            commit_message=message,
            revision=revision,
            parent_commit=head.sha,
        )
    return str(commit.commit_url)


def is_cached(path: Path) -> bool:
    """Whether a path lies in the client's cache, whose snapshots consist of links."""
    from huggingface_hub import constants

    return path.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).expanduser().resolve())


def _client(token: str | None, endpoint: str | None) -> "HfApi":
    from huggingface_hub import HfApi

    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise HubError(f"endpoint must be a URL such as https://huggingface.co, got {endpoint!r}")
    return HfApi(endpoint=endpoint, token=token, library_name="itgan_data")


def _head(api: "HfApi", repo_id: str, branch: str | None) -> "ModelInfo":
    """The last commit of a branch, which is made from the main one where it is not there."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return api.model_info(repo_id, revision=branch)
    except RevisionNotFoundError:
        if branch is None:
            raise
        api.create_branch(repo_id, branch=branch)
        return api.model_info(repo_id, revision=branch)


@contextmanager
def _explained(api: "HfApi", repo_id: str, revision: str | None, name: str | None = None) -> Iterator[None]:
    """Turn the errors of the client into a `HubError`."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx, or of httpx2 in 2.x

    try:
        yield
    except (
        HTTPError,
        errors.EntryNotFoundError,
        errors.RevisionResolutionError,
        OSError,
        ValueError,
        KeyError,
    ) as error:
        what = f"{repo_id}, revision {revision or 'main'}"
        raise HubError(_explanation(error, str(api.endpoint), repo_id, what, name)) from error


def _explanation(error: BaseException, endpoint: str, repo_id: str, what: str, name: str | None) -> str:
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx, or of httpx2 in 2.x

    match error:
        case errors.LocalEntryNotFoundError() | errors.RevisionResolutionError() | errors.OfflineModeIsEnabled():
            cause = error.__cause__
            if cause is None or isinstance(cause, errors.OfflineModeIsEnabled):
                return f"{what}: {name or 'it'} is not in the cache and requests are off; get it once while online"
            return _explanation(cause, endpoint, repo_id, what, name)
        case errors.RemoteEntryNotFoundError():
            return f"{what}: there is no file {name}; expected a bundle of itgan_data"
        case errors.RevisionNotFoundError():
            return f"{what}: there is no such revision; expected a branch, a tag or a full commit id"
        case errors.GatedRepoError():
            return f"{repo_id} is gated: ask for access at {endpoint}/{repo_id}, then {_LOG_IN}"
        case errors.RepositoryNotFoundError():
            return f"there is no repository {repo_id} at {endpoint} that you may read; check the name or {_LOG_IN}"
        case errors.HfHubHTTPError():
            return f"{what}: {_status(error.response.status_code, endpoint, error.server_message)}"
        case HTTPError():
            reason = type(error).__name__
            return f"{what}: {endpoint} cannot be reached or hung up ({reason}); run again, whole files are kept"
        case OSError(errno=errno.ENOSPC):
            return f"{what}: no space left on the disk for {name}; free some, or set HF_HOME to a folder elsewhere"
        case PermissionError():
            return f"{what}: {_first_line(error)}; let HF_HOME be a folder that you may write to"
        case OSError():
            return f"{what}: {name or 'it'} did not arrive ({_first_line(error)}); run again, whole files are kept"
        case KeyError():
            return f"{what}: {endpoint} does not answer as a Hub does, its answer has no {error}"
        case _:
            return f"{what}: {_first_line(error)}"


def _status(status: int, endpoint: str, message: str | None) -> str:
    """What an HTTP status of the Hub says."""
    match status:
        case 401:
            return f"the token was refused; {_LOG_IN}"
        case 403:
            return "your token has no right to do this; use one that has, from the settings of your account"
        case 409 | 412:
            return "somebody else has changed it in the meantime; look at it, then push again"
        case 429:
            return f"{endpoint} takes no more requests from you for now; wait some minutes and run again"
        case _ if status >= 500:
            return f"{endpoint} has trouble of its own (status {status}); run again later"
        case _:
            return f"{endpoint} answered {status}, {message or 'without a reason'}".splitlines()[0]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
