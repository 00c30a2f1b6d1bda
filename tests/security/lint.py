"""What no file of this project may do, found in its syntax tree: code made of data, shells, loaders that run what they load, checks switched off."""

import ast

CALLS = {  # the end of a dotted name -> why not
    "eval": "runs text", "exec": "runs text", "compile": "makes code of text", "__import__": "loads what a text names",
    "pickle.load": "runs what it loads", "pickle.loads": "runs what it loads", "marshal.load": "loads code", "marshal.loads": "loads code",
    "shelve.open": "is pickle", "yaml.load": "runs what it loads", "os.system": "is a shell", "os.popen": "is a shell", "subprocess.getoutput": "is a shell",
    "subprocess.getstatusoutput": "is a shell", "tempfile.mktemp": "is a name that anyone may take", "ssl.wrap_socket": "has no context",
    "ssl._create_unverified_context": "checks nobody", "hashlib.md5": "is broken", "hashlib.sha1": "is broken", "random.seed": "makes keys that can be guessed",
}  # fmt: skip
IMPORTS = {"pickle", "cPickle", "marshal", "shelve", "yaml", "telnetlib", "ftplib", "crypt", "dill", "xmlrpc"}


def dotted(node):
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *parts[::-1]]) if isinstance(node, ast.Name) else ".".join(parts[::-1])


def _is(node, value):
    return isinstance(node, ast.Constant) and node.value is value


def faults(text):
    """[(line, what)] of a Python text."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [(node.lineno, f"imports {name}") for name in names if name.split(".")[0] in IMPORTS]
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple) and node.test.elts:
            found.append((node.lineno, "asserts a tuple, which is always true"))
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Attribute) and target.attr == "verify_mode" for target in node.targets):
            if not dotted(node.value).endswith("CERT_REQUIRED"):
                found.append((node.lineno, "a TLS context that asks for no certificate"))
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in CALLS:
            found.append((node.lineno, f"{name} {CALLS[name]}"))
        for keyword in node.keywords:
            if keyword.arg == "shell" and not _is(keyword.value, False):
                found.append((node.lineno, "shell= is a shell"))
            if keyword.arg == "verify" and _is(keyword.value, False):
                found.append((node.lineno, "verify=False checks nobody"))
            if keyword.arg == "usedforsecurity" and _is(keyword.value, False):
                found.append((node.lineno, "a broken hash"))
        if name.endswith((".extractall", "unpack_archive")):
            found.append((node.lineno, f"{name} writes where an archive says"))
        if name.endswith((".execute", ".executemany")) and node.args and isinstance(node.args[0], ast.JoinedStr):
            made = {dotted(part.value) for part in node.args[0].values if isinstance(part, ast.FormattedValue)}
            found.append((node.lineno, f"SQL made of {', '.join(sorted(made))}"))
    return found


def imports_random(text):
    return any(
        "random" in [alias.name for alias in node.names] if isinstance(node, ast.Import) else node.module == "random"
        for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)
    )  # fmt: skip
