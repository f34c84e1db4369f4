"""Write the generated pages: ``python -m tests.reference``."""

from tests.reference import DIRECTORY, pages

for name, text in pages().items():
    path = DIRECTORY / name
    changed = not path.exists() or path.read_text() != text
    path.write_text(text)
    print(f"  {'written' if changed else 'unchanged'}  docs/reference/{name}")  # noqa: T201
