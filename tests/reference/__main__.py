"""Write the generated pages, and bring the index of errors up to date: ``python -m tests.reference``."""

import sys

from tests.reference import DIRECTORY, errors, pages


def main() -> int:
    """Write the pages. Return 1 if there are messages that you have to describe."""
    for name, text in pages().items():
        path = DIRECTORY / name
        changed = not path.exists() or path.read_text() != text
        path.write_text(text)
        print(f"  {'written' if changed else 'unchanged'}  docs/reference/{name}")  # noqa: T201
    gone, new = errors.update()
    print(f"  docs/reference/errors.md: {gone} rows removed, {new} added below the heading New")  # noqa: T201
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
