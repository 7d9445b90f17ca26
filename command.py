# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # command
#
# > The command `ecgnb NAME ...`: a module of the package with a `main` is a command.
#
# Nothing is registered: `ecgnb train` runs `ecgnb.train.main`, and a new notebook that exports a `main` adds a command. In: words. Out: an exit code,
# 0 = done, 2 = something the user can mend, in one message without a traceback.

# %%
#| default_exp command

# %%
#| export
import ast
import importlib
import os
import sys
from pathlib import Path
from ecgnb.registry import did_you_mean

os.environ.setdefault('OMP_WAIT_POLICY', 'passive')    # before torch: busily waiting threads cost ten times when shared

# %%
import contextlib
import io
from fastcore.test import test_eq


# %% [markdown]
# ## The idea
#
# The list of commands is read off the package: a module that defines `main`, with the first line of its docstring.

# %%
#| export
def commands():
    "dict command -> what it does, for every module of the package that defines `main`."
    import ecgnb
    found = {}
    for file in sorted(Path(ecgnb.__file__).parent.glob('*.py')):
        text = file.read_text(encoding='utf-8')
        if '\ndef main(' in text and file.stem != 'command':
            mains = (n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == 'main')
            said = next(mains).__doc__
            found[file.stem] = ast.get_docstring(ast.parse(text)) or said or ''
    return found


# %%
test_eq({'train'} <= set(commands()), True)
commands()


# %% [markdown]
# ## Errors are messages
#
# A mistyped field, a missing data set, a checkpoint of another model: the user sees the sentence and what to type. A bug keeps its
# traceback. `ECGNB_DEBUG=1` shows the traceback of both.

# %%
#| export
def main(args=None):
    "Run `ecgnb NAME ...`; returns the exit code."
    args = sys.argv[1:] if args is None else list(args)
    known = commands()
    if not args or args[0] in ('-h', '--help'):
        rows = '\n'.join(f'  {n:<12}{d}' for n, d in known.items())
        print(f'ecgnb COMMAND ...   (-h behind a command lists what it takes)\n\n{rows}')
        return 0
    name, *rest = args
    if name not in known:
        print(f"ecgnb: no command '{name}'; {did_you_mean(name, known)}", file=sys.stderr)
        return 2
    try: importlib.import_module(f'ecgnb.{name}').main(rest)
    except KeyboardInterrupt: return 130
    except (ValueError, FileNotFoundError, FloatingPointError) as err:
        if os.environ.get('ECGNB_DEBUG'): raise
        print(f'ecgnb {name}: {err}', file=sys.stderr)
        return 2
    return 0


# %% [markdown]
# ## What can go wrong

# %%
err = io.StringIO()
with contextlib.redirect_stderr(err): code = main(['trian'])
test_eq((code, "did you mean 'train'?" in err.getvalue()), (2, True))
err = io.StringIO()
with contextlib.redirect_stderr(err): code = main(['train', 'tiny', 'model.encoder.dpeth=3'])
test_eq((code, "no field 'dpeth'" in err.getvalue()), (2, True)); err.getvalue()
