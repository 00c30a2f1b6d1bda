"""The language of man pages."""


def escape(text):
    """Text for roff: nothing in it is a request or a hyphen that a reader could not paste."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n"))
