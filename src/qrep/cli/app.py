"""What every command shares: global options, output as text or JSON, confirmation, and how an error reaches the person."""

import json
import os
import sys

import click

from qrep.errors import Interrupted, QrepError, Refused, UsageError


def default_state_dir():
    """Of this user: `qrep copy` between image files needs no root."""
    if os.geteuid() == 0:
        return "/var/lib/qrep"
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "qrep")


class App:
    """The options of this invocation. One per process, reached as `ctx.obj`."""

    def __init__(self):
        self.json = False
        self.quiet = False
        self.verbose = False
        self.socket = os.environ.get("QREP_SOCKET") or "/run/qrep/qrep.sock"
        self.config_dir = os.environ.get("QREP_CONFIG_DIR") or "/etc/qrep"
        self.state_dir = os.environ.get("QREP_STATE_DIR") or default_state_dir()

    def client(self):
        from qrep.client import Client

        return Client(self.socket)

    def data(self, value, text=None):
        """Print the result on stdout: `value` with --json, else `text` (a string, or a callable that makes it)."""
        if self.json:
            click.echo(json.dumps(value, ensure_ascii=False, default=str))
        elif text is not None:
            rendered = text() if callable(text) else text
            if rendered:
                click.echo(rendered)

    def say(self, line):
        """Tell the person something that is not the result."""
        if not self.quiet:
            click.echo(line, err=True)

    def confirm(self, question, yes, ask="Continue?"):
        """Ask before something that cannot be undone. Refused without a terminal unless `yes`.

        question: a sentence that names the object. Raises Refused, Interrupted when the answer is no.
        """
        if yes:
            return
        if not sys.stdin.isatty() or self.json:
            raise Refused(
                f"{question.rstrip()} There is no terminal to ask on.", hint="add -y to say yes", code="needs-confirmation"
            )
        if not click.confirm(f"{question} {ask}", default=False, err=True):
            raise Interrupted("nothing was changed", code="declined")


def _set(name):
    def callback(ctx, _parameter, value):
        if value:
            setattr(ctx.ensure_object(App), name, value)

    return callback


class Command(click.Command):
    """A command that takes the global --json after its name as well as before."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--json"], is_flag=True, expose_value=False, callback=_set("json"), help="Print the result as JSON."
            )
        )


class Group(click.Group):
    """A noun: its verbs are `Command`s, and alone it lists."""

    command_class = Command

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("invoke_without_command", True)
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--json"], is_flag=True, expose_value=False, callback=_set("json"), help="Print the result as JSON."
            )
        )


def printable(text):
    """`text` without what would move the cursor: some of it comes from a peer or a disk."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def show_error(app, error):
    """Print one error: JSON on stdout, or one line and its way out on stderr. Returns the exit code."""
    if app.json:
        click.echo(json.dumps({"error": error.as_dict()}, ensure_ascii=False))
    else:
        prefix = "refused" if isinstance(error, Refused) else "qrep"
        click.echo(f"{prefix}: {printable(error.message)}", err=True)
        if error.hint:
            click.echo(f"  action: {printable(error.hint)}", err=True)
    return error.exit_code


def silence_stdout():
    """Nobody reads it any more; the interpreter's flush at the end must not complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def run(command, arguments=None):
    """Run the root command; every way it can end becomes one documented exit code."""
    app = App()
    app.json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    try:
        result = command.main(args=arguments, prog_name="qrep", standalone_mode=False, obj=app)
        return result if isinstance(result, int) else 0
    except QrepError as error:
        return show_error(app, error)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.UsageError as error:
        hint = f"see: {error.ctx.command_path} --help" if error.ctx else ""
        return show_error(app, UsageError(error.format_message(), hint=hint))
    except click.ClickException as error:
        return show_error(app, QrepError(error.format_message()))
    except (click.Abort, KeyboardInterrupt):
        return show_error(app, Interrupted("interrupted"))
    except SystemExit as request:  # click's answer to a reader that went away
        silence_stdout()
        return request.code if isinstance(request.code, int) else 1
    except BrokenPipeError:
        silence_stdout()
        return 1
    except OSError as error:
        return show_error(app, QrepError(str(error)))
