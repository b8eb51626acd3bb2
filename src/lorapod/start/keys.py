"""Keys of services: tried at once against the service by its own client, and kept in the workspace's `.env` if wanted."""

from __future__ import annotations

from contextlib import suppress

from lorapod.errors import DiskError, RequestError
from lorapod.files import disk_error, write_text_whole
from lorapod.settings import KEYS
from lorapod.workspace import Workspace

_SECONDS = 20.0


def try_key(name: str, value: str, environment: dict[str, str], repo: str = "") -> str:
    """Asks the service whether a key is right. Returns what it says of its owner, a few words.

    Args:
        repo: Repository of the hub, as owner/name, that the key has to open.

    Raises:
        RequestError: The service refuses it, does not open the repository to it, or cannot be reached.
        MissingPackageError: The service's client is not installed.
    """
    if not value.isascii() or not value.isprintable() or " " in value:
        raise RequestError("That is no key", "It holds a blank or a letter that keys do not have.", _page(name))
    if name == "HF_TOKEN":
        return _hugging_face(value, repo)
    if name == "GEMINI_API_KEY":
        return _gemini(value, environment.get("GOOGLE_GEMINI_BASE_URL"))
    if name == "OPENAI_API_KEY":
        return _openai(value, environment.get("OPENAI_BASE_URL"))
    return "not tried: it is used when it is needed"


def _page(name: str) -> str:
    page = next((key.page for key in KEYS if key.name == name), "")
    return f"Get one at {page} and copy all of it." if page else ""


def _refused(name: str, service: str) -> RequestError:
    return RequestError(f"{service} does not know this key", "It was refused.", _page(name))


def _unreachable(service: str, error: Exception) -> RequestError:
    return RequestError(
        f"{service} cannot be asked whether the key is right",
        f"{type(error).__name__}.",
        "Check the network and give it again, or go back.",
    )


def _hugging_face(value: str, repo: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    from lorapod.models.hub import endpoint, network_errors

    service = HfApi(endpoint=endpoint(), token=value)
    try:
        who = service.whoami()
        if repo:
            service.auth_check(repo)
    except (GatedRepoError, RepositoryNotFoundError):
        raise RequestError(
            f"The key is right, but {repo} is not open to it",
            "Its licence was not accepted with the account of this key, or access has not been granted yet.",
            f"Accept it at {endpoint()}/{repo} with the same account, then give the key again; or go back.",
        ) from None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise _refused("HF_TOKEN", "Hugging Face") from None
        raise _unreachable("Hugging Face", error) from None
    except network_errors() as error:
        raise _unreachable("Hugging Face", error) from None
    return f"the key of {who.get('name', 'somebody')}"


def _gemini(value: str, address: str | None) -> str:
    from google import genai
    from google.genai import errors, types

    from lorapod.models.hub import network_errors

    client = genai.Client(
        api_key=value, http_options=types.HttpOptions(base_url=address or None, timeout=int(_SECONDS * 1000))
    )
    try:
        next(iter(client.models.list(config={"page_size": 1})), None)
    except errors.APIError as error:
        if error.code in (400, 401, 403):
            raise _refused("GEMINI_API_KEY", "Google") from None
        raise _unreachable("Google", error) from None
    except network_errors() as error:
        raise _unreachable("Google", error) from None
    finally:
        client.close()
    return "Google knows it"


def _openai(value: str, address: str | None) -> str:
    import openai

    client = openai.OpenAI(api_key=value, base_url=address or None, timeout=_SECONDS, max_retries=0)
    try:
        client.models.list()
    except (openai.AuthenticationError, openai.PermissionDeniedError):
        raise _refused("OPENAI_API_KEY", "The service") from None
    except openai.OpenAIError as error:
        raise _unreachable("The service", error) from None
    finally:
        client.close()
    return "the service knows it"


def keep_key(workspace: Workspace, name: str, value: str) -> None:
    """Writes a key to the workspace's `.env`, mode 600, in place of the one of that name; other lines stay.

    Raises:
        DiskError: The file cannot be written.
    """
    file = workspace.root / ".env"
    lines: list[str] = []
    with suppress(FileNotFoundError):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DiskError(f"{file} is no text file", str(error), "Mend it, or move it away.") from error
        except OSError as error:
            raise disk_error(error, file) from error
    kept = [line for line in lines if line.strip().removeprefix("export ").partition("=")[0].strip() != name]
    write_text_whole(file, "\n".join([*kept, f"{name}={value}"]) + "\n", mode=0o600)
