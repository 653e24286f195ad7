"""`pip download` for what an index that is not trusted answers: a script that is run in a process of its own.

Its arguments are the largest size of one file in bytes, and then pip's own. No file may grow beyond that size, memory
has a limit, and a page or a redirect that came over the network may not lead to a file of this machine: pip follows
both to `file:` addresses, /dev/zero among them. Indexes that are folders, as the user's own pip configuration may name
them, work as ever.
"""

import sys
from contextlib import suppress
from urllib.parse import urlsplit

MEMORY = 4 * 2**30  # bytes of address space, or an index page without an end would take it all
NETWORK = ("http", "https")
PR_SET_PDEATHSIG = 1  # prctl(2)


def limit(most: int, memory: "int | None" = MEMORY) -> None:
    """Let no file grow beyond `most` bytes: a write fails then. Nothing where the system knows no such limits."""
    with suppress(ImportError, OSError, ValueError):
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails with a reason
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most if hard < 0 else min(most, hard), hard))
        if memory is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (memory if hard < 0 else min(memory, hard), hard))


def end_with_parent() -> None:
    """Have the system kill this process when the one that started it dies, on Linux: nobody waits for the file then."""
    with suppress(OSError, AttributeError):
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def refuse_local_links() -> None:
    """Make pip pass over links and redirects from the network to this machine's files."""
    from pip._internal.models.link import Link
    from pip._vendor.requests.sessions import SessionRedirectMixin

    def guarded(make):  # type: ignore[no-untyped-def]
        def link(cls, content, page_url, *rest, **named):  # type: ignore[no-untyped-def]
            made = make(content, page_url, *rest, **named)
            if made is not None and urlsplit(page_url).scheme in NETWORK and made.scheme not in NETWORK:
                print(f"passed over: {page_url} links to {made.url}", file=sys.stderr)
                return None
            return made

        return classmethod(link)

    for name in ("from_element", "from_json"):
        setattr(Link, name, guarded(getattr(Link, name)))
    target = SessionRedirectMixin.get_redirect_target

    def redirect(self, response):  # type: ignore[no-untyped-def]
        address = target(self, response)
        scheme = urlsplit(address).scheme if address else ""
        if scheme and scheme not in NETWORK:
            raise SystemExit(f"ERROR: {response.url} redirects to {address}, which is no address of the network")
        return address

    SessionRedirectMixin.get_redirect_target = redirect  # type: ignore[method-assign]


if __name__ == "__main__":
    end_with_parent()
    limit(int(sys.argv[1]))
    refuse_local_links()
    from pip._internal.cli.main import main

    sys.exit(main(["download", *sys.argv[2:]]))
