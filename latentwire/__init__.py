"""One encoder writes a text as latent vectors that several frozen language models read.

The names of `__all__` are the public interface; heavy libraries are imported with the first of them
that is used.
"""

from typing import TYPE_CHECKING, Any

from latentwire.errors import UserError

if TYPE_CHECKING:
    from latentwire.wire.latent_receiver import LatentReceiver, SoftPrompt, open_receiver
    from latentwire.wire.payload import Latents
    from latentwire.wire.store import LatentStore
    from latentwire.wire.wire import Wire

__all__ = [
    "LatentReceiver",
    "LatentStore",
    "Latents",
    "SoftPrompt",
    "UserError",
    "Wire",
    "__version__",
    "open_receiver",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    match name:
        case "LatentReceiver" | "SoftPrompt" | "open_receiver":
            from latentwire.wire import latent_receiver

            return getattr(latent_receiver, name)
        case "Latents":
            from latentwire.wire.payload import Latents

            return Latents
        case "LatentStore":
            from latentwire.wire.store import LatentStore

            return LatentStore
        case "Wire":
            from latentwire.wire.wire import Wire

            return Wire
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
