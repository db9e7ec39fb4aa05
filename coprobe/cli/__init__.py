"""The command line: `coprobe COMMAND`; `COMMANDS` lists them, and each lies in a file of its own."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from coprobe._version import __version__
from coprobe.cli import output
from coprobe.cli.sharing import Invocation
from coprobe.core.text import printable
from coprobe.core.waiting import choose_waiting
from coprobe.errors import CoprobeError, unknown

if TYPE_CHECKING:
    from coprobe.core.processes import Processes

#: What each command is for, in the order in which people need them; each lies in the file of its name in `commands/`.
COMMANDS = {
    "demo": "See it all on a laptop: two small models, probed and masked.",
    "train": "Train a checkpoint.",
    "methods": "The training methods, their sources and what they cost.",
    "inspect": "What is in a checkpoint.",
    "check": "What would make its results misleading: the self-check.",
    "nodes": "Where a checkpoint can be probed.",
    "activations": "Which channels jump under an attack (V_act, T_act).",
    "mask": "Accuracy with the salient channels masked (Eq. 7).",
    "increments": "How far channels move at each step (Fig. 10).",
    "evaluate": "Accuracy under attacks and noise.",
    "transfer": "Accuracy on images crafted on another model (Fig. 12).",
    "measure": "Any metrics by their names, from one pass over the images.",
    "diagnose": "Is a checkpoint CO-affected? A verdict, and its signs.",
    "signs": "The signs of CO, their formulas, sources and costs.",
    "figure": "A figure of the paper, from its runs or from yours.",
    "table": "A table of the paper: our numbers beside its own.",
    "claims": "Which claims of the paper hold.",
    "paper": "Everything that the paper shows, made and drawn.",
}
_LONGEST = 300


class _Commands(click.Group):
    """Imports a command when it is asked for, and none to list them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in COMMANDS:
            raise unknown("command", cmd_name, COMMANDS)
        command: click.Command = importlib.import_module(f"coprobe.cli.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, prog_name="coprobe")
def cli() -> None:
    """See catastrophic overfitting (CO) in adversarially trained checkpoints.

    \b
    No checkpoint at hand:    coprobe demo
    A checkpoint of yours:    coprobe diagnose ckpt.pt --data cifar10
    Which channels carry it:  coprobe activations ckpt.pt --node A --data cifar10
    What if they are masked:  coprobe mask --alpha2 0.5

    Budgets are written as n of n/255. Exit codes: 0 done, 2 bad usage or input, 1 failure.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become one line on stderr."""
    choose_waiting()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "LOCAL_RANK" not in os.environ:
        return run(arguments)
    from coprobe.core.processes import torchrun

    return take_part(arguments, torchrun())


def take_part(arguments: Sequence[str], processes: Processes) -> int:
    """Run a command line as one of several processes and return its exit code."""
    import torch.distributed as dist

    code = run(arguments, processes)
    if dist.is_initialized():
        # The processes did not part in good order. What is left of their connections could abort this one while it
        # ends, and its exit code would be lost.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def run(arguments: Sequence[str], processes: Processes | None = None) -> int:
    """Run a command line and return its exit code; of several processes, one reports errors and results."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × and a file name that is no text are no errors
    output.silence(processes is not None and not processes.leads)
    fail = functools.partial(_fail, processes)
    if "--debug" in arguments:
        return _invoke(arguments, processes)
    try:
        return _invoke(arguments, processes)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "coprobe"
        return fail(f"{error.format_message().rstrip('.')}; see '{where} --help'", 2)
    except click.ClickException as error:
        return fail(error.format_message(), 2)
    except CoprobeError as error:
        return fail(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return fail("interrupted", 130)
    except BrokenPipeError:
        # The reader has gone; Python would complain once more when it flushes stdout at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if processes is None else fail("nobody reads the output any more", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}; once that is mended, run the command again", 1)
    except Exception as error:
        from coprobe.core.engine import is_out_of_memory

        if is_out_of_memory(error):
            return fail("out of memory; lower --batch-size, or use another --device", 1)
        return fail(f"unexpected {type(error).__name__}: {error} (pass --debug for the traceback)", 1, expected=False)


def _invoke(arguments: Sequence[str], processes: Processes | None) -> int:
    invocation = Invocation(functools.partial(take_part, arguments), processes)
    code = cli.main(list(arguments), prog_name="coprobe", standalone_mode=False, obj=invocation)
    if processes is not None:
        processes.disconnect()
    return int(code or 0)


def _fail(processes: Processes | None, message: str, code: int, *, expected: bool = True) -> int:
    line = printable(" ".join(message.split()))
    if len(line) > _LONGEST:  # what is long is a name, and the remedy stands at the end
        line = f"{line[: _LONGEST // 2 - 2]} … {line[1 - _LONGEST // 2 :]}"
    if processes is None:
        _say(line)
    else:
        processes.report(line, code, _say, expected=expected)
    return code


def _say(line: str) -> None:
    click.echo(f"coprobe: error: {line}", err=True)
