"""Makes completion scripts from the tree of commands.

A script contains the names of all commands and options, so that a press of the key starts neither Python nor the
daemon, and a package can install it. All three scripts work in the same way: they find the place in the tree from the
words before the cursor, and complete what may follow there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

FILES = frozenset({"ALERTS", "DIR", "FILE", "HOME", "KEY_FILE", "PATH", "TOKEN_FILE"})
"""Names of the values that are paths of files or folders of this machine."""

CHOICES: dict[tuple[str, str], tuple[str, ...]] = {
    ("completion", ""): ("bash", "zsh", "fish"),
    ("server add", ""): ("livy", "spark-ui", "spark-history", "hdfs", "hbase", "jupyterhub", "other"),
    ("session open", "--kind"): ("pyspark", "sql"),
    ("session exec", "--kind"): ("pyspark", "sql"),
    ("subscription add", "--from"): ("beginning", "now"),
}
"""The values of an option, or of the arguments, of a command."""

_HELP = 70


@dataclass(frozen=True, slots=True)
class Value:
    """What may follow an option, or be an argument."""

    kind: Literal["none", "text", "file", "choice"] = "none"
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """One spelling of an option."""

    flag: str
    help: str
    value: Value


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the tree of commands: the root, a group, or a command."""

    words: str
    children: tuple[tuple[str, str], ...]
    """Names below, with their help."""
    options: tuple[Option, ...]
    argument: Value


def script(shell: str, root: Any) -> str:
    """Return the script for `bash`, `zsh` or `fish`; `root` is the command as Click sees it."""
    found = list(places(root))
    return "\n".join({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](found)) + "\n"


def places(root: Any) -> Iterator[Place]:
    """Yield every place in the tree, the root first. The global options are accepted everywhere."""
    yield from _below(root, (), tuple(option for option in _options(root, "") if option.flag != "--version"))


def _below(command: Any, words: tuple[str, ...], shared: tuple[Option, ...]) -> Iterator[Place]:
    children = getattr(command, "commands", None) or {}
    name = " ".join(words)
    yield Place(
        name,
        tuple((child, _short(children[child].help)) for child in children),
        (*_options(command, name), *(shared if words else ()), Option("--help", "Show the help and exit.", Value())),
        _argument(command, name),
    )
    for child in children:
        yield from _below(children[child], (*words, child), shared)


def _options(command: Any, name: str) -> tuple[Option, ...]:
    if name == "engine":
        return _engine_options()
    return tuple(
        Option(flag, _short(each.help), Value() if each.is_flag else _value(each, name, flag))
        for each in command.params
        if each.param_type_name == "option"
        for flag in (*each.opts, *each.secondary_opts)
        if flag.startswith("--") and flag != "--help"
    )


def _engine_options() -> tuple[Option, ...]:
    """Return the options of the engine, which has a parser of its own."""
    from island.engine.main import parser

    return tuple(
        Option(flag, "", Value("none" if action.nargs == 0 else "file" if _is_file(action.dest) else "text"))
        for action in parser()._actions
        for flag in action.option_strings
        if flag.startswith("--") and flag != "--help"
    )


def _argument(command: Any, name: str) -> Value:
    for each in command.params:
        if each.param_type_name == "argument":
            return _value(each, name, "")
    return Value()


def _value(parameter: Any, command: str, flag: str) -> Value:
    if choices := CHOICES.get((command, flag)):
        return Value("choice", choices)
    return Value("file" if _is_file(parameter.metavar or parameter.name) else "text")


def _is_file(name: str) -> bool:
    return name.strip("[]").upper() in FILES


def _short(text: str | None) -> str:
    """Return the first sentence of a help text, or its start."""
    line = " ".join((text or "").partition("\n\n")[0].split())
    first = line.partition(". ")[0].rstrip(".:")
    return first if len(first) <= _HELP else first[: _HELP - 3].rstrip() + "..."


def _valued(place: Place) -> list[Option]:
    return [option for option in place.options if option.value.kind != "none"]


# --- bash -----------------------------------------------------------------------------------------------

_BASH = r"""
_island() {
    local cur=${COMP_WORDS[COMP_CWORD]} place= option= skip= word i
    local children options valued choices files
    _island_place ""
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == "=" ]]; then skip=1
        elif [[ -n $skip ]]; then skip=
        elif [[ $word == -* ]]; then
            if [[ $valued == *" $word "* ]]; then skip=1 option=$word; fi
        elif [[ $children == *" $word "* ]]; then
            place="${place:+$place }$word"
            _island_place "$place"
        fi
    done
    if [[ $cur == "=" ]]; then cur= skip=1; fi
    COMPREPLY=()
    if [[ -n $skip ]]; then _island_value "$place" "$option"
    elif [[ $cur == -* ]]; then choices=$options
    elif [[ -n $children ]]; then choices=$children
    else _island_value "$place" ""
    fi
    local IFS=$' \t\n'
    if [[ -n $choices ]]; then COMPREPLY=($(compgen -W "$choices" -- "$cur"))
    elif [[ -n $files ]]; then
        IFS=$'\n'
        COMPREPLY=($(compgen -f -- "$cur"))
    fi
}
complete -o filenames -F _island island
"""


def _bash(found: list[Place]) -> list[str]:
    lines = ["# Completion of island for bash, made by: island completion bash", "", "_island_place() {"]
    lines += ["    children= options= valued= choices= files=", '    case "$1" in']
    for place in found:
        children = _padded(name for name, _ in place.children)
        options = _padded(option.flag for option in place.options)
        valued = _padded(option.flag for option in _valued(place))
        lines.append(f'        "{place.words}") children="{children}" options="{options}" valued="{valued}" ;;')
    return [*lines, "    esac", "}", "", *_value_function(found, 'choices="{}"'), _BASH.rstrip("\n")]


def _padded(names: Iterator[str]) -> str:
    text = " ".join(names)
    return f" {text} " if text else ""


def _value_function(found: list[Place], assign: str) -> list[str]:
    """Return a function of bash and zsh that sets `choices` or `files` for an option or the arguments of a place."""
    lines = ["_island_value() {", '    case "$1 $2" in']
    for place in found:
        for flag, value in (("", place.argument), *((option.flag, option.value) for option in place.options)):
            if value.kind == "file":
                lines.append(f'        "{place.words} {flag}") files=1 ;;')
            elif value.kind == "choice":
                lines.append(f'        "{place.words} {flag}") {assign.format(" ".join(value.choices))} ;;')
    return [*lines, "    esac", "}"]


# --- zsh ------------------------------------------------------------------------------------------------

_ZSH = r"""
_island() {
    local place= option= skip= files= word
    local -a children options valued choices
    _island_place ""
    for word in "${(@)words[2,CURRENT-1]}"; do
        if [[ -n $skip ]]; then skip=
        elif [[ $word == -* ]]; then
            if (( ${valued[(Ie)$word]} )); then skip=1 option=$word; fi
        elif (( ${children[(I)$word:*]} )); then
            place="${place:+$place }$word"
            _island_place "$place"
        fi
    done
    if [[ -z $skip && $PREFIX == --*=* ]]; then
        option=${PREFIX%%=*} skip=1
        compset -P '*='
    fi
    if [[ -n $skip ]]; then _island_value "$place" "$option"
    elif [[ $PREFIX == -* ]]; then
        _describe -o option options
        return
    elif (( $#children )); then
        _describe command children
        return
    else _island_value "$place" ""
    fi
    if (( $#choices )); then compadd -a choices
    elif [[ -n $files ]]; then _files
    else _message 'no completion'
    fi
}

if [[ $funcstack[1] == _island ]]; then _island "$@"; else compdef _island island; fi
"""


def _zsh(found: list[Place]) -> list[str]:
    lines = ["#compdef island", "# Completion of island for zsh, made by: island completion zsh", ""]
    lines += ["_island_place() {", "    children=() options=() valued=()", '    case "$1" in']
    for place in found:
        lines.append(f'        "{place.words}")')
        lines.append(f"            children=({' '.join(_quoted(f'{name}:{text}') for name, text in place.children)})")
        described = (_quoted(f"{option.flag}:{option.help}") for option in place.options)
        lines.append(f"            options=({' '.join(described)})")
        lines.append(f"            valued=({' '.join(option.flag for option in _valued(place))}) ;;")
    return [*lines, "    esac", "}", "", *_value_function(found, "choices=({})"), _ZSH.rstrip("\n")]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish -----------------------------------------------------------------------------------------------

_FISH = r"""
function __island_place
    set -l place
    set -l skip 0
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
        else if string match -q -- '-*' $word
            contains -- $word $__island_valued; and set skip 1
        else if contains -- (string join ' ' $place $word) $__island_places
            set -a place $word
        end
    end
    string join ' ' $place
end

function __island_at
    set -l place (__island_place)
    test "$place" = "$argv[1]"
end

complete -c island -e
complete -c island -f
"""


def _fish(found: list[Place]) -> list[str]:
    valued = dict.fromkeys(option.flag for place in found for option in _valued(place))
    lines = ["# Completion of island for fish, made by: island completion fish", ""]
    lines.append(f"set -g __island_valued {' '.join(valued)}")
    lines.append(f"set -g __island_places {' '.join(_fish_quoted(place.words) for place in found if place.words)}")
    lines.append(_FISH.rstrip("\n"))
    for place in found:
        start = f"complete -c island -n '__island_at \"{place.words}\"'"
        lines += [f"{start} -a {name} -d {_fish_quoted(text)}" for name, text in place.children]
        for option in place.options:
            value, text = _fish_value(option.value, "-r"), _fish_quoted(option.help)
            lines.append(f"{start} -l {option.flag.removeprefix('--')}{value} -d {text}")
        if not place.children and place.argument.kind in {"file", "choice"}:
            lines.append(start + _fish_value(place.argument, ""))
    return lines


def _fish_value(value: Value, required: str) -> str:
    required = f" {required}" if required else ""
    if value.kind == "none":
        return ""
    if value.kind == "file":
        return f"{required} -F"
    choices = f" -a {_fish_quoted(' '.join(value.choices))}" if value.kind == "choice" else ""
    return f"{required} -f{choices}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
