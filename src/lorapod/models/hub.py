"""What sources say of files before a byte is fetched: the hub, Civitai, plain addresses.

The hub is asked through its own client: which commit a revision is, which files it has with sizes and hashes, whether
access has to be asked for and whether the token has it. `HF_ENDPOINT`, `HF_TOKEN` and the token that `hf auth login` keeps
are honoured; Civitai's token is `CIVITAI_TOKEN`.
"""

from __future__ import annotations

import fnmatch
import http.client
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from lorapod.errors import BaseModelError, FetchError
from lorapod.models.catalogue import Entry, FileSpec, Layout, inside
from lorapod.models.transfer import Patience
from lorapod.models.web import Address, Client, RefusedError, WebError, get_range, retry_after

_COMFYUI_FOLDERS = {
    "transformer": "diffusion_models",
    "text_encoder": "text_encoders",
    "vae": "vae",
    "clip": "text_encoders",
    "image_encoder": "clip_vision",
    "training_adapter": "loras",
    "checkpoint": "checkpoints",
}
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a base model at its source.

    Attributes:
        target: Where it goes in the folder of its layout.
        size: Bytes.
        key: What the store calls it: `sha256:<hex>`, `git:<hex>` (a blob of git), or `url:...` where no hash is known.
        origin: Where it comes from and at which commit, for the record; never a token.
    """

    spec: FileSpec
    target: str
    size: int
    key: str
    origin: str
    address: Address = field(repr=False)

    @property
    def algorithm(self) -> str:
        return "git" if self.key.startswith("git:") else "sha256"

    @property
    def alias(self) -> str:
        """The name under which the store remembers what became of the file (`Store.alias`)."""
        return f"{self.key}-kept" if self.is_pickle and self.spec.pickle == "keep" else self.key

    @property
    def is_pickle(self) -> bool:
        return self.target.lower().endswith(PICKLES) and self.spec.layout is not Layout.DIFFUSERS


class Sources:
    """Asks each repository once. Pins: repository and revision to the commit that was used before.

    `on_note` hears what a waiting person should know: that the hub did not answer and will be asked again.
    """

    def __init__(
        self,
        entry: Entry,
        pins: dict[str, str] | None = None,
        patience: Patience | None = None,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.entry = entry
        self.patience = patience or Patience(tries=4)
        self.on_note = on_note
        self.pins = dict(pins or {})
        self._repos: dict[tuple[str, str], Any] = {}

    def files_of(self, spec: FileSpec) -> list[RemoteFile]:
        """The files that a spec means, with sizes and hashes.

        Raises:
            BaseModelError: No such repository, revision or file, or no access to it.
            FetchError: The source cannot be reached.
        """
        if spec.repo:
            return list(self._hub_files(spec))
        if spec.civitai is not None:
            return [_civitai_file(spec)]
        assert spec.url is not None
        return [_plain_file(spec)]

    def _hub_files(self, spec: FileSpec) -> Iterator[RemoteFile]:
        assert spec.repo is not None
        info = self._repo(spec.repo, spec.revision)
        siblings = {s.rfilename: s for s in info.siblings or []}
        names = [n for n in siblings if _wanted(n, spec)]
        if not names:
            raise BaseModelError(
                f"{spec.repo} has no file {spec.path or ', '.join(spec.include)}",
                f"It was looked for at revision {spec.revision} (commit {info.sha[:12]}), which has {len(siblings)} files.",
                "The repository was changed since this entry was written; an entry of your own can name another file "
                "(`lorapod models add`).",
            )
        for name in sorted(names):
            sibling = siblings[name]
            key = f"sha256:{sibling.lfs.sha256}" if sibling.lfs else f"git:{sibling.blob_id}"
            if sibling.size is None or not (sibling.lfs or sibling.blob_id):
                raise FetchError(
                    f"The hub does not say how large {spec.repo}/{name} is", "Its answer has no size or no hash.", ""
                )
            size = int(sibling.lfs.size if sibling.lfs else sibling.size)
            if spec.sha256 and key != f"sha256:{spec.sha256}":
                raise BaseModelError(
                    f"{spec.repo}/{name} is not the file that the catalogue means",
                    f"Its SHA-256 at the hub is {key.partition(':')[2][:16]}..., not {spec.sha256[:16]}...",
                    "It was replaced at its source; compare the two before you use it.",
                )
            url = f"{endpoint()}/{spec.repo}/resolve/{info.sha}/{quote(name)}"
            yield RemoteFile(
                spec, target_of(spec, name), size, key, f"hub:{spec.repo}@{info.sha}/{name}", Address(url, _hub_token())
            )

    def _repo(self, repo: str, revision: str) -> Any:
        pin = self.pins.get(f"{repo}@{revision}")
        known = self._repos.get((repo, revision))
        if known is None:
            try:
                known = self._ask(repo, pin or revision)
            except _RevisionGone:
                if pin is None:
                    raise _no_revision(repo, revision) from None
                try:
                    known = self._ask(repo, revision)  # the history was rewritten; what is there by hash still counts
                except _RevisionGone:
                    raise _no_revision(repo, revision) from None
            self._repos[(repo, revision)] = known
            self.pins[f"{repo}@{revision}"] = known.sha
        return known

    def _ask(self, repo: str, revision: str) -> Any:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint(), token=_hub_token() or False)
        with _hub_errors(repo, self.entry):
            info = self._patiently(lambda: api.model_info(repo, revision=revision, files_metadata=True))
            if getattr(info, "gated", False) or info.private:
                self._patiently(lambda: api.auth_check(repo))
        return info

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Asks the hub again where it said that it is busy or the connection failed."""
        from huggingface_hub.errors import HfHubHTTPError

        for failures in range(1, self.patience.tries + 1):
            asked = None
            try:
                return ask()
            except HfHubHTTPError as error:
                status = error.response.status_code if error.response is not None else 0
                if status != 429 and status < 500:
                    raise
                asked = retry_after(error.response.headers.get("Retry-After"))
                what = f"{endpoint()} answered {status}"
            except network_errors():
                what = f"{endpoint()} cannot be reached"
            seconds = self.patience.wait(failures, asked)
            self.on_note(f"{what}; asking again in {seconds:.0f} s ({failures} of {self.patience.tries})")
            time.sleep(seconds)
        return ask()

    def forget_pins(self) -> None:
        """Asks anew which commit each revision is."""
        self.pins.clear()
        self._repos.clear()


def endpoint() -> str:
    """The hub's address: `$HF_ENDPOINT`, else the hub client's own."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _hub_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


class _RevisionGone(Exception):
    pass


@contextmanager
def _hub_errors(repo: str, entry: Entry) -> Iterator[None]:
    """The hub client's errors, as a person should hear them."""
    from huggingface_hub import errors

    page = f"{endpoint()}/{repo}"
    token = _hub_token()
    try:
        yield
    except errors.GatedRepoError as error:
        raise gated_error(repo) from error
    except errors.RevisionNotFoundError as error:
        raise _RevisionGone from error
    except errors.RepositoryNotFoundError as error:
        if entry.gated:
            raise gated_error(repo) from error
        raise BaseModelError(
            f"The hub has no repository {repo}, or you may not see it",
            "A private repository and one that does not exist look alike. "
            + ("The token that you gave has no access to it." if token else "No token was given."),
            f"Open {page}; for a private one, set HF_TOKEN to a token that may read it.",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise FetchError(
            f"The hub was not asked about {repo}", "HF_HUB_OFFLINE is set.", "Unset it and run the command again."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status == 401:
            raise BaseModelError(
                "The hub does not know the token that you gave", "It may have expired or been cut off.",
                f"Make a new one at {endpoint()}/settings/tokens and set HF_TOKEN.",
            ) from error  # fmt: skip
        raise FetchError(
            f"The hub cannot be asked about {repo}",
            f"It answered {status}." if status else "It gave no answer.",
            "Try again in a minute; what has arrived is kept.",
        ) from error
    except network_errors() as error:
        raise _unreachable(endpoint(), error) from error


def network_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises without a network: of `httpx2` from its second version on, of `httpx` before."""
    import httpx

    if find_spec("httpx2") is None:
        return OSError, httpx.HTTPError
    second: type[Exception] = import_module("httpx2").HTTPError
    return OSError, httpx.HTTPError, second


def _unreachable(where: str, error: Exception) -> FetchError:
    return FetchError(
        f"{where} cannot be reached",
        str(error) or type(error).__name__,
        "Check the network (on a pod, global networking can leave it without public DNS), then run it again.",
    )


def gated_error(repo: str) -> BaseModelError:
    """The error for a repository whose files are not handed out to this token, or without one."""
    page = f"{endpoint()}/{repo}"
    if _hub_token() is None:
        return BaseModelError(
            f"{repo} is gated, and no token was given",
            "Its licence has to be accepted on its page before its files are handed out.",
            f"Accept it at {page}, make a token at {endpoint()}/settings/tokens, set HF_TOKEN, and run it again.",
        )
    return BaseModelError(
        f"{repo} is gated, and your token has no access to it",
        "Its licence was not accepted with the account of this token, or access has not been granted yet.",
        f"Ask for access at {page} with the same account, then run it again.",
    )


def _no_revision(repo: str, revision: str) -> BaseModelError:
    return BaseModelError(
        f"{repo} has no revision {revision}",
        "The branch, tag or commit does not exist at the hub, or does no longer.",
        "Name another one, or leave it out for `main`.",
    )


def _wanted(name: str, spec: FileSpec) -> bool:
    if spec.path:
        return name == spec.path
    return any(fnmatch.fnmatchcase(name, p) for p in spec.include) and not any(
        fnmatch.fnmatchcase(name, p) for p in spec.exclude
    )


def target_of(spec: FileSpec, name: str) -> str:
    """Where the file of that name at its source goes in the folder of its layout."""
    if spec.to:
        return spec.to if spec.path or not spec.repo else inside(f"{spec.to}/{name}")
    if spec.layout is not Layout.SINGLE_FILES:
        return inside(name)
    folder = next((f for part, f in _COMFYUI_FOLDERS.items() if spec.part.startswith(part)), spec.part)
    return inside(f"{folder}/{PurePosixPath(name).name}")


def civitai_endpoint() -> str:
    """Civitai's address; `$CIVITAI_ENDPOINT` overrides it."""
    return os.environ.get("CIVITAI_ENDPOINT", "https://civitai.com").rstrip("/")


def civitai_token() -> str | None:
    """`$CIVITAI_TOKEN`, or what other tools call it."""
    names = ("CIVITAI_TOKEN", "CIVITAI_API_KEY", "civitai_token")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def civitai_version(version: int) -> dict[str, Any]:
    """What Civitai says of a model version (its API's `/model-versions/{id}`).

    Raises:
        BaseModelError: There is none, or the token is wrong.
        FetchError: Civitai cannot be reached.
    """
    import httpx

    token = civitai_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{civitai_endpoint()}/api/v1/model-versions/{version}"
    try:
        answer = httpx.get(url, headers=headers, timeout=30, follow_redirects=False)
    except httpx.HTTPError as error:
        raise _unreachable(civitai_endpoint(), error) from error
    if answer.status_code in (401, 403):
        raise _civitai_token_needed(version, token)
    if answer.status_code == 404:
        raise BaseModelError(
            f"Civitai has no model version {version}",
            "The number of a model is not the number of a version.",
            "On the model's page, the version is what stands after `modelVersionId=` in the address.",
        )
    try:
        found = answer.json() if answer.status_code == 200 else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FetchError(f"Civitai cannot be asked about version {version}", f"It answered {answer.status_code}.", "")
    return found


def _civitai_token_needed(version: int, token: str | None) -> BaseModelError:
    return BaseModelError(
        f"Civitai does not hand out version {version}",
        "Your CIVITAI_TOKEN was refused, or the file is not for everybody yet." if token else "It asks for a token.",
        f"Make one at {civitai_endpoint()}/user/account and set CIVITAI_TOKEN.",
    )


def _civitai_file(spec: FileSpec) -> RemoteFile:
    version = spec.civitai
    assert version is not None
    found = civitai_version(version)
    files = [f for f in found.get("files") or [] if isinstance(f, dict)]
    safe = [f for f in files if (f.get("metadata") or {}).get("format") == "SafeTensor"]
    named = [f for f in files if spec.to and f.get("name") == PurePosixPath(spec.to).name]
    chosen = next(iter(named or [f for f in safe if f.get("primary")] or safe), None)
    if chosen is None:
        raise BaseModelError(
            f"Civitai version {version} has no safetensors file",
            f"It has {', '.join(str(f.get('name')) for f in files) or 'no files'}.",
            "Choose a version that has one.",
        )
    url = str(chosen.get("downloadUrl") or f"{civitai_endpoint()}/api/download/models/{version}")
    if urlsplit(url).hostname != urlsplit(civitai_endpoint()).hostname:
        url = f"{civitai_endpoint()}/api/download/models/{version}"
    address = Address(url, civitai_token())
    try:
        size = _probe(address)
    except RefusedError as error:
        raise _civitai_token_needed(version, address.token) from error
    sha = str((chosen.get("hashes") or {}).get("SHA256") or "").lower()
    key = f"sha256:{sha}" if len(sha) == 64 else f"{_url_key(address.shown)}"
    name = PurePosixPath(str(chosen.get("name"))).name
    return RemoteFile(spec, spec.to or target_of(spec, name), size, key, f"civitai:{version}/{name}", address)


def _plain_file(spec: FileSpec) -> RemoteFile:
    assert spec.url is not None
    address = Address(spec.url)
    try:
        size = _probe(address)
    except RefusedError as error:
        raise BaseModelError(
            f"{address.shown} does not hand the file out", f"It answered {error.status}.", "Check the address."
        ) from error
    name = unquote(PurePosixPath(urlsplit(spec.url).path).name) or "model.safetensors"
    key = f"sha256:{spec.sha256}" if spec.sha256 else _url_key(spec.url)
    return RemoteFile(spec, spec.to or target_of(spec, name), size, key, f"url:{address.shown}", address)


def _url_key(url: str) -> str:
    return url if url.startswith("http") else f"http:{url}"


def _probe(address: Address) -> int:
    """Size of a file, by asking for its first byte."""
    client = Client()
    try:
        answer = get_range(client, address, 0, 1)
        kind = (answer.header("Content-Type") or "").partition(";")[0].strip()
    except (WebError, OSError, http.client.HTTPException) as error:
        raise _unreachable(address.shown, error) from error
    finally:
        client.close()
    if kind in ("text/html", "application/json"):
        raise BaseModelError(
            f"{address.shown} gives a web page, not a file",
            f"Its type is {kind}; a page to log in at, or one about the file, looks like this.",
            "Give the address of the file itself, and a token if it needs one.",
        )
    if answer.total is None:
        raise BaseModelError(
            f"{address.shown} does not say how large the file is",
            "Without that, lorapod cannot tell a whole file from half of one.",
            "Download it by another way and add the local file: `lorapod models add NAME --file PATH`.",
        )
    return answer.total
